"""Where the memory of a fine-tuning goes: planned from a config alone, and measured around a block of code.

`plan` counts parameters on a model without weights (`meta_model`) and lets it rehearse one training step
(`rehearsal`). Pictures are in `plots`, sliders in the course's `explorers`.
"""

import copy
import math
import re
from dataclasses import asdict, dataclass

import torch
from peft import LoraConfig, PeftModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from .. import meta_model, models
from ..errors import LabError, nearest, reason
from ..targets import layer_names
from . import rehearsal, stand_ins

# Bytes of optimizer state for each trained parameter of `size` bytes. AdamW: Loshchilov & Hutter 2019, two running
# means; in 8 bits: 8-bit Optimizers, Dettmers et al. 2022, two bytes and two float32 scales for each block, which has
# 256 of them in bitsandbytes (2,048 in the paper).
OPTIMIZERS = {"adamw": lambda size: 2 * size, "sgd": lambda size: 0, "adamw_8bit": lambda size: 2 + 2 * 4 / 256}
NAMES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_bnb_8bit": "adamw_8bit"}  # the Trainer's
LOSSES = ("full", "chunked", "fused")
FUSED_ATTENTION = ("sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
# Part of a GPU that `fits` keeps free: what CUDA, its libraries and the allocator's gaps take, and what a plan misses.
# The largest part by which a plan fell short of a published peak (benchmarks/results/published_peaks.json). No peak of
# an 8-bit or a float32 base was found published: they take that of 16 bits.
RESERVE = {"16-bit": 0.10, "4-bit": 0.19}


@dataclass(frozen=True)
class Plan:
    """Bytes of GPU memory at the fullest moment of a training step, by part.

    weights_bytes: the base's parameters, as `get_memory_footprint()` counts them.
    quantization_bytes: the scales of quantised weights, which the footprint leaves out.
    adapter_bytes, gradient_bytes, optimizer_bytes: parameters added to train, and what training them takes.
    activation_bytes: what the forward pass holds for the backward pass, and its work space.
    logits_bytes: the scores of all tokens of the vocabulary, and the loss's copies of them.
    reserve: part of a GPU that `fits` keeps free, measured for 16-bit and for 4-bit bases (`RESERVE`).
    trained: the number of parameters that train.
    """

    weights_bytes: int
    quantization_bytes: int
    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    logits_bytes: int
    reserve: float = RESERVE["16-bit"]
    trained: int = 0

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the parts by name, in bytes: the fields whose names end so."""
        return {name: value for name, value in asdict(self).items() if name.endswith("_bytes")}

    def fits(self, gpu_gb: float) -> bool:
        """Whether this fits a GPU of `gpu_gb` GB (10^9 bytes), of which `reserve` is kept free."""
        if isinstance(gpu_gb, bool) or not isinstance(gpu_gb, (int, float)) or not gpu_gb > 0:
            raise LabError(f"gpu_gb is {gpu_gb!r}. Give the GPU's memory in GB, a number above 0.")
        return self.total_bytes <= (1 - self.reserve) * gpu_gb * 1e9

    def __str__(self) -> str:
        parts = ", ".join(f"{name.removesuffix('_bytes')} {human(size)}" for name, size in self.parts().items() if size)
        return f"{human(self.total_bytes)} = {parts}"


def human(size_bytes: float) -> str:
    """Write `size_bytes` in MB or GB (powers of ten)."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def plan(model_or_config_or_hub_id: meta_model.Source, lora: LoraConfig | None = None, precision: str | None = None,
         batch_size: int = 1, seq_len: int = 512, optimizer: str = "adamw", checkpointing: bool | str = False, *,
         logits_to_keep: int = 0, prepared: bool = False, attn_implementation: str | None = None,
         cross_entropy: str = "full", double_quant: bool | None = None,
         compute_dtype: str | torch.dtype | None = None) -> Plan:
    """Plan the bytes that fine-tuning takes on one GPU, by part; loads no weights, and from a hub the config alone.

    The model: a PreTrainedModel, its config, a folder, or a hub id. `lora=None` plans what a PeftModel has, of which
    something must train, and full fine-tuning of any other. Which parameters of a model have `requires_grad` is not
    read: all of the adapter, or of the plain model, count as trained. `precision` is that of `load_base` (default: the
    model's own). What is not quantised is in the model's own dtype, or in float32 when `prepared`
    (`prepare_model_for_kbit_training`).

    - weights: parameters x bytes each: 4 float32, 2 bfloat16 and float16, 1 int8, 1/2 nf4 (linear layers without
      the output head). Scales: 4 bytes a row (LLM.int8(), Dettmers et al. 2022, section 3.1), 4 bytes for 64
      weights (QLoRA, Dettmers et al. 2023, section 3); with `double_quant` 1 byte, and 4 bytes for 256 scales.
    - adapter: r x (in + out) parameters for each adapted layer (LoRA, Hu et al. 2021, section 4.1), in float32
      as PEFT makes them. Gradients: as many bytes again, counted as present all the time, as they are with
      gradient accumulation. AdamW: twice as many.
    - activations and logits: rehearsed with the model's own code, linear in batch_size, without padding. 16-bit
      models run under autocast, as in the Trainer. For what to expect of a transformer see Korthikanti et al. 2022,
      section 4.1; checkpointing: Chen et al. 2016. True is what transformers does by default, "reentrant" torch's
      older kind, the only one that frees what int8 layers keep.

    Named as in transformers and bitsandbytes: `logits_to_keep` (0: all); `attn_implementation`, "eager" or a fused one
    (default: the model's own, fused where it can be); `double_quant` and `compute_dtype`, the `bnb_4bit_` settings of
    nf4 (default: the model's own, else none, and the dtype of what is not quantised). `cross_entropy` says how the
    loss is computed: "full" from all logits, as transformers does; "chunked" from a tile of them at a time, as TRL's
    SFTTrainer does (its `add_fused_lm_head`); "fused" with its gradient, as Liger does (Hsu et al. 2024).

    Raises LabError for what cannot be planned.
    """
    _check_numbers(batch_size=batch_size, seq_len=seq_len)
    if isinstance(logits_to_keep, bool) or not isinstance(logits_to_keep, int) or not 0 <= logits_to_keep <= seq_len:
        raise LabError(f"logits_to_keep is {_shown(logits_to_keep)}. Give 0 for all, or at most seq_len ({seq_len}).")
    _check_choice("optimizer", optimizer, [*OPTIMIZERS, *NAMES])
    _check_choice("cross_entropy", cross_entropy, LOSSES)
    if precision is not None:
        _check_choice("precision", precision, models.PRECISIONS, ", or leave it out")
    if not isinstance(checkpointing, bool) and not (isinstance(checkpointing, str) and checkpointing == "reentrant"):
        raise LabError(f'checkpointing is {_shown(checkpointing)}. Use False, True or "reentrant".')
    for name, value in (("prepared", prepared), ("double_quant", double_quant)):
        if not isinstance(value, bool) and (name, value) != ("double_quant", None):
            raise LabError(f"{name} is {_shown(value)}. Give True or False.")
    if compute_dtype is not None:
        compute_dtype = str(compute_dtype).removeprefix("torch.")
        _check_choice("compute_dtype", compute_dtype, models.TRAINED, ", or leave it out")
    if lora is not None and not isinstance(lora, LoraConfig):
        raise LabError(f"Expected a LoraConfig as `lora`, found {type(lora).__name__}.")
    if lora is not None and lora.inference_mode:
        raise LabError("inference_mode is True in this LoraConfig: nothing would train. Leave it out, or give False.")
    try:
        return _plan(model_or_config_or_hub_id, lora, precision, optimizer, prepared=prepared,
                     attn_implementation=attn_implementation, double_quant=double_quant, compute_dtype=compute_dtype,
                     shape=dict(batch_size=batch_size, seq_len=seq_len, logits_to_keep=logits_to_keep,
                                checkpointing=checkpointing, cross_entropy=cross_entropy))
    except LabError:
        raise
    except Exception as error:  # whatever odd values in a config, or a model's own code, make torch raise
        raise LabError(f"Cannot plan this: {type(error).__name__}: {reason(error, 200)} Check the values of the "
                       "model's config and of the LoraConfig.") from error


def _plan(source, lora, precision, optimizer, *, prepared, attn_implementation, double_quant, compute_dtype,
          shape) -> Plan:
    if lora is None and isinstance(source, PeftModel):
        lora = source.active_peft_config
        if not isinstance(lora, LoraConfig):
            raise LabError(f"The model's adapter is of {type(lora).__name__}. Only LoRA is planned.")
        if not any(parameter.requires_grad for parameter in source.parameters()):
            raise LabError("No parameter of this PeftModel requires a gradient: nothing would train. Load its adapter "
                           "with is_trainable=True, or give its base model and a LoraConfig.")
        lora = copy.copy(lora)
        lora.inference_mode = False  # something trains here, whatever the config notes
    source = models.read_config(source) if isinstance(source, str) else source
    model, own_precision, dtype = meta_model.without_weights(source)
    own = meta_model.quantisation(source)
    if own and not own_precision and not precision:
        raise LabError(f"The model is quantised by {_shown(own.get('quant_method'))}, which is not planned. Give the "
                       f"`precision` that you will train it in: {', '.join(models.PRECISIONS)}.")
    precision = precision or own_precision
    quantised = precision if precision in ("int8", "nf4") else None
    if quantised and lora is None:
        raise LabError(f"Quantised weights cannot be trained. Give a LoraConfig as `lora`, or a precision without "
                       f"quantisation instead of {precision!r}.")
    if precision != "nf4" and (double_quant or compute_dtype):
        raise LabError(f"double_quant and compute_dtype are settings of nf4. Leave them out for {precision}, or give "
                       'precision="nf4".')
    if precision and not quantised:
        dtype = getattr(torch, precision)
    elif dtype is None:  # a config alone: what transformers makes of it
        dtype = torch.bfloat16 if quantised else torch.float32
    autocast = None if dtype == torch.float32 else dtype
    if precision == own_precision == "nf4":
        double_quant = own.get("bnb_4bit_use_double_quant") if double_quant is None else double_quant
        compute_dtype = compute_dtype or str(own.get("bnb_4bit_compute_dtype") or "float32").removeprefix("torch.")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if prepared else dtype)
    _check_positions(model, shape["seq_len"])
    linear = {name: m for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}
    if not linear:
        raise LabError(f"{type(model).__name__} has no linear layers: there is nothing for LoRA to adapt, nor to "
                       "quantise. Give a transformer language model.")
    keep = get_keys_to_not_convert(model)
    skip = {name for name, m in linear.items() if not should_convert_module(name, keep)}
    quantised_layers = [m for name, m in linear.items() if name not in skip] if quantised else []
    weights, scales = _weights(model, quantised_layers, quantised, bool(double_quant))
    before = sum(p.nbytes for p in model.parameters())
    adapted = model if lora is None else _adapt(model, lora)
    if shape["cross_entropy"] != "full":
        _check_head(adapted, shape["cross_entropy"])
    trained = [p for p in adapted.parameters() if p.requires_grad]
    step = _rehearse(adapted, quantisation=dict(
        kind=quantised, skip=skip, compute_dtype=getattr(torch, compute_dtype) if compute_dtype else dtype,
        double_quant=bool(double_quant)) if quantised else None,
        fused_attention=_fused_attention(adapted.config, attn_implementation), autocast=autocast, **shape)
    logits = round(step.head - step.held)
    state_bytes = OPTIMIZERS[NAMES.get(optimizer, optimizer)]
    return Plan(
        weights_bytes=weights,
        quantization_bytes=scales,
        adapter_bytes=sum(p.nbytes for p in adapted.parameters()) - before,
        gradient_bytes=sum(p.nbytes for p in trained),
        optimizer_bytes=math.ceil(sum(p.numel() * state_bytes(p.itemsize) for p in trained)),
        activation_bytes=round(step.peak) - logits,
        logits_bytes=logits,
        reserve=RESERVE["4-bit" if quantised == "nf4" else "16-bit"],
        trained=sum(p.numel() for p in trained),
    )


def _check_choice(name: str, found, known, more: str = "") -> None:
    if not isinstance(found, str) or found not in known:
        raise LabError(f"Unknown {name} {_shown(found)}. Use one of: {', '.join(known)}{more}.{_meant(found, known)}")


def _shown(value) -> str:
    return reason(repr(value), 80)


def _fused_attention(config, wanted: str | None) -> bool:
    """Whether attention runs in one operation, with `wanted` or else what the model itself takes; sets it, if not."""
    if wanted is None:
        return config._attn_implementation != "eager"
    if isinstance(wanted, str) and (wanted in FUSED_ATTENTION or "/" in wanted):  # a kernel of the hub has an owner
        return True
    _check_choice("attn_implementation", wanted, ["eager", *FUSED_ATTENTION], ", or leave it out")
    config._attn_implementation = "eager"
    return False


def _check_head(adapted, cross_entropy: str) -> None:
    head = adapted.get_output_embeddings()
    if not isinstance(rehearsal.trained_head(head) if head is not None else None, torch.nn.Linear):
        raise LabError(f'cross_entropy="{cross_entropy}" is computed from the weight of the output head, which is '
                       f"{'missing' if head is None else 'a ' + type(head).__module__ + '.' + type(head).__name__} "
                       'here: an adapter on it would have no effect. Use "full", or leave the head out of '
                       "target_modules.")


def _check_numbers(**numbers) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LabError(f"{name} is {_shown(value)}. Give a whole number of at least 1.")


def _meant(found, known) -> str:
    """` Did you mean ...?` for the word in `found` (a list's, or a dtype's) that resembles a known one."""
    word = re.sub(r"\W", "", str(found)[:200].removeprefix("torch."))
    close = nearest(word, known)
    return f" Did you mean {close[0]!r}?" if close else ""


def _check_positions(model, seq_len: int) -> None:
    positions = models.positions(model)
    if positions is not None and seq_len > positions:
        raise LabError(f"seq_len is {seq_len}, but {model.config.model_type} has {positions} positions. Give at most "
                       f"{positions}.")


def _adapt(model, lora: LoraConfig):
    try:
        adapted, _ = meta_model.adapt(model, lora)
    except Exception as error:  # a regex that is none raises re.error, odd values whatever they meet first
        raise LabError(f"PEFT refuses this LoraConfig: {reason(error)} `targets.check` says more.") from None
    paths = [path for path, _ in model.named_modules()]
    for entry in sorted(lora.target_modules) if isinstance(lora.target_modules, set) else ():
        if not any(layer_names.matches(entry, path) for path in paths):
            close = layer_names.suggestion(entry[:200], paths)
            raise LabError(f"target_modules has {_shown(entry)}, which matches no layer.{close}")
    return adapted


def _weights(model, quantised_layers: list, kind: str | None, double_quant: bool) -> tuple[int, int]:
    """Bytes of the parameters and buffers, and of the quantised layers' scales."""
    total = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    scales = 0
    for layer in quantised_layers:
        count, rows = layer.weight.numel(), meta_model.linear_shape(layer)[0]  # type: ignore[index]
        total += (count if kind == "int8" else (count + 1) // 2) - layer.weight.nbytes
        blocks = rows if kind == "int8" else math.ceil(count / stand_ins.BLOCK)
        scales += blocks + 4 * (math.ceil(blocks / stand_ins.OUTER_BLOCK) + 1) if double_quant else 4 * blocks
    return total, scales


def _rehearse(adapted, **shape) -> rehearsal.Step:
    try:
        return rehearsal.rehearse(adapted, **shape)
    except Exception as error:  # whatever a model's own code cannot do without values
        raise LabError(f"Cannot rehearse a training step of {adapted.config.model_type!r} without its weights: "
                       f"{type(error).__name__}: {reason(error, 200)}") from error
