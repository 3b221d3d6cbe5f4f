"""Every lesson: agrees with its text twin, is safe to publish, and runs from top to bottom."""

import dataclasses
import os
import re
import sys
from pathlib import Path

import build_notebooks
import jupytext
import lesson_runs
import nbformat
import pytest
from peft import LoraConfig

FOLDER = Path(__file__).parents[2] / "notebooks"
LESSONS = sorted(FOLDER.glob("*.ipynb"))
BINDER = 2e9  # bytes that it gives to everything; what is read from files it can take back
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def cells(notebook):
    return [(c.cell_type, c.source, sorted(c.metadata.get("tags", [])), c.metadata.get("jupyter", {}))
            for c in notebook.cells]


def test_there_are_lessons():
    assert [path.stem for path in LESSONS][:3] == ["00_first_adapter", "01_low_rank_math", "02_config_and_targets"]


def test_lesson_on_the_config_names_every_field_of_it():
    text = (FOLDER / "02_config_and_targets.py").read_text()
    assert [f.name for f in dataclasses.fields(LoraConfig) if not re.search(rf"\b{f.name}\b", text)] == []


def test_every_twin_has_its_notebook():
    assert [p.stem for p in sorted(FOLDER.glob("*.py"))] == [p.stem for p in LESSONS]


@each_lesson
def test_notebook_and_text_twin_agree(path):
    assert cells(jupytext.read(path.with_suffix(".py"))) == cells(nbformat.read(path, 4))


@each_lesson
def test_notebook_is_committed_executed_and_clean(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert "formats" not in notebook.metadata.get("jupytext", {}), "JupyterLab would check the twin's time stamp"
    ids = [c.id for c in notebook.cells]
    assert len(set(ids)) == len(ids)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), (
        f"not run from top to bottom: make notebooks ARGS={path.stem}")
    outputs = [output for c in code for output in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o.text for o in outputs if o.get("name") == "stderr"], "warnings are shown to the learner"
    assert any("image/png" in o.get("data", {}) for o in outputs), "no plot"
    text = "\n".join(str(o.get("text", "")) + str(o.get("data", {}).get("text/html", "")) for o in outputs)
    assert not re.search(r"/(home|root|Users|work|tmp)/|Warning", text), "a machine path or a warning is shown"


@each_lesson
def test_what_is_stored_is_stored_once(path):
    notebook, again = (nbformat.read(path, 4) for _ in range(2))
    assert path.stat().st_size < 400_000
    assert notebook == build_notebooks.compact(again), f"make notebooks ARGS='{path.stem} --sources'"
    pictures = build_notebooks.with_data(notebook, "image/png")
    assert all(output.metadata["image/png"]["alt"] == output.data["text/plain"] for output in pictures)


@each_lesson
def test_marks_of_the_tests_are_metadata_and_the_set_up_is_folded(path):
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert not [c.source for c in code if "NBVAL_" in c.source]
    assert [c.metadata.get("jupyter") for c in code if c.metadata.get("jupyter")] == [{"source_hidden": True}]
    assert code[0].metadata.jupyter.source_hidden and code[0].source.startswith("# Set-up")


@each_lesson
def test_links_lead_to_files(path):
    for cell in nbformat.read(path, 4).cells:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / target).exists(), target


@each_lesson
def test_code_cells_are_short(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert len([line for line in cell.source.splitlines() if line.strip()]) <= 15, cell.source


def test_committed_runs_are_quick_and_readme_and_lesson_say_how_quick():
    text = (FOLDER.parent / "README.md").read_text()
    said = dict(re.findall(r"\(notebooks/(\w+)\.ipynb\) \|[^|]*\| ([\d.]+)", text))
    assert said.keys() == {path.stem for path in LESSONS}
    told = (FOLDER.parent / "docs/teaching.md").read_text()
    teachers = dict(re.findall(r"(?m)^\| (\d) · [^|]*\|[^|]*\| ([\d.]+) \|", told))
    assert teachers == {name[1]: minutes for name, minutes in said.items()}, "docs/teaching.md has other minutes"
    for path in LESSONS:
        taken = build_notebooks.seconds(nbformat.read(path, 4))
        assert sum(taken) <= 240 and max(taken) <= 90, f"{path.stem}: {sum(taken):.0f} s, a cell {max(taken):.0f} s"
        assert float(said[path.stem]) == pytest.approx(sum(taken) / 60, abs=0.3), path.stem
        word = re.search(r"\*\*It takes\*\* about (\w+) minutes?", nbformat.read(path, 4).cells[0].source)[1]
        assert ["one", "two", "three", "four"].index(word) + 1 == pytest.approx(sum(taken) / 60, abs=0.6), path.stem


# As on Binder: Lesson 1 takes a smaller path there. Its larger one runs in test_devices, with a small model.
# These have one path only, and need little memory: with all of it they run in the precision that is this machine's own.
OWN_PRECISION = ("00_first_adapter", "02_config_and_targets", "05_alpha_scaling", "07_past_one_gpu", "08_your_own_data",
                 "09_variants")
PATHS = [pytest.param(path, "" if path.stem in OWN_PRECISION else "2", id=path.stem) for path in LESSONS]


@pytest.fixture(scope="module")
def lessons_kept(tmp_path_factory):
    """A folder for what one lesson leaves to another."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.parametrize("path, gigabytes", PATHS)
def test_notebook_runs(path, gigabytes, record_property, pytestconfig, lessons_kept):
    run = lesson_runs.run(path, gigabytes, pytestconfig.getoption("whole"), lessons_kept)
    record_property("peak MB", round(run.peak / 1e6))  # for README's table, in a report by --junitxml
    assert run.returncode == 0, run.said[-6000:]
    assert run.passed == sum(c.cell_type == "code" for c in nbformat.read(path, 4).cells), run.said[-6000:]
    binders = gigabytes and os.environ.get("LORA_LAB_PRECISION") != "bfloat16"
    if sys.platform == "linux" and binders:
        assert 0 < run.peak < BINDER, f"{run.peak / 1e9:.2f} GB"
