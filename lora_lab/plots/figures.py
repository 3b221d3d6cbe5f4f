"""What all pictures share: the paper, the colours by thing, the axes, and how a picture shows itself."""

import base64
import html
import io
import textwrap
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

# On white paper: text at 4.5:1 and more, lines and areas at 3:1 and more. Told apart by the colour-blind, too.
PAPER, INK, SOFT = "#ffffff", "#222222", "#5c5c5c"
GREY, BLUE, ORANGE, GREEN, PINK, GOLD = "#808080", "#1f77c4", "#bd560b", "#12805c", "#b0468c", "#8a6d00"
# A thing has one colour in the whole course.
FROZEN, A, B, UPDATE = GREY, BLUE, ORANGE, GREEN
BEFORE, AFTER, BROKEN = GREY, BLUE, ORANGE
SERIES = (BLUE, ORANGE, GREEN, PINK, GOLD, GREY)
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2)))
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
WIDTH = 6.4  # inches; its text is still read on a phone
# A dark page shows the same picture turned: paper black, colours of the same hue.
_DARK = ('<style>[data-jp-theme-light="false"] img.lora-lab-picture{filter:invert(1) hue-rotate(180deg)}'
         "img.lora-lab-picture{max-width:100%;height:auto}</style>")


class Picture:
    """A drawn figure as PNG bytes, with a text for those who cannot see it.

    JupyterLab shows no text for a bare image/png, so the picture also comes as an HTML element.
    """

    def __init__(self, figure: Figure, alt: str):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor=PAPER)
        self.png, self.alt = buffer.getvalue(), alt

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        data = base64.b64encode(self.png).decode()
        element = f'<img class="lora-lab-picture" alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'
        return {"text/html": _DARK + element, "image/png": data, "text/plain": self.alt}


def new_axes(height: float, title: str | None = None, width: float = WIDTH, **labels) -> tuple[Figure, Axes]:
    """Return a figure of `width` by `height` inches and its axes; `labels` are what matplotlib's axes take."""
    figure = Figure(figsize=(width, height), dpi=110, layout="tight", facecolor=PAPER)
    axes = figure.add_subplot(**labels)
    dress(axes, title)
    for axis, scale in ((axes.xaxis, labels.get("xscale")), (axes.yaxis, labels.get("yscale"))):
        if scale == "log":
            plain_numbers(axis)
    if labels.get("xscale") != "log":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


class _Plain(LogFormatter):
    def _num_to_string(self, x, *ends):
        factor, _, power = f"{x:g}".partition("e")
        raised = str(int(power or 0)).translate(_RAISED)
        return factor if not power else f"10{raised}" if factor == "1" else f"{factor}·10{raised}"


def plain_numbers(axis) -> None:
    """Write a logarithmic axis' numbers as 0.01, 0.1, 1 and, where there are few of them, those between."""
    formatter = _Plain(minor_thresholds=(1.5, 0.7))
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(formatter)


def dress(axes: Axes, title: str | None = None) -> None:
    """Give axes the course's colours, and a title at the left."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(GREY)
    axes.tick_params(which="both", colors=SOFT, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=SOFT, fontsize=9)
    if title:
        axes.set_title("\n".join(textwrap.wrap(title, 72)), loc="left", fontsize=10.5, color=INK, weight="bold")


def said(title: str | None) -> str:
    """Return a title as the first sentence of a picture's text."""
    return f"{title}{'' if title.endswith(('.', '?', '!')) else '.'} " if title else ""


def label_ends(figure: Figure, axes: Axes, ends: Iterable[tuple[float, float, str, str]]) -> None:
    """Write labels `(x, y, text, colour)` beside the ends of curves, moved apart where they would overlap.

    Call it last: it asks where the axes' limits put the ends.
    """
    figure.draw_without_rendering()
    placed = sorted(((axes.transAxes.inverted().transform(axes.transData.transform((x, y))), text, colour)
                     for x, y, text, colour in ends), key=lambda end: end[0][1])
    gap = 13 / (axes.get_window_extent().height * 72 / figure.dpi)
    heights = spread([float(at[1]) for at, *_ in placed], gap)
    right = max((float(at[0]) for at, *_ in placed), default=0.0)  # of none, where no curve has a finite point
    for (at, text, colour), height in zip(placed, heights):
        axes.annotate(text, (at[0], at[1]), (right + 0.03, height), "axes fraction", "axes fraction", color=colour,
                      fontsize=9, va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 1})


def spread(values: list[float], gap: float) -> list[float]:
    """Return sorted `values` moved as little as it takes to leave `gap` between neighbours, around their middle."""
    groups: list[list[float]] = []  # each: the sum of its values, and how many
    for value in values:
        groups.append([value, 1])
        while len(groups) > 1 and _top(groups[-2], gap) > _bottom(groups[-1], gap):
            total, count = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += count
    return [_bottom(group, gap) + gap * (place + 0.5) for group in groups for place in range(int(group[1]))]


def _bottom(group: list[float], gap: float) -> float:
    return group[0] / group[1] - gap * group[1] / 2


def _top(group: list[float], gap: float) -> float:
    return group[0] / group[1] + gap * group[1] / 2
