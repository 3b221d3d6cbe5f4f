"""Make README's moving picture of Lesson 0 from its executed notebook: `python tools/readme_picture.py`.

Nothing is trained: it scrolls through outputs that are saved. The picture holds a digest of what it shows, and its text
in the README is read from the same outputs; where both are those of the notebook, nothing is done.
"""

import hashlib
import io
import math
import re
import sys
import textwrap
from pathlib import Path

import get_browser
import nbformat
import publish
from lora_lab import LabError
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
LESSON = ROOT / "notebooks/00_first_adapter.ipynb"
PICTURE = ROOT / "docs/lesson-0.webp"  # half of what a GIF takes: it is the first that loads of that page
# The cells by their ids, the first to the last that is shown, where it rests, and for how many milliseconds.
ASKED, TRAINED, ASKED_AGAIN, YOURS = "5d097720", "5164dceb", "ef29485d", "32847d5f"
RESTS = {ASKED: 2600, TRAINED: 2600, ASKED_AGAIN: 3000, YOURS: 2600}
WIDTH, HEIGHT, COLOURS = 880, 560, 16
STEPS, STEP = 2, 120  # pictures between two rests, and the milliseconds of each
AGAIN = 2  # then it rests at its end: what moves on and on disturbs who reads beside it
STYLE = """body {margin: 0 14px 14px 0; --jp-code-font-size: 11px; --jp-content-font-size1: 13px;
--jp-cell-prompt-width: 52px} .jp-Notebook {padding: 0} table {font-size: 12px} th, td {padding: 4px 6px !important}"""
SECONDS = re.compile(r"\b\d+(\.\d+)? s\b")


def shown(notebook) -> list:
    """Return the cells that the picture shows. Raises LabError for a notebook that has them not."""
    places = {cell.id: place for place, cell in enumerate(notebook.cells)}
    if gone := RESTS.keys() - places.keys():
        raise LabError(f"{LESSON.name} has no cell {', '.join(sorted(gone))}. tools/readme_picture.py names the cells "
                       "that README's picture shows: give it their new ids.")
    return notebook.cells[places[ASKED]:places[YOURS] + 1]


def digest(notebook) -> str:
    """Return a digest of what is seen: sources and outputs, but for how many seconds it took, which differ each run."""
    seen = [(cell.source, [output.get("text") or sorted(output.data.items()) for output in cell.get("outputs", [])])
            for cell in shown(notebook)]
    return hashlib.sha256(SECONDS.sub("# s", repr(seen)).encode()).hexdigest()


def made_from(picture: Path = PICTURE) -> str:
    """Return the digest that a picture holds; empty where there is none."""
    if not picture.exists():
        return ""
    with Image.open(picture) as frames:
        return frames.info.get("xmp", b"").decode()


def text(notebook) -> str:
    """Return in words what the picture shows, read from the outputs."""
    said = {cell.id: "".join(output.get("text") or output.data["text/plain"] + "\n" for output in cell.outputs)
            for cell in shown(notebook) if cell.cell_type == "code"}
    before, of, after = re.search(r"(\d+) of (\d+) right before, (\d+) after", said[ASKED_AGAIN]).groups()
    curve = re.search(r"(?m)^Training loss .*", said[TRAINED])[0]
    return (f"Lesson 0, scrolled through as it was executed. Before training, the model answers {before} of {of} "
            f"commands right. {curve} After training, it answers {after} of {of} right, and a command in other words "
            f"with {said[YOURS].strip()}")


def readme(notebook) -> str:
    """Return the picture with its text, in Markdown."""
    words = re.sub(r"([\\\[\]<>*_`])", r"\\\1", text(notebook))
    lines = textwrap.fill(f"![{words}]", 118, break_long_words=False, break_on_hyphens=False)
    return f"{lines}({PICTURE.relative_to(ROOT).as_posix()})\n"


def draw(notebook, browser, picture: Path) -> None:
    """Write the moving picture of `notebook`, as `browser` shows it, to the file `picture`."""
    from nbconvert import HTMLExporter

    part = nbformat.from_dict({**notebook, "cells": shown(notebook)})
    written, _ = HTMLExporter(template_name="lab").from_notebook_node(part)
    with browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, offline=True) as context:
        page = context.new_page()
        page.set_content(written, wait_until="domcontentloaded")
        page.add_style_tag(content=STYLE)
        tops = page.evaluate("ids => ids.map(id => Math.round(scrollY + document.getElementById('cell-id=' + id)"
                             ".getBoundingClientRect().top))", list(RESTS))
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    frames, milliseconds = [], []
    for top, last, rest in zip(tops, [tops[0], *tops], RESTS.values()):
        for step in range(1, STEPS + 1) if frames else [STEPS]:
            eased = (1 - math.cos(math.pi * step / STEPS)) / 2
            frames.append(_frame(whole, last + eased * (top - last)))
            milliseconds.append(rest if step == STEPS else STEP)
    palette = whole.quantize(COLOURS, Image.Quantize.FASTOCTREE)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(picture, "WEBP", save_all=True, append_images=others, duration=milliseconds, loop=AGAIN, lossless=True,
               quality=100, method=6, xmp=digest(notebook).encode())


def _frame(whole: Image.Image, top: float) -> Image.Image:
    """Return what the window shows of the page `whole`, at most to its end, in a thin frame."""
    top = round(min(top, whole.height - HEIGHT))
    frame = whole.crop((0, top, WIDTH, top + HEIGHT))
    ImageDraw.Draw(frame).rectangle((0, 0, WIDTH - 1, HEIGHT - 1), outline="#8c959f")  # seen on light and dark pages
    return frame


def write() -> bool:
    """Bring picture and README in step with the notebook; returns whether the picture had to be drawn."""
    notebook = nbformat.read(LESSON, 4)
    publish.replace(ROOT / "README.md", r"(?s)(<!-- picture -->\n).*?(?=<!-- /picture -->)",
                    lambda found: found[1] + readme(notebook))
    if made_from() == digest(notebook):
        return False
    from playwright.sync_api import sync_playwright

    if (path := get_browser.find()) is None:
        raise LabError("No Chromium was found to draw README's picture with: run `python tools/get_browser.py`, or "
                       "name one in the variable CHROMIUM; then `make picture`.")
    with sync_playwright() as playwright:
        draw(notebook, playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]), PICTURE)
    return True


if __name__ == "__main__":
    try:
        print(f"{PICTURE.relative_to(ROOT)}: {'drawn' if write() else 'is of the notebook as it stands'}, "
              f"{PICTURE.stat().st_size / 1000:.0f} kB")
    except LabError as error:
        sys.exit(str(error))
