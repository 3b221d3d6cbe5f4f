"""Checks of the exercises: each runs the learner's answer on fresh inputs and says what it found."""

from __future__ import annotations

import json
import random

from . import tasks
from .parts import Verdict


def small_adapter(config, base_config, megabytes: float) -> Verdict:
    """Does `config` adapt every linear layer in a float32 adapter file under `megabytes`?"""
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
    found = f"{size:.2f} MB of adapter weights (under {megabytes} wanted), {adapted} of {linear} layers adapted."
    return _say(solved, found)


def exact_by_device(function) -> Verdict:
    """Does `function(commands, answers)` give the share of exact answers for each device?"""
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


def lora_forward(layer_class) -> Verdict:
    """Does `layer_class(base, r, alpha, dropout)`, with parameters A and B, compute LoRA's forward?"""
    import torch

    for r, alpha, dropout in ((4, 8, 0.0), (3, 16, 0.5)):
        base = torch.nn.Linear(random.randint(5, 9), random.randint(5, 9))
        layer = layer_class(base, r, alpha, dropout)
        x = torch.randn(2, 3, base.in_features)
        with torch.no_grad():
            layer.B.normal_()
        for training in (False, True) if dropout else (False,):
            layer.train(training)
            seed = random.randrange(10**6)
            torch.manual_seed(seed)
            expected = base(x) + alpha / r * torch.nn.functional.dropout(x, dropout, training) @ layer.A.T @ layer.B.T
            torch.manual_seed(seed)
            found = layer(x)
            if found is None or found.shape != expected.shape:
                return _say(False, f"Expected an output of shape {tuple(expected.shape)}.")
            if not torch.allclose(found, expected, atol=1e-5):
                off, on = (found - expected).abs().max().item(), "on" if training else "off"
                return _say(False, f"With r={r}, alpha={alpha}, dropout {on}, the output is off by up to {off:.3f}.")
    return _say(True, "Right with two ranks and scalings, dropout on and off.")


def count_for_new_model(count: int) -> Verdict:
    """The trainable parameters of rank 16 on all linear layers of a model given by its sizes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=24,
        num_attention_heads=16, num_key_value_heads=4, head_dim=128,
    )
    with torch.device("meta"):
        model = get_peft_model(LlamaForCausalLM(sizes), LoraConfig(r=16, target_modules="all-linear"))
    right = model.get_nb_trainable_parameters()[0]
    if not isinstance(count, int):
        return _say(False, f"Expected a whole number, found {count!r}.")
    if count == right:
        return _say(True, f"PEFT counts {right:,} as well.")
    hint = "One layer costs r × (d_in + d_out); k and v have only 4 × 128 outputs."
    if count and right == 24 * count:
        hint = f"It is {right // count} times more: did you count every layer?"
    return _say(False, f"PEFT counts otherwise than {count:,}. {hint}")


def smallest_rank(function) -> Verdict:
    """Does `function(W, bound)` give the smallest rank whose relative Frobenius error is at most `bound`?"""
    import torch

    for bound in (0.5, 0.2, 0.05):
        values = torch.rand(12).sort(descending=True).values + 0.05
        rotation = torch.linalg.qr(torch.randn(20, 12))[0] * values, torch.linalg.qr(torch.randn(12, 12))[0]
        errors = ((values**2).sum() - (values**2).cumsum(0)).clamp(min=0).sqrt() / values.norm()
        right = int((errors > bound).sum()) + 1
        if min(abs(error - bound) for error in errors.tolist()) < 1e-3:
            right = None  # too close to call in float32
        found = function(rotation[0] @ rotation[1], bound)
        if right is not None and found != right:
            return _say(False, f"For an error of at most {bound} the smallest rank is {right} here; yours is {found}.")
    return _say(True, "The smallest rank for three matrices and bounds.")


def merged_weight(function) -> Verdict:
    """Does `function(W, A, B, alpha, r)` give the weight that acts as base and adapter together?"""
    import torch

    W, A, B, x = torch.randn(7, 5), torch.randn(3, 5), torch.randn(7, 3), torch.randn(4, 5)
    before = W.clone()
    found = function(W, A, B, 12, 3)
    if not torch.is_tensor(found) or found.shape != W.shape:
        return _say(False, f"Expected a matrix of shape {tuple(W.shape)}.")
    if not torch.equal(W, before):
        return _say(False, "Your function changed W itself. Return a new matrix.")
    if torch.allclose(found, W + B @ A, atol=1e-4):
        return _say(False, "That is W + BA: the scaling alpha/r is missing.")
    off = (x @ found.T - (x @ W.T + 12 / 3 * x @ A.T @ B.T)).abs().max().item()
    return _say(off < 1e-3, f"Base and adapter against your merged weight: largest difference {off:.2g}.")


def config_for_budget(config, model, budget: int = 1_000_000) -> Verdict:
    """The highest rank within `budget` on the MLP layers of blocks 15 to 29 alone, with scaling 2?"""
    from . import targets

    report = targets.inspect(model, config)
    if report.refused or report.problems:
        return _say(False, str(report))
    wanted = {path for path in targets.linear_paths(model) if ".mlp." in path and int(path.split(".")[2]) >= 15}
    if set(report.modules) != wanted:
        return _say(False, f"{len(set(report.modules) & wanted)} of the {len(wanted)} layers meant are adapted, "
                           f"and {len(set(report.modules) - wanted)} others.")
    if config.rank_pattern or config.alpha_pattern:
        return _say(False, "One rank and one alpha for all of them, please: no patterns.")
    scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    if scaling != 2:
        return _say(False, f"The right layers, but the scaling is {scaling:g}.")
    over, room = report.trainable > budget, report.trainable * (config.r + 1) / config.r <= budget
    advice = " That is over the budget." if over else " There is room for a higher rank." if room else ""
    found = f"{report.trainable:,} of {budget:,} parameters, at rank {config.r}."
    return _say(not over and not room, found + advice)


def repaired_configs(configs: list, model) -> Verdict:
    """Do three configs do what their comments say?"""
    from . import targets

    if len(configs) != 3:
        return _say(False, f"Expected three configs, found {len(configs)}.")
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
            return _say(False, f"Config {number}: {report}")
        if set(report.modules) != modules or report.saved != saved:
            return _say(False, f"Config {number} adapts {len(report.modules)} layers and trains {len(report.saved)} "
                               f"modules in full; meant were {len(modules)} and {len(saved)}.")
    return _say(True, "All three do what was meant.")


def predicted_count(count: int, config, model) -> Verdict:
    """Is `count` what `config` trains?"""
    from . import targets

    right = targets.check(model, config).trainable
    if not isinstance(count, int):
        return _say(False, f"Expected a whole number, found {count!r}.")
    if count == right:
        return _say(True, f"{right:,} it is.")
    rule = "For each layer: its rank × (inputs + outputs), times the number of such layers."
    return _say(False, f"It is not {count:,}. {rule}")


def _say(solved: bool, detail: str) -> Verdict:
    return Verdict(solved, detail, plain=True)
