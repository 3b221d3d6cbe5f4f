"""Names of layers as PEFT compares them, and what a learner may have meant by one that matches nothing.

Pure text: knows nothing of models or of PEFT.
"""

import contextlib
import difflib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

SECONDS = 5
_FIELDS = "target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern"
_MATCH = r"""import json, re, sys
patterns, names = json.load(sys.stdin)
forms = "{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\."  # as PEFT writes them
for pattern in patterns:
    for form in forms:
        try:
            compiled = re.compile(form.format(pattern))
        except Exception:
            continue  # it is no regular expression, which PEFT says
        for name in names:
            compiled.match(name), compiled.fullmatch(name)
"""


def patterns_end(config: dict[str, Any], names: list[str]) -> bool:
    """Return whether the regular expressions of a LoraConfig's fields are done with `names` within some seconds.

    One that backtracks takes for ever, and nothing in its process can stop it: they run in one of their own.
    """
    fields = [config.get(key) or () for key in _FIELDS]
    texts = [text for field in fields if not isinstance(field, (int, float))
             for text in ([field] if isinstance(field, str) else field)]
    patterns = [text for text in texts if isinstance(text, str) and any(sign in text for sign in "*+{?")]
    if not patterns:
        return True
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-I", "-S", "-c", _MATCH], input=json.dumps([patterns, names]).encode(),
                       timeout=SECONDS, capture_output=True)
        return True
    return False


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

    `(q|v)_proj` gives `("q", "(q)_proj")` and `("v", "(v)_proj")`; `[qv]` counts as alternatives too, and an empty one
    does not. Spaces and comments of a verbose expression are dropped.
    """
    pattern, choices = _choices(pattern)
    for choice in choices:
        for start, end in choice.spans:
            yield pattern[start:end], _insist(pattern, choices, choice, pattern[start:end])


def left_out(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield each alternative of a regular expression, in the order of `alternatives`, with the expression without it.

    `(q|v)_proj` gives `("q", "((?!)q|v)_proj")`: what can never match keeps the place, and with it groups' numbers.
    """
    pattern, choices = _choices(pattern)
    for choice in choices:
        for start, end in choice.spans:
            rest = "" if choice.is_class else "(?!)" + pattern[start:end]
            yield pattern[start:end], pattern[:start] + rest + pattern[end:]


@dataclass(frozen=True)
class _Choice:
    start: int
    end: int
    spans: tuple[tuple[int, int], ...]  # of the alternatives
    opening: str = "(?:"
    repeated: bool = False
    is_class: bool = False


def _insist(pattern: str, choices: list[_Choice], choice: _Choice, text: str) -> str:
    if choice.repeated:  # `(a|b)*` may match without either: insist on one that is this alternative
        everything = "(?:" + "|".join(pattern[a:b] for a, b in choice.spans) + ")*"
        text = f"{everything}(?:{text}){everything}"
    else:
        text = f"{choice.opening}{text})"  # the group itself stays: a later `\1` may mean it
    around = [(c, a, b) for c in choices for a, b in c.spans if c is not choice and a <= choice.start < choice.end <= b]
    if not around:
        return pattern[: choice.start] + text + pattern[choice.end :]
    outer, a, b = min(around, key=lambda found: found[2] - found[1])
    return _insist(pattern, choices, outer, pattern[a : choice.start] + text + pattern[choice.end : b])


# One step through an expression. The first `]` of a class is a character, and so is what follows a backslash.
_TOKEN = re.compile(r"""
    \\. | (?P<set>\[\^?\]?(?:\\.|[^\]\\])*\]) | \(\?\#[^)]*\) | (?P<flags>\(\?[aiLmsux]+\)) | (?P<bar>\|)
    | (?P<open>\((?:\?(?:P<\w+>|P=|[:=>!]|<=|<!|[aiLmsux-]+:|\(\w+\)))?) | (?P<close>\)) | .
""", re.VERBOSE | re.DOTALL)
# What a verbose expression holds in vain, after what only looks like it.
_VERBOSE = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|\(\?#[^)]*\)|\s+|#[^\n]*", re.DOTALL)


def _choices(pattern: str) -> tuple[str, list[_Choice]]:
    """`pattern` without what verbose ones hold in vain, and its choices: every group with `|`, every plain class.

    None are inside of an assertion or a condition.
    """
    found: list[_Choice] = []
    if re.search(r"\(\?[a-zL-]*x[a-z-]*:", pattern):  # verbose in parts: where a space counts is not looked into
        return pattern, found
    if re.compile(pattern).flags & re.VERBOSE:
        pattern = _VERBOSE.sub(lambda part: part[1] or "", pattern)
    opened = [_Group(0, 0, "(?:")]
    for token in _TOKEN.finditer(pattern):
        start, end = token.span()
        plain = all(group.is_choice for group in opened)
        if token.lastgroup == "flags":
            opened[0].start = opened[0].content = end  # flags of the whole stay before it
        elif token.lastgroup == "open":
            opened.append(_Group(start, end, token[0]))
        elif token.lastgroup == "bar":
            opened[-1].bars.append(start)
        elif token.lastgroup == "set" and plain and end - start > 3 and token[0][1:-1].isalnum():
            if _after_quantifier(pattern, end) == end:
                spans = tuple((at, at + 1) for at in range(start + 1, end - 1))
                found.append(_Choice(start, end, spans, is_class=True))
        elif token.lastgroup == "close":
            group, after = opened.pop(), _after_quantifier(pattern, end)
            found += group.choices(start, after, repeated=after > end) if plain else []
    return pattern, found + opened[0].choices(len(pattern), len(pattern), repeated=False)


class _Group:
    def __init__(self, start: int, content: int, opening: str):
        self.start, self.content, self.opening, self.bars = start, content, opening, list[int]()
        self.is_choice = not opening.endswith(("!", "=", ")"))  # assertions, references and conditions are none

    def choices(self, close: int, end: int, repeated: bool) -> list[_Choice]:
        edges = [self.content - 1, *self.bars, close]
        spans = tuple((a + 1, b) for a, b in zip(edges, edges[1:]) if a + 1 < b)
        return [_Choice(self.start, end, spans, self.opening, repeated)] if self.bars else []


def _after_quantifier(pattern: str, i: int) -> int:
    return i + len(re.findall(r"(?:[?*+]|\{\d*,?\d*\})?[?+]?", pattern[i:])[0])
