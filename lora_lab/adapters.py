"""Adapters of PEFT: is a folder one, are its settings numbers that train, and how loud is it in a model."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora.layer import LoraLayer

from . import files
from .errors import LabError, expect


def positive(**settings) -> None:
    """Check that every setting is a finite number above 0, as alpha and the learning rate have to be. Raises LabError.

    PEFT takes 0, negative numbers and NaN without a word, and trains nothing or nonsense.
    """
    for name, value in settings.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        expect(number and 0 < value < 1e300, name, value, "a finite number above 0")


def adapter_folder(folder: str | os.PathLike, r: int | None = None) -> str:
    """Return `folder` as a string, if it holds a saved adapter (of rank `r`, if given).

    PEFT asks the model hub for a folder it cannot find an adapter in, and then reports what the hub
    said. This says what is wrong with the folder, whoever wrote it. Raises LabError.
    """
    files.place(folder, "the name of a folder")
    folder = Path(os.path.expanduser(folder))
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if not missing:
        try:
            config = files.read_json(folder / "adapter_config.json", dict)
        except (OSError, ValueError) as error:
            raise LabError(f"adapter_config.json in {folder}: {error}. Save the adapter again.") from None
        if config.get("megatron_config"):
            raise LabError(f"adapter_config.json in {folder} asks to import {config.get('megatron_core')!r}, and PEFT "
                           "would: a file from somebody else must not. Remove megatron_config from it, or leave it be.")
        rank = config.get("r")
        if r not in (None, rank):
            raise LabError(
                f"The adapter in {folder} has rank {rank}, and rank {r} is needed here. Train it with r={r}, or give "
                "another folder."
            )
        return str(folder)
    found = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else None
    state = f"it holds {', '.join(found) or 'nothing'}" if found is not None else "it is no folder"
    raise LabError(
        f"{folder} is not a saved adapter: no {' and no '.join(missing)} there ({state}). "
        "Give the folder that model.save_pretrained(folder) wrote."
    )


@contextlib.contextmanager
def turned(model: torch.nn.Module, factor: float) -> Iterator[None]:
    """Multiply what every LoRA layer of `model` adds by `factor`, inside the block; after it, all is as before.

    What it adds to `peft.helpers.rescale_adapter_scale` are refusals: of numbers below 0 and of NaN, and of an adapter
    that is merged into the weights, where no scaling reaches it. Raises LabError.
    """
    expect(isinstance(model, torch.nn.Module), "model", model, "a PEFT model")
    number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    if not number or not 0 <= factor < 1e300:
        raise LabError(f"Cannot turn an adapter by {factor!r}. Give a number: 0 (off), 1 (as trained), 2 (twice).")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise LabError("This model has no LoRA layer to turn. Load an adapter with PeftModel.from_pretrained first.")
    if any(layer.merged for layer in layers):
        raise LabError("The adapter is merged into the weights: no scaling reaches it. Call model.unmerge_adapter().")
    with rescale_adapter_scale(model, factor):
        yield
