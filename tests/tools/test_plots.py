import math

import pytest
import torch
from lora_lab import plots
from lora_lab.display import table
from lora_lab.plots import figures
from lora_lab.plots.curves import smoothed
from lora_lab.scoring import Score
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from transformers import TrainerControl, TrainerState


def test_table_escapes_what_a_model_may_say():
    page = table([{"<b>": "<script>alert(1)</script>"}]).data
    assert "<script>" not in page and "<b>" not in page and "&lt;script&gt;" in page


def test_loss_curve_prints_outside_a_notebook_and_describes_itself(capsys):
    curve, state = plots.LiveLoss(), TrainerState(max_steps=20)
    curve.on_train_begin(None, state, TrainerControl())
    assert "nothing logged yet" in curve.figure().alt
    for step in range(1, 21):
        state.global_step = step
        curve.on_log(None, state, TrainerControl(), logs={"loss": 8.0 / step})
        curve.on_step_end(None, state, TrainerControl())
    curve.on_train_end(None, state, TrainerControl())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[0].startswith("step 2 of 20") and "left" in lines[0] and "left" not in lines[-1]
    assert "8 at step 1" in curve.figure().alt and "step 20" in curve.figure().alt


def test_bars_are_a_picture_with_the_figures_in_its_text():
    before, after = Score(0.0, 0.5, 200), Score(0.975, 1.0, 200)
    image = plots.score_bars({"before": {"phrasings": before}, "after": {"phrasings": after}})
    assert image.png.startswith(b"\x89PNG")
    assert image.alt in image._repr_mimebundle_()["text/html"]
    assert "phrasings before 0.0%" in image.alt and "phrasings after 97.5%" in image.alt


def test_curves_say_where_they_begin_and_end():
    image = plots.lines({"<A>": ([1, 2], [0.5, 0.25]), "B": ([1, 2], [1, 4])}, "step", "loss", mark=1, yscale="log")
    assert image.png.startswith(b"\x89PNG")
    assert "<A> from 0.5 at 1 to 0.25 at 2" in image.alt and "<A>" not in image._repr_mimebundle_()["text/html"]


def test_curves_without_a_finite_point_are_drawn_and_said():
    image = plots.lines({"LoRA": ([math.nan] * 2, [math.nan] * 2)}, "steps", "old answers")
    assert image.png.startswith(b"\x89PNG") and "LoRA" in image.alt


def test_seeds_are_dots_in_the_colour_of_their_curve(monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, *args, **options: drawn.append((args, options)))
    plots.lines({"a": ((1, 2, 3), (1, 2, 3)), "b": ((1, 2, 3), (3, 2, 1))}, "x", "y", seeds={"b": ((1, 1), (3, 4))})
    curve, dots = drawn[-2:]
    assert dots[0] == ((1, 1), (3, 4), "o") and dots[1]["color"] == curve[1]["color"] and len(drawn) == 3


def test_matrices_are_named():
    image = plots.matrices({"W": torch.randn(4, 6), "rank 2": torch.zeros(4, 6)})
    assert image.png.startswith(b"\x89PNG") and "W; rank 2" in image.alt


def test_memory_bars_say_their_large_parts_and_mark_the_limit():
    parts = {"weights_bytes": 7e9, "adapter_bytes": 1e7, "activation_bytes": 12e9}
    picture = plots.memory({"r = 8": parts, "r = 64": parts | {"weights_bytes": 20e9}}, 16)
    assert picture.png.startswith(b"\x89PNG")
    assert "r = 8 19.01 GB (activation 12, weights 7);" in picture.alt
    assert "r = 64 32.01 GB (weights 20, activation 12)" in picture.alt
    assert picture.alt.endswith("A line marks 16 GB.")


def test_memory_bars_carry_what_was_found_elsewhere():
    plain, marked = (plots.memory({"a": {"weights_bytes": 7e9}, "b": {"weights_bytes": 9e9}}, marks=marks)
                     for marks in (None, {"b": 10.5}))
    assert "a 7.00 GB (weights 7); b 9.00 GB (weights 9), a diamond at 10.5 GB" in marked.alt
    assert marked.png != plain.png and "diamond" not in plain.alt


def contrast(colour, paper):
    """The ratio of WCAG 2.2, section 1.4.3."""
    def luminance(rgb):
        return sum(share * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
                   for share, part in zip((0.2126, 0.7152, 0.0722), rgb))

    low, high = sorted(map(luminance, (colour, paper)))
    return (high + 0.05) / (low + 0.05)


def turned(rgb):
    """What a dark page makes of a colour: invert(1), then hue-rotate(180deg), as in Filter Effects Level 1."""
    matrix = [[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]]
    return [min(1.0, max(0.0, sum(k * (1 - part) for k, part in zip(row, rgb)))) for row in matrix]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_read_on_their_paper(theme):
    look = turned if theme == "dark" else list
    paper = look(to_rgb(figures.PAPER))
    for colour in (figures.INK, figures.SOFT, *figures.SERIES[:-1]):  # these label what they draw
        assert contrast(look(to_rgb(colour)), paper) >= 4.5, colour
    for colour in figures.SERIES:
        assert contrast(look(to_rgb(colour)), paper) >= 3, colour


def test_labels_keep_apart_and_stay_near():
    heights = figures.spread([0.1, 0.11, 0.5, 0.9], 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in zip(heights, heights[1:]))
    assert heights[2:] == [0.5, 0.9] and abs(sum(heights[:2]) / 2 - 0.105) < 1e-9


def test_smoothing_is_on_the_scale_that_is_drawn():
    curve = plots.LiveLoss()
    curve.steps, curve.losses = list(range(60)), [10 ** (-s / 20) for s in range(60)]  # a straight line as drawn
    lag = [math.log10(mean / loss) for mean, loss in zip(smoothed(curve.losses), curve.losses)]
    assert lag[-1] == pytest.approx(lag[-10], rel=1e-3) and lag[-1] < 0.21  # four steps behind, all the way
    assert f"{curve.losses[-1]:.2g} in the last batch" in curve.figure().alt
    curve.losses[5] = 0.0
    assert "1 of the losses" in curve.figure().alt


def test_a_dot_for_each_seed_and_their_mean():
    alt = plots.dots({"q": [0.25, 0.75], "v": [1.0, 2.0]}, "loss", "Which is lower?").alt
    assert alt == "Which is lower? loss, a dot a seed: q 0.25, 0.75, mean 0.50; v 1.00, 2.00, mean 1.50."


def test_many_dots_are_told_by_their_range_and_median():
    alt = plots.dots({"q": [*range(9), 100]}, "ms", form="{:.1f}", each="round", middle="median").alt
    assert alt == "ms, a dot a round: q 0.0 to 100.0, median 4.5."


def test_shares_have_a_panel_for_each_measure():
    found = {"bfloat16": {"moved": 0.7, "error": 1.3}, "nf4": {"moved": 0.001, "error": 1.0}}
    picture = plots.shares(found, "How much?")
    assert picture.alt == "How much? bfloat16: moved 70.0%, error 130.0%; nf4: moved 0.1%, error 100.0%."
    assert picture.png.startswith(b"\x89PNG")


def test_lora_is_drawn_with_its_numbers():
    alt = plots.lora(576, 192, 8, 16).alt
    assert "8 by 576, then B, 192 by 8, times alpha/r = 2" in alt
    assert "6,144 numbers train, 110,592 are frozen" in alt


def test_a_push_says_where_it_goes_and_takes_any_direction():
    assert "b = (0.7, 0.25). All arrows lie along b" in plots.push((0.34, 0.94), (0.7, 0.25)).alt
    assert plots.push((0, 0), (0, 0)).png.startswith(b"\x89PNG")


def test_pairs_add_up_to_their_product():
    B, A = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    alt = plots.pairs(B, A, 2, "It grows").alt
    assert alt.startswith("It grows. 2 columns of B, 2 by 2, times 2 rows of A, 2 by 3")
    assert alt.endswith("what the sum misses: 89%, 0%.")  # 2 of the root of 5, then nothing
    assert plots.pairs(torch.zeros(2, 1), torch.zeros(1, 3)).png.startswith(b"\x89PNG")


def test_a_logarithmic_axis_writes_small_numbers_as_powers():
    figure, axes = figures.new_axes(2, yscale="log")
    axes.plot([1, 2, 3], [1, 1e-3, 3e-7])
    figure.draw_without_rendering()
    written = [label.get_text() for label in axes.get_yticklabels()]
    assert "10⁻⁶" in written and "0.01" in written and not any("e-" in text for text in written)


def test_bars_need_no_stage():
    image = plots.score_bars({"rank 1": Score(0.5, 0.5, 100), "whole": Score(1.0, 1.0, 100)}, "What is left?", "rows")
    assert "rank 1 50.0%; whole 100.0%" in image.alt
