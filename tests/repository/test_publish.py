"""One address of the repository: notebooks, README and set-up cell agree with it, and nothing points nowhere."""

import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jupytext
import nbformat
import publish
import pytest
from lora_lab import LabError

ROOT = Path(__file__).parents[2]
KINDS = ("*.py", "*.ipynb")


def files(root):
    found = [root / "README.md", root / "pyproject.toml", root / "docs/teaching.md"]
    return {f.relative_to(root): f.read_bytes() for f in found + [f for kind in KINDS
                                                                  for f in (root / "notebooks").glob(kind)]}


@pytest.fixture
def course(tmp_path):
    for name in ("notebooks", "docs"):
        (tmp_path / name).mkdir()
    for name in files(ROOT):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_what_is_committed_is_what_the_tool_writes(course):
    publish.write(publish.kept(), course)
    assert files(course) == files(ROOT), "run make publish"


def test_publishing_reaches_every_place_and_can_be_taken_back(course):
    before = files(course)
    publish.write("some-one/a.course", course)
    for file in sorted((course / "notebooks").glob("0*.ipynb")):
        for notebook in (nbformat.read(file, 4), jupytext.read(file.with_suffix(".py"))):
            code = next(cell for cell in notebook.cells if cell.cell_type == "code")
            assert '"https://github.com/some-one/a.course"' in code.source
            link = f"colab.research.google.com/github/some-one/a.course/blob/main/notebooks/{file.name}"
            assert link in notebook.cells[0].source and link in notebook.cells[-1].source
    readme = (course / "README.md").read_text()
    assert "mybinder.org/v2/gh/some-one/a.course/HEAD" in readme and "00_first_adapter.ipynb) ·" in readme
    again = files(course)
    publish.write(publish.kept(course), course)
    assert files(course) == again
    publish.write("", course)
    publish.write(publish.kept(ROOT), course)
    assert files(course) == before


@pytest.mark.parametrize("address", ["https://github.com/some-one/a.course", "https://git.example.org/~me/course.git"])
def test_the_teaching_page_has_the_link_for_nbgitpuller(course, address):
    publish.write(address, course)
    link, = re.findall(r"(?m)^    (https://YOUR-HUB/\S+)$", (course / "docs/teaching.md").read_text())
    assert link == publish.git_puller(address, "https://YOUR-HUB")
    at = urlsplit(link)
    asked = {key: value for key, (value,) in parse_qs(at.query, strict_parsing=True).items()}
    assert at.path == "/hub/user-redirect/git-pull" and asked.keys() == {"repo", "branch", "urlpath"}
    assert asked["repo"] == address and not at.fragment
    folder, _, lesson = asked["urlpath"].removeprefix("lab/tree/").partition("/")
    assert folder == address.rsplit("/", 1)[1] and (course / lesson).is_file()


def test_without_the_teaching_page_as_in_the_learners_zip_the_rest_is_written(course):
    (course / "docs/teaching.md").unlink()
    publish.write("some-one/course", course)
    assert publish.kept(course) == "https://github.com/some-one/course"
    assert "mybinder.org" in (course / "README.md").read_text() and not (course / "docs/teaching.md").exists()


def test_a_new_lesson_gets_its_set_up_folded(course):
    file = course / "notebooks/07_past_one_gpu.ipynb"
    for path in (file, file.with_suffix(".py")):
        notebook = jupytext.read(path)
        notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith("# Set-up")]
        jupytext.write(notebook, path, fmt="ipynb" if path == file else "py:percent")
    publish.write("", course)
    for notebook in (nbformat.read(file, 4), jupytext.read(file.with_suffix(".py"))):
        code = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert code.source.startswith("# Set-up") and code.metadata.jupyter == {"source_hidden": True}


def test_another_host_has_no_links_to_colab(course):
    publish.write("https://git.example.org/team/course.git", course)
    text = b"".join(files(course).values())
    assert b'"https://git.example.org/team/course.git"' in text
    assert b"colab.research" not in text and b"mybinder" not in text


def test_unpublished_nothing_points_at_a_repository(course):
    publish.write("", course)
    assert not re.search(rb"colab\.research\.google|mybinder\.org|github\.com/(?!huggingface)", b"".join(
        text for name, text in files(course).items() if name.suffix != ".toml"))


@pytest.mark.parametrize("wrong", [
    "name", "a/b/c", "a/b c", 'a/b"', "a/'b", "http://plain.org/a/b", "git@github.com:a/b.git", "a/b;rm", "/a", "a/",
    "a/..", "a/.", "a/.git", "-a/b", "a--b/c", "https://github.com/a", "https://github.com/a/b/c", "https://x", "https://x/",
])
def test_addresses_that_are_none(wrong, course):
    before = files(course)
    with pytest.raises(LabError, match="owner/name"):
        publish.write(wrong, course)
    assert files(course) == before


@pytest.mark.parametrize("given", [
    "https://github.com/some-one/course.git", "https://github.com/some-one/course/", "some-one/course.git",
])
def test_a_github_address_may_be_pasted(given, course):
    publish.write(given, course)
    assert publish.kept(course) == "https://github.com/some-one/course"


@pytest.mark.parametrize("repository", ["", "some-one/course"])
def test_lessons_lead_to_their_neighbours(course, repository):
    publish.write(repository, course)
    lessons = sorted((course / "notebooks").glob("0*.ipynb"))
    for place, lesson in enumerate(lessons):
        text = nbformat.read(lesson, 4).cells[0].source
        neighbours = [other.name for other in lessons[max(place - 1, 0):place] + lessons[place + 1:place + 2]]
        line = next(part for part in text.split("\n\n") if part.startswith(publish.LINKS))
        assert re.findall(r"\((?!https:)(\S+\.ipynb)\)", line) == neighbours


def test_notebooks_ask_for_a_gpu():
    for lesson in (ROOT / "notebooks").glob("0*.ipynb"):
        metadata = nbformat.read(lesson, 4).metadata
        assert metadata.accelerator == "GPU" and metadata.colab.gpuType == "T4"
