"""How LoRA works, drawn: x goes through the frozen W, and around it through A and B."""

from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from .figures import FROZEN, INK, PAPER, SOFT, WIDTH, A, B, Picture

_HEIGHT, _LARGEST, _THINNEST = 4.1, 1.45, 0.02  # inches


def lora(d_in: int, d_out: int, r: int, alpha: float) -> Picture:
    """Draw a linear layer with its adapter, matrices to scale: W is `d_out` × `d_in`, the rank `r`, scaling alpha/r."""
    figure = Figure(figsize=(WIDTH, _HEIGHT), dpi=110, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, _HEIGHT))
    axes.set_axis_off()
    scale = _LARGEST / max(d_in, d_out)
    wide, high, thin = d_in * scale, d_out * scale, max(_THINNEST, r * scale)
    trains, whole = r * (d_in + d_out), d_in * d_out
    upper, lower, enters, joins, leaves = 2.85, 1.05, 0.62, 5.25, 5.85
    w_left, a_left = 2.3 - wide / 2, 1.2
    b_left = a_left + wide + 0.75
    times = 4.6

    def text(x, y, words, colour=INK, size=9.0, **options):
        axes.text(x, y, words, **dict(color=colour, fontsize=size, ha="center", va="center") | options)

    def block(left, middle, width, height, colour):
        axes.add_patch(Rectangle((left, middle - height / 2), width, height, facecolor=colour, linewidth=0))

    def arrow(*points, head=True):
        xs, ys = zip(*points)
        axes.plot(xs[:-1] if head else xs, ys[:-1] if head else ys, color=SOFT, linewidth=1.5)
        if head:
            axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": SOFT, "linewidth": 1.5,
                                                                  "shrinkA": 0, "shrinkB": 0})

    def sign(x, y, words, radius=0.16):
        axes.add_patch(Circle((x, y), radius, facecolor=PAPER, edgecolor=INK, linewidth=1.2, zorder=3))
        text(x, y, words, size=11, zorder=4)

    share = trains / (whole + trains)
    title = f"Rank {r}: {trains:,} numbers of this layer train ({share:.1%}), {whole:,} do not"
    axes.text(0.12, _HEIGHT - 0.1, title, color=INK, fontsize=10.5, weight="bold", va="top")
    arrow((0.35, upper), (w_left - 0.05, upper))
    arrow((w_left + wide + 0.05, upper), (joins - 0.18, upper))
    arrow((enters, upper), (enters, lower), (a_left - 0.05, lower))
    arrow((a_left + wide + 0.05, lower), (b_left - 0.05, lower))
    arrow((b_left + thin + 0.05, lower), (times - 0.2, lower))
    arrow((times + 0.2, lower), (joins, lower), (joins, upper - 0.18))
    arrow((joins + 0.18, upper), (leaves, upper))
    text(0.22, upper, "x", size=13, style="italic")
    text(leaves + 0.2, upper, "y", size=13, style="italic")
    text(enters, upper + 0.17, f"{d_in} numbers", SOFT, 8)
    block(w_left, upper, wide, high, FROZEN)
    text(w_left + wide / 2, upper, f"W\n{d_out} × {d_in}\nfrozen", "#ffffff")
    block(a_left, lower, wide, thin, A)
    text(a_left + wide / 2, lower - thin / 2 - 0.15, f"A  {r} × {d_in}, trains", A)
    text(a_left + wide + 0.38, lower + 0.14, str(r), SOFT, 8)
    text(a_left + wide + 0.38, lower - 0.14, "numbers", SOFT, 8)
    block(b_left, lower, thin, high, B)
    text(b_left + thin / 2, lower - high / 2 - 0.15, f"B  {d_out} × {r}, trains", B)
    sign(times, lower, "×")
    text(times, lower + 0.3, f"α/r = {alpha:g}/{r} = {alpha / r:.3g}")
    sign(joins, upper, "+")
    return Picture(figure, f"A linear layer with LoRA, to scale. x, of {d_in} numbers, goes through the frozen W, "
                           f"{d_out} by {d_in}, and around it through A, {r} by {d_in}, then B, {d_out} by {r}, times "
                           f"alpha/r = {alpha / r:.3g}; both are added to y. {trains:,} numbers train, {whole:,} are "
                           "frozen.")
