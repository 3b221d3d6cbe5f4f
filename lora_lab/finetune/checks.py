"""Whether a recipe's rows and adapter are possible, before any weights are read: its data file and the model's config.

The keys and values of a recipe are read in `recipes`.
"""

import dataclasses
import os
import re
import reprlib
import string
import typing
from pathlib import Path
from typing import Any

from .. import files
from ..errors import LabError, reason
from . import values

POCKET = "pocket"  # the small model of `lora_lab.pocket`
FIXED = {"task_type": "CAUSAL_LM", "peft_type": "LORA"}  # may be written, and is so anyway
_NOTED = ("inference_mode", "auto_mapping", "base_model_name_or_path", "revision", "peft_version")  # PEFT's own
# What a recipe may say of an adapter, with every version of PEFT. What is not here may import a module, open files, or
# need data and models of its own.
FIELDS = ("r", "lora_alpha", "target_modules", "exclude_modules", "lora_dropout", "bias", "use_rslora", "use_dora",
          "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
          "alpha_pattern", "trainable_token_indices", "target_parameters", "layer_replication", "fan_in_fan_out",
          "lora_bias", "ensure_weight_tying", *FIXED)
_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")  # owner/name
_LAYERS = 10_000  # copies of layers that `layer_replication` may ask for
# The others turn part of the base's own weights into the adapter, so that it would fit no base as it was, or need data.
_STARTS = (True, False, "gaussian", "orthogonal")
_LARGEST = 2_000_000_000  # bytes of a file of rows


def read_rows(data: Any, key: str = "path") -> list[tuple]:
    """Return the (prompt, answer) pairs, or the chats, in what a recipe's data names as `key`. Raises LabError.

    JSON lines are read by the recipe's templates, and everything else, and lines that are chats, by `lora_lab.data`.
    """
    if not data.path.lower().endswith((".jsonl", ".ndjson")) or _begins_with_a_chat(data.path):
        return _read_other(data, key)
    try:
        lines = files.read_text(data.path, _LARGEST).removeprefix("\ufeff").split("\n")  # a byte order mark
    except (OSError, ValueError) as error:
        raise LabError(f"data.{key}: found {data.path!r}, which cannot be read: {reason(error)}. "
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
            odd = [f'"{field}": {reprlib.repr(row[field])} ({values.kind(row[field])})'
                   for field in dict.fromkeys(fields) if not isinstance(row.get(field, ""), str)]
            why = f", where {odd[0]} is no text: values must be texts" if odd else ""
            wrong.append(f"line {number}{why}")
        except ValueError:
            wrong.append(f"line {number}")
    if wrong:
        expected = ", ".join(f'"{field}": "..."' for field in dict.fromkeys(fields))
        raise LabError(f"data.{key}: found {data.path} with {len(wrong)} lines that are no rows, the first {wrong[0]}. "
                       f"Expected {{{expected}}} on each; data.prompt and data.answer say which fields they are.")
    return found[: data.n]


def _begins_with_a_chat(path: str) -> bool:
    from ..data.reading import CHATS

    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            return False
        with open(path, encoding="utf-8-sig") as file:
            line = next((line for line in iter(lambda: file.readline(10**7), "") if line.strip()), "")
        return any(isinstance(value, list) for value in map(files.parse_json(line, dict).get, CHATS))
    except (OSError, ValueError):
        return False


def _read_other(data: Any, key: str) -> list[tuple]:
    """A table, JSON, chats or a data set of the hub; a template with one field names its column."""
    from .. import data as reading

    (ask, *more), (say, *others) = (template_fields(text) or [""] for text in (data.prompt, data.answer))
    if more or others:
        raise LabError(f"data.{key}: found {data.path}, and templates of several fields. Expected JSON lines for those "
                       "(a file that ends in .jsonl), or one field each.")
    try:
        found = reading.read(data.path, ask if ask != "prompt" else None, say if say != "answer" else None)
    except LabError as error:
        raise LabError(f"data.{key}: found {data.path!r}: {error}") from None
    if found.odd:
        raise LabError(f"data.{key}: found {data.path} with {len(found.odd):,} rows that cannot be used, the first "
                       f"{found.odd[0][0]}: {found.odd[0][1]}. Expected prompts and answers, or chats.")
    rows = [row.messages or (data.prompt.format_map({ask: row.prompt}), data.answer.format_map({say: row.answer}))
            for row in found.rows[: data.n]]
    if any(row.messages for row in found.rows[: data.n]) and (data.prompt, data.answer) != ("{prompt}", "{answer}"):
        raise LabError(f"data.prompt: found {data.prompt!r}, and {data.path} has chats, which the model's own template "
                       "writes. Expected neither data.prompt nor data.answer.")
    return rows


def check_chats(name: str | None, rows: list, faults: list[str]) -> None:
    """Add to `faults` where the model's tokenizer, which is read for it, cannot write the first chat among `rows`."""
    chat = next((row for row in rows if isinstance(row[0], dict)), None)
    if chat is None or name is None or faults:
        return
    from .. import batches, models, pocket

    try:
        batches.encode([chat], pocket.tokenizer() if name == POCKET else models.read_tokenizer(name))
    except LabError as error:
        faults.append(f"data.path: found chats, and {name} cannot be trained on them: {error}")


def check_batch(training: dict, processes: int, faults: list[str]) -> None:
    """Add to `faults` where the rows of a step cannot be shared out among `processes` and passes."""
    passes = training.get("gradient_accumulation_steps", 1)
    size = training.get("batch_size", processes * passes)
    if size % (processes * passes):
        faults.append(f"training.batch_size: found {size}, expected a multiple of {shares(processes, passes)}.")


def shares(processes: int, passes: int) -> str:
    """Return in words what divides a batch."""
    of_each = f" times {passes} passes (gradient_accumulation_steps)" if passes > 1 else ""
    return f"the {processes} processes{of_each}, which share each batch"


def template_fields(text: str) -> list[str] | None:
    """Return the names in a template's braces, `["text"]` of "> {text}"; None for one that no row can fill."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        return None
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(name.isidentifier() and not spec and not turned for _, name, spec, turned in parts if name is not None)
    return names if plain and 0 < len(names) < 20 else None  # {row.field} and {0} reach into what is no text


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


def parse_lora(section: Any, is_there: bool, faults: list[str]) -> dict | None:
    """Return the fields of a recipe's `lora` if they make a LoraConfig; adds to `faults` what is wrong with them."""
    from peft import LoraConfig

    if not isinstance(section, dict):
        found = values.kind(section) if is_there else "nothing"
        faults.append(f"lora: found {found}, expected fields of LoraConfig, such as r, lora_alpha and target_modules.")
        return None
    types = typing.get_type_hints(LoraConfig)
    settable = [name for name in FIELDS if name in types]
    before = len(faults)
    values.find_unknown(section, "lora.", settable, faults)
    limits = {"r": {"low": 1}, "lora_alpha": {"above": 0}, "lora_dropout": {"low": 0, "below": 1}}
    fields: dict = {}
    for name in (name for name in section if name in settable):
        value, limit = section[name], limits.get(name, {})
        value = fields[name] = values.as_number(value) if types[name] is float else value
        if name in FIXED:
            if value != FIXED[name]:
                faults.append(values.choice(f"lora.{name}", value, (FIXED[name],)))
        elif name == "init_lora_weights":
            if not any(value is start or (isinstance(value, str) and value == start) for start in _STARTS):
                faults.append(values.choice(f"lora.{name}", value, _STARTS))
        elif not values.fits(value, types[name]) or not values.within(value, **limit):
            faults.append(values.fault(f"lora.{name}", section, values.expected(types[name], **limit)))
        elif name == "layer_replication" and sum(abs(end - start) for start, end in value or ()) > _LAYERS:
            faults.append(f"lora.{name}: found ranges of more than {_LAYERS:,} layers together, expected fewer.")
        elif name in ("rank_pattern", "alpha_pattern"):
            faults += [f"lora.{name}.{key}: found {reprlib.repr(number)}, expected a whole number of at least 1."
                       for key, number in (value or {}).items()
                       if not isinstance(key, str) or not values.fits(number, int) or not values.within(number, low=1)]
    if len(faults) == before:
        try:
            LoraConfig(**fields | FIXED)
            return fields
        except Exception as error:  # whatever PEFT has against these fields together
            faults.append(f"lora: PEFT refuses it: {reason(error)}")
    return None


def as_fields(config: Any) -> dict:
    """Return what makes a LoraConfig differ from LoraConfig(), as YAML has it."""
    plain = type(config)()
    found = {}
    for name in [f.name for f in dataclasses.fields(config)]:
        value = getattr(config, name)
        if name not in _NOTED and name not in FIXED and value != getattr(plain, name):
            found[name] = sorted(value) if isinstance(value, (set, tuple)) else value
    return {"r": config.r, "lora_alpha": config.lora_alpha} | found


def check_layers(name: str | None, lora: dict | None, faults: list[str]) -> None:
    """Add to `faults` where the adapter does not fit the model, as worked out by PEFT on the model without weights."""
    model = _skeleton(name, faults) if name else None
    if model is None or lora is None:
        return
    from peft import LoraConfig

    from .. import meta_model, targets
    from ..targets import layer_names

    if not layer_names.patterns_end(lora, [name for name, _ in model.named_modules()]):
        faults.append("lora: its patterns were not matched with the model's layers in "
                      f"{layer_names.SECONDS} seconds. Expected simpler ones, without a repetition in a repetition, or "
                      "lists of names.")
        return
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
    elif name != POCKET and not os.path.isdir(folder) and _HUB_ID.fullmatch(name):
        return _from_hub(name, faults)
    elif name != POCKET and not os.path.isfile(folder / "config.json"):  # Path.is_file raises for very long names
        kind = "no model" if os.path.isdir(folder) else "no folder here"
        faults.append(f"model: found {reprlib.repr(name)}, which is {kind}. Expected {cache.SMOLLM2.name}, "
                      f"{POCKET}, a hub id, or the folder of a model that save_pretrained wrote.")
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


def _from_hub(name: str, faults: list[str]):
    """The same of a model of the hub, whose config is fetched unless it is on this machine."""
    from .. import meta_model, models

    try:
        if models.has_safetensors(name) is False:
            faults.append(f"model: found {name!r} without weights in safetensors. Expected a model that has them: "
                          "pickled ones are not opened.")
            return None
        return meta_model.build(models.read_config(name))
    except LabError as error:
        faults.append(f"model: found {name!r}, which is no folder here. {error}")
    except Exception as error:  # a config may be broken in any way
        faults.append(f"model: found {name!r}, of which transformers says: {reason(error, 200)}")
    return None
