"""What the weights of a deployed model say: how often the update is in them, and on which base.

Compares weights alone; what they do to logits and answers is in `merging`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight


def packed(model) -> bool:
    """Whether bitsandbytes has packed 4-bit weights for this CPU, which PEFT does not know of."""
    states = (getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules())
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def tied_targets(model) -> list[str]:
    """Adapted layers whose weight another module uses as well."""
    holders = collections.defaultdict(set)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            holders[id(parameter)].add(path)
    return [
        path.removeprefix("base_model.model.") for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
        and len(holders[id(getattr(module.get_base_layer(), "weight", None))]) > 1
    ]


def compare(model, deployed) -> tuple[float | None, list[str]]:
    """How many times the update is in `deployed`, and the faults that its weights show."""
    reference, found = _underlying(model), _underlying(deployed)
    layers = dict(found.named_modules())
    along, before, size, scalings, touched = 0.0, 0.0, 0.0, set(), set()
    for path, layer in _adapted(reference):
        touched.add(path)
        there = layers.get(path)
        if there is None or not _plain(layer):
            continue
        own, delta = _stored(layer.get_base_layer()), _delta(layer)
        stored, added = _stored(_base_layer(there)), 0.0
        if isinstance(there, LoraLayer) and not there.merged:
            if not _plain(there):
                continue
            added = _delta(there)
            scalings |= {(_scaling(layer), _scaling(there))}
        if stored is None or own is None or stored.shape != own.shape:
            continue
        before += ((stored - own) * delta).sum().item()
        along += ((stored + added - own) * delta).sum().item()
        size += delta.square().sum().item()
    findings = []
    others, differ = _untouched(reference, found, touched)
    if differ:
        findings.append(f"Another base: {differ} of the {others} tensors that the adapter does not touch differ from "
                        "those of the model it was compared with.")
    if any(abs(here - there) > 1e-6 * abs(here) for here, there in scalings):
        here, there = next((a, b) for a, b in sorted(scalings) if a != b)
        findings.append(f"Another scaling (alpha/r): {there:g} in the deployed model, {here:g} in the one it was "
                        "compared with. Compare lora_alpha in the two configs.")
    if not size:
        return None, findings
    if not differ and scalings and before / size > 0.5:
        findings.append(f"The base under the adapter holds the update {before / size:.2f} times already: it had been "
                        "merged before the adapter was loaded onto it.")
    elif not differ and not scalings and along / size > 1.5:
        findings.append(f"The update is in it {along / size:.2f} times: merged more than once, or with another alpha.")
    return along / size, findings


def _underlying(model):
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _adapted(model) -> Iterator[tuple[str, BaseTunerLayer]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer))


def _base_layer(module):
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _plain(layer) -> bool:
    """Whether the layer adds scaling·BA to one weight and nothing else."""
    if not isinstance(layer, LoraLayer):
        return False
    active = [name for name in layer.active_adapters if name in layer.scaling]
    return hasattr(layer, "get_delta_weight") and not any(name in layer.lora_variant for name in active) \
        and isinstance(getattr(layer.get_base_layer(), "weight", None), torch.Tensor) \
        and not hasattr(layer, "parameter_name")


def _delta(layer) -> torch.Tensor:
    active = [name for name in layer.active_adapters if name in layer.scaling]
    if layer.disable_adapters or not active:
        return torch.zeros(())
    with torch.no_grad():
        return sum(layer.get_delta_weight(name).float() for name in active)


def _scaling(layer) -> float:
    return sum(layer.scaling[name] for name in layer.active_adapters if name in layer.scaling)


def _stored(layer) -> torch.Tensor | None:
    """The layer's weight in float32, dequantised."""
    with torch.no_grad():
        weight = dequantize_module_weight(layer) if hasattr(layer, "weight") else None
    return None if weight is None else weight.detach().float()


def _untouched(reference, found, touched: set[str]) -> tuple[int, int]:
    """How many weights the adapter does not touch, and how many of them differ by more than another precision does."""
    tied = {id(parameter) for path in touched for parameter in reference.get_submodule(path).parameters()}
    theirs = {_plain_name(name): parameter for name, parameter in found.named_parameters()}
    count = differ = 0
    for name, own in reference.named_parameters():
        name = _plain_name(name)
        other = theirs.get(name)
        trained = any(part in name for part in ("lora_", ".modules_to_save.", ".original_module.", "token_adapter"))
        if trained or own.requires_grad or id(own) in tied or other is None:
            continue
        if own.is_floating_point() and other.is_floating_point() and own.shape == other.shape:
            count += 1
            differ += not _same(own, other.to(own.device))
    return count, differ


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, once both are in the coarser of their two precisions."""
    if {one.dtype, other.dtype} == {torch.bfloat16, torch.float16}:  # neither holds the other's numbers
        return torch.allclose(one.float(), other.float(), rtol=2**-8, atol=1e-7)
    coarser = min(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    return torch.equal(one.to(coarser), other.to(coarser))


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")
