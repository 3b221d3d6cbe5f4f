"""Checks of the exercises of lesson 5: each runs the learner's answer on fresh inputs and says what it found."""

import copy
import functools
import math
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from ... import pocket, smart_home
from ..question_kinds import Verdict
from . import say


def save_turned(save) -> Verdict:
    """Check: does what `save(model, folder, factor)` writes load with `factor`, and is the live model as it was?"""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], alpha_pattern={"v_proj": 32},
                        init_lora_weights=False)
    model, factor = get_peft_model(pocket.load()[0], config), random.choice((0.5, 0.75, 1.25, 1.5))
    trained, live = _updates(model), _state(model)
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, factor)
        if not Path(folder, "adapter_config.json").is_file():
            return say(False, "Nothing is saved in the folder. model.save_pretrained(folder) writes both files.")
        loaded = _updates(PeftModel.from_pretrained(pocket.load()[0], folder))
    found = {name: _ratio(loaded[name], update) for name, update in trained.items()}
    off = {name: ratio for name, ratio in found.items() if not math.isclose(ratio, factor, rel_tol=1e-3)}
    if off:
        name = next(reversed(off))
        more = " Its alpha is in alpha_pattern." if len(off) < len(found) and name.endswith("v_proj") else ""
        return say(False, f"With factor {factor:g}, {name} loads at {off[name]:.3g} times what it added in "
                          f"training.{more}")
    changed = [name for name, value in _state(model).items() if value != live[name]]
    if changed:
        return say(False, f"It loads as it should, but the live model is not as it was: {', '.join(changed)}.")
    return say(True, f"Loaded, every layer adds {factor:g} times as much, and the live model is as it was.")


def _layers(model) -> dict[str, LoraLayer]:
    return {name.rpartition("model.layers.")[2]: layer for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)}


def _updates(model) -> dict[str, torch.Tensor]:
    return {name: layer.get_delta_weight("default").detach() for name, layer in _layers(model).items()}


def _ratio(loaded: torch.Tensor, trained: torch.Tensor) -> float:
    return ((loaded * trained).sum() / trained.square().sum()).item()


def _state(model) -> dict[str, object]:
    config, layers = model.peft_config["default"], _layers(model).values()
    return {"the config's lora_alpha": config.lora_alpha, "its alpha_pattern": dict(config.alpha_pattern),
            "the layers' scaling": [layer.scaling["default"] for layer in layers],
            "A": [layer.lora_A["default"].weight.tolist() for layer in layers],
            "B": [layer.lora_B["default"].weight.tolist() for layer in layers]}


def stretched(rate_for) -> Verdict:
    """Check: with A's start divided by √k and alpha times k, does `rate_for(lr, k, optimizer)` repeat the training?"""
    for optimizer, lr in (("SGD", 0.2), ("AdamW", 0.01)):
        k = random.choice((4, 16))
        rate = rate_for(lr, k, optimizer)
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 < rate < math.inf:
            return say(False, f"Expected a rate above 0 for {optimizer}, found {rate!r}.")
        one, other = _loss(optimizer, lr, 1), _loss(optimizer, rate, k)
        if not math.isclose(one, other, rel_tol=3e-3):
            return say(False, f"{optimizer}, k = {k}: with alpha 16 and rate {lr:g} the loss ends at {one:.4f}, with "
                              f"alpha {16 * k} and rate {rate:.3g} at {other:.4f}.")
    return say(True, "Under both optimizers the same training, up to rounding.")


@functools.cache
def _loss(optimizer: str, lr: float, k: int, steps: int = 10) -> float:
    """The last training loss with alpha 16 k and A's start divided by √k."""
    torch.manual_seed(0)
    model = get_peft_model(pocket.load()[0], LoraConfig(r=8, lora_alpha=16 * k, target_modules="all-linear")).train()
    with torch.no_grad():
        for layer in _layers(model).values():
            layer.lora_A["default"].weight /= k**0.5
    trained = [p for p in model.parameters() if p.requires_grad]
    chosen = getattr(torch.optim, optimizer)(trained, lr=lr, weight_decay=0)
    commands, loss = pocket.dialect(smart_home.commands("train", n=100, seed=0)), torch.tensor(math.nan)
    for _, batch in zip(range(steps), pocket.stream(commands, 8)):
        chosen.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        chosen.step()
    return loss.item()


def new_rate(times) -> Verdict:
    """Check: is alpha 64, at `times` the best rate of alpha 16, nearly as good under AdamW as at the best of a grid?"""
    if not isinstance(times, (int, float)) or isinstance(times, bool) or not 0 < times < math.inf:
        return say(False, f"Expected a factor above 0, found {times!r}.")
    octaves, rates = (-7, -6, -5), tuple(2.0 ** (-k / 2) for k in range(13, 18))
    a, b, _ = np.polyfit(octaves, np.log(_losses(16, tuple(2.0**k for k in octaves))), 2)  # the bottom of a parabola
    tuned = 2 ** (-b / (2 * a))
    losses, loss = _losses(64, rates), _losses(64, (times * tuned,))[0]
    found = f"With alpha 16 the best rate is {tuned:.3g}. With alpha 64 and {times * tuned:.3g} the loss ends at " \
            f"{loss:.3f}, at the best of {len(rates)} rates at {min(losses):.3f} (mean of three seeds)."
    if loss <= 1.07 * min(losses):
        return say(True, found)
    large = times * tuned > rates[losses.index(min(losses))]
    return say(False, f"{found} Yours is too {'large' if large else 'small'}.")


@functools.cache
def _losses(alpha: float, rates: tuple[float, ...]) -> list[float]:
    """The held-out loss at each of `rates`, after 20 steps like those of the lesson's ridge."""
    model, _ = pocket.load()
    taught, asked = (pocket.dialect(smart_home.commands(split, n=n, seed=0))
                     for split, n in (("train", 1500), ("validation combinations", 60)))
    held_out, found = next(pocket.stream(asked, len(asked))), []
    for seed in range(3):
        data = [batch for _, batch in zip(range(20), pocket.stream(taught, 4, seed))]
        config = LoraConfig(r=8, lora_alpha=alpha, target_modules="all-linear")
        copies = pocket.side_by_side(model, config, rates, data, held_out, seed=seed)
        found.append([copied["loss"] for copied in copies])
    return [math.inf if any(map(math.isnan, losses)) else sum(losses) / len(losses) for losses in zip(*found)]


def same_scaling(tuned, with_rslora) -> Verdict:
    """Check: does a config with rsLoRA give the layers the scaling that the `tuned` one gives them?"""
    if not isinstance(with_rslora, LoraConfig) or not with_rslora.use_rslora:
        return say(False, f"Expected a LoraConfig with use_rslora=True, found {str(with_rslora)[:80]!r}.")
    if (with_rslora.r, with_rslora.target_modules) != (tuned.r, tuned.target_modules) or with_rslora.rank_pattern:
        return say(False, "Rank and target modules were to stay: the same parameters, and another alpha.")
    before, after = ({layer.scaling["default"] for layer in _layers(get_peft_model(
        pocket.load()[0], copy.deepcopy(config))).values()} for config in (tuned, with_rslora))  # PEFT adds to a config
    scalings = ", ".join(f"{scaling:g}" for scaling in sorted(after))
    return say(after == before, f"The layers had scaling {next(iter(before)):g}, and have {scalings} with rsLoRA.")
