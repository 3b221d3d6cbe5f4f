"""A progress bar for notebooks that needs no widget and leaves nothing behind.

`tqdm` draws a widget in a notebook, and a saved notebook cannot show widgets.
"""

from __future__ import annotations

import html
import time

from IPython import get_ipython
from IPython.display import HTML, display


def in_notebook() -> bool:
    return getattr(get_ipython(), "kernel", None) is not None


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
        self.done += more
        if self.handle:
            self.handle.update(self._bar())

    def __exit__(self, *_):
        if self.handle:
            self.handle.update(HTML(""))

    def _bar(self) -> HTML:
        elapsed = time.monotonic() - self.started
        left = f", {elapsed / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        return bar(self.label, self.done, self.total, f"{self.done} of {self.total}{left}")


def bar(label: str, done: int, total: int, text: str) -> HTML:
    """The browser's own progress element, with its text beside it."""
    label, text = html.escape(label), html.escape(text)
    style = "width:20em;vertical-align:middle"
    element = f'<progress aria-label="{label}" style="{style}" value="{done}" max="{total}"></progress>'
    return HTML(f"{element} {label}: {text}")
