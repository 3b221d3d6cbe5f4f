"""Checks of the exercises of lesson 2: each runs the learner's answer on fresh inputs and says what it found."""

import copy

from ... import targets
from ..question_kinds import Verdict
from . import say


def config_for_budget(config, model, budget: int = 1_000_000) -> Verdict:
    """Check: is it the highest rank within `budget` on the MLP layers of blocks 15 to 29 alone, with scaling 2?"""
    report = targets.inspect(model, config)
    if report.refused or report.problems:
        return say(False, str(report))
    wanted = {path for path in targets.linear_paths(model) if ".mlp." in path and int(path.split(".")[2]) >= 15}
    if set(report.modules) != wanted:
        return say(False, f"{len(set(report.modules) & wanted)} of the {len(wanted)} layers meant are adapted, "
                          f"and {len(set(report.modules) - wanted)} others.")
    if config.rank_pattern or config.alpha_pattern:
        return say(False, "One rank and one alpha for all of them, please: no patterns.")
    scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    if scaling != 2:
        return say(False, f"The right layers, but the scaling is {scaling:g}.")
    over, room = report.trainable > budget, report.trainable * (config.r + 1) / config.r <= budget
    advice = " That is over the budget." if over else " There is room for a higher rank." if room else ""
    found = f"{report.trainable:,} of {budget:,} parameters, at rank {config.r}."
    return say(not over and not room, found + advice)


def repaired_configs(configs: list, model) -> Verdict:
    """Check: do three configs do what their comments say?"""
    if len(configs) != 3:
        return say(False, f"Expected three configs, found {len(configs)}.")
    linear = targets.linear_paths(model)
    last = max(int(path.split(".")[2]) for path in linear if ".layers." in path)
    ends = (".q_proj", ".v_proj")
    meant = [
        ({path for path in linear if ".self_attn." in path}, ()),
        ({path for path in linear if path.endswith(ends) and path.split(".")[2] in ("0", str(last))}, ()),
        ({path for path in linear if ".mlp." in path}, ("model.norm",)),
    ]
    for number, (config, (modules, saved)) in enumerate(zip(configs, meant, strict=True), 1):
        report = targets.inspect(model, config)
        if report.refused or report.problems:
            return say(False, f"Config {number}: {report}")
        if set(report.modules) != modules or report.saved != saved:
            kinds = [("adapted", set(report.modules), modules), ("trained in full", set(report.saved), set(saved))]
            slips = [f"{min(left)} is {'not ' * missing}{kind}, which was {'' if missing else 'not '}meant"
                     for kind, has, wants in kinds
                     for left, missing in ((wants - has, True), (has - wants, False)) if left]
            return say(False, f"Config {number} adapts {len(report.modules)} layers and trains {len(report.saved)} "
                              f"modules in full; meant were {len(modules)} and {len(saved)}. {'; '.join(slips)}.")
    return say(True, "All three do what was meant.")


def predicted_count(count: int, config, model) -> Verdict:
    """Check: is `count` what `config` trains?"""
    right = targets.check(model, config).trainable
    if not isinstance(count, int):
        return say(False, f"Expected a whole number, found {count!r}.")
    if count == right:
        return say(True, f"{right:,} it is.")
    name, other = next(iter(config.rank_pattern.items()), ("", config.r))
    blocks = config.layers_to_transform
    slips = {
        "You left out `rank_pattern`.": dict(rank_pattern={}),
        "You counted all blocks; `layers_to_transform` keeps some.": dict(layers_to_transform=None),
        "That is one block.": dict(layers_to_transform=blocks[:1] if isinstance(blocks, list) else blocks),
        "You swapped the two ranks.": dict(r=other, rank_pattern={name: config.r}),
    }
    for slip, changed in slips.items():
        slipped = copy.deepcopy(config)
        vars(slipped).update(changed)
        if count == targets.inspect(model, slipped).trainable:
            return say(False, f"It is not {count:,}. {slip}")
    rule = "For each layer: its rank × (inputs + outputs), times the number of such layers."
    return say(False, f"It is not {count:,}. {rule}")
