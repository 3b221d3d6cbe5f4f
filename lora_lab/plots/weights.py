"""Matrices as pictures: side by side as images, and values on a grid as a map."""

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .figures import BLUE, INK, ORANGE, PAPER, SOFT, WIDTH, Picture, new_axes

_DIVERGING = LinearSegmentedColormap.from_list("", [BLUE, "#f6f6f6", ORANGE])
_PALE = LinearSegmentedColormap.from_list("", ["#7db4e6", "#f6f6f6", "#ee9f62"])  # numbers are read on it


def matrices(named: dict[str, Any], title: str | None = None) -> Picture:
    """Draw matrices side by side as images on one colour scale: blue below zero, orange above."""
    figure = Figure(figsize=(WIDTH, 2.5 + 0.3 * bool(title)), dpi=110, layout="tight", facecolor=PAPER)
    if title:
        figure.suptitle(title, x=0.02, ha="left", fontsize=10.5, color=INK, weight="bold")
    limit = 3 * float(next(iter(named.values())).std())
    for place, (name, matrix) in enumerate(named.items(), 1):
        axes = figure.add_subplot(1, len(named), place)
        axes.imshow(np.asarray(matrix), cmap=_DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(name, color=INK, fontsize=9)
        axes.set_axis_off()
    return Picture(figure, "Matrices drawn as images: " + "; ".join(named) + ".")


def heat(values: list[list], xs: list, ys: list, xlabel: str, ylabel: str, name: str) -> Picture:
    """Draw positive `values[y][x]` as a map on a logarithmic scale, with their numbers; NaN is a cross, None empty."""
    figure, axes = new_axes(0.4 * len(ys) + 1.2, name, 0.6 * len(xs) + 1.6, xlabel=xlabel, ylabel=ylabel)
    grid = np.array(values, dtype=float)
    shades = np.log(np.where(grid > 0, grid, np.nan))
    axes.imshow(shades, cmap=_PALE, aspect="auto", interpolation="nearest")
    for y, x in np.ndindex(grid.shape):
        value = values[y][x]
        text = "" if value is None else f"{value:.2g}" if np.isfinite(value) else "✕"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=SOFT if text == "✕" else INK)
    axes.set_xticks(range(len(xs)), [_short(x) for x in xs], fontsize=7)
    axes.set_yticks(range(len(ys)), [_short(y) for y in ys])
    axes.spines[:].set_visible(False)
    best = [f"{ylabel} {_short(ys[y])}: {xlabel} {_short(xs[np.nanargmin(grid[y])])}"
            for y in range(len(ys)) if np.isfinite(grid[y]).any()]
    return Picture(figure, f"{name} by {xlabel} and {ylabel}; smallest at " + "; ".join(best) + ".")


def _short(value) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
