"""Stand-ins for what lessons show themselves with: on a machine without Jupyter they take everything and show nothing.

Each missing package becomes a folder of modules that have every name; programs that a lesson starts find them too.
"""

import importlib.util
from pathlib import Path

PACKAGES = {
    "IPython": ("display",), "ipywidgets": (), "traitlets": (),
    "matplotlib": ("axes", "colors", "figure", "patches", "ticker"), "markdown_it": (),
    "mdit_py_plugins": ("dollarmath",), "platformdirs": (),
}
OWN = {"IPython": "version_info = (8, 24)\n"}  # matplotlib asks, and leaves one from 8.24 on alone


class _Anything(type):
    def __getattr__(cls, name: str):
        return _nothing(name)


class Nothing(str, metaclass=_Anything):
    """An empty text that is also a widget, a figure or a table: it keeps what it is given and does nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *args, **options):
        if args:
            self.value = self.data = args[0]
        vars(self).update(options)

    def __getattr__(self, name: str):
        return _nothing(name)

    def __getitem__(self, _):
        return self

    def __call__(self, *_, **__):
        return Nothing()


def _nothing(name: str):
    if name.startswith("__"):  # what Python itself asks for, as in a copy
        raise AttributeError(name)
    return Nothing()


def __getattr__(name: str):
    """Every name that one of the packages may have."""
    _nothing(name)
    return (lambda: None) if name == "get_ipython" else Nothing


def write(folder: Path, installed: Path) -> list[str]:
    """Write a stand-in into `folder` for each package neither installed nor in the folder `installed`; their names."""
    missing = [name for name in PACKAGES if not (installed / name).exists() and not _found(name)]
    for name in missing:
        for module in ("__init__", *PACKAGES[name]):
            file = folder / name / f"{module}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"from stand_ins import __getattr__  # noqa: F401\n{OWN.get(name, '')}")
    return missing


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
