"""Where memory goes: the parts of a training as stacked bars, each part in its own colour everywhere."""

from collections.abc import Mapping

from matplotlib.ticker import MaxNLocator

from .figures import BLUE, GOLD, GREEN, GREY, INK, ORANGE, PAPER, PINK, Picture, new_axes

# By the names of `Plan`'s fields; what nobody foresaw is grey and dotted.
PARTS = {"weights": (GREY, ""), "quantization": (GREY, "////"), "adapter": (BLUE, ""), "gradient": (PINK, ""),
         "optimizer": (GREEN, ""), "activation": (ORANGE, ""), "logits": (GOLD, "")}


def memory(parts_of: dict[str, dict[str, int]], limit_gb: float | None = None, title: str | None = None,
           marks: Mapping[str, float] | None = None) -> Picture:
    """Draw stacked bars of `Plan.parts()` (or measured ones) under their names, in GB; `limit_gb` is a named line.

    `marks` puts a diamond into the rows of these names, at GB that were found elsewhere, such as a published peak.
    """
    marks = marks or {}
    names = list(dict.fromkeys(name for parts in parts_of.values() for name in parts))
    figure, axes = new_axes(0.42 * len(parts_of) + 1.5, title, 7, xlabel="GB (10⁹ bytes)")
    starts = [0.0] * len(parts_of)
    for name in names:
        short = name.removesuffix("_bytes")
        colour, hatch = PARTS.get(short, (GREY, "...."))
        sizes = [parts.get(name, 0) / 1e9 for parts in parts_of.values()]
        axes.barh(range(len(sizes)), sizes, left=starts, height=0.62, color=colour, hatch=hatch, edgecolor="#ffffffb0",
                  linewidth=0, label=short)
        starts = [start + size for start, size in zip(starts, sizes)]
    furthest = max(limit_gb or 0, *starts, *marks.values())
    for row, (name, total) in enumerate(zip(parts_of, starts)):
        text, end = f"{total:.2f}", total
        if name in marks:
            axes.plot(marks[name], row, "D", color=INK, markeredgecolor=PAPER, markersize=7, zorder=3, clip_on=False)
            text, end = f"{total:.1f}, found {marks[name]:g}", max(total, marks[name] + 0.02 * furthest)
        axes.text(end + 0.01 * furthest, row, text, color=INK, fontsize=8, va="center", zorder=4,
                  bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5})  # where the limit's line runs through
    if limit_gb is not None:
        axes.axvline(limit_gb, color=INK, linestyle="--", linewidth=1.5)
        axes.text(limit_gb, -0.5, f" {limit_gb:g} GB", color=INK, fontsize=8, ha="left", va="bottom")
    axes.set_xlim(0, (1.3 if marks else 1.1) * furthest)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set_yticks(range(len(parts_of)), parts_of)
    axes.set_ylim(len(starts) - 0.5, -0.7 if limit_gb is None else -1.0)  # room for its name
    figure.legend(frameon=False, labelcolor=INK, ncols=7, fontsize=7.5, loc="outside upper left", columnspacing=1)
    figure.set_layout_engine("constrained")
    said = [f"{label} {total:.2f} GB ({_large(parts)})"
            + f", a diamond at {marks.get(label, 0):g} GB" * (label in marks)
            for (label, parts), total in zip(parts_of.items(), starts)]
    line = "" if limit_gb is None else f" A line marks {limit_gb:g} GB."
    return Picture(figure, "Memory by part: " + "; ".join(said) + "." + line)


def _large(parts: Mapping[str, int]) -> str:
    """Return the parts that are a twentieth of the whole or more, the largest first, with their GB."""
    large = sorted((size, name) for name, size in parts.items() if size >= 0.05 * sum(parts.values()))[::-1]
    return ", ".join(f"{name.removesuffix('_bytes')} {size / 1e9:.3g}" for size, name in large)
