"""Write each lesson as nbgrader and as otter-grader take it, for teachers: `python tools/class_exports.py`.

A lesson's exercises hold the solutions of teacher/solutions.toml, marked so that either tool takes them out of what
learners get; after each stands the course's own check, worth a point. All else of the lesson is as it was.
"""

import ast
import re
import sys
import textwrap
import tomllib
from pathlib import Path

import nbformat
from lora_lab import LabError
from nbformat.v4 import new_code_cell, new_raw_cell

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "dist/classroom"
CALL = re.compile(r'^quiz\("\w+/(\w+)", ', re.MULTILINE)  # of an exercise
CHECK = """\
# The course's check, on inputs of its own.
from lora_lab.course import exercises, question_files

verdict = exercises.grade(question_files.find({question!r}), ({answer},))
assert verdict.solved, verdict.text"""
# A cell may take a minute and a half on two cores: nbgrader's own limit is too short.
NBGRADER_CONFIG = """\
c = get_config()
c.CourseDirectory.course_id = "lora-lab"
c.Execute.timeout = 900
"""


def parts(handed_out: str, solved: str) -> tuple[list[str], ...]:
    """Return the lines of a cell before its exercise's gap, in it as handed out and as solved, and after it.

    The gap is as small as whole statements of one body can be.
    """
    old, new = ast.parse(handed_out).body, ast.parse(solved).body
    while True:
        first = next(n for n, pair in enumerate(zip(old, new)) if not _same(*pair))
        last = next(n for n, pair in enumerate(zip(old[::-1], new[::-1])) if not _same(*pair))
        old, new = old[first:len(old) - last], new[first:len(new) - last]
        if len(old) == len(new) == 1 and _head(old[0]) and _head(old[0]) == _head(new[0]):
            old, new = old[0].body, new[0].body
        else:
            break
    lines, place = handed_out.splitlines(), slice(old[0].lineno - 1, old[-1].end_lineno)
    filled = solved.splitlines()[new[0].lineno - 1:new[-1].end_lineno]
    return lines[:place.start], lines[place], filled, lines[place.stop:]


def _same(one: ast.stmt, other: ast.stmt) -> bool:
    return ast.dump(one) == ast.dump(other)


def _head(node: ast.stmt) -> str:
    """What stands before the body of a function or class; empty for other statements."""
    return ast.unparse(node).partition(":\n")[0] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else ""


def for_nbgrader(cell, exercise: str, gap: tuple, check) -> list:
    """Return the cells of an exercise: its own, whose solution nbgrader takes out, and the locked check."""
    before, handed_out, solved, after = gap
    indent = re.match(r" *", solved[0])[0]
    told = [f"{indent}# {line}" for line in ["handed out as:", *textwrap.dedent("\n".join(handed_out)).splitlines()]]
    cell.source = "\n".join([
        *before, *told, f"{indent}### BEGIN SOLUTION", *solved, f"{indent}### END SOLUTION", *after])
    common = {"schema_version": 3, "task": False}
    cell.metadata["nbgrader"] = {**common, "grade": False, "solution": True, "locked": False, "grade_id": exercise}
    check.metadata["nbgrader"] = {**common, "grade": True, "solution": False, "locked": True, "points": 1,
                                  "grade_id": f"{exercise}-check"}
    return [cell, check]


def for_otter(cell, exercise: str, gap: tuple, check) -> list:
    """Return the cells of a question as `otter assign` reads it; learners get what the lesson hands out."""
    before, handed_out, solved, after = gap
    indent = re.match(r" *", solved[0])[0]
    cell.source = "\n".join([
        *before, f'{indent}""" # BEGIN PROMPT', *handed_out, f'{indent}""" # END PROMPT',
        f"{indent}# BEGIN SOLUTION NO PROMPT", *solved, f"{indent}# END SOLUTION", *after])
    marks = [f"BEGIN QUESTION\nname: {exercise}\npoints: 1", "BEGIN SOLUTION", "END SOLUTION", "BEGIN TESTS",
             "END TESTS", "END QUESTION"]
    begin, solution, solution_end, tests, tests_end, end = (
        new_raw_cell(f"# {mark}", id=f"{cell.id}-{n}") for n, mark in enumerate(marks))
    return [begin, solution, cell, solution_end, tests, check, tests_end, end]


def export(lesson: Path, solutions: dict, as_cells):
    """Return the notebook of `lesson` without outputs, its exercises as `as_cells` writes them."""
    notebook, cells = nbformat.read(lesson, 4), []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
        if cell.cell_type != "code" or not (call := CALL.search(cell.source)):
            cells.append(cell)
            continue
        asked = ast.parse(cell.source[call.start():]).body[0].value.args
        solved = cell.source
        for part in solutions[call[1]]:
            solved = solved.replace(part["replace"], part["by"])
        check = new_code_cell(CHECK.format(question=asked[0].value, answer=", ".join(map(ast.unparse, asked[1:]))),
                              id=f"{cell.id}-check")
        cells += as_cells(cell, call[1], parts(cell.source, solved), check)
    if as_cells is for_otter:
        cells.insert(0, new_raw_cell(f"# ASSIGNMENT CONFIG\nname: {lesson.stem}\nexport_cell: false", id="config"))
    notebook.cells = cells
    return notebook


def write(folder: Path = FOLDER, root: Path = ROOT) -> list[Path]:
    """Write every lesson in both forms into `folder`; returns the notebooks. Raises LabError without the solutions."""
    file, written = root / "teacher/solutions.toml", []
    if not file.is_file():
        raise LabError("There is no teacher/solutions.toml here: exports are made from the teachers' zip or a clone.")
    solutions = tomllib.loads(file.read_text(encoding="utf-8"))
    for kind, as_cells in (("nbgrader/source", for_nbgrader), ("otter", for_otter)):
        for lesson in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
            place = folder / kind / lesson.stem / lesson.name
            place.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(export(lesson, solutions, as_cells), place)
            written.append(place)
    (folder / "nbgrader/nbgrader_config.py").write_text(NBGRADER_CONFIG, encoding="utf-8")
    return written


if __name__ == "__main__":
    try:
        print(f"{len(write())} notebooks in {FOLDER.relative_to(ROOT)}/nbgrader and /otter: they hold the solutions.")
    except LabError as error:
        sys.exit(str(error))
