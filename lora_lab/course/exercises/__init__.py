"""Checks of the exercises: a file for each lesson, named as its questions' file; and `deployments` to practise on."""

import importlib
import inspect
import re
import traceback
from pathlib import Path

from ...errors import LabError
from ..question_kinds import Code, Verdict

_PACKAGE = Path(__file__).parents[2]


def has_check(question: Code) -> bool:
    """Whether there is what checks an exercise. Reads its file and does not run it, which would import torch."""
    file, name = _check_of(question)
    source = Path(__file__).with_name(f"{file}.py")
    return source.is_file() and re.search(rf"^def {re.escape(name)}\(", source.read_text("utf-8"), re.M) is not None


def _check_of(question: Code) -> tuple[str, str]:
    """The file and the function in it: `check` is a name in the lesson's own, or in another: "first.small_adapter"."""
    lesson, _, name = f"{question.id.partition('/')[0]}.{question.check}".rpartition(".")
    return lesson.rpartition(".")[2], name


def grade(question: Code, answer: tuple) -> Verdict:
    """Return what the check of an exercise says to `answer`, what the lesson's cell hands in.

    Whatever the learner's code raises is a verdict, too. Raises LabError for an answer of the wrong number of parts.
    """
    file, name = _check_of(question)
    check = getattr(importlib.import_module(f".{file}", __name__), name)
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
