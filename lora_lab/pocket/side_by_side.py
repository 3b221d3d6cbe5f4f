"""Copies of one adapter trained at once, each at a learning rate of its own: a row of a sweep in one go.

A model this small spends a step on overhead, not on arithmetic. So the copies share one forward and one backward pass:
their inputs stand below one another in a batch, and each layer has an A and a B for each of them.
"""

import copy
import math
from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from .. import batches
from ..adapters import positive
from ..errors import expect, whole

BETAS, EPSILON = (0.9, 0.999), 1e-8  # those of torch.optim.AdamW


class _Copies(nn.Module):
    """A LoRA layer with as many pairs of A and B as there are copies, all equal at the start."""

    def __init__(self, layer: LoraLayer, copies: int):
        super().__init__()
        self.base, self.scaling = layer.base_layer, layer.scaling["default"]
        self.A, self.B = (nn.Parameter(part["default"].weight.detach().expand(copies, -1, -1).clone())
                          for part in (layer.lora_A, layer.lora_B))

    def forward(self, x):  # (copies × rows, columns, d_in)
        own = x.reshape(len(self.A), -1, x.shape[-1])
        added = (self.scaling * (own @ self.A.mT)) @ self.B.mT
        return self.base(x) + added.reshape(*x.shape[:-1], -1)


def side_by_side(model: nn.Module, config: LoraConfig, rates: Sequence[float], data: Sequence[dict], held_out: dict,
                 optimizer: str = "AdamW", seed: int = 0) -> list[dict[str, float]]:
    """Train the adapter of `config` once at each of `rates`, all at the same time; returns how each copy ended.

    It is what PEFT's adapter and torch's optimiser give, up to rounding: `data` is a list of batches, one a step, the
    rate falls to zero in a straight line, nothing is clipped or decayed, and `optimizer` is "AdamW" or "SGD". Of each
    copy, `loss` is that on the batch `held_out`, and `moved` the size of s·B(A − A₀), what the way of A from its start
    A₀ adds to the weights, as a multiple of that of s·BA₀, what the start adds, over all layers. A copy that diverges
    has NaN, and the others do not notice. Raises LabError.
    """
    expect(optimizer in ("AdamW", "SGD"), "optimizer", optimizer, '"AdamW" or "SGD"')
    whole(0, seed=seed)
    for rate in rates:
        positive(rate=rate)
    expect(len(rates) > 0 and len(data) > 0, "rates or data", [], "at least one rate, and one batch")
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(model), config).base_model.model
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _Copies(layer, len(rates)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step_of = _adamw(trained) if optimizer == "AdamW" else _sgd(trained)
    start = [layer.A.detach().clone() for layer in model.modules() if isinstance(layer, _Copies)]
    tuned = torch.tensor(list(rates), device=model.device).view(-1, 1, 1)
    for number, batch in enumerate(data):
        gradients = torch.autograd.grad(_losses(model, batch, len(rates)).sum(), trained)
        with torch.no_grad():
            step_of(gradients, tuned * (1 - number / len(data)))
    with torch.no_grad():
        losses = _losses(model, held_out, len(rates)).tolist()
        ends = [layer for layer in model.modules() if isinstance(layer, _Copies)]
        added = ((layer.scaling * layer.B @ torch.stack([layer.A - begin, begin]) for layer, begin in zip(ends, start)))
        way, begun = sum(part.square().sum((2, 3)) for part in added)
        moved = (way / begun).sqrt().tolist()
    return [{"loss": loss if math.isfinite(loss) else math.nan, "moved": far if math.isfinite(loss) else math.nan}
            for loss, far in zip(losses, moved)]


def _losses(model: nn.Module, batch: dict, copies: int) -> torch.Tensor:
    """The mean loss of each copy on its own rows, which are the same for all."""
    inputs = {name: value.to(model.device).repeat(copies, 1) if torch.is_tensor(value) else value
              for name, value in batch.items()}
    labels = inputs.pop("labels")[:, 1:]
    logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
    each = nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=batches.IGNORED, reduction="none")
    return each.view(copies, -1).sum(1) / (labels != batches.IGNORED).view(copies, -1).sum(1)


def _sgd(trained: list[nn.Parameter]):
    def step(gradients, rate):
        for parameter, gradient in zip(trained, gradients):
            parameter -= rate * gradient
    return step


def _adamw(trained: list[nn.Parameter]):
    means, squares = ([torch.zeros_like(parameter) for parameter in trained] for _ in range(2))
    steps = 0

    def step(gradients, rate):
        nonlocal steps
        steps += 1
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETAS[1])
        first, second = (1 - beta**steps for beta in BETAS)
        for parameter, mean, square in zip(trained, means, squares):
            parameter.sub_(rate / first * mean / ((square / second).sqrt_() + EPSILON))
    return step
