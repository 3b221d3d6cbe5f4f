"""Keeps the notebook's command keys out of controls, and gives controls the names that ipywidgets leaves out.

In JupyterLab a focused radio button, checkbox, slider or menu does not keep the keys for itself:
pressing `d` twice there deletes the cell. `guard` mends that where anywidget can load; where it
cannot (Colab asks for a download first, and does not have the trap), the controls work as they are.
"""

from __future__ import annotations

import sys

import ipywidgets
import traitlets
from IPython.display import HTML, display

try:
    import anywidget
except ImportError:
    anywidget = None

_VIEW = "application/vnd.jupyter.widget-view+json"
_SCRIPT = """
function mend(guarded, label, unique) {
  guarded.setAttribute('role', 'group');
  guarded.setAttribute('aria-label', label);
  for (const part of [guarded, ...guarded.querySelectorAll('input, button, select, [role=slider]')])
    part.setAttribute('data-lm-suppress-shortcuts', 'true');
  const ask = guarded.querySelector('.lora-lab-ask');
  if (ask) ask.id = unique;
  for (const box of guarded.querySelectorAll('.widget-radio-box')) {
    box.setAttribute('role', 'radiogroup');
    box.setAttribute('aria-labelledby', unique);
    box.querySelectorAll('input').forEach(input => { input.name = unique; });  // one group: arrows choose
  }
  for (const slider of guarded.querySelectorAll('.widget-slider, .jupyter-widget-slider'))
    slider.querySelector('[role=slider]')?.setAttribute('aria-label', slider.querySelector('label')?.textContent);
}
function held(guarded) {
  return [...guarded.querySelectorAll('input, select')].map(part =>
    part.matches('[type=radio], [type=checkbox]') ? part.checked : part.matches('select') ? part.selectedIndex
      : part.value);
}
function render({ model, el }) {
  const unique = `lora-lab-${Math.random().toString(36).slice(2)}`;
  // what is chosen goes with the click: a message of its own could arrive after it
  const check = event => { event.stopPropagation(); model.send({ held: held(guarded) }); };
  const click = event => {
    const button = guarded.querySelector('button');
    if (model.get('sends') && !button.disabled && button.contains(event.target)) check(event);
  };
  const enter = event => {
    if (model.get('sends') && event.key === 'Enter' && event.target.matches('input[type=text]')) check(event);
  };
  const watch = new MutationObserver(() => start());
  let waiting, guarded;
  const start = () => {
    guarded ??= el.closest('.lora-lab-guard');
    if (!guarded) { waiting = setTimeout(start, 50); return; }  // not on the page yet
    guarded.addEventListener('click', click, true);
    guarded.addEventListener('keydown', enter, true);
    watch.disconnect();  // what is mended must not be seen as a change
    mend(guarded, model.get('label'), unique);
    watch.observe(guarded, { childList: true, subtree: true });
  };
  start();
  return () => { clearTimeout(waiting); watch.disconnect(); guarded?.removeEventListener('click', click, true);
    guarded?.removeEventListener('keydown', enter, true); };
}
export default { render };
"""


def guard(children: list, label: str, checked=None) -> ipywidgets.VBox:
    """The controls in a box that keeps their keys; `label` names the box to a screen reader.

    Where the page can, `checked(held)` is called instead of the first button, with what each control
    holds at that moment: whether it is ticked, the place of the chosen line, or the text.
    """
    box = ipywidgets.VBox([*children, *_mender(label, checked)])
    box.add_class("lora-lab-guard")
    return box


if anywidget:
    class Mender(anywidget.AnyWidget):
        _esm = _SCRIPT
        label = traitlets.Unicode().tag(sync=True)
        sends = traitlets.Bool().tag(sync=True)


# A notebook reopened without its kernel has only an error to show where the widget was.
_HIDE_LOST = HTML(
    '<span class="lora-lab-widget"></span><style>.jp-OutputArea-child:has(.lora-lab-widget) + .jp-OutputArea-child '
    ".jp-OutputArea-output.jupyter-widgets:not(:has(*)) {display: none}</style>"
)


def show(box: ipywidgets.Widget) -> None:
    """Display a widget so that pages which cannot show it show nothing, not an error or its Python text."""
    display(_HIDE_LOST)
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display({_VIEW: view, "text/html": "", "text/plain": ""}, raw=True)


def _mender(label: str, checked) -> list:
    if anywidget is None or "google.colab" in sys.modules:
        return []
    mender = Mender(label=label, sends=checked is not None)
    mender.on_msg(lambda _, content, __: checked(content["held"]))
    # hidden with display, so that a page which cannot load it shows no error either
    return [ipywidgets.Box([mender], layout=ipywidgets.Layout(display="none"))]
