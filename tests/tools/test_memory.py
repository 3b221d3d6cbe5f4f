"""The planner: exact where figures are known, close to what torch itself allocates, and clear about bad input."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import architectures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_lab import LabError, load_base, memory, models, pocket
from lora_lab.memory import rehearsal
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
)

LLAMA = LlamaConfig()  # Llama-2-7B's sizes
SMALL = dict(hidden_size=64, intermediate_size=112, num_attention_heads=4, num_key_value_heads=2, vocab_size=300)


def lora(targets="all-linear", r=8, **others):
    return LoraConfig(r=r, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM", **others)


def small(layers=6, **others):
    return LlamaConfig(**SMALL | dict(num_hidden_layers=layers, dtype="float32") | others)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder: the default model's kind, of six narrow layers."""
    config = models.read_config(models.DEFAULT)
    config.update(dict(hidden_size=192, intermediate_size=512, num_attention_heads=3, num_key_value_heads=1,
                       head_dim=64, num_hidden_layers=6, vocab_size=8192))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.model.layers[2].input_layernorm.weight.data[0] = 40  # an outlier, as real models have them
    path = tmp_path_factory.mktemp("narrow")
    model.save_pretrained(path)
    pocket.tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("precision, gigabytes", [("bfloat16", 13.477), ("int8", 7.001), ("nf4", 3.763)])
def test_weights_of_llama_2_7b(precision, gigabytes):
    planned = memory.plan(LLAMA, lora(["q_proj", "v_proj"]), precision)
    assert planned.weights_bytes / 1e9 == pytest.approx(gigabytes, abs=0.0005)
    assert planned.adapter_bytes == planned.gradient_bytes == 4 * 4_194_304
    assert planned.optimizer_bytes == 8 * 4_194_304
    assert planned.total_bytes == sum(planned.parts().values())


@pytest.mark.parametrize("precision, megabytes", [("float32", 538.1), ("int8", 219.6), ("nf4", 166.5)])
def test_weights_of_the_default_model(precision, megabytes):
    planned = memory.plan("SmolLM2-135M-Instruct", lora(), precision)
    assert planned.weights_bytes / 1e6 == pytest.approx(megabytes, abs=0.05)


@pytest.mark.parametrize("computes", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", [None, "int8", "nf4"])
def test_weights_are_the_footprint_of_the_loaded_model(monkeypatch, folder, precision, computes):
    monkeypatch.setenv("LORA_LAB_PRECISION", computes)
    model, _ = load_base(folder, precision, quiet=True)
    planned = memory.plan(model, lora())
    assert planned.weights_bytes == model.get_memory_footprint()
    scales = 0
    for module in model.modules():
        if hasattr(module, "state"):
            scales += module.weight.SCB.nbytes
        elif hasattr(getattr(module, "weight", None), "quant_state"):
            scales += module.weight.quant_state.absmax.nbytes
    assert planned.quantization_bytes == scales
    assert planned == memory.plan(model.config, lora(), precision)


@pytest.mark.parametrize("config", [
    GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=300), Qwen2Config(**SMALL, num_hidden_layers=3),
    MixtralConfig(**SMALL, num_hidden_layers=3, num_local_experts=4, dtype="bfloat16"),
], ids=lambda config: config.model_type)
def test_weights_of_other_families(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    planned, weights = memory.plan(config, lora()), model.get_memory_footprint()
    adapted = get_peft_model(model, lora())
    assert planned.weights_bytes == weights
    assert planned.adapter_bytes == 4 * adapted.get_nb_trainable_parameters()[0]


@pytest.fixture
def gpu_dropout(monkeypatch):
    """On this CPU what a GPU does: dropout with masks of a byte an element, fused attention whatever its dropout."""
    functional, attention = torch.nn.functional, torch.nn.functional.scaled_dot_product_attention

    def dropout(x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, True)[0] if training and p else x

    monkeypatch.setattr(functional, "dropout", dropout)
    monkeypatch.setattr(functional, "scaled_dot_product_attention",
                        lambda *args, **options: attention(*args, **options | {"dropout_p": 0.0}))


def step_bytes(model, batch_size, seq_len):
    """The peak of torch's own CPU allocator above what was there, by its profiler: not the planner's instrument."""
    ids = torch.randint(3, 100, (batch_size, seq_len))
    half = next(p.dtype for p in model.parameters() if p.is_floating_point()) == torch.bfloat16

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):  # as the Trainer
            loss = model.train()(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    step()  # the gradients are there from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True, "reentrant"])
@pytest.mark.parametrize("precision", ["float32", "int8", "nf4"])
def test_a_step_takes_what_was_planned(monkeypatch, folder, precision, checkpointing):
    monkeypatch.setenv("LORA_LAB_PRECISION", "float32")  # what the layers of a quantised base compute in
    model, _ = load_base(folder, precision, quiet=True)
    planned = memory.plan(model, lora(), None, 2, 96, checkpointing=checkpointing)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    measured = step_bytes(get_peft_model(model, lora()), 2, 96)
    assert planned.activation_bytes + planned.logits_bytes == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("options", [
    dict(targets=["q_proj", "v_proj"]), dict(lora_dropout=0.1), dict(r=64), dict(layers_to_transform=[0, 3],
                                                                                 targets=["q_proj"]),
    dict(use_dora=True), dict(modules_to_save=["embed_tokens"]),
], ids=str)
def test_other_configs_too(options, gpu_dropout):
    model = AutoModelForCausalLM.from_config(small())
    planned = memory.plan(model, lora(**options), None, 3, 64)
    measured = step_bytes(get_peft_model(model, lora(**options)), 3, 64)
    assert planned.activation_bytes + planned.logits_bytes == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("checkpointing", [True, "reentrant"])
def test_dropout_is_computed_again_as_it_was(checkpointing, gpu_dropout):
    model, adapter = AutoModelForCausalLM.from_config(small()), lora(["q_proj", "v_proj"], lora_dropout=0.1)
    planned = memory.plan(model, adapter, None, 3, 64, checkpointing=checkpointing)
    model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    model.enable_input_require_grads()
    measured = step_bytes(get_peft_model(model, adapter), 3, 64)
    assert planned.activation_bytes + planned.logits_bytes == pytest.approx(measured, rel=0.05)


def test_attention_that_keeps_its_scores():
    model = AutoModelForCausalLM.from_config(small(3, attn_implementation="eager"))
    planned = memory.plan(model, lora(), None, 2, 96)
    assert planned == memory.plan(small(3), lora(), None, 2, 96, attn_implementation="eager")
    measured = step_bytes(get_peft_model(model, lora()), 2, 96)
    assert planned.activation_bytes + planned.logits_bytes == pytest.approx(measured, rel=0.05)
    fused = [memory.plan(small(3, attn_implementation=kind), lora(), None, 2, 96)
             for kind in (None, "sdpa", "flash_attention_2", "flex_attention")]  # none of which needs to be installed
    assert fused == fused[:1] * 4 and fused[0].activation_bytes < planned.activation_bytes


def test_every_combination_is_planned(monkeypatch):
    """Dropout x checkpointing x precision x optimizer x attention, all of it; the other settings take turns."""
    real, steps = rehearsal.rehearse, {}

    def once(adapted, *, quantisation, **options):  # the optimizer has no part in it
        key = str((adapted.active_peft_config.lora_dropout, (quantisation or {}).get("kind"), options))
        steps[key] = steps.get(key) or real(adapted, quantisation=quantisation, **options)
        return steps[key]

    monkeypatch.setattr(rehearsal, "rehearse", once)
    config, activations = small(1, hidden_size=16, intermediate_size=16), {}
    others = itertools.cycle(dict(cross_entropy=loss, logits_to_keep=keep, prepared=prepared) for prepared, loss, keep
                             in itertools.product([False, True], ["full", "chunked", "fused"], [0, 5]))
    for dropout, checkpointing, precision in itertools.product(
            [0.0, 0.1], [False, True, "reentrant"], ["float32", "bfloat16", "float16", "int8", "nf4"]):
        more = next(others) | (dict(double_quant=True, compute_dtype="float16") if precision == "nf4" else {})
        for attention, optimizer in itertools.product(["eager", "sdpa"], memory.OPTIMIZERS):
            planned = memory.plan(config, lora(["q_proj"], lora_dropout=dropout), precision, 1, 16, optimizer,
                                  checkpointing, attn_implementation=attention, **more)
            activations[attention] = planned.activation_bytes
            assert min(planned.parts().values()) >= 0
            assert planned.optimizer_bytes == pytest.approx(
                planned.gradient_bytes * {"adamw": 2, "sgd": 0, "adamw_8bit": 2.03125 / 4}[optimizer], abs=1)
        assert activations["eager"] > activations["sdpa"]
    assert len(steps) == 60


@pytest.mark.parametrize("precision, checkpointing", [("float32", False), ("float16", True), ("nf4", "reentrant")])
def test_mixtures_of_experts_in_every_precision(precision, checkpointing):
    config = MixtralConfig(**SMALL, num_hidden_layers=2, num_local_experts=4)
    short, long = (memory.plan(config, lora(), precision, 1, n, checkpointing=checkpointing) for n in (16, 32))
    assert short.activation_bytes < long.activation_bytes
    with pytest.raises(LabError, match="PEFT refuses.*lora_dropout"):  # on experts, "all-linear" has them in it
        memory.plan(config, lora(lora_dropout=0.1), precision)
    attention = lora(["q_proj"], lora_dropout=0.1)
    assert memory.plan(config, attention, precision, 1, 16, checkpointing=checkpointing).activation_bytes


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_dora_on_a_quantised_base(precision):
    plain, dora = (memory.plan(small(2), lora(use_dora=use), precision, 1, 16) for use in (False, True))
    assert dora.activation_bytes > plain.activation_bytes and dora.weights_bytes == plain.weights_bytes


def test_experts_in_float32_take_what_was_planned():
    config = MixtralConfig(**SMALL, num_hidden_layers=2, num_local_experts=4, dtype="float32")
    model = AutoModelForCausalLM.from_config(config)
    planned = memory.plan(model, lora(), None, 2, 64)
    measured = step_bytes(get_peft_model(model, lora()), 2, 64)
    assert planned.activation_bytes + planned.logits_bytes == pytest.approx(measured, rel=0.05)


def test_blocks_of_several_kinds_are_planned_from_a_few_of_each(monkeypatch):
    config = Qwen3MoeConfig(**SMALL, num_hidden_layers=8, num_experts=4, num_experts_per_tok=2,
                            moe_intermediate_size=32, mlp_only_layers=[0, 1, 4, 7])
    few = memory.plan(config, lora(["q_proj"]), "bfloat16", 1, 64, checkpointing=True)
    monkeypatch.setattr(rehearsal, "_choose", lambda kinds, one_more=None: list(range(len(kinds))))
    whole = memory.plan(config, lora(["q_proj"]), "bfloat16", 1, 64, checkpointing=True)
    assert few.total_bytes == pytest.approx(whole.total_bytes, rel=0.01)


def test_rows_that_go_token_by_token_are_planned_from_short_ones(monkeypatch):
    config = MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=2, vocab_size=300)
    adapter = lora(["in_proj", "x_proj"])
    whole = memory.plan(config, adapter, "bfloat16", 1, 70)
    monkeypatch.setattr(rehearsal, "OPERATIONS", 200)
    short = memory.plan(config, adapter, "bfloat16", 1, 70)
    assert short.activation_bytes == pytest.approx(whole.activation_bytes, rel=0.01)
    assert short.logits_bytes == pytest.approx(whole.logits_bytes, rel=0.01)


def test_a_loss_that_needs_no_full_logits():
    config, tokens, words = small(2, vocab_size=60_000), 2 * 256, 60_000
    full, chunked, fused = (memory.plan(config, lora(), "bfloat16", 2, 256, cross_entropy=loss)
                            for loss in ("full", "chunked", "fused"))
    assert full.logits_bytes >= 10 * tokens * words  # in 16 bits, and twice in 32
    tile = (tokens - 2) * 32768 * 2  # TRL's: at most 4,096 tokens by 32,768 words, in 16 bits
    assert chunked.logits_bytes == pytest.approx(tile, rel=0.05)
    assert fused.logits_bytes < full.logits_bytes / 100  # Liger's: as many logits as the hidden states have numbers
    assert fused.logits_bytes >= tokens * config.hidden_size * 2
    assert full.weights_bytes == chunked.weights_bytes and full.gradient_bytes == fused.gradient_bytes
    trained = lora(modules_to_save=["lm_head"])  # the head's gradient is there before backward
    more = memory.plan(config, trained, "bfloat16", 2, 256, cross_entropy="fused").logits_bytes - fused.logits_bytes
    assert more >= 2 * words * config.hidden_size  # in 16 bits, as the head is


def test_double_quantisation_takes_what_bitsandbytes_stores():
    functional = pytest.importorskip("bitsandbytes").functional
    stored = 0
    for module in AutoModelForCausalLM.from_config(small(2)).model.modules():
        if isinstance(module, torch.nn.Linear):
            _, state = functional.quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            stored += state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes
    planned = [memory.plan(small(2), lora(), "nf4", double_quant=twice) for twice in (True, False)]
    assert planned[0].quantization_bytes == stored < planned[1].quantization_bytes / 3


def test_a_quantised_configs_own_settings_count():
    config = small(2, dtype="bfloat16")
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                                  "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16"}
    plain = small(2, dtype="bfloat16")
    assert memory.plan(config, lora()) == memory.plan(plain, lora(), "nf4", double_quant=True)
    assert memory.plan(config, lora(), double_quant=False) == memory.plan(plain, lora(), "nf4")
    del config.quantization_config["bnb_4bit_compute_dtype"]  # bitsandbytes then computes in float32
    slow = memory.plan(config, lora())
    assert slow == memory.plan(plain, lora(), "nf4", double_quant=True, compute_dtype="float32")
    large, alone = small(2, dtype="bfloat16", hidden_size=512), dict(precision="nf4", seq_len=2, checkpointing=True)
    own, wide = (memory.plan(large, lora(), compute_dtype=kind, **alone).activation_bytes for kind in (None, "float32"))
    assert wide > 1.5 * own  # with few tokens, a layer's weights in the dtype that it computes in
    assert slow.reserve > memory.plan(plain, lora(), "int8").reserve


def test_dropout_keeps_masks_of_one_byte():
    config, shape = small(), dict(batch_size=2, seq_len=512)
    with_it, without = (memory.plan(config, lora(lora_dropout=p), "float32", **shape) for p in (0.05, 0.0))
    elements = 2 * 512 * config.num_hidden_layers * (6 * config.hidden_size + config.intermediate_size)
    extra = with_it.activation_bytes - without.activation_bytes
    # A copy and a mask for each adapted layer, where without dropout the layers of one input share it. Masks of four
    # bytes would make it 5.5 bytes an element and more.
    assert 2.5 * elements < extra < 3.5 * elements


def test_attention_dropout_is_fused():
    lora_config = LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM")
    half, whole = (memory.plan(GPT2Config(), lora_config, "bfloat16", 1, n).activation_bytes for n in (512, 1024))
    assert whole == pytest.approx(2 * half, rel=0.02)


def test_rows_longer_than_the_table_of_positions_are_refused():
    lora_config = LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM")
    with pytest.raises(LabError, match="seq_len is 1025, but gpt2 has 1024 positions"):
        memory.plan(GPT2Config(), lora_config, seq_len=1025)
    assert memory.plan(LlamaConfig(max_position_embeddings=64, **SMALL), lora(), seq_len=128).activation_bytes  # rotary


FAMILIES = "bloom cohere falcon gemma2 gemma3_text gpt2 gpt_neox mistral mpt olmo2 opt phi3 qwen2 qwen3 starcoder2"


@pytest.mark.parametrize("model_type", FAMILIES.split())
def test_other_families_too(model_type, gpu_dropout):
    model = architectures.tiny(model_type)
    planned = memory.plan(model, lora(), None, 2, 48)
    assert planned.weights_bytes == pytest.approx(model.get_memory_footprint(), rel=0.001)
    measured = step_bytes(get_peft_model(model, lora()), 2, 48)
    assert planned.activation_bytes + planned.logits_bytes == pytest.approx(measured, rel=0.05)


def test_full_fine_tuning():
    planned = memory.plan(small(), None, "float32")
    assert planned.adapter_bytes == 0
    parameters = 4 * sum(p.numel() for p in AutoModelForCausalLM.from_config(small()).parameters())
    assert (planned.gradient_bytes, planned.optimizer_bytes) == (parameters, 2 * parameters)


def test_measure_counts_what_torch_allocates():
    model = get_peft_model(AutoModelForCausalLM.from_config(small()), lora()).train()
    ids = torch.randint(0, 200, (3, 64))
    expected = step_bytes(model, 3, 64)
    with memory.measure(model) as used:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert used.peak_tensor_bytes == pytest.approx(expected, rel=0.01)


def test_measure_sees_the_resident_peak():
    with memory.measure() as used:
        block = torch.ones(50_000_000)
        time.sleep(0.5)  # a spike shorter than a read is missed, and on busy cores a read comes late
        del block
    assert 150e6 < used.peak_rss_bytes - used.rss_before_bytes < 260e6  # the system may reclaim idle pages meanwhile
    assert used.peak_tensor_bytes is None


@settings(max_examples=8)
@given(st.sampled_from([1, 4]), st.integers(1, 4), st.integers(2, 96),
       st.sampled_from(["float32", "bfloat16", "int8", "nf4"]), st.sampled_from([False, True, "reentrant"]))
def test_more_tokens_never_take_less(layers, batch_size, seq_len, precision, checkpointing):
    def total(batch_size, seq_len):
        return memory.plan(small(layers), lora(["q_proj", "down_proj"]), precision, batch_size, seq_len,
                           checkpointing=checkpointing).total_bytes

    here = total(batch_size, seq_len)
    assert total(batch_size + 1, seq_len) > here and total(batch_size, seq_len + 5) > here


def test_depth_is_linear():
    by_depth = [memory.plan(small(layers), lora(), "float32", 2, 64) for layers in (3, 6, 9)]
    first, second, third = (planned.activation_bytes + planned.logits_bytes for planned in by_depth)
    assert third - second == pytest.approx(second - first, rel=0.01)


def test_options_move_their_part():
    def planned(**options):
        return memory.plan(small(3), lora(), **dict(precision="float32", batch_size=2, seq_len=64) | options)

    plain = planned()
    assert planned(checkpointing=True).activation_bytes < plain.activation_bytes / 2
    assert planned(logits_to_keep=8).logits_bytes < plain.logits_bytes / 4
    assert planned(optimizer="sgd").optimizer_bytes == 0
    assert planned(optimizer="adamw_torch_fused") == plain
    assert planned(optimizer="adamw_8bit").optimizer_bytes == pytest.approx(plain.optimizer_bytes / 4, rel=0.02)
    assert planned(precision="bfloat16").activation_bytes < plain.activation_bytes
    assert planned(precision="int8", prepared=True).weights_bytes >= planned(precision="int8").weights_bytes


def test_a_prepared_base_has_its_rest_in_float32():
    more = memory.plan(LLAMA, lora(["q_proj"]), "int8", prepared=True).weights_bytes
    assert more - memory.plan(LLAMA, lora(["q_proj"]), "int8").weights_bytes == 2 * 262_410_240


@pytest.mark.parametrize("computes", ["float32", "bfloat16"])
def test_a_peft_model_is_planned_with_its_own_adapter(monkeypatch, folder, computes):
    monkeypatch.setenv("LORA_LAB_PRECISION", computes)
    base, _ = load_base(folder, "int8", quiet=True)
    expected = memory.plan(base, lora(), prepared=True)
    prepared = get_peft_model(prepare_model_for_kbit_training(base), lora())
    assert memory.plan(prepared).weights_bytes == expected.weights_bytes
    if computes == "float32":  # else a prepared base no longer says that its layers compute in 16 bits
        assert memory.plan(prepared) == expected


def test_a_config_for_inference_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("lora_lab.memory.rehearsal.rehearse", None)
    with pytest.raises(LabError, match="inference_mode is True in this LoraConfig: nothing would train"):
        memory.plan(small(), lora(inference_mode=True))


def test_a_peft_model_without_anything_to_train_is_refused():
    frozen = get_peft_model(AutoModelForCausalLM.from_config(small(layers=1)), lora())
    frozen.active_peft_config.inference_mode = True  # as a loaded adapter has it
    assert memory.plan(frozen).gradient_bytes  # and yet it trains
    frozen.requires_grad_(False)
    with pytest.raises(LabError, match="No parameter of this PeftModel requires a gradient"):
        memory.plan(frozen)


def test_planning_changes_nothing():
    model = AutoModelForCausalLM.from_config(small())
    state = torch.random.get_rng_state()
    before = {name: p.clone() for name, p in model.named_parameters()}
    memory.plan(model, lora(), "int8", checkpointing=True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model.named_parameters())
    assert model.config._attn_implementation == "sdpa" and not hasattr(model, "peft_config")


@pytest.mark.parametrize("options, expected", [
    (dict(batch_size=-1), "batch_size is -1. Give a whole number of at least 1."),
    (dict(batch_size=2.0), "batch_size is 2.0"),
    (dict(batch_size=True), "batch_size is True"),
    (dict(seq_len=0), "seq_len is 0"),
    (dict(optimizer="adamwx"), "Unknown optimizer 'adamwx'. Use one of: adamw, sgd"),
    (dict(optimizer=["adamw"]), "Did you mean 'adamw'?"),
    (dict(precision="int7"), "Unknown precision 'int7'"),
    (dict(precision="int7"), "Did you mean 'int8'?"),
    (dict(precision=torch.bfloat16), "Unknown precision torch.bfloat16"),
    (dict(precision=torch.bfloat16), "Did you mean 'bfloat16'?"),
    (dict(precision=["nf4"]), "Did you mean 'nf4'?"),
    (dict(checkpointing="yes"), 'Use False, True or "reentrant"'),
    (dict(logits_to_keep=4096), "logits_to_keep is 4096"),
    (dict(lora=None, precision="nf4"), "Quantised weights cannot be trained"),
    (dict(lora="r=8"), "Expected a LoraConfig"),
    (dict(checkpointing=torch.ones(2)), 'Use False, True or "reentrant"'),
    (dict(checkpointing=1), 'Use False, True or "reentrant"'),
    (dict(logits_to_keep=True), "logits_to_keep is True"),
    (dict(prepared="yes"), "prepared is 'yes'. Give True or False."),
    (dict(double_quant=1), "double_quant is 1. Give True or False."),
    (dict(double_quant=True), "settings of nf4"),
    (dict(compute_dtype="bfloat16", precision="int8"), "settings of nf4"),
    (dict(compute_dtype="int8", precision="nf4"), "Unknown compute_dtype 'int8'"),
    (dict(cross_entropy="chunk"), "Unknown cross_entropy 'chunk'. Use one of: full, chunked, fused. Did you mean"),
    (dict(cross_entropy="fused", lora=lora(["q_proj", "lm_head"])), "an adapter on it would have no effect"),
    (dict(attn_implementation="flash"), "Unknown attn_implementation 'flash'"),
    (dict(attn_implementation=2), "Unknown attn_implementation 2"),
    (dict(precision="x" * 10_000), "Unknown precision 'xxx"),
    (dict(lora=lora("(")), "PEFT refuses this LoraConfig"),
    (dict(lora=lora(["q_proj", "x" * 10_000])), "which matches no layer"),
    (dict(lora=lora(r="8")), "PEFT refuses this LoraConfig"),
    (dict(lora=lora(["query"])), "PEFT refuses this LoraConfig"),
    (dict(lora=lora(["q_proj", "value"])), "target_modules has 'value', which matches no layer. Nearest: v_proj."),
])
def test_bad_settings_are_named(options, expected):
    with pytest.raises(LabError) as error:
        memory.plan(small(2), **dict(lora=lora()) | options)
    assert expected in str(error.value)


def with_values(**values):
    config = small(2)
    vars(config).update({"_attn_implementation_internal" if name == "_attn_implementation" else name: value
                         for name, value in values.items()})  # as config.json may have them
    return config


@pytest.mark.parametrize("values", [
    dict(hidden_size=65), dict(hidden_size=0), dict(hidden_size=-64), dict(hidden_size="64"), dict(hidden_size=None),
    dict(num_attention_heads=0), dict(num_attention_heads=3), dict(num_key_value_heads=0), dict(vocab_size=0),
    dict(vocab_size=-1), dict(pad_token_id=10_000), dict(hidden_act="none"), dict(num_hidden_layers=10**9),
    dict(num_hidden_layers="2"), dict(num_hidden_layers=0), dict(rope_parameters={"rope_type": "odd"}),
    dict(max_position_embeddings="many"), dict(quantization_config="nf4"), dict(quantization_config={"bits": 4}),
    dict(quantization_config={"quant_method": "gptq", "bits": 4}), dict(_attn_implementation="odd"),
    dict(dtype="bfloat17"), dict(model_type=None),
], ids=str)
def test_odd_values_in_a_config_are_refused_or_planned(values):
    try:
        assert memory.plan(with_values(**values), lora(), seq_len=8).total_bytes > 0
    except LabError as error:
        assert len(str(error)) < 700


@pytest.mark.parametrize("gpu_gb", ["16", -1, 0, float("nan"), True, None])
def test_a_gpu_has_a_size(gpu_gb):
    with pytest.raises(LabError, match="Give the GPU's memory in GB"):
        memory.plan(small(2), lora()).fits(gpu_gb)


@pytest.mark.parametrize("model, expected", [
    (torch.nn.Embedding(3, 3), "found Embedding"),
    (7, "found int"),
    (None, "found NoneType"),
    ("./nowhere", "There is no folder './nowhere'"),
    ("x" * 5000, "Give its folder, a hub id"),
    ("~nobody-of-this-name/model", "There is no folder"),
    (LlamaConfig(num_hidden_layers=2000), "it has 2,000 layers"),
    (BertConfig(num_hidden_layers=1, is_decoder=False, vocab_size=10), ""),
])
def test_bad_models_are_named(model, expected):
    with pytest.raises(LabError) as error:
        memory.plan(model, LoraConfig(target_modules=["nothing"]))
    assert expected in str(error.value)


def test_a_model_without_linear_layers():
    class Bag(PreTrainedModel):
        config_class = LlamaConfig

        def __init__(self, config):
            super().__init__(config)
            self.embed = torch.nn.Embedding(config.vocab_size, config.hidden_size)
            self.post_init()

    with pytest.raises(LabError, match="Bag has no linear layers"):
        memory.plan(Bag(small(1)), lora())


class Hub(BaseHTTPRequestHandler):
    """Answers as the model hub does for a gated repository and for one that does not exist."""

    def do_GET(self):
        code = {"gated": "GatedRepo", "missing": "RepoNotFound"}.get(self.path.split("/")[1], "")
        self.send_response(403 if code == "GatedRepo" else 404 if code else 200)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_the_hubs_refusals_are_told(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
from lora_lab import LabError, memory
from peft import LoraConfig
for name in ("gated/model", "missing/model"):
    try:
        memory.plan(name, LoraConfig(target_modules=["q_proj"]))
    except LabError as error:
        print("LabError", " ".join(str(error).split()))
"""
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path),
                   "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_OFFLINE": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment,
                         timeout=200)
    server.shutdown()
    said = run.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["LabError"] * 2, json.dumps([run.stdout, run.stderr[-2000:]])
    assert "gated" in said[0].replace("gated/model", "") and "is not a valid model identifier" in said[1]


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch):
    monkeypatch.setattr(models, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LabError, match="cannot be reached"):
        memory.plan("some/model", LoraConfig(target_modules=["q_proj"]))
