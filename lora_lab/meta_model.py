"""Models without weights, on torch's meta device: built from a config, and adapted by PEFT in milliseconds."""

import copy
import re
import warnings
from typing import Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from . import models
from .errors import LabError, reason

Source: TypeAlias = PreTrainedModel | PreTrainedConfig | PeftModel | str  # what can be planned for
MOST_LAYERS = 1000  # to build more takes minutes


def adapt(model: torch.nn.Module, config: LoraConfig) -> tuple[PeftModel, list[str]]:
    """Return what `get_peft_model(model, config)` makes of `model` without its weights, and PEFT's warnings.

    Changes neither argument. Raises what PEFT raises.
    """
    config = copy.deepcopy(config)
    if _needs_values(model, config):
        config.init_lora_weights = True
    with warnings.catch_warnings(record=True) as caught, torch.device("meta"), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("always")
        adapted = get_peft_model(bare(model), config)
    _check_values(adapted)
    return adapted, [str(w.message) for w in caught if not issubclass(w.category, FutureWarning)]


def _needs_values(model, config) -> bool:
    """Whether the initialisation computes from weights or from what was prepared, and changes no shape."""
    init = config.init_lora_weights
    if init == "corda":  # without `preprocess_corda` PEFT refuses it
        return any(hasattr(module, "eigens") for module in model.modules())
    packed = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    return init in ("loftq", "lora_ga") or (packed and str(init).lower() == "olora")


def _check_values(adapted: PeftModel) -> None:
    """Raise what PEFT raises of real weights, and of none without them."""
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and str(adapted.peft_config["default"].init_lora_weights).lower() == "mica":
            if layer.r["default"] > min(layer.in_features, layer.out_features):
                raise ValueError(f"MiCA requires `r` <= min(in_features, out_features) but got r={layer.r['default']}")
        elif isinstance(layer, TrainableTokensLayer):
            size = layer.get_base_layer().weight.shape[0]
            if wrong := [token for token in layer.token_indices["default"] if not -size <= token < size]:
                raise IndexError(f"index {wrong[0]} is out of bounds for dimension 0 with size {size}")


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """Return the same modules under the same names, with parameters on the meta device.

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


def build(config: PreTrainedConfig, model_class: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """Return the causal language model of `config`, or a `model_class` of it, on the meta device.

    Raises what transformers raises of a config that makes no model.
    """
    with torch.device("meta"):
        return model_class(config) if model_class else AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def without_weights(source: Source) -> tuple[PreTrainedModel, str | None, torch.dtype | None]:
    """Return `source` (a model, its config, a folder or a hub id) as a float32 model on the meta device.

    And its quantisation ("int8", "nf4" or None), and the dtype of what is not quantised, if known. Raises LabError.
    """
    if isinstance(source, PeftModel):
        source = source.get_base_model()
    model_class = None
    if isinstance(source, str):
        config = models.read_config(source)
    elif isinstance(source, PreTrainedModel):
        config, model_class = source.config, type(source)
    elif isinstance(source, PreTrainedConfig):
        config = source
    else:
        raise LabError(f"Expected a transformers model, its config, a folder or a hub id, found "
                       f"{type(source).__name__}.")
    config = copy.deepcopy(config)
    quantised = quantisation(config)
    if quantised:
        del config.quantization_config
    own = "int8" if quantised.get("load_in_8bit") else "nf4" if quantised.get("load_in_4bit") else None
    dtype = config.dtype if model_class is None else next(
        p.dtype for p in source.parameters() if p.is_floating_point())  # type: ignore[union-attr]
    config.dtype = None
    if re.search("flash|flex|/", str(config._attn_implementation)):
        config._attn_implementation = None  # else that kernel must be installed, to build what never runs it
    try:
        depth = getattr(config.get_text_config(), "num_hidden_layers", 0)
        if depth > MOST_LAYERS:
            raise ValueError(f"it has {depth:,} layers, and at most {MOST_LAYERS:,} are built.")
        return build(config, model_class).float(), own, dtype
    except Exception as error:  # whatever values that do not fit make of torch's and transformers' own code
        raise LabError(f"Cannot plan for {config.model_type!r}: {reason(error, 200)} Give the config of a causal "
                       "language model.") from None


def quantisation(source: Source) -> dict[str, Any]:
    """Return the `quantization_config` of a model or its config as a dict, an empty one if there is none."""
    found = getattr(getattr(source, "config", source), "quantization_config", None) or {}
    return found if isinstance(found, dict) else getattr(found, "to_dict", lambda: {"quant_method": found})()


def linear_shape(module: torch.nn.Module | None) -> tuple[int, int] | None:
    """Return (out, in) of a linear layer, quantised ones included, or of GPT-2's Conv1D; None for other modules."""
    if isinstance(module, Conv1D):  # stored as (in, out)
        return (module.nf, module.nx)
    if isinstance(module, torch.nn.Linear):
        return (module.out_features, module.in_features)
    return None
