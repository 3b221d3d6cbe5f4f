"""Models without weights: the same shapes and names, and nothing of the original touched."""

import pytest
import torch
from lora_lab import LabError, meta_model, pocket
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, LlamaConfig

CONFIG = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_peft_makes_the_same_of_it_and_the_model_stays_as_it_is(tiny_model):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    state = torch.random.get_rng_state()
    adapted, said = meta_model.adapt(tiny_model, CONFIG)
    assert torch.equal(torch.random.get_rng_state(), state) and said == []
    assert all(parameter.is_meta for parameter in adapted.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.state_dict().items())
    assert shapes(adapted) == shapes(get_peft_model(tiny_model, CONFIG))


def test_tied_weights_stay_tied():
    bare = meta_model.bare(pocket.load()[0])
    assert bare.get_output_embeddings().weight is bare.get_input_embeddings().weight
    assert shapes(bare) == shapes(pocket.untrained())


def test_what_it_is_made_of(tiny_model):
    for source in (tiny_model, tiny_model.config, get_peft_model(tiny_model, CONFIG)):
        model, quantisation, _ = meta_model.without_weights(source)
        assert quantisation is None and all(p.is_meta and p.dtype == torch.float32 for p in model.parameters())
    config = LlamaConfig(num_hidden_layers=1, quantization_config={"load_in_4bit": True}, dtype="float16")
    assert meta_model.without_weights(config)[1:] == ("nf4", torch.float16)


def test_what_makes_no_model_is_named():
    with pytest.raises(LabError, match="Expected a transformers model"):
        meta_model.without_weights(3)


def test_shapes_are_out_and_in():
    gpt = meta_model.build(GPT2Config(n_embd=8, n_layer=1, n_head=2))
    assert meta_model.linear_shape(gpt.transformer.h[0].attn.c_attn) == (24, 8)
    assert meta_model.linear_shape(torch.nn.Linear(3, 5)) == (5, 3)
    assert meta_model.linear_shape(torch.nn.LayerNorm(3)) is meta_model.linear_shape(None) is None
