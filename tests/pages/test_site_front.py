"""The front page: what it takes from the README and a lesson, and how it stands in a real browser."""

import functools
import http.server
import json
import re
import threading
import xml.etree.ElementTree
from unittest import mock

import nbformat
import pytest
import site_front
from axe_playwright_python.sync_playwright import Axe
from browser import REPOSITORY
from check_links import MOST, Page, script_bytes
from small_site import ADDRESS

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
TEXT = (REPOSITORY / "index.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address(built):
    """Where the site is served: its search reads pages, which a page opened as a file may not."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=built)
    with mock.patch.object(http.server.SimpleHTTPRequestHandler, "log_message"), \
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def visit(chromium, address):
    """Opens a page of the site; nothing may come from elsewhere, and no script may fail."""
    contexts, faults = [], []

    def visit(name="index", width=1280, theme="light", **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: request.url.startswith((address, "data:")) or faults.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{address}{name}.html")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


def test_every_lesson_is_there_as_the_readme_has_it():
    notebooks = sorted(REPOSITORY.glob("notebooks/0*.ipynb"))
    lessons = site_front.lessons()
    assert [lesson["name"] for lesson in lessons] == [file.stem for file in notebooks]
    page = site_front.fill(TEXT, "")
    for lesson in lessons:
        assert f'href="notebooks/{lesson["name"]}.html">{lesson["number"]} · ' in page
        assert f"<span>{float(lesson['minutes']):g} min</span>" in page
    assert "<!--" not in page and "colab" not in page and "binder" not in page, "nothing that is not published"


def test_published_lessons_open_elsewhere_too():
    page = site_front.fill(TEXT, "https://github.com/some-one/a.course")
    count = len(site_front.lessons())
    assert len(re.findall("colab.research.google.com/github/some-one/a.course/blob/main/notebooks/0", page)) == count
    assert len(re.findall("mybinder.org/v2/gh/some-one/a.course/HEAD.urlpath=lab/tree/0", page)) == count
    assert "colab" not in site_front.fill(TEXT, "https://git.example.org/team/course.git")


def test_the_figure_is_that_of_the_executed_lesson():
    lesson, name = site_front.FIGURE
    (figure,) = re.findall(r"<figure.*?</figure>", site_front.fill(TEXT, ""), re.DOTALL)
    saved = "".join(output["data"]["text/html"] for cell in nbformat.read(
        REPOSITORY / f"notebooks/{lesson}.ipynb", 4).cells for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {}))
    (values,) = re.findall(r'<script type="application/json">(.*?)</script>', figure)
    assert values in saved and len(json.loads(values)["points"]) > 3


def test_a_lesson_without_the_figure_is_named(monkeypatch):
    monkeypatch.setattr(site_front, "FIGURE", ("03_train_in_8bit", "dial"))
    with pytest.raises(ValueError, match="03_train_in_8bit.*make notebooks"):
        site_front.fill(TEXT, "")


def test_downloads_are_the_lessons_without_outputs(built):
    for lesson in site_front.lessons():
        notebook = nbformat.read(built / f"notebooks/{lesson['name']}.ipynb", 4)
        nbformat.validate(notebook)
        committed = nbformat.read(REPOSITORY / f"notebooks/{lesson['name']}.ipynb", 4)
        assert [cell.source for cell in notebook.cells] == [cell.source for cell in committed.cells]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_published_pages_say_where_they_are(built):
    front, search = ((built / f"{name}.html").read_text(encoding="utf-8") for name in ("index", "search"))
    assert f'<link rel="canonical" href="{ADDRESS}index.html"' in front
    (picture,) = re.findall(f'property="og:image" content="{ADDRESS}(.*?)"', front)
    assert (built / picture).is_file()
    assert re.search(r'<meta name="description" content="\w[^"]{50,}"', front)
    places = [place.text for place in xml.etree.ElementTree.parse(built / "sitemap.xml").iterfind(".//{*}loc")]
    assert places == [f"{ADDRESS}{page}.html" for page in ("README", "docs/tools", "index", "notebooks/page")]
    assert "Author name" not in front + search


def test_each_page_has_the_scripts_it_needs_and_no_more(built):
    texts = {name: (built / f"{name}.html").read_text(encoding="utf-8") for name in (
        "index", "README", "search", "notebooks/page")}
    assert [name for name, text in texts.items() if "figures.js" in text] == ["index"]
    assert [name for name, text in texts.items() if "searchindex.js" in text] == ["search"]
    assert not [name for name, text in texts.items() if re.search("fontawesome.js|MathJax", text)]
    for name, text in texts.items():
        assert 50_000 < script_bytes(built / f"{name}.html", Page(text)) < MOST


@pytest.mark.parametrize("width, theme", [(360, "light"), (390, "dark"), (1280, "dark"), (1280, "light")])
def test_front_page_fits_and_axe_finds_nothing(visit, tmp_path, width, theme):
    page = visit(width=width, theme=theme)
    page.locator(".ll-live svg").first.wait_for()
    assert page.locator("html").get_attribute("data-theme") == theme
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.locator("main *").evaluate_all("all => all.filter(one => one.getBoundingClientRect().right > "
                                               "innerWidth + 1).map(one => one.outerHTML.slice(0, 200))")
    assert wide == [], "nothing is cut off"
    page.screenshot(path=tmp_path / f"front-{width}-{theme}.png", full_page=True)
    found = Axe().run(page, options={"runOnly": RULES})
    assert found.violations_count == 0, found.generate_report()
    seen = {rule["id"] for rule in found.response["passes"]}
    assert {"color-contrast", "target-size", "label", "link-name"} <= seen


def test_keys_reach_everything_and_find_a_word(visit):
    page = visit()
    page.locator(".ll-live").wait_for()
    wanted = page.locator("a[href], button, input, select, summary").evaluate_all(
        """all => all.filter(one => one.checkVisibility({ visibilityProperty: true }) && !one.disabled)
            .map((one, place) => one.dataset.place = String(place))""")
    reached = set()
    for _ in range(len(wanted) + 10):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.place"))
    assert len(wanted) > 25 and reached >= set(wanted)
    page.keyboard.press("Control+k")
    page.keyboard.type("kingfisher")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="The tools").last.wait_for()
    assert page.url.endswith("search.html?q=kingfisher")
    assert page.locator("#search-results li").count() == 1


@pytest.mark.parametrize("width, theme", [(390, "dark"), (1280, "light")])
def test_excerpts_are_of_the_text_and_the_magnifier_stands_beside_the_words(visit, tmp_path, width, theme):
    page = visit("search", width, theme)
    page.goto(f"{page.url}?q=tools")
    page.get_by_text("A word to look for").wait_for()
    page.screenshot(path=tmp_path / f"search-{width}-{theme}.png")
    excerpt = page.locator("#search-results li", has_text="A word to look for").inner_text()
    assert "kingfisher" in excerpt and not re.search("System|Dark|Contents|Search", excerpt), excerpt
    field = page.locator(".bd-search-container input")
    icon = page.locator(".bd-search-container .fa-magnifying-glass").bounding_box()
    inset = field.evaluate("field => parseFloat(getComputedStyle(field).paddingLeft)")
    assert icon["x"] + icon["width"] <= field.bounding_box()["x"] + inset


def test_before_and_after_and_theme_by_touch_on_a_phone(visit):
    page = visit(width=390, has_touch=True)
    factor = page.get_by_role("slider").first
    before, box = factor.get_attribute("aria-valuetext"), factor.bounding_box()
    page.touchscreen.tap(box["x"] + 2, box["y"] + box["height"] / 2)
    assert factor.get_attribute("aria-valuetext") == "0" != before
    page.get_by_role("button", name="Color mode").tap()
    page.get_by_role("button", name="Dark", exact=True).tap()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.locator("a.right-next").tap()
    page.get_by_role("heading", name="Questions", level=1).wait_for()
    assert page.locator("html").get_attribute("data-theme") == "dark", "as chosen"
    assert "Set-up and overview" in page.locator("a.right-next").inner_text(), "its own title is the front page's"
    page.locator("a.left-prev").tap()
    page.get_by_role("heading", name="lora-lab", level=1).wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_paper_the_still_stands_dark_on_white(visit, theme, tmp_path):
    page = visit(theme=theme)
    page.locator(".ll-live").wait_for()
    page.emulate_media(media="print", color_scheme=theme)
    assert page.locator(".lora-lab-still").is_visible() and not page.locator(".ll-live").is_visible()
    for gone in ("#pst-primary-sidebar", ".prev-next-footer", ".bd-header-article", ".lora-lab-begin"):
        assert not page.locator(gone).is_visible()
    inks = page.evaluate("""['.bd-article p', '.lora-lab-title', '.lora-lab-still td'].map(
        part => getComputedStyle(document.querySelector(part)).color.match(/\\d+/g).map(Number))""")
    assert all(sum(ink) < 3 * 130 for ink in inks), inks
    page.screenshot(path=tmp_path / f"paper-{theme}.png", full_page=True)
