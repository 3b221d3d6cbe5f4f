"""The site of the course: pages are the README, the executed notebooks as they are committed, and the other texts.

Built by `make site`, with the repository as source folder, so that a link which works there works here.
"""

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import nbformat
from lora_lab.course import live_figures
from sphinx.transforms import SphinxContentsFilter

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import build_notebooks  # noqa: E402
import site_questions  # noqa: E402

project = "lora-lab"
release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
html_title = "lora-lab"
extensions = ["myst_nb", "sphinx_external_toc", "sphinx.ext.autodoc", "sphinx.ext.githubpages"]
include_patterns = ["README.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md",
                    "notebooks/*.ipynb", "docs/*.md", "benchmarks/*.md"]
exclude_patterns = ["_build", "**/.*"]
external_toc_path = "docs/_toc.yml"
suppress_warnings = ["etoc.glob"]  # docs/ need not have a page
# A heading may link to a file: its line in the table of contents keeps the words only, as of any other link.
SphinxContentsFilter.visit_download_reference = SphinxContentsFilter.ignore_node_but_process_children

default_role = "code"  # `name` in a docstring, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

nb_execution_mode = "off"
# A question has a live form and a text: the text, which needs no kernel, and which `questions.js` makes reply.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_ipywidgets_js = {}
nb_merge_streams = True  # what was printed in parts is one output
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # a link to a section names its heading, as on code hosts

# MathJax comes from a package, as one file with every TeX extension in it: the site loads nothing from elsewhere.
_mathjax = Path(next(iter(find_spec("sphinx-mathjax-offline").submodule_search_locations)), "static/mathjax")
mathjax_path = "tex-svg-full.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would load more
html_static_path = ["static", str(_mathjax / mathjax_path)]

html_theme = "sphinx_book_theme"
html_css_files = ["lessons.css", "questions.css"]
html_js_files = ["figures.js"]
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2,
    "navbar_persistent": [],  # the search stands in the side bar
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is, until switched
html_favicon = "static/icon.svg"
html_copy_source = False
html_use_index = False
html_show_copyright = False


def show_texts(app, page, source):
    """Give the pictures of a notebook their texts, its questions their replies, and fold the cells that it folds."""
    if app.env.doc2path(page).suffix == ".ipynb":
        notebook = site_questions.answering(build_notebooks.with_texts(nbformat.reads(source[0], 4)))
        for cell in notebook.cells:
            if cell.metadata.get("jupyter", {}).get("source_hidden"):
                cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
        source[0] = nbformat.writes(notebook)


def add_questions(app, page, template, context, doctree):
    """Write the script of the questions into the pages that have any: a page opened as a file may not load a module."""
    if "data-card=" in context.get("body", ""):
        script = (Path(__file__).parent / "questions.js").read_text(encoding="utf-8")
        app.add_js_file(None, body=script, type="module")


def write_figures(app):
    """Put the script that moves the lessons' figures beside the theme's: the modules are the notebooks' own."""
    folder = Path(app.outdir, "_static")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.js").write_text(live_figures.page_script(), encoding="utf-8")


def setup(app):
    app.connect("builder-inited", write_figures)
    app.connect("html-page-context", add_questions)
    app.connect("source-read", show_texts)
    app.set_html_assets_policy("always")  # MathJax on every page: one may have its only formula in a question
