"""Checks of the exercises of lesson 9: each runs the learner's answer on fresh inputs and says what it found."""

import copy
import json
import random
import statistics
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ... import pocket
from ...sweep import interval
from ..question_kinds import Verdict
from . import say

# The middle of an interval and half its width, as multiples of what is worth having, and the verdict that is due.
_CASES = ((-3, 1, "lower"), (3, 1, "higher"), (0.2, 0.5, "alike"), (-0.6, 0.2, "alike"), (0.6, 0.3, "alike"),
          (0.1, 2, "open"), (-1.2, 0.5, "open"), (1.3, 0.6, "open"), (-1.5, 2, "open"))


def four_verdicts(verdict) -> Verdict:
    """Check: does `verdict(differences, worth)` judge by the whole interval, on either side and around zero?"""
    for middle, half, due in random.sample(_CASES, len(_CASES)):
        worth = random.choice((0.01, 0.05, 0.2))
        differences = _with_interval(middle * worth, half * worth, random.choice((4, 5, 6)))
        found = verdict(list(differences), worth)
        if found != due:
            low, high = (middle - half) * worth, (middle + half) * worth
            return say(False, f"An interval from {low:+.3f} to {high:+.3f}, worth {worth:g}: expected {due!r}, found "
                              f"{str(found)[:40]!r}.")
    return say(True, f"Right for {len(_CASES)} intervals, two of which leave out zero and are alike all the same.")


def _with_interval(middle: float, half: float, seeds: int) -> list[float]:
    """Differences whose 95 % interval is `middle` plus and minus `half`."""
    drawn = [random.gauss(0, 1) for _ in range(seeds)]
    scale = half / interval(drawn)[1]
    return [middle + scale * (value - statistics.fmean(drawn)) for value in drawn]


def ship_pissa(ship) -> Verdict:
    """Check: is what `ship(model, start, folder)` saves a plain LoRA adapter that does what the PiSSA model does?"""
    torch.manual_seed(0)
    base = pocket.load()[0]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    model = get_peft_model(copy.deepcopy(base), config).eval()
    with tempfile.TemporaryDirectory() as folder:
        start, saved = f"{folder}/start", Path(folder, "shipped")
        model.save_pretrained(start)
        with torch.no_grad():  # a stand-in for a training
            for weight in (weight for weight in model.parameters() if weight.requires_grad):
                weight += random.choice((0.02, 0.03)) * torch.randn_like(weight)
        live = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        ship(model, start, str(saved))
        if not (saved / "adapter_config.json").is_file():
            return say(False, "Nothing is saved in the folder. model.save_pretrained(folder, ...) writes both files.")
        written = json.loads((saved / "adapter_config.json").read_text())
        if written["init_lora_weights"] is not True:
            return say(False, f"The saved config has init_lora_weights {written['init_lora_weights']!r} and r "
                              f"{written['r']}: whoever loads it takes the base apart again.")
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), saved).eval()
        off = _apart(loaded, model)
        with loaded.disable_adapter():
            base_off = _apart(loaded, base)
    if off > 1e-3 or base_off > 1e-5:
        return say(False, f"Loaded on the plain base, a logit is {off:.2g} off from the model that was trained; with "
                          f"the adapter switched off, {base_off:.2g} from the base.")
    if any(not torch.equal(weight, live[name]) for name, weight in model.named_parameters()):
        return say(False, "It loads as it should, but the weights of the live model have changed.")
    return say(True, f"A plain LoRA adapter of rank {written['r']}, from one of rank 4. On the plain base it answers "
                     f"as the trained model does (a logit is off by {off:.0e}); switched off, the base is back.")


@torch.no_grad()
def _apart(model, other) -> float:
    """The largest difference between two models' logits on some tokens."""
    ids = torch.arange(2, 34).view(2, 16)
    return (model(input_ids=ids).logits - other(input_ids=ids).logits).abs().max().item()
