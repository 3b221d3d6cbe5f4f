"""The pocket model: a Llama of a quarter of a million weights that reads the course's commands, for sweeps.

It knows the grammar of `smart_home` alone. `dialect` changes the answers, so that there is something to learn.
Its weights ship with the package; tools/make_pocket.py made them.
"""

import functools
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .. import batches, smart_home
from ..errors import expect, whole
from .side_by_side import side_by_side

__all__ = ["dialect", "load", "side_by_side", "stream", "tokenizer", "untrained"]

WEIGHTS = Path(__file__).with_name("weights.safetensors")
_PIECES = r" ?\w+|\n|[^\w\s]+| "  # words with the space before them, runs of punctuation
_PAD, _END = "<pad>", "<end>"


def load() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return the pretrained model, float32 on the CPU in eval mode, and its tokenizer."""
    model = untrained()
    model.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()}, strict=False)
    model.tie_weights()
    return model.eval(), tokenizer()


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: one token for each word of the grammar, each number and each run of punctuation."""
    vocabulary = {token: i for i, token in enumerate((_PAD, _END, *_words()))}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token=_PAD))
    whole.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    whole.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token=_PAD, eos_token=_END, unk_token=_PAD)


@functools.cache
def _words() -> tuple[str, ...]:
    """Every piece of every sentence and answer that the grammar can write, in an order that never changes."""
    found = set()
    for (device, state), phrasings in smart_home.PHRASINGS.items():
        states = state if isinstance(state, tuple) else (state,)
        for phrasing, value in itertools.product(phrasings, states):
            sentence = phrasing.lstrip("!").format(r="kitchen", n=value)
            for wrapper in itertools.chain.from_iterable(itertools.chain.from_iterable(smart_home.WRAPPERS.values())):
                found.update(re.findall(_PIECES, smart_home.prompt(wrapper.format(sentence))))
            action = json.dumps({"room": "kitchen", device: value}, separators=(",", ":"))
            found.update(re.findall(_PIECES, action))
    for room in smart_home.ROOMS:
        found.update(re.findall(_PIECES, f"{room} {room}"))
    return tuple(sorted(found))


def untrained() -> LlamaForCausalLM:
    """Return the same shape with random weights."""
    config = LlamaConfig(
        vocab_size=2 + len(_words()), hidden_size=64, intermediate_size=192, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def dialect(commands: list[smart_home.Command], seed: int = 0) -> list[smart_home.Command]:
    """Return the same commands with other answers: rooms, devices and states go by one another's names, numbers stay.

    `seed` decides who is called what; nobody keeps a name.
    """
    whole(0, seed=seed)
    rng = random.Random(seed)
    words: dict[str, str] = {}
    devices = sorted({device for device, _ in smart_home.PHRASINGS})
    states = sorted({state for _, state in smart_home.PHRASINGS if isinstance(state, str)})
    for names in (list(smart_home.ROOMS), devices, states):
        order = rng.sample(names, len(names))
        words |= dict(zip(order, order[1:] + order[:1]))  # a circle: nobody keeps a name
    changed = []
    for command in commands if isinstance(commands, Iterable) else [commands]:
        try:
            (_, room), (device, state) = json.loads(command.answer).items()
            action = {"room": words[room], words[device]: words.get(state, state)}
        except (AttributeError, KeyError, TypeError, ValueError):
            expect(False, "one of the commands", command, "what smart_home.commands() returned")
        changed.append(command._replace(answer=json.dumps(action, separators=(",", ":"))))
    return changed


def stream(commands: list[smart_home.Command], batch_size: int, seed: int = 0) -> Iterator[dict]:
    """Yield batches for the pocket model without end, in an order that `seed` decides, ready to be passed to it."""
    whole(batch_size=batch_size)
    whole(0, seed=seed)
    collate, rows, rng = batches.AnswerCollator(tokenizer()), batches.encode(commands, tokenizer()), random.Random(seed)
    expect(len(rows) >= batch_size, "batch_size", batch_size, f"at most as many as there are commands, {len(rows)}")
    while True:
        rng.shuffle(rows)
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield dict(collate(rows[start : start + batch_size]))
