"""What the base says: do the shapes fit, is the update in it already, and is the adapter of any use on its own rows."""

import contextlib
import copy
import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel

from .. import adapters, files
from ..batches import IGNORED
from .causes import Finding
from .logs import History
from .on_disk import Saved

ROWS = 16
FACTORS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_IN_IT = 0.5  # of the update, along itself, in a base that is merged; elsewhere it is about 0
_BETTER = 0.8  # another factor's loss, of that at 1, above which the difference is no evidence
_MUCH_BETTER = 0.4  # for a factor above 1, which helps every training that ended early


def on_base(saved: Saved, base: torch.nn.Module, rows: list[dict], history: History | None,
            tokenizer: Any) -> list[Finding]:
    """Return what the adapter and this base say of each other; `base` is left as it was."""
    if misfits := list(_misfits(saved, base)):
        return [Finding("other shapes", f"{len(misfits)} layers of the file do not fit, {misfits[0]}")]
    found = list(_tokens(saved, base, tokenizer))
    share, spread = _update_within(saved, base) if not _starts_in_the_base(saved) else (None, 0.0)
    if share is not None and share > max(_IN_IT, 4 * spread):
        return [*found, Finding("merged twice", f"{share:.0%} of the update is in the base's weights, ± {spread:.0%}")]
    noted = _noted_identity(saved)
    if noted and noted != (here := adapters.base_identity(base)):
        return [*found, Finding("other base", f"it was trained beside weights with the hash {noted[:12]}…, and these "
                                              f"have {here[:12]}…")]
    if rows:
        found += _losses(saved, base, rows[:ROWS], history, bool(noted))
    return found


def _misfits(saved: Saved, base: torch.nn.Module) -> Iterator[str]:
    modules = dict(base.named_modules())
    for pair in saved.pairs() if not saved.config.get("layer_replication") else ():  # that makes layers of its own
        module = modules.get(pair.path.replace(".base_layer", ""))  # of target_parameters, which have no weight
        weight = getattr(module, "weight", None)
        if module is None:
            yield f"{pair.path} is not in this model"
        elif weight is None or hasattr(weight, "quant_state") or weight.ndim != 2:
            continue
        elif {pair.B.shape[0], pair.A.shape[1]} != set(weight.shape):
            yield f"{pair.path} is {tuple(weight.shape)} here, and {(pair.B.shape[0], pair.A.shape[1])} in the file"


def _tokens(saved: Saved, base: torch.nn.Module, tokenizer: Any) -> Iterator[Finding]:
    embedding = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    if tokenizer is not None and embedding is not None and len(tokenizer) > embedding.weight.shape[0]:
        kept = any("embed" in name and "lora_" not in name for name in saved.shapes)
        if not kept:
            yield Finding("tokens lost", f"the tokenizer has {len(tokenizer):,} tokens, and the base "
                                         f"{embedding.weight.shape[0]:,} rows")


def _update_within(saved: Saved, base: torch.nn.Module) -> tuple[float | None, float]:
    """How many times the update is in the base's own weights, and the error of that, if weights ignore it."""
    modules, along, due = dict(base.named_modules()), 0.0, 0.0
    for pair in saved.pairs():
        weight = getattr(modules.get(pair.path), "weight", None)
        if weight is None or not weight.is_floating_point() or weight.shape != (pair.B.shape[0], pair.A.shape[1]):
            continue
        own, update = weight.detach().float().cpu(), pair.update
        scale = own.square().mean().item()
        if not torch.isfinite(update).all() or not scale:
            continue
        along += (own * update).sum().item() / scale
        due += update.square().sum().item() / scale
    return (along / due, due ** -0.5) if due else (None, 0.0)


def _noted_identity(saved: Saved) -> str | None:
    try:
        noted = files.read_json(saved.folder / adapters.BASE, dict).get("sha256")
    except (OSError, ValueError):
        return None
    return noted if isinstance(noted, str) else None


def _losses(saved: Saved, base: torch.nn.Module, rows: list[dict], history: History | None,
            noted: bool) -> Iterator[Finding]:
    """The loss on the rows with the adapter turned: after a training it is lowest near 1."""
    try:
        with _loaded(saved, base) as model:
            losses = {}
            for factor in FACTORS:
                with adapters.turned(model, factor):
                    losses[factor] = _loss(model, rows)
            whole = _loss(model, [row | {"labels": row["input_ids"]} for row in rows])
    except Exception:  # another kind of adapter, or rows of another tokenizer
        return
    if losses[0.0] == losses[1.0]:
        return  # it adds nothing, which its weights tell
    finite = {factor: loss for factor, loss in losses.items() if math.isfinite(loss)}
    if not math.isfinite(losses[1.0]) or len(finite) < 2:
        return
    best, end = min(finite, key=lambda factor: finite[factor]), math.nan
    if history and history.losses:
        end = statistics.fmean(loss for _, loss in history.losses[-5:])
    told = f"on {len(rows)} rows the loss is {losses[1.0]:.3g} as it is, {losses[0.0]:.3g} without the adapter"
    # From where the training ended, whose loss may have counted the prompts; never for an unknown end.
    far = min(losses[1.0], whole) > 2 * end + 0.2
    enough = _BETTER if best < 1 or far else _MUCH_BETTER if math.isnan(end) else 0
    if best not in (0.0, 1.0) and finite[best] < enough * losses[1.0] and losses[1.0] - finite[best] > 0.05:
        yield Finding("config edited", f"{told}, and {finite[best]:.3g} with {best:g} times its scaling")
    elif far and not noted:
        yield Finding("other base", f"{told}; the training ended at {end:.3g}")


def _starts_in_the_base(saved: Saved) -> bool:
    """Whether A and B began as a part of the base's weights, which PEFT takes out of them (PiSSA, OLoRA and others)."""
    return saved.config.get("init_lora_weights") not in (None, True, False, "gaussian", "orthogonal")


@contextlib.contextmanager
def _loaded(saved: Saved, base: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The adapter on a copy that shares the base's weights, unless loading it would write to them."""
    writes = _starts_in_the_base(saved) or any(
        not any(part in name for part in ("lora_", "trainable_tokens", "token_adapter")) for name in saved.shapes)
    shared = {} if writes else {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    twin = copy.deepcopy(base, shared)
    trained = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    try:
        yield PeftModel.from_pretrained(twin, str(saved.folder)).eval()
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


@torch.no_grad()
def _loss(model: torch.nn.Module, rows: list[dict]) -> float:
    """The mean over all tokens that count, one row at a time."""
    device, total, counted = next(model.parameters()).device, 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor([row[key]], device=device) for key in ("input_ids", "labels"))
        number = (labels[:, 1:] != IGNORED).sum().item()
        if number:
            logits = model(input_ids=ids).logits[:, :-1].float()
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum").item()
            counted += number
    return total / counted if counted else math.nan
