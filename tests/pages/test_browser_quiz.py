"""The quiz in a real browser: every kind, by mouse and by keyboard, light and dark, with and without its repairs."""

import json
import re

from axe_playwright_python.sync_playwright import Axe
from browser import REPOSITORY, RUN_ALL, SIZE, cells_and_active, in_one_theme, open_notebook
from playwright.sync_api import expect

SETUP = f"""\
import json
from pathlib import Path
from lora_lab.course import question_files
from lora_lab import compare, progress, quiz
question_files.FOLDER = Path({str(REPOSITORY / "tests/questions")!r})
def wrong(commands, answers):
    return {{}}
def right(commands, answers):
    flags = {{}}
    for command, answer in zip(commands, answers):
        flags.setdefault(list(json.loads(command.answer))[1], []).append(answer == command.answer)
    return {{device: sum(hits) / len(hits) for device, hits in flags.items()}}"""
KINDS = ("choice", "multiple", "number", "match", "order", "predict", "code")
ALL = [SETUP, *(f"quiz('every/{kind}')" for kind in KINDS[:-1]),
       "quiz('every/code', wrong)", "compare('every/predict', 70)"]
NOTEBOOKS = {name: ALL for name in ("mouse", "keyboard", "keys", "again", "axe", "escaping", "saved", "plain", "hurry")}

# What answers each kind wrongly and rightly, as (control's role and number, what to choose), and what is said then.
ANSWERS = {
    "choice": ([("radio", 2, None)], "The third is too far", [("radio", 1, None)]),
    "multiple": ([("checkbox", 0, None), ("checkbox", 1, None)], "is odd",
                 [("checkbox", 1, None), ("checkbox", 2, None)]),
    "number": ([("textbox", 0, "2,048")], "forgot the square", [("textbox", 0, "4096")]),
    "match": ([("combobox", 0, "d_in × d_out"), ("combobox", 1, "d_out × r")], "takes the input",
              [("combobox", 0, "r × d_in")]),
    "order": ([("combobox", 0, "1"), ("combobox", 1, "2"), ("combobox", 2, "3")], "is the smallest",
              [("combobox", 0, "2"), ("combobox", 1, "1")]),
}


def card(page, kind):
    return page.get_by_role("group", name=f"Question every/{kind}", exact=True)


def says(page, kind, *words):
    for word in words:
        card(page, kind).get_by_role("alert").get_by_text(word).first.wait_for()


def start(page, jupyterlab, name, afresh=True):
    if afresh:  # the tests ask the same questions
        (jupyterlab[3] / "progress.json").unlink(missing_ok=True)
    open_notebook(page, jupyterlab, f"{name}.ipynb")
    assert page.evaluate(RUN_ALL) == []
    for kind in KINDS:
        card(page, kind).get_by_role("button").first.wait_for()


def click(page, kind, role, number, choice):
    control = card(page, kind).get_by_role(role).nth(number)
    if role == "combobox":
        control.select_option(choice)
    elif role == "textbox":
        control.fill(choice)
    else:
        control.click()


# Again until it holds: a button that is replaced, or disabled, by the kernel's answer takes the focus along.
EDIT = """index => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    if (document.activeElement.matches('.jp-Notebook .jp-mod-active .cm-content')
        && notebook.activeCellIndex === index) return true;
    notebook.activeCellIndex = index; notebook.activate(); notebook.mode = 'edit'; }"""


def rewrite_exercise(page, source):
    """An exercise is answered in its cell: edit it and run it, by keys."""
    page.wait_for_function(EDIT, arg=KINDS.index("code") + 1, polling=100)
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(source)
    page.locator(".jp-Notebook .jp-mod-active .cm-content:focus").get_by_text(source).wait_for()
    page.keyboard.press("Shift+Enter")


@in_one_theme
def test_every_kind_by_mouse(page, jupyterlab, tmp_path):
    start(page, jupyterlab, "mouse")
    for kind, (wrong, feedback, right) in ANSWERS.items():
        check, show = (card(page, kind).get_by_role("button", name=name) for name in ("Check answer", "Show answer"))
        assert show.is_disabled(), "the answer comes after an attempt"
        check.click()
        says(page, kind, "first.")  # nothing chosen
        assert show.is_disabled(), "nothing chosen is no attempt"
        card(page, kind).get_by_role("button", name="Hint 1").click()
        says(page, kind, "Hint 1")
        for act in wrong:
            click(page, kind, *act)
        check.click()
        says(page, kind, "Not yet", "(attempt 1)", feedback)
        assert show.is_enabled()
        assert "Answer." not in card(page, kind).inner_text()
        for act in right:
            click(page, kind, *act)
        check.click()
        says(page, kind, "Right", "(attempt 2)")
        card(page, kind).get_by_text("See it in this lesson").wait_for()
    predict = card(page, "predict")
    assert page.get_by_text("no prediction was committed").count() == 1
    predict.get_by_role("radio").first.click()
    predict.get_by_role("button", name="Commit").click()
    says(page, "predict", "Committed")
    assert predict.get_by_role("radio").first.is_disabled(), "a prediction is final"
    assert page.evaluate(RUN_ALL) == []
    predict.get_by_text("Too low.").wait_for()  # beside the measured 70 %
    show = card(page, "code").get_by_role("button", name="Show answer")
    card(page, "code").get_by_text("is missing; your function returned").wait_for()
    show.click()  # enabled: the cell has run twice
    card(page, "code").get_by_text("shares[device] = hits / n").wait_for()
    rewrite_exercise(page, "quiz('every/code', right)")
    card(page, "code").get_by_text("Right.").wait_for()
    page.set_viewport_size({"width": 1000, "height": 3000})
    page.screenshot(path=tmp_path / "quiz.png")
    page.set_viewport_size(SIZE)


def tab_to(page, kind, role, number=0):
    """Move the focus with the Tab key alone."""
    wanted = card(page, kind).get_by_role(role).nth(number)
    for _ in range(60):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {role} {number} of {kind}")


def press_answer(page, kind, role, number, choice):
    if role == "radio":
        # one group: Tab enters it, arrows choose in it
        for _ in range(60):
            if card(page, kind).locator("input:focus").count():
                break
            page.keyboard.press("Tab")
        radios = card(page, kind).get_by_role("radio")
        for _ in range(radios.count()):
            if radios.nth(number).is_checked():
                return
            page.keyboard.press("ArrowDown")
            page.wait_for_timeout(50)
        raise AssertionError("the arrow keys do not choose")
    tab_to(page, kind, role, number)
    if role == "checkbox":
        page.keyboard.press("Space")
    else:
        if role == "textbox":
            page.keyboard.press("Control+A")
        page.keyboard.type(choice)


def press(page, kind, name):
    button = card(page, kind).get_by_role("button", name=name)
    for _ in range(60):
        if button.evaluate("element => element === document.activeElement"):
            return page.keyboard.press("Space")
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach the button {name}")


@in_one_theme
def test_every_kind_by_keyboard_alone(page, jupyterlab):
    start(page, jupyterlab, "keyboard")
    before = cells_and_active(page)
    for kind, (wrong, feedback, right) in ANSWERS.items():
        for acts, words in ((wrong, ("Not yet", feedback)), (right, ("Right",))):
            # a click beside the controls stands for reading the question; every answer is keys alone
            card(page, kind).locator(".lora-lab-ask").click()
            for act in acts:
                press_answer(page, kind, *act)
            page.keyboard.press("Enter") if kind == "number" else press(page, kind, "Check answer")
            says(page, kind, *words)
    card(page, "predict").locator(".lora-lab-ask").click()
    press_answer(page, "predict", "radio", 1, None)
    press(page, "predict", "Commit")
    says(page, "predict", "Committed")
    rewrite_exercise(page, "quiz('every/code', lambda commands, answers: 7)")
    card(page, "code").get_by_text("Expected a dict, found int").wait_for()
    rewrite_exercise(page, "quiz('every/code', right)")
    card(page, "code").get_by_text("Right.").wait_for()
    assert cells_and_active(page)[0] == before[0]


@in_one_theme
def test_keys_in_a_question_never_touch_the_notebook(page, jupyterlab):
    start(page, jupyterlab, "keys")
    notebook = "window.jupyterapp.shell.currentWidget.content"
    sources = f"() => {notebook}.widgets.map(cell => cell.model.sharedModel.getSource())"
    before = page.evaluate(sources)
    for kind in KINDS:
        controls = card(page, kind).locator("input:enabled, select:enabled, button:enabled")
        for i in range(controls.count()):
            controls.nth(i).focus()
            active = cells_and_active(page)
            for key in [*"ddabxzm00", "ArrowUp", "ArrowDown", "ArrowLeft", "Home", "End"]:
                page.keyboard.press(key)
            page.keyboard.press("Escape")
            assert page.evaluate(sources) == before, f"keys in {kind} changed the notebook"
            assert cells_and_active(page) == active, f"keys in {kind} moved the notebook"


@in_one_theme
def test_progress_outlives_kernel_and_browser(page, new_page, jupyterlab):
    start(page, jupyterlab, "again")
    card(page, "choice").get_by_role("radio").nth(1).click()
    card(page, "choice").get_by_role("button", name="Check answer").click()
    says(page, "choice", "Right")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    assert page.evaluate(RUN_ALL) == []
    card(page, "choice").get_by_text("Solved").wait_for()
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    start(new_page, jupyterlab, "again", afresh=False)
    card(new_page, "choice").get_by_text("Solved").wait_for()
    assert card(new_page, "choice").get_by_role("radio").nth(1).is_checked()


def violations(page):
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    page.add_style_tag(content="body {height: 100vh}")  # of JupyterLab's, which has none, axe says that nothing is seen
    found = Axe().run(page, context=".lora-lab-guard", options={"runOnly": tags})
    seen = {rule["id"] for rule in found.response["passes"]}
    assert {"color-contrast", "target-size", "label"} <= seen, "axe must have looked at colours, sizes and names"
    return {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in found.response["violations"]}


def test_no_accessibility_violation(page, jupyterlab):
    start(page, jupyterlab, "axe")
    assert violations(page) == {}
    for kind, (wrong, _, _) in ANSWERS.items():  # again with feedback, hints and answers on the page
        for act in wrong:
            click(page, kind, *act)
        for button, words in (("Check answer", "(attempt 1)"), ("Hint", "Hint 1"), ("Show answer", "Answer.")):
            card(page, kind).get_by_role("button", name=button).click()
            card(page, kind).get_by_text(words).first.wait_for()
    assert violations(page) == {}
    card(page, "choice").evaluate("card => card.appendChild(document.createElement('input'))")
    assert "label" in violations(page), "axe must find a field without a name"
    page.add_style_tag(content=".lora-lab-ask {color: #777 !important; background: #666}")
    assert "color-contrast" in violations(page), "axe must find what cannot be read, in both themes"


@in_one_theme
def test_markup_in_a_question_is_shown_and_not_obeyed(new_page, jupyterlab):
    page = new_page  # what it asks for while it loads counts, too
    dialogs, elsewhere = [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: elsewhere.append(request.url)
            if "127.0.0.1" not in request.url and request.url.startswith("http") else None)
    start(new_page, jupyterlab, "escaping")
    choice = card(page, "choice")
    choice.get_by_text("Which <b>tag</b> costs $5?").wait_for()
    choice.get_by_text("first <img src=x onerror=alert(1)> option").wait_for()
    card(page, "multiple").get_by_text("3 <b>").wait_for()
    card(page, "match").get_by_text("A <i>").wait_for()
    assert choice.locator(".MathJax").count() == 1, "the fraction is math, the five dollars are not"
    choice.get_by_role("radio").nth(1).click()
    choice.get_by_role("button", name="Check answer").click()
    choice.get_by_text("<script>window.hacked = true</script>").wait_for()
    choice.get_by_text("A <u>section</u>").wait_for()
    assert page.evaluate("window.hacked") is None and dialogs == []
    assert elsewhere == [], "nothing comes from a network"


@in_one_theme
def test_saved_notebook_reads_without_a_kernel(page, new_page, jupyterlab):
    start(page, jupyterlab, "saved")
    static = page.locator(".lora-lab-static")
    assert static.count() == len(KINDS) and not any(static.nth(i).is_visible() for i in range(len(KINDS)))
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    # no kernel: the notebook opens as a page of text
    page, static = new_page, new_page.locator(".lora-lab-static")
    open_notebook(page, jupyterlab, "saved.ipynb")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    static.first.get_by_text("second & last").wait_for()
    lost = page.get_by_text("Error displaying widget")
    expect(lost).to_have_count(len(KINDS), timeout=30_000)  # the widgets have given up
    assert all(static.nth(i).is_visible() for i in range(len(KINDS)))
    assert not any(error.is_visible() for error in lost.all())
    saved = page.evaluate("() => window.jupyterapp.shell.currentWidget.model.toJSON()")
    plain = [output["data"]["text/plain"] for cell in saved["cells"][1:] for output in cell["outputs"]]
    assert not any("VBox" in text or "object at" in text for text in map("".join, plain))
    page.evaluate("""document.querySelectorAll("style").forEach(style => {
        if (style.textContent.includes("lora-lab-widget")) style.remove(); })""")
    assert all(error.is_visible() for error in lost.all()), "only what is displayed with the widget hides the error"


@in_one_theme
def test_works_where_the_keyboard_repair_cannot_load(new_page, jupyterlab):
    page, home = new_page, jupyterlab[3]
    (home / "progress.json").unlink(missing_ok=True)
    config = home / "config/labconfig/page_config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"disabledExtensions": {"anywidget": true}}')
    open_notebook(page, jupyterlab, "plain.ipynb")
    config.unlink()  # read when a page loads
    assert page.evaluate(RUN_ALL) == []
    question = page.locator(".lora-lab-guard").first
    assert card(page, "choice").count() == 0, "it names the box, so it has loaded"
    question.get_by_role("radio").nth(2).check()
    question.get_by_role("button", name="Check answer").click()
    question.get_by_role("alert").get_by_text("The third is too far").wait_for()
    assert not any(error.is_visible() for error in page.get_by_text(re.compile(r"\bError\b")).all())
    kept = json.loads((home / "progress.json").read_text())
    assert kept["questions"]["every/choice"]["attempts"] == 1


@in_one_theme
def test_a_question_in_another_notebook_keeps_its_text(page, jupyterlab):
    """Live cards hide the static text beside them, and no other."""
    start(page, jupyterlab, "saved")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")
    page.evaluate("""async () => { const app = window.jupyterapp;
        await app.serviceManager.contents.copy('saved.ipynb', '');
        const copy = await app.commands.execute('docmanager:open', {path: 'saved-Copy1.ipynb'});
        await copy.context.ready; app.shell.add(copy, 'main', {mode: 'split-right'}); }""")
    second = page.locator(".jp-NotebookPanel").nth(1)
    second.locator(".lora-lab-static").first.get_by_text("second & last").wait_for()
    assert not page.locator(".jp-NotebookPanel").first.locator(".lora-lab-static").first.is_visible()


@in_one_theme
def test_the_answer_on_the_page_is_the_one_that_is_judged(page, jupyterlab):
    """Over a slow line a choice can arrive after the click on Check. Here its message never comes."""
    start(page, jupyterlab, "hurry")
    card(page, "choice").get_by_role("radio").nth(2).click()
    card(page, "choice").get_by_role("radio").nth(1).evaluate("radio => { radio.checked = true; }")  # tells no kernel
    card(page, "choice").get_by_role("button", name="Check answer").click()
    says(page, "choice", "Right", "(attempt 1)")
