"""Binder's own tool accepts the files in binder/, and what they run is what the course needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    for name in ("binder", "lora_lab", "pyproject.toml", "constraints.txt", "README.md", "environment.yml"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    return tmp_path


def test_repo2docker_accepts_the_folder(checkout):
    done = subprocess.run([sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."], cwd=checkout,
                          capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    # Not environment.yml, whose torch may bring CUDA: the files in binder/ go first.
    assert "Building conda environment for python=3.11" in said
    assert "RUN ./binder/postBuild" in said


def test_the_build_installs_the_pinned_torch_fetches_the_model_and_shows_the_learners_folder(checkout):
    stub = checkout / "stubs"
    stub.mkdir()
    for name in ("mamba", "python"):
        (stub / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {checkout}/log\n')
        (stub / name).chmod(0o755)
    assert os.access(checkout / "binder" / "postBuild", os.X_OK)
    jupyter = checkout / "prefix/etc/jupyter"
    jupyter.mkdir(parents=True)
    subprocess.run(["./binder/postBuild"], cwd=checkout, check=True, env={
        **os.environ, "PATH": f"{stub}:{os.environ['PATH']}", "NB_PYTHON_PREFIX": str(checkout / "prefix")})
    torch, course, model, lessons = (checkout / "log").read_text().splitlines()
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert torch.endswith(f"pytorch-cpu={pinned.removeprefix('torch==')}") and "--name notebook" in torch
    assert "-c constraints.txt" in course and course.endswith(".[lab]")
    assert model == "python -m lora_lab.cache" and lessons == "python -m lora_lab sync"
    assert (jupyter / "jupyter_server_config.py").read_text() == f"c.ServerApp.root_dir = '{checkout}/my-lessons'\n"
    assert (jupyter / "labconfig/default_setting_overrides.json").is_file()
