"""One training step on tensors without contents: what would be in memory at its fullest moment.

The model's own forward and backward run on torch's fake tensors, which have shapes, types and lifetimes and
no memory behind them, and a ledger adds up what is alive. So nothing about an architecture is assumed, and a
model of any size is rehearsed on a laptop. What only a GPU runs is in `stand_ins`: quantised layers, losses that
need no full logits. What the parts of a plan mean is in `memory`.
"""

import contextlib
import logging
import math
import weakref
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
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


OPERATIONS = 2500  # of a forward pass: about half a second, and a backward pass takes two


class TooManyOperations(Exception):
    """A step has more operations than the seconds that a plan may take."""


class _Patience(TorchFunctionMode):
    """Raises TooManyOperations from the call that comes after `most` of them; from inside torch it would end Python."""

    def __init__(self, ledger, most: int | None):
        super().__init__()
        self.ledger, self.most = ledger, most or math.inf

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.ledger.operations > self.most:
            raise TooManyOperations
        return func(*args, **(kwargs or {}))


class Ledger(TorchDispatchMode):
    """While active, follows the memory of all tensors that operations return: `live` and `peak` in bytes.

    Sees what torch's operations return, not what happens inside one of them. `head_start` is what was alive
    when the output head began, `head_peak` the peak until its backward pass was through.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.resting = self.head_start = self.head_peak = self.operations = 0
        self._in_head, self._seen = False, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two of three calls ask for it
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
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
    there until the head's backward pass is through; `peak` that of the whole step. `operations` is their number.
    """

    held: float
    head: float
    peak: float
    operations: float


def rehearse(adapted: torch.nn.Module, *, quantisation: dict[str, Any] | None, autocast: torch.dtype | None,
             fused_attention: bool, **shape) -> Step:
    """Run one forward and backward pass of `adapted`, a model on the meta device, in training mode.

    Rows are full (no padding). `quantisation` has the arguments of `stand_ins.quantise`, None for none. `shape` is
    batch_size, seq_len, logits_to_keep, checkpointing and cross_entropy, as `memory.plan` has them.
    Of blocks that are alike a few are rehearsed: memory is linear in depth. A model that goes through a row
    token by token is rehearsed on as many tokens in more and shorter rows.
    """
    blocks: Any = _blocks(adapted)

    def stage(attention, chosen):
        with _cut(blocks, chosen):
            model = bare(adapted)
        model.config._attn_implementation = attention
        if quantisation:
            stand_ins.quantise(model, autocast=autocast is not None, **quantisation)
        return model

    def run(chosen, **options):
        if fused_attention:
            try:
                with _no_logs():
                    return _run(stage(ATTENTION, chosen), autocast=autocast, **shape | options)
            except TooManyOperations:
                raise
            except Exception:  # an attention that needs its mask, or other than sdpa's
                pass
        return _run(stage(adapted.config._attn_implementation, chosen), autocast=autocast, **shape | options)

    known: dict[tuple, int] = {}
    kinds = [known.setdefault(_signature(block), len(known)) for block in getattr(*blocks)] if blocks else []

    def whole(**options):
        """The step of all blocks, from a few of each kind and what one more adds."""
        few = _choose(kinds)
        if len(few) == len(kinds):
            return run(None, **options)
        try:
            start = np.array(astuple(run(few, **options)))
            step = start.copy()
            for kind in set(kinds):
                left = kinds.count(kind) - sum(kinds[index] == kind for index in few)
                if left:
                    step += (np.array(astuple(run(_choose(kinds, kind), **options))) - start) * left
        except TooManyOperations:
            raise
        except Exception:  # a model that counts its layers by itself
            return run(None, **options)
        return _step(step)

    try:
        return whole(most=OPERATIONS)
    except TooManyOperations:
        pass
    scores = not fused_attention and hasattr(adapted.config, "num_attention_heads")
    for length, most in ((64, 2 * OPERATIONS), (16, None)):  # 64: chunks of tokens have no more
        if 4 * length > shape["seq_len"]:
            continue
        with contextlib.suppress(TooManyOperations):
            short = np.array(astuple(whole(most=most, **_rows(length, shape))))
            if scores:  # of as many tokens, scores are linear in the length of a row
                more = np.array(astuple(whole(most=most, **_rows(2 * length, shape)))) - short
                short += more * (shape["seq_len"] / length - 1)
            return _step(short)
    return whole()


def _rows(length: int, shape: dict) -> dict[str, int]:
    """Return a shape with as many tokens in rows of `length`."""
    part = length / shape["seq_len"]
    return {"seq_len": length, "batch_size": math.ceil(shape["batch_size"] / part),
            "logits_to_keep": math.ceil(shape["logits_to_keep"] * part)}


def _step(numbers) -> Step:
    held, head, peak, operations = (float(number) for number in numbers)
    return Step(held, head, max(peak, head), operations)


def _choose(kinds: list[int], one_more: int | None = None) -> list[int]:
    """Which blocks to rehearse, in their order: the first, one of each kind, and one more of a kind, if asked.

    The first is apart: what goes into it needs no gradient. All of three or fewer.
    """
    if len(kinds) <= 3:
        return list(range(len(kinds)))
    wanted = {kind: 1 + (kind == kinds[0]) + (kind == one_more) for kind in kinds}
    seen = [kinds[: index + 1].count(kind) for index, kind in enumerate(kinds)]
    return [index for index, kind in enumerate(kinds) if seen[index] <= wanted[kind]]


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
def _cut(blocks: Any, chosen: list[int] | None):
    """The model's list of blocks cut to those with the numbers `chosen`, until the end of the `with`."""
    if chosen is None:
        yield
        return
    holder, name = blocks
    whole = getattr(holder, name)
    setattr(holder, name, torch.nn.ModuleList(whole[index] for index in chosen))
    try:
        yield
    finally:
        setattr(holder, name, whole)


def _run(model, *, autocast, batch_size, seq_len, logits_to_keep, checkpointing, cross_entropy, most=None) -> Step:
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
        with _Patience(ledger, most), torch.autocast("cpu", autocast, enabled=autocast is not None):
            if cross_entropy == "full":
                loss = model(**inputs, labels=ids[:, -logits_to_keep:]).loss  # all of them for 0
            else:
                loss = head.loss(model(**inputs).logits, autocast)
        loss.backward()
    sizes = (size - ledger.resting for size in (ledger.head_start, ledger.head_peak, ledger.peak))
    return Step(*sizes, operations=ledger.operations)  # type: ignore[misc]


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
