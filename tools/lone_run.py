"""Executes a notebook by the kernel of another Python, in a folder of its own, cell by cell."""

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

from nbclient import NotebookClient


def execute(python, notebook, folder: Path, variables: dict | None = None, timeout: int = 600) -> list[float]:
    """The seconds of each cell; what the cells said is in `notebook` afterwards.

    `folder` is made where it is missing. Raises nbclient's CellExecutionError at the first cell that fails.
    """
    folder = Path(folder)
    kernels = folder.parent / f"{folder.name}-kernel" / "kernels" / "lone"
    kernels.mkdir(parents=True, exist_ok=True)
    (kernels / "kernel.json").write_text(json.dumps({
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "lone",
        "language": "python", "env": variables or {}}))
    folder.mkdir(parents=True, exist_ok=True)
    seconds = []
    with environment(JUPYTER_PATH=str(kernels.parents[1])):
        client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}})
        client.kernel_name = "lone"
        with client.setup_kernel():
            for place, cell in enumerate(notebook.cells):
                started = time.perf_counter()
                client.execute_cell(cell, place)
                seconds.append(time.perf_counter() - started)
    return seconds


@contextmanager
def environment(**variables):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
