"""Lessons run under nbval beside the other tests: one on half of the cores, a second on what nobody else needs.

Each in a process of its own, where nothing is patched while a test patches it.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from xml.etree import ElementTree

import psutil
from lesson_memory import Watch

THREADS = str(max(1, (os.cpu_count() or 2) // 2))
FIRST, TRAINED = "00_first_adapter", Path("adapters/first")
GO_ON = ("05_alpha_scaling",)  # trains what Lesson 0 leaves, where it is missing
POLITE = (["nice", "-n", "10"], ["chrt", "--idle", "0"])  # how the one is run, and the other
_futures, _polite = {}, POLITE[0]


@dataclass
class Run:
    returncode: int
    passed: int  # cells
    said: str
    peak: int  # bytes of anonymous memory


def start(chosen: list[tuple[Path, str]]) -> None:
    """Begin with the first of `chosen`; what else the tests compute keeps to the other half of the cores."""
    if not chosen or _futures:
        return
    import torch

    torch.set_num_threads(int(THREADS))
    os.environ["OMP_NUM_THREADS"] = THREADS
    kept = tempfile.mkdtemp(prefix="lessons")
    pool = ProcessPoolExecutor(2, get_context("spawn"), _begin, (kept,))
    _futures.update({lesson: pool.submit(run, *lesson, kept) for lesson in chosen})
    _futures[None] = pool.submit(shutil.rmtree, kept, True)  # the last


def _begin(kept: str) -> None:
    """Be polite in the first way, or in the other where a process was quicker."""
    global _polite
    try:
        os.mkdir(Path(kept, "taken"))
    except FileExistsError:
        _polite = POLITE[1]


def result(path: Path, gigabytes: str) -> Run:
    """That of the run beside the tests; where none was begun, the lesson runs now."""
    future = _futures.get((path, gigabytes))
    return future.result() if future else run(path, gigabytes)


def stop() -> None:
    """End the lessons that still run, and the processes that would begin others."""
    for process in psutil.Process().children(recursive=True) if _futures else ():
        with contextlib.suppress(psutil.Error):
            if any(word in " ".join(process.cmdline()) for word in ("--nbval-lax", "multiprocessing.spawn")):
                process.terminate()


def run(path: Path, gigabytes: str, kept: str | None = None) -> Run:
    """On a copy in a folder of its own, with what Lesson 0 left in `kept`, if it has run; the learner's own stay."""
    with tempfile.TemporaryDirectory() as folder:
        if path.stem in GO_ON and kept and Path(kept, TRAINED).is_dir():
            shutil.copytree(Path(kept, TRAINED), folder / TRAINED)
        polite = _polite if shutil.which(_polite[0]) else []
        command = [*polite, sys.executable, "-m", "pytest", shutil.copy(path, folder), "--nbval-lax",
                   "--nbval-current-env", "--nbval-cell-timeout=1500", "-p", "no:cacheprovider", "--rootdir", folder,
                   "-c", os.devnull, f"--junitxml={folder}/report.xml"]
        process = Popen(
            command, stdout=PIPE, stderr=STDOUT, text=True, cwd=folder, env={
                **os.environ, "OMP_NUM_THREADS": THREADS, "LORA_LAB_MEMORY_GB": gigabytes,
                "LORA_LAB_PROGRESS": f"{folder}/progress.json"})
        watch = Watch(process.pid, itself=False)  # the kernel and what it starts
        watch.start()
        said = process.communicate()[0]
        if path.stem == FIRST and kept and process.returncode == 0:
            shutil.copytree(folder / TRAINED, Path(kept, TRAINED), dirs_exist_ok=True)
        return Run(process.returncode, _passed(Path(folder, "report.xml")), said, max(watch.peaks.values(), default=0))


def _passed(report: Path) -> int:
    """How many cells ran as they should; 0 without a report, as of a run that was ended."""
    if not report.exists():
        return 0
    (counted,) = ElementTree.parse(report).getroot().iter("testsuite")
    return int(counted.get("tests")) - sum(int(counted.get(kind)) for kind in ("errors", "failures", "skipped"))
