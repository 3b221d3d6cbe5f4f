"""What a notebook shows without a widget and without the libraries that plots need: a table, a page, a progress bar."""

import contextlib
import html
import sys
import time
from collections.abc import Iterator
from typing import Any


class Page:
    """HTML with a text for places that show none, such as a plain Python program."""

    def __init__(self, data: str, text: str = ""):
        self.data, self.text = data, text

    def _repr_html_(self) -> str:
        return self.data

    def __repr__(self) -> str:
        return self.text


def display(shown: Any, **options: Any) -> Any:
    """Show something below the running cell; returns the handle that `display_id=True` asks for."""
    from IPython.display import display  # a notebook has it, an engineer's program need not

    return display(shown, **options)


def table(rows: list[dict]) -> Page:
    """Show rows (dicts with the same keys) as a table; cells are escaped."""
    def line(tag, cells):
        return "".join(f'<{tag} style="text-align:left">{html.escape(str(cell))}</{tag}>' for cell in cells)

    head = line("th", rows[0])
    body = "".join(f"<tr>{line('td', row.values())}</tr>" for row in rows)
    text = "\n".join(" | ".join(map(str, cells)) for cells in (rows[0], *(row.values() for row in rows)))
    return Page(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", text)


def tokens(pieces: list[str], counted: list[bool]) -> Page:
    """Show the tokens of a text one by one, those that are `counted` in colour; a plain program puts them in brackets.

    A new line is shown as ↵ and breaks the line, a space as ␣.
    """
    seen = [piece.replace("\n", "↵").replace(" ", "␣") for piece in pieces]
    style = "display:inline-block;margin:1px;padding:0 3px;border-radius:3px;font-family:monospace;"
    kinds = {True: "background:#1f77c4;color:#ffffff", False: "border:1px solid #808080"}
    spans = [f'<span style="{style}{kinds[bool(one)]}">{html.escape(shown)}</span>' + "<br>" * ("\n" in piece)
             for piece, shown, one in zip(pieces, seen, counted, strict=True)]
    text = "".join((f"[{shown}]" if one else shown) + "\n" * ("\n" in piece)
                   for piece, shown, one in zip(pieces, seen, counted))
    return Page(f'<div style="line-height:1.7">{"".join(spans)}</div>', text)


def in_notebook() -> bool:
    """Return whether a notebook's kernel runs this."""
    ipython = sys.modules.get("IPython")  # where a kernel runs this, it was imported
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class Progress:
    """`with Progress("scoring", total=200) as bar: bar.update(50)`. Silent without a label or a notebook."""

    def __init__(self, label: str | None, total: int):
        self.label, self.total, self.done = label, total, 0

    def __enter__(self):
        self.started = time.monotonic()
        shown = self.label is not None and in_notebook()
        self.handle = display(self._bar(), display_id=True) if shown else None
        return self

    def update(self, more: int) -> None:
        """Count `more` as done."""
        self.done += more
        if self.handle:
            self.handle.update(self._bar())

    def __exit__(self, *_):
        if self.handle:
            self.handle.update(Page(""))

    def _bar(self) -> Page:
        elapsed = time.monotonic() - self.started
        left = f", {elapsed / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        return bar(self.label or "", self.done, self.total, f"{self.done} of {self.total}{left}")


def bar(label: str, done: int, total: int, text: str) -> Page:
    """Return the browser's own progress element, with its text beside it."""
    style = "width:20em;vertical-align:middle"
    element = f'<progress aria-label="{html.escape(label)}" style="{style}" value="{done}" max="{total}"></progress>'
    return Page(f"{element} {html.escape(label)}: {html.escape(text)}", f"{label}: {text}")


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch transformers' own bars off inside the block, for steps of a second that would fill a page with them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
