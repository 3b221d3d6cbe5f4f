"""Workflows and what stands beside them: they parse, ask for few rights, and call what is there, as `make` does."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
RECIPES = dict(re.findall(r"(?m)^(\w+):\n((?:\t.*\n)+)", MAKEFILE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RIGHTS = {  # what a job may do beyond reading the code, and why nothing less would do
    "drift.yml": {"lessons": {"contents": "read", "issues": "write"}},  # opens an issue
    "site.yml": {"deploy": {"pages": "write", "id-token": "write"}},
    "release.yml": {"publish": {"id-token": "write"}},  # trusted publishing
}


def read(file):
    found = yaml.safe_load(file.read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}  # YAML 1.1 takes "on" for yes


def steps(file):
    return [(name, step) for name, job in read(file)["jobs"].items() for step in job["steps"]]


def lines(file):
    """What the steps run, a command each."""
    return [line.strip() for _, step in steps(file) for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_workflow_reads_the_code_and_may_do_no_more_than_its_job_needs(file):
    found = read(file)
    assert found["permissions"] == {"contents": "read"}
    asked = {name: job["permissions"] for name, job in found["jobs"].items() if "permissions" in job}
    assert asked == RIGHTS.get(file.name, {})
    assert all(job["timeout-minutes"] <= 300 for job in found["jobs"].values())
    for _, step in steps(file):
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", ""), "text from outside reaches a shell as a variable, never as code"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_actions_are_githubs_or_pypas_by_their_major_version(file):
    for used in (step["uses"] for _, step in steps(file) if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v\d+", used), used


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_workflow_calls_is_there(file):
    for line in lines(file):
        words = shlex.split(line.partition(" | ")[0])
        if words[:1] == ["make"]:
            assert words[1] in RECIPES and not words[1].startswith("-")
        if words[:2] == ["python", "tools/set_up.py"]:
            extras, then = words[2].split(","), words[3:]
            assert set(extras) <= set(PROJECT["optional-dependencies"])
            assert then[0] == "-m" or (ROOT / then[0]).is_file()
            assert all((ROOT / word).exists() for word in then if word.endswith(".py"))
    assert any(line.startswith(("make ", "python tools/set_up.py")) for line in lines(file))


def test_every_system_and_python_of_the_readme_is_checked_and_windows_runs_what_make_does():
    jobs = read(ROOT / ".github/workflows/check.yml")["jobs"]
    lowest, newest = map(int, re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    pythons = [f"3.{minor}" for minor in range(lowest, newest)]
    assert all(job["strategy"]["matrix"]["python"] == pythons for job in jobs.values())
    systems = {*jobs["unix"]["strategy"]["matrix"]["os"], jobs["windows"]["runs-on"]}
    assert systems == {"ubuntu-latest", "macos-latest", "windows-latest"}
    recipe = (RECIPES["check"] + RECIPES["lesson"]).replace(" $(ARGS)", "").replace("$(LESSON)", "00_first_adapter")
    wanted = [line.strip().replace("@$(SET_UP)", "python tools/set_up.py") for line in recipe.splitlines()]
    ran = [step["run"] for step in jobs["windows"]["steps"] if "run" in step]
    assert ran == wanted


def test_the_hooks_are_lines_of_make_check_and_fetch_nothing():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    style, types, twins = (hook["entry"].removeprefix("python tools/set_up.py ") for hook in repos[0]["hooks"])
    assert f"$(SET_UP) {style}\n" in RECIPES["check"] and f"$(SET_UP) {types}\n" in RECIPES["check"]
    tests = (ROOT / "tests/lessons/test_notebooks.py").read_text("utf-8")
    chosen = shlex.split(twins)[-1].split(" or ")
    assert all(re.search(rf"def test_\w*{word}", tests) for word in chosen) and len(chosen) == 2


@pytest.mark.parametrize("name", ["lesson_breaks", "sentence_is_wrong", "idea"])
def test_an_issues_form_has_what_the_host_asks_for(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text("utf-8"))
    assert form["name"] and form["description"] and form["body"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) and any(f.get("validations", {}).get("required") for f in form["body"])
    assert all(field["type"] in ("input", "textarea", "checkboxes") and field["attributes"]["label"]
               for field in form["body"])


def test_the_commands_of_image_and_container_are_scripts_of_the_package():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text("utf-8"))
    file = (ROOT / "binder/Dockerfile").read_text("utf-8")
    for words in (container["postCreateCommand"].split(), json.loads(re.search(r"(?m)^CMD (.*)$", file)[1])):
        assert words[0] in PROJECT["scripts"]


def test_version_and_licences_are_the_same_in_every_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["version"] and citation["authors"]
    assert " AND ".join(citation["license"]) == PROJECT["license"]
    newest = re.search(r"(?m)^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text("utf-8"))[1]
    assert newest == PROJECT["version"]
    for section in range(1, 9):
        assert f"Section {section} " in (ROOT / "LICENSES/CC-BY-4.0.txt").read_text("utf-8")
    assert all(list(ROOT.glob(pattern)) for pattern in PROJECT["license-files"])
