"""Plumbing of the lora-lab course: models, data, scores, plots and checks. The lessons are in `notebooks/`."""

import importlib
import logging
import warnings

from .errors import LabError

# Two messages that today's versions print at every import or wrap, and that no learner can act on:
# bitsandbytes names an optional CPU kernel, PEFT uses a method that transformers renames in v6.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)

_HOMES = {
    "load_base": "models",
    "quiz": "quizzes", "compare": "quizzes",
    "progress": "quizzes", "export_progress": "quizzes", "reset_progress": "quizzes",
}
__all__ = ["LabError", *_HOMES]


def __getattr__(name: str):
    # On demand, so that `import lora_lab` is instant and needs neither torch nor transformers.
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
