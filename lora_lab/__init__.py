"""Tools for LoRA that you can take to work, and behind one door, `course`, the plumbing of the lessons.

Load and train    models, cache, adapters, batches, finetune (recipes for any number of processes), sweep
Look before       data (your rows), targets (what a LoraConfig adapts), memory (what a training takes), distributed
Look after        scoring, merging (is a merge safe?), shipping (save what production loads), doctor (what is wrong?)
Practise on       smart_home (commands and their splits), pocket (a model of a quarter of a million weights)
Underneath        errors, files, display, meta_model (PEFT on a model without weights), plots
"""

import importlib
import logging
import warnings

from .errors import LabError

# Two messages that today's versions print at every import or wrap, and that no learner can act on:
# bitsandbytes names an optional CPU kernel, PEFT uses a method that transformers renames in v6.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)

_HOMES = {"load_base": "models"} | dict.fromkeys(
    ("quiz", "compare", "progress", "export_progress", "import_progress", "reset_progress"), "course.quizzes")
__all__ = ["LabError", *_HOMES]


def __getattr__(name: str):
    # On demand, so that `import lora_lab` is instant and needs neither torch nor transformers.
    if name in _HOMES:
        try:
            return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if not _HOMES[name].startswith("course."):
                raise
            raise LabError(f"{name} is of the course, and {error.name} is missing, which comes with it. Install "
                           'it with `pip install "lora-lab[lab]"`, and restart the kernel.') from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
