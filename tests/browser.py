"""A real JupyterLab on loopback and a real Chromium, for the tests that need a page."""

import contextlib
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
from get_browser import find

REPOSITORY = Path(__file__).parents[1]

SIZE = {"width": 1200, "height": 1000}

# The command resolves when the last cell has run; error outputs come back as text.
RUN_ALL = """async () => {
    const app = window.jupyterapp; await app.restored;
    const panel = app.shell.currentWidget; await panel.context.ready; await panel.sessionContext.ready;
    const tooLong = new Promise((_, reject) => setTimeout(() => reject('cells still run after 120 s'), 120000));
    await Promise.race([app.commands.execute('notebook:run-all-cells'), tooLong]);
    return panel.content.widgets.flatMap(cell => cell.model.type !== 'code' ? [] :
        cell.model.outputs.toJSON().filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)); }"""

# Opens a notebook in place of all that is shown, and with the kernel of the one before it where `keep` says so.
OPEN = """async ([path, keep]) => {
    const app = window.jupyterapp, before = app.shell.currentWidget.sessionContext;
    await before.ready;
    const kernel = keep ? {id: before.session.kernel.id} : undefined;
    if (!keep) await before.shutdown();
    for (const shown of [...app.shell.widgets('main')]) shown.dispose();
    const panel = await app.commands.execute('docmanager:open', {path, kernel});
    await panel.context.ready; await panel.sessionContext.ready; }"""


def settings(folder, theme):
    for name, value in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "apputils-extension/themes": {"theme": f"JupyterLab {theme}"},
        "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
    }.items():
        file = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def served(request, tmp_path_factory):
    with lab(request.module.NOTEBOOKS, "Light", tmp_path_factory.mktemp("lab")) as served:
        yield served


@pytest.fixture(scope="module", params=["Light", "Dark"])
def jupyterlab(request, served):
    """One server for both themes: a page that loads asks it for the settings."""
    address, token, _, home = served
    settings(home / "settings", request.param)
    return address, token, request.param, home


# For what a theme cannot change: how it looks is tested in both, by axe-core and as a saved lesson.
in_one_theme = pytest.mark.parametrize("jupyterlab", ["Light"], indirect=True, scope="module")


@contextlib.contextmanager
def lab(notebooks, theme, folder):
    """Serves the lessons and `notebooks` (cells by name): address, token, theme, home."""
    root, home = folder / "root", folder / "home"
    shutil.copytree(REPOSITORY / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns("adapters", "runs"))
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)"}  # without one a dialog asks for it
    for name, sources in notebooks.items():
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, root / f"{name}.ipynb")
    settings(home / "settings", theme)
    with serve(root, home) as (address, token):
        yield address, token, theme, home


@contextlib.contextmanager
def serve(root, home, start=("-m", "jupyterlab")):
    """Runs JupyterLab, by the arguments `start` for Python, in `root`, with a home of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, log = secrets.token_hex(16), home / "log"
    command = [
        sys.executable, *start, "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", "--expose-app-in-browser",
    ]
    if "jupyterlab" in start:
        command += ["--allow-root", f"--ServerApp.root_dir={root}"]
    env = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": f"{home}/settings",
        "JUPYTERLAB_WORKSPACES_DIR": f"{home}/workspaces",
        "JUPYTER_CONFIG_DIR": f"{home}/config",
        "JUPYTER_RUNTIME_DIR": f"{home}/runtime",
        "IPYTHONDIR": f"{home}/ipython",
        "LORA_LAB_PROGRESS": f"{home}/progress.json",
    }
    with log.open("w") as output:
        server = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, cwd=root)
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
            yield address, token
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()  # where a kernel that was just starting keeps it waiting; its kernels end with it
            server.wait()


@pytest.fixture(scope="module")
def chromium():
    path = find()
    if path is None:
        message = "no Chromium found: run `python tools/get_browser.py`, or name one in the variable CHROMIUM"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(chromium):
    with chromium.new_context(viewport=SIZE) as context:
        page = context.new_page()
        page.set_default_timeout(120_000)  # JupyterLab comes late where lessons train beside it
        yield page


@pytest.fixture
def new_page(chromium):
    with open_page(chromium) as page:
        yield page


@pytest.fixture(scope="module")
def page(chromium, jupyterlab):
    """Shows one notebook after another: it takes seconds to load JupyterLab."""
    with open_page(chromium) as page:
        yield page


def open_notebook(page, jupyterlab, path, keep_kernel=False):
    """By its address; where the page shows JupyterLab already, in place of the last one (and on its kernel)."""
    address, token, *_ = jupyterlab
    if page.url.startswith(address):
        page.evaluate(OPEN, [path, keep_kernel])
    else:
        page.goto(f"{address}/doc/tree/{path}?reset&token={token}")
        page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")


def cells_and_active(page):
    notebook = "window.jupyterapp.shell.currentWidget.content"
    return page.evaluate(f"[{notebook}.widgets.length, {notebook}.activeCellIndex]")
