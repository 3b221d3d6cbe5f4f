import torch
from lora_lab import plots
from lora_lab.display import table
from lora_lab.scoring import Score
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
    assert "8 at first" in curve.figure().alt and "step 20" in curve.figure().alt


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


def test_matrices_are_named():
    image = plots.matrices({"W": torch.randn(4, 6), "rank 2": torch.zeros(4, 6)})
    assert image.png.startswith(b"\x89PNG") and "W; rank 2" in image.alt


def test_memory_bars_say_the_largest_part_and_mark_the_limit():
    parts = {"weights_bytes": 7e9, "activation_bytes": 12e9}
    picture = plots.memory({"r = 8": parts, "r = 64": parts | {"weights_bytes": 20e9}}, 16)
    assert picture.png.startswith(b"\x89PNG")
    assert "r = 8 19.00 GB, most of it activation" in picture.alt
    assert "r = 64 32.00 GB, most of it weights" in picture.alt
    assert picture.alt.endswith("A line marks 16 GB.")
