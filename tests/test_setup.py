"""The set-up files agree with each other, and an interrupted set-up is noticed."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
PINS = dict(
    line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

# Stands in for Python: logs its arguments, makes a virtual environment of itself, fails where told to.
STUB = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"pip install"*) exit ${PIP_EXIT:-0} ;;
esac
"""


def test_every_dependency_is_pinned_within_its_range():
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for extra in extras.values() for line in extra]
    for requirement in map(Requirement, lines):
        if requirement.name != PROJECT["name"]:  # an extra that includes another
            assert requirement.specifier.contains(PINS[requirement.name]), requirement


@pytest.mark.parametrize("file", ["environment.yml", "binder/postBuild", "README.md", "Makefile"])
def test_no_version_is_written_twice(file):
    assert not re.search(r"[a-z]\s*[=<>~]=\s*\d+\.\d", (REPOSITORY / file).read_text())


@pytest.fixture
def make(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    stub = tmp_path / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    log = tmp_path / "log"

    def run(*targets, **env):
        log.write_text("")
        done = subprocess.run(
            ["make", *targets, "PYTHON=./stub"], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "LOG": str(log), "MAKEFLAGS": "", **env},
        )
        done.calls = log.read_text()
        return done

    run.folder = tmp_path
    return run


def test_make_alone_lists_the_targets(make):
    printed = make().stdout
    targets = ("lab", "test", "setup", "notebooks", "bench", "site", "clean")
    assert all(f"make {target}" in printed for target in targets)


def test_second_set_up_installs_nothing(make):
    assert "pip install" in make("test").calls
    again = make("test")
    assert again.returncode == 0 and "pip install" not in again.calls and "-m pytest" in again.calls


def test_changed_constraints_are_installed(make):
    make("setup")
    with open(make.folder / "constraints.txt", "a") as file:
        file.write("six==1.17.0\n")
    again = make("setup")
    assert "pip install" in again.calls and "-m venv --clear" not in again.calls


def test_an_update_that_fails_keeps_the_environment_and_is_tried_again(make):
    make("setup")
    (make.folder / ".venv/installed-before").touch()
    with open(make.folder / "constraints.txt", "a") as file:
        file.write("six==1.17.0\n")
    assert make("setup", PIP_EXIT="1").returncode != 0
    again = make("setup")
    assert "pip install" in again.calls and "did not finish" not in again.stdout
    assert (make.folder / ".venv/installed-before").exists() and "pip install" not in make("setup").calls


def test_another_published_address_installs_nothing(make):
    make("setup")
    file = make.folder / "pyproject.toml"
    text = re.sub(r'(?m)^repository = ".*"$', 'repository = "https://github.com/some-one/course"', file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    assert "pip install" not in make("setup").calls


def test_any_address_reaches_the_tool_whole(make):
    assert "tools/publish.py a'b/c" in make("publish", "REPO=a'b/c").calls


def test_interrupted_set_up_is_started_over(make):
    broken = make("test", PIP_EXIT="1")
    assert broken.returncode != 0 and "-m pytest" not in broken.calls
    (make.folder / ".venv/half-written").touch()
    again = make("test")
    assert again.returncode == 0 and "did not finish" in again.stdout and "pip install" in again.calls
    assert not (make.folder / ".venv/half-written").exists()


def test_old_python_is_named(make):
    (make.folder / "stub").write_text("#!/bin/sh\nexit 1\n")
    done = make("setup")
    assert done.returncode != 0 and "Python 3.11 or newer" in done.stdout + done.stderr
