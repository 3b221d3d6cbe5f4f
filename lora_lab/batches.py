"""From pairs of prompt and answer, or chats, to training batches: token ids, and a collator that wastes no work.

Knows nothing of models or training loops; `transformers.Trainer` calls the collator.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .errors import LabError, expect, reason, whole

IGNORED = -100  # the label that the loss of every transformers model skips


def encode(rows: Iterable, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Tokenize (prompt, answer) pairs and chats; returns a dict each: `input_ids` and `answer_length`, in tokens.

    `input_ids` are the prompt's, the answer's and the end of text, with no special token before or between. The end of
    text counts as a token of the answer, so that a model learns to stop. A chat is a sequence of messages with `role`
    and `content`, written by the tokenizer's template: all turns of the assistant count, with what ends them, and
    where something else lies between them there are `labels`. A template that writes earlier turns otherwise than the
    last one makes a row of each turn. Raises LabError.
    """
    check_tokenizer(tokenizer)
    rows = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, (str, bytes, dict)) else [rows]
    if not any(is_chat(row) for row in rows):
        return _encode_pairs(as_pairs(rows), tokenizer)
    return [found for row in rows for found in (_encode_chat(row, tokenizer) if is_chat(row)
                                                else _encode_pairs(as_pairs([row]), tokenizer))]


def is_chat(row: object) -> bool:
    """Return whether `row` is a chat: a sequence of messages with a role and a content."""
    return isinstance(row, (tuple, list)) and bool(row) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and "content" in turn for turn in row)


def _encode_pairs(pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    if not pairs:
        return []
    if tokenizer.eos_token_id is None:
        raise LabError("The tokenizer has no token for the end of text, which ends each answer. Set its eos_token to "
                       "the one that the model was trained with.")
    prompts, answers = (tokenizer(list(texts), add_special_tokens=False)["input_ids"] for texts in zip(*pairs))
    return [{"input_ids": prompt + answer + [tokenizer.eos_token_id], "answer_length": len(answer) + 1}
            for prompt, answer in zip(prompts, answers)]


def _encode_chat(chat: Sequence[Mapping], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Texts with the spans that count; an answer before which the template writes another past begins a new one."""
    written: list[tuple[str, list[tuple[int, int]]]] = []
    for number, turn in enumerate(chat, 1):
        if turn["role"] != "assistant":
            continue
        asked = _written(chat[: number - 1], tokenizer, add_generation_prompt=True)
        whole_text = _written(chat[:number], tokenizer)
        if not whole_text.startswith(asked):
            raise LabError("The chat template writes an answer otherwise than it asks for one: what it puts before an "
                           "answer to come does not begin the answered chat. Mend the template, or write pairs.")
        end = whole_text.rfind(tokenizer.eos_token, len(asked)) if tokenizer.eos_token else -1
        span = len(asked), end + len(tokenizer.eos_token) if end >= 0 else len(whole_text)
        if written and asked.startswith(written[-1][0]):
            written[-1] = whole_text, [*written[-1][1], span]
        else:
            written.append((whole_text, [span]))
    if not written:
        raise LabError("A chat has no turn of the assistant's. Give chats with an answer.")
    return [_counted(text[: spans[-1][1]], spans, tokenizer) for text, spans in written]


def _written(chat: Sequence[Mapping], tokenizer: PreTrainedTokenizerBase, **options) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise LabError("The rows are chats, and the tokenizer has no chat template. Take an instruct model, or give "
                       "pairs of prompt and answer.")
    try:
        return tokenizer.apply_chat_template([dict(turn) for turn in chat], tokenize=False, **options)
    except Exception as error:  # a template may refuse roles and orders of them, in words of its own
        raise LabError(f"The chat template refuses a chat of {', '.join(turn['role'] for turn in chat)}: "
                       f"{reason(error)}. Leave those turns out, or take another model.") from None


def _counted(text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokens of `text`, and as labels those with a letter in `spans`; read at once, as a server reads it."""
    if not getattr(tokenizer, "is_fast", False):
        raise LabError("Chats need a tokenizer that says where its tokens lie in a text: a fast one. Load it with "
                       "AutoTokenizer from a folder that has a tokenizer.json.")
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(read["input_ids"])
    labels = [token if any(start < ends and begins < end for start, end in spans) else IGNORED
              for token, (begins, ends) in zip(ids, read["offset_mapping"])]
    first = next((place for place, label in enumerate(labels) if label != IGNORED), None)
    if first is None:
        raise LabError("A chat has nothing to learn: its answers are empty, and the template ends none of them.")
    row: dict[str, Any] = {"input_ids": ids, "answer_length": len(ids) - first}
    return row | {"labels": labels} if IGNORED in labels[first:] else row


def as_pairs(rows: Iterable, name: str = "pairs") -> list[tuple[str, str]]:
    """Return `rows` as a list of (prompt, answer), each a text. Raises LabError for anything else."""
    rows = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, (str, bytes, dict)) else [rows]
    for row in rows:
        fits = isinstance(row, (tuple, list)) and len(row) == 2 and all(isinstance(text, str) for text in row)
        expect(fits, f"one of the {name}", row, "a prompt and an answer, both texts")
    return [(prompt, answer) for prompt, answer in rows]


def check_tokenizer(tokenizer: object) -> None:
    """Check that it is the tokenizer of a model. Raises LabError."""
    fits = callable(tokenizer) and hasattr(tokenizer, "pad_token_id")
    expect(fits, "tokenizer", tokenizer, "the tokenizer that load_base() returned with the model")


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token to pad with, which a mask hides: the tokenizer's own, else its end of text. Raises LabError."""
    check_tokenizer(tokenizer)
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if found is None:
        raise LabError("The tokenizer has neither a token for padding nor one for the end of text. Set its eos_token "
                       "to the one that the model was trained with.")
    return found


def _check_rows(rows: object) -> None:
    fits = isinstance(rows, (list, tuple)) and all(
        isinstance(row, Mapping) and isinstance(row.get("input_ids"), (list, tuple)) for row in rows)
    expect(fits, "rows", rows, "a list of rows as batches.encode() returns them")


def similar_lengths(rows: list[dict], batch_size: int, seed: int = 0, pool: int = 2) -> list[dict]:
    """Order `rows` at random so that consecutive batches hold rows of similar length: little padding.

    Sorts only within pools of a few batches, and shuffles the batches of each pool. Sorting more
    widely (`train_sampling_strategy="group_by_length"`) pads less still, but fills each batch with
    sentences of one kind, and needs more steps for the same score: see benchmarks/README.md. Raises LabError.
    """
    _check_rows(rows)
    whole(batch_size=batch_size, pool=pool)
    whole(0, seed=seed)
    rng = random.Random(seed)
    rows = rng.sample(rows, len(rows))
    ordered: list[dict] = []
    for start in range(0, len(rows), pool * batch_size):
        chosen = sorted(rows[start : start + pool * batch_size], key=lambda row: len(row["input_ids"]))
        batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
        rng.shuffle(batches)
        ordered.extend(row for batch in batches for row in batch)
    return ordered


class AnswerCollator:
    """Batches for which the model computes logits only where there are answers.

    Rows are padded on the left, so that the answers, which come last, line up on the right. Then
    the last K columns hold every answer token and the column before the first; `logits_to_keep=K`
    makes the model skip the vocabulary-wide projection everywhere else, and `labels` (batch, K)
    cover those columns alone. The loss is the one that full logits would give.
    """

    def __init__(self, tokenizer):
        self.pad_id = padding_of(tokenizer)

    def __call__(self, rows: list[dict]) -> BatchEncoding:
        _check_rows(rows)
        whole_rows = rows and all("answer_length" in row for row in rows)
        expect(whole_rows, "rows", rows, "at least one row, as batches.encode() returns them")
        width = max(len(row["input_ids"]) for row in rows)
        keep = max(row["answer_length"] for row in rows) + 1
        input_ids = torch.full((len(rows), width), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full((len(rows), keep), IGNORED)
        for i, row in enumerate(rows):
            ids = torch.tensor(row["input_ids"])
            input_ids[i, -len(ids):] = ids
            attention_mask[i, -len(ids):] = 1
            own = torch.tensor(row["labels"]) if "labels" in row else ids
            labels[i, -row["answer_length"]:] = own[-row["answer_length"]:]
        return BatchEncoding({
            "input_ids": input_ids, "attention_mask": attention_mask,
            "labels": labels, "logits_to_keep": keep,
        })
