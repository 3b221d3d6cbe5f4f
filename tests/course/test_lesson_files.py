"""The wheel: what of the course is in it, and that from an empty folder it hands the lessons out."""

import configparser
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from lora_lab.course import lesson_files, progress_file, question_files
from lora_lab.course.progress_file import Record

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
COMMAND = """
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from lora_lab import cache
from lora_lab.__main__ import main
cache.model_folder = lambda: print("the model")
for name in ("jupyterlab", "jupyterlab.labapp"):  # whose import takes longer than all the rest
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__spec__ = ModuleSpec(name, None)
sys.modules[name].LabApp = type("LabApp", (), {"launch_instance": lambda arguments: print("JupyterLab", *arguments)})
sys.exit(main(sys.argv[1:]))
"""


def build(source, folder):
    done = subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel, = folder.glob("*.whl")
    return wheel, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    left_out = shutil.ignore_patterns("__pycache__", "adapters", "runs", "results")
    for name in ("lora_lab", "notebooks", "benchmarks", "LICENSES"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory):
    """The wheel as it lies in an environment; and its size in bytes."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel, _ = build(source, folder)
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site", wheel.stat().st_size


@pytest.fixture
def lora_lab(unpacked, tmp_path):
    """`lora-lab` of the wheel, in an empty folder or one named; JupyterLab says what it was asked for."""
    here = tmp_path / "empty"
    here.mkdir()
    env = {**os.environ, "PYTHONPATH": str(unpacked[0]), "LORA_LAB_PROGRESS": str(tmp_path / "progress.json")}

    def run(*arguments, cwd=here, code=0):
        done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], cwd=cwd, env=env, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.folder, run.progress = here, tmp_path / "progress.json"
    return run


def test_the_wheel_has_every_lesson_without_outputs_what_they_link_to_and_nothing_heavy(unpacked):
    site, size = unpacked
    packed = site / lesson_files.PACKED.relative_to(ROOT)
    lessons = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert [file.name for file in sorted((packed / "notebooks").iterdir())] == [file.name for file in lessons]
    for file in lessons:
        whole, content = (json.loads(one.read_text("utf-8")) for one in (file, packed / "notebooks" / file.name))
        assert [cell["source"] for cell in content["cells"]] == [cell["source"] for cell in whole["cells"]]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in content["cells"])
        assert all((packed / name).is_file() for name in lesson_files.linked(whole, ROOT))
    assert {entry.name.partition("-")[0] for entry in site.iterdir()} == {"lora_lab"}
    assert size < 3_000_000


def test_the_command_and_the_extras_are_in_its_metadata(unpacked):
    info, = unpacked[0].glob("*.dist-info")
    points = configparser.ConfigParser()
    points.read(info / "entry_points.txt")
    module, name = points["console_scripts"]["lora-lab"].split(":")
    assert callable(getattr(importlib.import_module(module), name))
    needed = [line for line in (info / "METADATA").read_text("utf-8").splitlines() if line.startswith("Requires-Dist")]
    tools = " ".join(line for line in needed if "extra ==" not in line)
    assert "torch" in tools and not any(name in tools for name in ("jupyter", "ipywidgets", "anywidget", "markdown"))


def test_from_an_empty_folder_a_lesson_opens_and_reset_progress_and_class_work(lora_lab, monkeypatch):
    first, second = (lesson.notebook for lesson in question_files.lessons()[:2])
    here, work = lora_lab.folder, lora_lab.folder / "my-lessons"
    said = lora_lab("open", "--no-browser", "--port", "8901")
    assert said.index("the model") < said.index("JupyterLab --")
    assert f"default_url=/lab/tree/{first}.ipynb" in said and f"root_dir={work}" in said
    assert said.rstrip().endswith("--no-browser --port 8901")
    assert f"/lab/tree/{second}.ipynb" in lora_lab("open", "01", "--no-browser")
    assert "no lesson '77'" in lora_lab("open", "77", code=1)
    links = [path for path in (work / "course").rglob("*") if path.is_file()]
    assert links and not list(here.rglob("*.tmp"))

    copy = work / f"{first}.ipynb"
    handed_out = copy.read_text("utf-8")
    copy.write_text(handed_out.replace("SEED", "MINE"), "utf-8")
    assert "mine-1" in lora_lab("reset", "00", "--yes", cwd=work), "from the learner's own folder too"
    assert copy.read_text("utf-8") == handed_out and not (work / "my-lessons").exists()

    monkeypatch.setenv("LORA_LAB_PROGRESS", str(lora_lab.progress))
    asked = question_files.lessons()[0].questions
    progress_file.change(asked[0].id, lambda kept: Record(attempts=1, solved=True))
    assert f"1 of {len(asked)}" in lora_lab("progress", "--export", "ann.json")
    assert f"1 of {len(asked)}" in lora_lab("class", "*.json") and (here / "class.csv").is_file()


def test_a_wheel_from_a_folder_without_lessons_says_that_it_has_none(source, tmp_path):
    bare = shutil.copytree(source, tmp_path / "bare", ignore=shutil.ignore_patterns("notebooks", "build"))
    wheel, said = build(bare, tmp_path / "out")
    assert "has the tools and no lessons" in said
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = subprocess.run([sys.executable, "-m", "lora_lab", "open"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 1 and "built without the lessons" in done.stderr and "Traceback" not in done.stderr


def test_a_link_out_of_the_course_is_not_followed(tmp_path):
    (tmp_path / "secret.md").write_text("not the course's")
    root = tmp_path / "course"
    (root / "notebooks").mkdir(parents=True)
    (root / "known.md").write_text("known")
    text = "[a](../known.md#there) [b](../../secret.md) [c](../none.md)"
    cells = [{"cell_type": "markdown", "source": text}, {"cell_type": "code", "source": "1", "outputs": ["1"]}]
    (root / "notebooks/00_a.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/of-an-earlier-build").touch()
    made = {file.relative_to(tmp_path / "out").as_posix() for file in lesson_files.pack(root, tmp_path / "out")}
    assert made == {"notebooks/00_a.ipynb", "known.md"} == {
        file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()}
