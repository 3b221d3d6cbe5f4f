"""Add up a lesson plan and write its table into docs/teaching.md: `python tools/lesson_plan.py`.

The machine's minutes are measured: the README has them. A learner's are assumptions, all of them here: how much there
is to read, look at, answer and solve is counted in the lessons, how long each takes was not timed with learners.
"""

from pathlib import Path

import jupytext
import publish
import site_front
from lora_lab.course import question_files

ROOT = Path(__file__).parents[1]
WORDS = 238  # a minute, silently, English non-fiction: the mean of Brysbaert (2019), doi.org/10.1016/j.jml.2019.104047
CELL = 20  # seconds to look at a cell of code and what it shows
PREDICTION, QUESTION, EXERCISE = 30, 60, 300  # seconds to think, once the text is read
MINUTES = 180  # of an afternoon
AFTERNOONS = ((0, 1, 2), (3, 6, 8))  # lessons by number; each after those that it needs
PARTS = ("machine", "reading", "cells", "questions", "exercises")


def parts(number: int) -> dict[str, float]:
    """Return the minutes of a lesson by `PARTS`."""
    row = site_front.lessons()[number]
    lesson = next(found for found in question_files.lessons() if found.notebook == row["name"])
    cells = jupytext.read(ROOT / f"notebooks/{row['name']}.py").cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    texts += [line for question in lesson.questions for line in (question.ask, *question.lines)]
    kinds = [type(question).__name__ for question in lesson.questions]
    predictions, exercises = kinds.count("Predict"), kinds.count("Code")
    seconds = predictions * PREDICTION + (len(kinds) - predictions - exercises) * QUESTION
    return dict(zip(PARTS, (float(row["minutes"]), sum(len(text.split()) for text in texts) / WORDS,
                            sum(cell.cell_type == "code" for cell in cells) * CELL / 60, seconds / 60,
                            exercises * EXERCISE / 60)))


def table() -> str:
    """Return the plan as a table: a row a lesson, and under the last of an afternoon its sum and what is left."""
    rows = [f"| afternoon | lesson | {' | '.join(PARTS)} | sum |", "|---|---|" + "--:|" * (len(PARTS) + 1)]
    for place, numbers in enumerate(AFTERNOONS, 1):
        total = 0.0
        for number in numbers:
            minutes = list(parts(number).values())
            total += sum(minutes)
            shown = " | ".join(f"{part:.0f}" for part in [*minutes, sum(minutes)])
            rows.append(f"| {place} | {number} · {site_front.lessons()[number]['title']} | {shown} |")
        left = round(MINUTES - total)
        says = f"{left} minutes left" if left >= 0 else f"{-left} minutes too long"
        rows.append(f"| {place} | **of {MINUTES} minutes: {says}** {'| ' * len(PARTS)}| **{total:.0f}** |")
    return "\n".join(rows) + "\n"


def assumed() -> str:
    """Return what a learner's minutes are made of, as sentences."""
    return (f"Reading: {WORDS} words a minute, the mean for silent reading of English non-fiction in\n"
            "[Brysbaert (2019)](https://doi.org/10.1016/j.jml.2019.104047), who found most adults between 175 and\n"
            f"300. A cell and what it shows: {CELL} seconds. A prediction: {PREDICTION} seconds, another question:\n"
            f"{QUESTION}, an exercise: {EXERCISE // 60} minutes.\n")


def write(root: Path = ROOT) -> None:
    publish.replace(root / "docs/teaching.md", r"(?s)(<!-- plan -->\n).*?(<!-- /plan -->)",
                    rf"\1{assumed()}\n{table()}\2")


if __name__ == "__main__":
    write()
