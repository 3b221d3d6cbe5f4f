"""The zips: the same bytes each time; the learners' one is whole and holds no solution."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import release
from lora_lab import LabError

ROOT = Path(__file__).parents[2]
SOLUTIONS = tomllib.loads((ROOT / "teacher/solutions.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    try:
        release.tracked()
    except LabError as error:
        pytest.skip(str(error))  # from a zip itself
    return release.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(zips, tmp_path_factory):
    """The learners' folder and the teachers'."""
    folder = tmp_path_factory.mktemp("unpacked")
    for file in zips:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    return tuple(folder / file.stem for file in zips)


def text(file):
    if file.suffix == ".ipynb":
        return "\n".join(cell.source for cell in nbformat.read(file, 4).cells)
    return file.read_bytes().decode("utf-8", "ignore")


def flat(source):
    return re.sub(r"\s+", " ", source)


def test_the_same_files_give_the_same_bytes(zips, tmp_path):
    assert [file.read_bytes() for file in zips] == [file.read_bytes() for file in release.build(tmp_path)]


def test_the_learners_zip_sets_up(unpacked, tmp_path):
    source = shutil.copytree(unpacked[0], tmp_path / "source")  # a build leaves files in it
    target = tmp_path / "target"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
         "--no-build-isolation", f"--target={target}", str(source)],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (target / "lora_lab/pocket/weights.safetensors").is_file()
    assert list(target.glob("lora_lab/course/questions/*.toml"))
    here = {file.name for file in unpacked[0].iterdir()}
    assert {"README.md", "Makefile", "constraints.txt", "environment.yml", "LICENSE", "binder"} <= here


def test_the_learners_lessons_are_there_and_executed(unpacked):
    lessons = sorted((unpacked[0] / "notebooks").glob("0*.ipynb"))
    assert [file.name for file in lessons] == [file.name for file in sorted((ROOT / "notebooks").glob("0*.ipynb"))]
    for file in lessons:
        assert any(cell.get("outputs") for cell in nbformat.read(file, 4).cells)


def test_no_solution_is_in_the_learners_zip(unpacked):
    """But for the quiz's own answers in questions/, which it shows after an attempt."""
    learners, teachers = unpacked
    files = {file: flat(text(file)) for file in learners.rglob("*") if file.is_file()}
    long = [part["by"] for parts in SOLUTIONS.values() for part in parts if len(part["by"]) > 30]
    assert len(long) > 10
    for solution in long:
        found = [file for file, content in files.items() if flat(solution) in content]
        assert {file.parent.name for file in found} <= {"questions"}, found
    assert not (learners / "tests").exists() and not (learners / "teacher").exists()
    assert flat(long[0]) in flat(text(teachers / "teacher/solutions.toml"))


def test_the_teachers_zip_has_the_rest(unpacked):
    learners, teachers = ({str(f.relative_to(top)) for f in top.rglob("*") if f.is_file()} for top in unpacked)
    assert teachers - learners >= {"teacher/solutions.toml", "docs/teaching.md", "tests/repository/test_release.py"}
    assert learners < teachers


def test_outside_a_clone_the_reason_is_given(tmp_path):
    with pytest.raises(LabError, match="git clone"):
        release.tracked(tmp_path)
