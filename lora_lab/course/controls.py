"""What a learner answers with: a control for each kind of question, from ipywidgets' core alone."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets
from IPython.display import HTML, display

from .question_kinds import Choice, Match, Multiple, Number, Order, Predict, Question

try:
    import anywidget
except ImportError:
    anywidget = None  # type: ignore[assignment]

def control(question: Question) -> Control:
    """Return the control with which a question of its kind is answered."""
    makers = {Choice: Radios, Predict: Radios, Multiple: Ticks, Number: Writing, Match: Menus, Order: Menus}
    return makers.get(type(question), Control)(question)


class Control:
    """Of an exercise: none, since its answer is in the cell. The others say what they hold."""

    wanted = ""  # what to say where `get` gives None

    def __init__(self, question: Question):
        self.widgets: list[ipywidgets.Widget] = []

    def get(self) -> Any:
        """The answer as the question's `grade` takes it; None if there is none yet."""

    def set(self, answer: Any) -> None:
        """Show a saved answer."""

    def set_held(self, held: list) -> None:
        """What the page's controls hold: ticked or not, the place of a menu's line, or the text."""

    def lock(self) -> None:
        """Take no other answer."""
        for widget in self.widgets:
            widget.disabled = True


class Radios(Control):
    """One of several lines."""

    wanted = "Choose one first."

    def __init__(self, question: Choice | Predict):
        options = [(text, place) for place, text in enumerate(question.lines)]
        layout = ipywidgets.Layout(width="auto")
        self.radio = ipywidgets.RadioButtons(options=options, index=None, layout=layout)
        self.widgets = [self.radio]

    def get(self) -> int | None:
        return self.radio.index

    def set(self, answer: int | None) -> None:
        self.radio.index = answer

    def set_held(self, held: list[bool]) -> None:
        self.set(held.index(True) if True in held else None)


class Ticks(Control):
    """Any number of several lines."""

    wanted = "Tick at least one first."

    def __init__(self, question: Multiple):
        layout = ipywidgets.Layout(width="auto")
        self.widgets = [
            ipywidgets.Checkbox(value=False, description=_label(text), indent=False, layout=layout)
            for text in question.lines
        ]

    def get(self) -> list[int] | None:
        return [place for place, box in enumerate(self.widgets) if box.value] or None

    def set(self, answer: list[int] | None) -> None:
        for place, box in enumerate(self.widgets):
            box.value = place in (answer or [])

    def set_held(self, held: list[bool]) -> None:
        self.set([place for place, ticked in enumerate(held) if ticked])


class Writing(Control):
    """A number, in a box."""

    wanted = "Write a number first."

    def __init__(self, question: Number):
        self.box = ipywidgets.Text(
            description=_label(f"Answer ({question.unit})"), style={"description_width": "initial"},
            continuous_update=False,  # or a quick click would find half a number
            layout=ipywidgets.Layout(width="24em"),
        )
        self.widgets = [self.box]

    def get(self) -> str | None:
        return self.box.value.strip()[:100] or None

    def set(self, answer: str | None) -> None:
        self.box.value = answer or ""

    def set_held(self, held: list[str]) -> None:
        self.set(held[0])


class Menus(Control):
    """A menu for each item."""

    wanted = "Choose something for each of them first."

    def __init__(self, question: Match | Order):
        options = [("choose ...", -1), *((text, place) for place, text in enumerate(question.choices))]
        self.menus = [ipywidgets.Dropdown(options=options, description=_label(item)) for item in question.items]
        for menu in self.menus:
            menu.style.description_width, menu.layout.width = "initial", "auto"
        self.widgets = self.menus

    def get(self) -> list[int] | None:
        places = [menu.value for menu in self.menus]
        return None if -1 in places else places

    def set(self, answer: list[int] | None) -> None:
        for menu, place in zip(self.menus, answer or [-1] * len(self.menus), strict=True):
            menu.value = place

    def set_held(self, held: list[int]) -> None:
        self.set([place - 1 for place in held])  # the first line asks to choose


def _label(text: str) -> str:
    """ipywidgets 7 reads a description as HTML, 8 as plain text."""
    return html.escape(text) if ipywidgets.__version__.startswith("7.") else text


_VIEW = "application/vnd.jupyter.widget-view+json"


def guard(children: list, label: str, checked: Callable[[list], None] | None = None) -> ipywidgets.VBox:
    """Return the controls in a box that keeps their keys; `label` names the box to a screen reader.

    Where the page can, `checked(held)` is called instead of the first button, with what each control
    holds at that moment: whether it is ticked, the place of the chosen line, or the text.
    """
    box = ipywidgets.VBox([*children, *_mender(label, checked)])
    box.add_class("lora-lab-guard")
    return box


if anywidget:
    class Mender(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("controls.js").read_text(encoding="utf-8")
        label = traitlets.Unicode().tag(sync=True)
        sends = traitlets.Bool().tag(sync=True)


# A notebook reopened without its kernel has only an error to show where the widget was.
_HIDE_LOST = HTML(
    '<span class="lora-lab-widget"></span><style>.jp-OutputArea-child:has(.lora-lab-widget) + .jp-OutputArea-child '
    ".jp-OutputArea-output.jupyter-widgets:not(:has(*)) {display: none}</style>"
)


def show(box: ipywidgets.Widget) -> None:
    """Display a widget so that pages which cannot show it show nothing, not an error or its Python text."""
    display(_HIDE_LOST)
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display({_VIEW: view, "text/html": "", "text/plain": ""}, raw=True)


def _mender(label: str, checked) -> list:
    if anywidget is None or "google.colab" in sys.modules:
        return []
    mender = Mender(label=label, sends=checked is not None)
    mender.on_msg(lambda _, content, __: checked(content["held"]))
    # hidden with display, so that a page which cannot load it shows no error either
    return [ipywidgets.Box([mender], layout=ipywidgets.Layout(display="none"))]
