"""The front page of the site: fills in what `index.md` leaves open, from the README's table and an executed lesson."""

import html
import re
import tomllib
from pathlib import Path

import build_notebooks
import nbformat
import publish

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (?P<number>\d+) \| \[(?P<title>.+?)\]\(notebooks/(?P<name>\w+)\.ipynb\) \| (?P<able>.+?) \| "
                 r"(?P<minutes>[\d.]+).*? \|", re.MULTILINE)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
WHEEL = f"lora_lab-{VERSION}-py3-none-any.whl"  # `make site` puts it beside the front page
FIGURE = ("05_alpha_scaling", "dial")  # what a newcomer may turn, and the lesson that measured it


def lessons() -> list[dict[str, str]]:
    """Return each lesson's number, title, file name, what one can do after it, and minutes, as the README has them."""
    return [row.groupdict() for row in ROW.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]


def fill(text: str, course: str) -> str:
    """Return the text of `index.md` with its parts filled in; `course` is where the course is published, or empty."""
    parts = {"begin": _begin(), "figure": _figure(*FIGURE), "lessons": _list(publish.on_github(course)),
             "wheel": WHEEL}
    return re.sub(r"<!-- (\w+) -->", lambda found: parts[found[1]], text)


def clean(notebook):
    """Return `notebook` as one downloads it: without outputs."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    return notebook


def _begin() -> str:
    first = lessons()[0]
    return (f'<p class="lora-lab-begin"><a href="notebooks/{first["name"]}.html">Begin here: {first["number"]} · '
            f'{html.escape(first["title"])}</a></p>')


def _figure(lesson: str, name: str) -> str:
    """Return a figure as a lesson's run left it. Raises ValueError where it left none."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", 4)
    for output in build_notebooks.with_data(notebook, build_notebooks.HTML):
        if f'data-lora-lab="{name}"' in output.data[build_notebooks.HTML]:
            return re.sub(r"\n\s*\n", "\n", output.data[build_notebooks.HTML])  # Markdown's HTML ends at an empty line
    raise ValueError(f"{lesson} has no figure {name!r} among its outputs: run it with make notebooks.")


def _list(here: str) -> str:
    return '<ol class="lora-lab-lessons">\n' + "".join(_item(lesson, here) for lesson in lessons()) + "</ol>\n"


def _item(lesson: dict[str, str], here: str) -> str:
    named = f'<span class="lora-lab-of">: lesson {lesson["number"]}</span>'  # links that read alike lead to one place
    file = f"{lesson['name']}.ipynb"
    ways = {"Open in Colab": publish.colab, "Open on Binder": publish.binder} if here else {}
    links = [f'<a href="{html.escape(address(here, file))}">{text}{named}</a>' for text, address in ways.items()]
    links.append(f'<a href="notebooks/{file}" download>Download{named}</a>')
    return (f'<li><a class="lora-lab-title" href="notebooks/{lesson["name"]}.html">{lesson["number"]} · '
            f'{html.escape(lesson["title"])}</a>\n<p>{html.escape(lesson["able"], quote=False)}</p>\n'
            f'<p class="lora-lab-ways"><span>{float(lesson["minutes"]):g} min</span> {" ".join(links)}</p></li>\n')
