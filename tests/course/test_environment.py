import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import small_wheel
from lora_lab import LabError
from lora_lab.course import environment
from packaging.requirements import Requirement


def test_this_environment_fits_and_one_line_says_what_runs_where(capsys):
    assert environment.misfits() == []
    environment.report()
    said = capsys.readouterr().out
    assert said.startswith("Ready: Python") and "torch" in said and said.count("\n") == 1


def test_what_lessons_need_is_asked_of_pip_without_the_extra_that_it_is_of(monkeypatch):
    lines = ["torch>=2", 'anywidget>=0.9; extra == "course"', 'jupyterlab>=4; extra == "lab"']
    monkeypatch.setattr(environment.metadata, "requires", lambda name: lines)
    assert [str(needed) for needed, _ in environment.requirements()] == ["torch>=2", "anywidget>=0.9"]


def test_a_package_too_old_and_one_missing_are_named(monkeypatch):
    monkeypatch.setattr(environment, "requirements", lambda: [
        (Requirement("peft>=0.19.1"), "0.18.0"), (Requirement("gguf>=0.17"), None), (Requirement("torch>=2"), "2.11")])
    with pytest.raises(LabError, match="peft is 0.18.0, expected >=0.19.1; gguf is missing, expected >=0.17.") as error:
        environment.report()
    assert "torch" not in str(error.value)


def test_nothing_missing_starts_no_pip(monkeypatch):
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    environment.complete()


def test_an_install_that_fails_shows_what_pip_said(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(environment, "requirements", lambda: [(Requirement("lora-lab-not-a-package>=1"), None)])
    with pytest.raises(LabError, match="(?s)could not add lora-lab-not-a-package>=1.*No matching distribution"):
        environment.complete()


COMPLETE = """
import sys
from lora_lab import _pip
from lora_lab.course import environment
from packaging.requirements import Requirement
if sys.argv[1] == "uv":
    _pip._pip = lambda: None
environment.requirements = lambda: [(Requirement("small-model"), None)]
environment.complete()
import small_model
print(small_model.__file__)
"""


@pytest.mark.parametrize("by", ["ensurepip", "uv"])
def test_what_is_missing_is_added_where_the_environment_has_no_pip(tmp_path, by):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (tmp_path / "shared").mkdir()
    for package in (psutil.__file__, sys.modules["packaging"].__file__):  # all that the module needs
        (tmp_path / "shared" / Path(package).parent.name).symlink_to(Path(package).parent)
    index = small_wheel.make(tmp_path / "index", file=("small_model/__init__.py", "")).parent
    done = subprocess.run(
        [tmp_path / "env" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"), "-c", COMPLETE, by],
        capture_output=True, text=True, env={
            **os.environ, **small_wheel.only(index),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{Path(environment.__file__).parents[2]}{os.pathsep}{tmp_path / 'shared'}"})
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path / "env")), done.stdout + done.stderr
