"""The site of the course: a front page, the executed notebooks as they are committed, the README and the other texts.

Built by `make site`, with the repository as source folder, so that a link which works there works here.
"""

import sys
import tomllib
from pathlib import Path

import nbformat
from lora_lab.course import live_figures
from sphinx.transforms import SphinxContentsFilter

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import build_notebooks  # noqa: E402
import claims  # noqa: E402
import publish  # noqa: E402
import site_front  # noqa: E402
import site_math  # noqa: E402
import site_pictures  # noqa: E402
import site_questions  # noqa: E402

project = "lora-lab"
release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
html_title = "lora-lab"
extensions = ["myst_nb", "sphinx_external_toc", "sphinx.ext.autodoc", "sphinx.ext.githubpages"]
include_patterns = ["index.md", "README.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md",
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

html_math_renderer = "mathml"
html_static_path = ["static"]
templates_path = ["templates"]

_course = publish.kept()
_here = publish.on_github(_course)
html_baseurl = publish.pages(_here) if _here else ""

html_theme = "sphinx_book_theme"
html_css_files = ["site.css"]  # what is in docs/styles, as one file
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2,
    "navbar_persistent": [],  # the search stands in the side bar
    "primary_sidebar_end": [],  # advertisements of a host
    "footer_content_items": ["extra-footer.html"],
    "extra_footer": f"lora-lab {release}: code Apache-2.0, texts CC-BY-4.0. This page loads nothing from elsewhere.",
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is, until switched
html_favicon = "static/icon.svg"
html_copy_source = False
html_use_index = False
html_show_copyright = False


def show_texts(app, page, source):
    """Give the pictures of a notebook their texts, its questions their replies, its cells a place each that a link can
    name, and fold the cells that it folds and the outputs that settle a prediction."""
    if app.env.doc2path(page).suffix == ".ipynb":
        notebook = site_questions.answering(build_notebooks.with_texts(nbformat.reads(source[0], 4)))
        site_questions.folded(notebook)
        site_pictures.as_files(notebook, Path(app.outdir), "../" * page.count("/"))
        placed = []
        for cell in notebook.cells:
            if cell.metadata.get("jupyter", {}).get("source_hidden"):
                cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
            if cell.cell_type == "code":
                place = f'<div class="cell-place" id="cell-{cell.id}"></div>'
                placed.append(nbformat.v4.new_markdown_cell(place, id=f"before-{cell.id}"))
            placed.append(cell)
        notebook.cells = placed
        source[0] = nbformat.writes(notebook)


def show_claims(app, page, source):
    """Write the claims board into its page, with the figures of the executed lessons."""
    if page == "docs/claims":
        source[0] = source[0].replace(claims.HERE, claims.page())


def fill_front_page(app, page, source):
    """Fill in what the front page takes from the README and from a lesson."""
    if page == "index":
        source[0] = site_front.fill(source[0], _course)


def describe(app, page, template, context, doctree):
    """Describe a lesson by what the README says that one can do after it, for those who search and for links to it."""
    if app.config.html_baseurl:
        context["picture_url"] = f"{app.config.html_baseurl}_images/lesson-0.webp"  # the README's
    for lesson in site_front.lessons():
        if page == f"notebooks/{lesson['name']}":
            context["page_description"] = f"A lesson on LoRA. After it you will be able to {lesson['able']}."


def write_downloads(app, fault):
    """Put the notebooks beside their pages, as one downloads them, and where the site is published its map."""
    if fault is None and "index" in app.env.found_docs:
        for lesson in site_front.lessons():
            file = Path("notebooks", f"{lesson['name']}.ipynb")
            nbformat.write(site_front.clean(nbformat.read(site_front.ROOT / file, 4)), app.outdir / file)
    if fault is None and app.config.html_baseurl:
        pages = "".join(f"<url><loc>{app.config.html_baseurl}{app.builder.get_target_uri(page)}</loc></url>\n"
                        for page in sorted(app.env.found_docs))
        Path(app.outdir, "sitemap.xml").write_text(
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{pages}</urlset>\n', encoding="utf-8")


def name_folds(app, page, template, context, doctree):
    """Let a fold be called what is written on it, also where it is read out."""
    context["body"] = context.get("body", "").replace('<summary aria-label="Toggle hidden content">', "<summary>")


def name_neighbours(app, page, template, context, doctree):
    """Let the README be called as in the side bar: its own title is that of the front page."""
    for near in (context.get("prev"), context.get("next")):
        if near and near["link"] == app.builder.get_relative_uri(page, "README"):
            near["title"] = "Set-up and overview"


def add_scripts(app, page, template, context, doctree):
    """Give the scripts to the pages that need them; questions' own inside: a page opened as a file loads no module."""
    for script in context["script_files"]:  # Sphinx's and the theme's, the same objects for each page
        script.attributes.pop("defer", None)
        if page != "search" and script.filename and not script.filename.endswith("documentation_options.js"):
            script.attributes["defer"] = "defer"  # the page stands without them
    if "data-lora-lab=" in context.get("body", ""):
        app.add_js_file("figures.js", loading_method="defer")
    if "data-card=" in context.get("body", ""):
        script = (Path(__file__).parent / "questions.js").read_text(encoding="utf-8")
        app.add_js_file(None, body=script, type="module")


def write_assets(app):
    """Put the script that moves the lessons' figures beside the theme's, and the style sheets in one: few requests."""
    folder = Path(app.outdir, "_static")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.js").write_text(live_figures.page_script(), encoding="utf-8")
    sheets = [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("styles/*.css"))]
    (folder / "site.css").write_text("\n".join(sheets), encoding="utf-8")


def setup(app):
    app.connect("builder-inited", write_assets)
    app.connect("html-page-context", name_folds)
    app.connect("html-page-context", name_neighbours)
    app.connect("html-page-context", add_scripts)
    app.connect("html-page-context", describe, priority=600)  # after the theme
    app.connect("source-read", show_texts)
    app.connect("source-read", show_claims)
    app.connect("source-read", fill_front_page)
    app.connect("build-finished", write_downloads)
    app.add_html_math_renderer("mathml", (site_math.draw, None), (site_math.draw, None))
