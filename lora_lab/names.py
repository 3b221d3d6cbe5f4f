"""Names of layers as PEFT compares them, and what a learner may have meant by one that matches nothing.

Pure text: knows nothing of models or of PEFT.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

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
    """PEFT's rule for entries of a list: the whole path, or its end after a dot."""
    return path == entry or path.endswith(f".{entry}")


def with_stars(path: str) -> str:
    """`model.layers.7.mlp` becomes `model.layers.*.mlp`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def nearest(entry: str, paths: list[str], most: int = 3) -> list[str]:
    """Up to `most` endings of `paths` that resemble `entry`: the same role in a block, or a similar spelling."""
    parts = entry.removesuffix(".weight").removesuffix(".bias").split(".")
    # numbers in a path say which layer, not which kind
    stems = {tuple(part for part in path.split(".") if not part.isdigit()) for path in paths}
    endings = sorted({".".join(stem[-len(parts) :]) for stem in stems})
    wanted = ".".join(parts)
    if wanted in endings:
        return [wanted]
    likeness = {end: difflib.SequenceMatcher(None, wanted, end).ratio() for end in endings}
    same_role = [end for end in endings if _roles(parts[-1]) & _roles(end.rpartition(".")[2])]
    alike = [end for end in endings if likeness[end] >= 0.6 and end not in same_role]
    return (sorted(same_role, key=likeness.get, reverse=True) + sorted(alike, key=likeness.get, reverse=True))[:most]


def _roles(name: str) -> set[str]:
    if name in FUSED:
        return FUSED[name]
    words = {name.lower(), *name.lower().split("_")}
    return {role for role, known in ROLES.items() if words & known}


def alternatives(pattern: str) -> Iterator[tuple[str, str]]:
    """Each alternative of a regular expression, with the expression that insists on it.

    `(q|v)_proj` gives `("q", "(q)_proj")` and `("v", "(v)_proj")`; `[qv]` counts as alternatives too.
    """
    for start, end, options, repeated in _choices(pattern):
        for option in options:
            insist = f"(?:{option})"
            if repeated:  # `(a|b)*` may match without either: insist on one that is this option
                everything = f"(?:{'|'.join(options)})*"
                insist = everything + insist + everything
            yield option, pattern[:start] + insist + pattern[end:]


def _choices(pattern: str) -> list[tuple[int, int, list[str], bool]]:
    """(start, end, options, repeated) of every group with `|` and every plain class of letters and digits."""
    found, open_groups, i = [], [_Group(0, 0)], 0
    while i < len(pattern):
        if pattern[i] == "\\":
            i += 1
        elif pattern[i] == "[":
            end = pattern.index("]", i + (3 if pattern.startswith("[^", i) else 2)) + 1
            inside = pattern[i + 1 : end - 1]
            if len(inside) > 1 and inside.isalnum() and _after_quantifier(pattern, end) == end:
                found.append((i, end, list(inside), False))
            i = end - 1
        elif pattern[i] == "(":
            prefix = re.match(r"\((\?(P<\w+>|[:=>]|<=|[aiLmsux-]*:|<?!|\(\w+\)))?", pattern[i:])[0]
            open_groups.append(_Group(i, i + len(prefix), countable=not prefix.endswith(("!", ")"))))
        elif pattern[i] == "|":
            open_groups[-1].bars.append(i)
        elif pattern[i] == ")":
            group = open_groups.pop()
            end = _after_quantifier(pattern, i + 1)
            lookaround = pattern[group.start : group.content].endswith("=")
            if not lookaround and group.countable and all(g.countable for g in open_groups):
                found += group.choice(pattern, i, end, repeated=end > i + 1)
        i += 1
    return found + open_groups[0].choice(pattern, len(pattern), len(pattern), repeated=False)


class _Group:
    def __init__(self, start: int, content: int, countable: bool = True):
        self.start, self.content, self.countable, self.bars = start, content, countable, []

    def choice(self, pattern: str, close: int, end: int, repeated: bool) -> list:
        if not self.bars:
            return []
        edges = [self.content - 1, *self.bars, close]
        options = [pattern[a + 1 : b] for a, b in zip(edges, edges[1:])]
        return [(self.start, end, options, repeated)]


def _after_quantifier(pattern: str, i: int) -> int:
    return i + len(re.match(r"([?*+]|\{\d*,?\d*\})?[?+]?", pattern[i:])[0])
