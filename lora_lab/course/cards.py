"""A question on the page: live with its control, buttons and feedback, or as static text; nothing is judged here."""

import asyncio
import functools
import html
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import ipywidgets
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from ..display import table
from . import progress_file
from .controls import control, guard
from .question_kinds import Choice, Code, Match, Multiple, Order, Predict, Question, Verdict, escape

_STYLE = f"<style>{Path(__file__).with_name('cards.css').read_text(encoding='utf-8')}</style>"

_NAMES = {"Choice": "choose one", "Multiple": "tick all that apply", "Number": "a number", "Match": "match",
          "Order": "put in order", "Predict": "predict, then run", "Code": "exercise"}


@dataclass
class Static:
    """The question as a page without a kernel shows it; a live card hides it."""
    question: Question
    verdict: Verdict | None = None

    def __repr__(self) -> str:
        lines = [f"Question {self.question.id}: {self.question.ask.strip()}"]
        lines += [f"- {choice}" for choice in self.question.lines]
        if self.verdict:
            lines.append(f"{'Right.' if self.verdict.solved else 'Not yet.'} {self.verdict.text}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        name = html.escape(self.question.id)
        choices = "".join(f"<li>{html.escape(line)}</li>" for line in self.question.lines)
        said = says(self.verdict) if self.verdict else ""
        answer = "Run this cell to answer."
        if isinstance(self.question, Code):
            answer = "Change the code above and run the cell: it is checked each time."
        return (
            f'{_STYLE}<div class="lora-lab-quiz lora-lab-static" data-question="{name}">'
            f"{_ask(self.question)}<ul>{choices}</ul>{said}"
            f'<p class="lora-lab-note">{answer}</p></div>'
        )


class Card:
    """A question on the page, with its control, buttons and feedback."""

    def __init__(self, question: Question):
        self.question, self.control, self.records = question, control(question), read(question)
        commit = "Commit prediction" if isinstance(question, Predict) else "Check answer"
        self.check, self.hint, self.show = (
            ipywidgets.Button(description=text, layout=ipywidgets.Layout(width="auto"))
            for text in (commit, "Hint", "Show answer")
        )
        self.hints, self.feedback, self.answer = (ipywidgets.HTMLMath() for _ in range(3))
        answers = not isinstance(question, Code)  # an exercise is answered in its cell
        buttons = [self.check] * answers + [self.hint] + [self.show] * (not isinstance(question, Predict))
        self.box = guard(
            [ipywidgets.HTMLMath(_STYLE + _hidden() + _ask(question)), *self.control.widgets,
             ipywidgets.HBox(buttons), self.hints, self.feedback, self.answer],
            label=f"Question {question.id}", checked=self._check_held if answers else None,
        )
        self.box.add_class("lora-lab-quiz")
        for button, act in ((self.check, lambda: _soon(self._check)), (self.hint, self._hint), (self.show, self._show)):
            button.on_click(lambda _, act=act: act())
        self.restore(self.records)

    def restore(self, kept: progress_file.Record, announce: bool = False) -> None:
        """Show the state that was saved."""
        self.records = kept
        self.control.set(kept.answer)
        self._draw_hints(announce=False)
        notes = [take_notices()]
        if isinstance(self.question, Predict):
            if kept.answer is not None:
                self._lock()
                notes.append(outcome(self.question, kept, announce))
        elif kept.solved:
            notes.append(says(Verdict(True, _times(kept.attempts)), word="✓ Solved."))
            self._draw_answer()
        elif kept.attempts:
            notes.append(says(Verdict(None, _times(kept.attempts)), word="Not solved yet."))
        self.feedback.value = "".join(notes)
        self._allow_answer()

    def judge(self, verdict: Verdict, announce: bool = False) -> None:
        """Show a verdict that is already recorded."""
        later = self.records.solved and not verdict.solved  # a try that does not count
        attempt = 0 if later else self.records.attempts
        self.feedback.value = take_notices() + says(verdict, announce, attempt)
        if verdict.solved:
            self._draw_answer()
        self._allow_answer()

    def _check_held(self, held: list) -> None:
        self.control.set_held(held)
        self._check()

    def _check(self) -> None:
        answer = self.control.get()
        if answer is None:
            self.judge(Verdict(None, self.control.wanted), announce=True)
        elif isinstance(self.question, Predict):
            self.restore(keep(self.question, answer=answer), announce=True)  # an earlier one, elsewhere, stays
        else:
            verdict = self.question.grade(answer)
            self.records = keep(self.question, verdict, answer=answer)
            self.judge(verdict, announce=True)

    def _hint(self) -> None:
        self.records = keep(self.question, hints=self.records.hints + 1)
        self._draw_hints(announce=True)

    def _show(self) -> None:
        self.records = keep(self.question, shown=self.records.shown or not self.records.solved)
        self._draw_answer(announce=True)

    def _lock(self) -> None:
        self.control.lock()
        self.check.disabled = True

    def _draw_hints(self, announce: bool) -> None:
        """All hints that were asked for; only the newest is announced."""
        hints = hint_texts(self.question)
        shown = min(self.records.hints, len(hints))
        alert = ['role="alert"' if announce and n == shown else "" for n in range(1, shown + 1)]
        self.hints.value = "".join(f'<div class="lora-lab-says" {a}>{part}</div>' for a, part in zip(alert, hints))
        self.hint.description = f"Hint {shown + 1} of {len(hints)}" if shown < len(hints) else "No more hints"
        self.hint.disabled = shown == len(hints)

    def _draw_answer(self, announce: bool = False) -> None:
        alert = ' role="alert"' if announce else ""
        self.answer.value = f'<div class="lora-lab-says"{alert}>{answer_text(self.question)}</div>'
        self._allow_answer()

    def _allow_answer(self) -> None:
        """Only after an attempt, and once."""
        self.show.disabled = not self.records.attempts or bool(self.answer.value)
        self.show.tooltip = "" if self.records.attempts else "after an attempt"


def _soon(act) -> None:
    """Call `act` in a moment: a click can overtake the choice made just before it, on its way to the kernel.

    Only for pages where `guard` cannot send the choice along with the click.
    """
    try:
        asyncio.get_running_loop().call_later(0.15, act)
    except RuntimeError:  # no kernel, no overtaking
        act()


def _hidden() -> str:
    """Hides the static text beside a live card: on Colab a cell's outputs are a page of their own."""
    beside = "" if "google.colab" in sys.modules else ".jp-OutputArea:has(.lora-lab-guard) "
    return f"<style>{beside}.lora-lab-static {{display: none}}</style>"


def _ask(question: Question) -> str:
    kind = f"{question.id} · {_NAMES[type(question).__name__]}"
    return (f'<p class="lora-lab-note">{html.escape(kind)}</p>'
            f'<div class="lora-lab-ask">{markdown(question.ask)}</div>')


def hint_texts(question: Question) -> list[str]:
    """Return the hints as HTML; the first says where to look, but for an exercise, which is where it is."""
    count, proof = len(question.hints), question.proof
    texts = [f"<b>Hint {n} of {count}.</b> {markdown(hint)}" for n, hint in enumerate(question.hints, 1)]
    if not isinstance(question, Code):
        texts[0] += f"<p>It is about section <b>{html.escape(proof.section)}</b>.</p>"
    return texts


def answer_text(question: Question) -> str:
    """Return the full answer as HTML, with the cell that shows it."""
    proof = question.proof
    where = (f"<p>See it in {html.escape(proof.lesson or 'this lesson')}: section "
             f"<b>{html.escape(proof.section)}</b>, the cell with <code>{html.escape(proof.cell)}</code>.</p>")
    lines = []
    if isinstance(question, (Choice, Multiple)):
        lines = [f"- **{escape(option.text)}**" for option in question.option if option.right]
    elif isinstance(question, Order):
        lines = [f"{place}. {escape(item.text)}" for place, item in enumerate(question.item, 1)]
    elif isinstance(question, Match):
        lines = [f"- {escape(pair.item)}: **{escape(pair.choice)}**" for pair in question.pair]
    text = "\n".join([*lines, "", question.answer])
    return f"<b>Answer.</b> {markdown(text)}{where}"


def says(verdict: Verdict, announce: bool = False, attempt: int = 0, word: str = "") -> str:
    """Return a verdict as HTML; `announce` makes screen readers read it out when it appears."""
    kind, usual = {True: ("right", "✓ Right."), False: ("wrong", "✗ Not yet."), None: ("", "")}[verdict.solved]
    count = f" (attempt {attempt})" if verdict.solved is not None and attempt else ""
    text = plain(verdict.text) if verdict.plain else markdown(verdict.text)
    alert = ' role="alert"' if announce else ""
    return f'<div class="lora-lab-says {kind}"{alert}><b>{word or usual}</b>{count}{text}</div>'


def _times(attempts: int) -> str:
    return f"{attempts} attempt{'s' * (attempts != 1)} so far."


def outcome(question: Predict, kept: progress_file.Record, announce: bool = False) -> str:
    """Return a prediction and what was measured, side by side, as far as there are any."""
    band = question.band[kept.answer] if isinstance(kept.answer, int) else None
    if kept.measured is None:
        chosen = escape(band.text) if band else "nothing"
        return says(Verdict(None, f"Committed: **{chosen}**. Now run the experiment."), announce)
    predicted = band.text if band else "nothing: no prediction was committed"
    both = table([{"you predicted": predicted, "measured": question.format.format(kept.measured)}]).data
    if band is None:
        return both
    if question.right(kept.measured) == kept.answer:
        return both + says(Verdict(True, ""), word="✓ As you predicted.")
    return both + says(Verdict(False, band.says), word="Otherwise than you predicted.")


def read(question: Question) -> progress_file.Record:
    """Return what is kept of a question, without an answer that its control could not hold."""
    kept = progress_file.read().get(question.id, progress_file.Record())
    return kept if question.holds(kept.answer) else replace(kept, answer=None, measured=None)


def keep(question: Question, verdict: Verdict | None = None, **fields) -> progress_file.Record:
    """Record the given fields, and a verdict as an attempt where it decides anything.

    What solved a question stays, and so does a prediction; no hint and no look at the answer is forgotten.
    """
    def update(kept: progress_file.Record) -> progress_file.Record:
        final = kept.solved or (isinstance(question, Predict) and question.holds(kept.answer))
        more = {name: max(value, getattr(kept, name)) if name in ("hints", "shown", "solved") else value
                for name, value in fields.items() if name != "answer" or not final}
        kept = replace(kept, **more)
        if verdict is None or verdict.solved is None or kept.solved:
            return kept
        return replace(kept, attempts=kept.attempts + 1, solved=verdict.solved)

    return progress_file.change(question.id, update)


def take_notices() -> str:
    """Return what the progress file had to report since the last time, as HTML."""
    taken = [says(Verdict(None, notice, plain=True)) for notice in progress_file.notices]
    progress_file.notices.clear()
    return "".join(taken)


_DOLLAR = '<span class="mathjax_ignore">$</span>'  # one that is money or a shell's, not math


@functools.cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")  # a tag in the text is shown, not obeyed
    parser.use(dollarmath_plugin, renderer=_math, allow_space=False, double_inline=True)
    parser.add_render_rule("text", lambda self, tokens, i, *_: html.escape(tokens[i].content).replace("$", _DOLLAR))
    return parser


def _math(content: str, options: dict) -> str:
    """In the marks that the notebook's own typesetting looks for."""
    return html.escape(rf"\[{content}\]" if options["display_mode"] else rf"\({content}\)")


def markdown(text: str) -> str:
    """Return Markdown with math as HTML that is safe to show."""
    return _markdown().render(text)


def plain(text: str) -> str:
    """Return plain text as HTML, line breaks included."""
    return f'<p class="mathjax_ignore" style="white-space:pre-wrap">{html.escape(text)}</p>'
