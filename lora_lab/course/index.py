"""The page of all lessons, as a table and as a notebook: links, titles, and how much of each is solved."""

import html
import platform
from dataclasses import dataclass
from urllib.parse import quote

from ..display import Page

_STYLE = "color:var(--jp-content-font-color1,inherit)"


@dataclass(frozen=True)
class Entry:
    """A lesson of the course, and how much of it is solved."""
    name: str  # of the notebook, without .ipynb
    title: str
    solved: int
    questions: int

    @property
    def finished(self) -> bool:
        return self.solved == self.questions


def page(entries: list[Entry]) -> Page:
    """Return a table of `Entry`; links go to notebooks in the same folder. Every text is escaped."""
    rows, text = "", []
    for entry in entries:
        link = f'<a href="{quote(entry.name)}.ipynb">{html.escape(entry.title)}</a>'
        bar = (f'<progress max="{entry.questions}" value="{entry.solved}" aria-label="{html.escape(entry.title)}">'
               "</progress>" if entry.questions else "")
        rows += (f'<tr><td style="text-align:left">{link}</td><td style="text-align:left">{_state(entry)}</td>'
                 f"<td>{bar}</td></tr>")
        text.append(f"{entry.title} ({entry.name}.ipynb): {_state(entry)}")
    head = "".join(f'<th scope="col" style="text-align:left">{name}</th>' for name in ("lesson", "solved", ""))
    return Page(f'<table style="{_STYLE}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>', "\n".join(text))


def notebook(entries: list[Entry], live: str) -> dict:
    """Return the index as a notebook: links that work without a kernel, and the cell `live` with its output of now."""
    shown = page(entries)
    links = "".join(f"\n- [{_plain(entry.title)}]({quote(entry.name)}.ipynb)" for entry in entries)
    words = f"# The lessons, in order\n{links}\n\nRun the cell below to see what is solved and what is left."
    output = {"output_type": "execute_result", "execution_count": 1, "metadata": {},
              "data": {"text/html": shown.data, "text/plain": shown.text}}
    cells = [{"cell_type": "markdown", "id": "lessons", "metadata": {}, "source": words},
             {"cell_type": "code", "id": "progress", "metadata": {}, "execution_count": 1, "outputs": [output],
              "source": live}]
    metadata = {  # with what a kernel would add, so that opening it changes nothing
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py",
                          "mimetype": "text/x-python", "name": "python", "nbconvert_exporter": "python",
                          "pygments_lexer": "ipython3", "version": platform.python_version()}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def sources(content: dict) -> str:
    """Return what a notebook's cells say, without their outputs."""
    return "\n\n".join("".join(cell["source"]) for cell in content["cells"])


def _state(entry) -> str:
    if not entry.questions:
        return "no questions"
    return f"{entry.solved} of {entry.questions}" + (" ✓" if entry.finished else "")


def _plain(title: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\[]<>*_`" else sign for sign in title)
