"""Whether a merge is safe to ship: a merged model against the unmerged one, on your own prompts.

Merges nothing that you gave it: without a `deployed` model it merges a deep copy. Saving is in `shipping`.
"""

import collections
import math
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedTokenizerBase

from ..errors import LabError, reason
from ..scoring import Score, evaluating
from . import asking, effective, weights

LOOK, BROKEN = 0.01, 0.1  # of the adapter's effect, or of the answers
WORDS = {"safe": "Safe to ship", "look": "Look before you ship", "not shown": "Not shown", "broken": "Do not ship"}


@dataclass(frozen=True)
class Audit:
    """What a merge changes, measured on `n` prompts.

    `worst_logit`: the largest change of a logit at any position of the prompts. `changed_tokens`: the share of those
    positions with another first choice. `lost`: KL(unmerged, merged) over KL(unmerged, base), mean over positions; 0
    is nothing, 1 as far from the unmerged model as the base is (of models without next tokens, squared differences of
    what they compute instead of KL). These three are None where answers were audited, not a model. `changed_answers`:
    (prompt, unmerged answer, merged answer) of each greedy answer that differs; `interval` is what they say of other
    prompts. `update`: how many times the adapter's update is in the merged weights (1 is right), None where that cannot
    be read. `missing`: the adapted layers without it. `findings` say what was found about the weights and settings,
    `warnings` what PEFT said while it merged, and how often.
    """

    verdict: str  # "safe", "look", "not shown" or "broken"
    n: int
    worst_logit: float | None
    changed_tokens: float | None
    lost: float | None
    changed_answers: tuple[tuple[str, str, str], ...]
    update: float | None
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    missing: tuple[str, ...] = ()
    answered: bool = True  # False of a model that computes hidden states alone
    lost_interval: tuple[float, float] | None = None  # 95 %, from the spread over the prompts

    @property
    def safe(self) -> bool:
        """Whether the verdict is "safe"."""
        return self.verdict == "safe"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share of answers that differ, on prompts such as these (Wilson 1927)."""
        return Score(len(self.changed_answers) / self.n, None, self.n).interval

    def __str__(self) -> str:
        changed, (low, high) = len(self.changed_answers), self.interval
        answers = f"{changed} of {self.n} answers differ (95 % interval {low:.0%} to {high:.0%})" if changed else \
            f"all {self.n} answers are the same (95 % interval of changes {low:.0%} to {high:.0%})" \
            if self.answered else f"{self.n} prompts, to which the model gives no answers"
        lines = [f"{WORDS[self.verdict]}: {answers}."]
        if self.worst_logit is not None and self.changed_tokens is not None and self.lost is not None:
            share = "more than ten times" if self.lost >= 10 else f"{self.lost:.1%} of"
            low, high = self.lost_interval or (0.0, 0.0)
            sure = f" (95 % interval {low:.0%} to {high:.0%})" if LOOK < self.lost < 10 and high < 10 else ""
            lines.append(
                f"Largest change of a logit {self.worst_logit:.2g}; {self.changed_tokens:.1%} of next tokens change; "
                f"the distance from the unmerged model is {share} what the adapter does{sure}.")
        if self.update is not None and math.isfinite(self.update):
            lines.append(f"The adapter's update is in the merged weights {self.update:.3f} times (1 is right).")
        return "\n".join([*lines, *self.findings, *(f"PEFT warned {said}" for said in self.warnings)])


def audit(model: torch.nn.Module, prompts: Iterable, tokenizer: PreTrainedTokenizerBase | None = None,
          deployed: torch.nn.Module | None = None, max_new_tokens: int = 16,
          answers: Iterable[str] | None = None) -> Audit:
    """Compare `model`, a PEFT model with its adapter unmerged, with the same model merged.

    `prompts` is a list of texts (give the tokenizer as well) or of lists of token ids. `deployed` is the model that
    production loads, merged or not, on any device; without it, a deep copy of `model` is merged with
    `merge_and_unload` (as much memory again). Instead of a model, `answers` are the texts that an engine served to the
    same prompts, in their order: raw completions (no chat template), temperature 0, at most `max_new_tokens` tokens.

    The verdict is "broken" if the weights prove a fault, whatever the prompts, or if, with 95 % confidence, more than a
    tenth of the effect (KL divergence) or of the answers is lost; models whose weights and settings are equal to
    rounding are not, unless what they compute is apart by more than rounding (a hook, a buffer, other code).
    "safe" if nothing of this was found, every greedy answer of up to `max_new_tokens` tokens is the
    same, and the logits move by under 1 % of what the adapter does; "not shown" if the adapter does nothing on these
    prompts, so that they cannot tell; "look" between. Answers alone are "safe" if they are all the same, and 35 or more
    are others than the base's, so that under a tenth of such can differ. Changes neither model. Raises LabError.
    """
    _check(model)
    _check_deployed(model, deployed)
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise LabError(f"max_new_tokens is {max_new_tokens!r}. Give a whole number above 0.")
    rows = asking.rows_of(prompts, tokenizer, model)
    if answers is not None:
        return _audit_answers(model, rows, tokenizer, _served(answers, rows, tokenizer, deployed), max_new_tokens)
    packed, said, faults = effective.packed(model), collections.Counter[str](), list[str]()
    if deployed is None:
        deployed, said = _merged_copy(model)
        if packed:
            faults.append(_PACKED)
    if asking.disabled(model):
        faults.append(_DISABLED)
    unread = bool(faults) or effective.packed(deployed)
    read = weights.Comparison(doubts=[] if faults else [_UNREAD]) if unread else weights.compare(model, deployed)
    faults += read.faults
    settings = effective.settings(model.config, deployed.config)
    asked = asking.to_evaluate(model), asking.to_evaluate(deployed)
    with evaluating(*asked), asking.within_positions(asked, rows, max_new_tokens), torch.no_grad():
        apart = asking.distance(*asked, rows)
        expected, found = [asking.answers(one, rows, max_new_tokens) for one in asked]
        other = [f"Another config: {'; '.join(settings)}."] * bool(settings) + read.doubts
        ways, far = effective.ways(model, deployed) if read.equal else [], apart.effect and not apart.lost <= LOOK
        if read.equal and (other or ways or far) and asking.computes_otherwise(*asked, read.apart):
            proven = bool(other) or apart.effect and apart.interval[0] > BROKEN
            other += ways if ways else [] if other else [_OTHERWISE]
            faults, other = (faults + other, []) if proven else (faults, other)
    changed = _changed(tokenizer, rows, expected, found)
    if not math.isfinite(apart.worst_logit):
        faults.append("Some logits are NaN or infinite. merge_and_unload(safe_merge=True) refuses such an adapter.")
    identical, shown = read.equal and not other and not faults, apart.effect
    result = Audit("safe", len(rows), apart.worst_logit, apart.changed_tokens, apart.lost, changed, read.update, (),
                   tuple(f"{count} times: {text}" for text, count in said.items()), read.missing, bool(expected),
                   apart.interval)
    verdict = "safe" if shown else "not shown"
    if changed or other or shown and not apart.lost <= LOOK:
        verdict = "look"
    if faults or not identical and (shown and apart.interval[0] > BROKEN or result.interval[0] > BROKEN):
        verdict = "broken"
    findings = [*faults, *other]
    if identical and verdict == "look":
        findings.append("The weights are equal to rounding. What differs is rounding while computing, or what the "
                        "models generate with" + _generation(model, deployed))
    findings += read.hints + _sampling(deployed)
    if left_behind := sorted(set(model.peft_config) - set(model.active_adapters)):
        findings.append(f"Inactive adapters are not in the merged model: {', '.join(left_behind)}.")
    if verdict == "not shown":
        findings.append(_NOTHING if read.update is None else _NOT_REACHED)
    return replace(result, verdict=verdict, findings=tuple(findings))


def _audit_answers(model, rows, tokenizer, served: list[str], max_new_tokens: int) -> Audit:
    """Compare served texts with the answers of the unmerged model, and with those of its base."""
    asked = asking.to_evaluate(model)
    if not asked.can_generate():
        raise LabError("This model generates nothing to compare answers with. Give the deployed model.")
    with evaluating(asked), asking.within_positions([asked], rows, max_new_tokens), torch.no_grad():
        trained = [asking.text_of(tokenizer, row) for row in asking.answers(asked, rows, max_new_tokens)]
        with asking.without_adapter(asked):
            base = [asking.text_of(tokenizer, row) for row in asking.answers(asked, rows, max_new_tokens)]
    told = zip([asking.text_of(tokenizer, row) for row in rows], trained, served, base)
    changed = [line for line in told if line[1].strip() != line[2].strip()]
    differ = tuple((prompt, own, other) for prompt, own, other, _ in changed)
    result = Audit("look", len(rows), None, None, None, differ, None, (), ())
    shown = sum(own.strip() != other.strip() for own, other in zip(trained, base))
    findings = []
    if not all(parameter.isfinite().all() for parameter in model.parameters() if parameter.is_floating_point()):
        return replace(result, verdict="broken", findings=("NaN or infinite numbers are in the unmerged model.",))
    if unserved := sum(other.strip() == of_base.strip() for _, _, other, of_base in changed):
        findings.append(f"{unserved} of the answers that differ are those of the base: is the adapter served?")
    if empty := sum(not other.strip() for _, _, other in differ):
        findings.append(f"{empty} of the answers that differ are empty.")
    if cut := sum(bool(own and other) and (own.startswith(other) or other.startswith(own)) for _, own, other in differ):
        findings.append(f"{cut} of them begin alike and end elsewhere: do both stop at {max_new_tokens} tokens?")
    if result.interval[0] > BROKEN:
        return replace(result, verdict="broken", findings=tuple(findings))
    if not shown:
        return replace(result, verdict="look" if changed else "not shown", findings=(*findings, _NOT_REACHED))
    if not changed and Score(0, None, shown).interval[1] < BROKEN:
        return replace(result, verdict="safe")
    if not changed:
        findings.append(f"To {shown} of these prompts the adapter answers otherwise than its base. Answers alone vouch "
                        "for no more: ask 35 such prompts.")
    return replace(result, findings=tuple(findings))


_NOTHING = "On these prompts the adapter does nothing: it is not trained, or disabled."
_NOT_REACHED = "On these prompts the adapter does nothing, so they cannot tell. Give prompts that need what it learned."
_DISABLED = "The adapter does nothing: it is disabled, and a merge adds it even so. Call model.enable_adapter_layers()."
_OTHERWISE = (
    "The weights and the config are equal, and the models compute otherwise, by more than rounding: another "
    "activation, another scaling of attention, patched code or another version of the model's code. Load "
    "both in the same way."
)
_UNREAD = "The deployed 4-bit weights are packed for this CPU and not compared. Audit them before the first evaluation."
_PACKED = (
    "The 4-bit weights are in the layout that bitsandbytes packs for this CPU at the first evaluation, and PEFT merges "
    "them as if they were not. Load base and adapter again, and merge before the first evaluation."
)


def _generation(model, deployed) -> str:
    own, other = (getattr(one, "generation_config", None) for one in (model, deployed))
    differ = effective.differing(own.to_dict(), other.to_dict(), ("transformers", "_")) if own and other else []
    return f": {'; '.join(differ)}." if differ else "."


def _sampling(deployed) -> list[str]:
    used = getattr(deployed, "generation_config", None)
    if used is None or not used.do_sample:
        return []
    return [f"The verdict is of greedy answers, and the deployed model would sample (do_sample=True, temperature "
            f"{used.temperature}): its answers vary from call to call."]


def _changed(tokenizer, rows, expected, found) -> tuple[tuple[str, str, str], ...]:
    return tuple((asking.text_of(tokenizer, row), asking.text_of(tokenizer, one), asking.text_of(tokenizer, other))
                 for row, one, other in zip(rows, expected, found) if one != other)


def _served(answers, rows, tokenizer, deployed) -> list[str]:
    if deployed is not None:
        raise LabError("Give deployed, a model, or answers, the texts that an engine served: not both.")
    if tokenizer is None:
        raise LabError("The answers are texts: give the tokenizer as well, as tokenizer=.")
    if isinstance(answers, (str, Mapping)) or not isinstance(answers, Iterable):
        raise LabError(f"answers is {reprlib.repr(answers)}. Give a list of texts, one for each prompt in their order.")
    answers = list(answers)
    if wrong := [answer for answer in answers if not isinstance(answer, str)]:
        raise LabError(f"One of the answers is {reprlib.repr(wrong[0])}. Give the text of each answer.")
    if len(answers) != len(rows):
        raise LabError(f"There are {len(answers)} answers to {len(rows)} prompts. Give one for each, in their order.")
    return answers


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


def _check_deployed(model, deployed) -> None:
    if deployed is None:
        return
    if not hasattr(getattr(deployed, "config", None), "is_encoder_decoder"):
        raise LabError(f"deployed is {reprlib.repr(deployed)}. Load it first, the way production does, and give the "
                       "model of transformers.")
    if deployed.can_generate() != model.can_generate():
        raise LabError(f"deployed is a {type(_plain(deployed)).__name__}, and the unmerged model a "
                       f"{type(_plain(model)).__name__}. Load it with the same class.")


def _plain(model):
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _merged_copy(model):
    """`merge_and_unload` of a deep copy, and PEFT's warnings with their counts."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merged = effective.duplicate(model).merge_and_unload()
    except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise LabError(f"This model cannot be merged: {reason(error)} Serve base and adapter as they are.") from error
    said = collections.Counter(str(w.message).strip().splitlines()[0] for w in caught
                               if not issubclass(w.category, (FutureWarning, DeprecationWarning)))
    return merged, said
