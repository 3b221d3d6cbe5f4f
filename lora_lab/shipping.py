"""Saving what production loads, all or nothing: an adapter or a merged model, with its tokenizer and model card.

Whether it is worth saving is the question of `merging`.
"""

import fnmatch
import json
import math
import os
import re
import reprlib
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedTokenizerBase

from . import files
from .display import no_progress_bars
from .errors import LabError, reason

_OURS = ("*.safetensors", "*.safetensors.index.json", "*config.json", "README.md", "tokenizer*", "*token*.json",
         "vocab.*", "merges.txt", "*.jinja", "spiece.model")  # what `save_pretrained` of models and tokenizers writes
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def ship(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike, card: str,
         base: str | None = None) -> Path:
    """Save the adapter of a PEFT model, or else the whole model, to `folder`; returns the folder.

    Everything is written beside `folder` and takes its place when complete: after a fault, an interrupted cell or a
    killed process the files that were there before are still there. `card` becomes README.md. `base` is what the
    adapter calls its base model, "owner/name"; needed where the base was loaded from a folder of this machine, whose
    path means nothing elsewhere. Weights are safetensors. An adapter that is not called "default" lies in a folder of
    its name, as PEFT has it. A folder with anything else in it than such files is refused. Raises LabError.
    """
    _check(model, tokenizer, folder, card, base)
    folder = Path(folder).expanduser().resolve()
    with _locked(folder):
        _recover(folder)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.incomplete-", dir=folder.parent))
        try:
            with no_progress_bars():
                model.save_pretrained(work, **_options(model))
                tokenizer.save_pretrained(work)
            (work / "README.md").write_text(card, encoding="utf-8")
            _name_base(work, base)
            _refuse_paths(work)
            for file in work.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes 0600, a temporary folder is 0700
            work.chmod(0o755)
            _take_place(work, folder)
        except (OSError, SafetensorError) as error:
            needed = math.ceil(_bytes(model) / 1e6)
            raise LabError(
                f"Could not save to {folder}: {reason(error)}. {_state(folder)} It needs {needed:,} MB; "
                f"{shutil.disk_usage(folder.parent).free / 1e6:,.0f} MB are free there."
            ) from None
        except KeyboardInterrupt:
            print(f"Interrupted before {folder.name} was complete. {_state(folder)}")
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _check(model, tokenizer, folder, card: str, base: str | None) -> None:
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "save_pretrained"):
        raise LabError(f"model is {reprlib.repr(model)}. Give a PEFT model, or the merged model: ship(model, "
                       "tokenizer, folder, card).")
    if not isinstance(folder, (str, os.PathLike)) or not str(folder):
        raise LabError(f"folder is {reprlib.repr(folder)}. Give the name of a folder.")
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
        if others := sorted(place.name for place in folder.glob("*") if not _is_ours(place)):
            raise LabError(f"{folder} holds other files than a saved model's, which saving would replace: "
                           f"{', '.join(others[:5])}. Give a new folder, or move them.")
        return files.lock(folder.parent / f".{folder.name}.lock")
    except OSError as error:
        raise LabError(f"Could not save to {folder}: {reason(error)}. Give a folder that you may write to.") from None


def _is_ours(place: Path) -> bool:
    if place.is_dir():
        return not place.is_symlink() and all(_is_ours(inner) for inner in place.iterdir())
    return any(fnmatch.fnmatch(place.name, pattern) for pattern in _OURS)


def _options(model) -> dict:
    """Whether to save the embedding, trained or of another size; left to itself, PEFT asks the model hub."""
    if not isinstance(model, PeftModel):
        return {}
    embedding = model.get_input_embeddings()
    named = getattr(model.config, "_name_or_path", "")
    try:
        rows = AutoConfig.from_pretrained(named, local_files_only=True).get_text_config().vocab_size if named else None
    except (OSError, ValueError):  # no such folder, and nothing kept of such a name
        rows = None
    resized = rows not in (None, model.config.get_text_config().vocab_size)
    return {"save_embedding_layers": resized or isinstance(embedding, BaseTunerLayer)}


def _recover(folder: Path) -> None:
    """What a killed process left: its incomplete files go, and the files it was about to replace come back."""
    for leftover in folder.parent.glob(f".{folder.name}.incomplete-*"):
        shutil.rmtree(leftover, ignore_errors=True)
        print(f"An earlier save of {folder.name} was killed; its incomplete files are removed.")
    if (previous := _previous(folder)).exists():
        if folder.exists():
            shutil.rmtree(previous)
        else:
            os.replace(previous, folder)
            print(f"An earlier save of {folder.name} was killed at its last step; the previous files are back.")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _take_place(work: Path, folder: Path) -> None:
    previous = _previous(folder)
    if not folder.exists():
        os.replace(work, folder)
        return
    os.replace(folder, previous)
    try:
        os.replace(work, folder)
    except BaseException:
        os.replace(previous, folder)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _state(folder: Path) -> str:
    return "The previous files are as they were." if folder.exists() else "Nothing was left there."


def _bytes(model) -> int:
    parts = ("lora_", ".modules_to_save.") if isinstance(model, PeftModel) else ("",)
    return sum(p.numel() * p.element_size() for n, p in model.named_parameters() if any(part in n for part in parts))


def _name_base(work: Path, base: str | None) -> None:
    for file in work.rglob("adapter_config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        named = base or config.get("base_model_name_or_path") or ""
        if not named or Path(named).is_absolute() or Path(named).expanduser().exists():
            raise LabError(
                f"The adapter would name its base {named!r}, which only this machine knows. Give base=\"owner/name\", "
                "by which others find it."
            )
        config["base_model_name_or_path"] = named
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _refuse_paths(work: Path) -> None:
    here = {str(place) for place in (Path.home(), Path.cwd(), work.parent) if len(place.parts) > 1}
    for file in (file for file in work.rglob("*") if file.is_file()):
        if file.suffix in _PICKLES:
            raise LabError(f"{file.name} would be a pickle, which can run code where it is loaded. Leave it out.")
        is_text = file.suffix in (".json", ".md", ".jinja", ".txt")
        text = file.read_text(encoding="utf-8", errors="replace") if is_text else ""
        for place in here:
            if re.search(rf"(?<![\w.-]){re.escape(place)}(?![\w-])", text):
                raise LabError(f"{file.name} would hold a path of this machine, {place}. Take it out.")
