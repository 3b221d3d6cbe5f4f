"""Write lessons from their text twins, run them: `python tools/build_notebooks.py [01_low_rank_math ...] [--sources]`.

With --sources nothing runs, and the outputs stay as they are. Cell ids stay, widget views go: a saved notebook cannot
show them, and the pictures beside them stay. What is written is light: of each picture one form, of the quiz's style
sheet one copy.
"""

import base64
import html
import io
import os
import re
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
PNG, HTML = "image/png", "text/html"
INSIDE = re.compile(r"(?<=data:image/png;base64,)[\w+/=]+")  # a picture in a page
CARD_STYLE = re.compile(r"<style>[^<]*\.lora-lab-quiz[^<]*</style>")


def build(twin: Path, run: bool = True) -> None:
    file = twin.with_suffix(".ipynb")
    notebook = jupytext.read(twin)
    if file.exists():
        notebook = combine_inputs_with_outputs(notebook, nbformat.read(file, 4), fmt="py:percent")
    if run:
        NotebookClient(notebook, timeout=600, kernel_name="python3", store_widget_state=False,
                       resources={"metadata": {"path": FOLDER}}).execute()
        taken = seconds(notebook)
        print(f"  {sum(taken) / 60:.1f} minutes, the longest cell {max(taken):.0f} s", flush=True)
    temporary = file.with_suffix(".tmp")
    nbformat.write(compact(notebook), temporary)
    os.replace(temporary, file)


def compact(notebook):
    """Return `notebook` with outputs that are stored once: no widgets, each picture as PNG, one style sheet of cards.

    The text of a picture stays as its text/plain and in its metadata, where nbconvert and the site look for it.
    """
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    notebook.metadata.pop("widgets", None)
    for output in with_data(notebook, PNG):
        if "<img" in (page := output.data.get(HTML, "")):
            output.metadata = {**output.metadata, PNG: {"alt": html.unescape(re.search(r'alt="([^"]*)"', page)[1])}}
            del output.data[HTML]
        output.data[PNG] = fewer_colours(output.data[PNG])
    for output in with_data(notebook, HTML):  # the still of a figure that moves
        if "lora-lab-still" in output.data[HTML]:
            output.data[HTML] = INSIDE.sub(lambda found: fewer_colours(found[0]), output.data[HTML])
    cards = [output for output in with_data(notebook, HTML) if "lora-lab-quiz" in output.data[HTML]]
    styles = [style for card in cards for style in CARD_STYLE.findall(card.data[HTML])]
    for place, card in enumerate(cards):
        card.data[HTML] = (styles[-1] if styles and not place else "") + CARD_STYLE.sub("", card.data[HTML])
    return notebook


def with_data(notebook, kind: str) -> list:
    """Return the outputs of `notebook` that have data of a MIME type."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if kind in output.get("data", {})]


def words(output) -> str:
    """Return an output as text: what was printed, a picture's text, a table's lines, or a page without its tags."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    plain = data.get("text/plain", "")
    if plain.startswith("<IPython"):  # an HTML page without a text of its own
        plain = html.unescape(re.sub(r"(?s)<style.*?</style>|<[^>]+>", " ", data.get(HTML, ""))).strip()
    return plain


def fewer_colours(png: str) -> str:
    """Return a PNG with a palette of 256 colours, as base64: a third of the bytes. One that has a palette stays."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":
        return png
    opaque = picture.mode == "RGB" or picture.getchannel("A").getextrema()[0] == 255
    if opaque:
        picture = picture.convert("RGB")
    method = Image.Quantize.MEDIANCUT if opaque else Image.Quantize.FASTOCTREE  # the one that knows transparency
    small = io.BytesIO()
    picture.quantize(256, method, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def with_texts(notebook):
    """Return `notebook` with each picture as an <img> that has its text, for pages that show a bare PNG without."""
    for output in with_data(notebook, PNG):
        if alt := output.get("metadata", {}).get(PNG, {}).get("alt"):
            source = "".join(output["data"].pop(PNG)).replace("\n", "")
            output["data"][HTML] = (f'<img class="lora-lab-picture" alt="{html.escape(alt)}" '
                                    f'src="data:{PNG};base64,{source}">')
    return notebook


def seconds(notebook) -> list[float]:
    """Return the seconds that each executed code cell took, from the times that were saved with it."""
    stamps = [cell.metadata.execution for cell in notebook.cells if "execution" in cell.metadata]
    ran = [[datetime.fromisoformat(stamp[key]) for key in ("iopub.execute_input", "shell.execute_reply")]
           for stamp in stamps]
    return [(end - start).total_seconds() for start, end in ran]


def main() -> None:
    os.environ["LORA_LAB_PROGRESS"] = str(Path(tempfile.mkdtemp()) / "progress.json")  # not the author's own
    run, names = "--sources" not in sys.argv, [name for name in sys.argv[1:] if name != "--sources"]
    for twin in sorted(FOLDER.glob("*.py")):
        if not names or twin.stem in names:
            print(f"{'running' if run else 'writing'} {twin.stem} ...", flush=True)
            build(twin, run)


if __name__ == "__main__":
    main()
