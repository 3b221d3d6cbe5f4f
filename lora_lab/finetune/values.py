"""A YAML file's values: read without running anything, compared with type hints, and the words where they do not fit.

Knows nothing of recipes.
"""

import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Collection
from typing import Any

import yaml

from .. import files
from ..errors import LabError, nearest, reason

_MOST_VALUES = 10_000  # in a file
_MOST = 2**32 - 1  # the largest seed that numpy takes; plenty for everything else


def fits(value: Any, hint: Any) -> bool:
    """Return whether `value`, as YAML gives it, is what a type hint says."""
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


def within(value: Any, low: float | None = None, above: float | None = None, below: float = math.inf) -> bool:
    """Return whether a number lies in its limits, `low` included, and is none that no machine takes; others do."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return True
    return (low is None or value >= low) and (above is None or value > above) and value < below and value <= _MOST


def as_number(value: Any) -> Any:
    """Return 1e-3 as a number, which is a text to YAML 1.1; everything else as it is."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else value


def fault(key: str, section: dict, expected: str) -> str:
    """Return the sentence on a value of `section` that is not what was `expected`."""
    name = key.rpartition(".")[2]
    found = f"{reprlib.repr(section[name])} ({kind(section[name])})" if name in section else "nothing"
    return f"{key}: found {found}, expected {expected}."


def choice(key: str, value: Any, known: Collection) -> str:
    """Return the sentence on a value that is none of the `known` ones, with the nearest."""
    close = nearest(value, known)
    return (f"{key}: found {reprlib.repr(value)}, expected {'one of ' * (len(known) > 1)}"
            f"{', '.join(map(str, known))}.{f' Nearest: {close[0]}.' if close else ''}")


def expected(hint: Any, low: float | None = None, above: float | None = None, below: float | None = None) -> str:
    """Return the words for what a type hint and limits ask for."""
    parts = [part for part in typing.get_args(hint) or (hint,) if part is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "keys with values"}
    # Sorted, because Python gives back the parts of equal unions in the order in which it met them first.
    known = [words.get(part, "a list" if typing.get_origin(part) is list else "") for part in parts]
    text = " or ".join(sorted(filter(None, known))) or "nothing: a recipe cannot set this"
    limits = [f"of at least {low}"] * (low is not None) + [f"above {above}"] * (above is not None)
    return " ".join([text, *limits, *[f"below {below}"] * (below is not None)])


def kind(value: Any) -> str:
    """Return the words for what YAML gave, such as "a list"."""
    kinds = {dict: "keys with values", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def find_unknown(given: dict, prefix: str, known: list[str], faults: list[str]) -> None:
    """Add to `faults` the keys of `given` that are not `known`, the first ten of them with the nearest."""
    unknown = [key for key in given if key not in known]
    for key in unknown[:10]:
        close = nearest(key, known, cutoff=0.5)
        hint = f"Nearest: {close[0]}." if close else f"There are: {', '.join(known[:12])}."
        faults.append(f"{prefix}{reprlib.repr(key).strip(chr(39))}: found an unknown key. {hint}")
    if len(unknown) > 10:
        faults.append(f"{prefix or 'recipe'}: found {len(unknown) - 10:,} unknown keys more.")


def read_yaml(path: str | os.PathLike, faults: list[str]) -> Any:
    """Return what the file says, running nothing in it. Raises LabError.

    What its aliases and merges stand for is counted, and may not be endless. Keys written twice, which YAML readers let
    pass, are added to `faults`.
    """
    try:
        loader = yaml.SafeLoader(files.read_text(files.place(path, "a YAML file's name"), largest=100_000))
        node = loader.get_single_node()
        _count(node, [_MOST_VALUES], files.DEEPEST, ())
        _find_twice(node, "", faults, set())
        return None if node is None else loader.construct_document(node)
    except LabError:
        raise
    except OSError as error:
        raise LabError(f"Cannot read the recipe {str(path)!r}: {reason(error)}. Give a YAML file's path.") from None
    except Exception as error:  # PyYAML lets other errors than its own through, such as those of impossible dates
        raise LabError(f"{path} is not YAML that can be read: {reason(error)}") from None


def _count(node, left: list[int], deeper: int, above: tuple) -> None:
    """Every value as often as aliases (*) and merges (<<) repeat it; what lies in itself is counted once."""
    left[0] -= 1
    if left[0] < 0 or not deeper:
        raise ValueError(f"it stands for more than {_MOST_VALUES:,} values, or for {files.DEEPEST} levels of them")
    parts = node.value if isinstance(node, yaml.CollectionNode) and node not in above else ()
    for part in parts:
        for inner in part if isinstance(part, tuple) else (part,):
            _count(inner, left, deeper - 1, (*above, node))


def _find_twice(node, prefix: str, faults: list[str], seen: set) -> None:
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{getattr(key, 'value', key)}", key.start_mark.line + 1
        if name in lines:
            faults.append(f"{name}: found twice, in lines {lines[name]} and {line}. Expected once.")
        lines[name] = line
        _find_twice(value, f"{name}.", faults, seen)
