"""Why PEFT refuses a LoraConfig, as far as its names say; and how PEFT reads them, for `unmatched` as well."""

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator

import torch
from peft import LoraConfig

from ..meta_model import adapt
from .layer_names import alternatives, matches, suggestion

# What PEFT says where nothing matched; PEFT 0.19 has no error class for it.
NO_MATCH = ("All modules were excluded", "No `target_modules` passed", "not found in the base model",
            "No modules were targeted")
# How PEFT writes what a field holds into an expression of its own.
EXPRESSIONS = {
    "target_modules": "{}", "exclude_modules": "{}", "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "modules_to_save": r"(^|.*\.){}($|\..*)", "rank_pattern": r"(.*\.)?({})$", "alpha_pattern": r"(.*\.)?({})$",
}


def fits(field: str, entry: object, path: str) -> re.Match | None:
    """Return the match of `path` by an `entry` of `field`, as PEFT compares them, or None."""
    return re.match(EXPRESSIONS[field].replace("{}", str(entry)), path)


def listed(value: object) -> list:
    """Return the entries of a field that holds a list, a set, one entry or None."""
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def broken_expressions(config: LoraConfig) -> Iterator[str]:
    """Yield a sentence for each entry that makes no regular expression where PEFT wants one."""
    for field, form in EXPRESSIONS.items():
        value = getattr(config, field) or ()
        if field in ("target_modules", "exclude_modules") and not isinstance(value, str):
            continue  # plain names
        for expression in listed(value):
            try:
                re.compile(form.replace("{}", str(expression)))
            except re.error as error:
                yield f"{field}: {expression!r} is no regular expression: {error.msg}."


def why_refused(model: torch.nn.Module, config: LoraConfig, paths: list[str], linear: list[str]) -> Iterator[str]:
    """Yield what in `config` can be a reason why PEFT refuses it. `linear`: the names to suggest instead."""
    if isinstance(config.target_modules, str):
        yield from dead_in_expression(model, config, paths, linear)
    else:
        for entry in sorted(config.target_modules or (), key=str):
            if not any(matches(entry, path) for path in paths):
                yield no_such_target(entry, model, linear)
    yield from _unsupported(model, config)
    there = layers(paths, config)
    for number in () if isinstance(config.target_modules, str) else listed(config.layers_to_transform):
        if number not in there:
            yield no_such_layer(number, paths, config)
    wanted = config.exclude_modules or ()
    if isinstance(wanted, str):
        wanted = () if any(re.fullmatch(wanted, path) for path in paths) else (wanted,)
    for entry in sorted(wanted, key=str):
        if isinstance(config.exclude_modules, str) or not any(matches(entry, path) for path in paths):
            yield no_such_exclusion(entry, paths)
    for entry in config.modules_to_save or ():
        if not any(path.endswith(entry) for path in paths):  # PEFT compares ends, with or without a dot
            yield no_such_copy(entry, paths)
    yield from odd_tokens(model, config)


def dead_in_expression(model, config, paths, linear) -> Iterator[str]:
    """Yield a sentence for a regular expression as target_modules that fits nothing, or for each such alternative."""
    pattern = config.target_modules
    if pattern.lower() == "all-linear":
        return
    if not any(re.fullmatch(pattern, path) for path in paths) and not _adapts(model, config, pattern):
        if any(matches(pattern, path) for path in paths):
            yield (f"target_modules: the string {pattern!r} is read as a regular expression for a layer's whole path. "
                   f"Write it as a list: [{pattern!r}].")
        else:
            yield f"target_modules: no layer's whole path fits {pattern!r}.{suggestion(pattern, linear)}"
        return
    for option, strict in alternatives(pattern):
        with contextlib.suppress(re.error):  # cut out of its expression it is none: nothing can be said
            if not any(re.fullmatch(strict, path) for path in paths) and not _adapts(model, config, strict):
                miss = f"target_modules: the alternative {option!r} of {pattern!r} matches nothing."
                yield miss + suggestion(option, linear)


def _adapts(model, config, pattern) -> bool:
    """Whether PEFT adapts something because of `pattern`, by names of older models for instance."""
    alone = copy.deepcopy(config)
    alone.target_modules, alone.target_parameters = pattern, None
    try:
        adapt(model, alone)
    except Exception as error:  # any other: it reached something, even if PEFT wants more
        return type(error).__name__ != "NoMatchingPeftModuleError" and not any(text in str(error) for text in NO_MATCH)
    return True


def _unsupported(model, config) -> Iterator[str]:
    """Yield a sentence for each entry that names modules of a type PEFT has no LoRA layer for."""
    wanted, seen = config.target_modules or (), set()
    for path, module in sorted(model.named_modules(), key=lambda item: item[0]):
        kind, name = type(module), path.rpartition(".")[2]
        if not path or (kind, name) in seen or excluded(path, config):
            continue
        if re.fullmatch(wanted, path) if isinstance(wanted, str) else any(matches(entry, path) for entry in wanted):
            seen.add((kind, name))
            try:
                adapt(model, LoraConfig(target_modules=[path]))  # nothing but the module itself can be refused here
            except ValueError:
                yield f"target_modules: {name!r} is a {kind.__name__} here, which PEFT cannot adapt."


def layer(path: str, config: LoraConfig) -> int | None:
    """Return the number that PEFT takes for that of the layer in `path`."""
    for name in listed(config.layers_pattern or None):
        if found := fits("layers_pattern", name, path):
            return int(found["idx"])
    found = None if config.layers_pattern else re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", path)
    return int(found["idx"]) if found else None


def layers(paths: Iterable[str], config: LoraConfig) -> set[int]:
    """Return the numbers of all layers in `paths`."""
    return {number for path in paths if (number := layer(path, config)) is not None}


def excluded(path: str, config: LoraConfig) -> bool:
    """Return whether PEFT leaves `path` alone, whatever the targets: by exclude_modules or modules_to_save."""
    if any(fits("modules_to_save", name, path) for name in config.modules_to_save or ()):
        return True
    wanted = config.exclude_modules or ()
    return bool(re.fullmatch(wanted, path)) if isinstance(wanted, str) else any(matches(e, path) for e in wanted)


def odd_tokens(model: torch.nn.Module, config: LoraConfig) -> Iterator[str]:
    """Yield a sentence for each of trainable_token_indices that is no token, or is there twice."""
    wanted = config.trainable_token_indices
    if wanted is None or not hasattr(model, "get_input_embeddings"):
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
        for token in dict.fromkeys(token for token in tokens if list(tokens).count(token) > 1):
            yield f"trainable_token_indices: token {token} is there twice."
        if not tokens:
            yield "trainable_token_indices: an empty list trains nothing. Name tokens, or leave the field out."


def no_such_target(entry: object, model: torch.nn.Module, linear: list[str]) -> str:
    """Return the sentence for an entry of target_modules that matches nothing."""
    if not isinstance(entry, str):
        return f"target_modules: {entry!r} is a {type(entry).__name__}, not a name."
    return f"target_modules: {entry!r} matches nothing.{_hint(entry, model)}{suggestion(entry, linear)}"


def no_such_exclusion(entry: object, paths: list[str]) -> str:
    """Return the sentence for an entry of exclude_modules that matches nothing."""
    return f"exclude_modules: {entry!r} matches nothing, so it excludes nothing.{suggestion(str(entry), paths)}"


def no_such_copy(entry: str, paths: list[str]) -> str:
    """Return the sentence for an entry of modules_to_save that matches nothing."""
    return f"modules_to_save: {entry!r} matches no module.{suggestion(entry, paths)}"


def no_such_layer(number: object, paths: list[str], config: LoraConfig) -> str:
    """Return the sentence for an entry of layers_to_transform that the model does not have."""
    there = layers(paths, config)
    if config.layers_pattern and not there:
        before = dict.fromkeys(found[1] for path in paths if (found := re.search(r"([^.]+)\.\d+\.", path)))
        given = ", ".join(map(repr, listed(config.layers_pattern)))
        return (f"layers_pattern: no layer's number follows {given}, so there is no layer {number}. Here the numbers "
                f"follow {', '.join(map(repr, before)) or 'nothing: no layers are numbered'}.")
    span = f"{min(there)} to {max(there)}" if there else "not numbered"
    return f"layers_to_transform: there is no layer {number}; the layers are {span}."


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
