"""Questions in a notebook: `quiz` asks, `compare` sets a prediction beside what was measured, `progress` looks back.

Built from ipywidgets' core controls alone, in what versions 7.7.1 and 8 share. Questions come from
`question_files`, verdicts from `question_kinds` and `exercises`, what was answered goes to `progress_file`.
"""

import math
import reprlib
from dataclasses import replace
from pathlib import Path

from IPython.display import display

from .. import files
from ..display import Page, in_notebook, table
from ..errors import LabError
from . import exercises, progress_file, question_files
from .cards import Card, Static, keep, markdown, outcome, read, take_notices
from .controls import show
from .question_kinds import Code, Predict

_cards: dict[str, Card] = {}  # the newest of each question, for `compare`
_tried: set[str] = set()  # exercises whose cell has run before in this kernel


def quiz(question_id: str, *answer) -> None:
    """Show a question; `answer` is what an exercise's cell hands in to be checked. Raises LabError.

    An exercise is checked each time its cell runs. The first run in a kernel that does not solve it
    counts as reading it, not as an attempt.
    """
    question = question_files.find(question_id)
    if isinstance(question, Code) != bool(answer):
        wanted = "hands in the learner's answer" if isinstance(question, Code) else "takes the question's id alone"
        raise LabError(f"quiz({question_id!r}, ...) {wanted}. Write it as the lesson does.")
    verdict, counts = None, False
    if isinstance(question, Code):
        verdict = exercises.grade(question, answer)
        counts = verdict.solved or question_id in _tried
        _tried.add(question_id)
        keep(question, verdict if counts else None)
    display(Static(question, verdict if counts else None))
    if in_notebook():
        card = Card(question)
        if verdict:
            card.judge(verdict)
        _cards[question_id] = card
        show(card.box)


def compare(question_id: str, measured: float) -> None:
    """Show the prediction beside what the experiment `measured`, in the question's unit. Raises LabError."""
    question = question_files.find(question_id)
    if not isinstance(question, Predict):
        raise LabError(f"{question_id!r} is no prediction. Use quiz({question_id!r}).")
    try:
        measured = float(measured)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor with several numbers
        raise LabError(f"compare({question_id!r}, ...) takes the measured number, found {reprlib.repr(measured)}."
                       ) from None
    if not math.isfinite(measured):
        raise LabError(f"{question_id!r} was measured as {measured}: no figure to compare with. Measure it again.")
    kept = replace(read(question), measured=measured)
    if kept.answer is not None:
        kept = keep(question, solved=True, measured=measured)
    text = f"Question {question_id}: measured {question.format.format(measured)}.\n{question.answer.strip()}"
    display(Page(outcome(question, kept) + markdown(question.answer), text))
    if question_id in _cards:
        _cards[question_id].restore(kept)


def progress() -> Page:
    """Show what is solved and what is left, by lesson."""
    records, rows = progress_file.read(), []
    for lesson in question_files.lessons():
        mine = {question.id: records.get(question.id, progress_file.Record()) for question in lesson.questions}
        left = [name.partition("/")[2] for name, kept in mine.items() if not kept.solved]
        rows.append({
            "lesson": lesson.title,
            "name": lesson.name,
            "solved": f"{len(mine) - len(left)} of {len(mine)}",
            "after seeing the answer": sum(kept.solved and kept.shown for kept in mine.values()),
            "tried, not solved": sum(kept.attempts > 0 and not kept.solved for kept in mine.values()),
            "left": ", ".join(left) or "nothing" if any(kept.attempts for kept in mine.values()) else "all",
        })
    shown = table(rows)
    return Page(take_notices() + shown.data, shown.text)


def export_progress(path: str | Path = "lora-lab-progress.json") -> str:
    """Copy your progress to a file, to keep or to hand in; returns its path."""
    return str(progress_file.export(path))


def import_progress(path: str | Path) -> str:
    """Add the answers in a file that was exported here or saved on the site to yours. Raises LabError.

    Nothing of yours is lowered or replaced, but a wrong answer by the right one.
    """
    records, damage = progress_file.load(files.place(path, "the name of a file"))
    if damage and not records:
        raise LabError(f"{path} has no answers to add: {damage}. Name a file that export_progress or the site saved.")
    progress_file.take_in(records)
    solved = sum(kept.solved for kept in records.values())
    return f"Added: {len(records)} questions, {solved} of them solved.{f' Left out: {damage}.' if damage else ''}"


def reset_progress(name: str | None = None) -> str:
    """Forget the answers of a lesson ("first"), of a question ("first/share") or of all; a copy stays beside."""
    lessons = [lesson.name for lesson in question_files.lessons()]
    if name is not None and name not in lessons and "/" not in str(name):
        raise LabError(f"There is no lesson {name!r}. There are: {', '.join(lessons)}.")
    if name is not None and name not in lessons:
        question_files.find(name)
    kept = progress_file.reset(lambda known: name is None or known == name or known.startswith(f"{name}/"))
    return f"Forgotten. What was there before is in {kept}." if kept else "There was nothing to forget."
