"""Whether a recipe's rows and adapter are possible, before any weights are read: its data file and the model's config.

The keys and values of a recipe are read in `recipes`.
"""

import os
import reprlib
import string
from pathlib import Path
from typing import Any

from .. import files
from ..errors import LabError, reason

POCKET = "pocket"  # the small model of `lora_lab.pocket`
_LARGEST = 2_000_000_000  # bytes of a file of rows


def read_rows(data: Any) -> list[tuple[str, str]]:
    """Return the (prompt, answer) pairs in the file of a recipe's `Data`. Raises LabError for other lines."""
    try:
        lines = files.read_text(data.path, _LARGEST).splitlines()
    except (OSError, ValueError) as error:
        raise LabError(f"data.path: found {data.path!r}, which cannot be read: {reason(error)}. "
                       "Expected a file.") from None
    fields = [field for text in (data.prompt, data.answer) for field in template_fields(text) or ()]
    found, wrong = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = files.parse_json(line, dict)
            if all(isinstance(row.get(field), str) and row[field].strip() for field in fields):
                found.append((data.prompt.format_map(row), data.answer.format_map(row)))
                continue
        except ValueError:
            pass
        wrong.append(f"line {number}")
    if wrong:
        expected = ", ".join(f'"{field}": "..."' for field in dict.fromkeys(fields))
        raise LabError(f"data.path: found {data.path} with {len(wrong)} lines that are no rows, the first {wrong[0]}. "
                       f"Expected {{{expected}}} on each; data.prompt and data.answer say which fields they are.")
    return found[: data.n]


def template_fields(text: str) -> list[str] | None:
    """Return the names in a template's braces, `["text"]` of "> {text}"; None for one that no row can fill."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        return None
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(name.isidentifier() and not spec and not turned for _, name, spec, turned in parts if name is not None)
    return names if plain and names else None  # {row.field} and {0} reach into what is no text


def check_rows(data: Any, training: dict, faults: list[str]) -> list[tuple[str, str]]:
    """Return the rows of a recipe's `Data`; adds to `faults` what is wrong with their file or their number."""
    if data is None or any(fault.startswith("data") for fault in faults) or "batch_size" not in training:
        return []
    try:
        rows = read_rows(data)
    except LabError as error:
        faults.append(str(error))
        return []
    if data.n and len(rows) < data.n:
        faults.append(f"data.n: found {data.n}, and {data.path} has {len(rows)} rows. Expected at most as many.")
    elif (found := len(rows)) < training["batch_size"]:
        key = "n" if data.n else "path"
        faults.append(f"data.{key}: found {found} rows, expected at least one batch ({training['batch_size']}).")
    return rows


def check_layers(name: str | None, lora: dict | None, faults: list[str]) -> None:
    """Add to `faults` where the adapter does not fit the model, as worked out by PEFT on the model without weights."""
    model = _skeleton(name, faults) if name else None
    if model is None or lora is None:
        return
    from peft import LoraConfig

    from .. import meta_model, targets

    try:
        report = targets.inspect(model, LoraConfig(**lora, task_type="CAUSAL_LM"))
    except Exception as error:  # whatever a field that PEFT does not check itself leads to
        faults.append(f"lora: PEFT refuses it for this model: {reason(error)}")
        return
    faults += [f"lora.{problem}" for problem in report.problems]
    if report.refused and not report.problems:
        faults.append(f"lora: PEFT refuses it for this model: {report.refused}")
    modules, largest = dict(model.named_modules()), dict[str, tuple]()
    for path, r in {} if report.refused or report.problems else report.ranks.items():
        shape = meta_model.linear_shape(modules.get(path))
        if shape and r > min(shape):
            largest.setdefault(path.rpartition(".")[2], (r, *shape))
    for layer, (r, outputs, columns) in largest.items():
        faults.append(f"lora.r: found {r} for {layer}, expected at most {min(columns, outputs)}: its weight has "
                      f"{outputs} rows and {columns} columns, and no matrix of that size has a higher rank.")


def _skeleton(name: str, faults: list[str]):
    """The model on the meta device, from its config alone."""
    import torch
    from transformers import AutoConfig

    from .. import cache, meta_model, pocket

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
        if name == POCKET:
            with torch.device("meta"):
                return pocket.untrained()
        return meta_model.build(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    except Exception as error:  # a config may be broken in any way
        faults.append(f"model: found {name!r}, of which transformers says: {reason(error, 200)}")
        return None
