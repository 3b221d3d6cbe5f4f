"""Reads the files in `questions/`, one a lesson, and says what is wrong with them."""

import functools
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path

from ..errors import LabError, nearest
from . import exercises
from .question_kinds import KINDS, Code, Plain, Question

FOLDER = Path(__file__).parent / "questions"


@dataclass(frozen=True)
class Lesson:
    """The questions of one notebook, in order."""
    name: str  # of the file, and first part of its questions' ids
    title: str
    notebook: str
    questions: tuple[Question, ...]


@functools.cache
def lessons() -> tuple[Lesson, ...]:
    """Return all lessons of the course that have questions, in order. Raises LabError."""
    return tuple(sorted(map(read, FOLDER.glob("*.toml")), key=lambda lesson: lesson.notebook))


def find(question_id: str) -> Question:
    """Return the question of this id, "lesson/name". Raises LabError with the ids there are."""
    every = {question.id: question for lesson in lessons() for question in lesson.questions}
    if not isinstance(question_id, str) or question_id not in every:
        near = nearest(question_id, every, 3, 0.5)
        meant = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(every)}."
        raise LabError(f"There is no question {question_id!r}. {meant}")
    return every[question_id]


def read(file: Path) -> Lesson:
    """Return the lesson in `file`. Raises LabError that names the file, the question and every mistake in it."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LabError(f"{file.name} is not a TOML file: {error}.") from None
    mistakes = [f"{file.name}: {key!r} is missing" for key in ("title", "notebook", "question") if not content.get(key)]
    mistakes += [f"{file.name}: unknown field {key!r}" for key in content.keys() - {"title", "notebook", "question"}]
    questions: list[Question] = []
    seen: set[str] = set()
    for position, table in enumerate(content.get("question", []), 1):
        name = table.get("id", f"number {position}")
        table = table | {"id": f"{file.stem}/{name}"}
        kind = KINDS.get(table.pop("kind", None))
        found = [f"unknown kind; there are {', '.join(KINDS)}"] if kind is None else []
        found += [f"the id {name!r} is there twice"] if name in seen else []
        seen.add(name)
        question = kind and _build(kind, table, "", found)
        if question and not found:
            found += question.faults()
            if isinstance(question, Code) and not exercises.has_check(question):
                found.append(f"there is no check {question.check!r} in exercises/{file.stem}.py")
        if question:
            questions.append(question)
        mistakes += [f"{file.name}, question {name!r}: {mistake}" for mistake in found]
    if mistakes:
        raise LabError("\n".join(mistakes))
    return Lesson(file.stem, content["title"], content["notebook"], tuple(questions))


def _build(kind: type, table: dict, where: str, mistakes: list[str]):
    """`table` as an instance of the dataclass `kind`, or None with what is wrong added to `mistakes`."""
    types, values, before = _types(kind), {}, len(mistakes)
    for name in table.keys() - types.keys():
        mistakes.append(f"{where}unknown field {name!r}")
    for field in fields(kind):
        if field.name in table:
            values[field.name] = _value(types[field.name], table[field.name], f"{where}{field.name}", mistakes)
        elif field.default is MISSING:
            mistakes.append(f"{where}{field.name!r} is missing")
    return kind(**values) if len(mistakes) == before else None


@functools.cache
def _types(kind: type) -> dict:
    return typing.get_type_hints(kind)


def _value(wanted, value, where: str, mistakes: list[str]):
    """`value` as the type `wanted`, or None with what is wrong added to `mistakes`."""
    if typing.get_origin(wanted) is Sequence:
        if not isinstance(value, list) or not value:
            return mistakes.append(f"{where!r} must be a list with something in it")
        inner = typing.get_args(wanted)[0]
        return tuple(_value(inner, part, f"{where} {i}", mistakes) for i, part in enumerate(value, 1))
    if is_dataclass(wanted):
        if not isinstance(value, dict):
            return mistakes.append(f"{where!r} must be a table")
        return _build(typing.cast(type, wanted), value, f"{where}: ", mistakes)
    python: typing.Any = {Plain: str, float: (int, float)}.get(wanted, wanted)  # counts stay whole
    if not isinstance(value, python) or (isinstance(value, bool) and wanted is not bool):
        return mistakes.append(f"{where!r} must be of type {wanted.__name__}, found {value!r}")
    if python is str and not value.strip():
        return mistakes.append(f"{where!r} is empty")
    if wanted is Plain and any(mark in value for mark in "$`\n"):
        return mistakes.append(f"{where!r} is shown as it is: no $, no ` and no line break in it")
    return value
