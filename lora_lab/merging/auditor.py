"""Whether a merge is safe to ship: a merged model against the unmerged one, on your own prompts.

Merges nothing that you gave it: without a `deployed` model it merges a deep copy. Saving is in `shipping`.
"""

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
from transformers import PreTrainedTokenizerBase

from ..errors import LabError, reason
from ..scoring import evaluating
from . import weights

LOOK, BROKEN = 0.01, 0.1  # of the adapter's effect, or of the answers


@dataclass(frozen=True)
class Audit:
    """What a merge changes, measured on `n` prompts.

    `worst_logit`: the largest change of a logit at any position of the prompts. `changed_tokens`: the share of those
    positions with another first choice. `lost`: KL(unmerged, merged) over KL(unmerged, base), mean over positions; 0
    is nothing, 1 as far from the unmerged model as the base is. `changed_answers`: (prompt, unmerged answer, merged
    answer) of each greedy answer that differs. `update`: how many times the adapter's update is in the merged weights
    (1 is right), None where the layers are not plain LoRA. `findings` say what was found about the weights,
    `warnings` what PEFT said while it merged, and how often.
    """

    verdict: str  # "safe", "look" or "broken"
    n: int
    worst_logit: float
    changed_tokens: float
    lost: float
    changed_answers: tuple[tuple[str, str, str], ...]
    update: float | None
    findings: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def safe(self) -> bool:
        """Whether the verdict is "safe"."""
        return self.verdict == "safe"

    def __str__(self) -> str:
        changed = len(self.changed_answers)
        words = {"safe": "Safe to ship", "look": "Look before you ship", "broken": "Do not ship"}[self.verdict]
        answers = f"{changed} of {self.n} answers differ" if changed else f"all {self.n} answers are the same"
        share = "more than ten times" if self.lost >= 10 else f"{self.lost:.1%} of"
        lines = [
            f"{words}: {answers}.",
            f"Largest change of a logit {self.worst_logit:.2g}; {self.changed_tokens:.1%} of next tokens change; "
            f"the distance from the unmerged model is {share} what the adapter does.",
        ]
        if self.update is not None and math.isfinite(self.update):
            lines.append(f"The adapter's update is in the merged weights {self.update:.3f} times (1 is right).")
        return "\n".join([*lines, *self.findings, *(f"PEFT warned {said}" for said in self.warnings)])


def audit(model: torch.nn.Module, prompts: Iterable, tokenizer: PreTrainedTokenizerBase | None = None,
          deployed: torch.nn.Module | None = None, max_new_tokens: int = 16) -> Audit:
    """Compare `model`, a PEFT model with its adapter unmerged, with the same model merged.

    `prompts` is a list of texts (give the tokenizer as well) or of lists of token ids. `deployed` is the model that
    production loads, merged or not, on any device; without it, a deep copy of `model` is merged with
    `merge_and_unload` (as much memory again). The verdict is "safe" if every greedy answer of up to `max_new_tokens`
    tokens is the same and the logits move by under 1 % of what the adapter does (in KL divergence), "broken" if more
    than a tenth of the answers or of the effect is lost, or if the weights show why; "look" between. Changes neither
    model. Raises LabError.
    """
    _check(model)
    _check_deployed(deployed)
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise LabError(f"max_new_tokens is {max_new_tokens!r}. Give a whole number above 0.")
    rows = _rows(prompts, tokenizer, model)
    packed, said, faults = weights.packed(model), collections.Counter[str](), list[str]()
    explanations = [_TIED.format(path) for path in weights.tied_targets(model)]
    if deployed is None:
        deployed, said = _merged_copy(model)
        if packed:
            faults.append(_PACKED)
    elif any(isinstance(module, BaseTunerLayer) for module in deployed.modules()):
        explanations = []
    read = weights.NOTHING if packed or weights.packed(deployed) else weights.compare(model, deployed)
    faults += read.faults
    asked = _to_evaluate(model), _to_evaluate(deployed)
    with evaluating(*asked), _within_positions(asked, rows, max_new_tokens), torch.no_grad():
        worst, changed_tokens, lost, effect = _compare_logits(*asked, rows)
        answers = [_answers(one, rows, max_new_tokens) for one in asked]
    changed = tuple(
        (_text(tokenizer, row), _text(tokenizer, expected), _text(tokenizer, found))
        for row, expected, found in zip(rows, *answers) if expected != found
    )
    if not math.isfinite(worst):
        faults.append("Some logits are NaN or infinite. merge_and_unload(safe_merge=True) refuses such an adapter.")
    verdict = "safe"
    if changed or faults or not lost <= LOOK:
        faults += explanations
        verdict = "look"
    if faults or not lost <= BROKEN or len(changed) > BROKEN * len(rows):
        verdict = "broken"
    if verdict != "safe" and effect:
        faults += read.hints
    if left_behind := sorted(set(model.peft_config) - set(model.active_adapters)):
        faults.append(f"Inactive adapters are not in the merged model: {', '.join(left_behind)}.")
    if not effect and not faults:
        faults.append("On these prompts the adapter does nothing: it is not trained, or disabled.")
    return Audit(verdict, len(rows), worst, changed_tokens, lost, changed, read.update, tuple(faults),
                 tuple(f"{count} times: {text}" for text, count in said.items()))


_PACKED = (
    "The 4-bit weights are in the layout that bitsandbytes packs for this CPU at the first evaluation, and PEFT merges "
    "them as if they were not. Load base and adapter again, and merge before the first evaluation."
)
_TIED = (
    "{} is tied: the same weight is used elsewhere in the model, and a merge changes it there, too. Load the base with "
    "tie_word_embeddings=False and its own copy of the weight, or do not merge."
)
def _check(model) -> None:
    if not isinstance(model, torch.nn.Module):
        raise LabError(f"model is {reprlib.repr(model)}. Load base and adapter with PeftModel.from_pretrained, and "
                       "give that model.")
    if not isinstance(model, PeftModel):
        raise LabError(
            f"audit needs the unmerged PEFT model, and got a {type(model).__name__}. merge_and_unload and unload take "
            "the adapter out of the model they are called on: load base and adapter again with "
            "PeftModel.from_pretrained, and give the merged model as deployed=."
        )
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        config = next(iter(model.peft_config.values()))
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise LabError(f"{kind} changes no weights: nothing to merge." if config.is_prompt_learning else (
            "The adapter's layers were taken out of this model, by merge_and_unload() or unload(): load base and "
            "adapter again, and give what that call returned as deployed=."
        ))
    if not hasattr(model.config, "is_encoder_decoder"):
        raise LabError("audit compares models of transformers, whose answers have tokens; this one has no such config.")
    if any(layer.merged for layer in layers):
        raise LabError("The adapter is merged already. Call model.unmerge_adapter(), or load base and adapter again.")


def _check_deployed(deployed) -> None:
    if deployed is not None and not hasattr(getattr(deployed, "config", None), "is_encoder_decoder"):
        raise LabError(f"deployed is {reprlib.repr(deployed)}. Load it first, the way production does, and give the "
                       "model of transformers.")


def _rows(prompts, tokenizer, model) -> list[list[int]]:
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Iterable) or not len(prompts := list(prompts)):
        raise LabError(f"prompts is {reprlib.repr(prompts)}. Give a list of texts, or of lists of token ids; ten or "
                       "more say more.")
    if all(isinstance(prompt, str) for prompt in prompts):
        if tokenizer is None:
            raise LabError("The prompts are texts: give the tokenizer as well, audit(model, prompts, tokenizer).")
        if not callable(tokenizer):
            raise LabError(f"tokenizer is {reprlib.repr(tokenizer)}. Load it with AutoTokenizer.from_pretrained, and "
                           "give that.")
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


def _text(tokenizer, ids: list[int]) -> str:
    return str(ids) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=True)


def _merged_copy(model):
    """`merge_and_unload` of a deep copy, and PEFT's warnings with their counts."""
    computed = {  # deepcopy refuses tensors with a history; PEFT keeps such ones where weights are tied
        id(tensor): tensor.detach().clone()
        for module in model.modules() for tensor in _tensors(vars(module)) if not tensor.is_leaf
    }
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merged = copy.deepcopy(model, computed).merge_and_unload()
    except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise LabError(f"This model cannot be merged: {reason(error)} Serve base and adapter as they are.") from error
    said = collections.Counter(str(w.message).strip().splitlines()[0] for w in caught
                               if not issubclass(w.category, (FutureWarning, DeprecationWarning)))
    return merged, said


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _to_evaluate(model):
    """A copy where the evaluation itself would change the model: 4-bit weights are packed by it on some CPUs."""
    states = (getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules())
    return copy.deepcopy(model) if any(state is not None for state in states) else model


@contextlib.contextmanager
def _within_positions(models, rows, max_new_tokens: int):
    """Learned positions end somewhere, and torch says no more than "index out of range"."""
    try:
        yield
    except IndexError as error:
        needed = max(len(row) for row in rows) + max_new_tokens
        known = min(getattr(model.config, "max_position_embeddings", needed) for model in models)
        if needed <= known:
            raise
        raise LabError(f"The longest prompt and its answer take up to {needed} tokens, and the model has {known} "
                       "positions. Leave long prompts out, or lower max_new_tokens.") from error


def _compare_logits(model, deployed, rows) -> tuple[float, float, float, bool]:
    """Worst change of a logit, share of changed first choices, KL as a share of the adapter's, and if it has any."""
    worst, changed, positions, apart, effect = 0.0, 0, 0, 0.0, 0.0
    for row in rows:
        expected, found = _logits(model, row), _logits(deployed, row)
        with model.disable_adapter(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = _logits(model, row)
        if found.shape != expected.shape:
            raise LabError(f"The deployed model knows {found.shape[-1]} tokens and the unmerged one "
                           f"{expected.shape[-1]}. Give two models with one tokenizer.")
        difference = (found - expected).abs().max().item()
        worst = difference if math.isnan(difference) else max(worst, difference)
        if math.isnan(worst):
            return math.nan, 1.0, math.nan, True
        changed += (found.argmax(-1) != expected.argmax(-1)).sum().item()
        positions += expected.shape[:-1].numel()
        apart += _kl(expected, found)
        effect += _kl(expected, base)
    noise = 1e-6 * positions  # what float32 leaves of a KL of zero
    lost = apart / effect if effect > noise else 0.0 if apart <= noise else math.inf
    return worst, changed / positions, max(lost, 0.0), effect > noise  # the sum of two roundings may be below zero


def _logits(model, row: list[int]) -> torch.Tensor:
    """(positions, vocabulary), float64, on the CPU: models may be on two devices, and Apple's GPU has no float64."""
    ids = torch.tensor([row], device=next(model.parameters()).device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return model(**inputs).logits[0].cpu().double()


def _kl(expected: torch.Tensor, found: torch.Tensor) -> float:
    log_p, log_q = expected.log_softmax(-1), found.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum().item()


def _answers(model, rows, max_new_tokens: int) -> list[list[int]]:
    """Greedy answers as token ids; rows of equal length share a batch, so that no prompt is padded."""
    if not model.can_generate():
        return [[] for _ in rows]
    answers: list[list[int]] = [[]] * len(rows)
    by_length = collections.defaultdict(list)
    for place, row in enumerate(rows):
        by_length[len(row)].append(place)
    end = model.generation_config.eos_token_id
    ends = [] if end is None else end if isinstance(end, list) else [end]
    for places in by_length.values():
        ids = torch.tensor([rows[place] for place in places], device=next(model.parameters()).device)
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=ends[0] if ends else 0,
        )
        start = 1 if model.config.is_encoder_decoder else ids.shape[1]
        for place, row in zip(places, output[:, start:].tolist()):
            length = next((at for at, token in enumerate(row, 1) if token in ends), len(row))
            answers[place] = row[:length]  # what follows the end is padding, as long as the batch's longest answer
    return answers
