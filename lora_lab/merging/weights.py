"""What the weights of a deployed model say: how often the update is in them, and on which base.

Compares weights alone; what they do to logits and answers is in `merging`.
"""

import collections
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight

HALVES = torch.bfloat16, torch.float16


def packed(model: torch.nn.Module) -> bool:
    """Return whether bitsandbytes has packed 4-bit weights for this CPU, which PEFT does not know of."""
    states = (getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules())
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def tied_targets(model: torch.nn.Module) -> list[str]:
    """Return the adapted layers whose weight another module uses as well."""
    holders = collections.defaultdict(set)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            holders[id(parameter)].add(path)
    return [
        path.removeprefix("base_model.model.") for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
        and len(holders[id(getattr(module.get_base_layer(), "weight", None))]) > 1
    ]


@dataclass(frozen=True)
class Comparison:
    """What the weights of a deployed model say.

    `update`: how many times the adapter's update is in them (1 is right), None where no layer is plain LoRA. `faults`
    are wrong whatever the answers are; `hints` may explain why answers differ.
    """

    update: float | None
    faults: list[str]
    hints: list[str]


NOTHING = Comparison(None, [], [])


def compare(model: torch.nn.Module, deployed: torch.nn.Module) -> Comparison:
    """Compare the weights of `deployed` with those of a PEFT model with its adapter unmerged."""
    reference, found = _underlying(model), _underlying(deployed)
    layers = dict(found.named_modules())
    along, before, size, rest, rounding = 0.0, 0.0, 0.0, 0.0, 0.0
    scalings, touched, unlike = set(), set(), []
    for path, layer in _adapted(reference):
        touched.add(path)
        there = layers.get(path)
        own, stored = _stored(layer.get_base_layer()), _stored(_base_layer(there))
        if own is not None and (stored is None or stored.shape != own.shape):
            unlike.append(path)
            continue
        if own is None or stored is None or not _plain(layer):
            continue
        delta, added, stored = _delta(layer), 0.0, stored.to(own.device)  # the other model may be elsewhere
        if isinstance(there, LoraLayer) and not there.merged:
            if not _plain(there):
                continue
            added = _delta(there).to(own.device)
            scalings |= {(_scaling(layer), _scaling(there))}
        change = stored + added - own
        times, of = (change * delta).sum().item(), delta.square().sum().item()
        before += ((stored - own) * delta).sum().item()
        along += times
        size += of
        rest += (change - (times / of if of else 0.0) * delta).square().sum().item()
        rounding += (_grain(layer.get_base_layer(), _base_layer(there)) * stored.norm().item()) ** 2
    update = along / size if size else None
    faults, hints = [], []
    others, differ = _untouched(reference, found, touched)
    if differ:
        faults.append(f"Another base: {differ} of the {others} tensors that the adapter does not touch differ from "
                      "those of the model it was compared with.")
    rescaled = [pair for pair in sorted(scalings) if abs(pair[0] - pair[1]) > 1e-6 * abs(pair[0])]
    if rescaled:
        faults.append(f"Another scaling (alpha/r): {rescaled[0][1]:g} in the deployed model, {rescaled[0][0]:g} in the "
                      "one it was compared with. Compare lora_alpha in the two configs.")
    if size and not differ and scalings and before / size > 0.5:
        faults.append(f"The base under the adapter holds the update {before / size:.2f} times already: it had been "
                      "merged before the adapter was loaded onto it.")
    elif update is not None and not differ and not scalings and update > 1.5:
        faults.append(f"The update is in it {update:.2f} times: merged more than once, or with another alpha.")
    elif update is not None and not rescaled and abs(update - 1) > 0.05:
        hints.append(_SHARE["adapter" if scalings else "merged"])
    if unlike:
        hints.append(f"Another architecture: {len(unlike)} of the adapted layers are missing in the deployed model or "
                     f"of another shape, such as {unlike[0]}.")
    if not differ and rest > rounding:
        hints.append("The adapted weights differ by more than the update and its rounding: another base, or other "
                     "training, or weights that were quantised in between.")
    hints += [f"{path} was trained as a whole (modules_to_save), and is another one in the deployed model."
              for path in _retrained(reference, layers)]
    return Comparison(update, faults, hints)


_SHARE = {
    "merged": "The update's share is off: rounded away (merge into 16 or 32 bits and quantise afterwards), never "
              "merged, or merged with another alpha.",
    "adapter": "The update's share is off: the deployed adapter is another one.",
}


def _grain(*layers) -> float:
    """The most that rounding changes a weight by, as a share of it; infinite for quantised weights."""
    weights = [layer.weight for layer in layers]
    if not all(weight.is_floating_point() for weight in weights):
        return math.inf
    rounded = [dtype for dtype in HALVES if torch.equal(weights[1].to(dtype).to(weights[1].dtype), weights[1])]
    return 8 * max(torch.finfo(dtype).eps for dtype in [*rounded, *(weight.dtype for weight in weights)])


def _retrained(reference, layers) -> Iterator[str]:
    """Modules that the adapter brings along whole, and whose weights are others in `layers`."""
    for path, module in reference.named_modules():
        if not isinstance(module, ModulesToSaveWrapper):
            continue
        own, there = _in_use(module), _in_use(layers.get(path))
        if any(_is_another(weight, getattr(there, name, None)) for name, weight in own.named_parameters(recurse=False)):
            yield path


def _is_another(weight: torch.Tensor, other: torch.Tensor | None) -> bool:
    if other is None or other.shape != weight.shape:
        return True
    return other.is_floating_point() and not _same(weight, other.to(weight.device))


def _in_use(module):
    if not isinstance(module, ModulesToSaveWrapper):
        return module
    active = next((name for name in module.active_adapters if name in module.modules_to_save), None)
    return module.modules_to_save[active] if active else module.original_module


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
    """The layer's weight in float32, dequantised; None for a layer without one, or without a layer."""
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
    if {one.dtype, other.dtype} == set(HALVES):  # neither holds the other's numbers
        return torch.allclose(one.float(), other.float(), rtol=2**-8, atol=1e-7)
    coarser = min(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    return torch.equal(one.to(coarser), other.to(coarser)) or any(  # or rounded on the way, and held in more bits again
        torch.equal(one.to(dtype).to(other.dtype), other) for dtype in HALVES)


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")
