"""Both runners of notebooks say the same of one whose cells run, of one that fails, and of one with another output."""

import os

import lesson_runs
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

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
    ("PYTEST_NOTEBOOK", "runs", 3), ("PYTEST_NOTEBOOK", "fails", 0), ("PYTEST_NOTEBOOK", "differs", 0)])
def test_both_runners_agree(runner, name, passed, tmp_path):
    last, words = NOTEBOOKS[name]
    notebook = new_notebook(cells=[new_markdown_cell("# A lesson"), new_code_cell("x = 1"),
                                   cell("print('untagged')", "another text"), *last])
    run = lesson_runs.run_cells(notebook, tmp_path, dict(os.environ), runner=getattr(lesson_runs, runner))
    assert (run.returncode == 0) == (name == "runs") and words in run.said, run.said
    assert run.passed == passed, run.said
