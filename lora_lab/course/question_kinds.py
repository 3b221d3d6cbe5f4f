"""The kinds of question and how an answer to each is judged. No file is read and nothing is shown here.

The fields of these classes are the schema of the files in `questions/`: a field without a default must be given. Prose
is Markdown with math in dollars; what a control shows is `Plain`, since controls show no markup.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NewType

Plain = NewType("Plain", str)


@dataclass(frozen=True)
class Verdict:
    """What became of an answer. `solved` is None where it could not be judged, which is no attempt."""
    solved: bool | None
    text: str
    plain: bool = False  # a program's words rather than Markdown


@dataclass(frozen=True, kw_only=True)
class Option:
    """Something to choose."""
    text: Plain
    says: str  # why it is right, or what those who choose it overlook
    right: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """A range to predict: from the band before it up to `below`, which the last band leaves out."""
    text: Plain
    says: str  # to those who chose it and saw another value
    below: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Near:
    """A wrong number with a known cause."""
    value: float
    says: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two things that belong together."""
    item: Plain
    choice: Plain
    says: str  # to those who gave the item another choice


@dataclass(frozen=True, kw_only=True)
class Item:
    """One of several things that have an order."""
    text: Plain
    says: str  # to those who put it elsewhere


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The cell of the lesson that shows the answer: its heading, and words that its code or output contains."""
    section: str
    cell: str
    lesson: str = ""  # the notebook, where it is another one


@dataclass(frozen=True, kw_only=True)
class Question:
    """What all kinds have in common."""
    id: str  # "lesson/name"
    ask: str
    hints: Sequence[str]
    answer: str  # the full answer with its reasons
    proof: Proof

    @property
    def lines(self) -> list[str]:
        """What there is to choose, a line each."""
        return []

    def holds(self, answer: Any) -> bool:
        """Whether `answer` (from a file that anybody may have edited) is one that `grade` can judge."""
        return answer is None

    def grade(self, answer: Any) -> Verdict:
        """Return the verdict on an answer that `holds`. Predictions have none, exercises that of their check."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """What makes the question unusable, beyond missing fields and wrong types."""
        return []


@dataclass(frozen=True, kw_only=True)
class _Options(Question):
    option: Sequence[Option]

    @property
    def lines(self) -> list[str]:
        return [option.text for option in self.option]


@dataclass(frozen=True, kw_only=True)
class Choice(_Options):
    """One option is right."""

    def holds(self, answer: Any) -> bool:
        return _is_place(answer, self.option)

    def grade(self, chosen: Any) -> Verdict:
        option = self.option[chosen]
        return Verdict(option.right, option.says)

    def faults(self) -> list[str]:
        right = sum(option.right for option in self.option)
        faults = [] if right == 1 else [f"{right} options are right; a single choice needs one"]
        return faults + _doubled(self.lines)


@dataclass(frozen=True, kw_only=True)
class Multiple(_Options):
    """Some options are right, some are not."""
    missing: str  # to those who ticked only right options, but not all

    def holds(self, answer: Any) -> bool:
        return _are_places(answer, self.option)

    def grade(self, ticked: Sequence[int]) -> Verdict:
        wrong = [self.option[i] for i in ticked if not self.option[i].right]
        if wrong:
            return Verdict(False, _listed((option.text, option.says) for option in wrong))
        if len(ticked) < sum(option.right for option in self.option):
            return Verdict(False, f"What you ticked is right, but it is not all. {self.missing}")
        return Verdict(True, "All of them, and no other.")

    def faults(self) -> list[str]:
        rights = {option.right for option in self.option}
        faults = [] if rights == {True, False} else ["a multiple choice needs right options and wrong ones"]
        return faults + _doubled(self.lines)


@dataclass(frozen=True, kw_only=True)
class Number(Question):
    """A number to work out, with replies to the likely wrong ones."""
    value: float
    unit: Plain
    near: Sequence[Near]
    otherwise: str  # to those whose number is none of the known ones
    tolerance: float = 0.0  # relative

    @property
    def lines(self) -> list[str]:
        return [f"Answer: a number ({self.unit})"]

    def holds(self, answer: Any) -> bool:
        return isinstance(answer, str)

    def grade(self, written: str) -> Verdict:
        found = number(written.strip().removesuffix(self.unit))
        if found is None:
            return Verdict(None, "Write one number, such as 4096, 4,096 or 0.25 (with a point for decimals).")
        if self._is(found, self.value):
            return Verdict(True, f"{self.value:,}, yes.")
        says = [near.says for near in self.near if self._is(found, near.value)]
        return Verdict(False, says[0] if says else self.otherwise)

    def _is(self, found: float, value: float) -> bool:
        return math.isclose(found, value, rel_tol=max(self.tolerance, 1e-9), abs_tol=1e-12)

    def faults(self) -> list[str]:
        right = [near.value for near in self.near if self._is(near.value, self.value)]
        return [f"the near miss {value:g} counts as right" for value in right]


@dataclass(frozen=True, kw_only=True)
class Match(Question):
    """Each item has one right choice."""
    pair: Sequence[Pair]
    extra: Sequence[Plain] = ()  # choices that belong to no item

    @property
    def items(self) -> list[str]:
        return [pair.item for pair in self.pair]

    @property
    def choices(self) -> list[str]:
        def by_number(text: str) -> list:
            parts = filter(None, re.split(r"(\d+)", text))
            return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]

        return sorted({pair.choice for pair in self.pair} | set(self.extra), key=by_number)

    @property
    def lines(self) -> list[str]:
        return [*self.items, f"To choose from: {'; '.join(self.choices)}"]

    def holds(self, answer: Any) -> bool:
        return _are_places(answer, self.choices) and len(answer) == len(self.items)

    def grade(self, chosen: Any) -> Verdict:
        wrong = [pair for pair, i in zip(self.pair, chosen, strict=True) if self.choices[i] != pair.choice]
        return Verdict(not wrong, _listed((pair.item, pair.says) for pair in wrong) or "All match.")

    def faults(self) -> list[str]:
        few = [] if len(self.choices) > 1 else ["there is only one choice for all items"]
        return few + _doubled(self.items)


@dataclass(frozen=True, kw_only=True)
class Order(Question):
    """Items to put in order."""
    item: Sequence[Item]  # in the right order; they are shown by alphabet

    @property
    def items(self) -> list[str]:
        return sorted(item.text for item in self.item)

    @property
    def choices(self) -> list[str]:
        return [str(place) for place in range(1, len(self.item) + 1)]

    @property
    def lines(self) -> list[str]:
        return self.items

    def holds(self, answer: Any) -> bool:
        return _are_places(answer, self.items) and len(answer) == len(self.items)

    def grade(self, chosen: Any) -> Verdict:
        if len(set(chosen)) < len(chosen):
            return Verdict(None, "Two of them have the same place. Give each its own.")
        given = [text for _, text in sorted(zip(chosen, self.items, strict=True))]
        wrong = [item for item, text in zip(self.item, given) if item.text != text]
        if not wrong:
            return Verdict(True, "In the right order.")
        said = "In the right order, read from the top, this is the first that you have elsewhere:"
        return Verdict(False, f"{said}\n\n{_listed([(wrong[0].text, wrong[0].says)])}")

    def faults(self) -> list[str]:
        texts = [item.text for item in self.item]
        given_away = ["the right order is the alphabet's, in which they are shown"] if texts == sorted(texts) else []
        return given_away + _doubled(texts)


@dataclass(frozen=True, kw_only=True)
class Predict(Question):
    """Committed to before an experiment; the experiment decides which band was right."""
    band: Sequence[Band]
    format: str  # of the measured value, such as "{:.0%}"

    @property
    def lines(self) -> list[str]:
        return [band.text for band in self.band]

    def holds(self, answer: Any) -> bool:
        return _is_place(answer, self.band)

    def right(self, measured: float) -> int:
        """Index of the band that holds `measured`, rounded as it is shown."""
        shown = self.value(self.format.format(measured))
        return next(i for i, band in enumerate(self.band) if shown < band.below or band is self.band[-1])

    def value(self, shown: str) -> float:
        """Return the measured value of a text that `format` made, as exact as the text is."""
        return float(re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", shown)[0]) / (100 if "%}" in self.format else 1)

    def faults(self) -> list[str]:
        bounds = [band.below for band in self.band]
        faults = [] if bounds == sorted(set(bounds)) else ["the bands do not rise"]
        if bounds[-1:] != [math.inf]:
            faults.append("the last band must be open: leave out its 'below'")
        try:
            self.format.format(0.5)
        except (ValueError, KeyError, IndexError) as error:
            faults.append(f"format {self.format!r} does not work: {error}")
        return faults + _doubled(self.lines)


@dataclass(frozen=True, kw_only=True)
class Code(Question):
    """An exercise in the cell; `check` names the function in `exercises/LESSON.py` that runs the learner's answer."""
    check: str


KINDS = {kind.__name__.lower(): kind for kind in (Choice, Multiple, Number, Match, Order, Predict, Code)}


def number(written: str) -> float | None:
    """Return the number that somebody wrote, with thousands separators, as a fraction or per cent too; None if none."""
    plain = re.sub(r"(?<=\d)[,_ '\u00a0\u202f\u2019](?=\d{3}(?!\d))", "", written.strip().removesuffix("%"))
    top, bar, bottom = plain.partition("/")
    try:
        found = float(top) / (float(bottom) if bar else 1)
    except (ValueError, ZeroDivisionError):
        return None
    return found if math.isfinite(found) else None


def escape(text: str) -> str:
    """Return plain text for a place where Markdown is read."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~$-])", r"\\\1", text)


def _listed(remarks) -> str:
    """Remarks on items as a Markdown list; one that begins in lower case goes on from its item."""
    return "\n".join(f"- **{escape(item)}**{'' if says[0].islower() else ':'} {says}" for item, says in remarks)


def _is_place(answer, options: Sequence) -> bool:
    return isinstance(answer, int) and 0 <= answer < len(options)


def _are_places(answer, options: Sequence) -> bool:
    return isinstance(answer, list) and all(_is_place(place, options) for place in answer)


def _doubled(texts: Sequence[str]) -> list[str]:
    return [f"{text!r} is there twice" for text in dict.fromkeys(texts) if list(texts).count(text) > 1]
