"""Pictures of executed notebooks as files of the site: a page with them inside stands only when all have come."""

import base64
import hashlib
import re
from pathlib import Path

from build_notebooks import HTML, with_data
from PIL import Image

INSIDE = re.compile(r'src="data:image/png;base64,([^"]+)"')
PLACE = "_static/pictures"


def as_files(notebook, site: Path, up: str = "../"):
    """Return `notebook` with the pictures in its HTML as files below `site`, to which `up` leads; loaded when near."""
    for output in with_data(notebook, HTML):
        output.data[HTML] = INSIDE.sub(lambda found: _written(found[1], site, up), output.data[HTML])
    return notebook


def _written(png: str, site: Path, up: str) -> str:
    """Write a picture under the name of its content, and return the attributes that show it in its own size."""
    content = base64.b64decode(png)
    file = site / PLACE / f"{hashlib.sha256(content).hexdigest()[:16]}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    with Image.open(file) as picture:
        width, height = picture.size
    return f'src="{up}{PLACE}/{file.name}" width="{width}" height="{height}" loading="lazy"'
