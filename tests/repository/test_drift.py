"""The table of lesson by environment: what it says of lessons that run, break, warn, or do not install."""

import json
import sys
from datetime import date

import drift
import nbformat
import pytest
import twins
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from packaging.requirements import Requirement

CELLS = {
    "00_runs": ["1 + 1"],
    "01_breaks": ["x = 1", "def f():\n    raise ValueError('no field | of this name\\nand more')\nf()", "x + 1"],
    "02_warns": ["import sys\nprint('old argument', file=sys.stderr)"],
    "03_dies": ["import os", "os._exit(1)"],
}


@pytest.fixture
def course(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for name, cells in CELLS.items():
        notebook = new_notebook(cells=[new_markdown_cell("# A lesson"), *map(new_code_cell, cells)])
        for cell in notebook.cells[1:]:
            cell.execution_count = 7  # a lesson is committed executed: what stands there is not this run's
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(drift, "ROOT", tmp_path)
    monkeypatch.setattr(drift, "RESULT", tmp_path / "benchmarks" / "results" / "drift.json")
    monkeypatch.setattr(drift, "constraints", lambda name, free_torch: {"name": name})
    return tmp_path


def test_the_table_says_where_each_lesson_breaks_and_why(course, monkeypatch, capsys):
    def make_environment(folder, keep_to):
        if keep_to["name"] == "newest":
            raise drift.DoesNotInstall("ERROR: no such release")
        return sys.executable

    monkeypatch.setattr(drift, "make_environment", make_environment)
    assert drift.main(["--in", "pinned", "newest", "--save"]) == 1
    rows = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    assert "runs (" in rows["00_runs"] and "does not install: ERROR: no such release" in rows["00_runs"]
    assert "| cell 2: ValueError: no field \\| of this name |" in rows["01_breaks"]
    assert "but warns: old argument" in rows["02_warns"]
    assert "DeadKernelError" in rows["03_dies"]
    assert rows["last run"].count(f"| {date.today().isoformat()} ") == 2, "in the table, not in a sentence beside it"
    saved = json.loads(drift.RESULT.read_text())["pinned"]
    assert saved["lessons"]["01_breaks"]["cell"] == 2 and saved["versions"]["torch"]
    drift.main(["00", "--in", "newest", "--save"])
    assert json.loads(drift.RESULT.read_text())["pinned"] == saved, "another run keeps this one's column"


def test_only_the_lessons_that_were_asked_for(course, monkeypatch, capsys):
    monkeypatch.setattr(drift, "make_environment", lambda folder, keep_to: sys.executable)
    assert drift.main(["00", "--in", "pinned"]) == 0
    printed = capsys.readouterr().out
    assert "00_runs" in printed and "01_breaks" not in printed and not drift.RESULT.exists()
    with pytest.raises(SystemExit):
        drift.main(["09"])
    assert "there are 00_runs, 01_breaks" in capsys.readouterr().err


def test_a_run_keeps_the_lessons_of_earlier_ones_with_the_same_versions(course, monkeypatch, capsys):
    monkeypatch.setattr(drift, "make_environment", lambda folder, keep_to: sys.executable)
    drift.main(["00", "--in", "pinned", "--save"])
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        whole = drift.attempt
        patch.setattr(drift, "attempt", lambda python, lesson, *rest: whole(python, lesson, *rest)
                      if lesson.stem == "01_breaks" else interrupted())
        drift.main(["01", "02", "--in", "pinned", "--save"])
    assert list(json.loads(drift.RESULT.read_text())["pinned"]["lessons"]) == ["00_runs", "01_breaks"]
    capsys.readouterr()
    drift.main(["02", "--in", "pinned", "--save"])
    assert "| 00_runs | runs" in capsys.readouterr().out, "what is saved is printed, not this run alone"
    monkeypatch.setattr(drift, "installed", lambda python: {"torch": "0"})
    drift.main(["02", "--in", "pinned", "--save"])
    assert list(json.loads(drift.RESULT.read_text())["pinned"]["lessons"]) == ["02_warns"], "rows of other versions go"


def interrupted():
    raise KeyboardInterrupt


def test_short_trainings_are_capped_and_lesson_0_leaves_its_adapter(course, monkeypatch, capsys):
    capped = "assert CAPPED\n"
    leaves = "from pathlib import Path\nPath('adapters/first').mkdir(parents=True)\n"
    finds = "from pathlib import Path\nassert Path('adapters/first').is_dir()\n"
    for name, source in {"00_first_adapter": capped + leaves, "05_alpha_scaling": capped + finds,
                         "06_other": capped + finds.replace("assert", "assert not")}.items():
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), course / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(twins, "CAP", "CAPPED = True\n")
    monkeypatch.setattr(twins, "FEWER", {})  # which knows the lesson's own text
    monkeypatch.setattr(drift, "make_environment", lambda folder, keep_to: sys.executable)
    assert drift.main(["00_first", "05", "06", "--in", "pinned", "--short"]) == 0
    assert "| trainings | few steps |" in capsys.readouterr().out


def test_the_committed_table_is_what_is_saved():
    saved = drift.table(drift.saved())
    assert saved in (drift.ROOT / "benchmarks" / "README.md").read_text(), f"benchmarks/README.md has another:\n{saved}"


def test_the_sets_of_versions():
    needed = {requirement.name: requirement for requirement in drift.requirements()}
    oldest = drift.constraints("oldest", free_torch=True)
    assert {name.lower() for name in needed} == set(oldest)
    assert oldest["transformers"] == next(s.version for s in needed["transformers"].specifier if s.operator == ">=")
    assert drift.constraints("newest", free_torch=True) == {}
    for name in ("newest", "colab", "oldest"):
        assert drift.constraints(name, free_torch=False)["torch"] == drift.constraints("pinned", False)["torch"]
    assert all(Requirement(str(needed[name])).specifier.contains(version)
               for name, version in drift.constraints("colab", free_torch=True).items() if name in needed)


def test_what_cannot_be_installed_is_said_in_uvs_words(tmp_path):
    with pytest.raises(drift.DoesNotInstall, match="torch==0.0.0"):
        drift.make_environment(tmp_path / "env", {"torch": "0.0.0"})
