"""What a training would stumble over in its rows: findings with their places and a remedy; and splits that are fair."""

import collections
import itertools
import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from ..errors import LabError, expect, whole
from .reading import Data, Row

_GRAM = 3  # letters of a piece, by which near duplicates are found
_ALIKE = 0.7  # of the pieces of both prompts
_PAIRED = 5_000  # rows, of which every prompt is compared with the others before a split
_SHARED = 4  # of their rarest pieces, without which they are not compared
_SPOILT = re.compile("\ufffd|[\x00-\x08\x0b\x0c\x0e-\x1f]|[ÃÂ][\x80-\xbf]|â€.|ï»¿")  # lost, control, read as cp1252
# What programs write for nothing: spaces, seen or not, a workbook's errors, the words of pandas and SQL.
_NOTHING = re.compile("[\\s\u200b-\u200d\ufeff]*(#N/A|#VALUE!|#REF!|#NAME\\?|#DIV/0!|#NULL!|nan|NaN|<NA>|NULL)?\\s*")
_DENSE = 1.0  # tokens a character: a tokenizer's own language takes a quarter of it


@dataclass(frozen=True)
class Finding:
    """What is wrong, where (`places` of the file, all of them), and what to do."""

    what: str
    places: tuple[str, ...]
    says: str
    remedy: str

    def __str__(self) -> str:
        some = ", ".join(self.places[:5]) + (", …" if len(self.places) > 5 else "")
        return f"{self.says}{f' ({some})' if some else ''}. {self.remedy}"


def check(data: Data | Sequence[Row], tokenizer: Any = None, test: Data | Sequence[Row] | None = None,
          max_length: int | None = None) -> list[Finding]:
    """Return what is wrong with the rows of a training, before it: whole findings, with every place.

    With `tokenizer` also lengths (above `max_length` tokens, else the tokenizer's own limit), letters that it splits
    badly, and its special tokens within the texts; with `test` also rows of it that the training has already seen.
    Raises LabError.
    """
    rows, held_out = _rows(data, "data"), _rows(test, "test") if test is not None else []
    if max_length is not None:
        whole(max_length=max_length)
    found = [
        _finding("empty", [row for row in rows if _NOTHING.fullmatch(row.prompt) or _NOTHING.fullmatch(row.answer)],
                 "Rows with an empty prompt or answer: {}", "Remove them: an empty answer teaches to say nothing."),
        _finding("spoilt letters", [row for row in rows if _SPOILT.search(row.prompt + row.answer)],
                 "Rows with letters that were lost or read in another encoding: {}",
                 "Save the file anew as UTF-8 from where it came."),
        *_repeated(rows),
        _spellings(rows),
    ]
    if held_out:
        found.append(_leaks(rows, held_out))
    if tokenizer is not None:
        from .. import batches  # and with it torch, which rows alone do not need

        batches.check_tokenizer(tokenizer)
        found += _tokens(rows, tokenizer, max_length)
    return [finding for finding in found if finding is not None]


def split(data: Data | Sequence[Row], test: float = 0.2, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Return rows to train on, and about `test` of them to test on. Raises LabError.

    Prompts that are equal stay on one side; of up to 5,000 rows also those that are alike by the measure of `check`,
    but for a form that fills a twentieth of them and more.
    """
    rows = _rows(data, "data")
    expect(isinstance(test, float) and 0 < test < 1, "test", test, "a share between 0 and 1, such as 0.2")
    whole(0, seed=seed)
    order = _groups(rows)
    random.Random(seed).shuffle(order)
    kept: list[Row] = []
    held_out: list[Row] = []
    for group in order:
        (held_out if len(held_out) < test * len(rows) else kept).extend(group)
    if not kept:
        raise LabError(f"All {len(rows)} rows have one prompt: they cannot be split. Give more rows.")
    return kept, held_out


def _groups(rows: list[Row]) -> list[list[Row]]:
    """The rows by prompts that are equal, and those of prompts that are alike together, up to a twentieth of all."""
    equal: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        equal[_plain(row.prompt)].append(row)
    groups = list(equal.values())
    if len(rows) > _PAIRED:
        return groups
    first, most = [group[0] for group in groups], max(2, len(rows) // 20)
    home, members = list(range(len(groups))), [[number] for number in range(len(groups))]
    sizes = [len(group) for group in groups]
    for one, other in _alike(first, first, lambda one, other: one < other and home[one] != home[other]):
        kept, gone = home[one], home[other]
        if sizes[kept] + sizes[gone] <= most:
            for number in members[gone]:
                home[number] = kept
            members[kept] += members[gone]
            members[gone], sizes[kept] = [], sizes[kept] + sizes[gone]
    return [[row for number in numbers for row in groups[number]] for numbers in members if numbers]


def rows_needed(before: float, after: float, sure: float = 0.95, power: float = 0.8) -> int:
    """Return how many test rows tell two shares of right answers apart, `power` of the times at level `sure`.

    Two independent samples, normal approximation (Fleiss, Statistical Methods for Rates and Proportions, 1981).
    The same rows for both usually need fewer. Raises LabError.
    """
    for name, value in dict(before=before, after=after, sure=sure, power=power).items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        expect(number and 0 <= value <= 1, name, value, "a share from 0 to 1")
    expect(before != after, "after", after, "another share than before: equal ones cannot be told apart")
    expect(0 < sure < 1 and 0 < power < 1, "sure, power", (sure, power), "shares between 0 and 1")
    middle, z = (before + after) / 2, NormalDist().inv_cdf
    spread = z((1 + sure) / 2) * math.sqrt(2 * middle * (1 - middle)) + z(power) * math.sqrt(
        before * (1 - before) + after * (1 - after))
    return max(2, math.ceil((spread / (before - after)) ** 2))


def _rows(data: Any, name: str) -> list[Row]:
    rows = data.rows if isinstance(data, Data) else list(data) if isinstance(data, Iterable) else []
    expect(rows and all(isinstance(row, Row) for row in rows), name, data, "rows, as data.read() returns them")
    return rows


def _finding(what: str, rows: Sequence[Row], says: str, remedy: str) -> Finding | None:
    return Finding(what, tuple(row.place for row in rows), says.format(f"{len(rows):,}"), remedy) if rows else None


def _plain(text: str) -> str:
    """The text without what does not change its meaning: case, spaces, punctuation, forms of one letter."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())) or text.strip()


def _repeated(rows: list[Row]) -> list[Finding | None]:
    answers: dict[str, dict[str, list[Row]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        if not _NOTHING.fullmatch(row.prompt) and not _NOTHING.fullmatch(row.answer):
            answers[_plain(row.prompt)][_plain(row.answer)].append(row)
    again = [row for kinds in answers.values() for same in kinds.values() for row in same[1:]]
    torn = [row for kinds in answers.values() if len(kinds) > 1 for same in kinds.values() for row in same]
    return [
        _finding("duplicate", again, "Rows that repeat an earlier one: {}",
                 "Remove them, unless the repetition is meant: they weigh more than others."),
        _finding("contradiction", torn, "Rows that share a prompt and have other answers: {}",
                 "Decide which answer is right; a model learns the mixture."),
    ]


def _spellings(rows: list[Row]) -> Finding | None:
    """Where answers are few, those that differ from a more usual one by case, spaces or punctuation alone."""
    written: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for row in rows:
        written[_plain(row.answer)][row.answer] += 1
    usual = {plain: counts.most_common(1)[0][0] for plain, counts in written.items()}
    odd = [row for row in rows if row.answer != usual[_plain(row.answer)] and not _NOTHING.fullmatch(row.answer)]
    if len(written) > len(rows) / 5 or not odd:  # whole sentences
        return None
    return Finding("spelling", tuple(row.place for row in odd), f"Answers in another spelling than is usual: "
                   f"{len(odd):,}, such as {odd[0].answer!r} beside {usual[_plain(odd[0].answer)]!r}",
                   "Write one answer in one way: the model learns both, and a score counts one of them as wrong.")


def _pieces(text: str) -> set[str]:
    plain = _plain(text)
    return {plain[i : i + _GRAM] for i in range(max(1, len(plain) - _GRAM + 1))}


def _leaks(rows: list[Row], held_out: list[Row]) -> Finding | None:
    """Test rows with a prompt like one of the training's, and the same answer."""
    leaked = set[int]()
    answers, plain = [_plain(row.answer) for row in held_out], [_plain(row.prompt) for row in held_out]
    for number, other in _alike(held_out, rows, lambda number, _: number not in leaked):
        if answers[number] == _plain(rows[other].answer) or plain[number] == _plain(rows[other].prompt):
            leaked.add(number)
    return _finding("leak", [held_out[number] for number in sorted(leaked)],
                    "Test rows that are in the training, or nearly so: {}",
                    "Remove them from one side, or split by data.split, which keeps prompts that are alike together.")


def _alike(those: list[Row], rows: list[Row], wanted: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Numbers of rows, one of `those` and one of `rows`, whose prompts share most of their pieces, where `wanted`.

    Two sets of pieces that share enough share some of their rarest (prefix filtering: Chaudhuri and others, A Primitive
    Operator for Similarity Joins, ICDE 2006), so that few pairs are compared.
    """
    tested, trained = ([_pieces(row.prompt) for row in part] for part in (those, rows))
    counts = collections.Counter(itertools.chain.from_iterable([*tested, *trained]))
    holders: dict[str, list[int]] = collections.defaultdict(list)
    for number, pieces in enumerate(tested):
        for piece in _rarest(pieces, counts):
            holders[piece].append(number)
    for other, pieces in enumerate(trained):
        shared = collections.Counter(itertools.chain.from_iterable(
            holders.get(piece, ()) for piece in _rarest(pieces, counts)))
        for number, times in shared.items():
            if times < min(_SHARED, len(pieces), len(tested[number])) or not wanted(number, other):
                continue
            if len(pieces & tested[number]) >= _ALIKE * len(pieces | tested[number]):
                yield number, other


def _rarest(pieces: set[str], counts: collections.Counter) -> list[str]:
    most = len(pieces) - math.ceil(_ALIKE * len(pieces)) + _SHARED
    return sorted(pieces, key=lambda piece: (counts[piece], piece))[:most]


def _tokens(rows: list[Row], tokenizer: Any, max_length: int | None) -> list[Finding | None]:
    own = getattr(tokenizer, "model_max_length", None)
    limit = max_length or (own if isinstance(own, int) and own < 10**7 else None)
    texts = [_text(row, tokenizer) for row in rows]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    unknown = getattr(tokenizer, "unk_token_id", None)
    ends = getattr(tokenizer, "eos_token_id", None)
    special = [token for token in getattr(tokenizer, "all_special_tokens", ()) if len(token) > 2]
    found = [
        _finding("too long", [row for row, own in zip(rows, ids) if limit and len(own) + 1 > limit],
                 f"Rows of more than {limit or 0:,} tokens: {{}}",
                 "Shorten them, or raise max_length: what is cut off is the end, and so the answer."),
        _finding("unknown letters", [row for row, own in zip(rows, ids)
                                     if unknown not in (None, ends) and unknown in own],
                 "Rows with letters that the tokenizer does not know: {}", "Replace them, or choose another model."),
        _finding("split badly", [row for row, text, own in zip(rows, texts, ids)
                                 if len(text) > 11 and len(own) > _DENSE * len(text)],
                 "Rows that take more than a token a letter: {}", "Another model's tokenizer may know this script."),
        _finding("special tokens", [row for row in rows if any(t in row.prompt or t in row.answer for t in special)],
                 "Rows with special tokens of the tokenizer in their text: {}",
                 "Remove them: the template adds them, and here they would end or begin a turn."),
    ]
    if any(row.messages for row in rows) and not getattr(tokenizer, "chat_template", None):
        found.append(Finding("no template", (), "The rows are chats, and the tokenizer has no chat template",
                             "Take an instruct model, or set the template that it was trained with."))
    return found


def _text(row: Row, tokenizer: Any) -> str:
    if row.messages and getattr(tokenizer, "chat_template", None):
        try:
            return tokenizer.apply_chat_template(list(row.messages), tokenize=False)
        except Exception:  # a template may refuse roles
            pass
    return row.prompt + row.answer
