"""The claims board: what is said about LoRA beside what the executed lessons show. `python tools/claims.py` prints it.

docs/claims.toml names for each claim the cell that shows it, what to read there, and what follows from it. No figure is
typed: they are read from the committed outputs, and the verdict follows from them. It is committed beside that, so that
a lesson that comes to say something else is noticed: this program then names claim, lesson, cell and figures.
"""

import ast
import html
import operator
import re
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import build_notebooks
import nbformat
from lora_lab import LabError

ROOT = Path(__file__).parents[1]
HERE = "<!-- The board stands here: docs/conf.py writes it from docs/claims.toml and the lessons. -->"
FILE, LESSONS = ROOT / "docs" / "claims.toml", ROOT / "notebooks"
RULES = {"holds": "holds", "in_part": "holds in part", "fails": "does not hold here"}  # a field, and its verdict
UNTOLD = "cannot be told at this scale"  # where no rule is true
VERDICTS = {**RULES, "untold": UNTOLD}

NUMBER = r"(?<![\d.])[-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?"
PLACE = re.compile(r"\{(\w+)(?::([^{}]*))?\}|(…)|(\s+)")  # {figure}, {word:this|that}, the rest of a line, a gap
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
              ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.And: all, ast.Or: any}
CALLS = {"min": min, "max": max}


@dataclass(frozen=True)
class Claim:
    """One claim, as docs/claims.toml has it.

    `source` begins with a name of the file's table of sources. `read` is text of the cell's output, or several texts,
    with {name} for each number to read and … for what may stand between. `measured` says what was found, with the same
    names. A rule says of these figures when its verdict follows.
    """

    id: str
    theme: str
    claim: str
    source: str
    lesson: str
    cell: str
    read: str | list[str]
    measured: str
    model: str
    scale: str
    verdict: str
    holds: str = ""
    in_part: str = ""
    fails: str = ""

    def fault(self, what: str) -> LabError:
        return LabError(f"Claim {self.id!r}, lesson {self.lesson}, cell {self.cell}: {what}")


@dataclass(frozen=True)
class Judged:
    """A claim with the figures of its cell, as they are printed there, the section, and what follows."""

    claim: Claim
    figures: dict[str, str]
    section: str
    verdict: str

    @property
    def kind(self) -> str:
        return next(kind for kind, verdict in VERDICTS.items() if verdict == self.verdict)

    @property
    def measured(self) -> str:
        return self.claim.measured.format(**self.figures)

    @property
    def scale(self) -> str:
        return f"{self.claim.model}, {self.claim.scale.format(**self.figures)}"


def load(file: Path = FILE) -> tuple[list[Claim], dict, dict]:
    """Return the claims, the sources by name, and the titles of the themes in their order; raises LabError."""
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    try:
        claims = [Claim(**{field: tidy(value) for field, value in table.items()}) for table in content["claim"]]
    except TypeError as error:  # a field that is missing or unknown
        raise LabError(f"{file.name}: {error}. CONTRIBUTING.md says which fields a claim has.") from None
    return claims, content["sources"], content["themes"]


def tidy(value):
    return " ".join(value.split()) if isinstance(value, str) else value


@cache
def lesson(file: Path) -> dict[str, tuple[str, str]]:
    """Return for each cell of a notebook that has run the heading that it stands under and its outputs as text."""
    cells, heading = {}, ""
    for cell in nbformat.read(file, 4).cells:
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^#+ (.+)", cell.source, re.MULTILINE)][-1]
        elif cell.cell_type == "code" and cell.execution_count is not None:
            cells[cell.id] = heading, "\n".join(map(build_notebooks.words, cell.outputs))
    return cells


def pattern(template: str) -> str:
    """Return the regular expression of what a claim reads: {name} is a number, {name:a|b} one of these words."""
    parts, end = [], 0
    for found in PLACE.finditer(template):
        name, words, rest, _ = found.groups()
        parts += [re.escape(template[end:found.start()]),
                  f"(?P<{name}>{words or NUMBER})" if name else r"[^\n]*?" if rest else r"\s+"]
        end = found.end()
    return "".join([*parts, re.escape(template[end:])])


def read(claim: Claim, text: str) -> dict[str, str]:
    """Return the figures of a claim from its cell's text; raises LabError where it is not there once, and once only."""
    figures = {}
    for template in [claim.read] if isinstance(claim.read, str) else claim.read:
        found = list(re.finditer(pattern(template), text))
        if len(found) != 1:
            raise claim.fault(f"{template!r} is in its output {len(found)} times, expected once. Read the cell again.")
        figures |= found[0].groupdict()
    return figures


def value(figure: str) -> float | str:
    """Return a printed figure as a number, or as it is if it is a word."""
    try:
        return float(figure.replace(",", "").replace("−", "-"))
    except ValueError:
        return figure


def true(rule: str, values: dict) -> bool:
    """Return whether a rule such as "low > 0 and worst <= 2 * best" is true; raises LabError if it is no such rule."""
    def of(node):
        match node:
            case ast.Constant(value=found):
                return found
            case ast.Name(id=name):
                return values[name]
            case ast.UnaryOp(op=ast.USub(), operand=one):
                return -of(one)
            case ast.BinOp(left=one, op=operation, right=other):
                return OPERATIONS[type(operation)](of(one), of(other))
            case ast.BoolOp(op=operation, values=parts):
                return OPERATIONS[type(operation)](map(of, parts))
            case ast.Compare(left=first, ops=operations, comparators=others):
                sides = [of(side) for side in (first, *others)]
                return all(OPERATIONS[type(o)](a, b) for o, a, b in zip(operations, sides, sides[1:]))
            case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]):
                return CALLS[name](map(of, parts))
        raise KeyError(type(node).__name__)

    try:
        return of(ast.parse(rule, mode="eval").body)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise LabError(f"The rule {rule!r} cannot be followed ({error}): compare what is read, by its names.") from None


def follows(claim: Claim, figures: dict[str, str]) -> str:
    """Return the verdict that follows from the figures; raises LabError if two do, or a rule cannot be followed."""
    values = {name: value(figure) for name, figure in figures.items()}
    try:
        said = [RULES[field] for field in RULES if getattr(claim, field) and true(getattr(claim, field), values)]
    except LabError as error:
        raise claim.fault(str(error)) from None
    if len(said) > 1:
        raise claim.fault(f"its rules say {' and '.join(said)} at once, by {told(figures)}.")
    return said[0] if said else UNTOLD


def told(figures: dict[str, str]) -> str:
    return ", ".join(f"{name} {figure}" for name, figure in figures.items())


def judge(claim: Claim, folder: Path = LESSONS) -> Judged:
    """Return a claim with its figures and verdict; raises LabError if its cell is gone, has not run, or reads other."""
    file = folder / f"{claim.lesson}.ipynb"
    cells = lesson(file) if file.exists() else {}
    if claim.cell not in cells:
        raise claim.fault("there is no such cell, or it has not run. Name the cell that shows the claim now.")
    section, text = cells[claim.cell]
    figures = read(claim, text)
    return Judged(claim, figures, section, follows(claim, figures))


def check(judged: Judged) -> None:
    """Raise LabError if the verdict that follows is not the one that is committed."""
    if judged.verdict != judged.claim.verdict:
        raise judged.claim.fault(f"{told(judged.figures)}, from which follows {judged.verdict!r}; {FILE.name} has "
                                 f"{judged.claim.verdict!r}. Read the cell, then mend text, rule or verdict.")


def page(file: Path = FILE) -> str:
    """Return the board as Markdown with blocks of HTML: buttons that filter without a script, and a list a theme."""
    claims, sources, themes = load(file)
    board = [judge(claim) for claim in claims]
    counts = {kind: sum(judged.kind == kind for judged in board) for kind in VERDICTS}
    shown = {"all": f"all {len(board)}"} | {kind: f"{VERDICTS[kind]} ({count})" for kind, count in counts.items()}
    parts = ['<fieldset class="claims-filter">', "<legend>Show the claims whose verdict is</legend>",
             *(f'<label><input type="radio" name="verdict" id="show-{kind}"{" checked" * (kind == "all")}> {text}'
               "</label>" for kind, text in shown.items()), "</fieldset>"]
    for theme, title in themes.items():
        parts += ["", f"## {title}", "", '<ul class="claims">',
                  *(entry(judged, sources) for judged in board if judged.claim.theme == theme), "</ul>"]
    return "\n".join(parts)


def entry(judged: Judged, sources: dict) -> str:
    """Return a claim as an item of the list."""
    claim = judged.claim
    name = next(name for name in sources if claim.source.startswith(name))
    address, where = sources[name], html.escape(claim.source.removeprefix(name))
    cited = (f'<a href="{html.escape(address)}">{html.escape(name)}</a>' if address else html.escape(name)) + where
    place = f"Lesson {int(claim.lesson[:2])}, {judged.section}"
    return (f'<li id="claim-{claim.id}" data-verdict="{judged.kind}"><p class="claim">{code(claim.claim)}</p>'
            f'<p class="verdict">{html.escape(judged.verdict)}</p><p>{code(judged.measured)}</p>'
            f'<p class="from">Said by: {cited}. Measured on: {code(judged.scale)}. '
            f'Shown in: <a href="../notebooks/{claim.lesson}.html#cell-{claim.cell}">{code(place)}</a></p></li>')


def code(text: str) -> str:
    """Return text as HTML, with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def main() -> int:
    claims, _, themes = load()
    faults = []
    for theme, title in themes.items():
        print(f"\n{title}\n")
        for claim in (claim for claim in claims if claim.theme == theme):
            try:
                judged = judge(claim)
                print(f"- {claim.claim} {judged.verdict.upper()}. {judged.measured} ({claim.source}; {judged.scale})")
                check(judged)
            except LabError as error:
                faults.append(str(error))
    print("\n".join(["", *faults, f"{len(claims)} claims, {len(faults)} at fault."]), file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
