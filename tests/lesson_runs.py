"""Runs notebooks as tests, lessons on half of the cores and behind the other tests.

With what they compute capped (benchmarks/twins.py, `quick`); `--whole` as they are.
RUNNER says what runs them: nbval, which has seen no release since 2024, or pytest-notebook, which does the same here.
"""

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from xml.etree import ElementTree

import nbformat
from lesson_memory import Watch
from perturb import FIRST, GO_ON, TRAINED
from twins import cap

THREADS = str(max(1, (os.cpu_count() or 2) // 2))
TOGETHER = (FIRST, *GO_ON)  # by one process, in this order; test_devices runs the second without the first
POLITE = ["nice", "-n", "10"]
SECONDS = 1500  # for a cell


@dataclass
class Run:
    returncode: int
    passed: int  # cells
    said: str
    peak: int  # bytes of anonymous memory


# Either checks that all cells run, and the outputs of those tagged nbval-check-output. nbval has a test for each cell,
# pytest-notebook one for all of them.
NBVAL = ["-p", "nbval.plugin", "--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={SECONDS}"]
PYTEST_NOTEBOOK = ["-p", "pytest_notebook.plugin", "--nb-test-files", f"--nb-exec-timeout={SECONDS}"]
RUNNER = NBVAL


def run(path: Path, gigabytes: str, whole: bool, kept: Path) -> Run:
    """On a copy in a folder of its own, with what Lesson 0 left in `kept`, if it has run; the learner's own stay."""
    notebook = nbformat.read(path, 4)
    if not whole:
        cap(notebook, path.stem)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if path.stem in GO_ON and (kept / TRAINED).is_dir():
            shutil.copytree(kept / TRAINED, folder / TRAINED)
        environment = {**os.environ, "OMP_NUM_THREADS": THREADS, "LORA_LAB_MEMORY_GB": gigabytes,
                       "LORA_LAB_PROGRESS": str(folder / "progress.json")}
        ran = run_cells(notebook, folder, environment, POLITE if shutil.which(POLITE[0]) else [])
        if path.stem == FIRST and ran.returncode == 0:
            shutil.copytree(folder / TRAINED, kept / TRAINED)
        return ran


def run_cells(notebook, folder: Path, environment: dict, before: list[str] = (), runner=None) -> Run:
    """In `folder`, by pytest in a process of its own, whose command `before` begins."""
    runner, file, report = runner or RUNNER, folder / "notebook.ipynb", folder / "report.xml"
    free = [f"/cells/{place}/outputs" for place, cell in enumerate(notebook.cells)
            if "nbval-check-output" not in cell.metadata.get("tags", ())]
    free += ["/metadata", "/cells/*/metadata", "/cells/*/execution_count"]
    notebook.metadata["nbreg"] = {"diff_ignore": free}  # pytest-notebook compares all else
    nbformat.write(notebook, file)
    command = [*before, sys.executable, "-m", "pytest", str(file), *runner, "-p", "no:cacheprovider",
               "--rootdir", str(folder), "-c", os.devnull, f"--junitxml={report}"]
    environment = {**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others take seconds to come
    process = Popen(command, stdout=PIPE, stderr=STDOUT, text=True, cwd=folder, env=environment)
    watch = Watch(process.pid, itself=False)  # the kernel and what it starts
    watch.start()
    said = process.communicate()[0]
    cells = sum(cell.cell_type == "code" for cell in notebook.cells) if runner is PYTEST_NOTEBOOK else 1
    return Run(process.returncode, _passed(report) * cells, said, max(watch.peaks.values(), default=0))


def _passed(report: Path) -> int:
    """How many tests ran as they should; 0 without a report, as of a run that was ended."""
    if not report.exists():
        return 0
    (counted,) = ElementTree.parse(report).getroot().iter("testsuite")
    return int(counted.get("tests")) - sum(int(counted.get(kind)) for kind in ("errors", "failures", "skipped"))
