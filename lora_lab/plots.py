"""Pictures of the lessons: a loss curve that draws itself, score bars, tables side by side.

Draws what it is given and computes nothing. Figures are transparent, so that they read on a light
and on a dark page, and carry a text for those who cannot see them.
"""

import base64
import html
import io
import time
from typing import Any

import numpy as np
from IPython.display import HTML, display
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import TrainerCallback

from .display import bar, in_notebook

# Readable on white and on black, colour-blind-safe.
GREY, BLUE, ORANGE, GREEN, PINK = "#7a7a7a", "#2a86d1", "#d9822b", "#1f9e77", "#c06ba0"
_DIVERGING = LinearSegmentedColormap.from_list("", [BLUE, "#f4f4f4", ORANGE])
_PARTS = ((GREY, ""), (GREY, "////"), (ORANGE, ""), (PINK, ""), (GREEN, ""), (BLUE, ""), (BLUE, "////"))


def _axes(width: float, height: float, **labels):
    figure = Figure(figsize=(width, height), dpi=110, layout="tight")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot(**labels)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(GREY)
    axes.tick_params(colors=GREY)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    if labels.get("xscale") == "log":
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


class Picture:
    """A drawn figure as PNG bytes, with a text for those who cannot see it.

    JupyterLab shows no text for a bare image/png, so the picture also comes as an HTML element.
    """

    def __init__(self, figure: Figure, alt: str):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        self.png, self.alt = buffer.getvalue(), alt

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        data = base64.b64encode(self.png).decode()
        element = f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'
        return {"text/html": element, "image/png": data, "text/plain": self.alt}


class LiveLoss(TrainerCallback):
    """A Trainer callback: progress bar, time left, and the loss curve as it grows.

    Needs no widget, so the finished curve stays in the saved notebook. Outside a notebook it prints
    a line every tenth of the way.
    """

    def __init__(self, seconds_between_draws: float = 2.0):  # a drawing takes a tenth of a second
        self.seconds_between_draws = seconds_between_draws
        self.steps: list[int] = []
        self.losses: list[float] = []

    def on_train_begin(self, args, state, control, **_):
        self.steps, self.losses = [], []
        self.started = self.drawn = time.monotonic()
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
        elif time.monotonic() - self.drawn > self.seconds_between_draws:
            self._draw(state)

    def on_train_end(self, args, state, control, **_):
        if self.in_notebook and state.is_world_process_zero:
            self._draw(state)

    def figure(self) -> Picture:
        """The curve so far: each logged loss, and their running mean."""
        figure, axes = _axes(6, 2.6, xlabel="step", ylabel="loss (nats per answer token)")
        alt = "Training loss by step: nothing logged yet."
        if self.losses:
            axes.plot(self.steps, self.losses, color=BLUE, alpha=0.35, linewidth=1)
            axes.plot(self.steps, _running_mean(self.losses), color=BLUE, linewidth=2)
            axes.set_yscale("log")
            last = _running_mean(self.losses)[-1]
            alt = f"Training loss by step: {self.losses[0]:.2g} at first, {last:.2g} at step {self.steps[-1]}."
        return Picture(figure, alt)

    def _draw(self, state):
        self.bar.update(self._progress(state))
        self.plot.update(self.figure())
        self.drawn = time.monotonic()

    def _line(self, state) -> str:
        done, total, elapsed = state.global_step, state.max_steps, time.monotonic() - self.started
        loss = f", loss {self.losses[-1]:.3f}" if self.losses else ""
        left = f", {elapsed / done * (total - done):.0f} s left" if 0 < done < total else ""
        return f"step {done} of {total}, {elapsed:.0f} s{left}{loss}"

    def _progress(self, state) -> HTML:
        return bar("training", state.global_step, state.max_steps, self._line(state))


def _running_mean(values: list[float], decay: float = 0.8) -> list[float]:
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        means.append(total / weight)
    return means


def score_bars(scores: dict[str, dict]) -> Picture:
    """Draw exact match as bars with 95 % intervals: `{"before": {"combinations": Score, ...}, ...}`."""
    groups = list(next(iter(scores.values())))
    figure, axes = _axes(6, 0.55 * len(groups) * len(scores) + 0.9, xlabel="exact match on held-out commands (%)")
    parts = []
    for row, (group, (stage, color)) in enumerate(
        (group, pair) for group in groups for pair in zip(scores, (GREY, BLUE, ORANGE))
    ):
        score = scores[stage][group]
        low, high = score.interval
        axes.barh(row, 100 * score.exact, color=color, height=0.7)
        axes.plot([100 * low, 100 * high], [row, row], color=ORANGE, linewidth=2)
        parts.append(f"{group} {stage} {score.exact:.1%}")
    axes.set_yticks(range(len(parts)), [f"{group}, {stage}" for group in groups for stage in scores])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    return Picture(figure, "Exact match with intervals: " + "; ".join(parts) + ".")


def lines(series: dict[str, tuple], xlabel: str, ylabel: str, mark: float | None = None, **scales) -> Picture:
    """Draw curves `{name: (xs, ys)}` in one figure; `scales` such as `xscale="log"`, and `mark` an upright line."""
    figure, axes = _axes(6.4, 3, xlabel=xlabel, ylabel=ylabel, **scales)
    parts = []
    styles = zip((BLUE, ORANGE, GREY, GREEN, PINK), ("-", "-", "--", "-.", ":"), (5, 2, 2, 2, 2))
    for (name, (xs, ys)), (color, dash, width) in zip(series.items(), styles):  # equal curves: the first shows around
        axes.plot(xs, ys, color=color, linestyle=dash, linewidth=width, label=name)
        parts.append(f"{name} from {ys[0]:.3g} at {xs[0]:g} to {ys[-1]:.3g} at {xs[-1]:g}")
    if mark is not None:
        axes.axvline(mark, color=GREY, linewidth=1)
    axes.legend(frameon=False, labelcolor=GREY)
    return Picture(figure, f"{ylabel} by {xlabel}: " + "; ".join(parts) + ".")


def matrices(named: dict[str, Any]) -> Picture:
    """Draw matrices side by side as images on one colour scale: blue below zero, orange above."""
    figure = Figure(figsize=(7, 2.6), dpi=110, layout="tight")
    figure.patch.set_alpha(0)
    limit = 3 * float(next(iter(named.values())).std())
    for place, (name, matrix) in enumerate(named.items(), 1):
        axes = figure.add_subplot(1, len(named), place)
        axes.imshow(np.asarray(matrix), cmap=_DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(name, color=GREY, fontsize=9)
        axes.set_axis_off()
    return Picture(figure, "Matrices drawn as images: " + "; ".join(named) + ".")


def heat(values: list[list], xs: list, ys: list, xlabel: str, ylabel: str, name: str) -> Picture:
    """Draw positive `values[y][x]` as a map on a logarithmic scale, with their numbers; NaN is a cross, None empty."""
    figure, axes = _axes(0.6 * len(xs) + 1.6, 0.4 * len(ys) + 0.9, xlabel=xlabel, ylabel=ylabel)
    grid = np.array(values, dtype=float)
    shades = np.log(np.where(grid > 0, grid, np.nan))
    axes.imshow(shades, cmap=_DIVERGING, aspect="auto", interpolation="nearest")
    for y, x in np.ndindex(grid.shape):
        value = values[y][x]
        text = "" if value is None else f"{value:.2g}" if np.isfinite(value) else "✕"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=GREY if text == "✕" else "#202020")
    axes.set_xticks(range(len(xs)), [_short(x) for x in xs], fontsize=7)
    axes.set_yticks(range(len(ys)), [_short(y) for y in ys])
    axes.spines[:].set_visible(False)
    best = [f"{ylabel} {_short(ys[y])}: {xlabel} {_short(xs[np.nanargmin(grid[y])])}"
            for y in range(len(ys)) if np.isfinite(grid[y]).any()]
    return Picture(figure, f"{name} by {xlabel} and {ylabel}; smallest at " + "; ".join(best) + ".")


def _short(value) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def memory(parts_of: dict[str, dict[str, int]], limit_gb: float | None = None) -> Picture:
    """Draw stacked bars of `Plan.parts()` (or measured ones) under their names, in GB; `limit_gb` is a line."""
    names = list(dict.fromkeys(name for parts in parts_of.values() for name in parts))
    figure, axes = _axes(7, 0.42 * len(parts_of) + 1.3, xlabel="GB (10⁹ bytes)")
    starts = [0.0] * len(parts_of)
    for name, (color, hatch) in zip(names, _PARTS):
        sizes = [parts.get(name, 0) / 1e9 for parts in parts_of.values()]
        axes.barh(range(len(sizes)), sizes, left=starts, height=0.7, color=color, hatch=hatch, edgecolor="#ffffff80",
                  linewidth=0, label=name.removesuffix("_bytes"))
        starts = [start + size for start, size in zip(starts, sizes)]
    if limit_gb is not None:
        axes.axvline(limit_gb, color=ORANGE, linestyle="--", linewidth=1.5)
        axes.set_xlim(0, 1.05 * max(limit_gb, *starts))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set_yticks(range(len(parts_of)), parts_of)
    axes.set_ylim(len(starts) - 0.5, -0.7)
    figure.legend(frameon=False, labelcolor=GREY, ncols=7, fontsize=7, loc="upper left", columnspacing=1)
    most = {label: max(parts, key=parts.__getitem__).removesuffix("_bytes") for label, parts in parts_of.items()}
    said = [f"{label} {sum(parts_of[label].values()) / 1e9:.2f} GB, most of it {part}" for label, part in most.items()]
    line = "" if limit_gb is None else f" A line marks {limit_gb:g} GB."
    return Picture(figure, "Memory by part: " + "; ".join(said) + "." + line)
