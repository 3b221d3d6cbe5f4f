"""Checks of the exercises of lesson 3: each runs the learner's answer on fresh inputs and says what it found."""

import torch

from ..question_kinds import Verdict
from . import say


def absmax(function) -> Verdict:
    """Check: does `function(weights, block)` give the codes and scales of absmax quantisation in blocks of a row?"""
    for rows, columns, block in ((5, 128, 64), (3, 60, 60), (4, 48, 12)):
        weights = torch.randn(rows, columns) * torch.rand(rows, 1) * 9
        found = function(weights, block)
        if not isinstance(found, tuple) or len(found) != 2:
            return say(False, f"Expected codes and scales, found {type(found).__name__}.")
        codes, scales = (tensor.cpu() for tensor in found)
        blocks = weights.reshape(rows, -1, block)
        steps = blocks.abs().amax(-1) / 127
        if scales.numel() != steps.numel():
            return say(False, f"A {rows} × {columns} matrix in blocks of {block} has {steps.numel()} scales; "
                              f"yours are {scales.numel()}.")
        if codes.dtype != torch.int8 or codes.shape != weights.shape:
            return say(False, f"Expected int8 codes of shape {tuple(weights.shape)}, found {codes.dtype} of shape "
                              f"{tuple(codes.shape)}.")
        worst = (codes.reshape(blocks.shape) - blocks / steps[..., None]).abs().max().item()
        if worst > 0.501:
            return say(False, f"In blocks of {block}, a code is {worst:.1f} steps away from its weight; rounding "
                              "allows half a step.")
    return say(True, "Right for three block lengths.")
