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

SLIDER = """\
import torch
from lora_lab import plots, widgets
W = torch.randn(8, 6)
widgets.slide(lambda r: plots.matrices({f"rank {r}": W, "W": W}), "rank", 1, 6, start=2)"""

EXPLORER = """\
from lora_lab import widgets
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=2))
widgets.explore(model)"""

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
    for name, source in {"live": LIVE_CURVE, "slider": SLIDER, "explorer": EXPLORER}.items():
        cells = [nbformat.v4.new_code_cell(source), nbformat.v4.new_code_cell("'the cell below'")]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, root / f"{name}.ipynb")
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


def cells_and_active(page):
    notebook = "window.jupyterapp.shell.currentWidget.content"
    return page.evaluate(f"[{notebook}.widgets.length, {notebook}.activeCellIndex]")


def test_slider_moves_by_keyboard_alone(page, jupyterlab):
    open_notebook(page, jupyterlab, "slider.ipynb")
    assert page.evaluate(RUN_ALL) == []
    handle, picture = page.get_by_role("slider"), page.locator(".jp-OutputArea-output img")
    handle.focus()
    before = cells_and_active(page)
    for key, alt in (("ArrowRight", "rank 3"), ("ArrowUp", "rank 4"), ("ArrowLeft", "rank 3"), ("End", "rank 6"),
                     ("Home", "rank 1")):
        page.keyboard.press(key)
        page.wait_for_function(
            "alt => document.querySelector('.jp-OutputArea-output img').alt.includes(alt)", arg=f"{alt};"
        )
    assert picture.count() == 1, "the picture must redraw in place"
    assert cells_and_active(page) == before, "the arrow keys moved the notebook instead"


def test_explorer_answers_to_ticks_and_rank(page, jupyterlab, tmp_path):
    open_notebook(page, jupyterlab, "explorer.ipynb")
    assert page.evaluate(RUN_ALL) == []
    picture, words = page.locator(".jp-OutputArea-output img"), page.locator(".jp-OutputArea-output pre")
    words.get_by_text("['q_proj', 'v_proj']").wait_for()
    assert "q_proj adapted, k_proj frozen" in picture.get_attribute("alt")
    page.get_by_label("k_proj").focus()
    page.keyboard.press("Space")
    words.get_by_text("LoraConfig(r=8, target_modules=['q_proj', 'k_proj', 'v_proj'])").wait_for()
    assert "k_proj adapted" in picture.get_attribute("alt")
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    words.get_by_text("LoraConfig(r=9").wait_for()
    for name in ("q_proj", "k_proj", "v_proj"):
        page.get_by_label(name).uncheck()
    page.get_by_text("Tick a layer.").wait_for()
    assert picture.count() == 1
    page.screenshot(path=tmp_path / "explorer.png")


LESSONS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_saved_lesson_shows_its_outputs(page, jupyterlab, tmp_path, lesson):
    open_notebook(page, jupyterlab, f"notebooks/{lesson.name}")
    page.locator(".jp-RenderedMarkdown h1").first.wait_for()
    pictures = page.locator(".jp-OutputArea-output img")
    pictures.first.wait_for()
    for i in range(pictures.count()):
        assert pictures.nth(i).get_attribute("alt"), "a picture without a text"
        assert pictures.nth(i).evaluate("img => img.naturalWidth") > 100
    assert page.locator(".jp-OutputArea-output table").count() >= 3
    assert page.get_by_text("Error displaying widget").count() == 0
    theme = page.evaluate("document.body.dataset.jpThemeLight")
    assert theme == ("true" if jupyterlab[2] == "Light" else "false")
    page.screenshot(path=tmp_path / "lesson.png")
