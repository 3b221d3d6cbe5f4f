"""Whether a recipe's rows and adapter are possible, before any weights are read: its data file and the model's config.

The keys and values of a recipe are read in `recipes`.
"""

from __future__ import annotations

import json
import os
import reprlib
from pathlib import Path

from . import tasks
from .errors import LabError

POCKET = "pocket"  # the small model of `lora_lab.pocket`


def read_rows(path: str) -> list[tasks.Command]:
    """The commands in a file with a {"text", "answer"} on each line. Raises LabError for other lines."""
    found, faults = [], []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise LabError(f"data.path: found {path!r}, which cannot be read: {reason}. Expected a file.") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = line
        if isinstance(row, dict) and all(isinstance(row.get(k), str) and row[k].strip() for k in ("text", "answer")):
            found.append(tasks.Command(row["text"], row["answer"]))
        elif row is not None:
            faults.append(f"line {number}")
    if faults:
        raise LabError(f'data.path: found {path} with {len(faults)} lines that are no rows, the first '
                       f'{faults[0]}. Expected {{"text": "...", "answer": "..."}} on each.')
    return found


def check_rows(data: dict | None, training: dict, faults: list[str]) -> None:
    if data is None or any(fault.startswith("data") for fault in faults) or "batch_size" not in training:
        return
    try:
        wanted = data.get("n") or training.get("max_steps", 1) * training["batch_size"]
        if data.get("path"):
            found = len(read_rows(data["path"]))
        else:
            found = len(tasks.commands(data.get("split", "train"), wanted, data.get("seed", 0)))
    except LabError as error:
        key = "" if str(error).startswith("data.") else "data.n: "
        faults.append(f"{key}{error}")
        return
    if found < training["batch_size"]:
        key = "path" if data.get("path") else "n"
        faults.append(f"data.{key}: found {found} rows, expected at least one batch ({training['batch_size']}).")


def check_layers(name: str | None, lora: dict | None, faults: list[str]) -> None:
    """Whether the adapter fits the model, worked out by PEFT on the model without weights."""
    model = _skeleton(name, faults) if name else None
    if model is None or lora is None:
        return
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    from . import skeleton, targets

    config = LoraConfig(**lora, task_type="CAUSAL_LM")
    try:
        report = targets.inspect(model, config)
        found = [f"lora.{problem}" for problem in report.problems]
        if report.refused or found:
            faults += found or [f"lora: PEFT refuses it for this model: {report.refused}"]
            return
        adapted, _ = skeleton.adapt(model, config)
        largest: dict[str, tuple] = {}
        for path, layer in adapted.named_modules():
            if isinstance(layer, LoraLayer) and layer.r["default"] > min(layer.in_features, layer.out_features):
                largest.setdefault(path.rpartition(".")[2], (layer.r["default"], layer.in_features, layer.out_features))
    except Exception as error:  # whatever a field that PEFT does not check itself leads to
        faults.append(f"lora: PEFT refuses it for this model: {' '.join(str(error).split())[:300]}")
        return
    for layer, (r, columns, outputs) in largest.items():
        faults.append(f"lora.r: found {r} for {layer}, expected at most {min(columns, outputs)}: its weight has "
                      f"{outputs} rows and {columns} columns, and no matrix of that size has a higher rank.")


def _skeleton(name: str, faults: list[str]):
    """The model on the meta device, from its config alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from . import cache, pocket

    folder = Path(name)
    if name == cache.SMOLLM2.name:
        folder = cache.cache_folder() / name
        if not (folder / "config.json").exists():
            if faults:
                return None  # a recipe that fails anyway builds no model
            folder = cache.model_folder()
    elif name != POCKET and not os.path.isfile(folder / "config.json"):  # Path.is_file raises for very long names
        kind = "no model" if os.path.isdir(folder) else "no folder here"
        faults.append(f"model: found {reprlib.repr(name)}, which is {kind}. Expected {cache.SMOLLM2.name}, "
                      f"{POCKET}, or the folder of a model that save_pretrained wrote or `hf download` fetched.")
        return None
    elif name != POCKET and not any(folder.glob("*.safetensors")):
        faults.append(f"model: found {name!r} without weights. Expected files that end in .safetensors.")
        return None
    try:
        with torch.device("meta"):
            if name == POCKET:
                return pocket.untrained()
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a config may be broken in any way
        faults.append(f"model: found {name!r}, of which transformers says: {' '.join(str(error).split())[:200]}")
        return None
