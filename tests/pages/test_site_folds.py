"""What settles a prediction stays folded on the site until that is made, or the reader asks for it."""

import nbformat
import pytest
import site_questions
import small_site
from axe_playwright_python.sync_playwright import Axe
from browser import REPOSITORY
from lora_lab.course import question_files
from lora_lab.course.question_kinds import Predict
from playwright.sync_api import expect
from test_browser_quiz import card, click
from test_site_front import RULES
from test_site_questions import visit  # noqa: F401

SHOW, HIDE = "Show the result without predicting", "Hide the result"


def results(page):
    """What the two cells after the prediction show: a drawing, and what was measured."""
    return [page.get_by_role("img", name="A blue drawing."), page.locator(".lora-lab-measured")]


def press(page, way, part):
    if way == "keys":
        part.focus()
        page.keyboard.press("Enter")
    else:
        part.tap() if way == "touch" else part.click()


@pytest.mark.parametrize("way, width, theme", [
    pytest.param("mouse", 1280, "light", marks=pytest.mark.nightly), ("touch", 390, "dark"), ("keys", 390, "light")])
def test_results_show_once_the_prediction_is_made(visit, tmp_path, way, width, theme):  # noqa: F811
    page = visit(width, theme, has_touch=way == "touch")
    for result in results(page):
        expect(result).to_be_hidden()
    expect(page.get_by_text(SHOW)).to_have_count(2)
    page.get_by_text(SHOW).first.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "folded.png")
    press(page, way, card(page, "predict").get_by_role("button", name="Commit"))
    for result in results(page):
        expect(result).to_be_hidden()  # nothing was chosen
    click(page, "predict", "radio", 1, None)
    press(page, way, card(page, "predict").get_by_role("button", name="Commit"))
    for turn in range(2):
        drawing, measured = results(page)
        expect(drawing).to_be_visible()
        expect(measured).to_contain_text("As you predicted")
        for button in page.get_by_text(SHOW).all() + page.get_by_text(HIDE).all():
            expect(button).to_be_hidden()
        drawing.scroll_into_view_if_needed()
        box = drawing.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(300 / 200) and box["width"] > 200
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=tmp_path / f"settled-{turn}.png")
        page.reload()


@pytest.mark.parametrize("way, width, theme", [
    pytest.param("mouse", 1280, "light", marks=pytest.mark.nightly), ("touch", 390, "dark"), ("keys", 390, "light")])
def test_results_show_without_predicting_all_at_once(visit, tmp_path, way, width, theme):  # noqa: F811
    page = visit(width, theme, has_touch=way == "touch")
    found = Axe().run(page, context=".cell:has(> details)", options={"runOnly": RULES})
    assert found.violations_count == 0, found.generate_report()
    assert {"summary-name", "color-contrast"} <= {rule["id"] for rule in found.response["passes"]}
    heads = page.locator("details.below-input > summary")
    assert heads.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))") == [None, None], "named as shown"
    press(page, way, heads.last)
    for result in results(page):
        expect(result).to_be_visible()
    expect(results(page)[1]).to_contain_text("no prediction was committed")
    page.screenshot(path=tmp_path / "shown.png")
    page.evaluate("Promise.all(document.getAnimations().map(one => one.finished))")  # half faded in, contrast is low
    found = Axe().run(page, context=".cell:has(> details)", options={"runOnly": RULES})
    assert found.violations_count == 0, found.generate_report()
    expect(heads.first).to_have_text(HIDE, use_inner_text=True)
    press(page, way, heads.first)
    expect(results(page)[0]).to_be_hidden()
    expect(results(page)[1]).to_be_visible()
    click(page, "predict", "radio", 0, None)
    card(page, "predict").get_by_role("button", name="Commit").click()
    for result in results(page):
        expect(result).to_be_visible()
    expect(results(page)[1]).to_contain_text("Too low.")


def test_all_stands_open_without_script_and_on_paper(visit):  # noqa: F811
    page, plain = visit(), visit(java_script_enabled=False)
    page.emulate_media(media="print")
    for one in (page, plain):
        for result in results(one):
            expect(result).to_be_visible()
        for button in one.get_by_text(SHOW).all():
            expect(button).to_be_hidden()
        results(one)[0].scroll_into_view_if_needed()
        assert results(one)[0].bounding_box()["height"] > 100


@pytest.mark.parametrize("place", [".lora-lab-measured", ".cell-place:has(+ .cell > details)"])
def test_a_link_to_a_result_opens_it(visit, place):  # noqa: F811
    page = visit()
    name = page.locator(place).first.get_attribute("id")
    page.evaluate("name => { location.hash = name; }", name)
    for _ in range(2):
        for result in results(page):
            expect(result).to_be_visible()
        page.reload()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("0*.ipynb")), ids=lambda path: path.stem)
def test_every_prediction_of_a_lesson_folds_what_was_measured_and_no_question(path):
    notebook = site_questions.folded(site_questions.answering(nbformat.read(path, 4)))
    lesson = next(lesson for lesson in question_files.lessons() if lesson.notebook == path.stem)
    asked, measured = set(), set()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            measured.clear()
        shown = "".join(output["data"].get("text/html", "") for output in cell.get("outputs", []) if "data" in output)
        of = {tag.removeprefix(site_questions.RESULT) for tag in cell.metadata.get("tags", [])
              if tag.startswith(site_questions.RESULT)}
        assert bool(of) == ("hide-output" in cell.metadata.get("tags", [])), "nothing else is folded"
        assert of <= asked | measured, "not before it is asked"
        for question in lesson.questions:
            if not isinstance(question, Predict):
                continue
            if f'data-question="{question.id}" data-card=' in shown:
                asked.add(question.id)
                assert not of, "a question stays in sight"
            elif f'data-question="{question.id}"' in shown:
                assert question.id in of
                asked.remove(question.id)  # after the next words nothing belongs to it
                measured.add(question.id)
    assert not asked


def test_what_follows_the_measured_without_a_word_between_is_folded_too():
    def last_is_folded(notebook):
        return "hide-output" in site_questions.folded(notebook).cells[-1].metadata.get("tags", [])

    plain, close = small_site.questions(), small_site.questions()
    del close.cells[-2]  # the words before the last cell
    assert (last_is_folded(plain), last_is_folded(close)) == (False, True)
