"""A class's progress as one table, from the files that learners exported with `lora_lab.export_progress`.

`lora-lab class handed-in/*.json --out class.csv` prints it and writes it as CSV.
"""

import argparse
import csv
import glob
import io
import itertools
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..errors import LabError, expect
from . import progress_file, question_files
from .question_kinds import Predict


@dataclass(frozen=True)
class Summary:
    """A class's progress: two tables and what was noticed."""
    header: list[str]  # "learner", then a lesson each
    rows: list[list[str]]  # a learner each: name of the file, then "3 of 8"
    missed: list[list[str]]  # question, learners who tried, who did not solve it, who looked at the answer first
    notes: list[str]  # files that were left out or damaged, and files with the same answers


def collect(files: Iterable[str | Path]) -> Summary:
    """Read exported files; one that is damaged or not of this course is named in the notes, never an error."""
    asked = {lesson.title: [question.id for question in lesson.questions] for lesson in question_files.lessons()}
    ids = {name for names in asked.values() for name in names}
    graded = {q.id for lesson in question_files.lessons() for q in lesson.questions if not isinstance(q, Predict)}
    learners: dict[str, dict[str, progress_file.Record]] = {}
    notes: list[str] = []
    given = list(files) if isinstance(files, Iterable) and not isinstance(files, (str, bytes)) else [None]
    expect(all(isinstance(file, (str, Path)) for file in given), "files", files, "a list of files' names")
    for file in sorted({Path(file) for file in given if file}):
        records, damage = progress_file.load(file)
        known = {name: kept for name, kept in records.items() if name in ids}
        if (damage and not records) or (records and not known):
            notes.append(f"{_visible(file)} is left out: {damage or 'none of its questions is of this course'}.")
            continue
        if damage:
            notes.append(f"{_visible(file)} is damaged ({damage}); the rest of it counts.")
        if any(kept.solved and not kept.attempts for name, kept in known.items() if name in graded):
            notes.append(f"{_visible(file)} has solved questions without an attempt: was it edited?")
        same = next((name for name, other in learners.items() if known and other == known), None)
        if same:
            notes.append(f"{_visible(file)} holds the same answers as {same}.")
        learners[_free(_visible(file.stem), learners)] = known
    rows = [
        [name, *(f"{sum(kept[q].solved for q in names if q in kept)} of {len(names)}" for names in asked.values())]
        for name, kept in learners.items()
    ]
    return Summary(["learner", *asked], rows, _missed(list(learners.values())), notes)


def _free(name: str, taken: Iterable[str]) -> str:
    """`name`, with a number if it is taken."""
    names = itertools.chain([name], (f"{name} ({n})" for n in itertools.count(2)))
    return next(one for one in names if one not in taken)


def as_csv(summary: Summary) -> str:
    """Return both tables as CSV; "3 of 8" stays text, and a spreadsheet takes no name, and no part, for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    for row in (summary.header, *summary.rows, [], MISSED, *summary.missed):
        writer.writerow([_FORMULA.sub(r"\1'\2", cell) for cell in row])
    return text.getvalue()


# What begins a formula, full-width signs included, at a cell's start or after what parts cells in some country.
_FORMULA = re.compile(r"(^|[;,|\t])(\s*[=+\-@\u2212\uff1d\uff0b\uff0d\uff20\ufe62\ufe63\ufe66\ufe6b])")


def as_text(summary: Summary) -> str:
    """Return both tables in columns, lessons by their number, with the notes below."""
    short = [summary.header[0], *(title.split(" ·")[0] for title in summary.header[1:])]
    parts = [_columns([short, *summary.rows])]
    if summary.missed:
        parts.append(_columns([MISSED, *summary.missed[:10]]))
    return "\n\n".join(parts + ["\n".join(summary.notes)] * bool(summary.notes))


MISSED = ["most missed", "tried", "not solved", "saw the answer first"]


def _missed(learners: list[dict]) -> list[list[str]]:
    """Questions that somebody tried and missed, the most missed first; predictions are not right or wrong."""
    rows = []
    for question in (q for lesson in question_files.lessons() for q in lesson.questions if not isinstance(q, Predict)):
        tried = [kept[question.id] for kept in learners if question.id in kept]
        tried = [kept for kept in tried if kept.attempts or kept.shown]
        open_, shown = sum(not kept.solved for kept in tried), sum(kept.solved and kept.shown for kept in tried)
        if open_ or shown:
            rows.append((open_ + shown, [question.id, str(len(tried)), str(open_), str(shown)]))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def _columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def _visible(name: str | Path) -> str:
    """Without line breaks and codes that a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(name))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lora-lab class",
                                     description="A class's progress as a table.")
    parser.add_argument("files", nargs="*", help="exported files; quoted patterns such as 'handed-in/*.json' work too")
    parser.add_argument("--out", default="class.csv", help="the CSV file to write (class.csv)")
    given = parser.parse_args(arguments)
    # The shell has replaced patterns by names, and [ab].json may be one.
    named = [found for name in given.files for found in ([name] if Path(name).exists() else []) + glob.glob(name)
             or [name]]
    if not named:
        sys.exit("No files were named. Name those that learners handed in: lora-lab class 'handed-in/*.json', or with "
                 "make FILES='handed-in/*.json'")
    summary, out = collect(named), Path(given.out)
    if not summary.rows:
        sys.exit("\n".join([*summary.notes, "No file has a learner's progress, and nothing was written. "
                           "A learner makes one with lora_lab.export_progress()."]))
    new, kept = b"\xef\xbb\xbf" + as_csv(summary).encode(), None  # the mark tells Excel it is UTF-8
    try:
        if out.is_file() and out.read_bytes() != new:  # last week's, perhaps with marks in it, or another file
            shutil.copy2(out, kept := files.free(out, "before"))
        files.write(out, new)
    except OSError as error:
        sys.exit(f"{out} cannot be written: {error}. Name another file: --out elsewhere.csv, or with make "
                 "OUT=elsewhere.csv")
    print(as_text(summary))
    print(f"\n{len(summary.rows)} learners, written to {out}." + (f" What was there is in {kept}." if kept else ""))


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(str(error))
