"""Curves, dots and bars: how a training went, and what it scored."""

import math
import statistics
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from transformers import TrainerCallback

from ..display import Page, bar, display, in_notebook
from .figures import (
    AFTER,
    BEFORE,
    BLUE,
    BROKEN,
    DASHES,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PINK,
    SERIES,
    SOFT,
    WIDTH,
    Picture,
    dress,
    label_ends,
    new_axes,
    said,
)


class LiveLoss(TrainerCallback):
    """A Trainer callback: progress bar, time left, and the loss curve as it grows.

    Needs no widget, so the finished curve stays in the saved notebook. Outside a notebook it prints
    a line every tenth of the way.
    """

    def __init__(self, seconds_between_draws: float = 2.0):
        self.seconds_between_draws = seconds_between_draws
        self.steps: list[int] = []
        self.losses: list[float] = []

    def on_train_begin(self, args, state, control, **_):
        self.steps, self.losses = [], []
        self.started = self.told = time.monotonic()
        self.due = self.started + self.seconds_between_draws
        self.in_notebook = in_notebook()
        if self.in_notebook and state.is_world_process_zero:
            self.bar = display(self._progress(state), display_id=True)
            self.plot = display(self.figure(), display_id=True)

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in (logs or {}):
            self.steps.append(state.global_step)
            self.losses.append(logs["loss"])

    def on_step_end(self, args, state, control, **_):
        if not state.is_world_process_zero:
            return
        if not self.in_notebook:
            if state.global_step % max(1, state.max_steps // 10) == 0:
                print(self._line(state))
        elif (now := time.monotonic()) > self.due:
            self._draw(state)
        elif now > self.told + 1:
            self.bar.update(self._progress(state))
            self.told = now

    def on_train_end(self, args, state, control, **_):
        if self.in_notebook and state.is_world_process_zero:
            self._draw(state)

    def figure(self) -> Picture:
        """Draw the curve so far: each logged loss, pale, and their smoothed course on the scale that is drawn."""
        figure, axes = new_axes(2.8, "Training loss (thin: each batch, thick: smoothed)", xlabel="step",
                                ylabel="nats per answer token", yscale="log")
        drawn = [(step, loss) for step, loss in zip(self.steps, self.losses) if 0 < loss < math.inf]
        if not drawn:
            axes.set_ylim(0.01, 10)
            return Picture(figure, "Training loss by step: nothing logged yet.")
        steps, losses = zip(*drawn)
        smooth = smoothed(losses)
        axes.plot(steps, losses, color=BLUE, alpha=0.4, linewidth=1)
        axes.plot(steps, smooth, color=BLUE, linewidth=2)
        axes.plot(steps[-1:], smooth[-1:], "o", color=BLUE, markersize=5)
        label_ends(figure, axes, [(steps[-1], smooth[-1], f"{smooth[-1]:.2g}", BLUE)])
        lost = len(self.losses) - len(losses)
        more = f" {lost} of the losses are no positive number and are not drawn." * (lost > 0)
        lowest = losses.index(min(losses))
        return Picture(figure, f"Training loss by step, on a logarithmic axis: {losses[0]:.2g} at step {steps[0]}, "
                               f"lowest {losses[lowest]:.2g} at step {steps[lowest]}, {losses[-1]:.2g} in the last "
                               f"batch, step {steps[-1]}; smoothed, it ends at {smooth[-1]:.2g}.{more}")

    def _draw(self, state):
        started = time.monotonic()
        self.bar.update(self._progress(state))
        self.plot.update(self.figure())
        self.told = time.monotonic()
        # A drawing takes a tenth of a second or more, and the training waits for it: it gets a forty-fifth of the time.
        self.due = self.told + max(self.seconds_between_draws, 45 * (self.told - started))

    def _line(self, state) -> str:
        done, total, elapsed = state.global_step, state.max_steps, time.monotonic() - self.started
        loss = f", loss {self.losses[-1]:.3f}" if self.losses else ""
        left = f", {elapsed / done * (total - done):.0f} s left" if 0 < done < total else ""
        return f"step {done} of {total}, {elapsed:.0f} s{left}{loss}"

    def _progress(self, state) -> Page:
        return bar("training", state.global_step, state.max_steps, self._line(state))


def smoothed(values: Sequence[float], decay: float = 0.8) -> list[float]:
    """Return the running geometric mean of positive `values`: the mean that a logarithmic axis shows as one."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + math.log(value), decay * weight + 1
        means.append(math.exp(total / weight))
    return means


def score_bars(scores: Mapping[str, Any], title: str | None = "Exact answers, with 95 % intervals",
               of: str = "commands") -> Picture:
    """Draw exact match as bars with 95 % intervals: `{"r 8": Score, ...}` or `{"before": {"r 8": Score, ...}, ...}`.

    `of` is the word for what was held out.
    """
    plain = not isinstance(next(iter(scores.values())), Mapping)
    stages: Mapping[str, Mapping] = {"": scores} if plain else scores
    groups = list(next(iter(stages.values())))
    colours = (AFTER,) if plain else (BEFORE, AFTER, BROKEN)
    rows = [(group, stage, colour) for group in groups for stage, colour in zip(stages, colours)]
    figure, axes = new_axes(0.4 * len(rows) + 1.1, title, xlabel=f"exact match on held-out {of} (%)")
    parts = []
    for row, (group, stage, colour) in enumerate(rows):
        score = stages[stage][group]
        low, high = (100 * bound for bound in score.interval)
        axes.barh(row, 100 * score.exact, color=colour, height=0.6)
        axes.errorbar((low + high) / 2, row, xerr=(high - low) / 2, color=INK, linewidth=1.5, capsize=3)
        axes.text(high + 1.5, row, f"{score.exact:.0%}", color=INK, fontsize=9, va="center")
        parts.append(" ".join(filter(None, (group, stage, f"{score.exact:.1%}"))))
    axes.set_yticks(range(len(rows)), [", ".join(filter(None, (group, stage))) for group, stage, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    return Picture(figure, "Exact match with intervals: " + "; ".join(parts) + ".")


def lines(series: dict[str, tuple], xlabel: str, ylabel: str, mark: float | None = None, title: str | None = None,
          seeds: Mapping[str, tuple] | None = None, **scales) -> Picture:
    """Draw curves `{name: (xs, ys)}`, named at its end; `scales` such as `xscale="log"`, `mark` an upright line.

    `seeds` are dots beside a curve, in its colour, one for each seed: `{name: (xs, ys)}`.
    """
    figure, axes = new_axes(3.1, title, xlabel=xlabel, ylabel=ylabel, **scales)
    parts, ends = [], []
    for place, (name, (xs, ys)) in enumerate(series.items()):
        colour, dash = SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]
        axes.plot(xs, ys, color=colour, linestyle=dash, linewidth=2, marker="o" if len(xs) < 3 else None)
        if seeds and name in seeds:
            axes.plot(*seeds[name], "o", color=colour, alpha=0.55, markersize=4)
        last = max((at for at, y in enumerate(ys) if math.isfinite(y)), default=None)
        if last is not None:
            ends.append((xs[last], ys[last], name, colour))
        parts.append(f"{name} from {ys[0]:.3g} at {xs[0]:g} to {ys[-1]:.3g} at {xs[-1]:g}")
    if mark is not None:
        axes.axvline(mark, color=GREY, linewidth=1)
    label_ends(figure, axes, ends)
    return Picture(figure, f"{said(title)}{ylabel} by {xlabel}: " + "; ".join(parts) + ".")


def dots(values: Mapping[str, Sequence[float]], xlabel: str, title: str | None = None, form: str = "{:.2f}",
         each: str = "seed", middle: str = "mean", **scales) -> Picture:
    """Draw a value of each seed as a dot in a row of its choice, and their mean as a bar: `{choice: [one a seed]}`.

    `each` is the word for what a dot stands for, `middle` what the bar is: "mean" or "median".
    """
    figure, axes = new_axes(0.42 * len(values) + 1.2, title, xlabel=xlabel, **scales)
    parts = []
    for row, (name, found) in enumerate(values.items()):
        centre = {"mean": statistics.mean, "median": statistics.median}[middle](found)
        axes.plot(found, [row] * len(found), "o", color=BLUE, alpha=0.75 if len(found) < 10 else 0.35, markersize=6,
                  clip_on=False)
        axes.plot([centre, centre], [row - 0.28, row + 0.28], color=INK, linewidth=2)
        axes.annotate(f"{middle} {form.format(centre)}", (1.02, row), xycoords=axes.get_yaxis_transform(), color=INK,
                      fontsize=9, va="center", annotation_clip=False)
        told = ", ".join(map(form.format, found)) if len(found) < 10 else \
            f"{form.format(min(found))} to {form.format(max(found))}"
        parts.append(f"{name} {told}, {middle} {form.format(centre)}")
    axes.set_yticks(range(len(values)), values)
    axes.tick_params(axis="y", colors=INK)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="x", color=SOFT, alpha=0.2)
    return Picture(figure, f"{said(title)}{xlabel}, a dot a {each}: " + "; ".join(parts) + ".")


def shares(values: Mapping[str, Mapping[str, float]], title: str | None = None) -> Picture:
    """Draw shares as bars, a panel for each measure and a row for each thing: `{"bf16": {"moved": 0.7}, ...}`."""
    panels = list(next(iter(values.values())))
    figure = Figure(figsize=(WIDTH, 0.34 * len(values) + 1.1), dpi=110, layout="constrained", facecolor=PAPER)
    if title:
        figure.suptitle("\n".join(textwrap.wrap(title, 72)), x=0.01, ha="left", fontsize=10.5, color=INK, weight="bold")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel, colour in zip(every, panels, (BLUE, ORANGE, GREEN, PINK)):
        dress(axes)
        found = [100 * row[panel] for row in values.values()]
        most = max(100.0, *found)
        axes.barh(range(len(found)), found, color=colour, height=0.6)
        for row, share in enumerate(found):
            inside = share > 0.6 * most
            axes.text(share + (-0.02 if inside else 0.02) * most, row, f"{share:.3g} %", fontsize=8.5, va="center",
                      ha="right" if inside else "left", color=PAPER if inside else INK)
        axes.set(xlim=(0, 1.05 * most), xticks=(), ylim=(len(found) - 0.5, -0.5))
        axes.set_title(textwrap.fill(panel, 26), loc="left", fontsize=9, color=INK)
        axes.set_yticks(range(len(values)), values)
        axes.tick_params(axis="y", colors=INK)
    parts = [f"{name}: " + ", ".join(f"{panel} {share:.1%}" for panel, share in row.items())
             for name, row in values.items()]
    return Picture(figure, said(title) + "; ".join(parts) + ".")
