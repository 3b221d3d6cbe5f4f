"""One training step on tensors without contents: what would be in memory at its fullest moment.

The model's own forward and backward run on torch's fake tensors, which have shapes, types and lifetimes and
no memory behind them, and a ledger adds up what is alive. So nothing about an architecture is assumed, and a
model of any size is rehearsed on a laptop. Only the quantised layers are stand-ins, with what bitsandbytes
0.50 keeps and computes on a GPU (its `autograd/_functions.py`). What the parts of a plan mean is in `memory`.
"""

import contextlib
import weakref
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

from ..meta_model import bare, linear_shape

ATTENTION = "lora_lab_unmasked_sdpa"


def _fused(*args, **options):
    """Fused attention as a GPU runs it: with dropout a CPU would take the unfused path, and keep every score."""
    return sdpa_attention_forward(*args, **options | {"dropout": 0.0})


# Without a mask function of its own, transformers builds no mask: the fused path of batches without padding.
AttentionInterface.register(ATTENTION, _fused)

BLOCK = 64  # weights that share one scale in 4 bits, bitsandbytes' default


class Ledger(TorchDispatchMode):
    """While active, follows the memory of all tensors that operations return: `live` and `peak` in bytes.

    Sees what torch's operations return, not what happens inside one of them. `head_start` is what was alive
    when the output head began, `head_peak` the peak until its backward pass was through.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.resting = self.head_start = self.head_peak = 0
        self._in_head, self._seen = False, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result

    def add_model(self, model: torch.nn.Module) -> None:
        """Count what is there before a step: parameters, their gradients and buffers, as `resting` bytes."""
        for parameter in model.parameters():
            self.add(parameter)
            if parameter.grad is not None:
                self.add(parameter.grad)
        for buffer in model.buffers():
            self.add(buffer)
        self.resting = self.peak = self.live

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def freed(_, key=key, size=size):
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
        if self._in_head:
            self.head_peak = max(self.head_peak, self.live)

    def watch_head(self, head: torch.nn.Module) -> None:
        """Keep the time between `head`'s forward and the end of its backward apart."""

        def enter(_, inputs):
            self.head_start = self.head_peak = self.live
            self._in_head = True
            if inputs[0].requires_grad:
                inputs[0].register_hook(leave)

        def leave(_):
            self._in_head = False

        head.register_forward_pre_hook(enter)


class _GpuDropout(TorchFunctionMode):
    """Dropout that keeps a mask of one byte an element, as on a GPU; on a CPU torch keeps one as wide as the input."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.nn.functional.dropout:
            return func(*args, **(kwargs or {}))
        x, p, training = [*args, *dict(kwargs or {}).values()][:3]
        return torch.native_dropout(x, p, True)[0] if training and p else x


@dataclass(frozen=True)
class Step:
    """Bytes above parameters, their gradients and optimizer state, at the fullest moments of a step.

    `held` is what the forward pass holds for backward when the output head begins; `head` the peak from
    there until the head's backward pass is through; `peak` that of the whole step.
    """

    held: float
    head: float
    peak: float


def rehearse(adapted: torch.nn.Module, *, quantised: str | None, skip: set[str], autocast: torch.dtype | None,
             batch_size: int, seq_len: int, logits_to_keep: int, checkpointing: bool | str) -> Step:
    """Run one forward and backward pass of `adapted`, a model on the meta device, in training mode.

    Rows are full (no padding). `quantised` ("int8" or "nf4") turns the linear layers outside `skip` into
    stand-ins. Blocks that are all alike are rehearsed with two and with three of them: memory is linear in depth.
    """
    shape = dict(autocast=autocast, batch_size=batch_size, seq_len=seq_len, logits_to_keep=logits_to_keep,
                 checkpointing=checkpointing)

    blocks: Any = _blocks(adapted)

    def stage(attention, depth):
        with _cut(blocks, depth):
            model = bare(adapted)
        model.config._attn_implementation = attention
        if quantised:
            _quantise(model, quantised, skip)
        return model

    def run(depth=None):
        try:
            return _run(stage(ATTENTION, depth), **shape)
        except Exception:  # an attention that needs its mask, or more than sdpa can do: as the model comes
            return _run(stage(adapted.config._attn_implementation, depth), **shape)

    depth = len(getattr(*blocks)) if blocks else 0
    if depth <= 3 or len({_signature(block) for block in getattr(*blocks)}) > 1:
        return run()
    try:
        two, three = astuple(run(2)), astuple(run(3))
    except Exception:  # a model that counts its layers by itself
        return run()
    held, head, peak = (a + (b - a) * (depth - 2) for a, b in zip(two, three))
    return Step(held, head, max(peak, head))


@contextlib.contextmanager
def _cut(blocks: Any, depth):
    """The model's list of blocks cut to `depth` of them, until the end of the `with`."""
    if not depth:
        yield
        return
    holder, name = blocks
    whole = getattr(holder, name)
    setattr(holder, name, whole[:depth])
    try:
        yield
    finally:
        setattr(holder, name, whole)


def _run(model, *, autocast, batch_size, seq_len, logits_to_keep, checkpointing) -> Step:
    model.train()
    if checkpointing:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        old_name = base.gradient_checkpointing_enable
        enable = getattr(base, "activation_checkpointing_enable", old_name)
        enable({"use_reentrant": checkpointing == "reentrant"})
        base.enable_input_require_grads()
    rng = torch.random.fork_rng(devices=[])
    with rng, FakeTensorMode(), Ledger() as ledger, _GpuDropout():
        _fill(model)
        for parameter in model.parameters():
            if parameter.requires_grad:  # as with gradient accumulation: gradients are there all the time
                parameter.grad = torch.empty_like(parameter)
        ledger.add_model(model)
        if (head := model.get_output_embeddings()) is not None:
            ledger.watch_head(head)
        ids = torch.zeros(batch_size, seq_len, dtype=torch.long)
        inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
        if logits_to_keep:
            inputs |= {"logits_to_keep": logits_to_keep, "labels": ids[:, -logits_to_keep:]}
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            loss = model(**inputs).loss
        loss.backward()
    return Step(*(size - ledger.resting for size in (ledger.head_start, ledger.head_peak, ledger.peak)))


def _fill(model) -> None:
    """Swap meta tensors for fake tensors on a device, tied ones for one and the same."""
    filled = {}

    def fake(original):
        if original is None or original.device.type != "meta":
            return original
        if id(original) not in filled:
            tensor = torch.empty(original.shape, dtype=original.dtype)
            if isinstance(original, torch.nn.Parameter):
                tensor = torch.nn.Parameter(tensor, requires_grad=original.requires_grad)
            filled[id(original)] = tensor
        return filled[id(original)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items()})


def _blocks(model) -> tuple[torch.nn.Module, str] | None:
    """Where the longest list of layers is: the module that holds it, and its name there."""
    lists = [(len(child), module, name) for module in model.modules() for name, child in module.named_children()
             if isinstance(child, torch.nn.ModuleList)]
    if not lists:
        return None
    _, holder, name = max(lists, key=lambda found: found[0])
    return holder, name


def _signature(block) -> tuple:
    parameters = tuple((n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in block.named_parameters())
    return parameters, tuple(type(module) for module in block.modules())


def _quantise(model, kind: str, skip: set[str]) -> None:
    for name, module in list(model.named_modules()):
        clean = name.replace("base_model.model.", "", 1).replace(".base_layer", "")
        if isinstance(module, (torch.nn.Linear, Conv1D)) and clean not in skip and "lora_" not in name:
            model.set_submodule(name, _StandIn(module, kind))


class _StandIn(torch.nn.Module):
    """A quantised linear layer: holds, keeps and computes tensors of the sizes that bitsandbytes' layers do."""

    def __init__(self, linear, kind: str):
        super().__init__()
        self.out_features, self.in_features = linear_shape(linear)  # type: ignore[misc]
        count, self.kind = self.in_features * self.out_features, kind
        packed = (self.out_features, self.in_features) if kind == "int8" else ((count + 1) // 2, 1)
        dtype = torch.int8 if kind == "int8" else torch.uint8
        self.weight = torch.nn.Parameter(torch.empty(packed, dtype=dtype, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        y = _Multiply.apply(x, self.in_features, self.out_features, self.kind)
        return y if self.bias is None else y + self.bias


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, in_features, out_features, kind):
        ctx.sizes = (out_features, in_features)
        rows = x.reshape(-1, in_features)
        if kind == "int8":  # MatMul8bitLt: input in float16, in int8, result in int32; keeps its input
            half = rows.to(torch.float16)
            eight = torch.empty_like(half, dtype=torch.int8)
            del half
            ctx.kept = rows
            wide = eight.new_empty(len(rows), out_features, dtype=torch.int32)
            return wide.to(x.dtype).reshape(*x.shape[:-1], out_features)
        weight = rows.new_empty(ctx.sizes)  # gemm_4bit: dequantises for more than a few rows
        return (rows @ weight.t()).reshape(*x.shape[:-1], out_features)

    @staticmethod
    def backward(ctx, gradient):
        weight = gradient.new_empty(ctx.sizes)  # both dequantise the whole weight
        return gradient @ weight, None, None, None
