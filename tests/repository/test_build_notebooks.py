"""What is written into a committed notebook: each thing once, and nothing that a reader would miss."""

import base64
import copy
import io

import build_notebooks
import nbformat
import pytest
from lora_lab import plots
from lora_lab.course import question_files
from lora_lab.course.cards import Static
from matplotlib.figure import Figure
from PIL import Image, ImageChops

PNG, HTML = "image/png", "text/html"


def picture(alt='a line, "<b>" & 2 dots'):
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([1, 3, 2], color="#12805c")
    return plots.Picture(figure, alt)._repr_mimebundle_()


def card():
    shown = Static(question_files.lessons()[0].questions[0])
    return {HTML: shown._repr_html_(), "text/plain": repr(shown)}


@pytest.fixture
def notebook():
    """Cells with a picture, two cards, a table and a widget, as a run leaves them."""
    view = {build_notebooks.WIDGET: {"model_id": "1"}, "text/plain": ""}
    data = [picture(), card(), card(), {HTML: "<table></table>", "text/plain": "a"}, view]
    cells = [nbformat.v4.new_code_cell(f"show({n})", outputs=[nbformat.v4.new_output("display_data", each)])
             for n, each in enumerate(data)]
    return nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {}})


def image(png):
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


def test_a_picture_is_stored_once_with_its_text(notebook):
    before, sources = notebook.cells[0].outputs[0].data[PNG], [cell.source for cell in notebook.cells]
    written = build_notebooks.compact(notebook)
    nbformat.validate(written)
    shown = written.cells[0].outputs[0]
    assert set(shown.data) == {PNG, "text/plain"}
    assert shown.metadata[PNG]["alt"] == shown.data["text/plain"] == 'a line, "<b>" & 2 dots'
    assert len(shown.data[PNG]) < len(before) / 2
    off = ImageChops.difference(image(before), image(shown.data[PNG])).getextrema()
    assert max(high for _, high in off) < 16, "nobody sees the difference"
    assert [cell.source for cell in written.cells] == sources


def test_the_still_of_a_figure_stays_a_page_with_a_smaller_picture(notebook):
    page, png = '<div class="lora-lab-still"><img alt="a" src="data:image/png;base64,{}"></div>', picture()[PNG]
    notebook.cells[3].outputs[0].data[HTML] = page.format(png)
    written = build_notebooks.compact(notebook).cells[3].outputs[0].data[HTML]
    assert written == page.format(build_notebooks.fewer_colours(png)) and len(written) < len(png) / 2


def test_the_cards_share_one_style_sheet_and_widgets_go(notebook):
    written = build_notebooks.compact(notebook)
    first, second = (written.cells[place].outputs[0].data[HTML] for place in (1, 2))
    assert first == card()[HTML] and first.endswith(second) and "<style>" not in second
    assert written.cells[4].outputs == [] and "widgets" not in written.metadata
    assert written.cells[3].outputs[0].data[HTML] == "<table></table>"


def test_what_is_compact_stays(notebook):
    written = build_notebooks.compact(notebook)
    assert build_notebooks.compact(copy.deepcopy(written)) == written


def test_a_card_before_the_others_takes_the_style_sheet(notebook):
    written = build_notebooks.compact(notebook)
    written.cells[1], written.cells[2] = written.cells[2], written.cells[1]
    again = build_notebooks.compact(written)
    assert "<style>" in again.cells[1].outputs[0].data[HTML] and "<style>" not in again.cells[2].outputs[0].data[HTML]


def test_pages_show_a_picture_with_its_text(notebook):
    written = build_notebooks.compact(notebook)
    png = written.cells[0].outputs[0].data[PNG]
    data = build_notebooks.with_texts(written).cells[0].outputs[0].data
    assert PNG not in data and f'src="data:image/png;base64,{png}"' in data[HTML]
    assert 'alt="a line, &quot;&lt;b&gt;&quot; &amp; 2 dots"' in data[HTML]


def test_a_transparent_picture_stays_transparent():
    bytes_ = io.BytesIO()
    Image.new("RGBA", (20, 20), (200, 30, 30, 0)).save(bytes_, "PNG")
    small = build_notebooks.fewer_colours(base64.b64encode(bytes_.getvalue()).decode())
    assert Image.open(io.BytesIO(base64.b64decode(small))).convert("RGBA").getpixel((5, 5))[3] == 0
