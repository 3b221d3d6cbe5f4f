"""Names of layers as PEFT compares them, and what a learner may have meant by one that matches nothing.

Pure text: knows nothing of models or of PEFT.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

# The same part of a transformer block is called differently by different families of models.
ROLES = {
    "query": {"q", "wq", "query", "qkv", "wqkv"},
    "key": {"k", "wk", "key", "qkv", "wqkv"},
    "value": {"v", "wv", "value", "qkv", "wqkv"},
    "attention output": {"o", "wo", "out", "dense"},
    "MLP gate": {"gate", "w1"},
    "MLP up": {"up", "w3", "fc", "fc1", "fc_in", "wi"},
    "MLP down": {"down", "w2", "fc2", "fc_out"},
}
FUSED = {"c_attn": {"query", "key", "value"}, "c_proj": {"attention output", "MLP down"}}  # GPT-2's names


def matches(entry: str, path: str) -> bool:
    """Apply PEFT's rule for entries of a list: the whole path, or its end after a dot."""
    return path == entry or path.endswith(f".{entry}")


def with_stars(path: str) -> str:
    """Write numbers as stars: `model.layers.7.mlp` becomes `model.layers.*.mlp`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def nearest(entry: str, paths: list[str], most: int = 3) -> list[str]:
    """Return up to `most` endings of `paths` that resemble `entry`: same role in a block, else similar spelling."""
    parts = entry.removesuffix(".weight").removesuffix(".bias").split(".")
    # numbers in a path say which layer, not which kind
    stems = {tuple(part for part in path.split(".") if not part.isdigit()) for path in paths}
    endings = sorted({".".join(stem[-len(parts) :]) for stem in stems})
    wanted = ".".join(parts)
    if wanted in endings:
        return [wanted]
    likeness = {end: difflib.SequenceMatcher(None, wanted, end).ratio() for end in endings}
    same_role = [end for end in endings if _roles(parts[-1]) & _roles(end.rpartition(".")[2])]
    alike = [end for end in endings if likeness[end] >= 0.6]
    return sorted(same_role or alike, key=likeness.__getitem__, reverse=True)[:most]


def suggestion(entry: str, paths: list[str]) -> str:
    """Return ` Nearest: ...` for a name that matches nothing, or what there is if that is little, or nothing."""
    close = nearest(re.sub(r".*[^\w.]", "", entry).strip("."), paths)  # the last plain word of an expression
    if close:
        return f" Nearest: {', '.join(close)}."
    known = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    return f" There are: {', '.join(known)}." if 1 < len(known) <= 12 else ""


def _roles(name: str) -> set[str]:
    if name in FUSED:
        return FUSED[name]
    words = {name.lower(), *name.lower().split("_")}
    return {role for role, known in ROLES.items() if words & known}


def alternatives(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield each alternative of a regular expression, with the expression that insists on it.

    `(q|v)_proj` gives `("q", "(?:q)_proj")` and `("v", "(?:v)_proj")`; `[qv]` counts as alternatives too.
    """
    choices = _choices(pattern)
    for choice in choices:
        for start, end in choice.spans:
            yield pattern[start:end], _insist(pattern, choices, choice, pattern[start:end])


@dataclass(frozen=True)
class _Choice:
    start: int
    end: int
    spans: tuple[tuple[int, int], ...]  # of the alternatives
    repeated: bool = False


def _insist(pattern: str, choices: list[_Choice], choice: _Choice, text: str) -> str:
    text = f"(?:{text})"
    if choice.repeated:  # `(a|b)*` may match without either: insist on one that is this alternative
        everything = "(?:" + "|".join(pattern[a:b] for a, b in choice.spans) + ")*"
        text = everything + text + everything
    around = [(c, a, b) for c in choices for a, b in c.spans if c is not choice and a <= choice.start < choice.end <= b]
    if not around:
        return pattern[: choice.start] + text + pattern[choice.end :]
    outer, a, b = min(around, key=lambda found: found[2] - found[1])
    return _insist(pattern, choices, outer, pattern[a : choice.start] + text + pattern[choice.end : b])


def _choices(pattern: str) -> list[_Choice]:
    """Every group with `|`, and every plain class of letters and digits."""
    found, opened, i = [], [_Group(0, 0)], 0
    while i < len(pattern):
        if pattern[i] == "\\":
            i += 1
        elif pattern[i] == "[":
            end = pattern.index("]", i + (3 if pattern.startswith("[^", i) else 2)) + 1
            if end - i > 3 and pattern[i + 1 : end - 1].isalnum() and _after_quantifier(pattern, end) == end:
                found.append(_Choice(i, end, tuple((j, j + 1) for j in range(i + 1, end - 1))))
            i = end - 1
        elif pattern[i] == "(":
            prefix = re.findall(r"\((?:\?(?:P<\w+>|[:=>]|<=|[aiLmsux-]*:|<?!|\(\w+\)))?", pattern[i:])[0]
            opened.append(_Group(i, i + len(prefix), is_choice=not prefix.endswith(("!", "=", ")"))))
        elif pattern[i] == "|":
            opened[-1].bars.append(i)
        elif pattern[i] == ")":
            end = _after_quantifier(pattern, i + 1)
            if all(group.is_choice for group in opened):
                found += opened[-1].choices(i, end, repeated=end > i + 1)
            opened.pop()
        i += 1
    return found + opened[0].choices(len(pattern), len(pattern), repeated=False)


class _Group:
    def __init__(self, start: int, content: int, is_choice: bool = True):
        self.start, self.content, self.is_choice = start, content, is_choice
        self.bars: list[int] = []

    def choices(self, close: int, end: int, repeated: bool) -> list[_Choice]:
        edges = [self.content - 1, *self.bars, close]
        spans = tuple((a + 1, b) for a, b in zip(edges, edges[1:]))
        return [_Choice(self.start, end, spans, repeated)] if self.bars else []


def _after_quantifier(pattern: str, i: int) -> int:
    return i + len(re.findall(r"(?:[?*+]|\{\d*,?\d*\})?[?+]?", pattern[i:])[0])
