"""Checks of the exercises: each runs the learner's answer on fresh inputs and says what it found."""

from __future__ import annotations

import functools
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
            found = found.cpu()
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
    found = found.cpu()
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


def absmax(function) -> Verdict:
    """Does `function(weights, block)` give the codes and scales of absmax quantisation in blocks of a row?"""
    import torch

    for rows, columns, block in ((5, 128, 64), (3, 60, 60), (4, 48, 12)):
        weights = torch.randn(rows, columns) * torch.rand(rows, 1) * 9
        found = function(weights, block)
        if not isinstance(found, tuple) or len(found) != 2:
            return _say(False, f"Expected codes and scales, found {type(found).__name__}.")
        codes, scales = (tensor.cpu() for tensor in found)
        blocks = weights.reshape(rows, -1, block)
        steps = blocks.abs().amax(-1) / 127
        if scales.numel() != steps.numel():
            return _say(False, f"A {rows} × {columns} matrix in blocks of {block} has {steps.numel()} scales; "
                               f"yours are {scales.numel()}.")
        if codes.dtype != torch.int8 or codes.shape != weights.shape:
            return _say(False, f"Expected int8 codes of shape {tuple(weights.shape)}, found {codes.dtype} of shape "
                               f"{tuple(codes.shape)}.")
        worst = (codes.reshape(blocks.shape) - blocks / steps[..., None]).abs().max().item()
        if worst > 0.501:
            return _say(False, f"In blocks of {block}, a code is {worst:.1f} steps away from its weight; rounding "
                               "allows half a step.")
    return _say(True, "Right for three block lengths.")


def fits_gpu(settings: dict, gpu_gb: float) -> Verdict:
    """Does a Llama-2-7B-shaped training of these settings fit, with 8,192 tokens a step, at the best precision?"""
    from peft import LoraConfig
    from transformers import LlamaConfig

    from . import memory

    config = LlamaConfig(dtype="bfloat16")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    if other := sorted(set(settings) - {"precision", "batch_size", "seq_len", "checkpointing"}):
        return _say(False, f"Leave out {', '.join(other)}: set precision, batch_size, seq_len and checkpointing. A "
                           "quantised base is planned as prepared.")
    tokens = settings.get("batch_size", 1) * settings.get("seq_len", 0)
    if settings.get("seq_len", 0) < 2048 or tokens < 8192:
        return _say(False, f"That is {tokens:,} tokens in rows of {settings.get('seq_len', 0):,}; wanted are 8,192 in "
                           "rows of at least 2,048.")
    own = settings.get("precision") or "bfloat16"
    planned = memory.plan(config, lora, **settings, prepared=own in ("int8", "nf4"))
    if not planned.fits(gpu_gb):
        return _say(False, f"It needs {memory.human(planned.total_bytes)}; {gpu_gb:g} GB allow {0.9 * gpu_gb:.1f}.")
    better = {"nf4": "int8", "int8": "bfloat16", "bfloat16": "float32", "float16": "float32"}.get(own)
    for rows in range(1, 5) if better else ():  # reentrant checkpointing is the kind that takes least
        if memory.plan(config, lora, better, rows, -(-8192 // rows), checkpointing="reentrant",
                       prepared=better == "int8").fits(gpu_gb):
            return _say(False, f"It fits, but {better} can be made to fit, too.")
    return _say(True, f"{planned}")


def ready(function) -> Verdict:
    """Does `function(model, config)` return a prepared model whose adapter trains under reentrant checkpointing?"""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=99)
    base = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=torch.float32)
    base.is_loaded_in_8bit = True  # what prepare_model_for_kbit_training looks at
    model = function(base, LoraConfig(task_type="CAUSAL_LM"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return _say(False, "Nothing trains.")
    if any("lora_" not in name for name in trained):
        return _say(False, "Parameters of the base train, too.")
    layers = [m for m in base.modules() if getattr(m, "gradient_checkpointing", False)]
    if not layers:
        return _say(False, "The adapter trains, but no block is checkpointed.")
    kinds = {getattr(m, "_gradient_checkpointing_func").keywords.get("use_reentrant") for m in layers}
    if False in kinds:  # not named: torch takes the reentrant one
        return _say(False, "The blocks are checkpointed in the way that leaves the inputs of 8-bit layers in memory.")
    ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    if any(p.grad is None for p in model.parameters() if p.requires_grad):
        return _say(False, "Some of the adapter gets no gradient.")
    return _say(True, "The adapter trains, the base is frozen, and nothing stays that need not.")


def new_alpha(lr: float, r: int, alpha: float) -> Verdict:
    """Does the pocket model learn with this rate, at rank `r` and `alpha`, as well as with a tuned setting?"""
    from peft import LoraConfig

    if not isinstance(lr, (int, float)) or not 0 < lr < 1:
        return _say(False, f"Expected a learning rate between 0 and 1, found {lr!r}.")
    loss = _pocket_loss(LoraConfig(r=r, lora_alpha=alpha, target_modules="all-linear"), lr)
    tuned = _tuned_loss()
    found = f"Held-out loss {loss:.3f}; rank 8 and alpha 16 reach {tuned:.3f} with their own rate."
    return _say(loss < 1.5 * tuned, found)


def flat(config) -> Verdict:
    """Does the pocket model learn with `config` and a rate of 0.01, at rank 8?"""
    return _pocket_learns(config, r=8)


def loud(config) -> Verdict:
    """Does it with rank 64 and rsLoRA?"""
    return _pocket_learns(config, r=64, use_rslora=True)


def faults(found: dict, folder) -> Verdict:
    """Does `found` name the fault of each deployment in `folder`?"""
    from . import deployments

    right = deployments.faults(folder)
    if not isinstance(found, dict) or set(found) != set(right):
        return _say(False, f"Expected a dict with the keys {', '.join(right)}.")
    if unknown := sorted({str(fault) for fault in found.values()} - set(deployments.FAULTS)):
        return _say(False, f"{unknown[0]!r} is none of {', '.join(deployments.FAULTS)}.")
    count = sum(found[name] == fault for name, fault in right.items())
    return _say(count == len(right), f"{count} of {len(right)} are right.")


def repaired(function) -> Verdict:
    """Does `function(folder, right_base, alpha)` give the model that should have been deployed, for each fault?"""
    import tempfile

    import torch
    from peft import LoraConfig, get_peft_model

    from . import deployments, pocket

    alpha, rank = random.choice((6, 10, 24)), random.choice((2, 4))
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    reference = get_peft_model(pocket.load()[0], config).eval()
    ids = torch.randint(5, 150, (2, 9))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
        expected = reference(ids).logits
        deployments.make(reference, folder)
        for name, fault in deployments.faults(folder).items():
            model = function(f"{folder}/{name}", pocket.load()[0], alpha)
            if not hasattr(model, "forward"):
                return _say(False, f"Expected a model, found {type(model).__name__}.")
            off = (model.eval()(ids.to(model.device)).logits.cpu() - expected).abs().max().item()
            if not off < 1e-3:
                return _say(False, f"The deployment with the fault {fault!r}: its logits are off by up to {off:.2g}.")
    return _say(True, "All four answer as the model that was trained.")


def repaired_recipe(recipe: dict) -> Verdict:
    """Can two processes train the pocket model by `recipe`, for the steps and layers that were asked for?"""
    import tempfile
    from pathlib import Path

    import yaml

    from . import recipes, yaml_files
    from .errors import LabError

    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder, "run"))  # the learner's own may have a run in it by now
        try:
            path = yaml_files.write(recipe | {"output": output}, Path(folder, "recipe.yaml"))
            read = recipes.read(path, processes=2)
        except (LabError, yaml.YAMLError) as error:
            return _say(False, str(error).replace(f"{folder}/", ""))
    found = (read.model, read.training.max_steps, set(read.lora.get("target_modules") or ()))
    if found != ("pocket", 20, {"q_proj", "o_proj"}):
        return _say(False, f"It can be trained by, but the pocket model, 20 steps, q_proj and o_proj were asked for. "
                           f"Found {found[0]}, {found[1]} steps, {', '.join(sorted(found[2]))}.")
    return _say(True, f"Two processes can train by it, with {read.training.batch_size // 2} rows each in a step.")


def smallest_fleet(chosen: dict) -> Verdict:
    """Do `gpus` GPUs of 12 GB in `mode` fit a step on the 7B shape, and would fewer not do?"""
    from . import fleet, memory

    gpus, mode = chosen.get("gpus"), chosen.get("mode")
    if gpus not in (1, 2, 4, 8, 16, 32, 64) or mode not in fleet.MODES:
        return _say(False, f"Expected gpus of 1, 2, 4, ... 64 and mode ddp or fsdp, found {gpus!r} and {mode!r}.")
    planned = _fleet_memory(gpus, mode)
    needs = f"{gpus} GPUs, {mode}: {memory.human(planned.total_bytes)} on each"
    if not planned.fits(12):
        return _say(False, f"{needs}; 12 GB allow 10.8.")
    if gpus > 1 and any(_fleet_memory(gpus // 2, other).fits(12) for other in fleet.MODES):
        return _say(False, f"{needs}. It fits, and half as many do, too.")
    return _say(True, f"{needs}, and half as many do not fit.")


@functools.cache
def _fleet_memory(gpus: int, mode: str):
    from peft import LoraConfig
    from transformers import LlamaConfig

    from . import fleet

    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    (share,) = fleet.plan(LlamaConfig(dtype="bfloat16"), lora, gpus=gpus, mode=mode, checkpointing=True)
    return share.memory


def per_process(function) -> Verdict:
    """Does `function(batch_size, processes, most_rows)` give equal steps in as few passes as possible?"""
    for _ in range(30):
        processes, own, most = random.choice((1, 2, 4, 8)), random.randint(1, 48), random.randint(1, 16)
        passes = next(n for n in range(1, own + 1) if own % n == 0 and own // n <= most)
        asked = f"For a batch of {own * processes}, {processes} processes and at most {most} rows"
        found = function(own * processes, processes, most)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            return _say(False, f"Expected two numbers, rows and passes, found {found!r}.")
        rows, times = found
        if rows * times * processes != own * processes:
            return _say(False, f"{asked}: {rows} rows, {times} times, makes {rows * times * processes} rows a step.")
        if rows > most:
            return _say(False, f"{asked}: {rows} rows are too many.")
        if times != passes:
            return _say(False, f"{asked}: {passes} passes are enough, and yours are {times}.")
    return _say(True, "Thirty batches are shared out rightly.")


def _pocket_learns(config, **kept) -> Verdict:
    for name, value in kept.items():
        if getattr(config, name, None) != value:
            return _say(False, f"{name} was to stay {value!r}, and is {getattr(config, name, None)!r}.")
    loss = _pocket_loss(config, 0.01)
    return _say(loss < 0.7, f"Held-out loss {loss:.3f} after 40 steps; under 0.7 is learning, 3.9 is the base.")


@functools.cache
def _tuned_loss() -> float:
    from peft import LoraConfig

    return _pocket_loss(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), 0.0135)


def _pocket_loss(config, lr: float) -> float:
    """Mean held-out loss of two seeds after 40 steps on the dialect, as the lesson on alpha trains."""
    import torch
    from peft import get_peft_model

    from . import pocket, scoring

    data = pocket.dialect(tasks.commands("train", n=1500, seed=0))
    held_out = pocket.dialect(tasks.commands("validation combinations", n=200, seed=0))
    losses = []
    for seed in (0, 1):
        small, words = pocket.load()
        torch.manual_seed(seed)
        model = get_peft_model(small, config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, fused=True)
        for step, batch in zip(range(40), pocket.stream(data, 16, seed)):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / 40)
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(scoring.quick_score(model, words, held_out).loss)
    return sum(losses) / 2


def _say(solved: bool, detail: str) -> Verdict:
    return Verdict(solved, detail, plain=True)
