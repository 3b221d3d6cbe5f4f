"""From a file of rows to prompts and answers: CSV, JSON, JSON lines, chats, and a folder of the datasets library."""

import codecs
import csv
import io
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..display import Page, table
from ..errors import LabError, nearest, reason

LARGEST = 2_000_000_000  # bytes
_FIELD = 10_000_000  # characters of one cell of a table
PAIRS = (  # names that people give to a prompt and its answer, the likeliest first
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("instruction", "output"),
    ("instruction", "response"), ("question", "answer"), ("input", "output"), ("source", "target"), ("text", "label"),
    ("query", "response"), ("prompt", "output"), ("prompt", "chosen"), ("message", "label"), ("input", "target"),
    ("document", "summary"), ("user", "assistant"),
)
_MORE = ("input", "context")  # fields that belong to the prompt, where there is an instruction or a question
_CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
_ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
          "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "bing": "assistant", "system": "system",
          "tool": "tool", "function": "tool", "observation": "tool", "developer": "system"}
_OTHERS = {b"PK\x03\x04": "a zip archive or a workbook", b"%PDF": "a PDF", b"\x1f\x8b": "compressed by gzip",
           b"PAR1": "a Parquet file", b"\x80\x04": "a pickle, which can run any program when it is loaded",
           b"\x80\x05": "a pickle, which can run any program when it is loaded", b"SQLite format 3": "a database"}


@dataclass(frozen=True)
class Row:
    """One example: what is asked and what is answered, or a whole chat; `place` is where the file has it."""

    prompt: str
    answer: str
    place: str
    messages: tuple[dict[str, str], ...] = ()


@dataclass
class Data:
    """What was read: the rows; how it was understood; and what was odd, as (place, what)."""

    rows: list[Row]
    form: str
    odd: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        odd = f"; {len(self.odd):,} odd, such as {self.odd[0][0]}: {self.odd[0][1]}" if self.odd else ""
        return f"{len(self.rows):,} rows, read as {self.form}{odd}"

    def show(self, most: int = 5) -> Page:
        """Show the first rows as they were understood, and the first odd ones with the reason."""
        shown = [{"place": row.place, "prompt": _short(row.prompt), "answer": _short(row.answer), "odd": ""}
                 for row in self.rows[:most]]
        return table(shown + [{"place": place, "prompt": "", "answer": "", "odd": what}
                              for place, what in self.odd[:most]])

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The rows as pairs of prompt and answer, as `batches.encode` takes them."""
        return [(row.prompt, row.answer) for row in self.rows]


def read(path: str | os.PathLike, prompt: str | None = None, answer: str | None = None) -> Data:
    """Return the rows of a file or folder; `prompt` and `answer` name its columns where they cannot be guessed.

    Reads CSV and TSV with a line of names, JSON, JSON lines, chats in OpenAI's form (`messages` of role and content)
    and ShareGPT's (`conversations` of from and value), and a folder that the datasets library wrote, if that library
    is installed. A chat's last answer is `answer`, all before it `prompt`; the whole is in `messages`. Raises LabError
    for what it cannot understand, with the reason; single rows that cannot be used are in `odd`.
    """
    place = files.place(path, "a file of rows")
    if place.is_dir():
        return _as_rows(*_folder(place), prompt, answer)
    text = _text(place)
    if not text.strip():
        raise LabError(f"{place.name} is empty. Give a file with rows.")
    if place.suffix.lower() in (".csv", ".tsv") or (place.suffix.lower() not in (".json", ".jsonl", ".ndjson")
                                                    and text.lstrip()[0] not in "[{"):
        return _as_rows(*_table(place, text), prompt, answer)
    return _as_rows(*_json(place, text), prompt, answer)


def _text(place: Path) -> str:
    """The file's text: UTF-8, UTF-16 with its mark, else Windows' Western letters."""
    try:
        if place.stat().st_size > LARGEST:
            raise LabError(f"{place.name} has {place.stat().st_size / 1e9:.1f} GB, and at most {LARGEST / 1e9:g} GB "
                           "are read. Give a part of it.")
        content = place.read_bytes() if place.is_file() else None
    except OSError as error:
        raise LabError(f"{place.name} cannot be read: {reason(error)}. Give a file of rows.") from None
    if content is None:
        raise LabError(f"{place} is no file. Give a file of rows.")
    for start, what in _OTHERS.items():
        if content.startswith(start):
            raise LabError(f"{place.name} is {what}. Save it as CSV or JSON lines, and give that.")
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise LabError(f"{place.name} begins as UTF-16 and is not: {reason(error)}. Save it as UTF-8.") from None
    if b"\0" in content[:4096]:
        raise LabError(f"{place.name} is no text file. Give CSV, JSON or JSON lines.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(_line(line) for line in content.splitlines(keepends=True))


def _line(line: bytes) -> str:
    """Files put together from several have several encodings."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", errors="replace")


def _table(place: Path, text: str) -> tuple[Iterable[tuple[str, Any]], str, list]:
    csv.field_size_limit(_FIELD)
    first = next(line for line in text.splitlines() if line.strip())
    counts = {sign: first.count(sign) for sign in ("\t", ";", ",", "|")}
    sign = max(counts, key=lambda sign: counts[sign])
    if not counts[sign]:
        raise LabError(f"{place.name}: its first line, {_short(first)!r}, has one column. Give a table with a line of "
                       "names and a column each for prompts and answers, or JSON lines.")
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=sign))
    except csv.Error as error:
        raise LabError(f"{place.name} is no table: {reason(error)}. Save it again as CSV.") from None
    start = next((number for number, line in enumerate(lines) if any(cell.strip() for cell in line)), None)
    if start is None:
        raise LabError(f"{place.name} has no names in its first line. Give a table with a line of names.")
    names = [name.strip() for name in lines[start]]
    found, odd = [], []
    for number, line in enumerate(lines[start + 1 :], start + 2):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(names):
            odd.append((f"line {number}", f"{len(line)} cells where the first line has {len(names)}"))
            continue
        found.append((f"line {number}", dict(zip(names, line))))
    kind = {"\t": "a table with tabs", ";": "a table with semicolons", ",": "CSV", "|": "a table with bars"}[sign]
    return found, kind, odd


def _json(place: Path, text: str) -> tuple[Iterable[tuple[str, Any]], str, list]:
    odd: list[tuple[str, str]] = []
    try:
        whole = json.loads(text)
    except RecursionError:
        raise LabError(f"{place.name} is nested too deeply. Give rows of texts.") from None
    except ValueError as error:
        whole, why = None, error
    if whole is None:
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                if line.strip():
                    found.append((f"line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                odd.append((f"line {number}", f"no JSON: {reason(error, 80)}"))
        if len(odd) > len(found):
            raise LabError(f"{place.name} is neither JSON ({reason(why, 80)}) nor JSON lines: {len(odd):,} lines are "
                           "none. Save it again, a JSON object on each line.")
        return found, "JSON lines", odd
    if isinstance(whole, dict) and not _is_row(whole):
        lists = {key: value for key, value in whole.items() if isinstance(value, list) and value}
        if len(lists) > 1 and len({len(value) for value in lists.values()}) == 1 and not any(
                isinstance(value[0], (dict, list)) for value in lists.values()):
            whole = [dict(zip(lists, values)) for values in zip(*lists.values())]  # a column each
        elif lists:
            key = max(lists, key=lambda key: len(lists[key]))
            return [(f"{key}[{number}]", row) for number, row in enumerate(lists[key])], f"JSON, under {key!r}", odd
    rows = whole if isinstance(whole, list) else [whole]
    if rows and all(isinstance(row, dict) and _role(row) for row in rows):
        rows = [{"messages": rows}]  # one chat
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)], "JSON", odd


def _is_row(value: dict) -> bool:
    return any(key in value for key in _CHATS) or bool(_guess([key for key in value if isinstance(value[key], str)]))


def _folder(place: Path) -> tuple[Iterable[tuple[str, Any]], str, list]:
    try:
        import datasets
    except ImportError:
        raise LabError(f"{place} is a folder, which the datasets library reads, and it is not installed. Run "
                       "`pip install datasets`, or give one file.") from None
    try:
        found = datasets.load_from_disk(str(place))
    except Exception as error:  # whatever that library has against it
        raise LabError(f"{place} is no folder that save_to_disk wrote: {reason(error)}. Give one file.") from None
    parts = found if isinstance(found, dict) else {"row": found}
    rows = itertools.chain.from_iterable(
        ((f"{name} {number}", dict(row)) for number, row in enumerate(part, 1)) for name, part in parts.items())
    return rows, "a folder of the datasets library", []


def _as_rows(found: Iterable[tuple[str, Any]], form: str, odd: list, prompt: str | None, answer: str | None) -> Data:
    """Chats where there are messages, else two columns: those that are named, or whose names are known."""
    rows: list[Row] = []
    chosen: tuple[list[str], str] | None = None
    chats, refused = 0, None
    for place, value in found:
        if isinstance(value, list) and value and all(isinstance(item, dict) and _role(item) for item in value):
            value = {"messages": value}
        if not isinstance(value, dict):
            odd.append((place, f"{type(value).__name__} where an object was expected"))
            continue
        key = next((key for key in _CHATS if isinstance(value.get(key), list)), None)
        if key is not None and prompt is None:
            row = _chat(value[key], value.get("system"), place)
            chats += not isinstance(row, str)
        else:
            try:
                chosen = chosen or _columns(value, prompt, answer)
                row = _pair(value, *chosen, place)
            except LabError as error:  # of all rows, or of one among chats
                refused = refused or error
                row = f"neither a chat nor a known pair of columns: {_short(', '.join(map(str, value)))}"
        if isinstance(row, str):
            odd.append((place, row))
        else:
            rows.append(row)
    if not rows and refused:
        raise refused
    if not rows:
        why = f" The first: {odd[0][0]}, {odd[0][1]}." if odd else ""
        raise LabError(f"No row could be used, of {len(odd):,}.{why} Expected prompts and answers, or chats.")
    how = f"chats of {form}" if chats else f"{form}, {' + '.join(chosen[0])} → {chosen[1]}" if chosen else form
    return Data(rows, how, odd)


def _columns(value: dict, prompt: str | None, answer: str | None) -> tuple[list[str], str]:
    names = [str(name) for name in value]
    for wanted, what in ((prompt, "prompt"), (answer, "answer")):
        if wanted is not None and wanted not in names:
            near = nearest(wanted, names)
            raise LabError(f"{what} is {wanted!r}, and the columns are {', '.join(names[:12])}."
                           + (f" Did you mean {near[0]!r}?" if near else ""))
    if prompt and answer:
        return [prompt], answer
    if found := _guess(names):
        return found
    raise LabError(f"Which columns are the prompt and the answer? Found {', '.join(names[:12])}. Call "
                   f"read(path, prompt=..., answer=...) with two of them.")


def _guess(names: list[str]) -> tuple[list[str], str] | None:
    """The two columns that are called as prompts and answers are, or the only two there are."""
    plain = {name.strip().lower(): name for name in names}
    for ask, reply in PAIRS:
        if ask in plain and reply in plain:
            more = [plain[name] for name in _MORE if name in plain and name not in (ask, reply)]
            return [plain[ask], *(more if ask in ("instruction", "question") else [])], plain[reply]
    own = [name for name in names if name.strip().lower() not in ("", "id", "index", "unnamed: 0")]
    return ([own[0]], own[1]) if len(own) == 2 else None


def _pair(value: dict, asks: list[str], reply: str, place: str) -> Row | str:
    texts = []
    for name in (*asks, reply):
        text = value.get(name)
        if isinstance(text, (dict, list)):
            if name != reply:
                return f"{name!r} is a {type(text).__name__}, expected a text"
            text = json.dumps(text, ensure_ascii=False)  # an answer that is JSON
        elif isinstance(text, bool) or text is None or isinstance(text, (int, float)):
            text = "" if text is None else str(text)
        texts.append(text)
    return Row("\n".join(text for text in texts[:-1] if text), texts[-1], place)


def _role(message: dict) -> str | None:
    role = message.get("role", message.get("from"))
    return _ROLES.get(role.lower()) if isinstance(role, str) else None


def _chat(messages: list, system: Any, place: str) -> Row | str:
    found = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    for message in messages:
        role = _role(message) if isinstance(message, dict) else None
        content = _content(message) if role else None
        if role is None or content is None:
            return f"a message without a known role and a text: {_short(str(message))}"
        found.append({"role": role, "content": content})
    last = max((number for number, message in enumerate(found) if message["role"] == "assistant"), default=None)
    if last is None:
        return "a chat without an answer"
    asked = "\n".join(message["content"] for message in found[:last])
    return Row(asked, found[last]["content"], place, tuple(found))


def _content(message: dict) -> str | None:
    content = next((message[key] for key in ("content", "value", "text") if message.get(key) is not None), None)
    if isinstance(content, list):  # parts, of which the texts are kept
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else None
    if content is None and message.get("tool_calls"):
        content = json.dumps(message["tool_calls"], ensure_ascii=False)
    return content if isinstance(content, str) else None


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
