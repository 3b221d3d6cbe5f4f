"""Checks of the exercises of lesson 6: each runs the learner's answer on fresh inputs and says what it found."""

import random

import torch

from ... import smart_home
from ...cache import model_folder
from ..question_kinds import Verdict
from . import deployments, say


def onto_grid(function) -> Verdict:
    """Check: does `function(W, A, B, scaling, grid)` give a weight on the grid that holds the update?"""
    step = random.choice((0.02, 0.05))
    rows, columns = random.choice((48, 64)), random.choice((96, 128))
    W, A, B, scaling = torch.randn(rows, columns), torch.randn(4, columns), torch.randn(rows, 4), random.choice((2, 4))
    A *= 0.1 * step / (scaling * B @ A).std()  # a tenth of a step
    kept = W.clone()

    def grid(weight: torch.Tensor) -> torch.Tensor:
        return (weight / step).round() * step

    found = function(W, A, B, scaling, grid)
    if not isinstance(found, torch.Tensor) or found.shape != W.shape:
        return say(False, f"Expected a weight of shape {tuple(W.shape)}, found "
                          f"{tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__}.")
    if not torch.equal(W, kept):
        return say(False, "It changed W itself. Return a new weight.")
    found, update = found.detach().cpu().float(), scaling * B @ A
    share = (((found - grid(W)) * update).sum() / update.square().sum()).item()
    if not torch.allclose(found, grid(found), atol=1e-6):
        return say(False, f"It is not on the grid: rounded again, weights move. Of the update, {share:.0%} is in it.")
    if abs(share - 1) > 0.3:
        hint = " scaling times B A is the update." if abs(share * scaling - 1) < 0.6 else ""  # noise, times scaling
        return say(False, f"Of an update of a tenth of a step, {share:.0%} arrives.{hint}")
    return say(True, f"On the grid, and of an update of a tenth of a step {share:.0%} arrives.")


def faults(found: dict, folder) -> Verdict:
    """Check: does `found` name the fault of each deployment in `folder`?"""
    right = deployments.faults(folder)
    if not isinstance(found, dict) or set(found) != set(right):
        return say(False, f"Expected a dict with the keys {', '.join(right)}.")
    if unknown := sorted({str(fault) for fault in found.values()} - set(deployments.FAULTS)):
        return say(False, f"{unknown[0]!r} is none of {', '.join(deployments.FAULTS)}.")
    count = sum(found[name] == fault for name, fault in right.items())
    return say(count == len(right), f"{count} of {len(right)} are right.")


def my_template(template: str) -> Verdict:
    """Check: does the chat template make the training's prompt of a command, whatever was said before it?"""
    from transformers import AutoTokenizer

    if not isinstance(template, str):
        return say(False, f"Expected a template, which is a text, found {type(template).__name__}.")
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    text = random.choice(smart_home.commands("train", 20, random.randrange(1000))).text
    user, wanted = {"role": "user", "content": text}, smart_home.prompt(text)
    earlier = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "{}"}]
    for messages in ([user], [*earlier, user]):
        made = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True,
                                             chat_template=template)
        if made == wanted:
            continue
        if len(messages) > 1:
            return say(False, f"Right for one message. After two earlier ones it makes {made!r}, and training showed "
                              f"{wanted!r}: it never saw a command with others before it.")
        lost = " The new line at the end is lost." if made == wanted.rstrip("\n") else \
            " There is a new line too many." if made.rstrip("\n") == wanted.rstrip("\n") else ""
        return say(False, f"It makes {made!r}, and training showed {wanted!r}.{lost}")
    return say(True, f"It makes {wanted!r}, as training did.")
