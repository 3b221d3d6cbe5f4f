"""What GPU libraries allocate where torch on a CPU would do otherwise, on tensors without contents.

Quantised layers as in bitsandbytes 0.50 (its `nn/modules.py`, `autograd/_functions.py`, `backends/cuda/ops.py`),
cross-entropy from hidden states as in TRL 1.16 (`kernels/chunked_logprob.py`) and Liger 0.8
(`ops/fused_linear_cross_entropy.py`), dropout, and the grouped products of experts.
"""

import contextlib
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

from ..meta_model import linear_shape

BLOCK, OUTER_BLOCK = 64, 256  # weights that share a scale in 4 bits, and scales that share one: bitsandbytes' defaults
TILE = (4096, 32768)  # tokens and vocabulary entries of which TRL has the logits at a time


@contextlib.contextmanager
def gpu_kernels():
    """For fake tensors, dropout that keeps a mask of one byte an element, and experts in any dtype, as on a GPU.

    A CPU's dropout keeps a mask as wide as the input; torch's grouped product knows the shapes of bfloat16 alone. Other
    tensors meet torch's own functions. No TorchFunctionMode: checkpointing computes again outside of it.
    """
    functional, own_dropout, own_grouped = torch.nn.functional, torch.nn.functional.dropout, torch._grouped_mm

    def dropout(input, p=0.5, training=True, inplace=False):
        if not isinstance(input, FakeTensor):
            return own_dropout(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0] if training and p else input

    def grouped(rows, weight, *args, **options):
        if not isinstance(rows, FakeTensor) or rows.dtype == torch.bfloat16:
            return own_grouped(rows, weight, *args, **options)
        return _Grouped.apply(rows, weight)

    with mock.patch.object(functional, "dropout", dropout), mock.patch.object(torch, "_grouped_mm", grouped):
        yield


class _Grouped(torch.autograd.Function):
    """(rows, in) times (experts, in, out): each row with the matrix of its expert."""

    @staticmethod
    def forward(ctx, rows, weight):
        ctx.save_for_backward(rows, weight)
        return rows.new_empty(len(rows), weight.shape[-1])

    @staticmethod
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        return torch.empty_like(rows), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


def quantise(model, kind: str, skip: set[str], compute_dtype: torch.dtype, double_quant: bool, autocast: bool) -> None:
    """Turn the linear layers of `model` outside `skip` into quantised ones, and their adapters into PEFT's for them."""
    for name, module in list(model.named_modules()):
        clean = name.replace("base_model.model.", "", 1).replace(".base_layer", "")
        if isinstance(module, (torch.nn.Linear, Conv1D)) and clean not in skip and "lora_" not in name:
            adapter = model.get_submodule(name.removesuffix(".base_layer")) if name.endswith(".base_layer") else None
            if adapter is not None and autocast:  # peft/tuners/lora/bnb.py leaves the cast of the input to autocast
                adapter.cast_input_dtype_enabled = False
            model.set_submodule(name, _Quantised(module, kind, compute_dtype, double_quant, adapter is not None))


class _Quantised(torch.nn.Module):
    """A quantised linear layer: holds, keeps and computes tensors of the sizes that bitsandbytes' layers do."""

    def __init__(self, linear, kind: str, compute_dtype: torch.dtype, double_quant: bool, adapted: bool):
        super().__init__()
        self.out_features, self.in_features = linear_shape(linear)  # type: ignore[misc]
        count, self.kind, self.compute_dtype = self.in_features * self.out_features, kind, compute_dtype
        self.scales, self.adapted = -(-count // BLOCK) if double_quant else 0, adapted
        packed = (self.out_features, self.in_features) if kind == "int8" else ((count + 1) // 2, 1)
        dtype = torch.int8 if kind == "int8" else torch.uint8
        self.packed = torch.nn.Parameter(torch.empty(packed, dtype=dtype, device="meta"), requires_grad=False)
        self.bias = linear.bias

    @property
    def weight(self):
        """Return the weight as it is once dequantised, which DoRA does in every forward pass."""
        return self.packed.new_empty(self.out_features, self.in_features, dtype=self.compute_dtype)

    def forward(self, x):
        own = x.to(self.compute_dtype) if self.kind == "nf4" else x
        y = _Multiply.apply(own, self.in_features, self.out_features, self.kind, self.scales).to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.clone() if self.adapted and self.kind == "nf4" else y  # PEFT's adapter of 4-bit layers clones it


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, in_features, out_features, kind, scales):
        ctx.sizes = (out_features, in_features)
        rows = x.reshape(-1, in_features)
        if kind == "int8":  # MatMul8bitLt: input in float16, in int8, result in int32; keeps its input
            half = rows.to(torch.float16)
            eight = torch.empty_like(half, dtype=torch.int8)
            del half
            ctx.kept = rows
            wide = eight.new_empty(len(rows), out_features, dtype=torch.int32)
            return wide.to(x.dtype).reshape(*x.shape[:-1], out_features)
        outer = [rows.new_empty(scales, dtype=torch.float32) for _ in range(2)]  # noqa: F841  read back, and shifted
        weight = rows.new_empty(ctx.sizes)  # gemm_4bit: dequantises for more than a few rows
        return (rows @ weight.t()).reshape(*x.shape[:-1], out_features)

    @staticmethod
    def backward(ctx, gradient):
        weight = gradient.new_empty(ctx.sizes)  # both dequantise the whole weight
        return gradient @ weight, None, None, None, None


class HiddenStates(torch.nn.Identity):
    """In the place of an output head, for a loss that is computed from what goes into it and the head's weight."""

    def __init__(self, weight: torch.nn.Parameter, kind: str):
        super().__init__()
        self.weight, self.kind = weight, kind  # some models read its dtype

    def loss(self, hidden: torch.Tensor, autocast: torch.dtype | None) -> torch.Tensor:
        """Return the loss of hidden states (rows, tokens, width)."""
        if self.kind == "chunked":  # TRL gathers those that have a label; the last of a row has none
            hidden = hidden[:, 1:].clone(memory_format=torch.contiguous_format)
        return _LOSSES[self.kind].apply(hidden.flatten(0, 1), self.weight, autocast or hidden.dtype)


class _Chunked(torch.autograd.Function):
    """TRL's: logits of a tile at a time, computed again in backward, gradients added up in float32."""

    @staticmethod
    def forward(ctx, hidden, weight, dtype):
        ctx.save_for_backward(hidden, weight, hidden.new_empty(len(hidden), dtype=torch.float32))
        ctx.dtype = dtype
        _tile(hidden, weight, dtype)
        return hidden.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, _):
        hidden, weight, _ = ctx.saved_tensors
        wanted = [torch.empty_like(tensor, dtype=torch.float32) if needed else None
                  for tensor, needed in zip((hidden, weight), ctx.needs_input_grad)]
        _tile(hidden, weight, ctx.dtype)
        return *[g if g is None else g.to(t.dtype) for g, t in zip(wanted, (hidden, weight))], None


def _tile(hidden, weight, dtype) -> list:
    """What computing a tile takes: the tile itself, statistics of each token, and what is not in `dtype` yet."""
    tokens = min(len(hidden), TILE[0])
    return [hidden.new_empty(9, len(hidden), dtype=torch.float32), hidden.new_empty(tokens, TILE[1], dtype=dtype),
            hidden[:tokens].to(dtype), weight[:TILE[1]].to(dtype)]


class _Fused(torch.autograd.Function):
    """Liger's: gradients of the hidden states in the forward pass, from logits about as large as these."""

    @staticmethod
    def forward(ctx, hidden, weight, dtype):
        tokens, times = len(hidden), -(-weight.shape[0] // weight.shape[1])
        chunk = min(1 << (-(-tokens // times) - 1).bit_length(), tokens)
        ctx.gradients = [torch.empty_like(t) if needed else None
                         for t, needed in zip((hidden, weight), ctx.needs_input_grad)]
        own = [hidden[:chunk].to(dtype), weight.to(dtype)]
        logits = hidden.new_empty(chunk, weight.shape[0], dtype=dtype)
        if hidden.dtype != dtype:
            own[0] = logits @ own[1]  # where the products' type is the gradients', they are written in place
        if weight.requires_grad and dtype != torch.bfloat16:
            own[1] = torch.empty_like(weight)
        return hidden.new_empty(tokens, dtype=torch.float32).sum()

    @staticmethod
    def backward(ctx, _):
        return *ctx.gradients, None


_LOSSES: dict[str, type[torch.autograd.Function]] = {"chunked": _Chunked, "fused": _Fused}
