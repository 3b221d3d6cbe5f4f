import subprocess
import sys

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


def test_the_least_of_all_limits_counts(monkeypatch):
    monkeypatch.delenv("LORA_LAB_MEMORY_GB", raising=False)
    monkeypatch.delenv("MEM_LIMIT", raising=False)
    whole = machine.memory_limit()
    assert 0 < whole <= machine.psutil.virtual_memory().total
    monkeypatch.setenv("MEM_LIMIT", str(2 * 2**30))  # as JupyterHub says it
    assert machine.memory_limit() == min(whole, 2 * 2**30)
    monkeypatch.setenv("LORA_LAB_MEMORY_GB", "1.5")
    assert machine.memory_limit() == 1_500_000_000


def test_a_limit_set_by_ulimit_counts():
    resource = pytest.importorskip("resource")
    code = "from lora_lab import machine; print(machine.memory_limit())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=lambda:
                          resource.setrlimit(resource.RLIMIT_DATA, (3 * 10**9, resource.RLIM_INFINITY)))
    assert int(done.stdout) == 3 * 10**9


def test_the_smaller_path_is_said(monkeypatch, capsys):
    monkeypatch.setenv("LORA_LAB_MEMORY_GB", "2")
    assert machine.has_memory(1.5, "nothing") and not capsys.readouterr().out
    assert not machine.has_memory(5, "it trains less")
    assert "up to 5 GB of memory and there is 2.0 GB. The smaller path: it trains less." in capsys.readouterr().out
