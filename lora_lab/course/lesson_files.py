"""The lessons as files: what of them travels in a wheel, and where it lies there.

setup.py packs them with this file, in an environment that has nothing but Python's standard library.
"""

import json
import re
import shutil
from pathlib import Path

PACKED = Path(__file__).with_name("lessons")  # in a wheel alone: a folder as the course's, with notebooks/ in it
LINK = re.compile(r"\]\(\.\./([^)#\s]+)")  # of a cell in Markdown, out of the lessons' folder


def bare(content: dict) -> dict:
    """Return a notebook without the outputs of its cells, which would answer the questions above them."""
    cells = [cell | {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell
             for cell in content["cells"]]
    return content | {"cells": cells}


def linked(content: dict, root: Path) -> list[str]:
    """Return the files in the course's folder `root` that a notebook links to, from `root` on."""
    texts = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "markdown"]
    names = sorted({name for text in texts for name in LINK.findall(text)})
    return [name for name in names
            if (root / name).is_file() and (root / name).resolve().is_relative_to(root.resolve())]


def written(content: dict) -> bytes:
    """Return a notebook as the bytes of its file."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def pack(root: Path, folder: Path) -> list[Path]:
    """Write the lessons of the course in `root` to `folder` without outputs, and what they link to; returns them."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
    made = []
    for source in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        content = json.loads(source.read_text(encoding="utf-8"))
        files = {f"notebooks/{source.name}": written(bare(content))}
        files |= {name: (root / name).read_bytes() for name in linked(content, root)}
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            made.append(folder / name)
    return made
