"""What the weights of a deployed model prove: whether the update is in each layer, and on which base.

Compares weights alone; what they do to logits and answers is in `auditor`.
"""

import collections
import functools
import math
from dataclasses import dataclass, field

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper

from . import effective

FLOAT32 = 1e-4  # of a matrix's typical entry: a thousand roundings, as in a singular value decomposition
OFF, WRONG = 0.05, 0.6  # how far the update's share is from 1 if it is another one, and if it is not that layer's
TENTH = 0.1  # of the update, by which another difference is a fault


@dataclass
class Comparison:
    """What the weights of a deployed model say.

    `update`: how many times the adapter's update is in them (1 is right), None where it cannot be told. `missing`: the
    layers without it. `faults` are wrong whatever the answers are; `doubts` show that the two are not the same model,
    and leave open how much that matters; `hints` may explain why answers differ. `equal`: what both have is the same
    to rounding.
    """

    update: float | None = None
    missing: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    equal: bool = False
    apart: float = 0.0  # the largest difference of an entry, of its weight's typical one


def compare(model: torch.nn.Module, deployed: torch.nn.Module) -> Comparison:
    """Compare the weights that `deployed` computes with, and those of a PEFT model with its adapter unmerged."""
    found, paths, expected = _Found(), {}, set()
    there: dict[str, tuple[torch.nn.Module, str]] = {}  # where each weight is, by its full name
    for path, site in effective.sites(deployed):
        paths[path] = site
        there |= {_join(path, name): (site, name) for name in effective.weights(effective.bare(site), site)}
    merged = functools.lru_cache(1)(effective.merged)  # weights of one layer follow one another
    vocabulary = model.get_input_embeddings().weight.shape[0]
    for path, site in effective.sites(model):
        base, own = effective.weights(effective.bare(site), site), effective.merged(site)
        for name, weight in base.items() if own is None else effective.weights(own, site).items():
            full = _join(path, name)
            expected.add(full)
            if full not in there:
                found.absent(path, site, paths.get(path))
                continue
            other, local = there[full]
            its = merged(other)
            if own is None or its is None:
                found.add("unread", path)
                continue
            pair = _Pair(site, other, weight, effective.weights(its, other)[local], base.get(name),
                         effective.weights(effective.bare(other), other)[local], vocabulary)
            found.measure(path, full, pair)
    for full in sorted(there.keys() - expected):
        other, local = there[full]
        extra = effective.value(effective.weights(effective.bare(other), other)[local])
        if extra is not None and extra.any():  # zeros add nothing
            found.add("extra", full)
    return found.comparison(_shared(model))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


def _shared(model) -> list[dict[str, bool]]:
    """Modules that share a weight with an adapted layer, by path, and which of them are adapted."""
    holders: dict[int, dict[str, bool]] = collections.defaultdict(dict)
    for path, site in effective.sites(model):
        for owner, name in effective.weights(effective.bare(site), site).values():
            holders[id(getattr(owner, name))][path] = isinstance(site, effective.WRAPPERS)
    return [found for found in holders.values() if len(found) > 1 and any(found.values())]


@dataclass
class _Pair:
    """One weight of both models: as they compute with it, and as it is in their bases."""

    site: torch.nn.Module
    other: torch.nn.Module
    weight: effective.Weight
    its: effective.Weight
    base: effective.Weight | None
    below: effective.Weight
    vocabulary: int

    @property
    def plain(self) -> bool:
        """Whether the other model's weight holds what there is of an adapter."""
        return not isinstance(self.other, effective.WRAPPERS) or bool(getattr(self.other, "merged", False))


class _Found:
    """What one weight after the other adds up to, and the names of those with something to say."""

    def __init__(self):
        self.names: dict[str, dict[str, None]] = collections.defaultdict(dict)  # kind: {name: None}, in their order
        self.size = self.along = self.due = self.before = self.rest = 0.0  # of the update: squared, in it, to expect
        self.off = self.off_size = 0.0  # squared: other differences, and the updates of the layers that have them
        self.entries, self.untouched, self.alike, self.fine = 0, 0, 0, True
        self.scalings: set[tuple[float, float]] = set()
        self.rows: dict[str, tuple[int, int]] = {}
        self.unmerged, self.apart = False, 0.0

    def add(self, kind: str, name: str) -> None:
        self.names[kind][name] = None

    def absent(self, path: str, site, other) -> None:
        """There is no such weight: is the layer quantised in a way that cannot be read, or is it not there?"""
        hidden = other is not None and any(
            not tensor.is_floating_point() for tensor in [*other.parameters(False), *other.buffers(False)])
        self.add("unread" if hidden else "unlike" if isinstance(site, effective.WRAPPERS) else "absent", path)

    def measure(self, path: str, full: str, pair: _Pair) -> None:
        """Compare one weight."""
        want, have = effective.value(pair.weight), effective.value(pair.its)
        if want is None or have is None:
            return self.add("unread", path)
        have, rows = have.to(want.device), slice(None)
        if have.shape != want.shape:
            if len(have) <= len(want) or len(want) != pair.vocabulary or have.shape[1:] != want.shape[1:]:
                return self.add("unlike" if isinstance(pair.site, effective.WRAPPERS) else "absent", path)
            rows = slice(len(want))  # padded for serving
            have = have[rows]
        if not want.isfinite().all() or not have.isfinite().all():
            return self.add("nan", full)
        self.apart = max(self.apart, ((have - want).abs().max() / _typical(want).clamp(min=1e-30)).item())
        base = None if pair.base is None else effective.value(pair.base)
        base = torch.zeros_like(want) if base is None or base.shape != want.shape else base
        below = effective.value(pair.below)
        below = have if below is None or below[rows].shape != have.shape else below[rows].to(want.device)
        coarse = any(effective.quantised(effective.bare(site)) for site in (pair.site, pair.other))
        if (want - base).any():
            self._adapted(path, full, pair, want, have, base, below, coarse)
        else:
            self._untouched(full, pair, want, have, below, coarse)

    def _untouched(self, full, pair, want, have, below, coarse) -> None:
        self.untouched += 1
        rounded = not pair.plain and bool(((have - want).abs() <= _rounding(pair, want, want, below)).all())
        if rounded or effective.same(want, have):
            self.alike += want.dim() > 1
        elif coarse and effective.near(want, have):
            self.add("inexact", full)
        else:
            self.add("base", full)
            self.fine &= want.dim() > 1 and effective.near(want, have)

    def _adapted(self, path, full, pair, want, have, base, below, coarse) -> None:
        update, change = want - base, have - base
        size, along = update.square().sum().item(), (change * update).sum().item()
        rest = (change - along / size * update).square().sum().item()
        held = effective.held(getattr(*pair.its)) if pair.plain and not coarse else torch.float32
        due = ((want.to(held).float() - base) * update).sum().item() if held in effective.HALVES else size
        self.size, self.along, self.due = self.size + size, self.along + along, self.due + due
        self.rest, self.entries = self.rest + rest, self.entries + want.numel()
        self.add("adapted", path)
        if not pair.plain:
            self.unmerged = True
            self.before += ((below - base) * update).sum().item()
            if isinstance(pair.other, LoraLayer) and isinstance(pair.site, LoraLayer):
                self.scalings.add((_scaling(pair.site), _scaling(pair.other)))
        away, unlike = (along - due) / size, (have - want).abs() > _rounding(pair, want, base, below)
        if abs(away) > WRONG + _chance(rest, want.numel(), size):
            self.add("missing" if away < 0 else "twice", path)
        elif coarse and unlike.any():
            self.add("inexact" if effective.near(want, have) else "off", full)
        elif unlike.any():
            self.add("off", full)
            self.fine &= want.dim() > 1 and effective.near(want, have)
            self.off, self.off_size = self.off + (have - want).square().sum().item(), self.off_size + size
            if want.dim() == 2:
                trained = update.any(1)
                lost = trained & unlike.any(1) & ((change * update).sum(1) < (1 - WRONG) * update.square().sum(1))
                if lost.any():
                    self.rows[full] = int(lost.sum()), int(trained.sum())
        else:
            self.alike += want.dim() > 1
            return
        if isinstance(pair.site, ModulesToSaveWrapper) and not coarse:
            self.add("retrained", path)

    def comparison(self, groups: list[dict[str, bool]]) -> Comparison:
        """Put into words what was found."""
        names = collections.defaultdict(list, {kind: list(found) for kind, found in self.names.items()})
        update = self.along / self.size if self.size else None
        said = Comparison(update, tuple(names["missing"]), apart=self.apart)
        tied: list[str] = []
        replicated: list[str] = []
        for group in groups:
            kinds = [kind for kind in ("base", "off", "twice")
                     if any({name, name.rpartition(".")[0]} & group.keys() for name in names[kind])]
            for kind in kinds:
                names[kind] = [name for name in names[kind] if not {name, name.rpartition(".")[0]} & group.keys()]
            if kinds:
                adapted = [path for path, has in group.items() if has]
                (replicated if len(adapted) == len(group) else tied).extend(adapted)
        said.faults += [_TIED.format(path) for path in tied]
        if replicated:
            said.faults.append(_REPLICATED.format(len(replicated), replicated[0]))
        if names["unlike"]:
            said.faults.append(f"Another architecture: {len(names['unlike'])} of the adapted layers are missing in the "
                               f"deployed model or of another shape, such as {names['unlike'][0]}.")
        elif names["absent"]:
            said.faults.append(f"Another architecture: {len(names['absent'])} modules are missing in the deployed "
                               f"model or of another shape: {_some(names['absent'])}.")
        if names["extra"]:
            said.doubts.append("The deployed model has weights that the one it was compared with does not have: "
                               f"{_some(names['extra'])}.")
        if names["nan"]:
            said.faults.append(f"NaN or infinite numbers are in the weights: {_some(names['nan'])}. "
                               "merge_and_unload(safe_merge=True) refuses such an adapter.")
        quantised = self.fine and not self.alike and bool(names["base"] + names["off"])
        if quantised:
            said.doubts.append("Every matrix differs by more than the update and its rounding, and no vector does: "
                               "weights that were quantised in between, or another base.")
        elif names["base"]:
            said.faults.append(f"Another base: {len(names['base'])} of the {self.untouched} tensors that the adapter "
                               "does not touch differ from those of the model it was compared with: "
                               f"{_some(names['base'])}.")
        wrong = self._share(said, names)
        said.faults += [f"{path} was trained as a whole (modules_to_save), and is another one in the deployed model."
                        for path in names["retrained"]]
        said.faults += [f"{lost} of the {rows} rows of {full} that the adapter changes are not in the deployed model."
                        for full, (lost, rows) in self.rows.items()]
        names["off"] = [full for full in names["off"] if full not in self.rows]
        if names["off"] and not quantised and not names["base"]:
            fault = not self.off_size or math.sqrt(self.off / self.off_size) >= TENTH
            (said.faults if fault else said.doubts).append(
                "The adapted weights differ by more than the update and its rounding: another base, or other training, "
                f"or weights that were quantised in between. {_some(names['off'])}.")
        if names["unread"]:
            said.doubts.append("Not compared, as no merge gives what they compute, or their weights are quantised or "
                               f"offloaded out of reach: {_some(names['unread'])}.")
        said.equal = not wrong and not said.faults + said.doubts[bool(names["extra"]):] + names["unread"] \
            + names["inexact"]
        return said

    def _share(self, said: Comparison, names: dict[str, list[str]]) -> bool:
        """Whether the update's share is off, and why."""
        if not self.size:
            return False
        away = (self.along - self.due) / self.size
        wrong = abs(away) > OFF + _chance(self.rest, self.entries, self.size)
        rescaled = [pair for pair in sorted(self.scalings) if abs(pair[0] - pair[1]) > 1e-6 * abs(pair[0])]
        missing, twice, adapted = names["missing"], names["twice"], names["adapted"]
        if not wrong and not missing + twice:
            if self.due < (1 - OFF) * self.size:
                said.hints.append(_SHARE["merged"])
            return False
        share = self.along / self.size
        if rescaled:
            said.faults.append(f"Another scaling (alpha/r): {rescaled[0][1]:g} in the deployed model, "
                               f"{rescaled[0][0]:g} in the one it was compared with. Compare lora_alpha in the two "
                               "configs.")
        if self.unmerged and self.before / self.size > 0.5 and share > 1 and not names["base"]:
            said.faults.append(f"The base under the adapter holds the update {self.before / self.size:.2f} times "
                               "already: it had been merged before the adapter was loaded onto it.")
        elif not self.unmerged and share > 1.5 and not names["base"]:
            said.faults.append(f"The update is in it {share:.2f} times: merged more than once, or with another alpha.")
        elif twice and not rescaled:
            said.faults.append(f"The update is more than once in {len(twice)} of {len(adapted)} adapted layers: "
                               f"{_some(twice)}.")
        if missing and len(missing) < len(adapted):
            said.faults.append(f"Without the update: {len(missing)} of {len(adapted)} adapted layers, "
                               f"{_some(missing)}.")
        elif missing or not said.faults and not self.rows:
            (said.faults if abs(away) > TENTH else said.doubts).append(_SHARE["adapter" if self.unmerged else "merged"])
        return True


_SHARE = {
    "merged": "The update's share is off: rounded away (merge first and quantise afterwards), never "
              "merged, or merged with another alpha.",
    "adapter": "The update's share is off: the deployed adapter is another one.",
}
_TIED = (
    "{} is tied: the same weight is used elsewhere in the model, and a merge changes it there, too. Load the base with "
    "tie_word_embeddings=False and its own copy of the weight, or do not merge."
)
_REPLICATED = (
    "{} adapted layers share their weights with others (layer_replication does so), such as {}, and a merge adds every "
    "update to the one weight. Give each layer a copy of its base_layer before you merge, or do not merge."
)


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _rounding(pair: _Pair, want, base, below) -> torch.Tensor:
    """How far a weight may be off by rounding: of the base, of the update, and of what else the sum is made of."""
    stored = [getattr(*weight) for weight in (pair.base or pair.weight, pair.below)]
    grain = max((torch.finfo(effective.held(tensor)).eps for tensor in stored if tensor.is_floating_point()), default=0)
    fine = max([grain, *(torch.finfo(parameter.dtype).eps for site in (pair.site, pair.other)
                         for parameter in site.parameters() if parameter.is_floating_point())])
    update = want - base
    return 2 * grain * (want.abs() + base.abs() + below.abs()) + (4 * grain + FLOAT32) * _typical(want) \
        + 2 * fine * update.abs() + (16 * fine + FLOAT32) * _typical(update)


def _typical(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.square().mean().sqrt()


def _scaling(layer) -> float:
    return sum(layer.scaling[name] for name in layer.active_adapters if name in layer.scaling)


def _chance(rest: float, entries: int, size: float) -> float:
    """Four standard deviations of an update's share, its norm² `size`, from errors of norm² `rest` that ignore it."""
    return 4 * math.sqrt(rest / entries / size)
