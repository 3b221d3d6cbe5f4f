"""Checks the learner runs: on a folder before PEFT opens it, and on the answers to exercises."""

from __future__ import annotations

import json
import random
from pathlib import Path

from . import tasks
from .errors import LabError


def adapter_folder(folder) -> str:
    """`folder` as a string, if it holds a saved adapter.

    PEFT asks the model hub for a folder it cannot find an adapter in, and then reports what the hub
    said. This says what is wrong with the folder. Raises LabError.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if not missing:
        return str(folder)
    found = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else None
    state = f"it holds {', '.join(found) or 'nothing'}" if found is not None else "it is no folder"
    raise LabError(
        f"{folder} is not a saved adapter: no {' and no '.join(missing)} there ({state}). "
        "Give the folder that model.save_pretrained(folder) wrote."
    )


def small_adapter(config, base_config, megabytes: float) -> None:
    """Exercise: does `config` adapt every linear layer in a float32 adapter file under `megabytes`?"""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # shapes without memory
        model = get_peft_model(AutoModelForCausalLM.from_config(base_config), config)
    linear = sum(
        isinstance(module, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
        for name, module in model.named_modules()
    )
    adapted = len(model.base_model.targeted_module_names)
    size = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name) * 4 / 1e6
    solved = adapted == linear and size < megabytes
    _say(solved, f"{size:.2f} MB of adapter weights (under {megabytes} wanted), {adapted} of {linear} layers adapted.")


def exact_by_device(function) -> None:
    """Exercise: does `function(commands, answers)` give the share of exact answers for each device?"""
    rng = random.Random()
    commands = tasks.commands("train", n=60, seed=rng.randrange(10**6))
    answers = [c.answer if rng.random() < 0.7 else "{}" for c in commands]
    right: dict[str, list[bool]] = {}
    for command, answer in zip(commands, answers):
        right.setdefault(list(json.loads(command.answer))[1], []).append(answer == command.answer)
    expected = {device: sum(flags) / len(flags) for device, flags in right.items()}
    found = function(commands, answers)
    if not isinstance(found, dict):
        return _say(False, f"Expected a dict, found {type(found).__name__}.")
    for device, share in expected.items():
        if device not in found:
            return _say(False, f"{device!r} is missing; your function returned {sorted(map(str, found))}.")
        if not isinstance(found[device], (int, float)) or abs(found[device] - share) > 1e-6:
            return _say(False, f"{device!r} should be {share:.3f} on the check's data, yours is {found[device]!r}.")
    return _say(True, f"All {len(expected)} devices agree.")


def _say(solved: bool, detail: str) -> None:
    print(f"{'Solved.' if solved else 'Not yet.'} {detail}")
