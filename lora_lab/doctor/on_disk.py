"""What the files of an adapter say by themselves: whole, finite, trained, loud, servable."""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .. import adapters, files
from ..errors import LabError, reason
from ..targets import layer_names
from . import logs
from .causes import Finding

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FACTOR = re.compile(r"(.*)\.lora_(embedding_)?([AB])(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?$")  # .default: a name
_PREFIX = "base_model.model."
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out")
_STILL = 1e-5  # of A's typical entry: AdamW's first step at a rate of 1e-4 moves B by ten times as much
_SERVED = 512  # the highest rank that vLLM can be told to make room for (--max-lora-rank)
_LOUD = 10.0  # times the size a weight has when it is made: fan_in ** -0.5 an entry


@dataclass
class Pair:
    """The two factors of one layer, in float32: A (r, in), B (out, r); an embedding's are turned to that form."""

    path: str
    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    @property
    def update(self) -> torch.Tensor:
        """What the layer's weight is changed by: (out, in)."""
        return self.scaling * self.B @ self.A

    @property
    def size(self) -> float:
        """The Frobenius norm of the update, from the small products alone."""
        squared = ((self.B.T @ self.B) * (self.A @ self.A.T)).sum()
        return abs(self.scaling) * math.sqrt(max(squared.item(), 0))


@dataclass
class Saved:
    """A saved adapter, whose weights are read one layer after the other."""

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, list[int]]

    def pairs(self) -> Iterator[Pair]:
        """Yield the factors of each layer that has two of two dimensions."""
        with safe_open(self.folder / WEIGHTS, "pt") as weights:
            for name in sorted(self.shapes):
                found = _FACTOR.match(name)
                if not found or found[3] != "A" or (other := self._other(name, found)) not in self.shapes:
                    continue
                A, B = (weights.get_tensor(key).float().flatten(1) for key in (name, other))
                if A.shape[0] == B.shape[1]:
                    path = found[1].removeprefix(_PREFIX)
                    yield Pair(path, A, B, self.scaling(path, A.shape[0]))

    @staticmethod
    def _other(name: str, found: re.Match) -> str:
        return f"{name[:found.start(3)]}B{name[found.end(3):]}"

    def scaling(self, path: str, rank: int) -> float:
        """Alpha / r of a layer, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023), as the config says."""
        patterns = self.config.get("alpha_pattern") or {}
        alpha = next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", path)),
                     self.config.get("lora_alpha"))
        if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
            return 1.0
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def read(folder: str | os.PathLike, base: torch.nn.Module | None = None
         ) -> tuple[Saved | None, list[Finding], list[str]]:
    """Return a saved adapter, or None with the reason; whatever the folder holds, nothing of it is executed.

    Patterns of its config are matched with its layers' names, and with those of `base`, within some seconds or not.
    """
    place = files.place(folder, "the folder of a saved adapter")
    if not (place / CONFIG).exists():  # the folder of a training
        inner = [place / "adapter", *reversed(logs.checkpoints(place))]
        place = next((folder for folder in inner if (folder / CONFIG).exists()), place)
    if not (place / WEIGHTS).exists() and (place / "adapter_model.bin").exists():
        return None, [Finding("pickled weights", f"{place.name} holds adapter_model.bin and no {WEIGHTS}")], []
    try:
        adapters.adapter_folder(place)
    except LabError as error:
        config = _config(place)
        if config and "says r=" in str(error):
            return None, [Finding("config edited", reason(error))], []
        others = sorted(path.name for path in place.glob("*.safetensors") if path.name != WEIGHTS and not config)
        form = f". {others[0]} may be an adapter in another program's form, such as diffusers'" if others else ""
        return None, [Finding("not an adapter", reason(error).rstrip(".") + form)], []
    with safe_open(place / WEIGHTS, "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}
    saved = Saved(place, _config(place), shapes)
    names = [found[1] for name in shapes if (found := _FACTOR.match(name))]
    names += [name for name, _ in base.named_modules()] if base is not None else []
    if not layer_names.patterns_end(saved.config, names):
        return None, [Finding("not an adapter", f"the patterns in {CONFIG} were not matched with the layers in "
                                                f"{layer_names.SECONDS} seconds")], []
    if others := [name for name in shapes if _FACTOR.match(name) and (
            not name.startswith(_PREFIX) or name.startswith(f"{_PREFIX}_orig_mod."))]:
        return None, [Finding("not an adapter", f"its names do not begin with {_PREFIX} and the base's own, as in "
                                                f"{others[0]}, and PEFT loads nothing of them, without an error")], []
    return saved, [], []


def _config(folder: Path) -> dict[str, Any]:
    try:
        return files.read_json(folder / CONFIG, dict)
    except (OSError, ValueError):
        return {}


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that was saved with the adapter, if one was; no code of the folder's is run."""
    if not (folder / "tokenizer.json").exists():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception:  # a broken tokenizer says nothing
        return None


def log_beside(adapter: str | os.PathLike) -> Path | None:
    """Return the log in the adapter's folder, or in the run's folder that it lies in, if there is one."""
    place = files.place(adapter)
    if logs.in_folder(place):
        return place
    return place.parent if any((place.parent / name).is_file() for name in logs.NAMES) else None


def faults(saved: Saved, base: torch.nn.Module | None) -> list[Finding]:
    """Return what the weights and the config say; with `base`, embeddings are compared with its own."""
    found = [*_weights(saved), *_edited(saved), *_missing_targets(saved), *_embeddings(saved, base)]
    if refusals := _refusals(saved.config, saved.shapes):
        found.append(Finding("not servable", "; ".join(refusals)))
    return found


def notes(saved: Saved) -> list[str]:
    """Return what is no fault and has to be known."""
    rank, patterns = saved.config.get("r"), saved.config.get("rank_pattern") or {}
    ranks = [value for value in (rank, *patterns.values()) if isinstance(value, int)]  # AdaLoRA's are lists
    highest = max(ranks, default=0)
    return [f"to serve rank {highest}, vLLM needs --max-lora-rank {highest} or the next size above; its default is 16"
            ] if 16 < highest <= _SERVED else []


def _weights(saved: Saved) -> Iterator[Finding]:
    spoilt, dead, zero, still, loud, layers = [], [], [], [], [], 0
    with safe_open(saved.folder / WEIGHTS, "pt") as weights:
        for name in saved.shapes:
            tensor = weights.get_tensor(name)
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                spoilt.append(name)
    if spoilt:
        yield Finding("not finite", f"in {_some(spoilt, len(saved.shapes))}")
        return
    for pair in saved.pairs():
        layers += 1
        moved, typical = pair.B.abs().max().item(), pair.A.abs().mean().item()
        if not typical and not moved:
            dead.append(pair.path)
        elif not moved or not typical:
            zero.append(pair.path)
        elif moved < _STILL * max(typical, 1e-3):
            still.append(pair.path)
        size = pair.size / math.sqrt(pair.A.shape[1] * pair.B.shape[0])
        if size > _LOUD * pair.A.shape[1] ** -0.5:
            loud.append((size * pair.A.shape[1] ** 0.5, pair.path))
    if dead:
        yield Finding("dead", f"in {_some(dead, layers)}")
    elif len(zero) == layers > 0:
        yield Finding("never trained", f"B has no entry that is not 0 in {_some(zero, layers)}")
    elif zero:
        yield Finding("partly trained", f"B is 0 in {_some(zero, layers)}")
    if len(still) > layers / 2:
        yield Finding("hardly moved", f"no entry of B is above {_STILL:g} of A's in {_some(still, layers)}")
    if len(loud) > layers / 4:
        worst, path = max(loud)
        yield Finding("exploded", f"in {len(loud)} of {layers} layers an update's entries are over {_LOUD:g} times as "
                                  f"large as a weight's at its making, in {path} {worst:,.0f} times")


def _edited(saved: Saved) -> Iterator[Finding]:
    """The config that was trained with may lie beside: in the training's checkpoints, or in what note_base wrote."""
    ours = {key: saved.config.get(key) for key in adapters.TRAINED_WITH}
    alpha = ours["lora_alpha"]
    if isinstance(alpha, (int, float)) and not 0 < alpha < math.inf:
        yield Finding("config edited", f"lora_alpha is {alpha}")
        return
    beside = logs.checkpoints(saved.folder.parent) + logs.checkpoints(saved.folder)
    others = [_config(folder) for folder in beside if folder != saved.folder and (folder / CONFIG).is_file()]
    try:
        noted = files.read_json(saved.folder / adapters.BASE, dict).get("trained with")
    except (OSError, ValueError):
        noted = None
    for there, where in [(noted, adapters.BASE), *((other, "a checkpoint beside it") for other in others[-1:])]:
        differs = [key for key in ours if isinstance(there, dict) and key in there and there[key] != ours[key]]
        if differs:
            said = ", ".join(f"{key} is {ours[key]!r}, and {there[key]!r} in {where}" for key in differs)
            yield Finding("config edited", said)
            return


def _missing_targets(saved: Saved) -> Iterator[Finding]:
    wanted = saved.config.get("target_modules")
    paths = {found[1] for name in saved.shapes if (found := _FACTOR.match(name))}
    lost = [name for name in _names(saved.config, "modules_to_save")
            if not any(f".{name}." in f".{key}." for key in saved.shapes)]
    if lost:
        yield Finding("targets missing", f"the file has nothing of modules_to_save, {', '.join(lost)}")
    if isinstance(wanted, list) and saved.config.get("peft_type") == "LORA":
        missing = [name for name in wanted if isinstance(name, str)
                   and not any(path == name or path.endswith(f".{name}") for path in paths)]
        if missing:
            yield Finding("targets missing", f"{', '.join(map(repr, sorted(missing)))} of {len(wanted)} target_modules "
                                             "match no layer in the file")


def _embeddings(saved: Saved, base: torch.nn.Module | None) -> Iterator[Finding]:
    asked = [*_names(saved.config, "target_modules"), *_names(saved.config, "modules_to_save")]
    whole = {name: shape for name, shape in saved.shapes.items() if "lora_" not in name and "token_adapter" not in name
             and any(f".{part}." in f".{name}" for part in _EMBEDDINGS)}
    for name, shape in whole.items():
        if any(part in name for part in _names(saved.config, "modules_to_save")):
            continue
        own = _of_base(base, name)
        if own is None or list(own.shape) != list(shape):
            continue
        with safe_open(saved.folder / WEIGHTS, "pt") as weights:
            tensor = weights.get_tensor(name)
        if torch.equal(tensor.float(), own.detach().float().cpu()):
            size = tensor.numel() * tensor.element_size() / 1e6
            yield Finding("embeddings copied", f"{name}, {size:.1f} MB, equals the base's" + (
                "" if asked else ", and no key of the config asks for it"))
            return


def _of_base(base: torch.nn.Module | None, name: str) -> torch.Tensor | None:
    try:
        return base.get_parameter(name.removeprefix(_PREFIX)) if base is not None else None
    except AttributeError:
        return None


def _names(config: dict, key: str) -> list[str]:
    value = config.get(key)
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _refusals(config: dict, shapes: dict) -> list[str]:
    """What vLLM's PEFTHelper refuses, and the patterns, which it does not read: every layer gets alpha / r."""
    refused = []
    if config.get("use_dora"):
        refused.append("use_dora (vLLM refuses it)")
    if _names(config, "modules_to_save"):
        refused.append(f"modules_to_save {_names(config, 'modules_to_save')} (vLLM wants none)")
    if config.get("bias") not in (None, "none"):
        refused.append(f"bias={config['bias']!r}")
    if config.get("trainable_token_indices"):
        refused.append("trainable_token_indices (rows of the embedding)")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        refused.append("rank_pattern or alpha_pattern (vLLM scales every layer by alpha / r)")
    rank = config.get("r")
    if isinstance(rank, int) and rank > _SERVED:
        refused.append(f"rank {rank} (at most {_SERVED})")
    embedded = [name for name in shapes if "lora_embedding" in name or re.search(r"lm_head\.lora_", name)]
    if embedded:
        refused.append(f"an adapter on {embedded[0].removeprefix('base_model.model.').partition('.lora_')[0]}")
    return refused


def _some(names: list[str], of: int) -> str:
    short = sorted({name.removeprefix(_PREFIX) for name in names})
    return f"{len(names)} of {of}, such as {short[0]}"
