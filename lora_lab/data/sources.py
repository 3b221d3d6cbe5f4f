"""From a file or a folder to records, each with its place, and the form that they were found in.

What the records mean, which is the prompt and which the answer, is in `reading`.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .. import files
from ..errors import LabError, reason

LARGEST = 2_000_000_000  # bytes
HUB = re.compile(r"([\w-][\w.-]{0,95}/[\w-][\w.-]{0,95})(?::([\w.%\[\]:+-]{1,95}))?")  # owner/name:part
_FIELD = 10_000_000  # characters of one cell of a table
_LINES = ".jsonl", ".ndjson"
_ENDINGS = (*_LINES, ".json", ".csv", ".tsv", ".txt", ".gz", ".parquet", ".xlsx", ".xml", ".yaml", ".zip", ".md")
_OTHERS = {b"PK\x03\x04": "a zip archive", b"%PDF": "a PDF", b"SQLite format 3": "a database",
           b"\xd0\xcf\x11\xe0": "an old workbook or document", b"BZh": "compressed by bzip2",
           b"\xfd7zXZ": "compressed by xz",
           b"\x80\x04": "a pickle, which can run any program when it is loaded",
           b"\x80\x05": "a pickle, which can run any program when it is loaded"}
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
          codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # the longer of two alike first
_MESSENGER = re.compile(  # 12/03/2024, 14:01 - Anna: ...
    r"\[?\d{1,4}[./-]\d{1,2}[./-]\d{2,4},? \d{1,2}:\d{2}(:\d{2})?(\s?[AaPp]\.?[Mm]\.?)?(\]| -) ")
# Signs between two letters, where no Western text has them, and bytes that mean nothing there.
_FOREIGN = re.compile("[^\\W\\d_][¢£¤¥¦§¨©«¬®¯±¶¸»¼½¾¿×÷‚„†‡ˆ‰‹›•˜™¡²³¹]+(?=[^\\W\\d_])|\ufffd")
_FAR = 0.2  # of the words with letters beyond ASCII


class Found(NamedTuple):
    """Records with their places; the form in words; what could not be read, as (place, what)."""

    records: Iterable[tuple[str, Any]]
    form: str
    odd: list[tuple[str, str]]


def records(path: str | os.PathLike) -> Found:
    """Return what a file, a folder of the datasets library or a data set of the hub holds. Raises LabError."""
    place = files.place(path, "a file of rows")
    if place.is_dir():
        return _folder(place)
    if not place.exists() and HUB.fullmatch(str(path)) and not str(path).lower().endswith(_ENDINGS):
        return _hub(str(path))
    content, name = _content(place)
    if content.startswith(b"PAR1"):
        return _parquet(name, content)
    if content.startswith(b"PK\x03\x04") and name.lower().endswith(".xlsx"):
        return _workbook(name, content)
    for start, what in _OTHERS.items():
        if content.startswith(start):
            raise LabError(f"{name} is {what}. Save it as CSV or JSON lines, and give that.")
    text, how = _text(name, content)
    if not text.strip():
        raise LabError(f"{name} is empty. Give a file with rows.")
    ending, begins = Path(name).suffix.lower(), text.lstrip()[:99]
    if _MESSENGER.match(begins):
        raise LabError(f"{name} looks like a chat that a messenger exported, in which nobody is the assistant. Write "
                       'it as chats: {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}.')
    tabular = ending in (".csv", ".tsv") or (ending != ".json" and ending not in _LINES and begins[0] not in "[{")
    found = _table(name, text) if tabular else _json(name, text)
    return found._replace(form=f"{found.form}{how}")


def _content(place: Path) -> tuple[bytes, str]:
    """The bytes of a file, those within a compressed one, and its name without what says so."""
    try:
        content = files.read_bytes(place, LARGEST)
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(LARGEST + 1)
            if len(content) > LARGEST:
                raise ValueError(f"unpacked it has more than {LARGEST / 1e9:g} GB")
            return content, place.name.removesuffix(".gz")
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise LabError(f"{place.name} cannot be read: {reason(error)}. Give a file of rows.") from None
    return content, place.name


def _text(name: str, content: bytes) -> tuple[str, str]:
    """UTF-8; UTF-16 and UTF-32 by their marks or their zeros; else Windows' Western letters, line by line."""
    encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)
    start = content[:4096]
    if encoding is None and (zeros := start.count(0)) > len(start) / 10:
        even = start[::2].count(0)
        encoding = "utf-16-be" if even > 0.9 * zeros else "utf-16-le" if even < 0.1 * zeros else None
        if encoding is None:
            raise LabError(f"{name} is no text file. Give CSV, JSON or JSON lines.")
    if encoding not in (None, "utf-8"):
        try:
            return content.decode(encoding), ""
        except UnicodeDecodeError as error:
            raise LabError(f"{name} begins as {encoding.upper()} and is not: {reason(error)}. Save it as "
                           "UTF-8.") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError:
        lines = [_line(line) for line in content.splitlines(keepends=True)]  # put together from several files
    other = "".join(line for line, western in lines if western)
    words = re.findall(r"\S*[^\x00-\x7f]\S*", other)
    foreign = [word for word in words if _FOREIGN.search(word)]
    if len(foreign) > _FAR * len(words):
        raise LabError(f"{name} is neither UTF-8 nor in Windows' Western letters, in which there would be words such "
                       f"as {foreign[0][:40]!r}. Save it as UTF-8.")
    return "".join(line for line, _ in lines), f", {sum(w for _, w in lines):,} lines of it in Windows-1252"


def _line(line: bytes) -> tuple[str, bool]:
    try:
        return line.decode("utf-8"), False
    except UnicodeDecodeError:
        return line.decode("cp1252", errors="replace"), True


def _table(name: str, text: str) -> Found:
    csv.field_size_limit(_FIELD)
    first, _, rest = text.lstrip("\r\n").partition("\n")
    told = re.fullmatch(r"sep=(.)\r?", first, re.IGNORECASE)  # as Excel writes it
    skipped = text.count("\n", 0, len(text) - len(rest)) if told else 0
    text = rest if told else text
    first = next((line for line in text.splitlines() if line.strip()), "")
    counts = {sign: first.count(sign) for sign in ("\t", ";", ",", "|")}
    sign = told[1] if told else max(counts, key=lambda sign: counts[sign])
    if not first.count(sign):
        raise LabError(f"{name}: its first line, {first[:80]!r}, has one column. Give a table with a line of names and "
                       "a column each for prompts and answers, or JSON lines.")
    reader, lines, begins = csv.reader(io.StringIO(text, newline=""), delimiter=sign), [], skipped + 1
    try:
        for cells in reader:
            lines.append((begins, cells))  # a cell may hold line breaks
            begins = skipped + reader.line_num + 1
    except csv.Error as error:
        raise LabError(f"{name} is no table: {reason(error)}. Save it again as CSV.") from None
    kind = {"\t": "a table with tabs", ";": "a table with semicolons", ",": "CSV", "|": "a table with bars"}
    return _named(name, lines, kind.get(sign, "a table"))


def _named(name: str, lines: list[tuple[int, list[str]]], form: str) -> Found:
    """The lines, with their numbers, below the first that is not empty, by the names in that."""
    lines = [(number, cells) for number, cells in lines if any(cell.strip() for cell in cells)]
    if not lines:
        raise LabError(f"{name} has no names in its first line. Give a table with a line of names.")
    names, odd, found = [], [], []
    (top, first), *rest = lines
    for column in (cell.strip() for cell in first):
        if column and column in names:
            twin = next(new for n in itertools.count(2) if (new := f"{column} ({n})") not in names)
            odd.append((f"line {top}", f"a second column {column!r}, taken as {twin!r}"))
            column = twin
        names.append(column)
    for number, cells in rest:
        while len(cells) > len(names) and not cells[-1].strip():
            cells = cells[:-1]
        if len(cells) == len(names):
            found.append((f"line {number}", dict(zip(names, cells))))
        else:
            odd.append((f"line {number}", f"{len(cells)} cells where the first line has {len(names)}"))
    return Found(found, form, odd)


def _json(name: str, text: str) -> Found:
    """JSON lines where most lines are JSON, else one JSON text; the ending says which is tried first."""
    def by_lines():
        found, odd = [], []
        for number, line in enumerate(text.split("\n"), 1):  # JSON may hold what str.splitlines splits at
            try:
                if line.strip():
                    found.append((f"line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                odd.append((f"line {number}", f"no JSON: {reason(error, 80)}"))
        return Found(found, "JSON lines", odd)

    if name.lower().endswith(_LINES) and "\n" in text.strip():
        lines = by_lines()
        if len(lines.odd) <= len(lines.records):
            return lines
    try:
        return Found([("", json.loads(text))], "JSON", [])
    except RecursionError:
        raise LabError(f"{name} is nested too deeply. Give rows of texts.") from None
    except ValueError as error:
        lines = by_lines()
        if len(lines.odd) > len(lines.records):
            raise LabError(f"{name} is neither JSON ({reason(error, 80)}) nor JSON lines: {len(lines.odd):,} lines are "
                           "none. Save it again, a JSON object on each line.") from None
        return lines


def _parquet(name: str, content: bytes) -> Found:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise LabError(f"{name} is a Parquet file, which pyarrow reads, and it is not installed. Run "
                       "`pip install pyarrow`, or save it as CSV or JSON lines.") from None
    try:
        rows = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except Exception as error:  # whatever that library has against it
        raise LabError(f"{name} is a damaged Parquet file: {reason(error)}. Save it again.") from None
    return Found(((f"row {number}", row) for number, row in enumerate(rows, 1)), "Parquet", [])


def _workbook(name: str, content: bytes) -> Found:
    try:
        import openpyxl
    except ImportError:
        raise LabError(f"{name} is a workbook, which openpyxl reads, and it is not installed. Run "
                       "`pip install openpyxl`, or save it as CSV.") from None
    try:
        sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True).worksheets[0]
        lines = [(number, ["" if cell is None else str(cell) for cell in row])
                 for number, row in enumerate(sheet.iter_rows(values_only=True), 1)]
    except Exception as error:  # whatever that library has against it
        raise LabError(f"{name} is a damaged workbook: {reason(error)}. Save it as CSV.") from None
    return _named(name, lines, f"the sheet {sheet.title!r}")


def _folder(place: Path) -> Found:
    datasets = _datasets(f"{place} is a folder")
    try:
        found = datasets.load_from_disk(str(place))
    except Exception as error:  # whatever that library has against it
        raise LabError(f"{place} is no folder that save_to_disk wrote: {reason(error)}. Give one file.") from None
    parts = found if isinstance(found, dict) else {"row": found}
    rows = itertools.chain.from_iterable(
        ((f"{name} {number}", dict(row)) for number, row in enumerate(part, 1)) for name, part in parts.items())
    return Found(rows, "a folder of the datasets library", [])


def _hub(name: str) -> Found:
    """A data set of the hub, of which no code is run: since version 4 the library has no way to."""
    datasets = _datasets(f"{name} is no file here, and may be a data set of the hub")
    if not datasets.__version__.split(".")[0].isdecimal() or int(datasets.__version__.split(".")[0]) < 4:
        raise LabError(f"{name} is no file here, and datasets {datasets.__version__} may run a program that a data set "
                       "of the hub brings. Run `pip install -U datasets`: since version 4 it does not.")
    owner_and_name, _, part = name.partition(":")
    try:
        rows = datasets.load_dataset(owner_and_name, split=part or "train")
    except Exception as error:  # whatever that library, the hub and the network have against it
        raise LabError(f"{name} is no file here, and no data set of the hub that can be read: {reason(error)}. Give a "
                       'file, or "owner/name:part", where train is the part if none is said.') from None
    return Found(((f"row {number}", dict(row)) for number, row in enumerate(rows, 1)), f"{name} of the hub", [])


def _datasets(what: str):
    try:
        import datasets
    except ImportError:
        raise LabError(f"{what}, which the datasets library reads, and it is not installed. Run "
                       "`pip install datasets`, or give one file.") from None
    return datasets
