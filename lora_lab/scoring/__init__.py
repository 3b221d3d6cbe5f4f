"""How good a model is: greedy answers, exact match with its interval, perplexity of ordinary text.

Takes any causal language model and tokenizer, and rows of any task: pairs of a prompt and its right answer.
"""

import contextlib
import copy
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from .. import batches, models
from ..display import Progress
from ..errors import LabError, expect, whole

Row = tuple[str, str]  # a prompt and its right answer
_NO_JSON = object()
_CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"  # its name in generate
_WORTH_SHARING = 32  # tokens that all prompts begin with: from here on the model reads them once

# Written for this course: ordinary prose, far from smart homes, to see what training forgets.
GENERAL_TEXT = Path(__file__).with_name("prose.txt").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Score:
    """Share of exact answers (with its 95 % interval) and of valid JSON among `n` answers.

    `quick_score` gives the loss (nats per answer token) instead of the share of valid JSON, which is also None where no
    right answer is JSON.
    """

    exact: float
    valid_json: float | None
    n: int
    loss: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval of `exact` (Wilson 1927), which stays honest near 0 and 1."""
        z, p, n = 1.96, self.exact, self.n
        middle = p + z * z / (2 * n)
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        other = f", loss {self.loss:.3f}" if self.loss is not None else \
            f", valid JSON {self.valid_json:.1%}" if self.valid_json is not None else ""
        return f"exact {self.exact:.1%} (95 % interval {low:.1%} to {high:.1%}, n={self.n}){other}"


def verdict(first: Score, second: Score, first_name: str = "the first", second_name: str = "the second") -> str:
    """Return a sentence that says which of two scores is higher, or that they cannot be told apart.

    Apart are those whose 95 % interval of the difference leaves out zero (Newcombe 1998, method 10, from the Wilson
    intervals). It takes the two sets of answers as independent; on the same commands it is the careful side.
    """
    expect(isinstance(first, Score), "first", first, "a Score")
    expect(isinstance(second, Score), "second", second, "a Score")
    (low, high), (low_2, high_2) = first.interval, second.interval
    apart = second.exact - first.exact
    least = apart - math.hypot(second.exact - low_2, high - first.exact)
    most = apart + math.hypot(high_2 - second.exact, first.exact - low)
    said = f"{first_name} {first.exact:.0%}, {second_name} {second.exact:.0%}"
    if least <= 0 <= most:
        return f"{said}: these scores cannot tell the two apart ({100 * least:+.0f} to {100 * most:+.0f} points)."
    higher, near, far = (second_name, least, most) if apart > 0 else (first_name, -most, -least)
    return f"{said}: {higher} is higher, by {100 * near:.0f} to {100 * far:.0f} points (95 % interval)."


def chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, max_new_tokens: int = 40) -> str:
    """Return the model's greedy answer to an ordinary question, through its chat template. Raises LabError."""
    _check(model, tokenizer, "generate")
    expect(isinstance(question, str), "question", question, "a text")
    if not getattr(tokenizer, "chat_template", None):
        raise LabError("This tokenizer has no chat template, so no format for questions. Take a model that was trained "
                       "to chat, set tokenizer.chat_template, or give a text to go on with to generate().")
    message = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return generate(model, tokenizer, [prompt], max_new_tokens)[0].strip()


@torch.inference_mode()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int = 16,
    batch_size: int = 50, progress: str | None = None,
) -> list[str]:
    """Return greedy continuations of `prompts`, in their order, without special tokens.

    Prompts of similar length share a batch and are padded on the left, so that all continue at the
    same column. What all of them begin with, such as examples, is read once where the model allows it.
    `progress` names a progress bar. Raises LabError.
    """
    _check(model, tokenizer, "generate")
    texts = isinstance(prompts, (list, tuple)) and all(isinstance(text, str) for text in prompts)
    expect(texts, "prompts", prompts, "a list of texts")
    whole(max_new_tokens=max_new_tokens, batch_size=batch_size)
    if not prompts:
        return []
    rows, padding = tokenizer(prompts, add_special_tokens=False)["input_ids"], batches.padding_of(tokenizer)
    _check_lengths(model, map(len, rows), max_new_tokens - 1, f" and {max_new_tokens} new ones")
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    continuations = [""] * len(rows)
    with evaluating(model), _as_trained(model), Progress(progress, total=len(rows)) as bar:
        shared, read = _read_once(model, rows)
        for start in range(0, len(rows), batch_size):
            chosen = by_length[start : start + batch_size]
            width, past = len(rows[chosen[-1]]), copy.deepcopy(read)
            if past:
                past.batch_repeat_interleave(len(chosen))
            ids = torch.tensor([shared + [padding] * (width - len(rows[i])) + rows[i][len(shared):] for i in chosen],
                               device=model.device)
            mask = torch.tensor([[not 0 <= i - len(shared) < width - len(rows[at]) for i in range(width)]
                                 for at in chosen]).to(ids)
            output = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, use_cache=True,
                pad_token_id=padding, **{_CACHE: past})
            new_tokens = output[:, width:]
            for i, text in zip(chosen, tokenizer.batch_decode(new_tokens, skip_special_tokens=True)):
                continuations[i] = text
            bar.update(len(chosen))
    return continuations


def _read_once(model, rows: list[list[int]]) -> tuple[list[int], DynamicCache | None]:
    """Return the tokens that all rows begin with, and what the model keeps of them; nothing where it is not worth it.

    Padding stands between them and the rest. Rotary positions are counted without it, and full attention never sees it;
    where positions are columns, or a window slides, each prompt is read whole.
    """
    shared = list(os.path.commonprefix(rows))[: min(map(len, rows)) - 1]
    config, adapter = model.config, getattr(model, "active_peft_config", None)
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
    if len(rows) == 1 or len(shared) < _WORTH_SHARING or not rotary or getattr(adapter, "is_prompt_learning", False):
        return [], None
    read = DynamicCache(config=config)
    if any(type(layer) is not DynamicLayer for layer in read.layers):
        return [], None
    ids = torch.tensor([shared], device=model.device)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=1,
                   pad_token_id=shared[0], **{_CACHE: read})
    return shared, read


def score(rows: Sequence[Row], answers: Sequence[str]) -> Score:
    """Compare `answers` with the right ones of `rows`, (prompt, answer) pairs in the same order.

    A right answer that is JSON is compared as JSON, so that spacing and the order of keys do not count: its values with
    their types, where `true` is not `1`, and its numbers exactly, where `1.0` is `1`. Another one is compared as text,
    without the white space around it; so is `NaN`, which is no JSON. Raises LabError.
    """
    rows = batches.as_pairs(rows, "rows")
    fits = isinstance(answers, (list, tuple)) and len(answers) == len(rows) > 0
    expect(fits and all(isinstance(text, str) for text in answers), "answers", answers,
           f"a list of texts, one for each of the rows, of which there are {len(rows)} (at least one)")
    parsed, wanted = [_parse(text) for text in answers], [_parse(answer) for _, answer in rows]
    right = [text.strip() == answer.strip() or _same(found, due)
             for (_, answer), text, found, due in zip(rows, answers, parsed, wanted, strict=True)]
    valid = sum(found is not _NO_JSON for found in parsed) / len(rows)
    asked = any(due is not _NO_JSON for due in wanted)  # nobody wants JSON where no right answer is any
    return Score(sum(right) / len(rows), valid if asked else None, len(rows))


@torch.inference_mode()
def quick_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row],
                progress: str | None = None) -> Score:
    """Return the score by one forward pass over (prompt, answer) pairs, many times faster than `generate`.

    If the model's first choice is right at every token of an answer and of the end of text after it, greedy generation
    writes that answer. So `exact` is that of `generate` and `score` if `max_new_tokens` holds the longest answer, if
    the model writes right answers in the tokens and the spelling of the rows (others do not count here), and up to
    round-off. A table of learned positions (GPT-2) counts padding here, so there scores may differ. Raises LabError.
    """
    _check(model, tokenizer, "forward")
    rows = batches.as_pairs(rows, "rows")
    expect(rows, "rows", rows, "at least one (prompt, answer)")
    encoded = sorted(batches.encode(rows, tokenizer), key=lambda row: len(row["input_ids"]))
    _check_lengths(model, (len(row["input_ids"]) - row["answer_length"] for row in encoded))
    _check_lengths(model, (len(row["input_ids"]) for row in encoded))
    collate, right, loss, tokens = batches.AnswerCollator(tokenizer), 0, 0.0, 0
    with evaluating(model), Progress(progress, total=len(encoded)) as bar:
        for start in range(0, len(encoded), 50):
            batch = collate(encoded[start : start + 50]).to(model.device)
            labels = batch.pop("labels")[:, 1:]
            counted = labels != batches.IGNORED
            with _as_trained(model):
                logits = model(**batch).logits[:, :-1].float()
            right += ((logits.argmax(-1) == labels) | ~counted).all(-1).sum().item()
            loss += torch.nn.functional.cross_entropy(logits[counted], labels[counted], reduction="sum").item()
            tokens += counted.sum().item()
            bar.update(len(labels))
    return Score(right / len(encoded), None, len(encoded), loss / tokens)


@contextlib.contextmanager
def evaluating(*models: torch.nn.Module) -> Iterator[None]:
    """Put `models` in eval mode inside the block, and their modules back as they were after it, whatever happens."""
    before = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _as_trained(model):
    """Return the autocast that the Trainer leaves around a 16-bit model: one loaded from a file then computes as the
    trained one did, and as fast, instead of with its adapter in float32.
    """
    half = model.dtype in (torch.bfloat16, torch.float16) and not getattr(model, "is_quantized", False)
    return torch.autocast(model.device.type, dtype=model.dtype, enabled=half)


def _check(model, tokenizer, able: str) -> None:
    fits = isinstance(model, torch.nn.Module) and all(hasattr(model, name) for name in ("config", "device", able))
    expect(fits, "model", model, "a language model, as load_base() returns it, with an adapter or without")
    batches.check_tokenizer(tokenizer)


def _check_lengths(model, lengths: Iterable[int], more: int = 0, said: str = "") -> None:
    """Raise LabError for texts without a token, and for those longer than a table of learned positions."""
    known = sorted(lengths)
    if known[0] == 0:
        raise LabError("One of the prompts has no token: a model goes on from at least one. Give a text, or "
                       "tokenizer.bos_token.")
    most = models.positions(model)
    if most is not None and known[-1] + more > most:
        raise LabError(f"The longest text has {known[-1]} tokens{said}, and {model.config.model_type} has {most} "
                       "positions. Give shorter texts, or ask for fewer new tokens.")


def _parse(text: str):
    """The JSON in `text`, with decimals as they are written; `_NO_JSON` for everything else."""
    with contextlib.suppress(ValueError, RecursionError, ArithmeticError):
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    return _NO_JSON


def _refuse(constant: str):
    raise ValueError(f"{constant} is no JSON")


def _same(found, wanted) -> bool:
    """Whether two parsed answers are equal, types included: Python takes True for 1."""
    if found is _NO_JSON or wanted is _NO_JSON:
        return False
    with contextlib.suppress(RecursionError):
        return _typed(found) == _typed(wanted)
    return False


def _typed(value):
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return (bool, value) if isinstance(value, bool) else value


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str = GENERAL_TEXT) -> float:
    """Return exp of the mean negative log-likelihood per token of `text` (Jelinek et al. 1977). Raises LabError."""
    _check(model, tokenizer, "forward")
    expect(isinstance(text, str) and text.strip(), "text", text, "some sentences")
    ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
    expect(ids.shape[1] > 1, "text", text, "at least two tokens: the first one is not predicted")
    _check_lengths(model, [ids.shape[1]])
    with evaluating(model), _as_trained(model):
        loss = model(input_ids=ids, labels=ids).loss.item()
    return math.exp(loss) if loss < 700 else math.inf
