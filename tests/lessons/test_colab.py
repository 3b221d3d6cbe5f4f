"""A machine like Colab: the notebook alone in an empty folder, other versions of shared packages, no course there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
import twins
from lone_run import execute

ROOT = Path(__file__).parents[2]
# Colab's published list at the last look (about June 2026). Its torch 2.11 comes with CUDA; here it is what is tested.
VERSIONS = ["ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel==6.17.1", "traitlets==5.7.1", "peft==0.19.1",
            "anywidget==0.9.21"]
NEEDED_BY_THESE = ["ipython_genutils", "backcall", "pickleshare", "decorator", "setuptools"]
COURSE = ("lora_lab", "__editable__", "gguf", "bitsandbytes", "mdit_py_plugins", "_lora")  # what is missing there
LIMIT = 180  # seconds for the set-up and the model, from an empty cache


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The Python of an environment that has what this one has, but the course, and some of it in Colab's versions."""
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    shared = folder / "shared"
    shared.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith((*COURSE, "pip")) and entry.suffix != ".pth":
            (shared / entry.name).symlink_to(entry)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, *VERSIONS, *NEEDED_BY_THESE], check=True)
    (site / "shared.pth").write_text(str(shared))
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()  # a package: accelerate asks for its __spec__
    (site / "sitecustomize.py").write_text("import google.colab\n")
    return python


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """A git remote with what is in this checkout now."""
    work, bare = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("remote") / "course.git"
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True,
                           text=True).stdout.splitlines()
    for name in names:
        if name.split("/")[0] not in ("notebooks", "tests", "benchmarks") and (ROOT / name).exists():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, work / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["clone", "-q", "--bare", ".", str(bare)]):
        subprocess.run([*git, *command], cwd=work, check=True)
    return bare.as_uri()


def versions(python):
    ask = "from importlib import metadata; import json; print(json.dumps({d.name: d.version for d in " \
          "reversed(list(metadata.distributions()))}))"
    return json.loads(subprocess.run([python, "-I", "-c", ask], check=True, capture_output=True, text=True).stdout)


def capped(notebook):
    """The lesson with few steps and commands, once its set-up has run: what it learns is not asked here."""
    second = [cell for cell in notebook.cells if cell.cell_type == "code"][1]
    second.source = twins.CAP + second.source
    return notebook


@pytest.mark.nightly
def test_lesson_0_sets_itself_up_and_runs(colab, remote, tmp_path):
    notebook = capped(nbformat.read(ROOT / "notebooks" / "00_first_adapter.ipynb", 4))
    before = versions(colab)
    assert "lora-lab" not in before and before["ipywidgets"] == "7.7.1"
    seconds = execute(colab, notebook, tmp_path / "content", {
        "LORA_LAB_REPOSITORY": remote, "LORA_LAB_PROGRESS": str(tmp_path / "progress.json"),
        "LORA_LAB_CACHE": str(tmp_path / "cache")})
    after = versions(colab)
    first = next(place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    said = "".join(output.get("text", "") for output in notebook.cells[first].outputs)
    assert "Ready: Python" in said and "peft 0.19.1" in said and "T4 GPU" in said
    loaded = next(place for place, cell in enumerate(notebook.cells)
                  if cell.cell_type == "code" and "load_base(" in cell.source)
    print(f"set-up {seconds[first]:.0f} s, with the model {sum(seconds[:loaded + 1]):.0f} s, all {sum(seconds):.0f} s")
    assert sum(seconds[:loaded + 1]) < LIMIT
    assert {name: after.get(name) for name in before} == before
    assert {"lora-lab", "gguf", "bitsandbytes", "mdit-py-plugins"} <= set(after)


def test_without_an_address_the_cell_says_what_to_do(colab, tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "notebooks" / "00_first_adapter.ipynb", 4)
    notebook.cells = [next(cell for cell in notebook.cells if cell.cell_type == "code")]
    subprocess.run([colab, "-m", "pip", "uninstall", "--quiet", "--yes", "lora-lab"], check=True)
    notebook.cells[0].source = notebook.cells[0].source.replace('"LORA_LAB_REPOSITORY", ', '"NONE", ') \
        .replace("https://", "")
    monkeypatch.delenv("LORA_LAB_REPOSITORY", raising=False)
    with pytest.raises(Exception, match="make lab"):
        execute(colab, notebook, tmp_path / "content")
    assert list(os.scandir(tmp_path / "content")) == []
