"""Checks of the exercises of lesson 5: each runs the learner's answer on fresh inputs and says what it found."""

import functools

import torch
from peft import LoraConfig, get_peft_model

from ... import pocket, scoring, smart_home
from ..question_kinds import Verdict
from . import say


def new_alpha(lr: float, r: int, alpha: float) -> Verdict:
    """Check: does the pocket model learn with this rate, at rank `r` and `alpha`, as well as with a tuned setting?"""
    if not isinstance(lr, (int, float)) or not 0 < lr < 1:
        return say(False, f"Expected a learning rate between 0 and 1, found {lr!r}.")
    loss = _pocket_loss(LoraConfig(r=r, lora_alpha=alpha, target_modules="all-linear"), lr)
    tuned = _tuned_loss()
    found = f"Held-out loss {loss:.3f}; rank 8 and alpha 16 reach {tuned:.3f} with their own rate."
    return say(loss < 1.5 * tuned, found)


def flat(config) -> Verdict:
    """Check: does the pocket model learn with `config` and a rate of 0.01, at rank 8?"""
    return _pocket_learns(config, r=8)


def loud(config) -> Verdict:
    """Check: does it with rank 64 and rsLoRA?"""
    return _pocket_learns(config, r=64, use_rslora=True)


def _pocket_learns(config, **kept) -> Verdict:
    for name, value in kept.items():
        if getattr(config, name, None) != value:
            return say(False, f"{name} was to stay {value!r}, and is {getattr(config, name, None)!r}.")
    loss = _pocket_loss(config, 0.01)
    return say(loss < 0.7, f"Held-out loss {loss:.3f} after 40 steps; under 0.7 is learning, 3.9 is the base.")


@functools.cache
def _tuned_loss() -> float:

    return _pocket_loss(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), 0.0135)


def _pocket_loss(config, lr: float) -> float:
    """Mean held-out loss of two seeds after 40 steps on the dialect, as the lesson on alpha trains."""
    data = pocket.dialect(smart_home.commands("train", n=1500, seed=0))
    held_out = pocket.dialect(smart_home.commands("validation combinations", n=200, seed=0))
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
