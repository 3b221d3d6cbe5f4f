"""Tell notebooks and README where the course is published: `python tools/publish.py owner/name`, or "" for nowhere.

The address is kept in pyproject.toml and nowhere else. Every notebook and its text twin gets from it the set-up cell, a
link that opens it in Colab, and its links to the lessons before and after; the README gets the links to Colab and
Binder, the teaching page the one for nbgitpuller. What is written replaces what was written before, so a second run
changes nothing. Without an argument, the address of before is written again, into new lessons too.
"""

import os
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlencode

import jupytext
import nbformat
from lora_lab import LabError

ROOT = Path(__file__).parents[1]
GITHUB = "https://github.com/"
LINKS = "*Lessons:* "
FIRST = "00_first_adapter.ipynb"
FOLDED = {"jupyter": {"source_hidden": True}}  # a cell whose source JupyterLab shows on demand
COLAB = {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}}
SET_UP = '''\
# Set-up: where the course is missing, as on Colab, gets it and changes no package that is there. Elsewhere: nothing.
import os
from importlib import invalidate_caches, util

if util.find_spec("lora_lab") is None:
    course = os.environ.get("LORA_LAB_REPOSITORY", "{address}")
    assert course, "lora_lab is not installed. Clone the course and run `make lab` in it: its README says how."
    %pip install -q --no-deps git+{{course}}
    invalidate_caches()
    from lora_lab.course import environment
    environment.complete()
    environment.report()'''


def address(repository: str) -> str:
    """The address that git clones from; raises LabError for what cannot be one."""
    given = repository.removeprefix(GITHUB).rstrip("/").removesuffix(".git")
    if re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*/(?!\.{1,2}$)[A-Za-z0-9_.-]+", given):
        return GITHUB + given
    elsewhere = re.fullmatch(r"(https://[\w-]+(\.[\w-]+)+(:\d+)?|file:/)(/[\w~-][\w.~-]*)+", repository)
    if not repository or elsewhere and not repository.startswith(GITHUB):
        return repository
    raise LabError(f"REPO is {repository!r}. Expected owner/name of a GitHub repository, the https:// address of "
                   "another, or nothing.")


def on_github(course: str) -> str:
    """owner/name; empty for another host, from which Colab and the links to Binder cannot open notebooks."""
    return course.removeprefix(GITHUB) if course.startswith(GITHUB) else ""


def colab(here: str, lesson: str) -> str:
    """The address that opens a lesson's file of `here` (owner/name) in Colab."""
    return f"https://colab.research.google.com/github/{here}/blob/main/notebooks/{lesson}"


def binder(here: str, lesson: str) -> str:
    """The same on Binder, whose image starts in the learners' folder."""
    return f"https://mybinder.org/v2/gh/{here}/HEAD?urlpath=lab/tree/{lesson}"


def git_puller(course: str, hub: str) -> str:
    """The address by which nbgitpuller on a hub copies `course` into a learner's home, or updates it, and opens it."""
    folder = course.rsplit("/", 1)[-1]  # as nbgitpuller names it, unlike git with its .git where there is one
    asked = {"repo": course, "branch": "main", "urlpath": f"lab/tree/{folder}/notebooks/{FIRST}"}
    return f"{hub}/hub/user-redirect/git-pull?{urlencode(asked)}"


def pages(here: str) -> str:
    """The address of the site as GitHub serves it."""
    owner, name = here.split("/")
    return f"https://{owner.lower()}.github.io/{name}/"


def title(notebook) -> str:
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def links(lessons: list[tuple[str, str]], place: int, course: str) -> str:
    """The line with the lessons before and after, and the way to Colab. `lessons` has (file name, title)."""
    parts = []
    if place:
        parts.append("← [{1}]({0})".format(*lessons[place - 1]))
    if place + 1 < len(lessons):
        parts.append("[{1}]({0}) →".format(*lessons[place + 1]))
    if here := on_github(course):
        parts.append(f"[Open in Colab]({colab(here, lessons[place][0])})")
    return LINKS + " ·\n".join(parts)


def dress(notebook, line: str, course: str):
    """`notebook` with the links under its title and at its end, and the set-up, folded, as its first code cell."""
    for cell, end in ((notebook.cells[0], False), (notebook.cells[-1], True)):
        paragraphs = [p for p in cell.source.split("\n\n") if not p.startswith(LINKS)]
        paragraphs.insert(len(paragraphs) if end else 1, line)
        cell.source = "\n\n".join(paragraphs)
    first = next(place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    source = SET_UP.format(address=course)
    if notebook.cells[first].source.startswith(SET_UP.split(":")[0]):
        notebook.cells[first].source = source
    else:
        notebook.cells.insert(first, nbformat.v4.new_code_cell(source, metadata=FOLDED))
    return notebook


def write(repository: str, root: Path = ROOT) -> None:
    course = address(repository)
    replace(root / "pyproject.toml", r'(?m)^repository = ".*"$', f'repository = "{course}"')
    replace(root / "README.md", r"(?s)(<!-- published -->\n).*?(<!-- /published -->)", rf"\1{readme(course)}\2")
    if (page := root / "docs/teaching.md").exists():  # learners have none
        replace(page, r"(?s)(<!-- nbgitpuller -->\n).*?(<!-- /nbgitpuller -->)", rf"\1{teaching(course)}\2")
    twins = sorted((root / "notebooks").glob("[0-9]*.py"))
    lessons = [(twin.with_suffix(".ipynb").name, title(jupytext.read(twin))) for twin in twins]
    for place, twin in enumerate(twins):
        line, file = links(lessons, place, course), twin.with_suffix(".ipynb")
        text = jupytext.writes(dress(jupytext.read(twin), line, course), fmt="py:percent")
        save(twin, re.sub(r"(?m)^#       (format|jupytext)_version: .*\n", "", text))
        if file.exists():
            notebook = dress(nbformat.read(file, 4), line, course)
            notebook.metadata.update(COLAB)
            ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
            for count, cell in enumerate(ran, 1):  # the set-up cell did nothing in the run that is kept
                cell.execution_count = count
            save(file, nbformat.writes(notebook) + "\n")


def readme(course: str) -> str:
    here = on_github(course)
    if not here:
        return ""
    return (f"[Open Lesson 0 in Colab]({colab(here, FIRST)}) · [open the course on Binder]({binder(here, FIRST)})\n")


def teaching(course: str) -> str:
    """The link for a hub, as code: its first part is the reader's to fill in."""
    if not course:
        return "The course is not published yet; `make publish REPO=owner/name` writes the link here.\n"
    return f"    {git_puller(course, 'https://YOUR-HUB')}\n"


def replace(file: Path, pattern: str, by: str) -> None:
    text, found = re.subn(pattern, by, file.read_text(encoding="utf-8"))
    if found != 1:
        raise LabError(f"{file.name} has {found} places for the repository's address. Expected one: {pattern}")
    save(file, text)


def save(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def kept(root: Path = ROOT) -> str:
    """The address of now."""
    return tomllib.loads((root / "pyproject.toml").read_text())["tool"]["lora-lab"]["repository"]


if __name__ == "__main__":
    try:
        write(sys.argv[1] if len(sys.argv) > 1 else kept())
    except LabError as error:
        sys.exit(str(error))
