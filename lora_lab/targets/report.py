"""What a LoraConfig will adapt in a model, before any training: which layers, how many parameters.

PEFT itself decides (`meta_model.adapt`); what a config asks for and does not get is found in `unmatched`, why PEFT
refuses one in `refusals`. Drawing is in `plots`.
"""

import copy
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from transformers.pytorch_utils import Conv1D

from ..errors import LabError, expect, reason
from ..meta_model import adapt, linear_shape
from . import unmatched
from .layer_names import with_stars


@dataclass(frozen=True)
class Group:
    """Linear layers that differ only in their numbers: `where` is their path with the numbers as `*`.

    `shape` is (out, in), or the shape of the one parameter that holds all experts of a layer. `paths`
    are the layers' full names.
    """

    name: str
    where: str
    kind: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]


@dataclass
class Report:
    """What a config does to a model.

    `modules` and `parameters` are the full names of what PEFT adapts; `saved` is trained as a full copy
    (modules_to_save); `trainable` counts parameters in all, as PEFT does; `per_path` those of each adapted layer, where
    adapters of tied layers count once, for the first. `ranks` are the ranks of the adapted modules.
    `problems` lists what the config asks for and does not get: entries that could be left out without a change, and
    settings that switch an adapter off or turn it around. `refused` is PEFT's error, if it raises.
    `notes` lists what is as asked for, in another place or twice, and easy to overlook. Notes are no problems:
    bare parameters that stay frozen; alternatives of a regular expression that overlap, as general ones do; a name in
    modules_to_save that also matches others, or that PEFT saves for the task anyway; `layers_to_transform=[]`, which
    means all; an `r` or `lora_alpha` that patterns replace everywhere, since a config always has one;
    `init_lora_weights="lora_ga"` before `preprocess_loraga` ran; and what else PEFT warns of.
    """

    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    trainable: int = 0
    per_path: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            first = f"get_peft_model refuses: {self.refused}"
        else:
            layers, copies = len(self.modules + self.parameters), len(self.saved)
            first = f"{self.trainable:,} parameters will train, in {layers} adapted layer{'s' * (layers != 1)}"
            first += f" and {copies} full cop{'y' if copies == 1 else 'ies'}" if copies else ""
        return "\n".join([first, *(f"- {text}" for text in self.problems), *(f"- note: {text}" for text in self.notes)])


class TargetError(LabError):
    """A config that does not do all it says. `report` has the details."""

    def __init__(self, report: Report):
        silent = "" if report.refused else "PEFT accepts this config, and part of it has no effect.\n"
        super().__init__(silent + str(report))
        self.report = report


def check(model: torch.nn.Module, config: LoraConfig) -> Report:
    """Do as `inspect`, but raise TargetError where PEFT refuses the config or any entry of it has no effect."""
    report = inspect(model, config)
    if report.refused or report.problems:
        raise TargetError(report)
    return report


def inspect(model: torch.nn.Module, config: LoraConfig) -> Report:
    """Return what `get_peft_model(model, config)` will adapt and what it will leave out. Changes neither.

    Raises LabError for what is no model or no LoraConfig, and for a model that has an adapter.
    """
    expect(isinstance(model, torch.nn.Module), "model", model, "a model, such as AutoModelForCausalLM loads")
    if isinstance(model, PeftModel):
        raise LabError("This model has an adapter already. Give the model as it was before get_peft_model.")
    if not isinstance(config, LoraConfig):
        raise LabError(f"Expected a LoraConfig, found {type(config).__name__}.")
    try:
        adapted, said = adapt(model, config)
    except Exception as error:  # whatever PEFT has against this config is the answer
        report = Report(refused=f"{type(error).__name__}: {reason(error, 200)}")
        report.problems = tuple(unmatched.problems(model, config, report, linear_paths(model)))
        return report
    tuner = adapted.base_model
    report = Report(
        modules=tuple(tuner.targeted_module_names),
        parameters=tuple(tuner.targeted_parameter_names),
        saved=tuple(n for n, m in tuner.model.named_modules() if isinstance(m, ModulesToSaveWrapper)),
        trainable=_trainable(adapted),
        ranks={n: tuner.model.get_submodule(n).r["default"] for n in tuner.targeted_module_names},
        per_path=_per_path(tuner.model),
    )
    asked = copy.copy(config)
    if config.target_modules is None:  # PEFT's own choice for this kind of model
        asked.target_modules = adapted.peft_config["default"].target_modules
    report.problems = tuple(unmatched.problems(model, config, report, linear_paths(model), adapted))
    bare = [path for group in groups(model) if group.kind == "Parameter" for path in group.paths]
    warned = [f"PEFT warns: {reason(text, 200)}" for text in said if not text.startswith(unmatched.PEFT_SAYS_TOO)]
    report.notes = tuple(dict.fromkeys((*unmatched.notes(model, asked, report, adapted, bare), *warned)))
    return report


def groups(model: torch.nn.Module) -> list[Group]:
    """Return the linear layers of `model` by name and shape, in the model's order; also experts held as parameters."""
    found: dict[tuple, list[str]] = {}
    for path, module in model.named_modules():
        if (shape := linear_shape(module)) is not None:
            found.setdefault((with_stars(path), type(module).__name__, shape), []).append(path)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}"
            if _is_bare(module, full, parameter):
                found.setdefault((with_stars(full), "Parameter", tuple(parameter.shape)), []).append(full)
    return [
        Group(where.rpartition(".")[2], where, kind, shape, tuple(paths))
        for (where, kind, shape), paths in found.items()
    ]


def linear_paths(model: torch.nn.Module) -> list[str]:
    """Return the full names of the linear layers of `model`, experts held as parameters left out."""
    return [path for group in groups(model) if group.kind != "Parameter" for path in group.paths]


def _is_bare(module, name: str, parameter) -> bool:
    """Whether `parameter` is a weight matrix, or several, that no layer of its own holds: mostly experts."""
    if isinstance(module, (Conv1D, torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd)):
        return False
    return parameter.ndim == 3 or (parameter.ndim == 2 and "expert" in name)


def _per_path(model) -> dict[str, int]:
    """How many parameters train at each layer that PEFT adapts; what several share counts once, for the first."""
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        nested = tuple(f"{name}." for name, child in layer.named_modules() if name and isinstance(child, LoraLayer))
        own = {_memory(p): p.numel() for name, p in layer.named_parameters()  # tokens trained in full are no LoRA
               if p.requires_grad and not name.startswith(nested) and "token_adapter." not in name}
        if hasattr(layer, "parameter_name"):  # the wrappers of one module's parameters are nested
            path = f"{path.replace('.base_layer', '')}.{layer.parameter_name}"
        counts[path] = sum(size for memory, size in own.items() if memory not in seen)
        seen |= own.keys()
    return counts


def _memory(parameter) -> int:
    """What tells a parameter's memory from all others: adapters of tied layers are views of one."""
    return parameter.untyped_storage()._cdata


def _trainable(module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
