"""Figures that move without a kernel: one module of JavaScript each, in `live`, for a notebook and for the site.

In a notebook a figure is an anywidget. The same cell shows the figure's still, with the measured values beside it: that
stays in the saved notebook, and the site's script (`page_script`) shows the same module in its place. What a figure
shows is drawn by its module; the values are plain JSON, and every point of them was measured or counted.
"""

import functools
import html
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import traitlets
from IPython.display import HTML, display

from ..display import Page
from ..plots.figures import Picture
from .controls import show

try:
    import anywidget
except ImportError:
    anywidget = None  # type: ignore[assignment]

FOLDER = Path(__file__).with_name("live")
_EXPORT = "export default { render };"


def names() -> list[str]:
    """Return the names of all figures."""
    return sorted(file.stem for file in FOLDER.glob("*.js") if file.stem not in ("shared", "page"))


def module(name: str) -> str:
    """Return the text of a figure's ES module, whose default export has `render({ model, el })`."""
    return _read("shared") + _read(name)


def page_script() -> str:
    """Return the site's script: shows every figure of a page. Classic, for a page that is opened as a file."""
    figures = ",\n".join(f"{json.dumps(name)}: {_closed(_read(name))}" for name in names())
    return (f"document.addEventListener('DOMContentLoaded', () => {{\n{_read('shared')}{_read('page')}"
            f"const figures = {{\n{figures}\n}};\nfor (const figure of document.querySelectorAll('[data-lora-lab]'))\n"
            "  if (figures[figure.dataset.loraLab]) mount(figure, figures[figure.dataset.loraLab]);\n});\n")


def read_json(name: str) -> dict[str, Any]:
    """Return the values in a file beside the modules."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def display_figure(name: str, values: dict[str, Any], still: Page | Picture) -> None:
    """Show the figure `name` of `values` (JSON alone), above which its still stays hidden where it can move."""
    key = uuid.uuid4().hex[:8]
    picture = still.data if isinstance(still, Page) else still._repr_mimebundle_()["text/html"]
    text = json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    display(Page(f'<figure class="lora-lab-figure" data-lora-lab="{html.escape(name)}" data-key="{key}" '
                 f'style="margin:0"><div class="lora-lab-still">{picture}</div>'
                 f'<script type="application/json">{text}</script></figure>',
                 still.text if isinstance(still, Page) else still.alt))
    if anywidget is None or "google.colab" in sys.modules:  # its manager of others' widgets comes from elsewhere
        display(HTML(f'<script type="module">{_read("page")}const render = {_closed(module(name))};\n'
                     f"mount(document.querySelector('[data-key=\"{key}\"]'), render);</script>"))
    else:
        show(_widget(name)(values=values, key=key))


@functools.cache
def _widget(name: str) -> type:
    hides = """
export default { render(context) {
  const still = document.createElement('style');
  still.textContent = `[data-key="${context.model.get('key')}"] .lora-lab-still { display: none; }`;
  context.el.append(still);
  return render(context);
} };
"""
    return type(f"Live{name.title()}", (anywidget.AnyWidget,), {
        "_esm": module(name).replace(_EXPORT, "") + hides,
        "values": traitlets.Dict().tag(sync=True), "key": traitlets.Unicode().tag(sync=True)})


def _closed(text: str) -> str:
    """Return an expression for what a module's render is, with its other names kept inside."""
    return "(() => {\n" + text.replace(_EXPORT, "return render;") + "})()"


def _read(name: str) -> str:
    return (FOLDER / f"{name}.js").read_text(encoding="utf-8")
