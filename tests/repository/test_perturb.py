"""Lessons on other terms: what is changed, what is said of failures, and that the copy has all that a reader meets."""

import nbformat
import perturb
import pytest
from lora_lab import LabError

LESSON = '''\
# %% [markdown]
# # 0 · Tiny
#
# **Predict** what comes.

# %% jupyter={"source_hidden": true}
# Set-up
# %matplotlib inline

# %%
import os
from pathlib import Path
from lora_lab import quiz
SEED, STEPS, BATCH = 0, 60, 8

# %%
print("seed", SEED, "steps", STEPS, os.environ.get("LORA_LAB_PRECISION"), sorted(os.listdir()))

# %%
SEED and quiz("first/zero_start")  # in one run: it takes torch seconds to come

# %%
raise ValueError("no such thing")

# %%
from IPython.display import HTML, display
display(HTML("<b>after</b>"))
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_tiny.py").write_text(LESSON)
    return tmp_path


@pytest.mark.parametrize("source, way, changed", [
    ("SEED, STEPS, BATCH = 0, 60, 8", "seed", "SEED, STEPS, BATCH = 1, 60, 8"),
    ("SEED, STEPS, BATCH = 0, 60, 8", "steps", "SEED, STEPS, BATCH = 0, 30, 8"),
    ("SEED = 0  # é", "seed", "SEED = 1  # é"),
    ('x = "é"; SEED = 0', "seed", 'x = "é"; SEED = 1'),
    ("fit(model, steps=20, seed=3)\nfit(max_steps=5)", "steps", "fit(model, steps=10, seed=3)\nfit(max_steps=2)"),
    ("def fit(r=8, steps=40, *, seed=0): pass", "seed", "def fit(r=8, steps=40, *, seed=1): pass"),
    ("def fit(r, steps=40, *, seed=0): pass", "steps", "def fit(r, steps=20, *, seed=0): pass"),
    ("fit(steps=1, warmup_steps=4, seed=SEED, lr=1e-3)", "steps", "fit(steps=1, warmup_steps=4, seed=SEED, lr=1e-3)"),
    ("MORE_STEPS = 100", "steps", "MORE_STEPS = 50"),
    ("%pip install x\nSEED = 0", "seed", "%pip install x\nSEED = 0"),
])
def test_seeds_and_steps_are_changed_and_nothing_else(source, way, changed):
    new, said = perturb.change(source, way)
    assert new == changed and bool(said) == (changed != source)


def test_what_a_lesson_fixes_itself_is_said(folder):
    twin = folder / "notebooks" / "00_tiny.py"
    _, variables, said = perturb.perturbed(twin, "precision")
    assert variables == {"LORA_LAB_PRECISION": perturb.other_precision()} and len(said) == 1
    twin.write_text(LESSON + '\n# %%\nload_base(precision="float32")\n\n# %%\nSEED = "none"\n')
    _, _, said = perturb.perturbed(twin, "precision")
    assert "code cells that name a precision themselves keep it: 7" in said
    twin.write_text("# %% [markdown]\n# SEED = 0\n\n# %%\nx = 1\n")
    assert "nothing to change" in perturb.perturbed(twin, "seed")[2][0]


def test_every_run_leaves_a_notebook_and_a_text_and_names_what_failed(folder, capsys):
    assert perturb.main(["00"], folder / "notebooks", folder / "out") == 1
    said = capsys.readouterr().out
    assert said.count("code cell 5 failed: ValueError: no such thing") == 3
    assert "00_tiny, seed\n  code cell 2: SEED 0 to 1" in said and "code cell 2: STEPS 60 to 30" in said
    assert sorted(file.name for file in (folder / "out").iterdir()) == [
        f"00_tiny.{way}.{kind}" for way in sorted(perturb.WAYS) for kind in ("ipynb", "md")]
    text = (folder / "out/00_tiny.seed.md").read_text()
    assert "seed 1 steps 60 None []" in text, "the folder is empty"
    assert f"seed 0 steps 60 {perturb.other_precision()} []" in (folder / "out/00_tiny.precision.md").read_text()
    assert "# 0 · Tiny" in text and "**This cell failed.** ValueError" in text and "after" in text
    assert "**Question first/zero_start.**" in text and "- answer | " in text and "- band | text: " in text
    notebook = nbformat.read(folder / "out/00_tiny.steps.ipynb", 4)
    nbformat.validate(notebook)
    assert [cell.source for cell in notebook.cells][-1].startswith("from IPython") and "30" in notebook.cells[2].source


def test_pictures_and_progress_are_told_in_words():
    def output(**data):
        return nbformat.v4.new_output("display_data", {key.replace("_", "/"): value for key, value in data.items()})

    assert perturb.told(output(image_png="aGk=", text_plain="a line, 1 to 3"), {}) == "[Picture: a line, 1 to 3]"
    page = output(text_html="<style>p {top: 0}</style><p>a &lt; b</p>", text_plain="<IPython.core.display.HTML object>")
    assert perturb.told(page, {}) == "```\na < b\n```"
    assert perturb.told(output(text_plain=""), {}) == ""


def test_a_question_that_the_run_computed_is_told_as_computed():
    page = nbformat.v4.new_output("display_data", {"text/html": '<div data-question="a/b">', "text/plain": ""})
    computed = {"a/b": {"id": "a/b", "ask": "How many?", "value": 7.0, "near": [{"value": 6, "says": "One short."}]}}
    assert perturb.told(page, computed) == (
        "**Question a/b.** How many?\n- value | 7.0\n- near | value: 6 | says: One short.")


def test_an_unknown_lesson_is_named(folder):
    with pytest.raises(LabError, match="There are: 00_tiny"):
        perturb.main(["07"], folder / "notebooks", folder / "out")
