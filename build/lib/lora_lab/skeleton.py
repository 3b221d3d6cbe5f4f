"""PEFT at work on a model without weights: what `get_peft_model` does, in milliseconds and without memory."""

from __future__ import annotations

import copy
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedConfig

VALUES_ONLY = ("eva", "olora", "pissa", "corda", "loftq", "lora_ga")  # initialisations that change no shape


def adapt(model, config: LoraConfig) -> tuple[PeftModel, list[str]]:
    """A skeleton of `model` after `get_peft_model`, and PEFT's warnings. Changes neither argument.

    Raises what PEFT raises. The skeleton's parameters have shapes and no values.
    """
    config = copy.deepcopy(config)
    if str(config.init_lora_weights).lower().startswith(VALUES_ONLY):
        config.init_lora_weights = True
    with warnings.catch_warnings(record=True) as caught, torch.device("meta"), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("always")
        adapted = get_peft_model(bare(model), config)
    return adapted, [str(w.message) for w in caught if not issubclass(w.category, FutureWarning)]


def bare(model):
    """The same modules under the same names, with parameters on the meta device.

    A copy by hand: deepcopy would also copy what layers keep beside their parameters.
    """
    seen = {}  # tied weights stay tied, shared modules stay shared

    def tensor(original):
        if original is not None and id(original) not in seen:
            empty = torch.empty_like(original, device="meta")
            if isinstance(original, torch.nn.Parameter):
                empty = torch.nn.Parameter(empty, requires_grad=original.requires_grad)
                empty.__dict__.update(original.__dict__)  # quantised weights keep their settings here
            seen[id(original)] = empty
        return seen.get(id(original))

    def module(original):
        if original is not None and id(original) not in seen:
            clone = seen[id(original)] = object.__new__(type(original))
            clone.__dict__ = {name: attribute(value) for name, value in vars(original).items()}
            clone._parameters = {name: tensor(p) for name, p in original._parameters.items()}
            clone._buffers = {name: tensor(b) for name, b in original._buffers.items()}
            clone._modules = {name: module(child) for name, child in original._modules.items()}
        return seen.get(id(original))

    def attribute(original):
        if isinstance(original, PreTrainedConfig):  # layer_replication changes the number of layers in it
            return seen.setdefault(id(original), copy.deepcopy(original))
        return copy.copy(original) if isinstance(original, (dict, list, set)) else original  # PEFT may add hooks

    return module(model)
