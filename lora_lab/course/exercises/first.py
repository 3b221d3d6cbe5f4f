"""Checks of the exercises of lesson 0: each runs the learner's answer on fresh inputs and says what it found."""

import json
import random
import reprlib

from ... import smart_home
from ..question_kinds import Verdict
from . import say


def small_adapter(config, base_config, megabytes: float) -> Verdict:
    """Check: does `config` adapt every linear layer in a float32 adapter file under `megabytes`?"""
    import torch  # here: the other checks need none of it
    from peft import get_peft_model

    from ... import meta_model

    with torch.device("meta"):  # shapes without memory
        model = get_peft_model(meta_model.build(base_config), config)
    linear = sum(
        isinstance(module, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
        for name, module in model.named_modules()
    )
    adapted = len(model.base_model.targeted_module_names)
    size = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name) * 4 / 1e6
    solved = adapted == linear and size < megabytes
    found = f"{size:.2f} MB of adapter weights (under {megabytes} wanted), {adapted} of {linear} layers adapted."
    return say(solved, found)


def exact_by_device(function) -> Verdict:
    """Check: does `function(commands, answers)` give the share of exact answers for each device?"""
    rng = random.Random()
    commands = smart_home.commands("train", n=60, seed=rng.randrange(10**6))
    answers = [c.answer if rng.random() < 0.7 else "{}" for c in commands]
    right: dict[str, list[bool]] = {}
    for command, answer in zip(commands, answers):
        right.setdefault(list(json.loads(command.answer))[1], []).append(answer == command.answer)
    expected = {device: sum(flags) / len(flags) for device, flags in right.items()}
    found = function(commands, answers)
    if not isinstance(found, dict):
        return say(False, f"Expected a dict, found {type(found).__name__}.")
    for device, share in expected.items():
        if device not in found:
            return say(False, f"{device!r} is missing; your function returned {sorted(map(str, found))}.")
        if not isinstance(found[device], (int, float)) or abs(found[device] - share) > 1e-6:
            return say(False, f"{device!r} should be {share:.3f} on the check's data, yours is {found[device]!r}.")
    return say(True, f"All {len(expected)} devices agree.")


def labels(function) -> Verdict:
    """Check: does `function(input_ids, answer_length)` leave the answer in the loss, and nothing else?"""
    rng = random.Random()
    for length in (5, 12, 9):
        ids, answer = [rng.randrange(2, 49152) for _ in range(length)], rng.randrange(1, length)
        right = [-100] * (length - answer) + ids[length - answer:]
        found = function(list(ids), answer)
        if not isinstance(found, (list, tuple)) or len(found) != length:
            return say(False, f"Expected a list of {length} labels, one a token; found {reprlib.repr(found)}.")
        if list(found[:-1]) == right[1:]:
            return say(False, "Your labels are shifted by one. They line up with the inputs, one for one: the model "
                              "shifts them itself.")
        if list(found) == ids:
            return say(False, "Every token counts here, as in `input_ids`. Which of them does the model have to write?")
        for place, (label, wanted) in enumerate(zip(found, right)):
            if label != wanted:
                whose = "command's" if wanted == -100 else "answer's"
                return say(False, f"Of {length} tokens the last {answer} are the answer's. Token {place}, counted from "
                                  f"0, is the {whose}: its label should be {wanted}, yours is {reprlib.repr(label)}.")
    return say(True, "The loss counts the answers, and nothing else.")
