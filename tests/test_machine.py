import pytest
from lora_lab import LabError, machine
from packaging.requirements import Requirement


def test_this_environment_fits_and_one_line_says_what_runs_where(capsys):
    assert machine.misfits() == []
    machine.report()
    said = capsys.readouterr().out
    assert said.startswith("Ready: Python") and "torch" in said and said.count("\n") == 1


def test_a_package_too_old_and_one_missing_are_named(monkeypatch):
    monkeypatch.setattr(machine, "requirements", lambda: [
        (Requirement("peft>=0.19.1"), "0.18.0"), (Requirement("gguf>=0.17"), None), (Requirement("torch>=2"), "2.11")])
    with pytest.raises(LabError, match="peft is 0.18.0, expected >=0.19.1; gguf is missing, expected >=0.17.") as error:
        machine.report()
    assert "torch" not in str(error.value)


def test_nothing_missing_starts_no_pip(monkeypatch):
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    machine.complete()


def test_an_install_that_fails_shows_what_pip_said(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(machine, "requirements", lambda: [(Requirement("lora-lab-not-a-package>=1"), None)])
    with pytest.raises(LabError, match="(?s)could not add lora-lab-not-a-package>=1.*No matching distribution"):
        machine.complete()
