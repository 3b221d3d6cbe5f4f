"""Write lessons from their text twins, run them: `python tools/build_notebooks.py [01_low_rank_math ...] [--sources]`.

With --sources nothing runs, and the outputs stay as they are.

Cell ids stay, widget views go: a saved notebook cannot show them, and the pictures beside them stay.
"""

import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def build(twin: Path, run: bool = True) -> None:
    file = twin.with_suffix(".ipynb")
    notebook = jupytext.read(twin)
    if file.exists():
        notebook = combine_inputs_with_outputs(notebook, nbformat.read(file, 4), fmt="py:percent")
    if not run:
        return nbformat.write(notebook, file)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", store_widget_state=False, resources={"metadata": {"path": FOLDER}}
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    notebook.metadata.pop("widgets", None)
    taken = seconds(notebook)
    print(f"  {sum(taken) / 60:.1f} minutes, the longest cell {max(taken):.0f} s", flush=True)
    temporary = file.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, file)


def seconds(notebook) -> list[float]:
    """Return the seconds that each executed code cell took, from the times that were saved with it."""
    stamps = [cell.metadata.execution for cell in notebook.cells if "execution" in cell.metadata]
    ran = [[datetime.fromisoformat(stamp[key]) for key in ("iopub.execute_input", "shell.execute_reply")]
           for stamp in stamps]
    return [(end - start).total_seconds() for start, end in ran]


def main() -> None:
    os.environ["LORA_LAB_PROGRESS"] = str(Path(tempfile.mkdtemp()) / "progress.json")  # not the author's own
    run, names = "--sources" not in sys.argv, [name for name in sys.argv[1:] if name != "--sources"]
    for twin in sorted(FOLDER.glob("*.py")):
        if not names or twin.stem in names:
            print(f"{'running' if run else 'writing'} {twin.stem} ...", flush=True)
            build(twin, run)


if __name__ == "__main__":
    main()
