"""Checks of the exercises of lesson 3: each runs the learner's answer on fresh inputs and says what it found."""

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig

from ... import memory
from ..question_kinds import Verdict
from . import say


def absmax(function) -> Verdict:
    """Check: does `function(weights, block)` give the codes and scales of absmax quantisation in blocks of a row?"""
    for rows, columns, block in ((5, 128, 64), (3, 60, 60), (4, 48, 12)):
        weights = torch.randn(rows, columns) * torch.rand(rows, 1) * 9
        found = function(weights, block)
        if not isinstance(found, tuple) or len(found) != 2:
            return say(False, f"Expected codes and scales, found {type(found).__name__}.")
        codes, scales = (tensor.cpu() for tensor in found)
        blocks = weights.reshape(rows, -1, block)
        steps = blocks.abs().amax(-1) / 127
        if scales.numel() != steps.numel():
            return say(False, f"A {rows} × {columns} matrix in blocks of {block} has {steps.numel()} scales; "
                              f"yours are {scales.numel()}.")
        if codes.dtype != torch.int8 or codes.shape != weights.shape:
            return say(False, f"Expected int8 codes of shape {tuple(weights.shape)}, found {codes.dtype} of shape "
                              f"{tuple(codes.shape)}.")
        worst = (codes.reshape(blocks.shape) - blocks / steps[..., None]).abs().max().item()
        if worst > 0.501:
            return say(False, f"In blocks of {block}, a code is {worst:.1f} steps away from its weight; rounding "
                              "allows half a step.")
    return say(True, "Right for three block lengths.")


def fits_gpu(settings: dict, gpu_gb: float) -> Verdict:
    """Check: does a training of the 7B shape with these settings fit, 8,192 tokens a step, at the best precision?"""
    config = LlamaConfig(dtype="bfloat16")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    if other := sorted(set(settings) - {"precision", "batch_size", "seq_len", "checkpointing"}):
        return say(False, f"Leave out {', '.join(other)}: set precision, batch_size, seq_len and checkpointing. A "
                          "quantised base is planned as prepared.")
    tokens = settings.get("batch_size", 1) * settings.get("seq_len", 0)
    if settings.get("seq_len", 0) < 2048 or tokens < 8192:
        return say(False, f"That is {tokens:,} tokens in rows of {settings.get('seq_len', 0):,}; wanted are 8,192 in "
                          "rows of at least 2,048.")
    own = settings.get("precision") or "bfloat16"
    planned = memory.plan(config, lora, **settings, prepared=own in ("int8", "nf4"))
    if not planned.fits(gpu_gb):
        return say(False, f"It needs {memory.human(planned.total_bytes)}; {gpu_gb:g} GB allow "
                          f"{(1 - planned.reserve) * gpu_gb:.1f}.")
    better = {"nf4": "int8", "int8": "bfloat16", "bfloat16": "float32", "float16": "float32"}.get(own)
    for rows in range(1, 5) if better else ():  # reentrant checkpointing is the kind that takes least
        if memory.plan(config, lora, better, rows, -(-8192 // rows), checkpointing="reentrant",
                       prepared=better == "int8").fits(gpu_gb):
            return say(False, f"It fits, but {better} can be made to fit, too.")
    return say(True, f"{planned}")


def ready(function) -> Verdict:
    """Check: does `function(model, config)` prepare a model whose adapter trains under reentrant checkpointing?"""
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=99)
    base = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=torch.float32)
    base.is_loaded_in_8bit = True  # what prepare_model_for_kbit_training looks at
    model = function(base, LoraConfig(task_type="CAUSAL_LM"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return say(False, "Nothing trains.")
    if any("lora_" not in name for name in trained):
        return say(False, "Parameters of the base train, too.")
    layers = [m for m in base.modules() if getattr(m, "gradient_checkpointing", False)]
    if not layers:
        return say(False, "The adapter trains, but no block is checkpointed.")
    kinds = {getattr(m, "_gradient_checkpointing_func").keywords.get("use_reentrant") for m in layers}
    if False in kinds:  # not named: torch takes the reentrant one
        return say(False, "The blocks are checkpointed in the way that leaves the inputs of 8-bit layers in memory.")
    ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    if any(p.grad is None for p in model.parameters() if p.requires_grad):
        return say(False, "Some of the adapter gets no gradient.")
    return say(True, "The adapter trains, the base is frozen, and nothing stays that need not.")
