"""Tiny random models of every causal-LM architecture of the installed transformers, built offline from configs."""

import logging
from dataclasses import fields

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# The names that architectures give to the same few sizes.
SIZES = {
    128: "vocab_size vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size mamba_d_ssm "
    "max_position_embeddings n_positions position_embedding_size max_source_positions max_target_positions "
    "encoder_hash_byte_group_vocab",
    112: "image_size",
    96: "intermediate_size ffn_dim decoder_ffn_dim dff dim_ff d_inner ffn_hidden_size intermediate_size_mlp "
    "feed_forward_size mlp_dim",
    64: "hidden_size hidden_size_global d_model n_embd emb_dim pronunciation_embed_dim shape_embed_dim adapter_in_dim "
    "adapter_out_dim adapter_input_size ext_pw_out_channel depthwise_separable_out_channel nemo_conv_channels",
    32: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size block_multiple_of",
    16: "head_dim v_head_dim qk_nope_head_dim attention_head_size swa_head_dim linear_key_head_dim "
    "linear_value_head_dim linear_head_dim mamba_d_head mamba_head_dim kv_channels dim_head kv_lora_rank "
    "q_lora_rank o_lora_rank index_head_dim laurel_rank hc_lowrank hidden_size_per_layer_input adapter_rank "
    "mamba_d_state state_size ssm_state_size mamba_dt_rank time_step_rank output_channels",
    8: "qk_rope_head_dim rotary_dim mamba_n_heads mamba_num_heads",
    4: "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
    "num_decoder_attention_heads swa_num_attention_heads index_n_heads num_experts num_local_experts "
    "n_routed_experts moe_num_experts zero_expert_num linear_num_value_heads linear_num_heads",
    2: "num_key_value_heads kv_n_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok moe_topk "
    "moe_top_k moe_k num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers depth "
    "num_blocks num_codebooks",
    1: "n_group topk_group first_k_dense_replace num_dense_layers n_groups mamba_n_groups pad_token_id",
}
SIZE = {name: size for size, names in SIZES.items() for name in names.split()}
DEPTHS = "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks".split()

# Other defaults, which must hold before they are made small: for those that do not build or leave out a kind of layer,
# and for sizes that must multiply or come from a formula.
DOTS = dict(head_dim=24, swa_head_dim=24, swa_q_lora_rank=16, swa_kv_lora_rank=16, swa_qk_nope_head_dim=16,
            swa_v_head_dim=16, swa_num_attention_heads=4, swa_num_key_value_heads=4)
GEMMA4_MOE = dict(global_head_dim=32, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)
QWEN4 = dict(head_dim=16, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_compress_ratio=4,
             indexer_budget=8, ple_layer_ids=[1], ngram_vocab_size_base=128, split_ngram_parts=1, eos_token_id=2)
ZAMBA = dict(num_hidden_layers=4, layers_block_type=["linear_attention"] * 2 + ["hybrid"] * 2)
SPECIAL = {
    "bamba": dict(attn_layer_indices=[1]),
    "blt": dict(encoder_config=dict(hidden_size=32), decoder_config=dict(hidden_size=32)),
    "cohere_compass_text": dict(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}}),
    "dbrx": dict(attn_config=dict(rope_theta=1e4, clip_qkv=8)),
    "deepseek_v2": dict(num_experts_per_tok=2),
    "doge": dict(is_moe=True),
    "dots1": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
    "dots3_note": dict(text_config=DOTS),
    "dots3_note_text": DOTS,
    "electra": dict(embedding_size=32),
    "gemma3n_text": dict(num_kv_shared_layers=2),
    "gemma4": dict(text_config=GEMMA4_MOE, vision_config={}),
    "gemma4_assistant": dict(text_config=dict(hidden_size_per_layer_input=0, vocab_size_per_layer_input=0)),
    "gemma4_text": dict(global_head_dim=32, use_double_wide_mlp=True, num_kv_shared_layers=2, num_hidden_layers=4,
                        layer_types=["sliding_attention", "full_attention"] * 2),
    "gpt_neo": dict(num_layers=2, attention_types=[[["global", "local"], 1]]),
    "granitemoehybrid": dict(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "lfm2": dict(num_hidden_layers=2, layer_types=["conv", "full_attention"]),
    "lfm2_moe": dict(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"]),
    "llama4_text": dict(interleave_moe_layer_step=2),
    "longcat_flash": dict(head_dim=8),
    "mamba2": dict(hidden_size=64, num_heads=8, head_dim=16),
    "mllama": dict(text_config=dict(cross_attention_layers=[1])),
    "qwen4_exp": dict(text_config=QWEN4),
    "qwen4_exp_text": QWEN4,
    "recurrent_gemma": dict(num_hidden_layers=3),
    "reformer": dict(is_decoder=True, attn_layers=["local", "lsh"], axial_pos_embds_dim=[16, 48],
                     axial_pos_shape=[8, 16]),
    "xmod": dict(default_language="en_XX"),
    "zamba": ZAMBA,
    "zamba2": ZAMBA,
    "zaya": dict(num_experts_per_tok=1),
}


class CannotBuild(Exception):
    """The architecture needs a package or a download that is not there, or refuses its own default config."""


def causal_lm_types() -> list[str]:
    """Every model type that AutoModelForCausalLM knows."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(model_type: str) -> PreTrainedModel:
    """A random model of this type: the real modules, at least two layers, one of each kind, in float32."""
    class_name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # small configs warn of token ids, encoders of is_decoder
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model_class = getattr(transformers, class_name)
            config = shrink(CONFIG_MAPPING[model_type], SPECIAL.get(model_type, {}))
            parts = [config, *vars(config).values()]  # some models take only the config's text part
            return model_class(next((part for part in parts if isinstance(part, model_class.config_class)), config))
    except Exception as error:  # a missing package, defaults that contradict each other, a download that is refused
        reason = " ".join(str(error).split())[:120]
        raise CannotBuild(f"{type(error).__name__}: {reason}") from error
    finally:
        logging.disable(disabled)


def shrink(cls: type[PreTrainedConfig], special: dict) -> PreTrainedConfig:
    """The config with the default values of its class, except the sizes, in it and in the configs that it holds."""
    default = vars(cls(**special))
    values = {f.name: default.get(cls.attribute_map.get(f.name, f.name)) for f in fields(cls)}
    derived = {f.name for f in fields(cls) if f.default is None} - {"head_dim", "num_key_value_heads"}
    sizes = {name: SIZE[name] for name in values.keys() & SIZE.keys() - derived}
    if "kv_lora_rank" in sizes:
        sizes["num_key_value_heads"] = SIZE["num_attention_heads"]  # latent attention has a key for every query
    for name in sizes.keys() & DEPTHS:
        lists = {key: list(value) for key, value in values.items() if is_per_layer(value, values[name])}
        lists = {key: value for key, value in lists.items() if key not in sizes}
        kinds = list(zip(*[map(str, value) for value in lists.values()]))
        kept = sorted({kinds.index(kind) for kind in kinds} | {0, 1})
        sizes |= {name: len(kept)} | {key: [value[i] for i in kept] for key, value in lists.items()}
    parts = {name: value for name, value in values.items() if isinstance(value, PreTrainedConfig)}
    return cls(**sizes | special | {name: shrink(type(part), special.get(name, {})) for name, part in parts.items()})


def is_per_layer(value, depth: int) -> bool:
    """Whether this is a list of one value for each layer, not one of layer numbers, where none comes twice."""
    return isinstance(value, (list, tuple)) and len(value) == depth and len(set(map(str, value))) < depth
