"""The quiz and the sliders with ipywidgets 7.7.1, which Colab has; its own tests run again, beside that version."""

import os
import re
import subprocess
import sys
from pathlib import Path

import lesson_runs
import nbformat
import pytest
from lora_lab.course import question_files

OLD = ["ipywidgets==7.7.1", "ipython_genutils"]  # what Colab had at the last look, and what that needs
TESTS = Path(__file__).parents[1]
ASK = "---\n".join(  # a cell a lesson: nbval waits five seconds for the outputs of one
    f"for question in question_files.lessons()[{place}].questions:\n"
    "    if not hasattr(question, 'check'):\n        quiz(question.id)\n"
    for place in range(len(question_files.lessons())))
CELLS = f"""\
import ipywidgets
assert ipywidgets.__version__ == "7.7.1"
---
from pathlib import Path
from lora_lab.course import explorers, question_files
from lora_lab import compare, progress, quiz
---
{ASK}---
compare("first/told", 0.5)
---
progress()
---
question_files.FOLDER = Path({str(TESTS / "questions")!r})
question_files.lessons.cache_clear()
quiz("every/code", lambda commands, answers: {{}})
---
explorers.slide(lambda r: r, "rank", 1, 8, start=2)
---
import torch
explorers.ranks({{"a": torch.eye(4)}})"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    site = tmp_path_factory.mktemp("ipywidgets-7")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", site, *OLD], check=True)
    return {**os.environ, "PYTHONPATH": str(site)}


@pytest.mark.nightly
def test_the_quiz_without_a_browser(environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "course/test_quizzes.py",
               "course/test_explorers.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


def test_every_question_in_a_notebook(environment, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS.split("---\n")])
    run = lesson_runs.run_cells(notebook, tmp_path, environment)
    assert run.returncode == 0 and run.passed == len(notebook.cells), run.said[-4000:]
