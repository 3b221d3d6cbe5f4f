"""Runs a lesson under nbval, on half of the cores and behind the other tests.

All but Lesson 0 with half the steps of their trainings, as `make perturb` makes them; `--whole-lessons` as they are.
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
import perturb
from lesson_memory import Watch

THREADS = str(max(1, (os.cpu_count() or 2) // 2))
FIRST, TRAINED = "00_first_adapter", Path("adapters/first")
GO_ON = ("05_alpha_scaling",)  # trains what Lesson 0 leaves, where it is missing; test_devices runs that path
TOGETHER = (FIRST, *GO_ON)  # by one process, in this order
POLITE = ["nice", "-n", "10"]


@dataclass
class Run:
    returncode: int
    passed: int  # cells
    said: str
    peak: int  # bytes of anonymous memory


def run(path: Path, gigabytes: str, whole: bool, kept: Path) -> Run:
    """On a copy in a folder of its own, with what Lesson 0 left in `kept`, if it has run; the learner's own stay."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells if not whole and path.stem != FIRST else ():
        if cell.cell_type == "code":
            cell.source = perturb.change(cell.source, "steps")[0]
    with tempfile.TemporaryDirectory() as folder:
        if path.stem in GO_ON and (kept / TRAINED).is_dir():
            shutil.copytree(kept / TRAINED, folder / TRAINED)
        nbformat.write(notebook, Path(folder, path.name))
        polite = POLITE if shutil.which(POLITE[0]) else []
        command = [*polite, sys.executable, "-m", "pytest", f"{folder}/{path.name}", "--nbval-lax",
                   "--nbval-current-env", "--nbval-cell-timeout=1500", "-p", "no:cacheprovider", "--rootdir", folder,
                   "-c", os.devnull, f"--junitxml={folder}/report.xml"]
        process = Popen(
            command, stdout=PIPE, stderr=STDOUT, text=True, cwd=folder, env={
                **os.environ, "OMP_NUM_THREADS": THREADS, "LORA_LAB_MEMORY_GB": gigabytes,
                "LORA_LAB_PROGRESS": f"{folder}/progress.json"})
        watch = Watch(process.pid, itself=False)  # the kernel and what it starts
        watch.start()
        said = process.communicate()[0]
        if path.stem == FIRST and process.returncode == 0:
            shutil.copytree(folder / TRAINED, kept / TRAINED)
        return Run(process.returncode, _passed(Path(folder, "report.xml")), said, max(watch.peaks.values(), default=0))


def _passed(report: Path) -> int:
    """How many cells ran as they should; 0 without a report, as of a run that was ended."""
    if not report.exists():
        return 0
    (counted,) = ElementTree.parse(report).getroot().iter("testsuite")
    return int(counted.get("tests")) - sum(int(counted.get(kind)) for kind in ("errors", "failures", "skipped"))
