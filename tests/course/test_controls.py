"""Controls: what each gives, takes back and shows, for every kind of question."""

from pathlib import Path

import pytest
from lora_lab.course import question_files
from lora_lab.course.controls import control

FILE = Path(__file__).parents[1] / "questions/every.toml"
EVERY = {q.id.partition("/")[2]: q for q in question_files.read(FILE).questions}


def an_answer(question):
    """One that the question can hold, and how a page's controls hold it."""
    kind = type(question).__name__
    if kind in ("Choice", "Predict"):
        return 1, [place == 1 for place in range(len(question.lines))]
    if kind == "Multiple":
        return [0, 1], [place < 2 for place in range(len(question.lines))]
    if kind == "Number":
        return "12", ["12"]
    places = list(range(len(question.items)))
    return places, [place + 1 for place in places]  # a menu's first line asks to choose


@pytest.mark.parametrize("name", [name for name, question in EVERY.items() if type(question).__name__ != "Code"])
def test_a_control_gives_what_was_chosen_and_shows_what_was_saved(name):
    question = EVERY[name]
    answer, held = an_answer(question)
    fresh, saved, sent = control(question), control(question), control(question)
    assert fresh.get() is None and fresh.wanted
    saved.set(answer)
    sent.set_held(held)
    assert saved.get() == sent.get() == answer and question.holds(answer)
    saved.set(None)
    assert saved.get() is None
    saved.lock()
    assert saved.widgets and all(widget.disabled for widget in saved.widgets)


def test_an_exercise_has_no_control():
    assert control(EVERY["code"]).widgets == [] and control(EVERY["code"]).get() is None
