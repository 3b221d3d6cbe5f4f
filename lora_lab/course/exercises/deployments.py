"""Deployments to practise the audit on: one sound, three broken, in an order that nobody is told."""

import copy
import itertools
import json
import random
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...display import no_progress_bars
from ...errors import LabError, reason

FAULTS = ("sound", "base", "merged", "alpha")


def make(model, folder, seed: int | None = None) -> None:
    """Write four deployments of a PEFT model, `a` to `d`, to `folder`: each a `base` and an `adapter` folder.

    Without a `seed` their order depends on the adapter's weights, so that the same adapter gives the same order again.
    "base": another revision of the base. "merged": the adapter was merged into the base beforehand. "alpha":
    `lora_alpha` was doubled in the config. Files of an earlier call are replaced. Raises LabError.
    """
    try:
        _write(model, Path(folder), seed)
    except (OSError, SafetensorError) as error:
        raise LabError(f"Could not write the deployments to {folder}: {reason(error)}. Make room, and make them "
                       "again: what is there is replaced.") from error


def _write(model, folder: Path, seed: int | None) -> None:
    plain = copy.deepcopy(model).unload()
    with tempfile.TemporaryDirectory() as scratch, no_progress_bars():
        model.save_pretrained(scratch)
        adapter = {file.name: file.read_bytes() for file in Path(scratch).rglob("*adapter_*")}
    order = random.Random(adapter["adapter_model.safetensors"] if seed is None else seed).sample(FAULTS, len(FAULTS))
    config = json.loads(adapter["adapter_config.json"])
    for name, fault in zip("abcd", order):
        base = plain
        if fault == "base":
            base = _another_revision(plain)
        elif fault == "merged":
            base = copy.deepcopy(model).merge_and_unload()
        with no_progress_bars():
            base.save_pretrained(folder / name / "base")
        there = folder / name / "adapter"
        there.mkdir(exist_ok=True)
        edited = config | {"lora_alpha": 2 * config["lora_alpha"]} if fault == "alpha" else config
        (there / "adapter_model.safetensors").write_bytes(adapter["adapter_model.safetensors"])
        (there / "adapter_config.json").write_text(json.dumps(edited, indent=2))


def faults(folder) -> dict[str, str]:
    """Return what is wrong with each deployment in `folder`, from its files: sound and "alpha" have the same base."""
    bases = {name: load_file(Path(folder, name, "base", "model.safetensors")) for name in "abcd"}
    alphas = {name: json.loads(Path(folder, name, "adapter", "adapter_config.json").read_text())["lora_alpha"]
              for name in "abcd"}
    sound = next(one for one, other in itertools.combinations(bases.values(), 2) if _differ(one, other) == [])
    found = {}
    for name, weights in bases.items():
        differ = _differ(sound, weights)
        found[name] = "base" if "model.embed_tokens.weight" in differ else "merged" if differ else "sound"
        if alphas[name] > min(alphas.values()):
            found[name] = "alpha"
    return found


def _differ(one, other) -> list[str]:
    return [name for name, weight in one.items() if not torch.equal(weight, other[name])]


def _another_revision(model):
    revised = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in revised.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=generator))
    return revised
