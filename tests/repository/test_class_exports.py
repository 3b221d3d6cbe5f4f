"""The exports for nbgrader and otter-grader: their marks, the solutions in them, and none in what learners get."""

import ast
import re
import tomllib
from pathlib import Path

import class_exports
import nbformat
import pytest
from lora_lab import LabError

ROOT = Path(__file__).parents[2]
SOLUTIONS = tomllib.loads((ROOT / "teacher/solutions.toml").read_text(encoding="utf-8"))
NBGRADER = re.compile(r"(?ms)^ *### BEGIN SOLUTION\n.*?### END SOLUTION")
OTTER = re.compile(r'(?ms)^ *# BEGIN SOLUTION NO PROMPT\n.*?# END SOLUTION\n?|^ *""" # (?:BEGIN|END) PROMPT\n')


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classroom")
    found = class_exports.write(folder)
    return {kind: [nbformat.read(file, 4) for file in found if kind in file.relative_to(folder).parts]
            for kind in ("nbgrader", "otter")}


def test_nbgraders_cells_are_as_its_schema_has_them(exports):
    for notebook in exports["nbgrader"]:
        nbformat.validate(notebook)
        marked = [(cell, cell.metadata.nbgrader) for cell in notebook.cells if "nbgrader" in cell.metadata]
        assert marked and len({marks.grade_id for _, marks in marked}) == len(marked)
        for (cell, own), (check, marks) in zip(marked[::2], marked[1::2]):
            assert own == {"schema_version": 3, "grade": False, "locked": False, "solution": True, "task": False,
                           "grade_id": own.grade_id}
            assert marks == {"schema_version": 3, "grade": True, "locked": True, "solution": False, "task": False,
                             "grade_id": f"{own.grade_id}-check", "points": 1}
            assert re.fullmatch(r"[\w-]+", own.grade_id) and NBGRADER.search(cell.source)
            assert "assert verdict.solved" in check.source


def test_each_exercise_is_asked_once_in_each_form(exports):
    asked = [cell.metadata.nbgrader.grade_id for notebook in exports["nbgrader"] for cell in notebook.cells
             if cell.metadata.get("nbgrader", {}).get("solution")]
    questions = [re.search("name: (.*)", cell.source)[1] for notebook in exports["otter"] for cell in notebook.cells
                 if cell.source.startswith("# BEGIN QUESTION")]
    assert sorted(asked) == sorted(questions) == sorted(SOLUTIONS)


def test_learners_get_the_lesson_as_handed_out_and_no_solution(exports):
    lessons = [nbformat.read(file, 4) for file in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    handed_out = {cell.id: cell.source for lesson in lessons for cell in lesson.cells}
    for kind, marks, stub in (("nbgrader", NBGRADER, "pass"), ("otter", OTTER, None)):
        for cell in (cell for notebook in exports[kind] for cell in notebook.cells if cell.cell_type == "code"):
            assert not cell.outputs
            learners = marks.sub(lambda found: re.match(" *", found[0])[0] + stub if stub else "", cell.source)
            if learners != cell.source:
                ast.parse(cell.source)
                ast.parse(learners)
                if kind == "otter":
                    assert learners.splitlines() == handed_out[cell.id].splitlines()


def test_without_the_solutions_nothing_is_written(tmp_path):
    with pytest.raises(LabError, match="teachers' zip"):
        class_exports.write(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
