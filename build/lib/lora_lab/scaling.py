"""Turning a trained adapter up or down, so that nothing stays turned: `with scaling.turned(model, 2): ...`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from peft.tuners.lora.layer import LoraLayer

from .errors import LabError


@contextlib.contextmanager
def turned(model, factor: float) -> Iterator[None]:
    """Inside the block every LoRA layer of `model` adds `factor` times what it adds now; after it, what it did before.

    Restores the scaling after an error and after an interrupted cell as well, and changes nothing if `factor` is not a
    finite number, 0 or more. Differs from `peft.helpers.rescale_adapter_scale` in what it refuses. Raises LabError.
    """
    number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    if not number or not math.isfinite(factor) or factor < 0:
        raise LabError(f"Cannot turn an adapter by {factor!r}. Give a number: 0 (off), 1 (as trained), 2 (twice).")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise LabError("This model has no LoRA layer to turn. Load an adapter with PeftModel.from_pretrained first.")
    if any(layer.merged for layer in layers):
        raise LabError("The adapter is merged into the weights: no scaling reaches it. Call model.unmerge_adapter().")
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer, scaling in zip(layers, before):
            layer.scaling = {name: factor * value for name, value in scaling.items()}
        yield
    finally:
        for layer, scaling in zip(layers, before):
            layer.scaling = scaling
