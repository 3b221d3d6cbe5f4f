"""Checks of the exercises of lesson 6: each runs the learner's answer on fresh inputs and says what it found."""

import random
import tempfile

import torch
from peft import LoraConfig, get_peft_model

from ... import pocket
from ..question_kinds import Verdict
from . import deployments, say


def faults(found: dict, folder) -> Verdict:
    """Check: does `found` name the fault of each deployment in `folder`?"""
    right = deployments.faults(folder)
    if not isinstance(found, dict) or set(found) != set(right):
        return say(False, f"Expected a dict with the keys {', '.join(right)}.")
    if unknown := sorted({str(fault) for fault in found.values()} - set(deployments.FAULTS)):
        return say(False, f"{unknown[0]!r} is none of {', '.join(deployments.FAULTS)}.")
    count = sum(found[name] == fault for name, fault in right.items())
    return say(count == len(right), f"{count} of {len(right)} are right.")


def repaired(function) -> Verdict:
    """Check: does `function(folder, right_base, alpha)` give the model that was meant, for each fault?"""
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
                return say(False, f"Expected a model, found {type(model).__name__}.")
            off = (model.eval()(ids.to(model.device)).logits.cpu() - expected).abs().max().item()
            if not off < 1e-3:
                return say(False, f"The deployment with the fault {fault!r}: its logits are off by up to {off:.2g}.")
    return say(True, "All four answer as the model that was trained.")
