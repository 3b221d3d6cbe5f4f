"""Checks of the exercises of lesson 4: each runs the learner's answer on fresh inputs and says what it found."""

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig

from ... import memory
from ..question_kinds import Verdict
from . import say


def mean_loss(function) -> Verdict:
    """Check: does `function(head, hidden, labels, size)` give the mean loss of the labels that count, in pieces?"""
    for places, size, masked in ((12, 5, 4), (40, 8, 19), (9, 9, 3)):
        widest: list[int] = []

        def head(hidden, scores=torch.nn.Linear(6, 11)):
            widest.append(hidden.shape[0])
            return scores(hidden)

        hidden, labels = torch.randn(places, 6, requires_grad=True), torch.randint(0, 11, (places,))
        labels[:masked] = -100
        found = function(head, hidden, labels, size)
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            return say(False, f"Expected one number, as a tensor, found {type(found).__name__}.")
        if not widest or max(widest) > size:
            return say(False, f"In pieces of {size}, the head got {max(widest, default=0)} places at a time.")
        if not found.requires_grad:
            return say(False, "The loss has lost its gradient: nothing would train.")
        wanted = torch.nn.functional.cross_entropy(head(hidden), labels).item()
        if abs(found.item() - wanted) > 1e-4 * wanted or found.isnan().item():
            return say(False, f"{places - masked} of {places} labels count, in pieces of {size}: the loss is "
                              f"{wanted:.4f}, yours {found.item():.4f}.")
    return say(True, "Right, in pieces of three lengths, and with a piece in which no label counts.")


def fits_gpu(settings: dict, gpu_gb: float) -> Verdict:
    """Check: does a training of the 7B shape with these settings fit, 4,096 tokens a step, at the best precision?"""
    config = LlamaConfig(dtype="bfloat16")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    if other := sorted(set(settings) - {"precision", "batch_size", "seq_len", "checkpointing"}):
        return say(False, f"Leave out {', '.join(other)}: set precision, batch_size, seq_len and checkpointing. A "
                          "quantised base is planned as prepared.")
    tokens = settings.get("batch_size", 1) * settings.get("seq_len", 0)
    if settings.get("seq_len", 0) < 2048 or tokens < 4096:
        return say(False, f"That is {tokens:,} tokens in rows of {settings.get('seq_len', 0):,}; wanted are 4,096 in "
                          "rows of at least 2,048.")
    own = settings.get("precision") or "bfloat16"
    planned = memory.plan(config, lora, **settings, prepared=own in ("int8", "nf4"))
    if not planned.fits(gpu_gb):
        return say(False, f"It needs {memory.human(planned.total_bytes)}; {gpu_gb:g} GB allow "
                          f"{(1 - planned.reserve) * gpu_gb:.1f}.")
    better = {"nf4": "int8", "int8": "bfloat16", "bfloat16": "float32", "float16": "float32"}.get(own)
    for rows in (1, 2) if better else ():  # reentrant checkpointing is the kind that takes least
        if memory.plan(config, lora, better, rows, -(-4096 // rows), checkpointing="reentrant",
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
