"""Checks of the exercises: a file for each lesson, named as its questions' file; and `deployments` to practise on."""

import importlib
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path

from ...errors import LabError
from ..question_kinds import Code, Verdict

_PACKAGE = Path(__file__).parents[2]


def check_of(question: Code) -> Callable[..., Verdict] | None:
    """Return the function that checks an exercise; None if there is none.

    `check` is its name in the file of the question's own lesson, or of another one: "first.small_adapter".
    """
    lesson, _, name = f"{question.id.partition('/')[0]}.{question.check}".rpartition(".")
    lesson = lesson.rpartition(".")[2]
    if not (Path(__file__).parent / f"{lesson}.py").is_file():
        return None
    return getattr(importlib.import_module(f".{lesson}", __name__), name, None)


def grade(question: Code, answer: tuple) -> Verdict:
    """Return what the check of an exercise says to `answer`, what the lesson's cell hands in.

    Whatever the learner's code raises is a verdict, too. Raises LabError for an answer of the wrong number of parts.
    """
    check = check_of(question)
    assert check, f"{question.id} has no check"  # question_files has refused such a question
    try:
        inspect.signature(check).bind(*answer)
    except TypeError as error:
        raise LabError(f"quiz({question.id!r}, ...): {error}. Hand in what the lesson's cell hands in.") from None
    try:
        return check(*answer)
    except LabError as error:  # says itself what to mend
        return Verdict(False, str(error), plain=True)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if _PACKAGE not in Path(frame.filename).parents
               and "site-packages" not in frame.filename][-1:]
        where = f"\nin line {own[0].lineno}: {own[0].line}" if own else ""
        return Verdict(False, f"Your code raised {type(error).__name__}: {error}{where}", plain=True)


def say(solved: bool, detail: str) -> Verdict:
    """Return a verdict in a program's words."""
    return Verdict(solved, detail, plain=True)
