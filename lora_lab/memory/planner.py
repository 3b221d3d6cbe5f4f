"""Where the memory of a fine-tuning goes: planned from a config alone, and measured around a block of code.

`plan` counts parameters on a model without weights (`skeleton`) and lets it rehearse one training step
(`rehearsal`). Pictures are in `plots`, sliders in `widgets`.
"""

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
from . import rehearsal

# Bytes of optimizer state for each trained parameter of `size` bytes. AdamW: Loshchilov & Hutter 2019, two running
# means; in 8 bits: Dettmers et al. 2022b, two bytes and two float32 scales for each block of 256.
OPTIMIZERS = {"adamw": lambda size: 2 * size, "sgd": lambda size: 0, "adamw_8bit": lambda size: 2 + 2 * 4 / 256}
NAMES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_bnb_8bit": "adamw_8bit"}  # the Trainer's


@dataclass(frozen=True)
class Plan:
    """Bytes of GPU memory at the fullest moment of a training step, by part.

    weights_bytes: the base's parameters, as `get_memory_footprint()` counts them.
    quantization_bytes: the scales of quantised weights, which the footprint leaves out.
    adapter_bytes, gradient_bytes, optimizer_bytes: parameters added to train, and what training them takes.
    activation_bytes: what the forward pass holds for the backward pass, and its work space.
    logits_bytes: the scores of all tokens of the vocabulary, and the loss's copies of them.
    """

    weights_bytes: int
    quantization_bytes: int
    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    logits_bytes: int

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the parts by name, in bytes: the fields whose names end so."""
        return {name: value for name, value in asdict(self).items() if name.endswith("_bytes")}

    def fits(self, gpu_gb: float) -> bool:
        """Whether this fits a GPU of `gpu_gb` GB (10^9 bytes), with 10 % kept for CUDA and its fragments."""
        if isinstance(gpu_gb, bool) or not isinstance(gpu_gb, (int, float)) or not gpu_gb > 0:
            raise LabError(f"gpu_gb is {gpu_gb!r}. Give the GPU's memory in GB, a number above 0.")
        return self.total_bytes <= 0.9 * gpu_gb * 1e9

    def __str__(self) -> str:
        parts = ", ".join(f"{name.removesuffix('_bytes')} {human(size)}" for name, size in self.parts().items() if size)
        return f"{human(self.total_bytes)} = {parts}"


def human(size_bytes: float) -> str:
    """Write `size_bytes` in MB or GB (powers of ten)."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def plan(model_or_config_or_hub_id: meta_model.Source, lora: LoraConfig | None = None, precision: str | None = None,
         batch_size: int = 1, seq_len: int = 512, optimizer: str = "adamw", checkpointing: bool | str = False, *,
         logits_to_keep: int = 0, prepared: bool = False) -> Plan:
    """Plan the bytes that fine-tuning takes on one GPU, by part; loads no weights, and from a hub the config alone.

    The model: a PreTrainedModel, its config, a folder, or a hub id. `lora=None` plans what a PeftModel has,
    and full fine-tuning of any other. `precision` is that of `load_base` (default: the model's own);
    quantised models keep the rest in their own dtype, or in float32 when `prepared`
    (`prepare_model_for_kbit_training`). `logits_to_keep` is the model's argument of that name (0: all).

    - weights: parameters x bytes each: 4 float32, 2 bfloat16 and float16, 1 int8, 1/2 nf4 (linear layers without
      the output head). Scales: 4 bytes a row (LLM.int8(), Dettmers et al. 2022, section 2.1), 4 bytes for 64
      weights (QLoRA, Dettmers et al. 2023, section 3, without double quantisation).
    - adapter: r x (in + out) parameters for each adapted layer (LoRA, Hu et al. 2021, section 4.1), in float32
      as PEFT makes them. Gradients: as many bytes again, counted as present all the time, as they are with
      gradient accumulation. AdamW: twice as many.
    - activations and logits: rehearsed with the model's own code, linear in batch_size, at fused attention,
      without padding. 16-bit models run under autocast, as in the Trainer. For what to expect of a
      transformer see Korthikanti et al. 2022, section 4.1; checkpointing: Chen et al. 2016. True is what
      transformers does by default, "reentrant" torch's older kind, the only one that frees what int8 layers keep.

    Raises LabError for what cannot be planned.
    """
    _check_numbers(batch_size=batch_size, seq_len=seq_len)
    if not isinstance(logits_to_keep, int) or not 0 <= logits_to_keep <= seq_len:
        raise LabError(f"logits_to_keep is {logits_to_keep!r}. Give 0 for all, or at most seq_len ({seq_len}).")
    kind = NAMES.get(optimizer, optimizer) if isinstance(optimizer, str) else None
    if kind not in OPTIMIZERS:
        known = [*OPTIMIZERS, *NAMES]
        raise LabError(f"Unknown optimizer {optimizer!r}. Use one of: {', '.join(known)}.{_meant(optimizer, known)}")
    if precision not in (None, *models.PRECISIONS):
        raise LabError(f"Unknown precision {precision!r}. Use one of: {', '.join(models.PRECISIONS)}, or leave it out."
                       f"{_meant(precision, models.PRECISIONS)}")
    if checkpointing not in (False, True, "reentrant"):
        raise LabError(f'checkpointing is {checkpointing!r}. Use False, True or "reentrant".')
    if lora is not None and not isinstance(lora, LoraConfig):
        raise LabError(f"Expected a LoraConfig as `lora`, found {type(lora).__name__}.")
    if lora is None and isinstance(model_or_config_or_hub_id, PeftModel):
        lora = model_or_config_or_hub_id.active_peft_config
    model, own_precision, dtype = meta_model.without_weights(model_or_config_or_hub_id)
    precision = precision or own_precision
    quantised = precision if precision in ("int8", "nf4") else None
    if quantised and lora is None:
        raise LabError(f"Quantised weights cannot be trained. Give a LoraConfig as `lora`, or a precision without "
                       f"quantisation instead of {precision!r}.")
    if precision and not quantised:
        dtype = getattr(torch, precision)
    elif dtype is None:  # a config alone: what transformers makes of it
        dtype = torch.bfloat16 if quantised else torch.float32
    autocast = None if dtype == torch.float32 else dtype
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if quantised and prepared else dtype)
    _check_positions(model, seq_len)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}
    if not linear:
        raise LabError(f"{type(model).__name__} has no linear layers: there is nothing for LoRA to adapt, nor to "
                       "quantise. Give a transformer language model.")
    keep = get_keys_to_not_convert(model)
    skip = {name for name, m in linear.items() if not should_convert_module(name, keep)}
    quantised_layers = [m for name, m in linear.items() if name not in skip] if quantised else []
    weights, scales = _weights(model, quantised_layers, quantised)
    own = sum(p.nbytes for p in model.parameters())
    adapted = model if lora is None else _adapt(model, lora)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    step = _rehearse(adapted, quantised=quantised, skip=skip, autocast=autocast, batch_size=batch_size,
                     seq_len=seq_len, logits_to_keep=logits_to_keep, checkpointing=checkpointing)
    logits = round(step.head - step.held)
    return Plan(
        weights_bytes=weights,
        quantization_bytes=scales,
        adapter_bytes=sum(p.nbytes for p in adapted.parameters()) - own,
        gradient_bytes=gradients,
        optimizer_bytes=math.ceil(sum(p.numel() * OPTIMIZERS[kind](p.itemsize) for p in trained)),
        activation_bytes=round(step.peak) - logits,
        logits_bytes=logits,
    )


def _check_numbers(**numbers) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LabError(f"{name} is {value!r}. Give a whole number of at least 1.")


def _meant(found, known) -> str:
    """` Did you mean ...?` for the word in `found` (a list's, or a dtype's) that resembles a known one."""
    word = re.sub(r"\W", "", str(found).removeprefix("torch."))
    close = nearest(word, known)
    return f" Did you mean {close[0]!r}?" if close else ""


def _check_positions(model, seq_len: int) -> None:
    """A table of learned positions has an end; rotary positions go on."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not positions or seq_len <= positions:
        return
    tables = (m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding))
    if any(positions <= size <= positions + 2 for size in tables):  # some keep two more for padding
        raise LabError(f"seq_len is {seq_len}, but {model.config.model_type} has {positions} positions. Give at most "
                       f"{positions}.")


def _adapt(model, lora: LoraConfig):
    try:
        adapted, _ = meta_model.adapt(model, lora)
    except (ValueError, TypeError, RuntimeError) as error:
        raise LabError(f"PEFT refuses this LoraConfig: {reason(error)} `targets.check` says more.") from None
    paths = [path for path, _ in model.named_modules()]
    for entry in sorted(lora.target_modules) if isinstance(lora.target_modules, set) else ():
        if not any(layer_names.matches(entry, path) for path in paths):
            close = layer_names.suggestion(entry, paths)
            raise LabError(f"target_modules has {entry!r}, which matches no layer.{close}")
    return adapted


def _weights(model, quantised_layers: list, kind: str | None) -> tuple[int, int]:
    """Bytes of the parameters and buffers, and of the quantised layers' scales."""
    total = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    scales = 0
    for layer in quantised_layers:
        count, rows = layer.weight.numel(), meta_model.linear_shape(layer)[0]  # type: ignore[index]
        total += (count if kind == "int8" else (count + 1) // 2) - layer.weight.nbytes
        scales += 4 * (rows if kind == "int8" else math.ceil(count / rehearsal.BLOCK))
    return total, scales


def _rehearse(adapted, **shape) -> rehearsal.Step:
    try:
        return rehearsal.rehearse(adapted, **shape)
    except Exception as error:  # whatever a model's own code cannot do without values
        raise LabError(f"Cannot rehearse a training step of {adapted.config.model_type!r} without its weights: "
                       f"{type(error).__name__}: {reason(error, 200)}") from error
