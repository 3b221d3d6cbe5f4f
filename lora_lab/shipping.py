"""Saving what production loads, all or nothing: an adapter or a merged model, with its tokenizer and model card.

Whether it is worth saving is the question of `merging`.
"""

import json
import math
import os
import re
import reprlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import Timeout
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedTokenizerBase

from . import adapters, cache, files
from .display import no_progress_bars
from .errors import LabError, reason

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def ship(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike, card: str,
         base: str | None = None) -> Path:
    """Save the adapter of a PEFT model, or else the whole model, to `folder`; returns the folder.

    Everything is written beside `folder` and takes its place when complete: after a fault, an interrupted cell or a
    killed process the files that were there before are still there, and at every moment there is the one or the other.
    `card` becomes README.md. `base` is what the adapter calls its base model, "owner/name"; needed where the base was
    loaded from a folder of this machine, whose path means nothing elsewhere. Weights are safetensors. An adapter that
    is not called "default" lies in a folder of its name, as PEFT has it. What was written is noted in `.lora-lab.json`
    with its SHA-256: a folder with anything else in it, such as a file that was edited, is refused. Another `ship` to
    the same folder is waited for; the empty `.NAME.lock` beside the folder, by which they know of each other, stays,
    since removing it could let two of them write at once. Raises LabError.
    """
    folder = _check(model, tokenizer, folder, card, base)
    with _locked(folder):
        work = _begun(folder)
        finishing = False
        try:
            with no_progress_bars():
                model.save_pretrained(work, **_options(model))
                tokenizer.save_pretrained(work)
            (work / "README.md").write_text(card, encoding="utf-8")
            for file in work.rglob("adapter_config.json"):
                adapters.note_base(file.parent, model)
            _name_base(work, base)
            _refuse_paths(work, tokenizer)
            for file in work.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes 0600
            work.chmod(0o755)
            finishing = True
            if kept := files.finish(work, folder):
                print(f"What was put into {folder.name} meanwhile is kept in {kept}.")
        except (OSError, SafetensorError) as error:
            needed = math.ceil(_bytes(model) / 1e6)
            raise LabError(
                f"Could not save to {folder}: {reason(error)}. {_state(folder)} It needs {needed:,} MB; "
                f"{shutil.disk_usage(folder.parent).free / 1e6:,.0f} MB are free there."
            ) from None
        except KeyboardInterrupt:
            if not finishing:
                print(f"Interrupted before {folder.name} was complete. {_state(folder)}")
            raise
        finally:
            files.discard(work)
    return folder


def _check(model, tokenizer, folder, card: str, base: str | None) -> Path:
    """The folder, if all is in order."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "save_pretrained"):
        raise LabError(f"model is {reprlib.repr(model)}. Give a PEFT model, or the merged model: ship(model, "
                       "tokenizer, folder, card).")
    place = Path(os.path.realpath(files.place(folder, "the name of a folder")))
    if (here := _working_folder()) and Path(here).is_relative_to(place):
        raise LabError(f"folder is {str(folder)!r}, in which you work: whatever runs here would lose the ground under "
                       "it. Give another folder, such as \"shipped\".")
    if not isinstance(model, PeftModel) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise LabError(
            "This model has adapter layers in it and is no PeftModel, so its files would fit nothing. Save the "
            "PeftModel to ship the adapter, or what merge_and_unload() returned to ship the merged model."
        )
    if isinstance(model, PeftModel) and not any(isinstance(m, BaseTunerLayer) for m in model.modules()) \
            and not next(iter(model.peft_config.values())).is_prompt_learning:
        raise LabError(
            "The adapter's layers were taken out of this PeftModel, by merge_and_unload() or unload(). Ship what that "
            "call returned, or load base and adapter again."
        )
    if not hasattr(tokenizer, "save_pretrained") or isinstance(tokenizer, torch.nn.Module):
        raise LabError(f"tokenizer is {reprlib.repr(tokenizer)}. Without it nobody can ask the model anything: give "
                       "the tokenizer.")
    if not isinstance(card, str):
        raise LabError(f"card is {reprlib.repr(card)}. Give its text, such as Path(\"card.md\").read_text().")
    if not card.strip():
        raise LabError("The model card is empty. Say what base, data, licence, scores and settings this model has.")
    if base is not None and not _may_be_a_repository(base):
        raise LabError(f"base is {base!r}. Give the name by which others find the base: \"owner/name\".")
    if spoilt := [name for name, weight in model.named_parameters() if _is_spoilt(weight)]:
        raise LabError(f"{len(spoilt)} of the weights hold NaN or infinity, such as {spoilt[0]}: such a model answers "
                       "nothing of use. Train again with a smaller learning rate, or load the last sound adapter.")
    return place


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _may_be_a_repository(name) -> bool:
    try:
        validate_repo_id(name)
    except (HFValidationError, TypeError):
        return False
    return True


def _is_spoilt(weight: torch.Tensor) -> bool:
    return weight.is_floating_point() and not weight.is_meta and not weight.isfinite().all().item()


def _locked(folder: Path):
    """A folder that may be written, and that nobody else writes meanwhile."""
    try:
        if folder.exists() and not folder.is_dir():
            raise LabError(f"{folder} is a file. Give a folder.")
        lock = folder.parent / f".{folder.name}.lock"
        try:
            return files.lock(lock, timeout=0)
        except Timeout:
            print(f"Another process is saving to {folder}; waiting for it.")
            return files.lock(lock)
    except OSError as error:
        raise LabError(f"Could not save to {folder}: {reason(error)}. Give a folder that you may write to.") from None


def _begun(folder: Path) -> Path:
    """A folder to write to, once what a killed save left is cleared away; under the lock."""
    try:
        for line in files.recover(folder):
            print(line)
        if folder.exists() and (others := files.strangers(folder)):
            raise LabError(f"{folder} holds other files than those that were saved there, which saving would replace: "
                           f"{', '.join(others[:5])}. Give a new folder, or move them.")
        return files.begin(folder)
    except OSError as error:
        raise LabError(f"Could not save to {folder}: {reason(error)}. Give a folder that you may write to.") from None


def _options(model) -> dict:
    """Whether to save the embedding, trained or of another size; left to itself, PEFT asks the model hub.

    A base whose config is not on this machine may have had another size, so its embedding travels with the adapter.
    """
    if not isinstance(model, PeftModel):
        return {}
    named = getattr(model.config, "_name_or_path", None) or ""
    if named.rpartition("/")[2] == cache.SMOLLM2.name:  # the packaged model, under its name on the hub
        named = str(cache.cache_folder() / cache.SMOLLM2.name)
    try:
        rows = AutoConfig.from_pretrained(named, local_files_only=True).get_text_config().vocab_size if named else None
    except Exception:  # no such folder, nothing kept of such a name, or a config that is broken in some way
        rows = None
    embedding, now = model.get_input_embeddings(), model.config.get_text_config().vocab_size
    unknown = rows is None and isinstance(embedding, torch.nn.Embedding)
    if unknown:
        print(f"The base's config is not on this machine, so nobody can tell whether its {now:,} embedding rows are "
              f"its own: they are saved with the adapter ({embedding.weight.nbytes / 1e6:,.0f} MB).")
    return {"save_embedding_layers": unknown or rows not in (None, now) or isinstance(embedding, BaseTunerLayer)}


def _state(folder: Path) -> str:
    return "The previous files are as they were." if folder.exists() else "Nothing was left there."


def _bytes(model) -> int:
    parts = ("lora_", ".modules_to_save.") if isinstance(model, PeftModel) else ("",)
    return sum(p.numel() * p.element_size() for n, p in model.named_parameters() if any(part in n for part in parts))


def _name_base(work: Path, base: str | None) -> None:
    for file in work.rglob("adapter_config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        named = base or config.get("base_model_name_or_path") or ""
        if not base and (not named or Path(named).is_absolute() or os.path.exists(os.path.expanduser(named))):
            raise LabError(
                f"The adapter would name its base {named!r}, which only this machine knows. Give base=\"owner/name\", "
                "by which others find it."
            )
        config["base_model_name_or_path"] = named
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _refuse_paths(work: Path, tokenizer) -> None:
    """No file says where it was made; what a token of the tokenizer says is no path."""
    homes = (place for place in (os.path.expanduser("~"), _working_folder(), str(work.parent)) if len(place) > 1)
    here = re.compile("|".join(rf"(?<![\w.-]){re.escape(place)}(?![\w-])" for place in homes) or "(?!)")
    tokens = set(getattr(tokenizer, "get_vocab", dict)())
    for file in (file for file in work.rglob("*") if file.is_file()):
        if file.suffix in _PICKLES:
            raise LabError(f"{file.name} would be a pickle, which can run code where it is loaded. Leave it out.")
        texts: list[str] = []
        if file.suffix == ".json" and file.name not in ("tokenizer.json", "vocab.json"):
            texts = [text for text in _texts(json.loads(file.read_text(encoding="utf-8"))) if text not in tokens]
        elif file.suffix in (".md", ".jinja"):
            texts = [file.read_text(encoding="utf-8", errors="replace")]
        if found := next(filter(None, map(here.search, texts)), None):
            raise LabError(f"{file.name} would hold a path of this machine, {found[0]}. Take it out.")


def _texts(value) -> Iterator[str]:
    """Every text in what a JSON file holds; keys are none."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)
