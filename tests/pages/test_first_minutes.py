"""A newcomer's first success: Lesson 0 as it is handed out, in a browser, up to the trained model's answers."""

import re

import nbformat
import pytest
from browser import REPOSITORY, lab, open_notebook

NOTEBOOKS = {}
LESSON, WIN = "00_first_adapter", 7  # the seventh code cell asks the trained model
STEPS = ("STEPS, BATCH = 0, 60, 8", "STEPS, BATCH = 0, 20, 8")  # as it is, and enough to be right more often than not

# Runs the first code cells one by one, as Shift+Enter does; error outputs come back as text.
RUN = """async count => {
    const app = window.jupyterapp; await app.restored;
    const panel = app.shell.currentWidget; await panel.context.ready; await panel.sessionContext.ready;
    const cells = panel.content.widgets, code = cells.filter(cell => cell.model.type === 'code').slice(0, count);
    for (const cell of code) {
        panel.content.activeCellIndex = cells.indexOf(cell);
        await app.commands.execute('notebook:run-cell');
    }
    return code.flatMap(cell => cell.model.outputs.toJSON().filter(o => o.output_type === 'error')
        .map(o => o.ename + ': ' + o.evalue)); }"""


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    with lab(NOTEBOOKS, "Light", folder) as served:
        copy = folder / "root/notebooks" / f"{LESSON}.ipynb"
        notebook = nbformat.read(REPOSITORY / "notebooks" / copy.name, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count, cell.source = [], None, cell.source.replace(*STEPS)
        assert STEPS[1] in str(notebook)
        nbformat.write(notebook, copy)
        yield served


@pytest.mark.nightly
def test_the_trained_model_answers_in_the_first_cells(page, jupyterlab, tmp_path):
    open_notebook(page, jupyterlab, f"notebooks/{LESSON}.ipynb")
    page.set_default_timeout(300_000)
    assert page.evaluate(RUN, WIN) == []
    page.get_by_text(re.compile(r"^\d of 8 right before, [4-8] after")).wait_for()
    page.screenshot(path=tmp_path / "win.png")
