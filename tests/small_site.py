"""A small site with the course's own configuration: the front page, and a page with a question of each kind."""

import base64
import io
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
ADDRESS = "https://some-one.github.io/a.course/"
BUILD = f"""\
import sys
from pathlib import Path
from lora_lab.course import question_files
from sphinx.cmd.build import main
question_files.FOLDER = Path({str(REPOSITORY / "tests/questions")!r})
sys.exit(main(["-E", "-W", "--quiet", "-b", "html", "-c", {str(REPOSITORY / "docs")!r}, *sys.argv[1:]]))"""
CONTENTS = """\
root: index
subtrees:
  - caption: Lessons
    entries: [{file: notebooks/page}, {file: README}, {file: docs/tools}]
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of the site, as it is published at ADDRESS."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("notebooks", "docs"):
        (folder / name).mkdir()
    nbformat.write(questions(), folder / "notebooks/page.ipynb")
    shutil.copy(REPOSITORY / "index.md", folder)
    shutil.copy(REPOSITORY / "docs/lesson-0.webp", folder / "docs")
    (folder / "README.md").write_text("# The README\n\n![A lesson](docs/lesson-0.webp)\n")
    (folder / "docs/tools.md").write_text("# The tools\n\nA word to look for: kingfisher, and $1/k$.\n")
    (folder / "docs/_toc.yml").write_text(CONTENTS)
    command = [sys.executable, "-c", BUILD, "-D", f"html_baseurl={ADDRESS}", folder, folder / "built"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "built"


def questions():
    """A notebook with a question of each kind, as its cells show them."""
    from lora_lab.course import question_files, quizzes
    from test_browser_quiz import KINDS

    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(question_files, "FOLDER", REPOSITORY / "tests/questions")
        patch.setattr(quizzes, "display", shown.append)
        question_files.lessons.cache_clear()
        for kind in KINDS[:-1]:
            quizzes.quiz(f"every/{kind}")
        quizzes.quiz("every/code", len)
        quizzes.compare("every/predict", 70)
        shown.append(quizzes.progress())
    question_files.lessons.cache_clear()
    outputs = [nbformat.v4.new_output("display_data", {"text/html": one._repr_html_(), "text/plain": repr(one)})
               for one in shown]
    drawing = io.BytesIO()
    Image.new("RGB", (300, 200), "#1f77c4").save(drawing, "png")
    outputs[-2:-2] = [nbformat.v4.new_output(
        "display_data", {"image/png": base64.b64encode(drawing.getvalue()).decode(), "text/plain": "A blue drawing."},
        metadata={"image/png": {"alt": "A blue drawing."}})]
    code = [nbformat.v4.new_code_cell("quiz()", execution_count=1, outputs=[output]) for output in outputs]
    words = [nbformat.v4.new_markdown_cell(text) for text in ("# Questions", "Looking back.")]
    return nbformat.v4.new_notebook(
        cells=[words[0], *code[:-1], words[1], code[-1]],
        metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}})
