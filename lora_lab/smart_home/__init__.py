"""The skill the course teaches: smart-home commands in, compact JSON actions out.

Holds the seeded grammar and its splits. No tool knows of it: what `commands` gives are pairs of prompt and answer.

A command such as "dim the kitchen lights to 30 percent" has exactly one right answer,
`{"room":"kitchen","light":30}`. The grammar leaves out every command that a person could read in
two ways ("it is dark in here", "turn it up"), so exact match is a fair score.
"""

import functools
import itertools
import json
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import LabError, expect

MARK = "> "

ROOMS = (
    "kitchen", "bedroom", "bathroom", "living room", "dining room",
    "hallway", "office", "garage", "basement", "attic",
)

PERCENT = tuple(range(5, 100, 5))
DEGREES = tuple(range(15, 26))

_NUMBERS = {"percent": PERCENT, "degrees": DEGREES}
_FILE = tomllib.loads(Path(__file__).with_name("phrasings.toml").read_text(encoding="utf-8"))
# (device, state) -> phrasings; a state is a word, or the numbers there are.
PHRASINGS: dict[tuple[str, object], tuple[str, ...]] = {
    (part["device"], _NUMBERS.get(part["state"], part["state"])): tuple(part["phrasings"]) for part in _FILE["state"]
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
    if not isinstance(n, int) or not 1 <= n < 2**31:
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
    expect(isinstance(text, str), "text", text, "a command in plain English")
    return f"{MARK}{text.strip()}\n"
