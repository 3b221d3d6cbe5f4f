"""The set-up: whose folder it is, once, interrupted, two at a time; what it refuses; and the pins, for every system."""

import ast
import functools
import hashlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import set_up
import small_wheel
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PINS = dict(
    line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.11.0", "3.12.0", "3.13.0", "3.14.0"]  # the lowest of what the README names, and each after it
LOWEST = ("--resolution", "lowest-direct")  # of uv: of what is asked for, not of what that asks for
SYSTEMS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "x86_64-pc-windows-msvc", "aarch64-apple-darwin"]

# Stands in for Python: logs its arguments, makes a virtual environment of itself, is slow and fails where told to.
STUB = """#!/bin/sh
[ "$1" = -c ] && exit 0
echo "$@${PYTHONDONTWRITEBYTECODE:+, and compiles it again each time}" >> "$LOG"
case "$*" in
  "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"pip install"*) sleep ${PIP_SECONDS:-0}; exit ${PIP_EXIT:-0} ;;
esac
"""
STUB_UV = """#!/bin/sh
echo uv "$@" >> "$LOG"
for last; do :; done
case "$1" in
  venv) mkdir -p "$last/bin" && cp "$(dirname "$0")/stub" "$last/bin/python" ;;
  pip) exit ${UV_EXIT:-0} ;;
esac
"""
DRIVER = """
import os, sys
sys.path.insert(0, "tools")
import set_up
sys.executable = os.path.abspath("stub")
set_up.torch_index = lambda: os.environ.get("TORCH_INDEX", "")
set_up.find_uv = lambda: os.environ.get("STUB_UV")
set_up.main(sys.argv[1:])
"""


def test_every_dependency_is_pinned_within_its_range():
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for extra in extras.values() for line in extra]
    for requirement in map(Requirement, lines):
        if requirement.name != PROJECT["name"]:  # an extra that includes another
            assert requirement.specifier.contains(PINS[requirement.name]), requirement


@pytest.mark.parametrize("file", ["environment.yml", "binder/Dockerfile", "README.md", "Makefile"])
def test_no_version_is_written_twice(file):
    assert not re.search(r"[a-z]\s*[=<>~]=\s*\d+\.\d", (REPOSITORY / file).read_text())


@pytest.fixture
def course(tmp_path):
    """A folder with the set-up's files and the stub; starts the set-up in it."""
    if sys.platform == "win32":
        pytest.skip("the stub is a shell script")
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "locked.txt", "tools/set_up.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "stub").write_text(STUB)
    (tmp_path / "uv").write_text(STUB_UV)
    for name in ("stub", "uv"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "driver.py").write_text(DRIVER)
    log = tmp_path / "log"

    def start(*command, **env):
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "LOG": str(log), "MAKEFLAGS": "", "ARGS": "", **env},
        )

    def run(*arguments, command=(sys.executable, "driver.py"), **env):
        log.write_text("")
        process = start(*command, *arguments, **env)
        process.said = process.communicate()[0]
        process.calls = log.read_text()
        return process

    run.start, run.folder, run.log = start, tmp_path, log
    return run


@pytest.fixture
def make(course):
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")

    def run(*targets, **env):
        return course(*targets, command=("make", f"SET_UP={sys.executable} driver.py"), **env)

    run.folder = course.folder
    return run


def test_make_alone_lists_the_targets(make):
    printed = make().said
    targets = ("lab", "test", "setup", "notebooks", "bench", "site", "clean")
    assert all(f"make {target}" in printed for target in targets)


def test_second_set_up_installs_nothing(make):
    assert "pip install" in make("test").calls
    again = make("test")
    assert again.returncode == 0 and "pip install" not in again.calls and "-m pytest" in again.calls


def test_learners_get_what_learners_need_and_developers_the_rest_in_the_same_folder(make):
    first = make("lab").calls
    assert "-e .[lab]\n" in first and "-m lora_lab open" in first
    (make.folder / ".venv/installed-before").touch()
    second = make("test").calls
    assert "-e .[lab,test]\n" in second and "-m venv" not in second
    assert (make.folder / ".venv/installed-before").exists()
    assert "pip install" not in make("lab").calls + make("test").calls
    assert "-e .[bench,lab,test]\n" in make("bench").calls


def test_what_is_started_may_keep_what_it_compiles(make):
    started = make("lab", PYTHONDONTWRITEBYTECODE="1").calls
    assert "-m lora_lab open\n" in started and "-m lora_lab.cache\n" in started


def test_the_model_is_fetched_while_torch_is_installed(course):
    calls = course("lab", PIP_SECONDS="0.5").calls
    assert calls.index("--require-hashes") < calls.index("-m lora_lab.cache") < calls.index("-e .[lab]")
    assert calls.rstrip().endswith("-m lora_lab.cache"), "and waited for"


def test_pip_installs_torch_beside_the_rest_and_again_where_that_failed(course):
    early, late = "--quiet --no-deps -c constraints.txt torch\n", "--no-compile -c constraints.txt torch\n"
    calls = course("lab", PIP_SECONDS="0.5").calls
    assert calls.index(early) < calls.index("-m lora_lab.cache") < calls.index(late), "with what it needs"
    course("clean")
    failed = course("lab", PIP_EXIT="1")
    assert failed.returncode and "failed, as said above" in failed.said and early in failed.calls


def test_changed_constraints_are_installed(make):
    assert "up to date" not in make("setup").said
    make("test")
    with open(make.folder / "constraints.txt", "a") as file:
        file.write("six==1.17.0\n")
    again = make("setup")
    assert "-e .[lab,test]\n" in again.calls and "-m venv" not in again.calls
    assert "Bringing .venv up to date" in again.said and "up to date" not in make("setup").said


def test_an_update_that_fails_keeps_the_environment_and_is_tried_again(make):
    make("setup")
    (make.folder / ".venv/installed-before").touch()
    with open(make.folder / "constraints.txt", "a") as file:
        file.write("six==1.17.0\n")
    assert make("setup", PIP_EXIT="1").returncode != 0
    again = make("setup")
    assert "pip install" in again.calls and "did not finish" not in again.said
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
    assert broken.returncode != 0 and "-m pytest" not in broken.calls and "Run it again" in broken.said
    (make.folder / ".venv/half-written").touch()
    again = make("test")
    assert again.returncode == 0 and "did not finish" in again.said and "pip install" in again.calls
    assert not (make.folder / ".venv/half-written").exists()


def test_an_environment_whose_python_is_gone_is_started_over(course):
    course("lab")
    (course.folder / ".venv/bin/python").unlink()
    again = course("lab")
    assert again.returncode == 0 and "-m venv" in again.calls and "its Python is gone" in again.said


def test_a_course_that_was_moved_points_its_environment_to_where_it_is(course, tmp_path_factory):
    course("lab")
    moved = shutil.copytree(course.folder, tmp_path_factory.mktemp("moved") / "course")
    course.log.write_text("")
    log = {"LOG": str(course.log)}
    subprocess.run([sys.executable, "driver.py", "lab"], cwd=moved, env={**os.environ, **log}, check=True)
    assert "-e .[lab]" in course.log.read_text() and "-m venv" not in course.log.read_text()


def test_an_environment_of_an_earlier_set_up_is_ours_and_updated(course):
    course("lab")
    (course.folder / ".venv" / set_up.MARK).rename(course.folder / ".venv/.ready")
    again = course("lab")
    assert "-m venv" not in again.calls and "-e .[lab,test]\n" in again.calls and "pip" not in course("lab").calls


def test_an_environment_of_somebody_else_is_never_touched(make):
    theirs = make.folder / ".venv/lib/their.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    first = make("lab", TORCH_INDEX="https://index")
    assert first.said.count("was not made by this set-up and stays as it is: the course goes to .venv-lora-lab") == 1
    assert "-m venv" in first.calls and "torch --extra-index-url https://index\n" in first.calls
    again = make("test")
    assert again.returncode == 0 and "not made by" not in again.said and "-m venv" not in again.calls
    assert (make.folder / ".venv-lora-lab/bin/python").exists()
    make("clean")
    assert [*(make.folder / ".venv").rglob("*")] == [theirs.parent, theirs] and theirs.read_text() == "theirs"
    assert not (make.folder / ".venv-lora-lab").exists()
    (make.folder / ".venv-lora-lab").write_text("theirs too")
    refused = make("lab")
    assert refused.returncode and "Rename one of them" in refused.said and not refused.calls


def test_two_at_once_install_once_and_both_end_well(course):
    both = [course.start(sys.executable, "driver.py", "lab", "-m", "lesson", PIP_SECONDS="0.4") for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("waiting for it" in text for text in said) == 1 and not any("starting it over" in text for text in said)
    calls = course.log.read_text()
    assert calls.count("-m venv") == calls.count("-e .[lab]") == 1 and calls.count("-m lesson") == 2


def test_one_that_was_killed_is_started_over_when_its_pip_is_gone(course):
    course.log.touch()
    killed = course.start(sys.executable, "driver.py", "lab", PIP_SECONDS="2")
    while "pip install" not in course.log.read_text():
        time.sleep(0.05)
    started = time.monotonic()
    killed.send_signal(signal.SIGKILL)
    again = course("lab")
    assert again.returncode == 0 and "waiting for it" in again.said and "starting it over" in again.said
    assert time.monotonic() - started > 1.5, "its pip still wrote into the folder"


def test_what_is_no_part_of_the_course_is_refused(course):
    refused = course("labs")
    assert refused.returncode and "'labs'. Expected one or more of lab, test" in refused.said and not refused.calls


@pytest.mark.parametrize("version, machine, system, says", [
    ((3, 10, 4), "x86_64", "2.36", "needs Python 3.11 to 3.14; .* is 3.10.4. Name another: make lab PYTHON="),
    ((3, 15, 0), "x86_64", "2.36", "needs Python 3.11 to 3.14; .* is 3.15.0"),
    ((3, 11, 2), "aarch64", "2.36", "^$"),
    ((3, 11, 2), "x86_64", "2.17", "torch needs glibc 2.28 or newer, this is glibc 2.17"),
    ((3, 12, 1), "x86_64", "macOS 15.1", "no torch for Intel Macs"),
    ((3, 12, 1), "arm64", "macOS 13.6.1", "no torch for macOS 13.6.1: it needs macOS 14 or newer"),
    ((3, 12, 1), "arm64", "macOS 14.0", "^$"),
    ((3, 12, 1), "ARM64", "Windows", "no torch for Windows on ARM64"),
    ((3, 12, 1), "AMD64", "Windows", "^$"),
])
def test_what_torch_has_no_wheels_for_is_refused_at_once(monkeypatch, version, machine, system, says):
    monkeypatch.setattr(sys, "version_info", (*version, "final", 0))
    monkeypatch.setattr(sys, "platform", {"m": "darwin", "W": "win32"}.get(system[0], "linux"))
    monkeypatch.setattr(set_up, "WINDOWS", system == "Windows")
    monkeypatch.setattr(set_up.platform, "libc_ver", lambda: ("glibc", system))
    monkeypatch.setattr(set_up.platform, "machine", lambda: machine)
    monkeypatch.setattr(set_up.platform, "mac_ver", lambda: (system.removeprefix("macOS "), ("", "", ""), ""))
    started = time.monotonic()
    assert re.search(says, set_up.unfit())
    assert time.monotonic() - started < 1


def test_an_old_python_can_read_the_set_up_that_refuses_it():
    ast.parse((REPOSITORY / "tools/set_up.py").read_text(), feature_version=(3, 6))


def test_the_readme_names_the_pythons_that_the_package_takes():
    lowest, newest = re.search(r"Python 3\.(\d+) to 3\.(\d+)", (REPOSITORY / "README.md").read_text()).groups()
    allowed = SpecifierSet(PROJECT["requires-python"])
    taken = [minor for minor in range(5, 30) if allowed.contains(f"3.{minor}.0")]
    assert taken == list(range(int(lowest), int(newest) + 1)) == [int(python.split(".")[1]) for python in PYTHONS]


def test_without_ensurepip_one_line_says_what_to_install(course):
    driver = (course.folder / "driver.py").read_text().replace("set_up.main", "set_up.find_spec = print\nset_up.main")
    (course.folder / "driver.py").write_text(driver)
    refused = course("lab")
    assert refused.returncode and "ensurepip is missing" in refused.said and "apt install python3." in refused.said
    assert "Traceback" not in refused.said and not (course.folder / ".venv").exists()


def test_uv_installs_where_it_is_there_and_pip_where_it_does_not_get_through(course):
    uv = {"STUB_UV": str(course.folder / "uv"), "TORCH_INDEX": "https://index"}
    first = course("lab", **uv).calls
    assert first.count("uv pip install") == 3 and "-m pip install" not in first and "-m venv" not in first
    assert first.index("--require-hashes -r") < first.index("torch --extra-index-url https://index") < \
        first.index("-e .[lab]")
    assert "pip install" not in course("lab", **uv).calls
    again = course("test", **uv, UV_EXIT="1")
    assert again.returncode == 0 and "going on with pip" in again.said
    assert ["--offline" in line for line in again.calls.splitlines() if line.startswith("uv pip")] == [False, True]
    assert again.calls.count("-m pip install") == 3 and "-e .[lab,test]\n" in again.calls


def test_what_the_file_of_hashes_names_is_what_is_installed(course):
    course("lab")
    written = (course.folder / ".venv/locked.txt").read_text()
    assert written == set_up.hashed(["lab"]) and "jupyterlab==" in written and "pytest==" not in written
    (course.folder / "locked.txt").write_text(set_up.hashed(["lab"]))
    assert "pip install" in course("lab").calls, "it changed"


@pytest.mark.parametrize("by", ["pip", "uv"])
def test_a_file_with_another_hash_is_refused(tmp_path, by):
    wheel = small_wheel.make(tmp_path / "index")
    install = [sys.executable, "-m", *(["uv"] if by == "uv" else []), "pip", "install", "--quiet"]
    for digest, code in ((hashlib.sha256(wheel.read_bytes()).hexdigest(), 0), ("0" * 64, 1)):
        (tmp_path / "locked").write_text(f"small-model==1 \\\n    --hash=sha256:{digest}\n")
        done = subprocess.run([*install, "--target", tmp_path / digest, *set_up.HASHED, tmp_path / "locked"],
                              env={**os.environ, **small_wheel.only(wheel.parent)}, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert (tmp_path / digest / "small_model/model.gguf").exists() is (code == 0)


def test_every_file_is_named_by_its_hash_in_the_version_that_is_pinned_and_from_nowhere():
    text = (REPOSITORY / "locked.txt").read_text()
    assert "://" not in text and "@ " not in text
    normal = {canonicalize_name(name): version for name, version in PINS.items()}
    for extra, lines in PROJECT["optional-dependencies"].items():
        if extra == "course":  # a part of lab
            continue
        found = dict(re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", part := set_up.hashed([extra])))
        for name, version in found.items():
            assert normal.get(name, version) == version, name
        assert all("--hash=sha256:" in block for block in re.split(r"(?m)^(?=\w)", part)[1:])
        for needed in map(Requirement, PROJECT["dependencies"] + lines):
            name = canonicalize_name(needed.name)
            assert name in (PROJECT["name"], "torch") or needed.specifier.contains(found[name]), f"make lock: {needed}"
        assert not {"torch", "triton"} & set(found) and "setuptools" in found  # which builds the course's own part


def test_a_gpu_is_found_without_torch(tmp_path, monkeypatch):
    if Path("/proc/driver/nvidia/gpus").exists() or sys.platform == "win32":
        pytest.skip("this machine has one, or no shell scripts")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not set_up.has_gpu()
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA T4'\n")
    smi.chmod(0o755)
    assert set_up.has_gpu()
    smi.write_text("#!/bin/sh\necho 'couldn'\"'\"'t communicate with the NVIDIA driver'\nexit 9\n")
    assert not set_up.has_gpu()


@pytest.mark.parametrize("platform, gpu, answers, index", [
    ("linux", False, True, set_up.PYTORCH + "cpu"), ("linux", False, False, ""), ("linux", True, True, ""),
    ("win32", False, True, set_up.PYTORCH + "cpu"), ("win32", True, True, set_up.PYTORCH + set_up.CUDA),
    ("win32", True, False, ""), ("darwin", False, True, ""),
])
def test_the_build_of_torch_is_the_machines(monkeypatch, capsys, platform, gpu, answers, index):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(set_up, "WINDOWS", platform == "win32")
    monkeypatch.setattr(set_up, "has_gpu", lambda: gpu)
    asked = []
    monkeypatch.setattr(set_up, "has_build", lambda page, version, build: asked.append((page, version)) or answers)
    assert set_up.torch_index() == index
    assert ("your pip settings" in capsys.readouterr().out) == (bool(asked) and not answers)
    assert all(page.endswith("/torch/") and version == PINS["torch"] for page, version in asked)


def test_an_index_is_asked_once_and_not_waited_for(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/index.html").write_text('<a href="/whl/torch-2.13.0%2Bcpu-cp311-cp311-win_amd64.whl">it</a>')
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = f"http://127.0.0.1:{server.server_port}/torch/"
    assert set_up.has_build(page, "2.13.0", "cpu")
    assert not set_up.has_build(page, "2.14.0", "cpu") and not set_up.has_build(page + "no", "2.13.0", "cpu")
    server.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert not set_up.has_build(f"http://127.0.0.1:{silent.getsockname()[1]}/torch/", "2.13.0", "cpu", seconds=0.5)
        assert time.monotonic() - started < 2


def test_pip_takes_pytorchs_build_beside_the_users_own_indexes(tmp_path):
    """Versions with a label, as 2.13.0+cpu, satisfy the pin and count as newer; the user's indexes stay in use."""
    there = (("own", "torch", "2.13.0"), ("more", "six", "1.17.0"), ("cpu", "torch", "2.13.0+cpu"))
    for index, project, version in there:
        wheel = small_wheel.make(tmp_path / index / project, project, version)
        (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    (tmp_path / "pins").write_text("torch==2.13.0\n")
    own = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": (tmp_path / "own").as_uri(), "PIP_FIND_LINKS": "",
           "PIP_EXTRA_INDEX_URL": (tmp_path / "more").as_uri()}
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-c", tmp_path / "pins", "torch",
                    "six", "--extra-index-url", (tmp_path / "cpu").as_uri(), "--dest", tmp_path / "got"],
                   env={**os.environ, **own}, check=True)
    assert {file.name.split("-py3")[0] for file in (tmp_path / "got").iterdir()} == {"torch-2.13.0+cpu", "six-1.17.0"}


places = functools.cache(set_up.places)


def resolve(system, python, extra="lab", macos="14.0", again=False, versions=("-c", "constraints.txt")):
    """What uv says: the versions that would be installed there from wheels alone, or why none can be.

    `again` asks the indexes only for what uv has not kept of their answers.
    """
    command = [
        shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv", "pip", "compile", "pyproject.toml",
        "--extra", extra, *versions, "--only-binary", ":all:", "--python-platform", system,
        "--python-version", python, "--no-python-downloads", "--python", sys.executable, "--index-strategy",
        "unsafe-best-match", "--quiet", "--no-header", "--no-annotate", *places(),
    ]
    for offline in [["--offline"], []] if again else [[]]:
        done = subprocess.run([*command, *offline], cwd=REPOSITORY, capture_output=True, text=True,
                              env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": macos})
        if done.returncode == 0:
            break
    return done.stdout if done.returncode == 0 else done.stderr


def test_the_pins_install_on_every_system_and_python_that_the_readme_names():
    first = [(system, PYTHONS[0], "lab") for system in SYSTEMS]
    first += [(SYSTEMS[0], PYTHONS[0], extra) for extra in ("test", "hub")]
    others = [(system, python, "lab") for system in SYSTEMS for python in PYTHONS[1:]]
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(first, pool.map(lambda one: resolve(*one), first)))
        found |= zip(others, pool.map(lambda one: resolve(*one, again=True), others))
    for one, said in found.items():
        assert f"torch=={PINS['torch']}" in said, (one, said)
        needed = set(re.findall(r"(?m)^([\w.-]+)==", said)) - {"torch", "triton"}
        hashed = set(re.findall(r"(?m)^([\w.-]+)==", set_up.hashed([one[2]])))
        assert {name for name in needed - hashed if not name.startswith(("nvidia-", "cuda-"))} == set(), one
    toolkit = re.search(r"cuda-toolkit==(\d+)\.(\d+)", found[SYSTEMS[0], "3.12.0", "lab"])
    assert set_up.CUDA == "cu" + "".join(toolkit.groups()), "PyTorch's index for Windows, and what Linux gets"


def test_the_oldest_versions_that_are_allowed_install_too():
    """Where they are old enough to have no wheel for a Python, the next that has one. What uv has kept are not all."""
    asked = [(system, PYTHONS[0]) for system in SYSTEMS if "aarch64-unknown" not in system]
    asked.append((SYSTEMS[0], PYTHONS[-1]))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda one: resolve(*one, versions=LOWEST), asked)
    needed = {canonicalize_name(one.name): one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    for one, said in zip(asked, found):
        versions = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", said))
        assert all(name in versions and needed[name].contains(versions[name]) for name in needed), (one, said)
        if one[1] == PYTHONS[0]:
            lowest = {name: next(s.version for s in asked if s.operator == ">=") for name, asked in needed.items()}
            differ = {name for name in lowest if Version(versions[name]) != Version(lowest[name])}
            assert differ <= {"psutil"}, "5.9.0 to 5.9.3 have no wheel for some system"


@pytest.mark.parametrize("system, macos", [("x86_64-apple-darwin", "14.0"), ("aarch64-apple-darwin", "13.0")])
def test_what_is_refused_has_no_wheel_of_torch(system, macos):
    said = resolve(system, "3.12.0", macos=macos)
    assert re.search("`?torch.* has no wheels with a matching platform tag", said), said
