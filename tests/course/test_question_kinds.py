"""How answers are judged, kind by kind, and what numbers a learner may write."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_lab.course import question_files
from lora_lab.course.question_kinds import number

FILE = Path(__file__).parents[1] / "questions/every.toml"
EVERY = {q.id.partition("/")[2]: q for q in question_files.read(FILE).questions}


@pytest.mark.parametrize("kind, answer, solved, words", [
    ("choice", 1, True, "It is $x^2$."),
    ("choice", 2, False, "The third is too far."),
    ("multiple", [0, 2], True, "All of them"),
    ("multiple", [0, 1, 2], False, "is odd"),
    ("multiple", [2], False, "not all. Count on."),
    ("number", "4,096", True, "4,096, yes"),
    ("number", "4096 entries", True, "yes"),
    ("number", "2048", False, "You forgot the square."),
    ("number", "17", False, "Multiply."),
    ("number", "four", None, "Write one number"),
    ("match", [2, 1], True, "All match."),
    ("match", [0, 1], False, "takes the input"),
    ("order", [1, 0, 2], True, "In the right order."),
    ("order", [0, 1, 2], False, "is the smallest"),
    ("order", [0, 0, 2], None, "same place"),
])
def test_answers_are_judged_with_what_their_author_overlooked(kind, answer, solved, words):
    verdict = EVERY[kind].grade(answer)
    assert verdict.solved is solved and words in verdict.text


def test_a_measurement_decides_a_prediction():
    assert [EVERY["predict"].right(value) for value in (-3, 49.4, 50, 1e9)] == [0, 0, 1, 1]


def test_markup_in_a_plain_text_is_escaped_where_markdown_is_read():
    assert r"A \<i\>" in EVERY["match"].grade([0, 1]).text
    assert EVERY["match"].grade([0, 1]).text == r"- **A \<i\>** takes the input."


def test_choices_with_numbers_are_sorted_by_number():
    choices = question_files.find("targets/forms").choices
    assert [int(choice.split()[0]) for choice in choices] == sorted(int(choice.split()[0]) for choice in choices)


@pytest.mark.parametrize("written, value", [
    ("4,194,304", 4194304), ("4 194 304", 4194304), ("4_194_304", 4194304), (" 0.25 ", 0.25), ("1e6", 1e6), ("-3", -3),
    ("75 %", 75), ("16/64", 0.25), ("4\u202f096", 4096), ("4'096", 4096), ("1/0", None),
    ("0,25", None), ("12 MB", None), ("", None), ("nan", None), ("inf", None), ("1,2,3", None), ("id('x')", None),
])
def test_numbers_as_people_write_them(written, value):
    assert number(written) == value


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_numbers(text):
    assert number(text) is None or isinstance(number(text), float)


@given(st.integers(0, 10**12))
def test_thousands_separators_do_not_change_a_number(value):
    assert number(f"{value:,}") == number(f"{value:_}") == value


@pytest.mark.parametrize("answer", [None, 7, -1, True, "1", [0], [9], [[]], {}, 1.0])
@pytest.mark.parametrize("kind", EVERY)
def test_whatever_is_held_can_be_judged(kind, answer):
    question = EVERY[kind]
    if kind not in ("predict", "code") and answer is not None and question.holds(answer):
        assert question.grade(answer).text


def test_an_answer_from_an_edited_file_is_not_held():
    assert not EVERY["choice"].holds(3) and not EVERY["choice"].holds("<b>") and EVERY["choice"].holds(2)
    assert not EVERY["match"].holds([0]) and not EVERY["order"].holds([0, 1, 3]) and not EVERY["number"].holds(4096)
