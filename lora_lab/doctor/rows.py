"""What the rows of a training say: what the loss counts of them, and whether prompts are written as they were."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .. import batches
from ..batches import IGNORED
from ..data import reading
from ..errors import LabError, expect
from .causes import Finding

_MOST = 2000  # rows that are looked at
_MASKS = "completion_mask", "assistant_masks"


def encoded(data: Any, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return up to 2,000 rows as `input_ids` and `labels`, lists of whole numbers. Raises LabError for other rows.

    Rows have labels, or a mask of what counts (TRL's completion_mask, assistant_masks), or an `answer_length` as
    `batches.encode` gives it; else all their tokens are counted, as by a collator for language modelling. Padding
    (attention_mask 0) is left out. Batches are taken apart.
    """
    if hasattr(data, "pairs"):  # what lora_lab.data read
        able = getattr(tokenizer, "chat_template", None)
        data = [row.messages if row.messages and able else (row.prompt, row.answer) for row in data.rows[:_MOST]]
    expect(isinstance(data, Iterable) and not isinstance(data, (str, bytes)), "data", data, "rows, as trained on")
    rows = []
    for row in [data] if isinstance(data, Mapping) else data:
        rows += _taken_apart(row, tokenizer)
        if len(rows) >= _MOST:
            break
    expect(rows, "data", data, "at least one row")
    return rows[:_MOST]


def _taken_apart(row: Any, tokenizer: Any) -> list[dict[str, list[int]]]:
    if isinstance(row, str) or (isinstance(row, (tuple, list)) and len(row) == 2 and isinstance(row[0], str)):
        return [_of_text(row, tokenizer)]
    if batches.is_chat(row):
        return [part for own in batches.encode([row], tokenizer) for part in _taken_apart(own, tokenizer)]
    if isinstance(row, Mapping) and "input_ids" not in row:
        return encoded(reading.from_rows([dict(row)]), tokenizer)
    if not isinstance(row, Mapping):
        raise LabError(f"data: found a row of {type(row).__name__}. Give rows with input_ids, and labels or "
                       "answer_length, pairs of prompt and answer, chats, texts, or what a file of rows holds.")
    ids = _lists(row["input_ids"])
    labels = _lists(row["labels"]) if row.get("labels") is not None else None
    masked = next((row[key] for key in _MASKS if row.get(key) is not None), None)
    if labels is None and masked is not None:
        labels = [[token if counts else IGNORED for token, counts in zip(line, own)]
                  for line, own in zip(ids, _lists(masked))]
    mask = _lists(row["attention_mask"]) if row.get("attention_mask") is not None else [[1] * len(line) for line in ids]
    found = []
    for number, line in enumerate(ids):
        own = [IGNORED] * len(line)
        if labels is not None:
            own[len(line) - len(labels[number]):] = labels[number]  # those of logits_to_keep cover the end
        else:
            answer = row.get("answer_length", len(line))
            own[-answer:] = line[-answer:] if answer else []
        kept = [i for i, there in enumerate(mask[number]) if there]
        found.append({"input_ids": [line[i] for i in kept], "labels": [own[i] for i in kept]})
    return found


def _of_text(row: Any, tokenizer: Any) -> dict[str, list[int]]:
    expect(callable(tokenizer), "tokenizer", tokenizer, "the tokenizer that reads these texts")
    if isinstance(row, str):
        ids = tokenizer(row, add_special_tokens=False)["input_ids"]
        return {"input_ids": ids, "labels": list(ids)}
    (encoded,) = batches.encode([tuple(row)], tokenizer)
    ids, counted = encoded["input_ids"], encoded["answer_length"]
    return {"input_ids": ids, "labels": [IGNORED] * (len(ids) - counted) + ids[len(ids) - counted:]}


def _lists(values: Any) -> list[list[int]]:
    values = values.tolist() if isinstance(values, torch.Tensor) or hasattr(values, "tolist") else list(values)
    return values if values and isinstance(values[0], (list, tuple)) else [values]


def end_of_text(tokenizer: Any, base: torch.nn.Module | None) -> set[int]:
    """Return the tokens that end a text, as the tokenizer and the model's settings say."""
    ends = [getattr(tokenizer, "eos_token_id", None)]
    for settings in (getattr(base, "generation_config", None), getattr(base, "config", None)):
        value = getattr(settings, "eos_token_id", None)
        ends += value if isinstance(value, list) else [value]
    return {end for end in ends if isinstance(end, int)}


def faults(rows: list[dict[str, list[int]]], ends: set[int]) -> list[Finding]:
    """Return what is wrong with the labels, in numbers of rows."""
    counted = [[label for label in row["labels"] if label != IGNORED] for row in rows]
    empty = sum(not labels for labels in counted)
    found = []
    if empty > len(rows) / 10:
        found.append(Finding("nothing counted", f"{empty:,} of {len(rows):,} rows have no label"))
    full = [row for row, labels in zip(rows, counted) if labels]
    shifted = sum(_shifted(row) for row in full)
    if shifted > len(full) / 2:
        found.append(Finding("labels shifted", f"in {shifted:,} of {len(full):,} rows the labels are the next tokens"))
        return found
    prompts = sum(all(label != IGNORED for label in row["labels"][:-1]) for row in full)
    if prompts > len(full) / 2:
        share = statistics.fmean(len(row["labels"]) for row in full)
        found.append(Finding("prompt counted", f"{prompts:,} of {len(full):,} rows count every token, {share:.0f} "
                                               "a row"))
    unlearned = sum(not _ends(row, ends) for row in full)
    if ends and unlearned > len(full) / 2:
        masked = sum(any(token in ends for token in row["input_ids"][-2:]) for row in full)
        how = f"{masked:,} of them have it, without a label" if masked else "they do not have it"
        found.append(Finding("end not learned", f"{unlearned:,} of {len(full):,} rows do not count the end; {how}"))
    return found


def _shifted(row: dict[str, list[int]]) -> bool:
    """Whether each label is the token after its place, and not the one at it."""
    places = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
    here = sum(row["labels"][i] == row["input_ids"][i] for i in places)
    after = sum(row["labels"][i] == row["input_ids"][i + 1] for i in places if i + 1 < len(row["input_ids"]))
    return after > max(here, 0.8 * (len(places) - 1), 0)


def _ends(row: dict[str, list[int]], ends: set[int]) -> bool:
    """Whether an end of text is among the last two tokens that count: templates put a line break after it."""
    return any(label in ends for label in [label for label in row["labels"] if label != IGNORED][-2:])


def unlike_training(rows: list[dict[str, list[int]]], prompts: list[str], tokenizer: Any) -> list[Finding]:
    """Return whether the prompts begin or end otherwise than those of the rows, which all begin or end alike."""
    trained = [row["input_ids"][: next((i for i, label in enumerate(row["labels"]) if label != IGNORED), 0)]
               for row in rows]
    trained = [ids for ids in trained if ids]
    asked = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    found = []
    for where, place in (("begin", 0), ("end", -1)):
        usual = statistics.mode(ids[place] for ids in trained) if trained else None
        share = sum(ids[place] == usual for ids in trained) / len(trained) if trained else 0
        off = [ids for ids in asked if not ids or ids[place] != usual]
        if share > 0.95 and len(off) > len(asked) / 2:
            found.append(f"{share:.0%} of the rows' prompts {where} with {tokenizer.decode([usual])!r}, and "
                         f"{len(off)} of {len(asked)} prompts do not")
    return [Finding("prompts differ", "; ".join(found))] if found else []


def unlike_tokenizers(kept: Any, used: Any) -> list[Finding]:
    """Return whether the adapter's own tokenizer numbers its tokens otherwise than the one in use."""
    own, other = kept.get_vocab(), used.get_vocab()
    off = [token for token, number in own.items() if other.get(token) != number]
    if len(off) > len(own) / 100:
        return [Finding("other tokenizer", f"{len(off):,} of {len(own):,} tokens have another number, such as "
                                           f"{off[0]!r}: {own[off[0]]} and {other.get(off[0])}")]
    templates = getattr(kept, "chat_template", None), getattr(used, "chat_template", None)
    if templates[0] and templates[0] != templates[1]:
        return [Finding("other tokenizer", "it has another chat template" if templates[1] else "the one in use has no "
                                           "chat template")]
    return []
