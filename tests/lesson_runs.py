"""Lessons run under nbval beside the other tests: one on half of the cores, a second on what nobody else needs."""

import os
import shutil
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen  # as they are now: the device check replaces subprocess.Popen for a while
from xml.etree import ElementTree

import torch
from lesson_memory import Watch

THREADS = str(max(1, (os.cpu_count() or 2) // 2))
FIRST, TRAINED = "00_first_adapter", Path("adapters/first")
GO_ON = ("05_alpha_scaling",)  # trains what Lesson 0 leaves, where it is missing
_pool, _kept, _first_of_two = ThreadPoolExecutor(2), tempfile.TemporaryDirectory(), threading.Lock()
_futures, _processes = {}, set()
_environment = dict(os.environ)  # as it is before any test changes it


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
    torch.set_num_threads(int(THREADS))
    os.environ["OMP_NUM_THREADS"] = THREADS
    _futures.update({lesson: _pool.submit(run, *lesson) for lesson in chosen})


def result(path: Path, gigabytes: str) -> Run:
    """That of the run beside the tests; where none was begun, the lesson runs now."""
    future = _futures.get((path, gigabytes))
    return future.result() if future else run(path, gigabytes)


def stop() -> None:
    """For a session that ends early."""
    _pool.shutdown(wait=False, cancel_futures=True)
    for process in list(_processes):
        process.terminate()


def run(path: Path, gigabytes: str) -> Run:
    """On a copy in a folder of its own, where there is what Lesson 0 left, if it has run; the learner's own stay."""
    first = _first_of_two.acquire(blocking=False)
    try:
        return _run(path, gigabytes, ["nice", "-n", "10"] if first else ["chrt", "--idle", "0"])
    finally:
        if first:
            _first_of_two.release()


def _run(path: Path, gigabytes: str, polite: list[str]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        if path.stem in GO_ON and Path(_kept.name, TRAINED).is_dir():
            shutil.copytree(Path(_kept.name, TRAINED), folder / TRAINED)
        polite = polite if shutil.which(polite[0]) else []
        command = [*polite, sys.executable, "-m", "pytest", shutil.copy(path, folder), "--nbval-lax",
                   "--nbval-current-env", "--nbval-cell-timeout=1500", "-p", "no:cacheprovider", "--rootdir", folder,
                   "-c", os.devnull, f"--junitxml={folder}/report.xml"]
        process = Popen(
            command, stdout=PIPE, stderr=STDOUT, text=True, cwd=folder, env={
                **_environment, "OMP_NUM_THREADS": THREADS, "LORA_LAB_MEMORY_GB": gigabytes,
                "LORA_LAB_PROGRESS": f"{folder}/progress.json"})
        _processes.add(process)
        watch = Watch(process.pid, itself=False)  # the kernel and what it starts
        watch.start()
        said = process.communicate()[0]
        _processes.discard(process)
        if path.stem == FIRST and process.returncode == 0:
            shutil.copytree(folder / TRAINED, Path(_kept.name, TRAINED), dirs_exist_ok=True)
        return Run(process.returncode, _passed(Path(folder, "report.xml")), said, max(watch.peaks.values(), default=0))


def _passed(report: Path) -> int:
    """How many cells ran as they should; 0 without a report, as of a run that was ended."""
    if not report.exists():
        return 0
    (counted,) = ElementTree.parse(report).getroot().iter("testsuite")
    return int(counted.get("tests")) - sum(int(counted.get(kind)) for kind in ("errors", "failures", "skipped"))
