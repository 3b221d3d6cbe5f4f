"""What a learner has answered, in one file of their own that survives kernels, crashes and two notebooks at once.

Knows no question: it keeps a record for each id. What cannot be saved waits in this kernel as the update that it is,
and is made on the file's own record when that can be written: nothing that is recorded is ever lowered but by `reset`.
Nothing leaves the machine.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import platformdirs

from .. import files
from ..errors import LabError

notices: list[str] = []  # what went wrong with the file, to be shown with the next question
_told: set[str] = set()  # each of them once
_unsaved: list[tuple[str, Callable[[Record], Record]]] = []  # updates that wait until the file can be written


_REMEDY = ("Name another file in the environment variable LORA_LAB_PROGRESS. Until then your answers last as long as "
           "this kernel.")


@dataclass(frozen=True)
class Record:
    """What is kept of one question."""
    attempts: int = 0
    solved: bool = False
    shown: bool = False  # the answer was looked at before it was found
    hints: int = 0
    answer: int | str | list[int] | None = None  # the last one, as the question's control holds it
    measured: float | None = None  # what became of a prediction
    others: dict = field(default_factory=dict, compare=False, repr=False)  # what a newer version keeps, as it came


def file() -> Path:
    """Return `LORA_LAB_PROGRESS` if set, else `progress.json` in the user's data folder of this system.

    What a symbolic link points to, so that all notebooks mean the same file. Raises LabError where there is no home.
    """
    try:
        chosen = os.environ.get("LORA_LAB_PROGRESS") or Path(platformdirs.user_data_dir("lora-lab"), "progress.json")
        return Path(os.path.realpath(files.place(chosen, "a file")))
    except (LabError, RuntimeError) as error:  # the second of platformdirs, where there is no home
        raise LabError(f"Your progress has no place: {error} {_REMEDY}") from None


def read() -> dict[str, Record]:
    """Return every record by question id; what is damaged is set aside and named in `notices`."""
    try:
        return _updated(_saved())
    except LabError as error:
        _tell(str(error))
        return _updated({})


def change(question_id: str, update: Callable[[Record], Record]) -> Record:
    """Replace one record by `update(record)` while no other notebook writes; `notices` has it if that fails.

    `update` is called again, on what the file holds by then, until it could be saved.
    """
    return _change({question_id: update})[question_id]


def take_in(records: dict[str, Record]) -> None:
    """Add records of another machine or of the site to those here; nothing that is here is lowered or replaced.

    An answer of theirs counts where there is none here, or where it solved a question that is not solved here.
    """
    def joining(theirs: Record) -> Callable[[Record], Record]:
        def join(mine: Record) -> Record:
            better = theirs.solved and not mine.solved and theirs.measured is None  # a prediction stays
            taken = theirs.answer is not None and (mine.answer is None or better)
            source = theirs if taken else mine
            return replace(
                mine, answer=source.answer, measured=source.measured, attempts=max(mine.attempts, theirs.attempts),
                hints=max(mine.hints, theirs.hints), shown=mine.shown or (theirs.shown and not mine.solved),
                solved=mine.solved or (theirs.solved and (taken or theirs.answer is None)),
                others=theirs.others | mine.others)
        return join

    _change({name: joining(theirs) for name, theirs in records.items()})


def _change(updates: dict[str, Callable[[Record], Record]]) -> dict[str, Record]:
    """All records after these updates."""
    _unsaved.extend(updates.items())
    try:
        with _lock():
            records = _updated(_repaired())
            _write(file(), records)
            _unsaved.clear()
    except LabError as error:
        _tell(str(error))
        records = read()
    except Exception:  # of an update itself
        del _unsaved[len(_unsaved) - len(updates):]
        raise
    return records


def export(destination: str | Path) -> Path:
    """Write a copy of all records as JSON, to keep or to hand in; never over anything but an older copy.

    Raises LabError, with nothing changed, for a progress file that cannot be read, and where `destination` holds
    another file, or an answer that would be lost.
    """
    destination = files.place(destination, "the name of a file")
    try:
        records = _updated(_saved())
    except LabError:
        if not _unsaved:
            raise
        records = _updated({})  # what this kernel holds can be rescued so
    if os.path.realpath(destination) == str(file()):
        raise LabError(f"{destination} is your progress file itself. Name another file to copy it to.")
    if os.path.lexists(destination):
        there, damage = load(destination)
        lost = [name for name, kept in there.items() if not _covers(records.get(name, Record()), kept)]
        if damage or lost:
            why = f"has answers that your progress lacks ({', '.join(lost[:3])})" if lost else "is no earlier copy"
            raise LabError(f"{destination} {why}, and stays as it is. Name another file, or move that one.")
    _write(destination, records)
    return destination


def load(source: Path) -> tuple[dict[str, Record], str]:
    """Return the good records of a file that `export` wrote, by question id, and what is wrong with it or ""."""
    try:
        return _parse(source) if os.path.isfile(source) else ({}, "there is no such file")
    except LabError as error:
        return {}, f"it cannot be read ({error.__cause__ or 'no permission'})"


def reset(belongs: Callable[[str], bool]) -> Path | None:
    """Forget the records whose id `belongs`; returns where all were kept before, None if there were none."""
    with _lock():
        records = _updated(_repaired())
        if not any(map(belongs, records)):
            return None
        kept = _free("before-reset")
        _write(kept, records)
        _write(file(), {name: record for name, record in records.items() if not belongs(name)})
        _unsaved.clear()
    return kept


def _saved() -> dict[str, Record]:
    """The records in the file, repaired where it is damaged."""
    records, damage = _parse(file())
    if damage:
        with _lock():
            records = _repaired()
    return records


def _updated(records: dict[str, Record]) -> dict[str, Record]:
    """The records with every update that waits made on them."""
    for name, update in _unsaved:
        before = records.get(name, Record())
        after = update(before)
        whole = (one for one in (after, replace(after, answer=None, measured=None)) if _record(_plain(one)))
        records[name] = next(whole, before)  # what could not be read again is not written
    return records


def _covers(mine: Record, theirs: Record) -> bool:
    """Whether nothing is lost where `mine` takes the place of `theirs`."""
    more = all(getattr(mine, name) >= getattr(theirs, name) for name in ("attempts", "solved", "shown", "hints"))
    return more and all(getattr(theirs, name) is None or getattr(mine, name) is not None
                        for name in ("answer", "measured"))


def _tell(notice: str) -> None:
    if notice not in _told:
        _told.add(notice)
        notices.append(notice)


def _lock():
    """Held while the file is read and written; waits for another notebook, not for ever."""
    try:
        held = files.lock(f"{file()}.lock", timeout=20)
    except OSError as error:
        raise _unusable(error) from None
    files.remove_leftovers(file())
    for left in file().parent.glob(f"{glob.escape(file().name)}.*.tmp"):  # as the first versions named them
        if re.fullmatch(r"\.\d+\.tmp", left.name.removeprefix(file().name)):
            left.unlink(missing_ok=True)
    return held


def _unusable(error: Exception) -> LabError:
    return LabError(f"Your progress cannot be kept in {file()}: {error}. Make it readable and writable, or do this: "
                    f"{_REMEDY}")


def _repaired() -> dict[str, Record]:
    """The records, with a damaged file copied aside and named; under the lock."""
    records, damage = _parse(file())
    if damage:
        kept = _free("damaged")
        try:
            (shutil.copy if records else os.replace)(file(), kept)
        except OSError as error:
            raise _unusable(error) from None
        saved = f"{len(records)} of its records could be read and go on" if records else "a new one begins"
        _tell(f"Your progress file was damaged ({damage}). It is kept as {kept}; {saved}.")
        if records:
            _write(file(), records)
    return records


def _parse(source: Path) -> tuple[dict[str, Record], str]:
    """The good records of a file, and what is wrong with the others ('' if nothing is)."""
    try:
        if source.exists() and not source.is_file():  # a folder or a device, which nobody moves aside
            raise OSError("it is no regular file")
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
    known = {part.name for part in fields(Record)} - {"others"}
    record = Record(**{name: part for name, part in value.items() if name in known},
                    others={name: part for name, part in value.items() if name not in known})
    whole = all(type(n) is int and 0 <= n < 10**6 for n in (record.attempts, record.hints))
    flags = type(record.solved) is bool and type(record.shown) is bool
    number = record.measured is None or (type(record.measured) in (int, float) and math.isfinite(record.measured))
    return record if whole and flags and number and _is_answer(record.answer) else None


def _plain(record: Record) -> dict:
    known = asdict(record)
    return known.pop("others") | known


def _is_answer(value) -> bool:
    if isinstance(value, list):
        return len(value) < 50 and all(type(part) is int for part in value)
    return value is None or type(value) is int or (type(value) is str and len(value) < 200)


def _write(destination: Path, records: dict[str, Record]) -> None:
    text = json.dumps({"version": 1, "questions": {name: _plain(record) for name, record in records.items()}}, indent=1)
    try:
        files.write(destination, text)
    except OSError as error:
        raise LabError(f"{destination} cannot be written: {error}. Choose another place.") from None


def _free(why: str) -> Path:
    """A new name beside the file."""
    return files.free(file(), f"{why}-{time.strftime('%Y%m%d-%H%M%S')}")
