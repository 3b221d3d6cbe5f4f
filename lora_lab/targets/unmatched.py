"""What a LoraConfig asks for and does not get: the entries that PEFT passes over in silence.

An entry has an effect if PEFT does something else without it. Where PEFT's rules for names prove that it has one, that
is enough; otherwise PEFT is asked again without the entry, and the two models are compared (`effect`).
"""

import contextlib
import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists

from ..meta_model import adapt
from . import refusals
from .layer_names import alternatives, left_out, matches, suggestion, with_stars
from .refusals import excluded, fits, listed

# PEFT's warnings for what is a problem here anyway.
PEFT_SAYS_TOO = ("The following rank_pattern", "The following alpha_pattern", "You have passed exclude_modules",
                 "target_modules=", "target_parameters=")
LEFT_OUT = "is left out again, by exclude_modules or modules_to_save. Name it in one of them."
# What a field holds when its last entry is left out: nothing, where PEFT takes an empty list for everything.
NOTHING: dict[str, Any] = {"target_modules": [], "target_parameters": [], "modules_to_save": None,
                           "layers_to_transform": [-1], "layers_pattern": ["(?!)"]}


def problems(
    model: torch.nn.Module, config: LoraConfig, report: Any, linear: list[str], adapted: PeftModel | None = None
) -> list[str]:
    """Return one sentence for each entry of `config` without effect. `linear`: the names to suggest instead.

    `adapted` is what PEFT made of the model. Where PEFT refuses it is None, and the sentences say why.
    """
    paths = [path for path, _ in model.named_modules() if path]
    if found := list(refusals.broken_expressions(config)):
        return found
    if adapted is not None:
        return list(dict.fromkeys(_without_effect(model, config, report, paths, linear, adapted)))
    with contextlib.suppress(TypeError, ValueError, AttributeError):  # what PEFT refuses may hold anything
        found.extend(refusals.why_refused(model, config, paths, linear))
    return found


def effect(adapted: PeftModel) -> dict[str, str]:
    """Return all that can be seen of a config in the model that it made: weights, what trains, ranks, scalings."""
    found = {name: f"{tuple(p.shape)} {p.requires_grad}" for name, p in adapted.named_parameters()}
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            kinds = [type(variant).__name__ for variant in layer.lora_variant.values()]
            found[name] = repr((layer.r, layer.lora_alpha, layer.scaling, layer.lora_dropout, kinds))
    return found


def notes(model: torch.nn.Module, config: LoraConfig, report: Any, adapted: PeftModel, bare: list) -> Iterator[str]:
    """Yield what is as asked for and yet easy to overlook. `bare`: weights that are no layers."""
    paths = [path for path, _ in model.named_modules() if path]
    frozen = dict.fromkeys(with_stars(path).rpartition("*.")[2] for path in bare if path not in report.parameters)
    if frozen:
        yield f"not layers but bare parameters, frozen unless target_parameters names them: {', '.join(frozen)}"
    for field in ("target_modules", "exclude_modules"):
        if isinstance(pattern := getattr(config, field), str):
            yield from _overlaps(field, pattern, paths)
    for entry in config.modules_to_save or ():
        also = sorted({with_stars(p) for p in report.saved if p.endswith(entry) and not matches(entry, p)})
        if also:
            yield f"modules_to_save: {entry!r} also matches {', '.join(also)}: PEFT compares the ends of names"
        if listed(adapted.peft_config["default"].modules_to_save).count(entry) > config.modules_to_save.count(entry):
            yield f"modules_to_save: PEFT saves {entry!r} for the task {config.task_type} anyway"
    if config.layers_to_transform == []:
        yield "layers_to_transform=[] means all layers"
    for name, patterns in (("r", config.rank_pattern), ("lora_alpha", config.alpha_pattern)):
        if patterns and all(any(fits("rank_pattern", key, path) for key in patterns)
                            for path in report.modules + report.parameters):
            yield f"{name}={getattr(config, name)} decides nothing: a pattern has another value for every adapted layer"
    if config.init_lora_weights == "lora_ga" and not any(hasattr(m, "_peft_loraga_grad") for m in model.modules()):
        yield "init_lora_weights='lora_ga' starts as True does unless peft.tuners.lora.preprocess_loraga ran before"


def _without_effect(model, config, report, paths, linear, adapted) -> Iterator[str]:
    if config.inference_mode:
        yield "inference_mode: True freezes all that PEFT adds, and 0 parameters train. Leave it out, or give False."
    if isinstance(name := config.modules_to_save, str):
        yield f"modules_to_save: PEFT takes the string {name!r} letter by letter. Write it as a list: [{name!r}]."
    if isinstance(config.target_modules, str):
        yield from refusals.dead_in_expression(model, config, paths, linear)
        yield from _left_out_again(config, paths)
    asked = copy.copy(config)  # as PEFT understood it
    asked.target_modules = adapted.peft_config["default"].target_modules
    with_all, names = effect(adapted), _Names(model, asked, report, paths, linear)
    for field, say in (("target_modules", names.target), ("layers_to_transform", names.layer),
                       ("layers_pattern", names.layers_pattern), ("target_parameters", names.parameter),
                       ("modules_to_save", names.copy)):
        value = getattr(config, field)
        entries = [] if isinstance(value, str) and field in ("target_modules", "modules_to_save") else listed(value)
        for at, entry in sorted(enumerate(entries), key=lambda item: str(item[1])):
            rest = entries[:at] + entries[at + 1 :]
            if not names.prove(field, entry, rest) and _same(model, config, with_all, field, rest or NOTHING[field]):
                yield from say(entry, rest)
    yield from _dead_exclusions(model, config, report, paths) if config.exclude_modules else ()
    for field, default in (("rank_pattern", config.r), ("alpha_pattern", config.lora_alpha)):
        every = getattr(adapted.peft_config["default"], field) or {}  # PEFT adds some for experts of older models
        asked = getattr(config, field) or {}
        yield from _dead_patterns(field, asked, every, default, report.modules + report.parameters)
    yield from _odd_numbers(config, adapted)
    if config.bias != "none" and not config.inference_mode and _same(model, config, with_all, "bias", "none"):
        held = "the adapted layers have" if config.bias == "lora_only" else "the model has"
        yield f"bias: {config.bias!r} trains nothing more: {held} no bias. Leave it out."
    yield from refusals.odd_tokens(model, config)
    for field, init in (("eva_config", "eva"), ("corda_config", "corda"), ("lora_ga_config", "lora_ga")):
        if getattr(config, field, None) is not None and config.init_lora_weights != init:
            yield f"{field}: only init_lora_weights={init!r} reads it; here it is {config.init_lora_weights!r}."


def _same(model, config, with_all, field, value) -> bool:
    """Whether PEFT makes the same of the model if `field` holds `value`."""
    rest = copy.deepcopy(config)
    setattr(rest, field, value)
    try:
        return effect(adapt(model, rest)[0]) == with_all
    except Exception:  # PEFT refuses what is left: the entry was needed
        return False


class _Names:
    """What names say of entries: proof that one does something, or the sentence for one that does nothing."""

    def __init__(self, model, asked, report, paths, linear):
        self.model, self.asked, self.report, self.paths, self.linear = model, asked, report, paths, linear

    def prove(self, field, entry, rest) -> bool:
        if field == "target_modules":  # what is tied, PEFT adapts for the sake of another
            return not getattr(self.asked, "ensure_weight_tying", False) and any(
                matches(entry, path) and not any(matches(other, path) for other in rest)
                for path in self.report.modules)
        if field != "layers_to_transform" or entry in rest:
            return False
        whole = set(listed(self.asked.target_modules))  # PEFT does not look for the layer of a whole path
        return any(path not in whole and refusals.layer(path, self.asked) == entry for path in self.report.modules)

    def target(self, entry, rest) -> Iterator[str]:
        named = [path for path in self.paths if matches(entry, path)]
        if not named or not isinstance(entry, str):
            yield refusals.no_such_target(entry, self.model, self.linear)
        elif _all_excluded(named, self.asked):
            yield f"target_modules: {entry!r} {LEFT_OUT}"
        elif others := [other for other in rest if any(matches(other, p) for p in named if p in self.report.modules)]:
            yield f"target_modules: {entry!r} adds nothing to {_listing(others)}."
        elif set(named) & set(self.report.modules):
            yield f"target_modules: {entry!r} adds nothing: its layers are tied to those of {_listing(rest)}."
        else:
            yield f"target_modules: {entry!r} is in none of the layers {self.asked.layers_to_transform}."

    def layer(self, number, rest) -> Iterator[str]:
        if number not in refusals.layers(self.paths, self.asked):
            yield refusals.no_such_layer(number, self.paths, self.asked)
        elif number in rest:
            yield f"layers_to_transform: layer {number} is there twice."
        elif number in refusals.layers(self.report.modules + self.report.parameters, self.asked):
            yield (f"layers_to_transform: {number} decides nothing: it does not limit whole paths in target_modules, "
                   "nor target_parameters.")
        else:
            yield f"layers_to_transform: layer {number} has none of the target modules, so it gets no adapter."

    def layers_pattern(self, entry, rest) -> Iterator[str]:
        if any(fits("layers_pattern", entry, path) and fits("layers_pattern", other, path) for other in rest
               for path in self.report.modules):
            yield f"layers_pattern: {entry!r} adds nothing to {_listing(rest)}."
        else:
            yield f"layers_pattern: {entry!r} decides nothing: no adapted layer is chosen by the number after it."

    def parameter(self, entry, rest) -> Iterator[str]:
        if any(matches(entry, path) for path in self.report.parameters):
            yield f"target_parameters: {entry!r} adds nothing to {_listing(rest)}."
        else:
            held = [path for path, parameter in self.model.named_parameters() if parameter.ndim > 1]
            yield f"target_parameters: {entry!r} matches no parameter.{suggestion(str(entry), held)}"

    def copy(self, entry, rest) -> Iterator[str]:
        named = [path for path in self.paths if path.endswith(entry)]  # PEFT compares ends, with or without a dot
        if not named:
            yield refusals.no_such_copy(entry, self.paths)
        elif not any(list(self.model.get_submodule(path).parameters()) for path in named):
            kind = type(self.model.get_submodule(named[0])).__name__
            yield f"modules_to_save: {entry!r} is a {kind} here, which has no weights."
        elif others := [other for other in rest
                        if any(path.endswith(other) or f".{other}." in f".{path}" for path in named)]:
            yield f"modules_to_save: {entry!r} adds nothing to {_listing(others)}."


def _listing(entries: list) -> str:
    return ", ".join(map(repr, dict.fromkeys(entries)))


def _all_excluded(paths, config) -> bool:
    return bool(paths) and all(excluded(path, config) for path in paths)


def _dead_exclusions(model, config, report, paths) -> Iterator[str]:
    wanted, free = config.exclude_modules, copy.deepcopy(config)
    free.exclude_modules = None
    try:
        targets = set(adapt(model, free)[0].base_model.targeted_module_names)
    except Exception:  # what is excluded is what PEFT refuses: by its rule for names, then, or nothing can be said
        try:
            targets = {path for path in paths if check_target_module_exists(free, path)}
        except Exception:
            return
    if isinstance(wanted, str):
        whole = [path for path in paths if re.fullmatch(wanted, path)]
        options = _each(wanted) if targets & set(whole) else ()
        named = {wanted: whole} | {option: [p for p in paths if re.fullmatch(strict, p)] for option, strict in options}
    else:
        named = {entry: [p for p in paths if matches(entry, p)] for entry in sorted(wanted, key=str)}
    for entry, found in named.items():
        others = [other for other in named if other != entry] if not isinstance(wanted, str) else []
        inside = [layer for layer in report.modules + report.parameters
                  if any(layer.startswith(f"{path}.") for path in found)]
        if not found:
            yield refusals.no_such_exclusion(entry, paths)
        elif inside and not (isinstance(wanted, str) and targets & set(found)):  # PEFT compares names of layers alone
            yield (f"exclude_modules: {entry!r} is a whole block, and {len(inside)} adapted layers in it train all the "
                   "same.")
        elif not targets & set(found):
            yield f"exclude_modules: {entry!r} excludes nothing: without it no {found[0]!r} is adapted either."
        elif others and all(any(path in named[other] for other in others) for path in targets & set(found)):
            yield f"exclude_modules: {entry!r} adds nothing to {_listing(others)}."


def _each(pattern) -> Iterator[tuple[str, str]]:
    """Alternatives, those left out that are no expression once they are cut out of one."""
    for option, strict in alternatives(pattern):
        with contextlib.suppress(re.error):
            re.compile(strict)
            yield option, strict


def _left_out_again(config, paths) -> Iterator[str]:
    """Alternatives of target_modules that match something, and nothing that PEFT then adapts."""
    fitting = [path for path in paths if re.fullmatch(config.target_modules, path)]
    for option, strict in _each(config.target_modules) if fitting else ():
        if _all_excluded([path for path in fitting if re.fullmatch(strict, path)], config):
            yield f"target_modules: every match of {option!r} {LEFT_OUT}"


def _overlaps(field, pattern, paths) -> Iterator[str]:
    """Alternatives that match something, and nothing that the others do not."""
    fitting = {path for path in paths if re.fullmatch(pattern, path)}
    for (option, strict), (_, without) in zip(alternatives(pattern), left_out(pattern)):
        with contextlib.suppress(re.error):
            own = [path for path in fitting if re.fullmatch(strict, path)]
            if own and all(re.fullmatch(without, path) for path in own):
                yield f"{field}: the others of {pattern!r} match all that {option!r} matches"


def _dead_patterns(field, patterns, every, default, adapted) -> Iterator[str]:
    fitting = [[key for key in every if fits(field, key, path)] for path in adapted]
    for key, value in patterns.items():
        if not (mine := [keys for keys in fitting if key in keys]):
            yield f"{field}: {key!r} matches none of the adapted layers.{suggestion(key, list(adapted))}"
        elif not (first := [keys for keys in mine if keys[0] == key]):
            yield f"{field}: {key!r} comes too late: {mine[0][0]!r} before it matches the same layers."
        elif all(value == (every[keys[1]] if keys[1:] else default) for keys in first):
            yield f"{field}: {key!r} decides nothing: its layers have {value} without it."


def _odd_numbers(config, adapted) -> Iterator[str]:
    """Numbers that switch an adapter off, turn it around or fill it with what is no number."""
    scalings = {layer.lora_alpha["default"]: layer.scaling["default"] for layer in adapted.modules()
                if isinstance(layer, LoraLayer)}
    for alpha, scaling in scalings.items():
        field = "lora_alpha" if alpha is config.lora_alpha or alpha == config.lora_alpha else "alpha_pattern"
        if scaling < 0:
            yield f"{field}: {alpha} makes the adapter subtract what it computes. Give a number above 0."
        elif scaling == 0:
            yield f"{field}: {alpha} makes the scaling 0: A and B add nothing and learn nothing. Give a number above 0."
        elif not math.isfinite(scaling):
            yield f"{field}: {alpha} makes the output of every adapted layer NaN. Give a number above 0."
    if config.lora_dropout == 1:
        yield "lora_dropout: 1 drops all that the adapter sees, so it learns nothing. Give a share below 1."
    elif not config.lora_dropout >= 0:
        yield f"lora_dropout: PEFT takes {config.lora_dropout} for no dropout. Give a share of 0 to below 1."
