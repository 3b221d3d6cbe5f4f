"""The lessons in a real browser, against a real JupyterLab on loopback."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

REPOSITORY = Path(__file__).parents[1]
CANDIDATES = [os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]
CHROMIUM = next(filter(None, CANDIDATES), None)

# A training run of a second, drawn by the same callback as in the lessons.
LIVE_CURVE = """\
import time
from lora_lab import plots
from transformers import TrainerControl, TrainerState
curve, state = plots.LiveLoss(seconds_between_draws=0.05), TrainerState(max_steps=30)
curve.on_train_begin(None, state, TrainerControl())
for step in range(1, 31):
    state.global_step = step
    curve.on_log(None, state, TrainerControl(), logs={"loss": 4 / step})
    curve.on_step_end(None, state, TrainerControl())
    time.sleep(0.1)
curve.on_train_end(None, state, TrainerControl())"""

# The command resolves when the last cell has run; error outputs come back as text.
RUN_ALL = """async () => {
    const app = window.jupyterapp; await app.restored;
    const panel = app.shell.currentWidget; await panel.context.ready; await panel.sessionContext.ready;
    const tooLong = new Promise((_, reject) => setTimeout(() => reject('cells still run after 120 s'), 120000));
    await Promise.race([app.commands.execute('notebook:run-all-cells'), tooLong]);
    return panel.content.widgets.flatMap(cell => cell.model.type !== 'code' ? [] :
        cell.model.outputs.toJSON().filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)); }"""


def settings(folder, theme):
    for name, value in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "apputils-extension/themes": {"theme": f"JupyterLab {theme}"},
        "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
    }.items():
        file = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))


@pytest.fixture(scope="module", params=["Light", "Dark"])
def jupyterlab(request, tmp_path_factory):
    root, home = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("home")
    shutil.copytree(REPOSITORY / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns("adapters", "runs"))
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)"}  # without one a dialog asks for it
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LIVE_CURVE)], metadata={"kernelspec": kernel})
    nbformat.write(notebook, root / "live.ipynb")
    settings(home / "settings", request.param)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, log = secrets.token_hex(16), home / "log"
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}",
        "--expose-app-in-browser",
    ]
    env = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": f"{home}/settings",
        "JUPYTERLAB_WORKSPACES_DIR": f"{home}/workspaces",
        "JUPYTER_CONFIG_DIR": f"{home}/config",
        "JUPYTER_RUNTIME_DIR": f"{home}/runtime",
        "IPYTHONDIR": f"{home}/ipython",
    }
    with log.open("w") as output:
        server = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 90
            while True:
                assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=2).read()
                    break
                except OSError:
                    time.sleep(0.2)
            yield address, token, request.param
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        message = "no Chromium found: install chromium, or name one in the environment variable CHROMIUM"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 1200, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


def open_notebook(page, jupyterlab, path):
    address, token, _ = jupyterlab
    page.goto(f"{address}/doc/tree/{path}?reset&token={token}")
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")


def test_loss_curve_draws_itself(page, jupyterlab, tmp_path):
    open_notebook(page, jupyterlab, "live.ipynb")
    assert page.evaluate(RUN_ALL) == []
    bar = page.get_by_role("progressbar", name="training")
    bar.wait_for()
    assert bar.evaluate("bar => [bar.value, bar.max]") == [30, 30]
    picture = page.locator(".jp-OutputArea-output img")
    assert picture.count() == 1, "the curve must redraw in place"
    assert "4 at first" in picture.get_attribute("alt")
    page.screenshot(path=tmp_path / "live.png")


def test_saved_lesson_shows_its_outputs(page, jupyterlab, tmp_path):
    open_notebook(page, jupyterlab, "notebooks/00_first_adapter.ipynb")
    page.get_by_role("heading", name="Your first adapter").wait_for()
    pictures = page.locator(".jp-OutputArea-output img")
    pictures.first.wait_for()
    for i in range(pictures.count()):
        assert pictures.nth(i).get_attribute("alt"), "a picture without a text"
        assert pictures.nth(i).evaluate("img => img.naturalWidth") > 100
    assert page.locator(".jp-OutputArea-output table").count() >= 5
    assert page.get_by_text("Error displaying widget").count() == 0
    theme = page.evaluate("document.body.dataset.jpThemeLight")
    assert theme == ("true" if jupyterlab[2] == "Light" else "false")
    page.screenshot(path=tmp_path / "lesson.png")
