"""What a LoraConfig asks for and does not get: the entries that PEFT passes over in silence.

An entry is alive if PEFT adapts something because of it. Names are compared by PEFT's rules (`names`),
and where a name alone cannot tell, PEFT is asked again without the entry (`skeleton`).
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from ..meta_model import adapt
from .layer_names import alternatives, matches, suggestion, with_stars

# PEFT's warnings for what is a problem here anyway.
PEFT_SAYS_TOO = ("The following rank_pattern", "The following alpha_pattern", "You have passed exclude_modules")
# What PEFT says where nothing matched; PEFT 0.19 has no error class for it.
NO_MATCH = ("All modules were excluded", "No `target_modules` passed", "not found in the base model",
            "No modules were targeted")


def problems(model: torch.nn.Module, config: LoraConfig, report: Any, linear: list[str]) -> Iterator[str]:
    """Yield one sentence for each entry of `config` without effect. `linear`: the names to suggest instead."""
    paths = [path for path, _ in model.named_modules() if path]
    if broken := list(_broken_expressions(config)):
        yield from broken
        return
    if isinstance(config.target_modules, str):
        if config.target_modules.lower() != "all-linear":
            yield from _dead_in_regex(model, config, report, paths, linear)
    else:
        yield from _dead_in_list(model, config, report, paths, linear)
    yield from _unsupported(model, config, report, paths)
    yield from _dead_layers(config, report, paths)
    yield from _dead_exclusions(config, paths)
    yield from _excluded_blocks(config, report, paths)
    held = [path for path, parameter in model.named_parameters() if parameter.ndim > 1]
    for entry in sorted(config.target_parameters or ()):
        if not report.refused and not any(matches(entry, path) for path in report.parameters):
            yield f"target_parameters: {entry!r} matches no parameter.{suggestion(entry, held)}"
    for entry in config.modules_to_save or ():
        if not any(path.endswith(entry) for path in paths):  # PEFT compares ends, with or without a dot
            yield f"modules_to_save: {entry!r} matches no module.{suggestion(entry, paths)}"
    if not report.refused:
        for field in ("rank_pattern", "alpha_pattern"):
            yield from _dead_patterns(field, getattr(config, field) or {}, report.modules + report.parameters)
    yield from _dead_tokens(model, config)


def _broken_expressions(config) -> Iterator[str]:
    fields = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern")
    for field in fields:
        value = getattr(config, field) or ()
        if isinstance(value, (list, set, tuple)) and field in ("target_modules", "exclude_modules"):
            continue  # plain names
        for expression in [value] if isinstance(value, str) else value:
            try:
                re.compile(expression)
            except re.error as error:
                yield f"{field}: {expression!r} is no regular expression: {error}."


def notes(model: torch.nn.Module, config: LoraConfig, report: Any, adapted: PeftModel, bare: list) -> Iterator[str]:
    """Yield what is as asked for and yet easy to overlook. `bare`: weights that are no layers."""
    frozen = dict.fromkeys(with_stars(path).rpartition("*.")[2] for path in bare if path not in report.parameters)
    if frozen:
        yield f"not layers but bare parameters, frozen unless target_parameters names them: {', '.join(frozen)}"
    for entry in () if isinstance(config.target_modules, str) else sorted(config.target_modules or ()):
        if _all_excluded([path for path, _ in model.named_modules() if matches(entry, path)], config):
            yield f"target_modules: every {entry!r} is left out again, by exclude_modules or modules_to_save"
    for entry in config.modules_to_save or ():
        also = sorted({with_stars(p) for p in report.saved if p.endswith(entry) and not matches(entry, p)})
        if also:
            yield f"modules_to_save: {entry!r} also matches {', '.join(also)}: PEFT compares the ends of names"
    if config.layers_to_transform == []:
        yield "layers_to_transform=[] means all layers"
    if config.bias != "none" and not any(
        p.requires_grad and "lora_" not in n and n.endswith("bias") for n, p in adapted.named_parameters()
    ):
        yield f"bias={config.bias!r} trains nothing more: there is no bias to train"


def _dead_in_list(model, config, report, paths, linear) -> Iterator[str]:
    for entry in sorted(config.target_modules or (), key=str):
        named = [path for path in paths if matches(entry, path)]
        if any(matches(entry, path) for path in report.modules):
            continue
        if not isinstance(entry, str):
            yield f"target_modules: {entry!r} is a {type(entry).__name__}, not a name."
        elif not named:
            if not _does_something(model, config, entry, report):
                yield f"target_modules: {entry!r} matches nothing.{_hint(entry, model)}{suggestion(entry, linear)}"
        elif config.layers_to_transform is not None and not (report.refused or _all_excluded(named, config)):
            yield f"target_modules: {entry!r} is in none of the layers {config.layers_to_transform}."


def _does_something(model, config, entry, report) -> bool:
    """Whether leaving `entry` out changes what PEFT adapts; it renames some experts' layers, for instance."""
    rest = copy.deepcopy(config)
    rest.target_modules = set(config.target_modules) - {entry}
    if report.refused or (not rest.target_modules and not rest.target_parameters):
        return not report.refused
    try:
        without, _ = adapt(model, rest)
    except Exception:  # PEFT refuses what is left: the entry was needed
        return True
    tuner = without.base_model
    return (tuner.targeted_module_names, tuner.targeted_parameter_names) != (
        list(report.modules), list(report.parameters)
    )


def _dead_in_regex(model, config, report, paths, linear) -> Iterator[str]:
    pattern = config.target_modules
    found = [path for path in paths if re.fullmatch(pattern, path)]
    if not found and report.refused:
        if any(matches(pattern, path) for path in paths):
            yield (
                f"target_modules: the string {pattern!r} is read as a regular expression for a layer's whole path. "
                f"Write it as a list: [{pattern!r}]."
            )
        else:
            yield f"target_modules: no layer's whole path fits {pattern!r}.{suggestion(pattern, linear)}"
        return
    for option, strict in alternatives(pattern):
        try:
            alive = any(re.fullmatch(strict, path) for path in paths) or _adapts(model, config, strict)
        except re.error:
            continue  # cut out of its expression it is none: nothing can be said
        if not alive:
            miss = f"target_modules: the alternative {option!r} of {pattern!r} matches nothing."
            yield miss + suggestion(option, linear)


def _adapts(model, config, pattern) -> bool:
    alone = copy.deepcopy(config)
    alone.target_modules = pattern
    try:
        adapt(model, alone)
    except Exception as error:  # any other: it reached something, even if PEFT wants more
        return type(error).__name__ != "NoMatchingPeftModuleError" and not any(text in str(error) for text in NO_MATCH)
    return True


def _unsupported(model, config, report, paths) -> Iterator[str]:
    """Entries that name modules of a type PEFT has no LoRA layer for."""
    if not report.refused or not config.target_modules:
        return
    asked, wanted = set(), config.target_modules
    for path, module in model.named_modules():
        if not path or _excluded(path, config):
            continue
        if re.fullmatch(wanted, path) if isinstance(wanted, str) else any(matches(entry, path) for entry in wanted):
            asked.add((type(module), path.rpartition(".")[2], path))
    seen = set()
    for kind, name, path in sorted(asked, key=lambda item: item[2]):
        if (kind, name) in seen:
            continue
        seen.add((kind, name))
        try:
            adapt(model, LoraConfig(target_modules=[path]))  # nothing but the module itself can be refused here
        except ValueError:
            yield f"target_modules: {name!r} is a {kind.__name__} here, which PEFT cannot adapt."


def _dead_layers(config, report, paths) -> Iterator[str]:
    wanted = config.layers_to_transform
    if wanted is None or wanted == [] or isinstance(config.target_modules, str):
        return
    there = {number for path in paths if (number := _layer(path, config)) is not None}
    reached = {_layer(path, config) for path in report.modules}
    for number in [wanted] if isinstance(wanted, int) else wanted:
        if number not in there:
            yield f"layers_to_transform: there is no layer {number}; the layers are {_span(there)}."
        elif number not in reached and not report.refused:
            yield f"layers_to_transform: layer {number} has none of the target modules, so it gets no adapter."


def _layer(path, config) -> int | None:
    """The number that PEFT takes for the layer's."""
    pattern = config.layers_pattern
    for name in [pattern] if isinstance(pattern, str) and pattern else pattern or [None]:
        expression = r".*?\.[^.]*\.(\d+)\." if name is None else rf"(?:^|.*?\.){name}\.(\d+)\."
        if found := re.match(expression, path):
            return int(found[1])
    return None


def _span(numbers: set[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else "not numbered"


def _excluded(path, config) -> bool:
    for module in config.modules_to_save or ():
        if re.match(rf"(^|.*\.){module}($|\..*)", path):
            return True
    wanted = config.exclude_modules or ()
    return bool(re.fullmatch(wanted, path)) if isinstance(wanted, str) else any(matches(e, path) for e in wanted)


def _all_excluded(paths, config) -> bool:
    return bool(paths) and all(_excluded(path, config) for path in paths)


def _dead_exclusions(config, paths) -> Iterator[str]:
    wanted = config.exclude_modules or ()
    if not isinstance(wanted, str):
        for entry in sorted(wanted):
            if not any(matches(entry, path) for path in paths):
                yield f"exclude_modules: {entry!r} matches nothing, so it excludes nothing.{suggestion(entry, paths)}"
        return
    for option, pattern in [(wanted, wanted), *alternatives(wanted)]:
        try:
            if not any(re.fullmatch(pattern, path) for path in paths):
                yield f"exclude_modules: {option!r} matches nothing, so it excludes nothing.{suggestion(option, paths)}"
        except re.error:
            continue


def _excluded_blocks(config, report, paths) -> Iterator[str]:
    """PEFT compares names of layers: to exclude the block around them excludes nothing."""
    for entry in () if isinstance(config.exclude_modules, str) else sorted(config.exclude_modules or (), key=str):
        inside = {layer for path in paths if matches(entry, path) for layer in report.modules
                  if layer.startswith(f"{path}.")}
        if inside:
            count = len(inside)
            yield f"exclude_modules: {entry!r} is a whole block, and {count} adapted layers in it train all the same."


def _dead_patterns(field, patterns, adapted) -> Iterator[str]:
    def fits(key, path):
        return re.match(rf"(.*\.)?({key})$", path)

    first = {path: next((key for key in patterns if fits(key, path)), None) for path in adapted}
    for key in patterns:
        fitting = [path for path in adapted if fits(key, path)]
        if not fitting:
            yield f"{field}: {key!r} matches none of the adapted layers.{suggestion(key, list(adapted))}"
        elif key not in first.values():
            yield f"{field}: {key!r} comes too late: {first[fitting[0]]!r} before it matches the same layers."


def _dead_tokens(model, config) -> Iterator[str]:
    wanted = config.trainable_token_indices
    if not wanted or not hasattr(model, "get_input_embeddings"):
        return
    for name, tokens in wanted.items() if isinstance(wanted, dict) else [(None, wanted)]:
        tables = [module for path, module in model.named_modules() if name and path.endswith(name)]
        table = model.get_input_embeddings() if name is None else tables[0] if tables else None
        if table is None:
            yield f"trainable_token_indices: {name!r} matches no module."
        elif isinstance(table, torch.nn.Embedding):
            size = table.num_embeddings
            for token in (token for token in tokens if not 0 <= token < size):
                yield f"trainable_token_indices: there is no token {token}; the vocabulary has {size:,}."


def _hint(entry: str, model) -> str:
    if entry.lower() == "all-linear":
        return ' "all-linear" is a word of its own: give it as a string, not in a list.'
    if any(matches(entry, path) for path, _ in model.named_parameters()):
        if entry.endswith((".weight", ".bias")):
            return " It names a parameter; target_modules wants the layer that holds it."
        return f" It is a parameter, not a layer: use target_parameters=[{entry!r}]."
    if re.search(r"[*\\^$|()\[\]]", entry):
        return " Entries of a list are plain names; a regular expression must be the whole target_modules, as a string."
    return ""
