"""From records to prompts and answers: which columns they are in, and what a chat says.

How a file is read is in `sources`.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..display import Page, table
from ..errors import LabError, expect, nearest
from . import sources

PAIRS = (  # names that people give to a prompt and its answer, the likeliest first
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("instruction", "output"),
    ("instruction", "response"), ("question", "answer"), ("input", "output"), ("source", "target"), ("text", "label"),
    ("query", "response"), ("prompt", "output"), ("prompt", "chosen"), ("message", "label"), ("input", "target"),
    ("document", "summary"), ("user", "assistant"), ("inputs", "targets"), ("article", "summary"),
)
CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "contents")
_MORE = ("input", "context")  # fields that belong to the prompt, where there is an instruction or a question
_ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
          "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "bing": "assistant", "system": "system",
          "function_call": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
          "developer": "system"}


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


def read(path: str | os.PathLike, prompt: str | Sequence[str] | None = None, answer: str | None = None) -> Data:
    """Return the rows of a file or folder; `prompt` and `answer` name its columns where they cannot be guessed.

    Several names for `prompt`, such as those of a subject and a body, are put under each other.

    Reads CSV and other tables with a line of names, JSON, JSON lines, each also compressed by gzip; with their
    libraries installed Parquet (pyarrow), a workbook's first sheet (openpyxl), a folder that the datasets library
    wrote, and a data set of the hub ("owner/name" or "owner/name:part", version 4 of that library). Chats come in
    OpenAI's form (`messages` of role and content), ShareGPT's (`conversations` of from and value) and a few more: the
    last answer is `answer`, all before it `prompt`; the whole is in `messages`. Raises LabError for what it cannot
    understand, with the reason; single rows that cannot be used are in `odd`.
    """
    asks = [prompt] if isinstance(prompt, str) else prompt if prompt is not None else []
    named = isinstance(asks, (list, tuple)) and all(isinstance(name, str) for name in asks)
    expect(named and (asks or prompt is None), "prompt", prompt, "the name of a column, or a list of names")
    expect(answer is None or isinstance(answer, str), "answer", answer,
           "the name of one column; several are joined in the file first")
    found = sources.records(path)
    records, form = _shaped(found.records, found.form) if found.form.startswith("JSON") else (found.records, found.form)
    return _as_rows(records, form, found.odd, list(asks), answer)


def from_rows(rows: Iterable[dict[str, Any]]) -> Data:
    """Return rows that are in memory already, dicts as a file would hold them. Raises LabError, as `read` does."""
    return _as_rows(((f"row {number}", row) for number, row in enumerate(rows, 1)), "rows", [], [], None)


def _shaped(records: Any, form: str) -> tuple[Iterable[tuple[str, Any]], str]:
    """The rows in one JSON text: a list, columns, a list under some name, one row under each name, or a single row."""
    if form.startswith("JSON lines"):
        return records, form
    whole = records[0][1]
    if isinstance(whole, dict) and not _is_row(whole):
        lists = {key: value for key, value in whole.items() if isinstance(value, list) and value}
        if len(lists) > 1 and len({len(value) for value in lists.values()}) == 1 and not any(
                isinstance(value[0], (dict, list)) for value in lists.values()):
            whole = [dict(zip(lists, values)) for values in zip(*lists.values())]  # a column each
        elif lists:
            key = max(lists, key=lambda key: len(lists[key]))
            return [(f"{key}[{number}]", row) for number, row in enumerate(lists[key])], f"{form}, under {key!r}"
        elif len(whole) > 1 and all(isinstance(value, dict) for value in whole.values()):
            return [(key, row) for key, row in whole.items()], f"{form}, a row under each name"
    rows = whole if isinstance(whole, list) else [whole]
    if rows and all(isinstance(row, dict) and _role(row) for row in rows):
        rows = [{"messages": rows}]  # one chat
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)], form


def _is_row(value: dict) -> bool:
    return any(key in value for key in CHATS) or _messages(value) is not None or bool(
        _guess([key for key in value if isinstance(value[key], str)]))


def _as_rows(found: Iterable[tuple[str, Any]], form: str, odd: list, asks: list[str], answer: str | None) -> Data:
    """Chats where there are messages, else two columns: those that are named, or whose names are known."""
    rows: list[Row] = []
    chosen: tuple[list[str], str] | None = None
    chats, refused = 0, None
    for place, value in found:
        if isinstance(value, list) and value and all(isinstance(item, dict) and _role(item) for item in value):
            value = {"messages": value}
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value):
            value = dict(zip(("prompt", "answer"), value))
        if not isinstance(value, dict):
            odd.append((place, f"{type(value).__name__} where an object was expected"))
            continue
        messages = None if asks else _messages(value)
        if messages is not None:
            row = _chat(messages, value.get("system"), place)
            chats += not isinstance(row, str)
        else:
            try:
                chosen = chosen or _columns(value, asks, answer, place)
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
        why = f" The first: {odd[0][0]}, {odd[0][1]}." if odd else " There is nothing below the names."
        raise LabError(f"No row could be used, of {len(odd):,}.{why} Expected prompts and answers, or chats.")
    how = f"chats of {form}" if chats else f"{form}, {' + '.join(chosen[0])} → {chosen[1]}" if chosen else form
    return Data(rows, how, odd)


def _messages(value: dict) -> list | None:
    """The messages of a row that is a chat: a list of them, TRL's in two parts, or a pair with a past or a system."""
    key = next((key for key in CHATS if isinstance(value.get(key), list)), None)
    if key is not None:
        return value[key]
    reply = next((key for key in ("completion", "chosen") if isinstance(value.get(key), list)), None)
    if reply and isinstance(value.get("prompt"), list):
        return value["prompt"] + value[reply]
    past, system = value.get("history") or [], value.get("system")  # LLaMA-Factory's
    if not isinstance(past, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in past) or not (
            past or (isinstance(system, str) and system.strip())):
        return None
    chosen = _guess([key for key in value if key not in ("history", "system")])
    pair = _pair(value, *chosen, "") if chosen else None
    return [{"role": role, "content": text} for turn in [*past, (pair.prompt, pair.answer)]
            for role, text in zip(("user", "assistant"), turn)] if isinstance(pair, Row) else None


def _columns(value: dict, asks: list[str], answer: str | None, place: str) -> tuple[list[str], str]:
    names = [str(name) for name in value]
    if place.startswith("line") and len(names) == 2 and names[0].strip() and not names[1].strip():  # the rest is empty
        raise LabError(f"The first line, {_short(names[0])!r}, looks like a title. Delete what is above the line that "
                       "names the columns.")
    for wanted, what in (*((name, "prompt") for name in asks), (answer, "answer")):
        if wanted is not None and wanted not in names:
            near = nearest(wanted, names)
            raise LabError(f"{what} is {wanted!r}, and the columns are {', '.join(names[:12])}."
                           + (f" Did you mean {near[0]!r}?" if near else ""))
    if asks and answer:
        return asks, answer
    if (found := _guess(names)) and not isinstance(value[found[1]], list):
        known = {name.strip().lower() for name in names} & {name for pair in PAIRS for name in pair}
        like_a_row = any(len(name.split()) > 4 or name[:1].isdecimal() for name in names)
        if place.startswith("line") and not known and like_a_row:
            raise LabError(f"The first line, {_short(', '.join(names))!r}, looks like a row and not like names. Write "
                           "a line of names above it, such as prompt,answer.")
        return found
    raise LabError(f"Which columns are the prompt and the answer? Found {', '.join(names[:12])}. Name two of them "
                   "by prompt= and answer= (on a command line --prompt and --answer, in a recipe {NAME} in templates).")


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
        elif text is None or text != text:  # NaN, for what is missing
            text = ""
        texts.append(_letters(str(text)))
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
        found.append({"role": role, "content": _letters(content)})
    last = max((number for number, message in enumerate(found) if message["role"] == "assistant"), default=None)
    if last is None:
        return "a chat without an answer"
    asked = "\n".join(message["content"] for message in found[:last])
    return Row(asked, found[last]["content"], place, tuple(found))


def _content(message: dict) -> str | None:
    keys = "content", "value", "text", "parts"
    content = next((message[key] for key in keys if message.get(key) is not None), None)
    if isinstance(content, list):  # parts, of which the texts are kept
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else None
    if content is None and message.get("tool_calls"):
        content = json.dumps(message["tool_calls"], ensure_ascii=False)
    return content if isinstance(content, str) else None


def _letters(text: str) -> str:
    """The text with halves of letters, which JSON may hold and no file and no tokenizer takes, marked as lost."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
