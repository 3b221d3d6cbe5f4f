"""The run of the course on a GPU goes through on a CPU without Jupyter; README and lessons tell what it recorded."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pytest
from lora_lab import cache

REPOSITORY = Path(__file__).parents[2]
TWINS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.py"))
BLOCK = """
import sys
from importlib.machinery import PathFinder

NAMES = ("IPython", "ipywidgets", "anywidget", "traitlets", "matplotlib", "markdown_it", "mdit_py_plugins", "jupytext",
         "nbformat", "platformdirs")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            found = PathFinder.find_spec(name, path, target)
            if found is None or "site-packages" in (found.origin or "site-packages"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return found

sys.meta_path.insert(0, Block())
"""
PLANTED = """\
# ---
# jupyter: a twin's head
# ---

# %% [markdown]
# # 8 · Planted

# %%
import subprocess
import sys
from lora_lab import LabError, compare, scoring, smart_home
from lora_lab.course import explorers
from IPython.display import HTML
from lora_lab import LabError

# %%
commands = smart_home.commands("train", n=2)
scoring.score(commands, [c.answer for c in commands])
compare("first/told", 0.25)
# %pip install nothing

# %%
raise LabError("planted\\nin /some/folder/file.txt")

# %% tags=["kept"]
print(subprocess.run([sys.executable, "-c", "import IPython.display, lora_lab.course.quizzes"], check=True))
assert not [name for name in sys.modules if name.startswith("jupytext")]
"""


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        patch.syspath_prepend(REPOSITORY / "tools")
        yield patch


@pytest.fixture(scope="module")
def course(patch):
    import gpu_course

    return gpu_course


@pytest.fixture(scope="module")
def run(course, small, tmp_path_factory):
    """Runs the script where nothing of Jupyter can be imported, on Lesson 0 with a small model and a planted lesson."""
    folder = tmp_path_factory.mktemp("gpu_course")
    (folder / "block").mkdir()
    (folder / "block/sitecustomize.py").write_text(BLOCK)
    (folder / "notebooks").mkdir()
    (folder / "notebooks/08_planted.py").write_text(PLANTED)
    shutil.copy(TWINS[0], folder / "notebooks")
    env = os.environ | {"PYTHONPATH": f"{folder / 'block'}:{REPOSITORY / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    start = "import sys, pathlib, gpu_course as c; c.LESSONS = pathlib.Path(sys.argv[1]); c.main(sys.argv[2:])"

    def run(*only):
        done = subprocess.run(
            [sys.executable, "-c", start, folder / "notebooks", "--model", small, "--device", "cpu",
             "--quick", "--out", folder / "out.json", "--only", *only], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        run.file, run.planted = folder / "out.json", folder / "notebooks/08_planted.py"
        return json.loads(run.file.read_text())
    return run


@pytest.fixture(scope="module")
def results(run):
    return run("00", "08")


def test_lesson_0_runs_without_jupyter(results, course):
    lesson = results["lessons"]["00_first_adapter"]
    assert lesson["status"] == "ok" and not lesson["failed"], lesson["failed"]
    assert [cell["cell"] for cell in lesson["cells"]] == list(range(1, 1 + len(course.twins.cells(TWINS[0]))))
    assert lesson["seconds"] > sum(cell["seconds"] for cell in lesson["cells"]) > 1
    assert lesson["peak_host_bytes"] > 3e8 and lesson["peak_gpu_bytes"] is None  # no made-up figure without a GPU
    compared = {name for cell in lesson["cells"] for name in cell.get("compared", ())}
    assert compared == {f"first/{name}" for name in ("untrained", "share", "zero_start", "phrasings", "asked",
                                                     "forgetting", "told", "other_base")}
    scores = [score for cell in lesson["cells"] for score in cell.get("scores", ())]
    assert {"exact", "valid_json", "n", "loss"} == scores[0].keys() and {score["n"] for score in scores} >= {20, 100}


def test_matplotlib_draws_beside_a_stand_in_for_ipython(course, tmp_path, monkeypatch):
    monkeypatch.setattr(course.stand_ins, "_found", lambda name: name != "IPython")
    assert course.stand_ins.write(tmp_path, tmp_path) == ["IPython"]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY / 'benchmarks'}", "MPLBACKEND": "agg"}
    draw = "import IPython.display; import matplotlib.pyplot as plt; plt.subplots(); print(IPython.__file__)"
    done = subprocess.run([sys.executable, "-c", draw], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "IPython/__init__.py"), done.stderr[-1000:]


def test_says_where_it_ran(results):
    assert results["hardware"]["gpu"] is None and results["quick"]
    assert {"python", "torch", "transformers", "peft", "accelerate"} <= results["versions"].keys()


def test_a_failing_cell_is_kept_with_its_number_and_the_rest_goes_on(results):
    lesson = results["lessons"]["08_planted"]
    assert lesson["status"] == "failed"
    assert lesson["failed"] == [{"cell": 3, "error": "LabError: in file.txt"}]  # the last line, without folders
    assert [cell["cell"] for cell in lesson["cells"]] == [1, 2, 3, 4]
    assert lesson["cells"][1]["compared"] == {"first/told": 0.25}
    assert lesson["cells"][1]["scores"] == [{"exact": 1.0, "valid_json": 1.0, "n": 2, "loss": None}]


def test_a_second_run_does_only_what_failed_or_changed(results, run, course, patch, capsys):
    """In this process, where the machine and a lesson without change are told: the first run was the real one."""
    def again(*only):
        course.main(["--model", str(cache.model_folder()), "--device", "cpu", "--quick", "--out", str(run.file),
                     "--only", *only])
        return json.loads(run.file.read_text())

    machine = {name: value for name, value in results.items() if name not in ("quick", "lessons")}
    with patch.context() as inner:
        inner.setattr(course, "LESSONS", run.planted.parent)
        inner.setattr(course.gpu_8bit, "run", lambda job, env: {"status": "ok"} | machine)
        with patch.context() as told:
            told.setattr(course, "lesson", lambda twin, *_: results["lessons"][twin.stem])
            second = again("00", "08")
        said = capsys.readouterr().out
        assert "00_first" not in said and "08_planted" in said
        assert second["lessons"]["00_first_adapter"] == results["lessons"]["00_first_adapter"]
        run.planted.write_text("# %%\nimport os, signal\n# %%\nos.kill(os.getpid(), signal.SIGKILL)\n")
        old = second | {"versions": second["versions"] | {"torch": "1.0"}}
        run.file.write_text(json.dumps(old))
        new = again("08")
    assert new["lessons"].keys() == {"08_planted"} and json.loads(run.file.with_name("out.json.old").read_text()) == old
    assert new["lessons"]["08_planted"]["failed"][0]["cell"] == 2  # a process that dies: where it was
    assert "exit -9" in new["lessons"]["08_planted"]["failed"][0]["error"]


def test_a_lesson_without_end_is_stopped_with_all_it_started(course, tmp_path, patch):
    endless = tmp_path / "python"
    endless.write_text("""#!/bin/sh
echo 'RECORD {"cell": 1, "seconds": 0, "peak_gpu_bytes": 7, "host_bytes": 8}'
sleep 60 &
echo $!
wait
""")
    endless.chmod(0o755)
    with patch.context() as inner:
        inner.setattr(course, "SECONDS", 2)
        inner.setattr(course.sys, "executable", str(endless))
        record = course.lesson(tmp_path / "endless.py", tmp_path / "endless", dict(os.environ), False)
    assert record["failed"] == [{"cell": 2, "error": "not finished after 2 s"}]
    assert (record["peak_gpu_bytes"], record["peak_host_bytes"], len(record["cells"])) == (7, 8, 1)
    started = int((tmp_path / "endless.log").read_text().split()[-1])
    ends = time.monotonic() + 10  # a killed process may take a moment to end
    with contextlib.suppress(OSError):  # gone, or ended and not yet waited for
        while Path(f"/proc/{started}/stat").read_text().split()[2] not in "ZX":
            assert time.monotonic() < ends


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.stem)
def test_cells_are_those_that_jupytext_reads(course, twin):
    theirs = [c.source for c in jupytext.read(twin).cells if c.cell_type == "code"]
    ours = [re.sub(r"(?m)^( *)# %pip", r"\1%pip", source) for source in course.twins.cells(twin)]
    assert ours == theirs


def test_the_cache_is_one_that_the_course_accepts(course, tmp_path):
    assert course.MODEL == cache.SMOLLM2.name
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    course.fill_cache(tmp_path / "model", tmp_path / "cache" / course.MODEL)
    assert cache._is_intact(tmp_path / "cache" / course.MODEL)


def test_a_peak_is_kept_when_a_cell_resets_it(course, patch):
    peaks, now = [], iter((5, 3))
    with patch.context() as inner:
        inner.setattr(course.torch, "cuda", SimpleNamespace(
            reset_peak_memory_stats=lambda: None, max_memory_allocated=lambda: next(now)))
        course.keep_peaks(peaks)
        course.torch.cuda.reset_peak_memory_stats()
        course.torch.cuda.reset_peak_memory_stats()
    assert peaks == [5, 3]


@pytest.fixture
def copy(tmp_path):
    """README and lessons, as they are."""
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks", ignore=lambda folder, names: [
        name for name in names if not re.match(r"\d.*\.(py|ipynb)$", name)])
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    return tmp_path


def shown(root):
    """What README's column and the lessons' first cells say."""
    rows = re.findall(r"(?m)^\| \d \| .*notebooks/.*\| ([^|]+) \|$", (root / "README.md").read_text())
    files = sorted((root / "notebooks").iterdir())
    said = {file.name: re.findall(r"\(on a GPU: ([^)]*)\)", jupytext.read(file).cells[0].source) for file in files}
    return rows, [said[file.with_suffix(end).name] for end in (".py", ".ipynb") for file in TWINS]


def test_readme_and_lessons_follow_the_recorded_run(patch, copy):
    import gpu_minutes

    result = REPOSITORY / gpu_minutes.RESULT
    if result.exists():
        shutil.copy(result, copy / gpu_minutes.RESULT)
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    gpu_minutes.write(copy)
    assert {file for file in before if file.read_bytes() != before[file]} == set(), "run tools/gpu_minutes.py"

    lessons = {twin.stem: {"seconds": 118.0, "peak_gpu_bytes": 3.14e9, "failed": []} for twin in TWINS[1:]}
    lessons[TWINS[2].stem]["failed"] = [{"cell": 12, "error": "x"}]
    run = {"quick": False, "hardware": {"gpu": "NVIDIA H100"}, "lessons": lessons}
    told = ["not recorded", "2 min, NVIDIA H100, peak 3.1 GB", "2 min, NVIDIA H100, peak 3.1 GB, 1 cell failed",
            *["2 min, NVIDIA H100, peak 3.1 GB"] * (len(TWINS) - 3)]
    for quick, expected in ((False, told), (True, ["not recorded"] * len(TWINS))):
        (copy / gpu_minutes.RESULT).write_text(json.dumps(run | {"quick": quick}))
        gpu_minutes.write(copy)
        rows, said = shown(copy)
        assert rows == expected and said == [[words] for words in expected] * 2
    longest = {twin.stem: max(map(len, (copy / "notebooks" / twin.name).read_text().splitlines())) for twin in TWINS}
    assert max(longest.values()) <= 120, longest
