"""What a learner answers with: a control for each kind of question, from ipywidgets' core alone."""

from __future__ import annotations

import html

import ipywidgets

from .kinds import Choice, Match, Multiple, Number, Order, Predict, Question


def control(question: Question) -> Control:
    makers = {Choice: Radios, Predict: Radios, Multiple: Ticks, Number: Writing, Match: Menus, Order: Menus}
    return makers.get(type(question), Control)(question)


class Control:
    """Of an exercise: none, since its answer is in the cell. The others say what they hold."""

    wanted = ""  # what to say where `get` gives None

    def __init__(self, question: Question):
        self.widgets: list[ipywidgets.Widget] = []

    def get(self):
        """The answer as the question's `grade` takes it; None if there is none yet."""

    def set(self, answer) -> None:
        """Show a saved answer."""

    def set_held(self, held: list) -> None:
        """What the page's controls hold: ticked or not, the place of a menu's line, or the text."""

    def lock(self) -> None:
        for widget in self.widgets:
            widget.disabled = True


class Radios(Control):
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
