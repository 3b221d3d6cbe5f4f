"""Where the memory of a fine-tuning goes: planned from a config alone, and measured around a block of code."""

from .measured import measure
from .planner import OPTIMIZERS, Plan, human, plan
