"""The browser of the tests: what is there is used, what is missing is installed, in that order."""

import subprocess

import get_browser
import pytest


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """No browser, no package manager; returns the commands that were run, all of which succeed."""
    ran = []

    def run(command, **_):
        ran.append(" ".join(map(str, command)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(get_browser, "APPLICATIONS", ())
    monkeypatch.setattr(get_browser, "_playwrights_own", lambda: None)
    monkeypatch.setattr(subprocess, "run", run)
    return ran


def executable(folder, name):
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_what_is_there_is_used(bare_machine, tmp_path, monkeypatch):
    assert get_browser.find() is None
    chrome = executable(tmp_path, "google-chrome")
    assert get_browser.find() == chrome
    other = executable(tmp_path, "my-browser")
    monkeypatch.setenv("CHROMIUM", other)
    assert get_browser.find() == other
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    assert get_browser.find() is None, "a wrong name is not replaced in silence"
    get_browser.main()
    assert bare_machine == [], "whoever names a browser wants that one"


def test_debian_installs_its_package(bare_machine, tmp_path, monkeypatch):
    executable(tmp_path, "apt-get")
    monkeypatch.setattr(get_browser.os, "geteuid", lambda: 0)
    get_browser.main()
    assert bare_machine == ["apt-get update -qq", "apt-get install -y -qq chromium"]


def test_an_ordinary_user_is_not_asked_for_a_password(bare_machine, tmp_path, monkeypatch):
    executable(tmp_path, "apt-get")
    monkeypatch.setattr(get_browser.os, "geteuid", lambda: 1000)
    get_browser.main()
    assert len(bare_machine) == 1 and bare_machine[0].endswith("-m playwright install chromium"), "no sudo here"
    executable(tmp_path, "sudo")
    get_browser.main()
    assert bare_machine[1].startswith("sudo -n apt-get")


def test_playwright_where_there_is_no_apt(bare_machine):
    get_browser.main()
    assert [command.partition(" -m ")[2] for command in bare_machine] == ["playwright install chromium"]
