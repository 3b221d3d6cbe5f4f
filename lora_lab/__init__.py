"""Plumbing of the lora-lab course: models, data, scores, plots and checks. The lessons are in `notebooks/`."""

import importlib

from .errors import LabError

_HOMES = {"load_base": "models"}
__all__ = ["LabError", *_HOMES]


def __getattr__(name: str):
    # On demand, so that `import lora_lab` is instant and needs neither torch nor transformers.
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
