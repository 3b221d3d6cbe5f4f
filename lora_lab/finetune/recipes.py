"""Recipes: what was tuned in a notebook as a small YAML file, checked whole before any model loads.

Reads, checks and writes them; `training` trains by them. Paths in a recipe start from the folder that you launch from.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import reprlib
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .. import files
from ..errors import LabError, reason, whole
from . import checks, values
from .checks import POCKET

if typing.TYPE_CHECKING:
    from peft import LoraConfig

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8", "nf4")
REPORTS = ("none", "tensorboard", "trackio", "wandb")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
COPY = "recipe.yaml"  # in the output folder: says whose checkpoints those are

def _number(default=dataclasses.MISSING, **limits):
    """A field with a number: `low` and `above` are its limits, the first one included."""
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Data:
    """Rows to train on: `path`, a file with a JSON object on each line, or whatever else `lora_lab.data.read` takes.

    `prompt` and `answer` are templates: the fields of a row in braces, such as "### {question}\\n" and "{reply}". Left
    out, a row has its prompt and its answer as they are, in fields of these names. Chats (`messages`, `conversations`)
    are written by the model's own chat template, and all turns of the assistant are learned. `n`: the first n rows
    alone. `eval_path`: other such rows, held out; their loss is logged every `training.eval_steps`.
    """

    path: str
    prompt: str = "{prompt}"
    answer: str = "{answer}"
    n: int | None = _number(None, low=1)
    eval_path: str | None = None


@dataclass(frozen=True)
class Training:
    """The Trainer's settings under its own names; `batch_size` counts the rows of a step.

    All processes share them, and take them in `gradient_accumulation_steps` passes. `report_to`: who is told of the
    losses besides `metrics.jsonl`, which is there in any case.
    """

    max_steps: int = _number(low=1)
    batch_size: int = _number(low=1)
    learning_rate: float = _number(above=0)
    warmup_steps: int = _number(0, low=0)
    seed: int = _number(0, low=0)
    logging_steps: int = _number(1, low=1)
    save_steps: int = _number(50, low=1)
    lr_scheduler_type: str = "linear"
    max_grad_norm: float = _number(1.0, above=0)
    weight_decay: float = _number(0.0, low=0)
    gradient_accumulation_steps: int = _number(1, low=1)
    gradient_checkpointing: bool = False
    save_total_limit: int | None = _number(None, low=2)  # of one, a kill in the middle of a save would leave none
    eval_steps: int = _number(50, low=1)
    report_to: str = "none"


@dataclass(frozen=True)
class Recipe:
    """One training, whole. `model` is SmolLM2-135M-Instruct, pocket, a folder, or a hub id ("owner/name").

    `lora` has fields of PEFT's LoraConfig; `output` is the folder that is written.
    """

    model: str
    output: str
    lora: dict
    training: Training
    data: Data
    precision: str = "auto"

    def lora_config(self) -> LoraConfig:
        """Return `lora` as PEFT takes it."""
        from peft import LoraConfig

        return LoraConfig(**self.lora | checks.FIXED)

    @functools.cached_property
    def rows(self) -> list[tuple]:
        """The (prompt, answer) pairs or chats to train on, read once. Raises LabError."""
        return checks.read_rows(self.data)

    @functools.cached_property
    def eval_rows(self) -> list[tuple]:
        """The held-out rows, read once; none without `data.eval_path`. Raises LabError."""
        faults: list[str] = []
        found = _held_out(self.data, faults)
        _raise(faults, "The held-out rows cannot be read.")
        return found

    def as_dict(self) -> dict:
        """Return it as the file has it."""
        flat = dataclasses.asdict(self)
        usual = dataclasses.asdict(Data(""))
        flat["data"] = {name: value for name, value in flat["data"].items() if value != usual[name]}
        for name in ("eval_steps", "report_to"):
            if flat["training"][name] == getattr(Training, name):
                del flat["training"][name]
        return {name: flat[name] for name in ("model", "precision", "data", "lora", "training", "output")}


def read(path: str | os.PathLike, processes: int = 1, resume: bool = False) -> Recipe:
    """Return the recipe in the YAML file `path`, if `processes` processes can train by it here and now.

    `resume` allows an output folder that holds this recipe's checkpoints. Looks at the model's config and never at
    its weights. Raises one LabError that lists every fault with its key, what was found and what is expected.
    """
    whole(processes=processes)
    faults: list[str] = []
    recipe = _parse(values.read_yaml(path, faults), faults)
    checks.check_batch(recipe.get("training", {}), processes, faults)
    faults += output_faults(recipe, resume)
    data = recipe.get("data") or {}
    rows = checks.check_rows(Data(**data) if "path" in data else None, recipe.get("training", {}), faults)
    held_out = _held_out(Data(**data), faults) if "path" in data else []
    checks.check_layers(recipe.get("model"), recipe.get("lora"), faults)
    checks.check_chats(recipe.get("model"), [*rows, *held_out], faults)
    _raise(faults, f"{path} is not fit to train by; no model was loaded.")
    built = _build(recipe)
    vars(built).update(rows=rows, eval_rows=held_out)  # as the cached properties would
    return built


def write(recipe: Recipe | dict, path: str | os.PathLike) -> Path:
    """Write `recipe` to `path`, which changes whole or not at all. In a dict, `lora` may be a LoraConfig.

    Raises LabError for a recipe that `read` would refuse for its keys or values, and where `path` holds anything but a
    recipe; what the recipe names need not be there yet.
    """
    place = files.place(path, "the name of a file")
    given = recipe.as_dict() if isinstance(recipe, Recipe) else recipe
    if isinstance(given, dict) and dataclasses.is_dataclass(given.get("lora")):
        given = given | {"lora": checks.as_fields(given["lora"])}
    faults: list[str] = []
    parsed = _parse(given, faults)
    _raise(faults, "This is no recipe, and nothing was written.")
    text = yaml.safe_dump(_build(parsed).as_dict(), sort_keys=False, allow_unicode=True)
    if os.path.lexists(place):
        there = values.read_yaml(place, [])
        if not isinstance(there, dict) or not {"model", "lora", "training"} <= set(there):
            raise LabError(f"{path} holds something else than a recipe, and stays as it is. Give another name.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write(place, text)
    except OSError as error:
        raise LabError(f"{path} cannot be written: {reason(error)}. Give another name.") from None
    return Path(path)


def _held_out(data: Data, faults: list[str]) -> list[tuple]:
    if not data.eval_path:
        return []
    try:
        found = checks.read_rows(dataclasses.replace(data, path=data.eval_path, n=None), "eval_path")
    except LabError as error:
        faults.append(str(error))
        return []
    if not found:
        faults.append(f"data.eval_path: found {data.eval_path} without rows, expected at least one.")
    return found


def _raise(faults: list[str], first: str) -> None:
    if faults:
        more = [f"... and {len(faults) - 20} more."] * (len(faults) > 20)
        raise LabError("\n- ".join([f"{first} {len(faults)} fault{'s' * (len(faults) != 1)}:", *faults[:20], *more]))


def _build(parsed: dict) -> Recipe:
    sections = {"training": Training(**parsed["training"]), "data": Data(**parsed["data"])}
    return Recipe(**parsed | sections)


# Keys and values.


def _parse(given, faults: list[str]) -> dict:
    """The values that are right; what is not, is a fault."""
    if not isinstance(given, dict):
        faults.append(f"Found {values.kind(given)}, expected keys with values: {', '.join(_names(Recipe))}.")
        return {}
    values.find_unknown(given, "", _names(Recipe), faults)
    found: dict = {}
    for name, default in (("model", None), ("output", None), ("precision", "auto")):
        value = given.get(name, default)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            faults.append(values.fault(name, given, "a name" if name != "output" else "a folder"))
        else:
            found[name] = value
    if found.get("precision", "auto") not in PRECISIONS:
        faults.append(values.choice("precision", found.pop("precision"), PRECISIONS))
    if found.get("model") == POCKET and found.get("precision", "auto") not in ("auto", "float32"):
        faults.append(f"precision: found {found['precision']!r}, and the pocket model is float32. Expected auto.")
    found |= _parse_section("training", Training, given, faults) | _parse_section("data", Data, given, faults)
    training, data = found.get("training", {}), found.get("data", {})
    if training.get("lr_scheduler_type", "linear") not in SCHEDULES:
        faults.append(values.choice("training.lr_scheduler_type", training.pop("lr_scheduler_type"), SCHEDULES))
    if (report := training.get("report_to", "none")) not in REPORTS:
        faults.append(values.choice("training.report_to", training.pop("report_to"), REPORTS))
    elif report != "none" and importlib.util.find_spec(report) is None:
        faults.append(f"training.report_to: found {report}, which is not installed. Expected none, or run "
                      f"`pip install {report}`.")
    if training.get("warmup_steps", 0) >= training.get("max_steps", math.inf):
        faults.append(f"training.warmup_steps: found {training['warmup_steps']}, expected less than max_steps "
                      f"({training['max_steps']}).")
    for name in ("prompt", "answer"):
        if name in data and checks.template_fields(data[name]) is None:
            faults.append(f"data.{name}: found {reprlib.repr(data.pop(name))}, expected a text with the fields "
                          'of a row in braces, such as "> {text}".')
    found["lora"] = checks.parse_lora(given.get("lora"), "lora" in given, faults)
    return found


def _parse_section(name: str, kind, given: dict, faults: list[str]) -> dict:
    section = given.get(name, {})
    if not isinstance(section, dict):
        faults.append(f"{name}: found {values.kind(section)}, expected keys with values: {', '.join(_names(kind))}.")
        return {}
    values.find_unknown(section, f"{name}.", _names(kind), faults)
    types, found = typing.get_type_hints(kind), {}
    for f in dataclasses.fields(kind):
        if f.name in section:
            value = values.as_number(section[f.name]) if types[f.name] is float else section[f.name]
            if values.fits(value, types[f.name]) and (value is None or values.within(value, **f.metadata)):
                found[f.name] = value
                continue
        elif f.default is not dataclasses.MISSING:
            continue
        faults.append(values.fault(f"{name}.{f.name}", section, values.expected(types[f.name], **f.metadata)))
    return {name: found}


def _names(kind) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


# What the values need: processes, folders, rows, layers.


def output_faults(recipe: Recipe | dict, resume: bool) -> list[str]:
    """Return what speaks against writing to a recipe's output folder now, a sentence each.

    It may hold nothing, or with `resume` what a run of this recipe left and an adapter that nobody has changed.
    """
    recipe = recipe.as_dict() if isinstance(recipe, Recipe) else recipe
    if "output" not in recipe:
        return []
    found, expected = f"output: found {recipe['output']}", "another folder."
    try:
        folder = files.place(recipe["output"], "a folder")
        if os.path.lexists(folder) and not folder.is_dir():
            return [f"{found}, a file, expected a folder."]
        if not folder.is_dir() or not {place.name for place in folder.iterdir()} - {".lock"}:
            return []
        if not resume:
            return [f"output: found files in {recipe['output']}, expected an empty or new folder. To go on with a run "
                    "of this recipe, launch with --resume."]
        if differing := _differing(recipe, folder / COPY):
            return [f"{found} with {differing}, expected checkpoints of this recipe, or {expected}"]
        if others := files.strangers(folder / "adapter"):
            return [f"{found} with {', '.join(others[:3])} in its adapter's folder, which no training wrote or "
                    f"which was changed. Expected nothing else there: move it, or give {expected}"]
    except (OSError, LabError) as error:
        return [f"{found}, which cannot be used: {reason(error)}. Expected a folder."]
    return []


def _differing(recipe: dict, copy: Path) -> str:
    """Return in words how the run in a folder is another than `recipe`, "" if it is the same one, perhaps moved."""
    faults: list[str] = []
    try:
        theirs = _parse(values.read_yaml(copy, faults), faults)
    except LabError:
        return "files of something else in it"
    if faults or recipe.get("lora") is None or not {"max_steps", "batch_size"} <= set(recipe.get("training", ())):
        return "a broken recipe in it" if faults else ""
    try:
        mine, theirs = (_flat(_build(parsed).as_dict()) for parsed in (recipe, theirs))
    except (TypeError, KeyError):  # this recipe has faults of its own
        return ""
    free = ("output", "training.report_to", "training.eval_steps", "data.eval_path")  # none of them moves a weight
    keys = [key for key in mine | theirs if mine.get(key) != theirs.get(key) and key not in free]
    return f"a run of another recipe in it (other: {', '.join(keys)})" if keys else ""


def _flat(nested: dict) -> dict:
    return {key if not inner else f"{key}.{inner}": v for key, value in nested.items()
            for inner, v in (value.items() if isinstance(value, dict) else [("", value)])}
