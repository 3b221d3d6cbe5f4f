"""Adapters of PEFT: is a folder one, beside which weights was it trained, how loud is it in a model."""

import contextlib
import hashlib
import json
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftType
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora.layer import LoraLayer
from safetensors import SafetensorError, safe_open

from . import files
from .errors import LabError, expect, reason

BASE = "base_model.json"
TRAINED_WITH = "lora_alpha", "r", "use_rslora"  # what a config scales the update by
_ADDED = ("lora_", "modules_to_save.", "trainable_tokens_")  # parts of names of what PEFT adds, and puts around
_RANKED = re.compile(r"\.lora_(embedding_)?A\b")  # weights whose first dimension is the rank
_AROUND = ("base_model.model.", ".base_layer", ".original_module", ".token_adapter")


def positive(**settings) -> None:
    """Check that every setting is a finite number above 0, as alpha and the learning rate have to be. Raises LabError.

    PEFT takes 0, negative numbers and NaN without a word, and trains nothing or nonsense.
    """
    for name, value in settings.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        expect(number and 0 < value < 1e300, name, value, "a finite number above 0")


def base_identity(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's own weights, by name, without any adapter's; of 7 billion it takes half a minute.

    Floating-point weights count as rounded to bfloat16: one file read in float32 and in bfloat16 is one base, and what
    differs by more, such as a base quantised to 4 bits and read back, is another. Raises LabError.
    """
    own, digest = {}, hashlib.sha256()
    for name, weight in model.named_parameters():
        if not any(part in name for part in _ADDED):
            for part in _AROUND:
                name = name.replace(part, "")
            own[name] = weight.detach()
    for name, weight in sorted(own.items()):
        if weight.is_meta:
            raise LabError(f"{name} is on the meta device: a model without weights has no identity.")
        kept = weight.to(torch.bfloat16) if weight.is_floating_point() else weight
        digest.update(name.encode())
        digest.update(kept.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def note_base(folder: str | os.PathLike, model: torch.nn.Module) -> str:
    """Write beside a saved adapter which weights it was trained on, into `base_model.json`; returns their SHA-256.

    PEFT notes the base's name alone, and a name has many weights: roundings, revisions, fine-tunings. The config's
    alpha, rank and kind of scaling are noted, too, so that a later edit can be told. Raises LabError.
    """
    expect(isinstance(model, torch.nn.Module), "model", model, "the model that the adapter was trained in")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise LabError("The adapter is merged into the weights: these are not its base. Call model.unmerge_adapter().")
    identity = base_identity(model)
    noted = {"name": getattr(getattr(model, "config", None), "_name_or_path", "") or None, "sha256": identity}
    if noted["name"] and os.path.isdir(noted["name"]):
        noted["name"] = None  # a path of this machine says nothing elsewhere
    folder = Path(adapter_folder(folder))
    config = files.read_json(folder / "adapter_config.json", dict)
    noted["trained with"] = {key: config[key] for key in TRAINED_WITH if key in config}
    files.write(folder / BASE, (json.dumps(noted, indent=1) + "\n").encode())
    return identity


def _check_base(folder: Path, base: torch.nn.Module) -> None:
    try:
        noted = files.read_json(folder / BASE, dict).get("sha256")
    except FileNotFoundError:
        return print(f"Nothing in {folder} says which weights it was trained on: score it before you rely on it.")
    except (OSError, ValueError) as error:
        raise LabError(f"{BASE} in {folder}: {error}. Save the adapter again, and note_base.") from None
    if noted != (found := base_identity(base)):
        raise LabError(
            f"The adapter in {folder} was trained beside other weights: {str(noted)[:12]}…, and these are "
            f"{found[:12]}…. A and B correct the weights that they were trained beside. To try it here all the same, "
            "leave out base= and score it.")


def adapter_folder(folder: str | os.PathLike, r: int | None = None, base: torch.nn.Module | None = None) -> str:
    """Return `folder` as a string, if it holds a saved adapter (of rank `r`, and trained beside `base`, if given).

    Of the weights it reads names and shapes: the file has to be complete, and to fit what the config says. PEFT asks
    the model hub for a folder it cannot find an adapter in, and then reports what the hub said. This says what is wrong
    with the folder, whoever wrote it. Raises LabError.
    """
    files.place(folder, "the name of a folder")
    expect(base is None or isinstance(base, torch.nn.Module), "base", base, "the base, a model")
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
        _check_weights(folder, config)
        rank = config.get("r")
        if r not in (None, rank):
            raise LabError(
                f"The adapter in {folder} has rank {rank}, and rank {r} is needed here. Train it with r={r}, or give "
                "another folder."
            )
        if base is not None:
            _check_base(folder, base)
        return str(folder)
    found = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else None
    state = f"it holds {', '.join(found) or 'nothing'}" if found is not None else "it is no folder"
    raise LabError(
        f"{folder} is not a saved adapter: no {' and no '.join(missing)} there ({state}). "
        "Give the folder that model.save_pretrained(folder) wrote."
    )


def _check_weights(folder: Path, config: dict) -> None:
    """Whether the weights, by their names and shapes, can be those of an adapter with this config."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in PeftType.__members__:
        raise LabError(f"adapter_config.json in {folder} says {reprlib.repr(kind)} for peft_type, expected a kind that "
                       "PEFT knows, such as 'LORA'. Save the adapter again.")
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise LabError(f"adapter_model.safetensors in {folder} is damaged or incomplete: {reason(error)}. Save the "
                       "adapter again, or copy the file anew.") from None
    ranks = {name: shape[0] for name, shape in shapes.items() if shape and _RANKED.search(name)}
    if ranks and kind not in ("LORA", "ADALORA", "XLORA"):
        raise LabError(f"adapter_config.json in {folder} says {kind}, and the weights beside it are LoRA's, such as "
                       f"{min(ranks)}. Give the folder that model.save_pretrained(folder) wrote, with its own config.")
    patterns = config.get("rank_pattern")
    named = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    other = {name: rank for name, rank in ranks.items() if rank not in named}
    if kind == "LORA" and other and not config.get("target_parameters"):  # these hold a rank for each expert
        name = min(other)
        raise LabError(f"adapter_config.json in {folder} says r={config.get('r')!r}, and {name} beside it has rank "
                       f"{other[name]}. Give the folder that model.save_pretrained(folder) wrote, with its own config.")


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
