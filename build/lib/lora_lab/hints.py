"""Whether a value that YAML gave is what a type hint says, and the words for it where it is not.

Knows nothing of recipes.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import types
import typing

_MOST = 2**32 - 1  # the largest seed that numpy takes; plenty for everything else


def fits(value, hint) -> bool:
    """Whether `value`, as YAML gives it, is what a type hint says."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in inside)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in inside)
    if origin is list:
        return isinstance(value, list) and bool(value) and all(fits(item, inside[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(inside) and all(map(fits, value, inside))
    if hint is dict or origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    return hint in (str, bool) and isinstance(value, hint) and value != ""


def _is_finite(value) -> bool:
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def within(value, low=None, above=None, below=math.inf) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return True
    return (low is None or value >= low) and (above is None or value > above) and value < below and value <= _MOST


def as_number(value):
    """1e-3 is a text to YAML 1.1, which wants 1.0e-3; everybody means the number."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else value


def fault(key: str, section: dict, expected: str) -> str:
    name = key.rpartition(".")[2]
    found = f"{reprlib.repr(section[name])} ({kind(section[name])})" if name in section else "nothing"
    return f"{key}: found {found}, expected {expected}."


def choice(key: str, value, known) -> str:
    close = difflib.get_close_matches(str(value), [str(name) for name in known], 1)
    return (f"{key}: found {reprlib.repr(value)}, expected {'one of ' * (len(known) > 1)}"
            f"{', '.join(map(str, known))}.{f' Nearest: {close[0]}.' if close else ''}")


def expected(hint, low=None, above=None, below=None) -> str:
    parts = [part for part in typing.get_args(hint) or (hint,) if part is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "keys with values"}
    # Sorted, because Python gives back the parts of equal unions in the order in which it met them first.
    known = [words.get(part, "a list" if typing.get_origin(part) is list else "") for part in parts]
    text = " or ".join(sorted(filter(None, known))) or "nothing: a recipe cannot set this"
    limits = [f"of at least {low}"] * (low is not None) + [f"above {above}"] * (above is not None)
    return " ".join([text, *limits, *[f"below {below}"] * (below is not None)])


def kind(value) -> str:
    kinds = {dict: "keys with values", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
