"""What a learner's JupyterLab shows: the lessons and their own files, and no question about news."""

import re
import shutil
from pathlib import PurePath

import nbformat
import pytest
from browser import REPOSITORY, serve
from lora_lab import cache
from playwright.sync_api import expect

OPEN = ("-m", "lora_lab", "open")
NEWS = "Would you like to get notified about official Jupyter news?"


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A copy of the course that no learner has opened, and a home in which nothing is set."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("LORA_LAB_CACHE", str(cache.cache_folder()))
    for folder in ("notebooks", "lora_lab", "tests", "teacher", "benchmarks"):
        left_out = shutil.ignore_patterns("adapters", "runs", "__pycache__", "*.py" if folder == "tests" else "")
        shutil.copytree(REPOSITORY / folder, tmp_path / "course" / folder, ignore=left_out)
    (tmp_path / "home").mkdir()
    return tmp_path / "course", tmp_path / "home"


@pytest.fixture
def page(new_page):
    return new_page


FIRST = sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))[0]
LINK = re.compile(r"\[([\w ]+)\]\(\.\./([^)#]+)\)")


def text(lesson):
    return "\n".join(cell.source for cell in nbformat.read(lesson, 4).cells if cell.cell_type == "markdown")


OTHERS = sorted((REPOSITORY / "notebooks").glob("0[1-9]*.ipynb"))
WITH_LINK, WORDS, TARGET = next((lesson, *link.groups()) for lesson in OTHERS for link in LINK.finditer(text(lesson)))


def title(page, lesson):
    return page.get_by_role("heading", name=text(lesson).splitlines()[0].removeprefix("# "))


def names(page):
    page.locator(".jp-DirListing-item").first.wait_for()
    return page.locator(".jp-DirListing-itemName").all_inner_texts()


def test_lessons_and_no_solutions_are_shown_and_nothing_pops_up_and_a_link_opens_its_file(page, course, tmp_path):
    with serve(*course, OPEN) as (address, token):
        page.goto(f"{address}/?token={token}")
        title(page, FIRST).wait_for()
        shown = names(page)
        assert {"00_first_adapter.ipynb", "01_low_rank_math.ipynb", "index.ipynb", "course"} <= set(shown)
        assert not {"lora_lab", "tests", "teacher", "notebooks", "benchmarks", "solutions.toml"} & set(shown)
        page.screenshot(path=tmp_path / "learner.png")
        expect(page.locator(".jp-OutputArea-output")).to_have_count(0)
        page.wait_for_timeout(3000)  # JupyterLab asks within a second, see below
        assert page.get_by_text(NEWS).count() == 0 and page.locator(".Toastify__toast").count() == 0
        page.locator(".jp-DirListing-itemName", has_text=WITH_LINK.name).dblclick()
        page.get_by_role("link", name=WORDS, exact=True).first.click()
        page.get_by_role("tab", name=PurePath(TARGET).name).wait_for()


@pytest.mark.nightly
def test_who_asks_for_the_whole_course_and_a_lesson_gets_them(page, course):
    with serve(*course, (*OPEN, "--whole", f"--lesson={WITH_LINK.stem}")) as (address, token):
        page.goto(f"{address}/?token={token}")
        title(page, WITH_LINK).wait_for()
        page.locator(".jp-BreadCrumbs-home").click()
        page.locator(".jp-DirListing-itemName", has_text="teacher").wait_for()
        assert {"my-lessons", "notebooks", "lora_lab"} <= set(names(page))


@pytest.mark.nightly
def test_jupyterlab_by_itself_asks_about_news(page, course):
    """Else the test above would see nothing."""
    with serve(*course) as (address, token):
        page.goto(f"{address}/?token={token}")
        page.get_by_text(NEWS).first.wait_for()
        page.locator(".Toastify__toast").first.wait_for()
