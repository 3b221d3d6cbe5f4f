"""What a learner has answered, in one file of their own that survives kernels, crashes and two notebooks at once.

Knows no question: it keeps a record for each id. Nothing leaves the machine.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import platformdirs

from .. import files
from ..errors import LabError

notices: list[str] = []  # what went wrong with the file, to be shown with the next question
_told: set[str] = set()  # each of them once
_unsaved: dict[str, Record] = {}  # where the file cannot be written, until the kernel stops


@dataclass(frozen=True)
class Record:
    """What is kept of one question."""
    attempts: int = 0
    solved: bool = False
    shown: bool = False  # the answer was looked at before it was found
    hints: int = 0
    answer: int | str | list[int] | None = None  # the last one, as the question's control holds it
    measured: float | None = None  # what became of a prediction


def file() -> Path:
    """Return `LORA_LAB_PROGRESS` if set, else `progress.json` in the user's data folder of this system."""
    default = Path(platformdirs.user_data_dir("lora-lab")) / "progress.json"
    return Path(os.environ.get("LORA_LAB_PROGRESS") or default).expanduser().absolute()


def read() -> dict[str, Record]:
    """Return every record by question id; what is damaged is set aside and named in `notices`."""
    try:
        records, damage = _parse(file())
        if damage:
            with _lock():
                records = _repaired()
    except LabError as error:
        _tell(str(error))
        records = {}
    return records | _unsaved


def change(question_id: str, update: Callable[[Record], Record]) -> Record:
    """Replace one record by `update(record)` while no other notebook writes; `notices` has it if that fails."""
    try:
        with _lock():
            records = _repaired() | _unsaved
            records[question_id] = update(records.get(question_id, Record()))
            _write(file(), records)
        _unsaved.clear()
    except LabError as error:
        _tell(str(error))
        _unsaved[question_id] = update(_unsaved.get(question_id, Record()))
        return _unsaved[question_id]
    return records[question_id]


def export(destination: str | Path) -> Path:
    """Write a copy of all records as JSON, to keep or to hand in."""
    destination = Path(destination).expanduser().absolute()
    _write(destination, read())
    return destination


def load(source: Path) -> tuple[dict[str, Record], str]:
    """Return the good records of a file that `export` wrote, by question id, and what is wrong with it or ""."""
    try:
        return _parse(source) if source.is_file() else ({}, "there is no such file")
    except LabError as error:
        return {}, f"it cannot be read ({error.__cause__ or 'no permission'})"


def reset(belongs: Callable[[str], bool]) -> Path | None:
    """Forget the records whose id `belongs`; returns where all were kept before, None if there were none."""
    with _lock():
        records = _repaired()
        if not any(map(belongs, records)):
            return None
        kept = _set_aside("before-reset", shutil.copy)
        _write(file(), {name: record for name, record in records.items() if not belongs(name)})
    return kept


def _tell(notice: str) -> None:
    if notice not in _told:
        _told.add(notice)
        notices.append(notice)


def _lock():
    """Held while the file is read and written; waits for another notebook, not for ever."""
    try:
        return files.lock(f"{file()}.lock", timeout=20)
    except OSError as error:
        raise _unusable(error) from None


def _unusable(error: Exception) -> LabError:
    return LabError(
        f"Your progress cannot be kept in {file()}: {error}. Make it readable and writable, or name another file in "
        "the environment variable LORA_LAB_PROGRESS. Until then your answers last as long as this kernel."
    )


def _repaired() -> dict[str, Record]:
    """The records, with a damaged file copied aside and named; under the lock."""
    records, damage = _parse(file())
    if damage:
        kept = _set_aside("damaged", shutil.copy if records else os.replace)
        saved = f"{len(records)} of its records could be read and go on" if records else "a new one begins"
        _tell(f"Your progress file was damaged ({damage}). It is kept as {kept}; {saved}.")
        if records:
            _write(file(), records)
    return records


def _parse(source: Path) -> tuple[dict[str, Record], str]:
    """The good records of a file, and what is wrong with the others ('' if nothing is)."""
    try:
        content = files.read_json(source, object)
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        raise _unusable(error) from None
    except ValueError as error:
        return {}, str(error)
    if not isinstance(content, dict) or not isinstance(content.get("questions"), dict):
        return {}, "it holds no questions"
    records = {name: _record(value) for name, value in content["questions"].items() if len(name) < 100}
    good = {name: record for name, record in records.items() if record}
    bad = len(content["questions"]) - len(good)
    return good, f"{bad} records make no sense" if bad else ""


def _record(value) -> Record | None:
    if not isinstance(value, dict):
        return None
    known = {field.name for field in fields(Record)}  # another version may write more
    record = Record(**{name: part for name, part in value.items() if name in known})
    whole = all(type(n) is int and 0 <= n < 10**6 for n in (record.attempts, record.hints))
    flags = type(record.solved) is bool and type(record.shown) is bool
    number = record.measured is None or (type(record.measured) in (int, float) and math.isfinite(record.measured))
    return record if whole and flags and number and _is_answer(record.answer) else None


def _is_answer(value) -> bool:
    if isinstance(value, list):
        return len(value) < 50 and all(type(part) is int for part in value)
    return value is None or type(value) is int or (type(value) is str and len(value) < 200)


def _write(destination: Path, records: dict[str, Record]) -> None:
    text = json.dumps({"version": 1, "questions": {name: asdict(record) for name, record in records.items()}}, indent=1)
    try:
        files.write(destination, text)
    except OSError as error:
        raise LabError(f"{destination} cannot be written: {error}. Choose another place.") from None


def _set_aside(why: str, move: Callable) -> Path:
    """Copies or moves the file to a new name beside it, never over an older one."""
    kept = files.free(file(), f"{why}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        move(file(), kept)
    except OSError as error:
        raise _unusable(error) from None
    return kept
