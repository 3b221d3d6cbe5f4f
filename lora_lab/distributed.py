"""A fine-tuning on many GPUs, planned on paper: memory of each, bytes sent in a step, and what a step waits for.

Memory is `memory.plan`'s. How fast the GPUs compute and talk is yours to say: there is no table of hardware here.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from peft import LoraConfig
from transformers.pytorch_utils import Conv1D

from . import memory, meta_model
from .errors import LabError, expect, whole

MODES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Share:
    """What one of `gpus` GPUs holds, sends and computes in a training step.

    memory: a `memory.Plan` for one GPU. sent_bytes: what it sends, and receives as much of.
    flops: floating-point operations, a multiply-add counted as two.
    send_seconds, compute_seconds: with the speeds that were given, else None; as if nothing overlapped.
    """

    gpus: int
    mode: str
    rows: int
    memory: memory.Plan
    sent_bytes: int
    flops: int
    send_seconds: float | None = None
    compute_seconds: float | None = None

    @property
    def bound_by(self) -> str | None:
        """What a step takes as long as, if sending and computing overlap perfectly."""
        if self.send_seconds is None or self.compute_seconds is None:
            return None
        return "sending" if self.send_seconds > self.compute_seconds else "computing"


def plan(model: meta_model.Source, lora: LoraConfig, precision: str | None = None,
         gpus: int | Iterable[int] = (1, 8, 64), batch_size: int = 64, seq_len: int = 512, mode: str = "ddp", *,
         bytes_per_second: float | None = None, flop_per_second: float | None = None, **options) -> list[Share]:
    """Return one Share for each number in `gpus`, of a step of all GPUs on `batch_size` rows of `seq_len` tokens.

    `model`, `lora`, `precision` and `options` are those of `memory.plan`. `bytes_per_second` is what one GPU sends
    while it receives as much, over the slowest link on the way; `flop_per_second` what it reaches in training.

    - DDP: each GPU holds everything and computes its rows; the gradients of what trains are averaged in a ring, in
      which each of N GPUs sends 2 (N-1)/N times their bytes (Patarasuk & Yuan 2009). The frozen base has no
      gradients, so nothing of it is sent.
    - FSDP: each GPU holds 1/N of all parameters, gradients and optimizer states, and what is gathered at a time,
      counted here as the largest block and all that is in no block. nf4 weights are shared out like others if they are
      stored in a floating-point dtype (`bnb_4bit_quant_storage`); their scales stay whole on every GPU. Parameters are
      gathered for the forward pass and again for the backward pass, (N-1)/N of their bytes each; gradients of what
      trains are reduced once, (N-1)/N of theirs (ZeRO stage 3, Rajbhandari et al. 2020, section 7.2.2, has 1 for each
      (N-1)/N). The frozen base is gathered like everything else. (torch keeps what is in no block between the passes
      unless told otherwise, so it is gathered once; gloo, between CPUs, reduces at twice these bytes.)
    - Operations: for a token, 2 with each weight forward, 2 backward for the inputs' gradients, 2 more where the
      weight trains (Kaplan et al. 2020, section 2.1, has 6 for all). With `checkpointing`, the blocks' forward pass is
      computed twice (Chen et al. 2016): 2 more with each of their weights. Attention's scores and experts that are no
      linear layers are left out.

    Raises LabError for what cannot be planned, int8 weights under FSDP among it.
    """
    expect(isinstance(lora, LoraConfig), "lora", lora, "a LoraConfig")
    if mode not in MODES:
        raise LabError(f"mode is {mode!r}. Use one of: {', '.join(MODES)}.")
    for name, value in (("bytes_per_second", bytes_per_second), ("flop_per_second", flop_per_second)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise LabError(f"{name} is {value!r}. Give a number above 0, or leave it out.")
    gpus = list(gpus) if isinstance(gpus, Iterable) else [gpus]
    whole(batch_size=batch_size)
    for n in gpus:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1 or batch_size % n:
            raise LabError(f"gpus has {n!r}. Give whole numbers that divide batch_size ({batch_size}).")
    bare, own_precision, _ = meta_model.without_weights(model)
    if mode == "fsdp" and (precision or own_precision) == "int8":
        raise LabError("int8 weights cannot be shared out by FSDP, which takes floating-point tensors. Use nf4, which "
                       "can be stored as such, bfloat16, or mode=\"ddp\".")
    packed = (precision or own_precision) == "nf4"
    shares = []
    for n in gpus:
        rows = batch_size // n
        held = memory.plan(model, lora, precision, rows, seq_len, **options)
        sent = _sent(held, n, mode)
        flops = _flops(bare, held.trained, rows * seq_len, rows * (options.get("logits_to_keep") or seq_len),
                       bool(options.get("checkpointing")))
        if mode == "fsdp" and n > 1:
            held = _cut(held, n, _gathered_share(bare, packed))
        shares.append(Share(n, mode, rows, held, sent, flops, bytes_per_second and sent / bytes_per_second,
                            flop_per_second and flops / flop_per_second))
    return shares


def _sent(held: memory.Plan, n: int, mode: str) -> int:
    if mode == "ddp":
        return 2 * (n - 1) * held.gradient_bytes // n
    return (n - 1) * (2 * (held.weights_bytes + held.adapter_bytes) + held.gradient_bytes) // n


def _cut(held: memory.Plan, n: int, gathered: float) -> memory.Plan:
    """One of `n` GPUs under FSDP: its shares, and the part of all parameters that is gathered at a time."""
    parts = {name: -(-getattr(held, name) // n) for name in ("gradient_bytes", "optimizer_bytes")}
    for name in ("weights_bytes", "adapter_bytes"):
        whole = getattr(held, name)
        parts[name] = min(whole, math.ceil(whole / n + whole * gathered))
    return dataclasses.replace(held, **parts)


def _gathered_share(bare, packed: bool) -> float:
    """The largest block, and what is in no block, as a part of the bytes of all parameters."""
    lists = [module for module in bare.modules() if isinstance(module, torch.nn.ModuleList)]
    sizes = max(([_size(block, packed) for block in blocks] for blocks in lists), key=sum, default=[0.0])
    in_blocks = max((sum(_size(block, False) for block in blocks) for blocks in lists), default=0)
    in_no_block = _size(bare, False) - in_blocks
    return (in_no_block + max(sizes, default=0)) / (in_no_block + sum(sizes))


def _size(module, packed: bool) -> float:
    """Bytes of a module in units of a 16-bit weight; `packed` are those of linear layers, four to a unit."""
    matrices = sum(m.weight.numel() for m in module.modules() if isinstance(m, (torch.nn.Linear, Conv1D)))
    return sum(p.numel() for p in module.parameters()) - (0.75 * matrices if packed else 0)


def _flops(bare, trained: int, tokens: int, scored: int, twice: bool) -> int:
    """For a step on `tokens` tokens, of which `scored` reach the output head; `twice`: blocks are computed again."""
    head = bare.get_output_embeddings()
    linear = [m for m in bare.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
    head_weights = head.weight.numel() if head is not None else 0
    again = 2 * twice
    return (tokens * ((4 + again) * sum(m.weight.numel() for m in linear) + (6 + again) * trained)
            + scored * 4 * head_weights)
