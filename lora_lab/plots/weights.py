"""Matrices as pictures: what they do to points, the pairs they are sums of, images side by side, values as a map."""

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .figures import BEFORE, BLUE, INK, ORANGE, PAPER, PINK, SOFT, UPDATE, WIDTH, A, B, Picture, new_axes, said

_DIVERGING = LinearSegmentedColormap.from_list("", [BLUE, "#f6f6f6", ORANGE])
_INKED = LinearSegmentedColormap.from_list("", [PINK, "#ffffff", INK])  # where blue and orange are A and B
_PALE = LinearSegmentedColormap.from_list("", ["#7db4e6", "#f6f6f6", "#ee9f62"])  # numbers are read on it


def push(a: tuple[float, float], b: tuple[float, float]) -> Picture:
    """Draw what `x + b (a·x)`, a change of rank 1, does to the points of a grid in the plane."""
    figure, axes = new_axes(4.2, "Each point moves along b, by as much as it reaches along a",
                            xlabel="dashed: where a reads zero, and every point stays")
    grid = np.array([(x, y) for x in range(-3, 4) for y in range(-2, 3)], dtype=float)
    moved = grid + np.outer(grid @ np.array(a), b)
    axes.set(xlim=(-5.7, 5.7), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for start, end in zip(grid, moved):
        axes.annotate("", end, start, arrowprops=_arrow(UPDATE, 1, 7))
    axes.plot(*grid.T, "o", color=BEFORE, markersize=4)
    across = np.outer(np.arange(-6, 7), (-a[1], a[0])) / (np.hypot(*a) or 1)
    axes.plot(*across.T, "--o", color=INK, markersize=5, linewidth=1)
    for (x, y), name, colour in ((a, "a", A), (b, "b", B)):
        axes.annotate("", (x, y), (0, 0), arrowprops=_arrow(colour, 3.5, 18))
        beyond = 1 + 0.3 / (np.hypot(x, y) or 1)
        axes.text(x * beyond, y * beyond, name, color=colour, fontsize=14, weight="bold", ha="center", va="center",
                  bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1, "alpha": 0.8})
    return Picture(figure, f"Points of a grid, and arrows to where x + b (a·x) takes them: a = ({a[0]:.2g}, {a[1]:.2g})"
                           f", b = ({b[0]:.2g}, {b[1]:.2g}). All arrows lie along b; across a, points stay.")


def _arrow(colour: str, width: float, head: float) -> dict[str, Any]:
    return dict(arrowstyle="-|>", color=colour, linewidth=width, shrinkA=0, shrinkB=0, mutation_scale=head)


def pairs(B_columns: Any, A_rows: Any, scaling: float = 1.0, title: str | None = None) -> Picture:
    """Draw `scaling · B A` as a sum: a line for each column of B times its row of A, and the sum as far as there.

    `B_columns` is (d_out × r), `A_rows` (r × d_in). Dark is above zero, pink below.
    """
    left, right = np.asarray(B_columns, dtype=float), np.asarray(A_rows, dtype=float)
    (high, r), wide = left.shape, right.shape[1]
    whole = scaling * left @ right
    columns = [1, wide, wide, wide]
    line = WIDTH * 0.92 / sum(columns) * high + 0.16
    height = line * r + 0.5 + 0.25 * bool(title)
    figure = Figure(figsize=(WIDTH, height), dpi=110, layout="constrained", facecolor=PAPER)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=INK, weight="bold")
    axes = figure.subplots(r, 4, width_ratios=columns, squeeze=False)
    limits = [abs(left).max(), abs(right).max(), abs(whole).max(), abs(whole).max()]
    heads = [("b", B), ("a, a row of A", A), ("b times a", UPDATE),
             ("sum so far" if scaling == 1 else f"{scaling:g} × the sum so far", UPDATE)]
    for k in range(r):
        product = np.outer(left[:, k], right[k])
        images = left[:, k : k + 1], right[k : k + 1], product, scaling * left[:, : k + 1] @ right[: k + 1]
        for place, (image, limit) in enumerate(zip(images, limits)):
            axes[k, place].imshow(image, cmap=_INKED, vmin=-limit, vmax=limit, interpolation="nearest")
            axes[k, place].set(xticks=[], yticks=[])
            axes[k, place].spines[:].set(color=heads[place][1], linewidth=1.5)
            if k == 0:
                axes[k, place].set_title(heads[place][0], color=heads[place][1], fontsize=9)
    misses = [np.linalg.norm(whole - scaling * left[:, :k] @ right[:k]) / (np.linalg.norm(whole) or 1)
              for k in range(1, r + 1)]
    return Picture(figure, f"{said(title)}{r} columns of B, {high} by {r}, times {r} rows of A, {r} by {wide}, added "
                           f"one by one; what the sum misses: {', '.join(f'{share:.0%}' for share in misses)}.")


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
    return Picture(figure, f"{said(title)}Matrices drawn as images: {'; '.join(named)}.")


def heat(values: list[list], xs: list, ys: list, xlabel: str, ylabel: str, name: str) -> Picture:
    """Draw positive `values[y][x]` as a map on a logarithmic scale, with their numbers; NaN is a cross, None empty.

    The smallest of a row is bold.
    """
    figure, axes = new_axes(0.4 * len(ys) + 1.2, name, 0.6 * len(xs) + 1.6, xlabel=xlabel, ylabel=ylabel)
    grid = np.array(values, dtype=float)
    shades = np.log(np.where(grid > 0, grid, np.nan))
    axes.imshow(shades, cmap=_PALE, aspect="auto", interpolation="nearest")
    for y, x in np.ndindex(grid.shape):
        value = values[y][x]
        text = "" if value is None else f"{value:.2g}" if np.isfinite(value) else "✕"
        smallest = np.isfinite(grid[y, x]) and grid[y, x] == np.nanmin(grid[y])
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=SOFT if text == "✕" else INK,
                  fontweight="bold" if smallest else None)
    axes.set_xticks(range(len(xs)), [_short(x) for x in xs], fontsize=7)
    axes.set_yticks(range(len(ys)), [_short(y) for y in ys])
    axes.spines[:].set_visible(False)
    best = [f"{ylabel} {_short(ys[y])}: {xlabel} {_short(xs[np.nanargmin(grid[y])])}"
            for y in range(len(ys)) if np.isfinite(grid[y]).any()]
    return Picture(figure, f"{name} by {xlabel} and {ylabel}; smallest at " + "; ".join(best) + ".")


def _short(value) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
