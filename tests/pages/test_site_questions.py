"""Questions that reply on the site: every kind in a real browser, and judged as Python judges."""

import base64
import functools
import html
import json
import random
import re
import tomllib

import nbformat
import pytest
import site_math
import site_questions
from axe_playwright_python.sync_playwright import Axe
from browser import REPOSITORY
from lora_lab.course import cards, progress_file, question_files
from lora_lab.course.progress_file import Record
from lora_lab.course.question_kinds import Code, Match, Multiple, Number, Order, Predict
from test_browser_quiz import ANSWERS, KINDS, card, click, press, press_answer, says

SCRIPT = (REPOSITORY / "docs/questions.js").read_text(encoding="utf-8")


@pytest.fixture
def visit(chromium, built):
    """Opens the page as a file; nothing may come from another host."""
    contexts, elsewhere = [], []

    def visit(width=1280, theme="light", **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: elsewhere.append(request.url) if request.url.startswith("http") else None)
        page.on("pageerror", lambda error: elsewhere.append(str(error)))
        page.goto((built / "notebooks/page.html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert elsewhere == []


def violations(page):
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = Axe().run(page, context=".lora-lab-quiz", options={"runOnly": tags})
    seen = {rule["id"] for rule in found.response["passes"]}
    assert {"color-contrast", "target-size", "label"} <= seen, "axe must have looked at colours, sizes and names"
    return {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in found.response["violations"]}


def tap(page, kind, role, number, choice):
    control = card(page, kind).get_by_role(role).nth(number)
    control.tap()
    if role == "combobox":
        control.select_option(choice)  # the system's own menu
    elif role == "textbox":
        control.fill(choice)


def by_keys(page, kind, *act):
    card(page, kind).locator(".lora-lab-ask").click()  # stands for reading the question; the rest is keys
    press_answer(page, kind, *act)


def push_keys(page, kind, name):
    card(page, kind).locator(".lora-lab-ask").click()
    press(page, kind, name)


WAYS = {
    "mouse": (click, lambda page, kind, name: card(page, kind).get_by_role("button", name=name).click()),
    "touch": (tap, lambda page, kind, name: card(page, kind).get_by_role("button", name=name).tap()),
    "keys": (by_keys, push_keys),
}


@pytest.mark.parametrize("way, width, theme", [
    pytest.param("mouse", 1280, "light", marks=pytest.mark.nightly), ("touch", 390, "dark"), ("keys", 390, "light")])
def test_every_kind_replies(visit, tmp_path, way, width, theme):
    choose, push = WAYS[way]
    page = visit(width, theme, has_touch=way == "touch")
    for kind, (wrong, feedback, right) in ANSWERS.items():
        show = card(page, kind).get_by_role("button", name="Show answer")
        assert show.is_disabled() and show.get_attribute("title") == "after an attempt"
        push(page, kind, "Check answer")
        says(page, kind, "first.")  # nothing chosen
        assert show.is_disabled(), "nothing chosen is no attempt"
        push(page, kind, "Hint 1")
        says(page, kind, "Hint 1")
        for act in wrong:
            choose(page, kind, *act)
        push(page, kind, "Check answer")
        says(page, kind, "Not yet", "(attempt 1)", feedback)
        assert "Answer." not in card(page, kind).inner_text()
        push(page, kind, "Show answer")
        says(page, kind, "Answer.")
        for act in right:
            choose(page, kind, *act)
        push(page, kind, "Check answer")
        says(page, kind, "Right", "(attempt 2)")
    choose(page, "predict", "radio", 1, None)
    push(page, "predict", "Commit")
    says(page, "predict", "Committed")
    assert card(page, "predict").get_by_role("radio").first.is_disabled(), "a prediction is final"
    below = page.locator(card(page, "predict").get_by_role("link", name="stands below").get_attribute("href"))
    below.get_by_text("As you predicted").wait_for()
    told = page.get_by_role("group", name="Your answers").inner_text()
    assert "6 of 6 questions" in told and "1 of 1 came true" in told
    word = card(page, "match").locator(".lora-lab-says").first
    word.evaluate("part => { part.textContent = 'x'.repeat(200) }")
    assert word.evaluate("part => part.scrollWidth <= part.clientWidth"), "a long word is broken"
    assert page.evaluate("window.hacked") is None
    assert page.locator(".lora-lab-quiz math").count() == 4, "all formulas"
    page.set_viewport_size({"width": 360, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    parts = page.locator(".lora-lab-quiz, .lora-lab-quiz :is(input, select, button, label, p)")
    wide = parts.evaluate_all("parts => parts.filter(part => part.getBoundingClientRect().right > 360)"
                              ".map(part => part.outerHTML)")
    assert wide == [], "nothing is cut off"
    if way != "keys":  # which ends in the same state
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert violations(page) == {}
        page.add_style_tag(content=".lora-lab-ask {opacity: 0.4} .lora-lab-quiz .widget-radio-box label {"
                                   "line-height: 8px !important; min-height: 0 !important; padding: 0 !important}")
        assert violations(page).keys() == {"color-contrast", "target-size"}, "both are found"


def test_answers_stay_and_leave_as_the_notebooks_keep_them(visit, tmp_path):
    page = visit(accept_downloads=True)
    click(page, "choice", "radio", 2, None)
    card(page, "choice").get_by_role("button", name="Check answer").click()
    click(page, "choice", "radio", 1, None)
    card(page, "choice").get_by_role("button", name="Check answer").click()
    click(page, "multiple", "checkbox", 1, None)
    card(page, "multiple").get_by_role("button", name="Check answer").click()
    card(page, "multiple").get_by_role("button", name="Show answer").click()
    click(page, "number", "textbox", 0, "2,048")
    page.keyboard.press("Enter")
    click(page, "predict", "radio", 0, None)
    card(page, "predict").get_by_role("button", name="Commit").click()
    page.reload()
    card(page, "choice").get_by_text("Solved.").wait_for()
    card(page, "multiple").get_by_text("Not solved yet.").wait_for()
    assert card(page, "choice").get_by_role("radio").nth(1).is_checked()
    assert card(page, "number").get_by_role("textbox").input_value() == "2,048"
    assert card(page, "predict").get_by_role("radio").first.is_disabled()
    page.locator(".lora-lab-measured").get_by_text("Too low.").wait_for()
    page.get_by_text("Of your predictions, 0 of 1 came true.").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as a file").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    records, damage = progress_file.load(tmp_path / "lora-lab-progress.json")
    assert damage == "" and records == {
        "every/choice": Record(attempts=2, solved=True, answer=1),
        "every/multiple": Record(attempts=1, shown=True, answer=[1]),
        "every/number": Record(attempts=1, answer="2,048"),
        "every/predict": Record(solved=True, answer=0, measured=70),
    }
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert page.evaluate("key => localStorage.getItem(key)", f"lora-lab {version} every/choice"), "kept by version"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Forget them").click()
    page.get_by_text("0 of 6 questions").wait_for()
    assert not page.get_by_text("Of your predictions").count()
    assert not page.locator("input:checked").count()
    assert not [key for key in page.evaluate("Object.keys(localStorage)") if "every" in key]
    # and what somebody edited there breaks nothing
    edited = {"choice": '{"answer": 9}', "multiple": '{"answer": ["<b>"]}', "number": '{"answer": "1", "attempts": -1}',
              "match": "{", "order": '{"answer": [0]}', "predict": '{"answer": "0", "solved": true}'}
    for kind, text in edited.items():
        page.evaluate("([key, text]) => localStorage.setItem(key, text)", [f"lora-lab {version} every/{kind}", text])
    page.reload()
    click(page, "predict", "radio", 0, None)
    card(page, "predict").get_by_role("button", name="Commit").click()
    says(page, "predict", "Committed")


def test_a_browser_that_keeps_nothing_says_so_and_answers_count(visit):
    page = visit()
    page.add_init_script("""const put = Storage.prototype.setItem; Storage.prototype.setItem = function (key, text) {
        if (key.startsWith('lora-lab')) throw new Error('full'); put.call(this, key, text); }""")
    page.reload()
    page.get_by_text("the answers are gone when you leave it").wait_for()
    click(page, "choice", "radio", 1, None)
    card(page, "choice").get_by_role("button", name="Check answer").click()
    says(page, "choice", "Right", "(attempt 1)")
    page.get_by_text("1 of 6 questions").wait_for()


def test_without_script_the_page_stays_as_it_was(visit):
    page = visit(java_script_enabled=False)
    assert page.get_by_text("Run this cell to answer.").count() == 6
    assert page.locator(".lora-lab-static li", has_text="second & last").is_visible()
    assert page.get_by_text("nothing: no prediction was committed").is_visible()
    assert page.get_by_text("In the notebook, change the code above").is_visible()
    assert not page.locator(".lora-lab-quiz :is(input, button)").count()


def test_the_readers_own_count_stands_where_the_author_counted(visit):
    page, plain = visit(390), visit(java_script_enabled=False)
    last = page.locator(".cell").last.get_by_role("group", name="Your answers")
    assert "0 of 6 questions of this page are done" in last.inner_text()
    click(page, "choice", "radio", 1, None)
    card(page, "choice").get_by_role("button", name="Check answer").click()
    last.get_by_text("1 of 6 questions").wait_for()
    assert page.get_by_role("group", name="Your answers").count() == 1
    assert plain.get_by_text("In a notebook, your answers to all lessons are counted here").is_visible()
    for one in (page, plain):
        assert not one.get_by_text("after seeing the answer").count(), "the author's own progress"


def test_no_answer_can_be_read_in_the_source_by_accident(built):
    text = (built / "notebooks/page.html").read_text(encoding="utf-8")
    assert "Which are even?" in text and SCRIPT in text
    assert SCRIPT not in (built / "search.html").read_text(encoding="utf-8")  # no questions
    assert not [words for _, words, _ in ANSWERS.values() if words in text] and "Count on." not in text


def some_answer(question, draw):
    """Any answer that the question's control can hold."""
    if isinstance(question, Number):
        near = draw.choice([question.value, *(one.value for one in question.near)]) * draw.choice([1, 1, 1.0001, 1.03])
        forms = [repr(near), f"{near:,.0f}", f" {near:_.0f} ", f"{near:.6g}{question.unit}", f"{near:.3e} %", "1_0",
                 f"{near:,.0f}0", f"{near}/1", f"{near:.0f}/0", f"{near}/1/1", "1/inf", "nan", "٤٠٩٦", "𝟜𝟘𝟡𝟞",
                 "4\u202f096", "4,0960", "0x10", "+.5e1", "5.", "."]
        letters = draw.choices("0123456789.,_' eE+-/%x", k=draw.randint(1, 8))
        return draw.choice([*forms, "".join(letters)])
    if isinstance(question, Multiple):
        return [place for place in range(len(question.option)) if draw.random() < 0.5]
    if isinstance(question, (Match, Order)):
        places = range(len(question.choices))
        return draw.sample(places, len(places)) if draw.random() < 0.5 and isinstance(question, Order) else \
            draw.choices(places, k=len(question.items))
    return draw.randrange(len(question.lines))


def test_the_page_judges_as_python_on_ten_thousand_answers(new_page, monkeypatch):
    """With every question of the course, each reply as HTML; a prediction with measurements at its bounds."""
    draw, quick = random.Random(0), functools.cache(cards.markdown)
    for module in (cards, site_questions):
        monkeypatch.setattr(module, "markdown", quick)
    every = [*question_files.read(REPOSITORY / "tests/questions/every.toml").questions,
             *(question for lesson in question_files.lessons() for question in lesson.questions)]
    every = [question for question in every if not isinstance(question, Code)]
    kinds = sorted({type(question) for question in every}, key=str)
    data, cases, expected = {}, [], []
    for turn in range(10_000):
        kind = kinds[turn % len(kinds)]
        question = draw.choice([question for question in every if isinstance(question, kind)])
        answer = some_answer(question, draw)
        assert question.holds(answer)
        name, shown = question.id, None
        if isinstance(question, Predict):
            value = draw.choice([band.below for band in question.band[:-1]]) * draw.choice([1, 0.97, -20])
            shown = question.format.format(value)
            name = f"{name} {shown}"
            said = cards.outcome(question, Record(answer=answer, measured=value))
            expected.append([question.right(value) == answer, said])
        else:
            expected.append(site_questions.reply(question.grade(answer)))
        if name not in data:
            data[name] = site_questions.page_data(question, shown)
        cases.append((name, answer))
    module = f"data:text/javascript;base64,{base64.b64encode(SCRIPT.encode()).decode()}"
    found = new_page.evaluate("""async ([module, data, cases]) => { const { judge } = await import(module);
        return cases.map(([name, answer]) => judge[data[name].kind](data[name], answer)); }""", [module, data, cases])
    differ = [(case, one, two) for case, one, two in zip(cases, found, expected, strict=True) if one != two]
    assert not differ, (len(differ), differ[:3])
    seen = {(data[name]["kind"], solved) for (name, _), (solved, _) in zip(cases, expected)}
    assert seen >= {(kind, solved) for kind in KINDS[:-1] for solved in (True, False)}
    assert seen >= {("number", None), ("order", None)}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("0*.ipynb")), ids=lambda path: path.stem)
def test_every_question_of_a_lesson_but_exercises_replies(path):
    notebook = site_questions.answering(nbformat.read(path, 4))
    pages = [output["data"]["text/html"] for cell in notebook.cells for output in cell.get("outputs", [])
             if "text/html" in output.get("data", {})]
    lesson = next(lesson for lesson in question_files.lessons() if lesson.notebook == path.stem)
    found = {html.unescape(name): json.loads(base64.b64decode(data)) for page in pages for name, data in
             re.findall(r'data-question="([^"]+)" data-card="([^"]+)"', page)}
    assert found.keys() == {question.id for question in lesson.questions if not isinstance(question, Code)}
    assert "\\(" not in "".join(pages) + "".join(map(str, found.values())), "each formula is drawn"
    assert pages.count(site_questions.OWN_COUNT) == 1 and "after seeing the answer" not in "".join(pages)
    predictions = {question.id for question in lesson.questions if isinstance(question, Predict)}
    assert predictions == {name for name, data in found.items() if "measured" in data}
    measured = re.findall('class="lora-lab-measured" id=".*?" data-question="(.*?)"', "".join(pages))
    assert predictions == set(measured)


def test_a_formula_is_as_wide_as_its_signs_where_words_break_anywhere(visit):
    page = visit(390)
    formula = site_math.mathml("4 + 8/64 + 32/(64 \\cdot 256) = 4 + 0.125 + 0.00195 = 4.127")
    over = page.evaluate("""formula => {
        document.querySelector('article').insertAdjacentHTML(
            'afterbegin', `<p id="tried" style="overflow-wrap: anywhere">${formula}</p>`);
        const right = part => part.getBoundingClientRect().right;
        return [...document.querySelectorAll('#tried math')].map(
            math => Math.max(...[...math.querySelectorAll('*')].map(right)) - right(math)); }""", formula)
    assert len(over) == 7 and max(over) < 1
