"""One training step on tensors without contents: what would be in memory at its fullest moment.

The model's own forward and backward run on torch's fake tensors, which have shapes, types and lifetimes and
no memory behind them, and a ledger adds up what is alive. So nothing about an architecture is assumed, and a
model of any size is rehearsed on a laptop. What only a GPU runs is in `stand_ins`: quantised layers, losses that
need no full logits. What the parts of a plan mean is in `memory`.
"""

import contextlib
import logging
import weakref
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..meta_model import bare
from . import stand_ins

ATTENTION = "lora_lab_unmasked_sdpa"


def _fused(*args, **options):
    """Fused attention as a GPU runs it: with dropout a CPU would take the unfused path, and keep every score."""
    return sdpa_attention_forward(*args, **options | {"dropout": 0.0})


# Without a mask function of its own, transformers builds no mask: the fused path of batches without padding.
AttentionInterface.register(ATTENTION, _fused)


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


@dataclass(frozen=True)
class Step:
    """Bytes above parameters, their gradients and optimizer state, at the fullest moments of a step.

    `held` is what the forward pass holds for backward when the output head begins; `head` the peak from
    there until the head's backward pass is through; `peak` that of the whole step.
    """

    held: float
    head: float
    peak: float


def rehearse(adapted: torch.nn.Module, *, quantisation: dict[str, Any] | None, autocast: torch.dtype | None,
             fused_attention: bool, **shape) -> Step:
    """Run one forward and backward pass of `adapted`, a model on the meta device, in training mode.

    Rows are full (no padding). `quantisation` has the arguments of `stand_ins.quantise`, None for none. `shape` is
    batch_size, seq_len, logits_to_keep, checkpointing and cross_entropy, as `memory.plan` has them.
    Blocks that are all alike are rehearsed with two and with three of them: memory is linear in depth.
    """
    blocks: Any = _blocks(adapted)

    def stage(attention, depth):
        with _cut(blocks, depth):
            model = bare(adapted)
        model.config._attn_implementation = attention
        if quantisation:
            stand_ins.quantise(model, autocast=autocast is not None, **quantisation)
        return model

    def run(depth=None):
        if fused_attention:
            with contextlib.suppress(Exception), _no_logs():  # an attention that needs its mask, or other than sdpa's
                return _run(stage(ATTENTION, depth), autocast=autocast, **shape)
        return _run(stage(adapted.config._attn_implementation, depth), autocast=autocast, **shape)

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
def _no_logs():
    """Keep torch from printing the stack of an operation that has no shapes for fake tensors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


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


def _run(model, *, autocast, batch_size, seq_len, logits_to_keep, checkpointing, cross_entropy) -> Step:
    model.train()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    if cross_entropy != "full":
        head = stand_ins.HiddenStates(trained_head(head).weight, cross_entropy)
        base.set_output_embeddings(head)
    if checkpointing:
        old_name = base.gradient_checkpointing_enable
        enable = getattr(base, "activation_checkpointing_enable", old_name)
        enable({"use_reentrant": checkpointing == "reentrant"})
        base.enable_input_require_grads()
    rng = torch.random.fork_rng(devices=[])
    with rng, FakeTensorMode(), Ledger() as ledger, stand_ins.gpu_kernels():
        _fill(model)
        for parameter in model.parameters():
            if parameter.requires_grad:  # as with gradient accumulation: gradients are there all the time
                parameter.grad = torch.empty_like(parameter)
        ledger.add_model(model)
        if head is not None:
            ledger.watch_head(head)
        ids = torch.zeros(batch_size, seq_len, dtype=torch.long)
        inputs = {"input_ids": ids, "use_cache": False} | ({"logits_to_keep": logits_to_keep} if logits_to_keep else {})
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            if cross_entropy == "full":
                loss = model(**inputs, labels=ids[:, -logits_to_keep:]).loss  # all of them for 0
            else:
                loss = head.loss(model(**inputs).logits, autocast)
        loss.backward()
    return Step(*(size - ledger.resting for size in (ledger.head_start, ledger.head_peak, ledger.peak)))


def trained_head(head: Any) -> Any:
    """Return the module that computes the logits: of an output head in `modules_to_save`, the copy that trains."""
    return head.modules_to_save[head.active_adapters[0]] if hasattr(head, "modules_to_save") else head


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
