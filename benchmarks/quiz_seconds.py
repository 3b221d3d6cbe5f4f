"""How long `import lora_lab` takes, and how long after running its cell a question stands on the page.

    python benchmarks/quiz_seconds.py

A real JupyterLab and Chromium, as in the tests; an empty cell takes turns with the questions, to tell
the notebook's own time from theirs.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import recipe

REPOSITORY = Path(__file__).parents[1]
sys.path += [str(REPOSITORY / "tests"), str(REPOSITORY / "tools")]

import browser  # noqa: E402
from get_browser import find  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

QUESTIONS = ("zero_start", "share", "phrasings", "forgetting", "untrained", "told")

# Runs the cell of the given index and resolves when its text (or any output) is on the page.
RUN_CELL = """async ([index, question]) => {
    const panel = window.jupyterapp.shell.currentWidget, started = performance.now();
    panel.content.activeCellIndex = index;
    const seen = () => question ? [...document.querySelectorAll('.lora-lab-guard .lora-lab-ask')].some(
        ask => ask.offsetParent && ask.parentElement.textContent.includes(question)) : true;
    await window.jupyterapp.commands.execute('notebook:run-cell');
    while (!seen()) {
        if (performance.now() - started > 20000) throw Error(question + ' does not appear');
        await new Promise(resolve => setTimeout(resolve, 2));
    }
    return (performance.now() - started) / 1000; }"""


def import_seconds(statement: str) -> float:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(9))


def main() -> None:
    python, package = import_seconds("pass"), import_seconds("import lora_lab")
    results = {"python_starts_s": python, "with_import_lora_lab_s": package, "import_lora_lab_s": package - python}
    cells = ["from lora_lab import quiz", "quiz('first/asked')"]
    for name in QUESTIONS:
        cells += ["1", f"quiz('first/{name}')"]
    with browser.lab({"quiz": cells}, "Light", Path(tempfile.mkdtemp())) as served, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 1000})
        browser.open_notebook(page, served, "quiz.ipynb")
        page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.ready }")
        page.evaluate(RUN_CELL, [0, None])
        results["first_question_s"] = page.evaluate(RUN_CELL, [1, "asked"])
        empty, shown = [], []
        for turn, name in enumerate(QUESTIONS):
            empty.append(page.evaluate(RUN_CELL, [2 + 2 * turn, None]))
            shown.append(page.evaluate(RUN_CELL, [3 + 2 * turn, f"first/{name}"]))
        chromium.close()
    results |= {"empty_cell_median_s": statistics.median(empty), "question_median_s": statistics.median(shown),
                "question_slowest_s": max(shown)}
    results = {name: round(value, 3) for name, value in results.items()}
    print(results)
    recipe.write_results("quiz_seconds", results)


if __name__ == "__main__":
    main()
