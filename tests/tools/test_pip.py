"""What fetches packages for this Python: its own pip, the one that Python brings along, another's, or uv."""

import sys
from pathlib import Path

import pytest
from lora_lab import LabError, _pip

FILE = Path("requirement.txt")


@pytest.fixture
def found(monkeypatch):
    """Says which programs are on the PATH, and whether this Python has a pip."""
    def set_up(own, **programs):
        monkeypatch.setattr(_pip, "_pip", lambda: [sys.executable, "-m", "pip"] if own else None)
        monkeypatch.setattr(_pip.shutil, "which", programs.get)

    return set_up


def test_this_pythons_pip_comes_first(found):
    found(True, uv="/bin/uv", pip="/bin/pip")
    assert _pip.installing()[:4] == [sys.executable, "-m", "pip", "install"]
    assert _pip.fetching(FILE, Path("to"))[:4] == [sys.executable, "-m", "pip", "download"]


def test_uv_does_it_where_there_is_no_pip(found):
    found(False, uv="/bin/uv", pip="/bin/pip")
    for command in (_pip.installing(), _pip.fetching(FILE, Path("to"))):
        assert command[:5] == ["/bin/uv", "pip", "install", "--python", sys.executable]


def test_another_pythons_pip_fetches_and_never_installs(found):
    found(False, pip3="/bin/pip3")
    assert _pip.fetching(FILE, Path("to"))[:2] == ["/bin/pip3", "download"]
    with pytest.raises(LabError, match="has no pip, and there is no uv"):
        _pip.installing()


def test_a_wheel_is_fetched_by_its_hash_alone(found):
    for pip in (True, False):
        found(pip, uv="/bin/uv")
        assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(_pip.fetching(FILE, Path("to")))


def test_the_pip_that_python_brings_is_found_where_the_environment_has_none(monkeypatch):
    there = _pip.util.find_spec
    monkeypatch.setattr(_pip.util, "find_spec", lambda name: None if name == "pip" else there(name))
    command = _pip._pip()
    if command:  # Debian may keep none
        assert command[0] == sys.executable and command[1].endswith("pip")
