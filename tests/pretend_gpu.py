"""A GPU where there is none: the CPU's own tensors with a mark on their memory, to catch code that mixes devices.

Within `pretend_gpu()` the device `GPU` is "cpu:1", where torch computes as on the CPU. What is made on it or moved to
it is marked, and so are the results of marked tensors, in the backward pass too. An operation on marked and unmarked
tensors raises as CUDA does, and is kept in a list: code that goes on after the error has made one all the same. The
mark is on the storage, so that views, parameters and what C kernels write through pointers keep it.

Allowed as on CUDA: copies between devices (`x[1:3] = y` is one), numbers without a dimension beside tensors on the GPU,
indices on the CPU into tensors on the GPU. Not seen: `torch.cuda` itself, other processes, time, 16-bit arithmetic.
"""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState
from lora_lab import models
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cpu", 1)
aten = torch.ops.aten
COPIES = {aten.copy_, aten._copy_from, aten.set_}
INDEXED = {aten.index: 1, aten.index_put_: 1, aten.index_put: 1, aten._index_put_impl_: 1, aten._unsafe_index: 1}
JOINED = {aten.cat, aten.stack, aten.mm, aten.bmm}  # where a number beside them is on another device, too
DEVICE, READ = torch.Tensor.device.__get__, {torch.Tensor.numpy, torch.Tensor.__array__}
MADE = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
ASKED = {DEVICE, torch.Tensor.cpu, torch.Tensor.to} | READ | MADE


@dataclass(frozen=True)
class Mistake:
    """What was mixed, and the calls that led there, the outermost first."""

    text: str
    stack: tuple[traceback.FrameSummary, ...]

    def line_in(self, file: str) -> int | None:
        """The line of `file` that it comes from, the innermost one."""
        return next((frame.lineno for frame in reversed(self.stack) if frame.filename == file), None)


def on_gpu(tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return getattr(tensor.untyped_storage(), "on_gpu", False)


def mark(tensor, gpu: bool = True):
    with torch._C.DisableTorchFunction():
        tensor.untyped_storage().on_gpu = gpu
    return tensor


def put(model):
    """Mark all that a model holds: parameters, buffers, and the scales of quantised weights."""
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            for held in (tensor, *_held(tensor), *_held(module)):
                mark(held)
    return model


def _held(thing) -> list[torch.Tensor]:
    """The tensors among the attributes, and those of the states of 4-bit weights, whose scales have a state, too."""
    values = vars(thing)
    states = [values[name] for name in ("quant_state", "state2") if values.get(name) is not None]
    return [value for value in values.values() if isinstance(value, torch.Tensor)] + sum(map(_held, states), [])


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gpu):
        ctx.gpu = not gpu
        return mark(x.clone(), gpu)

    @staticmethod
    def backward(ctx, gradient):
        return mark(gradient.clone(), ctx.gpu), None


def _moved(tensor, gpu: bool):
    return tensor if on_gpu(tensor) == gpu or tensor.device.type == "meta" else _Move.apply(tensor, gpu)


class _Ask(TorchFunctionMode):
    """What is asked of a tensor from Python: where it is, to move, its numbers."""

    def __init__(self, mistakes):
        super().__init__()
        self.mistakes = mistakes

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in ASKED:
            return func(*args, **kwargs)
        if func == DEVICE:
            return GPU if on_gpu(args[0]) else func(*args)
        if func in READ and on_gpu(args[0]):
            raise self.mistakes.add(f"{func.__name__}: can't convert a tensor on the GPU to numpy. Use .cpu() first.",
                                    TypeError)
        if func == torch.Tensor.cpu:
            return _moved(args[0], False)
        if func == torch.Tensor.to:
            return _to(*args, **kwargs)
        made = func(*args, **kwargs)
        if func in READ:
            return made
        if (device := kwargs.get("device")) is not None:
            return _moved(made, torch.device(device) == GPU)
        return _moved(made, bool(args) and isinstance(args[0], torch.Tensor) and on_gpu(args[0]))


def _to(tensor, *args, **kwargs):
    places = [arg for arg in (*args, kwargs.pop("device", None)) if isinstance(arg, (torch.device, str))]
    others = [arg for arg in (*args, kwargs.get("other")) if isinstance(arg, torch.Tensor)]
    rest = [arg for arg in args if arg is not None and not isinstance(arg, (torch.device, str))]
    if rest and isinstance(rest[0], bool):
        rest = []
    out = tensor.to(*rest, **kwargs) if rest or kwargs.keys() - {"non_blocking"} else tensor
    if places and torch.device(places[0]).type == "meta":
        return out.to("meta")
    return _moved(out, torch.device(places[0]) == GPU) if places else _moved(out, on_gpu(others[0])) if others else out


class _Compute(TorchDispatchMode):
    """Every operation that torch computes, those of the backward pass too."""

    def __init__(self, mistakes):
        super().__init__()
        self.mistakes = mistakes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [tensor for tensor in _tensors((*args, *kwargs.values())) if not tensor.is_meta]
        storages = [tensor.untyped_storage() for tensor in given]
        places = [getattr(storage, "on_gpu", False) for storage in storages]
        if len(set(places)) == 2 and self._mixes(func.overloadpacket, args, given, places):
            shown = ", ".join(f"{tuple(t.shape)} on the {'GPU' if gpu else 'CPU'}" for t, gpu in zip(given, places))
            text = f"{func.overloadpacket.__name__}: expected all tensors on one device, found {shown}"
            raise self.mistakes.add(text, RuntimeError)
        made = func(*args, **kwargs)
        device = None if func.overloadpacket is aten._to_copy else kwargs.get("device")
        if any(places) if device is None else device == GPU:
            before = {id(storage) for storage in storages}
            for tensor in _tensors(made if isinstance(made, (tuple, list)) else (made,)):
                if id(storage := tensor.untyped_storage()) not in before:
                    storage.on_gpu = True
        if func.overloadpacket is aten.copy_ and torch._C._current_graph_task_id() != -1 and any(places):
            storages[0].on_gpu = True  # a transposed gradient, which torch lays out anew, beside its parameter
        return made

    @staticmethod
    def _mixes(operation, args, given, places) -> bool:
        if operation in COPIES:
            return False
        if operation in INDEXED and on_gpu(args[0]):
            indices = {id(tensor) for tensor in _tensors(args[1])}
            return any(not gpu and t.dim() and id(t) not in indices for t, gpu in zip(given, places))
        return any(not gpu and (t.dim() or operation in JOINED) for t, gpu in zip(given, places))


def _tensors(values) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [part for part in value if isinstance(part, torch.Tensor)]
    return found


class Mistakes(list):
    def add(self, text: str, kind) -> Exception:
        """Keep it, and return the error to raise."""
        self.append(Mistake(text, tuple(traceback.extract_stack(limit=80)[:-2])))
        return kind(text)


@contextlib.contextmanager
def pretend_gpu():
    """Inside the block there is a GPU, which lora_lab picks and the Trainer trains on; gives the list of mistakes."""
    mistakes = Mistakes()
    load, copied = transformers.PreTrainedModel.from_pretrained.__func__, torch.UntypedStorage.__deepcopy__

    def from_pretrained(cls, *args, device_map=None, **options):
        if not isinstance(device_map, dict) or device_map.get("") != GPU:
            return load(cls, *args, device_map=device_map, **options)
        return put(load(cls, *args, device_map={"": "cpu"}, **options))

    def deepcopy(storage, memo):
        new = copied(storage, memo)
        new.on_gpu = getattr(storage, "on_gpu", False)
        return new

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "pick_device", lambda: GPU)
        patch.setattr(models, "pick_dtype", lambda device: torch.float32)
        patch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
        patch.setattr(torch.UntypedStorage, "__deepcopy__", deepcopy)
        device = property(lambda arguments: arguments._setup_devices and GPU)
        patch.setattr(transformers.TrainingArguments, "device", device)
        for state in (PartialState, AcceleratorState):  # set up anew by each TrainingArguments
            patch.setattr(state, "device", property(lambda state: GPU, lambda state, device: None), raising=False)
        with _Ask(mistakes), _Compute(mistakes):
            yield mistakes
