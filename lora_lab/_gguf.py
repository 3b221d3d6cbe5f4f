"""Write what a GGUF file of the Llama family holds as a folder that transformers loads, with float32 weights.

The files are those that transformers writes itself, byte for byte in the pinned versions (a test compares), in a tenth
of its time: torch is not imported, and the header, with 98,000 pieces of text, is read once and not three times.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

_PARTS = {  # in llama.cpp's words and in transformers'
    "token_embd": "embed_tokens", "output_norm": "norm", "blk": "layers", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
_SPECIAL = 3  # the kind of a token, as GGUF counts


def convert(file: Path, folder: Path) -> None:
    """Write tokenizer, config and float32 weights of the GGUF `file` to `folder`, which is made."""
    import gguf  # a fifth of a second that only the conversion is worth

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            """As the library's own, which slices a memmap, seven times as slow. Without this only the time differs."""
            return np.frombuffer(self.data, np.dtype(dtype).newbyteorder("<"), int(count), offset)

    reader = Reader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir()
    print("  writing the tokenizer ...")
    _write_tokenizer(values, folder)
    print("  converting the weights ...")
    heads = {"attn_q": values["llama.attention.head_count"], "attn_k": values["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if parts[-2] in heads:  # llama.cpp pairs neighbouring rows of a head for its rotation, transformers the halves
            pairs = weight.reshape(heads[parts[-2]], -1, 2, weight.shape[1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        weights[".".join(["model", *(_PARTS.get(part, part) for part in parts)])] = np.ascontiguousarray(weight)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a shared cache could not use


def _write_tokenizer(values: dict[str, Any], folder: Path) -> None:
    texts, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({text: place for place, text in enumerate(texts)}, merges,
                                     continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("$A:0", "$A:0 $B:1")
    special = [text for text, kind in zip(texts, kinds, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(values["tokenizer.chat_template"], encoding="utf-8")
    ids = {name: values[f"tokenizer.ggml.{key}_token_id"]
           for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}
    _write(folder / "tokenizer_config.json", {
        **{f"{name}_token": texts[place] for name, place in ids.items()},
        "backend": "tokenizers", "is_local": True, "local_files_only": False, "model_max_length": int(1e30),
        "tokenizer_class": "TokenizersBackend",
    })
    token_ids = {f"{name}_token_id": place for name, place in ids.items()}
    common = {"transformers_version": version("transformers"), "use_cache": True}
    _write(folder / "config.json", common | token_ids | {
        "_model_name_or_path": values["general.name"], "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "attention_bias": False, "attention_dropout": 0.0, "dtype": "float32", "hidden_act": "silu",
        "head_dim": values["llama.rope.dimension_count"], "hidden_size": values["llama.embedding_length"],
        "initializer_range": 0.02, "intermediate_size": values["llama.feed_forward_length"],
        "max_position_embeddings": values["llama.context_length"], "mlp_bias": False,
        "num_attention_heads": values["llama.attention.head_count"], "num_hidden_layers": values["llama.block_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"], "pretraining_tp": 1,
        "rms_norm_eps": values["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": values["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True, "vocab_size": values["llama.vocab_size"],
    })
    del token_ids["unk_token_id"]
    _write(folder / "generation_config.json", common | token_ids | {
        "_from_model_config": True, "output_attentions": False, "output_hidden_states": False})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
