"""What questions are made of: options, bands, near misses, pairs; and the verdict on an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NewType

Plain = NewType("Plain", str)


@dataclass(frozen=True)
class Verdict:
    """What became of an answer. `solved` is None where it could not be judged, which is no attempt."""

    solved: bool | None
    text: str
    plain: bool = False  # a program's words rather than Markdown


@dataclass(frozen=True, kw_only=True)
class Option:
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
    item: Plain
    choice: Plain
    says: str  # to those who gave the item another choice


@dataclass(frozen=True, kw_only=True)
class Item:
    text: Plain
    says: str  # to those who put it elsewhere


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The cell of the lesson that shows the answer: its heading, and words that its code or output contains."""

    section: str
    cell: str
    lesson: str = ""  # the notebook, where it is another one
