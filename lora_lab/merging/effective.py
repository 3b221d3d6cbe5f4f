"""The weights and settings that a model computes with: what PEFT has wrapped around a layer is merged, in a copy of it.

However an adapter came to be, these are what two models must have in common; `weights` compares the weights.
"""

import copy
from collections.abc import Iterator
from typing import TypeAlias

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight

from .. import meta_model

Weight: TypeAlias = tuple[torch.nn.Module, str]  # its owner, and the name there
HALVES = torch.bfloat16, torch.float16
COARSE = 0.25  # of a matrix's norm: no quantisation in use changes it by more
WRAPPERS = BaseTunerLayer, AuxiliaryTrainingWrapper  # adapters; and what was trained beside them, whole or in rows


def sites(model: torch.nn.Module, path: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the path of each module in the model without PEFT, and the module, with all that PEFT wraps around it."""
    model = getattr(model, "_orig_mod", model)  # of a compiled one
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    yield path, model
    if not isinstance(model, WRAPPERS):
        for name, child in model.named_children():
            yield from sites(child, f"{path}.{name}".lstrip("."))


def bare(site: torch.nn.Module) -> torch.nn.Module:
    """Return the module that PEFT found there: the base's."""
    if isinstance(site, AuxiliaryTrainingWrapper):
        return site.original_module
    return site.get_base_layer() if isinstance(site, BaseTunerLayer) else site


def merged(site: torch.nn.Module) -> torch.nn.Module | None:
    """Return a module with the weights that `site` computes with: itself, or of a layer with an adapter a merged copy.

    The copy is in float32, whatever the layer is in. None for what cannot be told: no merge gives it, PEFT's merge
    computes something else than the layer, or the weights are quantised in a way that PEFT does not read.
    """
    if not isinstance(site, WRAPPERS) or site.disable_adapters or getattr(site, "merged", False):
        return bare(site)
    try:
        if isinstance(site, ModulesToSaveWrapper):
            return site.unload_and_optionally_merge_module(merge=False, safe_merge=False, adapter_names=None)
        if quantised(bare(site)):
            return _merged_quantised(site)
        layer = duplicate(site).float().eval()
        example, base = _example(bare(layer)), bare(layer)
        with torch.no_grad():
            before = None if example is None else layer(example)
            if hasattr(layer, "unload_and_optionally_merge_module"):
                base = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            else:
                layer.merge()
            if before is not None and (off := (base(example) - before).abs()).numel():
                scale = before.abs().max() + base(example).abs().max()
                if off.max() > 1e-3 * scale:  # NaN is not, and found in the weights
                    return None
    except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError, KeyError):
        return None
    return base


def _merged_quantised(layer) -> torch.nn.Module | None:
    """The sum that PEFT would quantise anew when it merges."""
    if not isinstance(layer, LoraLayer) or any(layer.lora_bias.values()) or not meta_model.linear_shape(bare(layer)):
        return None
    layer = duplicate(layer)  # variants of LoRA note things down while they merge
    weight = value((bare(layer), "weight"))
    for name in layer.active_adapters if weight is not None else ():
        if name in layer.lora_variant:
            weight = layer.lora_variant[name].merge_safe(layer, name, weight)
        elif name in layer.scaling:
            weight = weight + layer.get_delta_weight(name).float()
    if weight is None:
        return None
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = torch.nn.Parameter(weight, requires_grad=False), bare(layer).bias
    return linear


def _example(base):
    """What a layer is tried on before and after its merge: all tokens, or four random rows."""
    device = next(base.parameters()).device
    if isinstance(base, torch.nn.Embedding):
        return torch.arange(base.num_embeddings, device=device)
    if (shape := meta_model.linear_shape(base)) is None:
        return None
    return torch.randn(4, shape[1], generator=torch.Generator().manual_seed(0)).to(device)


def duplicate(module: torch.nn.Module) -> torch.nn.Module:
    """Return a deep copy, which torch refuses for tensors with a history; PEFT keeps such where weights are tied."""
    return copy.deepcopy(module, {
        id(tensor): tensor.detach().clone()
        for part in module.modules() for tensor in _tensors(vars(part)) if not tensor.is_leaf
    })


def _tensors(held) -> Iterator[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, dict):
        for item in held.values():
            yield from _tensors(item)


def weights(module: torch.nn.Module, site: torch.nn.Module) -> dict[str, Weight]:
    """Return the weights and saved buffers of `module`, what is merged or bare of `site`: by name, owner and attribute.

    Of a layer with an adapter also those of the modules inside; elsewhere these are sites of their own.
    """
    found = {}
    for path, owner in module.named_modules() if isinstance(site, WRAPPERS) else [("", module)]:
        kept = [name for name in owner._buffers if name not in owner._non_persistent_buffers_set]
        for name in [*owner._parameters, *kept]:
            tensor = getattr(owner, name)
            if tensor is not None and (tensor.is_floating_point() or name == "weight"):
                found[f"{path}.{name}".lstrip(".")] = owner, name
    return found


def quantised(module: torch.nn.Module) -> bool:
    """Return whether the module's weights are whole numbers with scales, or in a class of torchao's."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and (
        not weight.is_floating_point() or type(weight).__module__.startswith("torchao."))


def value(weight: Weight) -> torch.Tensor | None:
    """Return a weight in float32, dequantised where PEFT can; None for other whole numbers, and what is offloaded."""
    owner, name = weight
    tensor = getattr(owner, name)
    if tensor.is_meta:
        return None
    with torch.no_grad():
        if name == "weight" and quantised(owner):
            try:
                tensor = dequantize_module_weight(owner)
            except (ValueError, RuntimeError, AttributeError, TypeError):
                return None
        return tensor.detach().float() if tensor.is_floating_point() else None


def packed(model: torch.nn.Module) -> bool:
    """Return whether bitsandbytes has packed 4-bit weights for this CPU, which PEFT does not know of."""
    states = (getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules())
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def held(tensor: torch.Tensor) -> torch.dtype:
    """Return the precision that a tensor's numbers are in; it may hold them in more bits."""
    return next((dtype for dtype in HALVES if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)), tensor.dtype)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal, once both are in the coarser of the precisions of their numbers."""
    kinds = {held(one), held(other)}
    if kinds == set(HALVES):  # neither holds the other's numbers
        return torch.allclose(one, other, rtol=2**-8, atol=1e-7)
    coarser = min(kinds, key=lambda dtype: torch.finfo(dtype).bits)
    return torch.equal(one.to(coarser), other.to(coarser)) or torch.allclose(one, other, rtol=1e-5, atol=1e-9)


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors differ by no more than quantisation changes one."""
    return bool((other - one).norm() <= COARSE * one.norm())


def ways(model: torch.nn.Module, deployed: torch.nn.Module) -> list[str]:
    """Return what else may let two models compute otherwise: forward hooks, and buffers that no file has."""
    there, found = dict(sites(deployed)), []
    for path, site in sites(model):
        if (other := there.get(path)) is None:
            continue
        own, its = _hooks(site), _hooks(other)
        if own != its:
            found.append(f"Forward hooks on {path or 'the model'}: {', '.join(its) or 'none'} in the deployed model "
                         f"instead of {', '.join(own) or 'none'}.")
        one, two = bare(site), bare(other)
        for name in sorted(one._non_persistent_buffers_set & two._non_persistent_buffers_set):
            want, have = getattr(one, name), getattr(two, name)
            if want is not None and have is not None and not (want.is_meta or have.is_meta) and (
                    want.shape != have.shape or not same(want.float().cpu(), have.float().cpu())):
                found.append(f"The buffer {path}.{name}, which is in no file, is another one in the deployed model.")
    return found


def _hooks(site: torch.nn.Module) -> list[str]:
    held = [hook for module in {id(one): one for one in (site, bare(site))}.values()
            for hooks in (module._forward_pre_hooks, module._forward_hooks) for hook in hooks.values()]
    return sorted(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in held)


# What a config says of files, training, and what the weights themselves show.
_NOT_COMPUTED = (
    "_", "transformers", "dtype", "architectures", "quantization_config", "use_cache", "tie_", "vocab_size", "output_",
    "return_dict", "initializer", "dropout", "token_id", "label2id", "id2label", "problem_type", "auto_map",
    "gradient_checkpointing", "task_specific_params", "pretraining_tp", "aux_loss_coef", "chunk_size_feed_forward",
)


def settings(config, other) -> list[str]:
    """Return in which settings that change what a model computes the config `other` is another one."""
    found = differing(config.to_dict(), other.to_dict(), _NOT_COMPUTED)
    scaled = "dynamic", "yarn", "longrope"  # whose positions depend on how many there are
    if not any(kind in str(one.to_dict()) for kind in scaled for one in (config, other)):
        found = [line for line in found if "max_position_embeddings" not in line]
    return found


def differing(own: dict, other: dict, ignored: tuple[str, ...], above: str = "") -> list[str]:
    """Return the entries, also of dicts inside, in which two dicts differ; an absent one is None."""
    found = []
    for key in sorted({*own, *other}, key=str):
        one, two, path = own.get(key), other.get(key), f"{above}{key}"
        if any(part in str(key) if part[0] != "_" else str(key).startswith(part) for part in ignored):
            continue
        if isinstance(one, dict) and isinstance(two, dict):
            found += differing(one, two, ignored, f"{path}.")
        elif one != two:
            found.append(f"{path} {two} in the deployed model instead of {one}")
    return found
