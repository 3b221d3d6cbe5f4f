import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_lab import LabError, smart_home


def triples(commands):
    """(device, state kind, room) of each command; a number counts as one kind of state."""
    found = set()
    for command in commands:
        action = json.loads(command.answer)
        device = list(action)[1]
        state = action[device]
        found.add((device, "number" if isinstance(state, int) else state, action["room"]))
    return found


def cores(split, seeds=range(3)):
    """Every phrasing that `split` draws, without its wrapper."""
    texts = [c.text for seed in seeds for c in smart_home.commands(split, 400, seed)]
    written = {
        phrasing.lstrip("!").format(r=room, n=number): phrasing
        for phrasings in smart_home.PHRASINGS.values()
        for phrasing, room, number in product(phrasings, smart_home.ROOMS, range(5, 100))
    }
    by_length = sorted(written, key=len, reverse=True)
    return {written[next(core for core in by_length if core in text)] for text in texts}


@given(seed=st.integers(), split=st.sampled_from(smart_home.SPLITS), n=st.integers(1, 60))
@settings(max_examples=50)
def test_every_draw_is_repeatable_distinct_and_valid(seed, split, n):
    commands = smart_home.commands(split, n, seed)
    assert commands == smart_home.commands(split, n, seed)
    assert len({c.text for c in commands}) == n
    for command in commands:
        action = json.loads(command.answer)
        assert list(action)[0] == "room" and action["room"] in smart_home.ROOMS and len(action) == 2
        assert action["room"] in command.text


def test_held_out_combinations_never_occur_in_training():
    train = set().union(*(triples(smart_home.commands("train", 800, seed)) for seed in range(3)))
    validation = triples(smart_home.commands("validation combinations", 200))
    test = triples(smart_home.commands("test combinations", 200))
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test


def test_held_out_phrasings_never_occur_in_training():
    train, validation, test = (cores(s) for s in ("train", "validation phrasings", "test phrasings"))
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test


def test_combinations_use_training_phrasings_and_the_other_way_round():
    assert cores("test combinations") <= cores("train", range(8))
    assert triples(smart_home.commands("test phrasings", 200)) <= triples(smart_home.commands("train", 2000))


def test_no_sentence_of_the_grammar_means_two_actions():
    meaning = {}
    for (device, state), phrasings in smart_home.PHRASINGS.items():
        states = state if isinstance(state, tuple) else (state,)
        for value, room, phrasing in product(states, smart_home.ROOMS, phrasings):
            text = phrasing.lstrip("!").format(r=room, n=value)
            assert meaning.setdefault(text, (device, value, room)) == (device, value, room)


def test_different_seeds_draw_different_commands():
    assert smart_home.commands("train", 50, 1) != smart_home.commands("train", 50, 2)


@pytest.mark.parametrize(
    "arguments", [{"split": "exam"}, {"n": 0}, {"n": -3}, {"n": 2.5}, {"split": "test phrasings", "n": 10**6}]
)
def test_bad_requests_say_what_to_do(arguments):
    with pytest.raises(LabError, match="Use one of|Ask for"):
        smart_home.commands(**arguments)
