"""The lessons in a real browser, against a real JupyterLab on loopback."""

import re

import pytest
from browser import REPOSITORY, RUN_ALL, cells_and_active, in_one_theme, open_notebook
from lora_lab.course import live_figures
from playwright.sync_api import expect

expect.set_options(timeout=30_000)

# A training run of a second, drawn by the same callback as in the lessons.
LIVE_CURVE = """\
import time
from lora_lab import plots
from lora_lab.display import table
from transformers import TrainerControl, TrainerState
curve, state = plots.LiveLoss(seconds_between_draws=0.05), TrainerState(max_steps=30)
curve.on_train_begin(None, state, TrainerControl())
for step in range(1, 31):
    state.global_step = step
    curve.on_log(None, state, TrainerControl(), logs={"loss": 4 / step})
    curve.on_step_end(None, state, TrainerControl())
    time.sleep(0.1)
curve.on_train_end(None, state, TrainerControl())"""

SLIDER = """\
import torch
from lora_lab import plots
from lora_lab.display import table
from lora_lab.course import explorers
W = torch.randn(8, 6)
explorers.slide(lambda r: plots.matrices({f"rank {r}": W, "W": W}), "rank", 1, 6, start=2)"""

BELOW = "'the cell below'"
# What they show is tested on a page without a kernel (test_live_figures); here, that JupyterLab shows them.
FIGURES = """\
import torch
from lora_lab.course import explorers
from lora_lab.scoring import Score
from lora_lab.sweep.runs import Runs
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=2))
factors, asked = (0, 0.5, 1, 2), [("lamp on", '{"lamp":"on"}')]
explorers.dial({f: Score(0.5 - f / 5, None, 42) for f in factors}, {f: 40 + f for f in factors}, asked,
               {f: [f'{{"lamp":"at {f:g}"}}'] for f in factors})
explorers.plan_memory(4, model="SmolLM2-135M")
explorers.mechanism(model.model.layers[0].mlp.up_proj)
explorers.ranks({"a weight": model.model.layers[0].mlp.up_proj.weight})
explorers.explore(model)
grid = Runs([{"alpha": alpha, "lr": rate, "seed": 0, "status": "ok", "loss": 1.0}
             for alpha in (1, 4) for rate in (0.1, 0.2)])
explorers.ridge({"SGD": grid}, {"SGD": {1: [0.1], 4: [0.2]}}, {"SGD": {"law": -1}})
explorers.merges({("nf4", "merged in place"): ([0.1, 0.2], 1)}, {})"""

NOTEBOOKS = {"live": [LIVE_CURVE, BELOW], "slider": [SLIDER, BELOW], "figures": [FIGURES, BELOW]}


@in_one_theme
def test_loss_curve_draws_itself(page, jupyterlab, tmp_path):
    open_notebook(page, jupyterlab, "live.ipynb", keep_kernel=True)
    assert page.evaluate(RUN_ALL) == []
    bar = page.get_by_role("progressbar", name="training")
    bar.wait_for()
    assert bar.evaluate("bar => [bar.value, bar.max]") == [30, 30]
    picture = page.locator(".jp-OutputArea-output img")
    expect(picture, "the curve must redraw in place").to_have_count(1)
    expect(picture).to_have_attribute("alt", re.compile("4 at step 1,"))
    page.screenshot(path=tmp_path / "live.png")


@in_one_theme
def test_slider_moves_by_keyboard_alone(page, jupyterlab):
    open_notebook(page, jupyterlab, "slider.ipynb", keep_kernel=True)
    assert page.evaluate(RUN_ALL) == []
    handle, picture = page.get_by_role("slider", name="rank"), page.locator(".jp-OutputArea-output img")
    handle.focus()
    before = cells_and_active(page)
    page.keyboard.type("ddx")  # command keys of the notebook, which delete cells
    for key, alt in (("ArrowRight", "rank 3"), ("ArrowUp", "rank 4"), ("ArrowLeft", "rank 3"), ("End", "rank 6"),
                     ("Home", "rank 1")):
        page.keyboard.press(key)
        page.wait_for_function(
            "alt => document.querySelector('.jp-OutputArea-output img').alt.includes(alt)", arg=f"{alt};"
        )
    expect(picture, "the picture must redraw in place").to_have_count(1)
    assert cells_and_active(page) == before, "the arrow keys moved the notebook instead"


@in_one_theme
def test_figures_move_by_keyboard_alone(page, jupyterlab, tmp_path):
    open_notebook(page, jupyterlab, "figures.ipynb", keep_kernel=True)
    assert page.evaluate(RUN_ALL) == []
    for name in live_figures.names():
        page.locator(f'[data-lora-lab="{name}"]').wait_for(state="attached")
    shown = page.locator(".ll-live")
    expect(shown).to_have_count(len(live_figures.names()))
    for still in page.locator(".lora-lab-still").all():
        expect(still, "the still gives way to the figure").to_be_hidden()
    handle = page.get_by_role("slider", name="factor")
    handle.focus()
    before = cells_and_active(page)
    page.keyboard.type("ddx")  # command keys of the notebook, which delete cells
    for key, factor in (("ArrowRight", "2"), ("Home", "0"), ("ArrowRight", "0.5")):
        page.keyboard.press(key)
        shown.get_by_text(f'{{"lamp":"at {factor}"}}').wait_for()
        expect(handle).to_have_attribute("aria-valuetext", factor)
    page.get_by_role("checkbox", name="v_proj").focus()
    page.keyboard.press("Space")
    shown.get_by_text("target_modules=[\"q_proj\"]").wait_for()
    page.get_by_role("combobox", name="precision").focus()
    page.keyboard.type("nf4x")
    expect(page.get_by_role("combobox", name="precision")).to_have_value("nf4")
    assert cells_and_active(page) == before
    page.screenshot(path=tmp_path / "figures.png")


LESSONS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"), reverse=True)


# Each in one theme, the first in both: what a theme changes is the same in all. Dark comes last: it loads a new page.
@pytest.mark.parametrize("jupyterlab, lesson", [*[("Light", lesson) for lesson in LESSONS], ("Dark", LESSONS[-1])],
                         indirect=["jupyterlab"], scope="module", ids=lambda of: getattr(of, "stem", of))
def test_saved_lesson_shows_its_outputs(page, jupyterlab, tmp_path, lesson):
    open_notebook(page, jupyterlab, f"notebooks/{lesson.name}", keep_kernel=True)
    page.locator(".jp-RenderedMarkdown h1").first.wait_for()
    # A stored PNG has no text in JupyterLab, whatever its metadata says: the site shows it, learners' copies are bare.
    pictures = page.locator(".jp-OutputArea-output img")
    pictures.first.wait_for()
    for i in range(pictures.count()):
        page.wait_for_function("img => img.naturalWidth > 100", arg=pictures.nth(i).element_handle())
    assert page.locator(".jp-OutputArea-output table").count() >= 3
    assert page.get_by_text("Error displaying widget").count() == 0
    theme = page.evaluate("document.body.dataset.jpThemeLight")
    assert theme == ("true" if jupyterlab[2] == "Light" else "false")
    page.screenshot(path=tmp_path / "lesson.png")
