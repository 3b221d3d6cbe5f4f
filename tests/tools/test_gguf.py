"""A GGUF file read by the course and by transformers itself: the same weights, tokenizer and settings."""

import random

import from_gguf
import gguf
import numpy as np
import pytest
from lora_lab import _gguf
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

HIDDEN, FEED, HEADS, GROUPS, LAYERS = 64, 96, 4, 2, 2
KINDS = gguf.GGMLQuantizationType


@pytest.fixture
def file(tmp_path):
    """A model of the default one's kind, small, with random weights in the same two formats."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = random.Random(0).sample([(a, b) for a in "abcdeĠ" for b in "abcdefg"], 20)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    texts = [*special, *alphabet, *map("".join, pairs)]
    writer = gguf.GGUFWriter(path := tmp_path / "small.gguf", "llama")
    writer.add_name("small one")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_freq_base(50_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(texts)
    writer.add_token_types([3 if text in special else 1 for text in texts])
    writer.add_token_merges([" ".join(pair) for pair in pairs])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>\n{% endfor %}")
    draw = np.random.default_rng(0)

    def add(name, *shape, kind=KINDS.Q4_1):
        weight = draw.normal(size=shape).astype(np.float32)
        is_norm = len(shape) == 1
        writer.add_tensor(name, weight if is_norm else gguf.quantize(weight, kind), raw_dtype=None if is_norm else kind)

    add("token_embd.weight", len(texts), HIDDEN, kind=KINDS.Q8_0)
    for layer in range(LAYERS):
        for name, rows, *columns in (
            ("attn_norm", HIDDEN), ("attn_q", HIDDEN, HIDDEN), ("attn_k", HIDDEN * GROUPS // HEADS, HIDDEN),
            ("attn_v", HIDDEN * GROUPS // HEADS, HIDDEN), ("attn_output", HIDDEN, HIDDEN), ("ffn_norm", HIDDEN),
            ("ffn_gate", FEED, HIDDEN), ("ffn_up", FEED, HIDDEN), ("ffn_down", HIDDEN, FEED),
        ):
            add(f"blk.{layer}.{name}.weight", rows, *columns)
    add("output_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_folder_is_the_one_that_transformers_makes(file, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    _gguf.convert(file, ours)
    from_gguf.convert(file, theirs)
    names = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == names and len(names) == 6
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for kind in (AutoConfig, GenerationConfig):
        mine, other = (kind.from_pretrained(folder).to_dict() | {"_name_or_path": ""} for folder in (ours, theirs))
        assert mine == other
    mine, other = (AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs))
    assert mine.special_tokens_map == other.special_tokens_map and type(mine) is type(other)
    assert mine.model_max_length == other.model_max_length
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in ours.iterdir())
