"""List what a lesson's sentences state in figures or comparisons: `python tools/prose.py 00_first_adapter ...`

What a run gave is printed by its cell, which computes it. A number or a comparison in Markdown is therefore a
definition, a citation, or a mechanism that holds on every machine, and stands, word for word and with its kind, in
notebooks/reviewed_sentences.toml; whatever else is listed here is to be moved into a cell, or to be said without.

Nothing is asked of code, formulas, headings, questions, what a **Predict** or an exercise asks for, references such as
"Lesson 3" and the year of a paper, and the lines of links and minutes, which tests compare.
"""

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import jupytext

FOLDER = Path(__file__).parents[1] / "notebooks"
REVIEWED = FOLDER / "reviewed_sentences.toml"
KINDS = ("definition", "citation", "mechanism")  # the last one: arithmetic too, if it is the same on every machine

NUMBER = (r"(?<![\w.])[-−+]?\d[\d,.]*\d|(?<![\w.])\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|"
          r"twenty|thirty|forty|fifty|sixty|hundreds?|thousands?|thousandth|millions?|billions?|dozens?|tenths?|"
          r"thirds?|quarters?)\b")
COMPARISON = (r"\b(?:than|more|less|fewer|most|least|mostly|higher|highest|lower|lowest|better|best|worse|worst|faster|"
              r"fastest|slower|slowest|larger|largest|smaller|smallest|bigger|biggest|greater|greatest|longer|longest|"
              r"shorter|shortest|stronger|strongest|weaker|weakest|cheaper|cheapest|closer|closest|nearer|nearest|"
              r"easier|harder|twice|half|halves|halved|double[sd]?|doubling|triple[sd]?|times|percent|nearly|almost|"
              r"hardly|barely|roughly|falls|fell|rises|rose|drops|dropped|grows|grew|shrinks|shrank|improves|improved|"
              r"worsens|worsened|beats|wins|won|outperforms?)\b|%")
WORDS = re.compile(f"{NUMBER}|{COMPARISON}", re.IGNORECASE)
# Nothing is looked for in these. A formula begins and ends beside a sign, money does not.
ASIDE = re.compile(
    r"`[^`]+`|\$\$.+?\$\$|\$(?=\S)[^$]+(?<=\S)\$|(?<=\])\([^)\s]+\)|<[^>]+>|https?://\S+|"
    r"\b(?:lessons?|sections?|tables?|figures?|equations?|appendix|chapters?|exercises?|puzzles?|cells?)\s+"
    r"\[?\d[\d.]*\d?\b(?:(?:,| and| to| or|–)+\s*\[?\d[\d.]*\b)*|"
    r"(?<=[(, ])(?:19|20)\d\d(?=[),;])|\barXiv:\d+\.\d+", re.IGNORECASE | re.DOTALL)
END = re.compile(r"""[.!?]["”’)*_]*\s+(?=["“‘(*_\[]*[A-Z\d§−-])""")
NO_END = re.compile(r"(?:e\.g|i\.e|et al|vs|cf|Fig|Eq|Sec|No|approx)\.\s+$")
NEW_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.)\s)|\n(?=\s*\|)")
ASKS = re.compile(r"\**(?:Predict|Exercise|Puzzle|\d+\.\s)\b", re.IGNORECASE)
TESTED = ("*Lessons:* ", "**It takes** ")  # the links and the minutes, which tests compare


@dataclass(frozen=True)
class Sentence:
    """One of a lesson, as it stands there but for line breaks, and what of it states a number or a comparison."""
    section: str
    text: str
    words: tuple[str, ...]


def sentences(lesson: Path) -> list[Sentence]:
    """Return all sentences of a text twin's Markdown that tell something; questions and tasks ask."""
    found, section = [], ""
    for cell in jupytext.read(lesson).cells:
        if cell.cell_type != "markdown":
            continue
        for block in NEW_BLOCK.split(re.sub(r"(?ms)^```.*?^```$", "", cell.source)):
            lines = []
            for line in block.splitlines():
                if line.startswith("#"):
                    section = line.lstrip("# ")
                else:
                    lines.append(line.strip())
            text = re.sub(r"^(?:[-*+]|\d+\.)\s+", "", " ".join(lines).strip())
            tasks = section.lower().startswith(("exercise", "puzzle")) or ASKS.match(text)
            if not tasks and not text.startswith(TESTED):
                found += [Sentence(section, *told) for told in split(text)]
    return found


def split(paragraph: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return each sentence that is no question, with the words of it that state a number or a comparison."""
    masked = ASIDE.sub(lambda match: "§" * len(match[0]), paragraph)
    ends = [match.end() for match in END.finditer(masked) if not NO_END.search(masked[:match.end()])]
    told = []
    for start, end in zip([0, *ends], [*ends, len(paragraph)]):
        text = paragraph[start:end].strip()
        if text and not re.search(r"""\?["”’)*_]*$""", text):
            told.append((text, tuple(WORDS.findall(masked[start:end]))))
    return told


def reviewed(file: Path = REVIEWED) -> dict[str, dict[str, str]]:
    """Return the kind of each reviewed sentence, by lesson. Raises ValueError for an entry that is none."""
    lessons = tomllib.loads(file.read_text(encoding="utf-8"))
    for lesson, entries in lessons.items():
        for entry in entries:
            if set(entry) != {"kind", "sentence"} or entry["kind"] not in KINDS:
                raise ValueError(f"{file.name}, {lesson}: {entry} needs a `sentence` and a `kind`, one of "
                                 f"{', '.join(KINDS)}.")
    return {lesson: {entry["sentence"]: entry["kind"] for entry in entries} for lesson, entries in lessons.items()}


def check(lesson: Path, known: dict[str, str]) -> tuple[list[Sentence], list[str]]:
    """Return the sentences that nobody reviewed, and the reviewed ones that no longer stand there or need no entry."""
    stating = [sentence for sentence in sentences(lesson) if sentence.words]
    texts = {sentence.text for sentence in stating}
    return [sentence for sentence in stating if sentence.text not in known], [old for old in known if old not in texts]


def main(names: list[str]) -> int:
    count, known = 0, reviewed()
    for lesson in [FOLDER / f"{name}.py" for name in names] or sorted(FOLDER.glob("[0-9]*.py")):
        new, old = check(lesson, known.get(lesson.stem, {}))
        for sentence in new:
            print(f"{lesson.stem} · {sentence.section}\n  {sentence.text}\n  ({', '.join(sentence.words)})")
        for text in old:
            print(f"{lesson.stem} · {REVIEWED.name} has what does not stand there, or states nothing:\n  {text}")
        print(f"{lesson.stem}: {len(new)} to review, {len(old)} reviewed in vain.\n")
        count += len(new) + len(old)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
