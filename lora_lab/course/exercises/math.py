"""Checks of the exercises of lesson 1: each runs the learner's answer on fresh inputs and says what it found.

Where the answer fails on an input, that input is drawn: a counterexample to look at.
"""

import random

import torch
from IPython.display import display
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ... import plots, targets
from ..question_kinds import Verdict
from . import say


def lora_forward(layer_class) -> Verdict:
    """Check: does `layer_class(base, r, alpha, dropout)`, with parameters A and B, compute LoRA's forward?"""
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
            bare = base(x) + (expected - base(x)) / (alpha / r)
            torch.manual_seed(seed)
            found = layer(x)
            if not torch.is_tensor(found) or found.shape != expected.shape:
                return say(False, f"Expected an output of shape {tuple(expected.shape)}.")
            found = found.cpu()
            if not torch.allclose(found, expected, atol=1e-5):
                off, on = (found - expected).abs().max().item(), "on" if training else "off"
                _draw_apart(f"A counterexample: six rows of x, r={r}, alpha={alpha}, dropout {on}",
                            expected.flatten(0, 1), found.flatten(0, 1))
                more = " The scaling alpha/r is missing." if torch.allclose(found, bare, atol=1e-4) else (
                    " Dropout acts on what goes into A, and on nothing else." if on == "on" else "")
                return say(
                    False, f"With r={r}, alpha={alpha}, dropout {on}, the output is off by up to {off:.3f}.{more}")
    return say(True, "Right with two ranks and scalings, dropout on and off.")


def count_for_new_model(count: float) -> Verdict:
    """Check a count of the trainable parameters of rank 16 on all linear layers of a model given by its sizes."""
    sizes = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=24,
        num_attention_heads=16, num_key_value_heads=4, head_dim=128,
    )
    with torch.device("meta"):
        bare = LlamaForCausalLM(sizes)
        groups = targets.groups(bare)
        model = get_peft_model(bare, LoraConfig(r=16, target_modules="all-linear"))
    right = model.get_nb_trainable_parameters()[0]
    if not isinstance(count, (int, float)) or count != count // 1 or not count:
        return say(False, f"Expected a whole number above zero, found {count!r}.")
    if count == right:
        return say(True, f"PEFT counts {right:,} as well.")
    from ..explorers import block  # here: it needs widgets, which a check does not

    display(block(groups, {}, 16))
    hint = "One layer costs r × (d_in + d_out); k and v have only 4 × 128 outputs."
    if right == 24 * count:
        hint = f"It is {right / count:.0f} times more: did you count every layer?"
    return say(False, f"PEFT counts otherwise than {count:,.0f}. {hint}")


def smallest_rank(function) -> Verdict:
    """Check: does `function(W, bound)` give the smallest rank whose relative Frobenius error is at most `bound`?"""
    for bound in (0.5, 0.2, 0.05):
        values = torch.rand(12).sort(descending=True).values + 0.05
        rotation = torch.linalg.qr(torch.randn(20, 12))[0] * values, torch.linalg.qr(torch.randn(12, 12))[0]
        errors = ((values**2).sum() - (values**2).cumsum(0)).clamp(min=0).sqrt() / values.norm()
        right: int | None = int((errors > bound).sum()) + 1
        if min(abs(error - bound) for error in errors.tolist()) < 1e-3:
            right = None  # too close to call in float32
        found = function(rotation[0] @ rotation[1], bound)
        if right is not None and found != right:
            ranks = range(1, len(values) + 1)
            display(plots.lines({"its error": (ranks, errors.tolist()), "the bound": (ranks, [bound] * len(values))},
                                "rank", "error", title="A counterexample: where is it within the bound?"))
            kept = int(((values**2).cumsum(0) / (values**2).sum() < 1 - bound).sum()) + 1
            more = " That is where 1 - bound of the energy is kept: the error is the root of what is missing." * (
                found == kept)
            return say(
                False, f"For an error of at most {bound} the smallest rank is {right} here; yours is {found}.{more}")
    return say(True, "The smallest rank for three matrices and bounds.")


def merged_weight(function) -> Verdict:
    """Check: does `function(W, A, B, alpha, r)` give the weight that acts as base and adapter together?"""
    W, A, B, x = torch.randn(7, 5), torch.randn(3, 5), torch.randn(7, 3), torch.randn(4, 5)
    before, right = W.clone(), W + 12 / 3 * B @ A
    found = function(W, A, B, 12, 3)
    if not torch.is_tensor(found) or found.shape != W.shape:
        return say(False, f"Expected a matrix of shape {tuple(W.shape)}.")
    found = found.cpu()
    if not torch.equal(W, before):
        return say(False, "Your function changed W itself. Return a new matrix.")
    off = (x @ found.T - x @ right.T).abs().max().item()
    if off >= 1e-3:
        _draw_apart("A counterexample: alpha = 12, r = 3", right, found)
    if torch.allclose(found, W + B @ A, atol=1e-4):
        return say(False, "That is W + BA: the scaling alpha/r is missing.")
    return say(off < 1e-3, f"Base and adapter against your merged weight: largest difference {off:.2g}.")


def recovered(function) -> Verdict:
    """Check: does `function(W, merged, r)` give A (r × d_in) and B (d_out × r) with `merged` = W + B A?"""
    for d_out, d_in, r in ((12, 9, 2), (8, 16, 3)):
        W, update = torch.randn(d_out, d_in), torch.randn(d_out, r) @ torch.randn(r, d_in)
        found = function(W.clone(), W + update, r)
        parts = found if isinstance(found, (tuple, list)) else ()
        if [getattr(part, "shape", None) for part in parts] != [(r, d_in), (d_out, r)]:
            shapes = ", ".join(str(tuple(getattr(part, "shape", ()))) for part in parts) or repr(type(found).__name__)
            return say(False, f"W is {d_out} × {d_in} and r is {r}: expected A of shape {(r, d_in)}, then B of shape "
                              f"{(d_out, r)}, found {shapes}.")
        product = (parts[1] @ parts[0]).detach().cpu()
        off = ((product - update).norm() / update.norm()).item()
        if off > 1e-3:
            _draw_apart(f"A counterexample: a {d_out} × {d_in} weight and an adapter of rank {r}", update, product)
            U, S, Vh = torch.linalg.svd(W + update)
            whole, unit = (U[:, :r] * S[:r]) @ Vh[:r], torch.linalg.svdvals(product)[:r]
            more = ""
            if torch.allclose(product, whole, atol=1e-3):
                more = " That is the best of rank r for `merged` itself: subtract W first."
            elif torch.allclose(unit, torch.ones(r), atol=1e-3):
                more = " All your directions are of strength 1: S is missing."
            return say(False, f"Your B A is off from the update by {off:.0%} of its size.{more}")
    return say(True, "Two adapters recovered: your B A is their update. Their A and B are other matrices than yours.")


def _draw_apart(title: str, wanted: torch.Tensor, yours: torch.Tensor) -> None:
    wanted, yours = wanted.detach(), yours.detach()
    display(plots.matrices({"wanted": wanted, "yours": yours, "yours - wanted": yours - wanted}, title))
