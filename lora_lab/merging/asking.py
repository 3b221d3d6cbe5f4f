"""What models make of the same prompts: logits at every position, greedy answers, and how far two of them are apart."""

import collections
import contextlib
import copy
import math
import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from ..batches import check_tokenizer
from ..errors import LabError


@dataclass(frozen=True)
class Distance:
    """How far logits are apart: the fields of an `Audit`, and whether the adapter has an effect to compare with."""

    worst_logit: float
    changed_tokens: float
    lost: float
    interval: tuple[float, float]  # of `lost`, 95 %: other prompts would have given another share
    effect: bool


def rows_of(prompts, tokenizer, model) -> list[list[int]]:
    """Return the prompts as token ids. Raises LabError."""
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Iterable) or not len(prompts := list(prompts)):
        raise LabError(f"prompts is {reprlib.repr(prompts)}. Give a list of texts, or of lists of token ids; ten or "
                       "more say more.")
    if all(isinstance(prompt, str) for prompt in prompts):
        if tokenizer is None:
            raise LabError("The prompts are texts: give the tokenizer as well, audit(model, prompts, tokenizer).")
        check_tokenizer(tokenizer)
        rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    else:
        rows = [_ids(prompt) for prompt in prompts]
    if empty := sum(not row for row in rows):
        raise LabError(f"{empty} of the {len(rows)} prompts have no token. Leave them out.")
    known = model.get_input_embeddings().weight.shape[0]
    if not all(0 <= token < known for row in rows for token in row):
        raise LabError(f"The prompts have token ids that are not between 0 and {known - 1}, and the model knows no "
                       "others. Is it the tokenizer of another model?")
    return rows


def _ids(prompt) -> list[int]:
    try:
        ids = torch.as_tensor(prompt)
        whole = not ids.is_floating_point() and ids.dtype != torch.bool
        if ids.numel() == max(ids.shape, default=-1) and (whole or not ids.numel()):
            return ids.flatten().tolist()
    except (TypeError, ValueError, RuntimeError):  # what torch says of texts, dicts and ragged lists
        pass
    hint = ""
    if isinstance(prompt, Mapping) or isinstance(prompt, list) and any(isinstance(part, Mapping) for part in prompt):
        hint = " Messages become a text by tokenizer.apply_chat_template(messages, tokenize=False, " \
               "add_generation_prompt=True)."
    raise LabError(f"One of the prompts is {reprlib.repr(prompt)}. Give texts alone, or a list of token ids for each "
                   f"prompt.{hint}")


def text_of(tokenizer, ids: list[int]) -> str:
    """Return token ids as text; without a tokenizer, as they are."""
    return str(ids) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=True)


def to_evaluate(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy where the evaluation itself would change the model: some CPUs pack 4-bit weights by it."""
    states = (getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules())
    return copy.deepcopy(model) if any(state is not None for state in states) else model


@contextlib.contextmanager
def within_positions(models, rows: list[list[int]], max_new_tokens: int) -> Iterator[None]:
    """Say in a LabError that learned positions end somewhere: torch says no more than "index out of range"."""
    try:
        yield
    except IndexError as error:
        needed = max(len(row) for row in rows) + max_new_tokens
        known = min(getattr(model.config, "max_position_embeddings", needed) for model in models)
        if needed <= known:
            raise
        raise LabError(f"The longest prompt and its answer take up to {needed} tokens, and the model has {known} "
                       "positions. Leave long prompts out, or lower max_new_tokens.") from error


def disabled(model) -> bool:
    """Return whether the adapter is turned off."""
    return all(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))


@contextlib.contextmanager
def without_adapter(model) -> Iterator[None]:
    """Turn the adapter off inside the block."""
    if disabled(model):  # PEFT would turn it on behind it
        yield
        return
    with model.disable_adapter(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def distance(model, deployed, rows: list[list[int]]) -> Distance:
    """Compare the logits of `deployed` with those of `model`, a PEFT model, and these with its base's.

    By KL divergence where they are choices of a next token, elsewhere (hidden states, scores) by squared differences.
    Tokens that `deployed` has more are padding, and not compared. Raises LabError.
    """
    apart_by = _kl if model.can_generate() else lambda one, other: (one - other).square().sum().item()
    worst, changed, positions = 0.0, 0, 0
    aparts: list[float] = []
    effects: list[float] = []
    for row in rows:
        expected, found = logits(model, row), logits(deployed, row)
        with without_adapter(model):
            base = logits(model, row)
        if found.shape[-1] < expected.shape[-1] or found.shape[:-1] != expected.shape[:-1]:
            raise LabError(f"The deployed model knows {found.shape[-1]} tokens and the unmerged one "
                           f"{expected.shape[-1]}. Give two models with one tokenizer.")
        found = found[..., :expected.shape[-1]]
        difference = (found - expected).abs().max().item()
        worst = difference if math.isnan(difference) else max(worst, difference)
        if math.isnan(worst):
            return Distance(math.nan, 1.0, math.nan, (0.0, math.inf), True)
        changed += (found.argmax(-1) != expected.argmax(-1)).sum().item()
        positions += expected.shape[:-1].numel()
        aparts.append(apart_by(expected, found))
        effects.append(apart_by(expected, base))
    apart, effect = max(sum(aparts), 0.0), sum(effects)  # a sum of roundings may be below zero
    noise = 1e-6 * positions  # what float32 leaves of a KL of zero
    lost = apart / effect if effect > noise else 0.0 if apart <= noise else math.inf
    return Distance(worst, changed / positions, lost, _interval(aparts, effects, lost), effect > noise)


def _interval(aparts: list[float], effects: list[float], lost: float) -> tuple[float, float]:
    """95 % of a ratio of sums, by the variance of its terms (Cochran 1977, section 2.11); of one prompt, anything."""
    n, effect = len(aparts), sum(effects)
    if n < 2 or not math.isfinite(lost) or effect <= 0:
        return 0.0, math.inf
    off = sum((apart - lost * one) ** 2 for apart, one in zip(aparts, effects))
    spread = 1.96 * math.sqrt(off * n / (n - 1)) / effect
    return max(lost - spread, 0.0), lost + spread


def computes_otherwise(model, deployed, apart: float) -> bool:
    """Return whether two models compute other logits for random tokens, by more than rounding.

    `apart` is how far their weights are, as a share of them: rounded ones may compute in a finer precision.
    """
    known = model.get_input_embeddings().weight.shape[0]
    length = min(64, *(getattr(one.config, "max_position_embeddings", 64) for one in (model, deployed)))
    row = torch.randint(known, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    expected, found = logits(model, row), logits(deployed, row)
    off = (found[..., :expected.shape[-1]] - expected).abs().max()
    rounding = max(apart, *(torch.finfo(one.dtype).eps for one in (model, deployed)))
    return not off <= max(1e-4, 50 * rounding) * expected.abs().max()


def logits(model, row: list[int]) -> torch.Tensor:
    """Return (positions, vocabulary), or what else the model computes first, in float64 on the CPU.

    Two models may be on two devices, and Apple's GPU has no float64.
    """
    ids = torch.tensor([row], device=_device(model))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return model(**inputs)[0][0].cpu().double()


def _device(model) -> torch.device:
    device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device  # offloaded: accelerate takes inputs where they go


def _kl(expected: torch.Tensor, found: torch.Tensor) -> float:
    log_p, log_q = expected.log_softmax(-1), found.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum().item()


def answers(model, rows: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Return greedy answers as token ids, the first choices of a model that only scores, or none without scores.

    Rows of equal length share a batch, so that no prompt is padded.
    """
    if not model.can_generate():
        kind = type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
        scores = kind.endswith("MaskedLM") or kind.endswith("Classification") and model.config.num_labels > 1
        return [logits(model, row).argmax(-1).flatten().tolist() for row in rows] if scores else []
    found: list[list[int]] = [[]] * len(rows)
    by_length = collections.defaultdict(list)
    for place, row in enumerate(rows):
        by_length[len(row)].append(place)
    end = model.generation_config.eos_token_id
    ends = [] if end is None else end if isinstance(end, list) else [end]
    for places in by_length.values():
        ids = torch.tensor([rows[place] for place in places], device=_device(model))
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=ends[0] if ends else 0,
        )
        start = 1 if model.config.is_encoder_decoder else ids.shape[1]
        for place, row in zip(places, output[:, start:].tolist()):
            length = next((at for at, token in enumerate(row, 1) if token in ends), len(row))
            found[place] = row[:length]  # what follows the end is padding, as long as the batch's longest answer
    return found
