"""What is wrong with an adapter that "does nothing", or does harm: from its files, its log, its data and its base.

The doctor reads. It executes nothing that a folder holds, loads no pickle, and changes neither files nor models. Each
cause it knows is a line in `causes`; what finds them is in `files`, `logs`, `rows` and `trial`.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import LabError, expect
from . import logs, on_disk, rows, trial
from .causes import CAUSES, Finding

__all__ = ["CAUSES", "Examination", "Finding", "examine"]


@dataclass(frozen=True)
class Examination:
    """The findings, the likeliest cause first; what was looked at; and what could be told with more.

    A finding is a cause with its evidence, not a proof: what several share is named once, by the earliest of them.
    """

    findings: tuple[Finding, ...]
    looked_at: tuple[str, ...]
    untold: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [f"{number}. {finding}" for number, finding in enumerate(self.findings, 1)]
        head = "Looked at: " + "; ".join(self.looked_at) + "."
        return "\n".join([head, *(told or ["Nothing found."]), *(f"Note: {note}" for note in self.notes),
                          *(f"Not told without more: {what}" for what in self.untold)])


def examine(adapter: str | os.PathLike | None = None, base: torch.nn.Module | None = None,
            log: str | os.PathLike | list[dict] | None = None, data: Any = None,
            prompts: Iterable[str] | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> Examination:
    """Look for what is wrong with a trained adapter; any part may be missing, and more parts tell more.

    `adapter` is the folder that `save_pretrained` wrote; `base` the model that it is loaded on, without an adapter;
    `log` a Trainer's `log_history`, or a file or folder that holds one (`trainer_state.json`, `metrics.jsonl`, what a
    program printed); `data` the rows as they were trained on, each with `input_ids` and either `labels` or
    `answer_length`; or texts, pairs and chats as `batches.encode` takes them, or what `data.read` returned, for all of
    which `tokenizer` is needed; `prompts` the texts that the adapter is asked now.

    With `base` and `data` the model is run, on at most 16 rows. Raises LabError for arguments of another kind, not for
    what is wrong with the adapter: that is what it finds.
    """
    expect(base is None or isinstance(base, torch.nn.Module), "base", base, "the base, a model")
    if hasattr(base, "peft_config"):
        raise LabError("base has an adapter already. Give the model as it was loaded, and the adapter's folder.")
    if adapter is None and log is None and data is None:
        raise LabError("There is nothing to examine. Give adapter=, the folder of a saved adapter, log= or data=.")
    found, looked, notes = [], [], []
    saved = None
    if adapter is not None:
        saved, faults, said = on_disk.read(adapter, base)
        found += faults
        notes += said
        looked.append(f"the adapter in {adapter}")
        log = on_disk.log_beside(adapter) if log is None and saved else log
    kept = on_disk.tokenizer_of(saved.folder) if saved else None
    if kept is not None and tokenizer is not None:
        found += rows.unlike_tokenizers(kept, tokenizer)
    tokenizer = tokenizer if tokenizer is not None else kept
    encoded = rows.encoded(data, tokenizer) if data is not None else []
    if encoded:
        end = rows.end_of_text(tokenizer, base)
        found += rows.faults(encoded, end)
        looked.append(f"{len(encoded):,} rows of data")
    asked = [prompts] if isinstance(prompts, str) else list(prompts or ()) if isinstance(prompts, Iterable) else []
    fits = (prompts is None or isinstance(prompts, Iterable)) and all(isinstance(text, str) for text in asked)
    expect(fits, "prompts", prompts, "a list of texts")
    if asked and data is not None and tokenizer is not None:
        found += rows.unlike_training(encoded, asked, tokenizer)
    history = logs.read(log) if log is not None else None
    if history is not None:
        found += logs.faults(history)
        looked.append(f"a log of {len(history.losses)} losses")
    if saved and base is not None:
        found += trial.on_base(saved, base, encoded, history, tokenizer)
        looked.append("the base's weights" + (f", and its answers to {min(len(encoded), trial.ROWS)} rows"
                                              if encoded else ""))
    if saved:
        found += on_disk.faults(saved, base)
        notes += on_disk.notes(saved)
    return Examination(_ranked(found), tuple(looked), tuple(_untold(adapter, base, log, data)), tuple(notes))


def _ranked(found: list[Finding]) -> tuple[Finding, ...]:
    """Causes before their symptoms, each once: the order of `CAUSES`."""
    order = list(CAUSES)
    first = {finding.cause: finding for finding in reversed(found)}
    return tuple(sorted(first.values(), key=lambda finding: order.index(finding.cause)))


def _untold(adapter: Any, base: Any, log: Any, data: Any) -> Iterable[str]:
    if adapter is not None and base is None:
        yield "base=: is it the right base, is the update in it already, is the adapter loud enough."
    if adapter is not None and (base is None or data is None):
        yield "base= and data= together: was alpha changed after training, does the adapter help on its own rows."
    if log is None:
        yield "log=: did the loss fall, diverge or overfit."
    if data is None:
        yield "data=: is the prompt counted, is the end of text learned."
