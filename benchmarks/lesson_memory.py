"""Peak memory of every lesson's kernel: `python benchmarks/lesson_memory.py [01_low_rank_math ...] [-v]`. Linux only.

Runs a copy of each notebook in an empty folder and samples what its kernel holds; -v tells it cell by cell. Anonymous
memory is what a limit bites on: pages of files, such as torch's libraries, can be dropped and read again.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
RESULT = Path(__file__).parent / "results" / "lesson_memory.json"


class Watch(threading.Thread):
    """Samples a process with all its children ten times a second, until it ends.

    `peaks` has the bytes of anonymous memory by `cell`, which the owner sets. Without `itself`: the children alone.
    """

    def __init__(self, pid: int, itself: bool = True):
        super().__init__(daemon=True)
        self.process, self.itself = psutil.Process(pid), itself
        self.cell, self.peaks = 0, {}

    def run(self):
        while (now := self.anonymous()) is not None:
            self.peaks[self.cell] = max(now, self.peaks.get(self.cell, 0))
            time.sleep(0.1)

    def anonymous(self) -> int | None:
        """None once the process has ended."""
        try:
            if self.process.status() == psutil.STATUS_ZOMBIE:
                return None
            watched = self.process.children(recursive=True) + [self.process] * self.itself
        except psutil.NoSuchProcess:
            return None
        return sum(anonymous(process.pid) for process in watched)


def anonymous(pid: int) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        found = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def measure(path: Path) -> dict:
    notebook = nbformat.read(path, 4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORA_LAB_PROGRESS"] = f"{folder}/progress.json"
        shutil.copy(path, folder)
        client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
        started = time.perf_counter()
        with client.setup_kernel():
            watch = Watch(client.km.provisioner.pid)
            watch.start()
            for place, cell in enumerate(notebook.cells):
                watch.cell = place
                client.execute_cell(cell, place)
                if cell.cell_type == "code" and "-v" in sys.argv:
                    left = watch.anonymous() or 0
                    print(f"{watch.peaks.get(place, left) / 1e6:6.0f} {left / 1e6:6.0f}  {cell.source.splitlines()[0]}"
                          f" ... {cell.source.splitlines()[-1]}", flush=True)
    peak = max(watch.peaks, key=watch.peaks.get)
    return {"peak MB": round(watch.peaks[peak] / 1e6), "seconds": round(time.perf_counter() - started),
            "peak in cell": f"{peak}: {notebook.cells[peak].source.splitlines()[0]}"}


def main() -> None:
    """Saves after each lesson, beside what other runs found."""
    from recipe import write_results  # imports torch, which the tests' own watch does without

    os.environ.setdefault("LORA_LAB_MEMORY_GB", "2")  # as on Binder
    asked = [argument for argument in sys.argv[1:] if argument != "-v"]
    lessons = json.loads(RESULT.read_text())["lessons"] if RESULT.exists() else {}
    for path in [NOTEBOOKS / f"{name}.ipynb" for name in asked] or sorted(NOTEBOOKS.glob("*.ipynb")):
        lessons[path.stem] = measure(path)
        print(path.stem, lessons[path.stem], flush=True)
        write_results(RESULT.stem, {"lessons": dict(sorted(lessons.items()))})


if __name__ == "__main__":
    main()
