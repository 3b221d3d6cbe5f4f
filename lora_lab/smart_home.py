"""The skill the course teaches: smart-home commands in, compact JSON actions out.

Holds the seeded grammar and its splits. No tool knows of it: what `commands` gives are pairs of prompt and answer.

A command such as "dim the kitchen lights to 30 percent" has exactly one right answer,
`{"room":"kitchen","light":30}`. The grammar leaves out every command that a person could read in
two ways ("it is dark in here", "turn it up"), so exact match is a fair score.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Iterator
from typing import NamedTuple

from .errors import LabError

MARK = "> "

ROOMS = (
    "kitchen", "bedroom", "bathroom", "living room", "dining room",
    "hallway", "office", "garage", "basement", "attic",
)

PERCENT = tuple(range(5, 100, 5))
DEGREES = tuple(range(15, 26))

# (device, state) -> phrasings. `{r}` is the room, `{n}` the number; a leading "!" marks a sentence
# that gives no order ("I want ..."), which "could you ..." must not be put in front of.
PHRASINGS: dict[tuple[str, object], tuple[str, ...]] = {
    ("light", "on"): (
        "turn on the {r} lights", "turn the {r} lights on", "switch on the light in the {r}",
        "switch the {r} light on", "put the {r} lights on", "put on the light in the {r}",
        "get the lights on in the {r}", "make sure the {r} light is on", "light up the {r}",
        "!lights on in the {r}", "!I want the {r} lights on", "!I need the light on in the {r}",
    ),
    ("light", "off"): (
        "turn off the {r} lights", "turn the {r} lights off", "switch off the light in the {r}",
        "switch the {r} light off", "put the {r} lights out", "put out the light in the {r}",
        "get the lights off in the {r}", "make sure the {r} light is off", "kill the {r} lights",
        "!lights off in the {r}", "!I want the {r} lights off", "!no more light in the {r}",
    ),
    ("light", PERCENT): (
        "dim the {r} lights to {n} percent", "set the {r} lights to {n} percent",
        "bring the {r} light to {n} percent", "put the light in the {r} at {n} percent",
        "set the brightness in the {r} to {n} percent", "make the {r} lights {n} percent bright",
        "change the {r} light to {n} percent", "adjust the lights in the {r} to {n} percent",
        "!{n} percent light in the {r}", "!I want the {r} lights at {n} percent",
        "!{r} lights at {n} percent", "!brightness {n} percent in the {r}",
    ),
    ("blinds", "open"): (
        "open the {r} blinds", "open up the blinds in the {r}", "raise the {r} blinds",
        "pull up the blinds in the {r}", "roll up the {r} blinds", "lift the blinds in the {r}",
        "get the {r} blinds open", "make sure the {r} blinds are open", "pull the {r} blinds up",
        "!blinds up in the {r}", "!I want the {r} blinds open", "!the {r} blinds should be open",
    ),
    ("blinds", "closed"): (
        "close the {r} blinds", "shut the blinds in the {r}", "lower the {r} blinds",
        "pull down the blinds in the {r}", "roll down the {r} blinds", "drop the blinds in the {r}",
        "get the {r} blinds closed", "make sure the {r} blinds are shut", "pull the {r} blinds down",
        "!blinds down in the {r}", "!I want the {r} blinds closed", "!the {r} blinds should be closed",
    ),
    ("door", "locked"): (
        "lock the {r} door", "lock up the {r} door", "bolt the {r} door", "bolt the door to the {r}",
        "keep the {r} door locked", "get the {r} door locked", "put the lock on the {r} door",
        "make sure the {r} door is locked", "lock the door to the {r}",
        "!I want the {r} door locked", "!the {r} door should be locked", "!the {r} door must stay locked",
    ),
    ("door", "unlocked"): (
        "unlock the {r} door", "unlock the door of the {r}", "unbolt the {r} door",
        "unbolt the door to the {r}", "leave the {r} door unlocked", "get the {r} door unlocked",
        "take the lock off the {r} door", "make sure the {r} door is unlocked",
        "unlock the door to the {r}", "!I want the {r} door unlocked",
        "!the {r} door should be unlocked", "!the {r} door must stay unlocked",
    ),
    ("fan", "on"): (
        "turn on the {r} fan", "turn the {r} fan on", "switch on the fan in the {r}",
        "switch the {r} fan on", "start the {r} fan", "start up the fan in the {r}",
        "get the {r} fan going", "run the fan in the {r}", "put the {r} fan on",
        "!fan on in the {r}", "!I want the {r} fan on", "!the {r} fan should be running",
    ),
    ("fan", "off"): (
        "turn off the {r} fan", "turn the {r} fan off", "switch off the fan in the {r}",
        "switch the {r} fan off", "stop the {r} fan", "stop the fan in the {r}",
        "get the {r} fan to stop", "shut off the fan in the {r}", "shut the {r} fan down",
        "!fan off in the {r}", "!I want the {r} fan off", "!the {r} fan should be off",
    ),
    ("music", "on"): (
        "play music in the {r}", "play some music in the {r}", "start the music in the {r}",
        "start the {r} music", "put music on in the {r}", "put on some music in the {r}",
        "turn on the music in the {r}", "switch the {r} music on", "get some music going in the {r}",
        "!music on in the {r}", "!I want music in the {r}", "!some music in the {r}",
    ),
    ("music", "off"): (
        "stop the music in the {r}", "stop playing music in the {r}", "stop the {r} music",
        "end the music in the {r}", "turn off the music in the {r}", "turn the {r} music off",
        "switch the {r} music off", "cut the music in the {r}", "shut off the {r} music",
        "!music off in the {r}", "!I want the {r} music off", "!no more music in the {r}",
    ),
    ("volume", PERCENT): (
        "set the {r} volume to {n} percent", "set the volume in the {r} to {n} percent",
        "turn the {r} volume to {n} percent", "put the volume in the {r} at {n} percent",
        "change the {r} volume to {n} percent", "adjust the {r} volume to {n} percent",
        "bring the {r} volume to {n} percent", "make the volume {n} percent in the {r}",
        "!volume {n} percent in the {r}", "!I want the {r} volume at {n} percent",
        "!{r} volume at {n} percent", "!{n} percent volume in the {r}",
    ),
    ("heating", DEGREES): (
        "heat the {r} to {n} degrees", "warm the {r} to {n} degrees", "set the {r} to {n} degrees",
        "set the {r} heating to {n} degrees", "put the heating in the {r} at {n} degrees",
        "make it {n} degrees in the {r}", "warm up the {r} to {n} degrees",
        "keep the {r} at {n} degrees", "get the {r} to {n} degrees",
        "!{n} degrees in the {r}", "!I want it to be {n} degrees in the {r}",
        "!heating at {n} degrees in the {r}",
    ),
    ("heating", "off"): (
        "turn off the {r} heating", "turn the {r} heating off", "switch off the heating in the {r}",
        "switch the {r} heating off", "stop heating the {r}", "stop the heating in the {r}",
        "shut off the {r} heating", "shut the {r} heating down", "cut the heating in the {r}",
        "!heating off in the {r}", "!I want the {r} heating off", "!no more heating in the {r}",
    ),
}

# What stands around a phrasing: first for every sentence, then for orders only.
WRAPPERS = {
    "train": (
        ("{}", "{}", "{}, please", "hey, {}", "{}, thanks", "{} now"),
        ("please {}", "could you {}", "can you {}", "go and {}"),
    ),
    "validation": (("hello, {}", "{} at once", "well, {}"), ("will you {}", "kindly {}")),
    "test": (("ok, {}", "{} right away", "{} if you can"), ("would you {}", "I need you to {}")),
}

SPLITS = (
    "train",
    "validation combinations", "validation phrasings",
    "test combinations", "test phrasings",
)
_SPLIT_SEED = 2026  # decides what is held out; independent of the seed that draws commands


class Command(NamedTuple):
    """One command as a model reads it, and the one JSON action it means: a pair of prompt and answer."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The command in plain English."""
        return self.prompt.removeprefix(MARK).removesuffix("\n")


def commands(split: str = "train", n: int = 200, seed: int = 0) -> list[Command]:
    """Draw `n` different commands of one split; the same seed draws the same commands.

    Held-out *combinations* use the training phrasings on (device, state, room) triples that
    training never shows. Held-out *phrasings* use sentences, and words around them, that training
    never shows, on triples that it does show. Validation and test hold out different ones. Every
    (device, state) is drawn equally often, and so are its phrasings and rooms.

    Raises LabError for an unknown split or an `n` the grammar cannot fill.
    """
    if split not in SPLITS:
        raise LabError(f"Unknown split {split!r}. Use one of: {', '.join(SPLITS)}.")
    if not isinstance(n, int) or n < 1:
        raise LabError(f"Cannot draw n={n!r} commands. Ask for a whole number, 1 or more.")
    rng = random.Random(f"{split}/{seed}")
    pools = {target: [_evenly(rng, pool) for pool in _held_out(split, *target)] for target in PHRASINGS}
    for_all, for_orders = WRAPPERS[split.split()[0] if split.endswith("phrasings") else "train"]
    drawn: dict[str, Command] = {}
    for target in itertools.islice(itertools.cycle(PHRASINGS), n):
        rooms, phrasings = pools[target]
        for _ in range(1000):  # one sentence more, unless this state has none left
            phrasing = next(phrasings)
            wrapper = rng.choice(for_all if phrasing.startswith("!") else for_all + for_orders)
            command = _write(rng, *target, next(rooms), wrapper.format(phrasing.lstrip("!")))
            if command.text not in drawn:
                drawn[command.text] = command
                break
        else:
            raise LabError(f"The grammar has fewer than {n} different commands in {split!r}. Ask for fewer.")
    return list(drawn.values())


def _evenly(rng: random.Random, pool: list[str]) -> Iterator[str]:
    """The pool in a random order, again and again, each time in another."""
    while True:
        yield from rng.sample(pool, len(pool))


@functools.cache
def _held_out(split: str, device: str, state) -> tuple[list[str], list[str]]:
    """Rooms and phrasings that `split` may use for one (device, state)."""
    rng = random.Random(f"{_SPLIT_SEED}/{device}/{state}")
    rooms, phrasings = list(ROOMS), list(PHRASINGS[device, state])
    rng.shuffle(rooms)
    rng.shuffle(phrasings)
    test_rooms, validation_rooms, train_rooms = rooms[:2], rooms[2:3], rooms[3:]
    test, validation, train = phrasings[:2], phrasings[2:4], phrasings[4:]
    return {
        "train": (train_rooms, train),
        "validation combinations": (validation_rooms, train),
        "validation phrasings": (train_rooms, validation),
        "test combinations": (test_rooms, train),
        "test phrasings": (train_rooms, test),
    }[split]


def _write(rng: random.Random, device: str, state, room: str, sentence: str) -> Command:
    if isinstance(state, tuple):
        state = rng.choice(state)
    action = json.dumps({"room": room, device: state}, separators=(",", ":"))
    return Command(prompt(sentence.format(r=room, n=state)), action)


def prompt(text: str) -> str:
    """Return what the model reads of a command: a mark, the command and a newline, after which the action begins."""
    return f"{MARK}{text.strip()}\n"
