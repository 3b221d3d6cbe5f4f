"""Peak memory of every lesson's kernel: `python benchmarks/lesson_memory.py [01_low_rank_math ...]`. Linux only.

Runs a copy of each notebook in an empty folder and samples what its kernel holds. Anonymous memory is what a limit
bites on: pages of files, such as torch's libraries, can be dropped and read again.
"""

import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from recipe import write_results

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


class Watch(threading.Thread):
    """Samples a process twenty times a second; `peak` has bytes and the number of the cell that ran."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.cell, self.peak, self.peak_cell = pid, 0, {"anonymous": 0, "resident": 0}, 0

    def run(self):
        while True:
            try:
                status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
            except OSError:
                return
            anonymous, resident = (int(status[key].split()[0]) * 1024 for key in ("RssAnon", "VmHWM"))
            if anonymous > self.peak["anonymous"]:
                self.peak_cell = self.cell
            self.peak = {"anonymous": max(anonymous, self.peak["anonymous"]), "resident": resident}
            time.sleep(0.05)


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
            found = {f"{name} MB": round(size / 1e6) for name, size in watch.peak.items()}
    source = notebook.cells[watch.peak_cell].source.splitlines()
    return found | {"seconds": round(time.perf_counter() - started), "peak in cell": f"{watch.peak_cell}: {source[0]}"}


def main() -> None:
    results = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
            results[path.stem] = measure(path)
            print(path.stem, results[path.stem], flush=True)
    if len(sys.argv) == 1:
        write_results("lesson_memory", results)


if __name__ == "__main__":
    main()
