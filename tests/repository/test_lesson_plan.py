"""The teaching page's plan is what its program adds up, and the program counts what is in the lessons."""

import re
import shutil
from pathlib import Path

import lesson_plan
import pytest
import site_front
from lora_lab.course import question_files

ROOT = Path(__file__).parents[2]


def test_the_teaching_page_has_what_the_program_writes(tmp_path):
    (tmp_path / "docs").mkdir()
    page = Path(shutil.copy(ROOT / "docs/teaching.md", tmp_path / "docs"))
    lesson_plan.write(tmp_path)
    assert page.read_text() == (ROOT / "docs/teaching.md").read_text(), "run tools/lesson_plan.py"


def test_the_machines_minutes_are_the_readmes_and_each_exercise_counts():
    for number, row in enumerate(site_front.lessons()):
        lesson = next(found for found in question_files.lessons() if found.notebook == row["name"])
        found = lesson_plan.parts(number)
        assert found["machine"] == float(row["minutes"]) and min(found.values()) > 0
        exercises = [question for question in lesson.questions if hasattr(question, "check")]
        assert found["exercises"] * 60 == pytest.approx(len(exercises) * lesson_plan.EXERCISE)


def test_each_lesson_comes_after_those_that_it_needs():
    page = (ROOT / "docs/teaching.md").read_text()
    needs = {int(number): {int(digit) for digit in re.findall(r"\d", text.partition(";")[0])}
             for number, text in re.findall(r"(?m)^\| (\d) · [^|]*\| ([^|]*) \| [\d.]+ \|", page)}
    assert len(needs) == len(site_front.lessons()) and needs[2] == {0, 1}
    order = [number for numbers in lesson_plan.AFTERNOONS for number in numbers]
    assert all(needs[number] <= set(order[:place]) for place, number in enumerate(order))


@pytest.mark.parametrize("minutes, says", [(1000, "minutes left"), (60, "minutes too long")])
def test_an_afternoon_says_what_is_left_or_by_how_much_it_is_too_long(monkeypatch, minutes, says):
    monkeypatch.setattr(lesson_plan, "MINUTES", minutes)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in lesson_plan.table().splitlines()]
    assert len({len(row) for row in rows}) == 1
    for place, numbers in enumerate(lesson_plan.AFTERNOONS, 1):
        *_, (_, told, *_, total) = (row for row in rows if row[0] == str(place))
        wanted = sum(sum(lesson_plan.parts(number).values()) for number in numbers)
        assert total == f"**{wanted:.0f}**" and says in told
        assert int(re.search(r": (\d+)", told)[1]) == abs(round(minutes - wanted))
