"""Both runners of notebooks say the same of cells that run, fail, or show another output; and what `cap` leaves out."""

import os
from pathlib import Path

import lesson_runs
import nbformat
import pytest
import torch
import twins
from lora_lab import LabError, sweep
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
MARK = {"tags": ["nbval-check-output"]}


def cell(source, saved, **metadata):
    return new_code_cell(source, execution_count=7, outputs=[new_output("stream", text=saved)], metadata=metadata)


NOTEBOOKS = {  # its last cells, and words that are said of them
    "runs": ([cell("print(x)", "1\n", **MARK)], "passed"),
    "fails": ([cell("1 / 0", "")], "ZeroDivisionError"),
    "differs": ([cell("print(x + 1)", "1\n", **MARK)], "output"),
    "both": ([cell("1 / 0", ""), cell("print(x + 1)", "1\n", **MARK)], "ZeroDivisionError"),  # nbval goes on after one
}


@pytest.mark.parametrize("runner, name, passed", [
    ("NBVAL", "runs", 3), ("NBVAL", "both", 2),
    *(pytest.param("PYTEST_NOTEBOOK", name, passed, marks=pytest.mark.nightly)
      for name, passed in (("runs", 3), ("fails", 0), ("differs", 0)))])
def test_both_runners_agree(runner, name, passed, tmp_path):
    last, words = NOTEBOOKS[name]
    notebook = new_notebook(cells=[new_markdown_cell("# A lesson"), new_code_cell("x = 1"),
                                   cell("print('untagged')", "another text"), *last])
    run = lesson_runs.run_cells(notebook, tmp_path, dict(os.environ), runner=getattr(lesson_runs, runner))
    assert (run.returncode == 0) == (name == "runs") and words in run.said, run.said
    assert run.passed == passed, run.said


def test_what_a_capped_lesson_leaves_out_is_in_it():
    for name, texts in twins.FEWER.items():
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
        twins.cap(notebook, name)
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert code[0].startswith(twins.CAP) and all(any(new in cell for cell in code) for new in texts.values())
    with pytest.raises(LabError, match="is in no cell of 06_merge_and_ship"):
        twins.cap(new_notebook(cells=[new_code_cell("x = 1")]), "06_merge_and_ship")


def test_a_capped_sweep_trains_one_seed_and_tells_it_for_all():
    trained = []
    with twins.quick():
        runs = sweep.sweep(lambda lr, seed: trained.append((lr, seed)) or {"loss": 9.0},
                           {"lr": [0.1, 0.2, 0.3]}, (5, 6, 7))
    assert trained == [(0.1, 5), (0.2, 5), (0.3, 5)]
    assert [(row["lr"], row["seed"]) for row in runs.rows] == [
        (lr, seed) for lr in (0.1, 0.2, 0.3) for seed in (5, 6, 7)]
    assert min(runs.rows, key=lambda row: row["loss"])["lr"] == 0.2, "or some cells find their best rate at the edge"


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process alone has all cores")
def test_one_of_several_processes_computes_on_its_share_of_the_cores():
    assert torch.get_num_threads() == int(lesson_runs.THREADS)
