"""The site's table of contents has every page, and the link checker finds what it is for."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from unittest import mock

import nbformat
import pytest
import torch
import yaml
from check_links import check
from lora_lab.course import explorers, live_figures

REPOSITORY = Path(__file__).parents[2]
CONTENTS = yaml.safe_load((REPOSITORY / "docs/_toc.yml").read_text())
ENTRIES = [entry.get("glob") or entry["file"] for part in CONTENTS["subtrees"] for entry in part["entries"]]


def test_contents_have_every_notebook_and_no_twin():
    notebooks = [path.relative_to(REPOSITORY).with_suffix("") for path in REPOSITORY.glob("notebooks/*.ipynb")]
    assert notebooks and all(any(fnmatch(str(path), entry) for entry in ENTRIES) for path in notebooks)
    assert not any(entry.endswith(".py") for entry in ENTRIES)


def test_contents_name_only_pages_that_exist():
    for entry in [CONTENTS["root"], *(entry for entry in ENTRIES if "*" not in entry)]:
        assert (REPOSITORY / f"{entry}.md").is_file(), entry


def test_pictures_of_the_lessons_have_their_texts_on_the_site(tmp_path):
    """The site's own configuration, on the page with the fewest outputs."""
    pytest.importorskip("myst_nb")
    (tmp_path / "notebooks").mkdir()
    notebook, shown = nbformat.read(REPOSITORY / "notebooks/07_past_one_gpu.ipynb", 4), []
    with mock.patch.object(live_figures, "display", shown.append), mock.patch.object(live_figures, "show"):
        explorers.ranks({"a </script> matrix": torch.eye(4)})
    figure = nbformat.v4.new_output("display_data", {"text/html": shown[0].data, "text/plain": shown[0].text})
    notebook.cells[-1:] = [nbformat.v4.new_code_cell("show()", outputs=[figure]), notebook.cells[-1]]
    nbformat.write(notebook, tmp_path / "notebooks/07_past_one_gpu.ipynb")
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    (tmp_path / "docs/_toc.yml").write_text("root: notebooks/07_past_one_gpu\n")
    command = [sys.executable, "-m", "sphinx", "-E", "--quiet", "-b", "html", "-c", REPOSITORY / "docs", tmp_path,
               tmp_path / "built", tmp_path / "notebooks/07_past_one_gpu.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "built/notebooks/07_past_one_gpu.html").read_text()
    pictures = re.findall(r'<img[^>]*src="data:image/png[^>]*>', page)
    assert len(pictures) >= 3 and all(re.search(r'alt="\w[^"]{20,}"', picture) for picture in pictures)
    assert shown[0].data in page, "a figure's still and its values, as they were saved"
    assert re.search(r'<script src="\.\./_static/figures\.js', page)
    assert (tmp_path / "built/_static/figures.js").read_text() == live_figures.page_script()
    assert page.count(".lora-lab-quiz {border") == 1 and page.count('class="lora-lab-quiz') > 5


@pytest.fixture
def site(tmp_path):
    """Writes pages and other files into a folder; the front page links to a section and a file of another."""
    def write(**files):
        files = {"index": '<a href="more/next%20one.html#here">on</a> <img src="p.png">',
                 "more/next one": '<h2 id="here">Here</h2><a href="../index.html">back</a> <a href="#here">up</a>',
                 "p.png": "", **files}
        for name, text in files.items():
            path = tmp_path / (name if "." in name else f"{name}.html")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_sound_site_has_no_fault(site):
    report = check(site())
    assert report.checked == 4 and not report.faults


@pytest.mark.parametrize("page, fault", [
    ('<a href="gone.html">x</a>', "no such file"),
    ('<a href="more/">x</a>', "no such file"),
    ('<img alt="" src="gone.png">', "no such file"),
    ('<img alt="" srcset="p.png 1x, gone.png 2x">', "no such file"),
    ('<meta http-equiv="refresh" content="0; url=gone.html">', "no such file"),
    ('<a href="more/next%20one.html#there">x</a>', "no such place"),
    ('<a href="#there">x</a>', "no such place"),
    ('<a href="/p.png">x</a>', "root of the host"),
    ('<a href="../other/p.png">x</a>', "leaves the site"),
    ('<script src="https://cdn.example/require.js"></script>', "loaded from elsewhere"),
    ('<script src="//cdn.example/require.js"></script>', "loaded from elsewhere"),
    ('<link rel="stylesheet" href="https://cdn.example/a.css">', "loaded from elsewhere"),
    ('<style>p {background: url("https://cdn.example/a.png")}</style>', "loaded from elsewhere"),
    ('<style>@import "https://cdn.example/a.css";</style>', "loaded from elsewhere"),
    ('<p style="background: url(https://cdn.example/a.png)">x</p>', "loaded from elsewhere"),
])
def test_fault_is_named_with_its_page(site, page, fault):
    (line,) = check(site(extra=page)).faults
    assert line.startswith("extra.html: ") and fault in line


def test_style_sheets_are_checked_too(site):
    folder = site(**{"more/a.css": "a {background: url(../p.png)} b {background: url('font.woff')}"})
    (line,) = check(folder).faults
    assert "more/a.css" in line and "font.woff" in line


def test_links_to_other_sites_and_data_are_no_fault(site):
    report = check(site(extra='<a href="https://example.org/a#b">x</a> <img src="data:image/png;base64,AA==">'
                              '<link rel="canonical" href="https://example.org/">'))
    assert not report.faults and report.elsewhere == {"https://example.org/a#b", "https://example.org/"}


def test_templates_of_the_theme_are_no_pages(site):
    assert not check(site(**{"_static/macros": '<a href="{{ pathto }}">x</a>'})).faults


@pytest.mark.parametrize("break_it, code", [({}, 0), ({"extra": '<a href="gone.html">x</a>'}, 1)])
def test_a_fault_fails_the_build(site, break_it, code):
    command = [sys.executable, REPOSITORY / "tools/check_links.py", site(**break_it)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and ("gone.html" in done.stderr) == bool(code)


def test_a_site_that_was_not_built_is_a_fault(tmp_path):
    command = [sys.executable, REPOSITORY / "tools/check_links.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "build the site" in done.stderr
