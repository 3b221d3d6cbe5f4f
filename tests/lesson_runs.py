"""Lessons run under nbval beside the other tests: one on half of the cores, a second on what nobody else needs.

By a program of their own: what a test patches in its process is not patched there. But for the first, with half the
steps of their trainings, as `make perturb` makes them; `--whole-lessons` runs them as they are.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from xml.etree import ElementTree

import nbformat
import perturb
import psutil
from lesson_memory import Watch

THREADS = str(max(1, (os.cpu_count() or 2) // 2))
FIRST, TRAINED = "00_first_adapter", Path("adapters/first")
GO_ON = ("05_alpha_scaling",)  # trains what Lesson 0 leaves, where it is missing; test_devices runs that path
POLITE = [["nice", "-n", "10"], ["chrt", "--idle", "0"]]  # how the one is run, and the other
PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
import lesson_runs
lesson_runs.main(*sys.argv[2:])
"""
_begun: dict = {}  # the program, the folder that it writes to, and the lessons in it


@dataclass
class Run:
    returncode: int
    passed: int  # cells
    said: str
    peak: int  # bytes of anonymous memory


def start(chosen: list[tuple[Path, str, bool]]) -> None:
    """Begin with the first of `chosen` (file, GB, as it is?); other tests keep to the other half of the cores."""
    if not chosen or _begun:
        return
    import torch

    torch.set_num_threads(int(THREADS))
    os.environ["OMP_NUM_THREADS"] = THREADS
    folder, lessons = tempfile.mkdtemp(prefix="lessons"), [(str(path), *terms) for path, *terms in chosen]
    command = [sys.executable, "-c", PROGRAM, json.dumps(sys.path), folder, json.dumps(lessons)]
    _begun.update(program=Popen(command), folder=folder, lessons=lessons)


def result(path: Path, gigabytes: str, whole: bool) -> Run:
    """That of the run beside the tests; where none was begun, the lesson runs now."""
    if (str(path), gigabytes, whole) not in _begun.get("lessons", ()):
        return run(path, gigabytes, whole)
    report = Path(_begun["folder"], f"{path.stem}.json")
    while not report.exists():
        assert _begun["program"].poll() is None, f"the lessons' program ended without running {path.stem}"
        time.sleep(0.2)
    return Run(**json.loads(report.read_text()))


def stop() -> None:
    """End the lessons that still run, and remove what they left."""
    if not _begun:
        return
    with contextlib.suppress(psutil.Error):
        for process in [*psutil.Process(_begun["program"].pid).children(recursive=True), _begun["program"]]:
            with contextlib.suppress(psutil.Error):
                process.terminate()
    _begun["program"].wait()
    shutil.rmtree(_begun["folder"], ignore_errors=True)


def main(folder: str, lessons: str) -> None:
    """Run the lessons two at a time, and write each one's `Run` to `folder`, whole."""
    def reported(path, gigabytes, whole):
        polite = POLITE.pop(0)
        try:
            found = run(Path(path), gigabytes, whole, folder, polite)
        finally:
            POLITE.insert(0, polite)
        work = Path(folder, f"{Path(path).stem}.unfinished")
        work.write_text(json.dumps(asdict(found)))
        work.rename(work.with_suffix(".json"))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(reported, *lesson) for lesson in json.loads(lessons)]:
            done.result()


def run(path: Path, gigabytes: str, whole: bool, kept: str | None = None, polite: list[str] = POLITE[0]) -> Run:
    """On a copy in a folder of its own, with what Lesson 0 left in `kept`, if it has run; the learner's own stay."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells if not whole and path.stem != FIRST else ():
        if cell.cell_type == "code":
            cell.source = perturb.change(cell.source, "steps")[0]
    with tempfile.TemporaryDirectory() as folder:
        if path.stem in GO_ON and kept and Path(kept, TRAINED).is_dir():
            shutil.copytree(Path(kept, TRAINED), folder / TRAINED)
        nbformat.write(notebook, Path(folder, path.name))
        polite = polite if shutil.which(polite[0]) else []
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
        if path.stem == FIRST and kept and process.returncode == 0:
            shutil.copytree(folder / TRAINED, Path(kept, TRAINED), dirs_exist_ok=True)
        return Run(process.returncode, _passed(Path(folder, "report.xml")), said, max(watch.peaks.values(), default=0))


def _passed(report: Path) -> int:
    """How many cells ran as they should; 0 without a report, as of a run that was ended."""
    if not report.exists():
        return 0
    (counted,) = ElementTree.parse(report).getroot().iter("testsuite")
    return int(counted.get("tests")) - sum(int(counted.get(kind)) for kind in ("errors", "failures", "skipped"))
