"""The one image of Binder, Codespaces and classrooms: Binder's own tool takes its file, whose steps do as they say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from traitlets.config.loader import PyFileConfigLoader

ROOT = Path(__file__).parents[2]
FILE = ROOT / "binder/Dockerfile"
STEPS = re.findall(r"(?m)^([A-Z]+) (.+)$", FILE.read_text("utf-8").replace("\\\n", " "))
JUPYTER = "/usr/local/etc/jupyter"  # where Jupyter under Debian's image of Python reads settings for everybody


def steps(name):
    return [what for kind, what in STEPS if kind == name]


@pytest.fixture
def checkout(tmp_path):
    for name in ("binder", "lora_lab/course/jupyter", "pyproject.toml", "constraints.txt", "environment.yml"):
        (target := tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / name, target) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, target)
    return tmp_path / "home"


def test_repo2docker_builds_from_the_file(checkout):
    done = subprocess.run([sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."], cwd=checkout,
                          capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    # Not environment.yml, whose torch may bring CUDA: the files in binder/ go first.
    assert FILE.read_text("utf-8") in said, "this is what it would build"


def test_the_image_is_as_binder_asks():
    base, = steps("FROM")
    assert re.fullmatch(r"[\w/]+:(?!latest$)[\w.-]+", base), "a tag, and not latest"
    assert not steps("ENTRYPOINT"), "it would get the arguments that Binder passes"
    given = dict(line.split("=") for line in steps("ARG"))
    assert given["NB_UID"] == "1000" and "--uid ${NB_UID} ${NB_USER}" in " ".join(steps("RUN"))
    assert "HOME=/home/${NB_USER}" in steps("ENV")[0] and ". ${HOME}" in steps("COPY")
    kinds = [kind for kind, _ in STEPS]
    assert steps("USER") == ["${NB_USER}"] and "RUN" not in kinds[kinds.index("USER"):], "no root at the end"
    assert not re.search(r"==\d", FILE.read_text("utf-8")), "versions are in constraints.txt"


def test_the_build_installs_the_pinned_cpu_torch_and_the_hubs_packages_bakes_the_model_in_and_hands_out(checkout):
    if sys.platform == "win32":
        pytest.skip("the steps are a shell's")
    stubs = checkout.parent / "stubs"
    stubs.mkdir()
    for name in ("apt-get", "rm", "useradd", "pip", "python", "chown"):
        (stubs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {checkout.parent}/log\n')
        (stubs / name).chmod(0o755)
    settings = checkout.parent / "jupyter"
    for step in steps("RUN"):
        subprocess.run(["sh", "-ec", step.replace(JUPYTER, str(settings))], cwd=checkout, check=True, env={
            "PATH": f"{stubs}:{os.environ['PATH']}", "HOME": "/home/some-one", "NB_USER": "some-one", "NB_UID": "1000"})
    log = (checkout.parent / "log").read_text().splitlines()
    torch, course = (line for line in log if line.startswith("pip install"))
    assert "-c constraints.txt torch" in torch and torch.endswith("/whl/cpu")
    assert "-c constraints.txt" in course and course.endswith(".[hub]")
    pinned = (checkout / "constraints.txt").read_text()
    for name in ("torch", "jupyterlab", "notebook", "jupyterhub", "nbgitpuller"):
        assert re.search(rf"(?m)^{name}==", pinned), name
    assert log[-3:] == ["python -m lora_lab.cache", "python -m lora_lab sync", "chown -R 1000 /home/some-one"]
    assert (settings / "labconfig/default_setting_overrides.json").is_file()
    assert (settings / "jupyter_server_config.py").is_file()


def test_jupyter_shows_the_learners_folder_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))

    def shown():
        return PyFileConfigLoader("jupyter_server_config.py", path=str(FILE.parent)).load_config()

    assert "root_dir" not in shown().ServerApp, "Jupyter does not start in a folder that is missing"
    (tmp_path / "my-lessons").mkdir()
    assert shown().ServerApp.root_dir == str(tmp_path / "my-lessons")


def test_no_image_holds_the_solutions():
    assert "teacher" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()


def test_codespaces_builds_the_same_image_for_the_same_user():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text("utf-8"))
    folder = ROOT / ".devcontainer"
    assert (folder / container["build"]["dockerfile"]).resolve() == FILE
    assert (folder / container["build"]["context"]).resolve() == ROOT
    assert f"NB_USER={container['remoteUser']}" in steps("ARG")
