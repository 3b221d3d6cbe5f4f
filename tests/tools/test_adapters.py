"""Saved adapters, their settings, and turning one up or down in a model."""

import copy
import json
import math

import pytest
import torch
from lora_lab import LabError, adapters, pocket
from peft import AdaLoraConfig, IA3Config, LoraConfig, PromptTuningConfig, VeraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer


@pytest.fixture(scope="module")
def small():
    return pocket.load()


def adapted(small, **options):
    torch.manual_seed(0)
    config = LoraConfig(**dict(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False) | options)
    return get_peft_model(copy.deepcopy(small[0]), config)


def scalings(model):
    return [value for m in model.modules() if isinstance(m, LoraLayer) for value in m.scaling.values()]


def test_saved_adapter_passes(tmp_path, tiny_model):
    get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "a", save_embedding_layers=False
    )
    assert adapters.adapter_folder(tmp_path / "a") == str(tmp_path / "a")


def test_other_folders_are_named_with_what_they_hold(tmp_path):
    with pytest.raises(LabError, match="it is no folder"):
        adapters.adapter_folder(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LabError, match="no adapter_model.safetensors .*it holds adapter_config.json"):
        adapters.adapter_folder(tmp_path)


def test_turning_multiplies_and_restores(small):
    model = adapted(small)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
        with adapters.turned(model, 0):
            assert torch.equal(model(ids).logits, small[0](ids).logits)
        with adapters.turned(model, 2), adapters.turned(model, 1.5):
            assert set(scalings(model)) == {6.0}
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_block_leaves_nothing_turned(small, error):
    model = adapted(small)
    with pytest.raises(error), adapters.turned(model, 3):
        raise error
    assert set(scalings(model)) == {2.0}


@pytest.mark.parametrize("factor", [-1, math.nan, math.inf, "2", None, True])
def test_factors_without_sense_change_nothing(small, factor):
    model = adapted(small)
    with pytest.raises(LabError, match="Cannot turn an adapter by"), adapters.turned(model, factor):
        pass
    assert set(scalings(model)) == {2.0}


def test_a_model_without_an_adapter_or_with_a_merged_one_is_refused(small):
    with pytest.raises(LabError, match="no LoRA layer"), adapters.turned(small[0], 2):
        pass
    model = adapted(small)
    model.merge_adapter()
    with pytest.raises(LabError, match="merged"), adapters.turned(model, 2):
        pass


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "16", None, True])
def test_settings_that_train_nothing_are_refused(value):
    with pytest.raises(LabError, match="alpha is"):
        adapters.positive(lr=0.1, alpha=value)


def test_an_adapter_of_another_rank_is_refused(small, tmp_path):
    adapted(small, r=4).save_pretrained(tmp_path)
    assert adapters.adapter_folder(tmp_path, r=4) == adapters.adapter_folder(tmp_path) == str(tmp_path)
    with pytest.raises(LabError, match="has rank 4, and rank 8 is needed"):
        adapters.adapter_folder(tmp_path, r=8)


@pytest.mark.parametrize("content, words", [
    ("[" * 100_000, "nested too deeply"), ("[]", "expected a dict"), (" " * 3_000_000, "bytes"), ("{", "not JSON"),
    ('{"megatron_config": {"a": 1}, "megatron_core": "antigravity"}', "asks to import 'antigravity'"),
])
def test_a_config_of_a_stranger_is_read_with_limits(tmp_path, content, words):
    (tmp_path / "adapter_config.json").write_text(content)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(LabError, match=words):
        adapters.adapter_folder(tmp_path)


def _edited(**settings):
    def edit(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return edit


def _cut(left):
    def cut(folder):
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:left])
    return cut


@pytest.mark.parametrize("spoil, words", [
    (_cut(-10), "damaged or incomplete"), (_cut(0), "damaged or incomplete"), (_cut(5), "damaged or incomplete"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "None for peft_type"),
    (_edited(peft_type="LORE"), "'LORE' for peft_type"),
    (_edited(peft_type="IA3"), "says IA3, and the weights beside it are LoRA's"),
    (_edited(r=4), "says r=4, and .* has rank 8"),
], ids=lambda value: None if callable(value) else str(value))
def test_a_file_that_is_damaged_or_does_not_fit_its_config_is_refused(small, tmp_path, spoil, words):
    adapted(small).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(LabError, match=words):
        adapters.adapter_folder(tmp_path)


@pytest.mark.parametrize("config", [
    LoraConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 3}),
    LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, modules_to_save=["lm_head"]),
    LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3], bias="all"),
    IA3Config(target_modules=["q_proj"], feedforward_modules=[]), VeraConfig(r=4, target_modules=["q_proj"]),
    AdaLoraConfig(init_r=6, total_step=10, target_modules=["q_proj"]),
    PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
], ids=lambda config: config.peft_type.value)
@pytest.mark.filterwarnings("ignore")
def test_what_peft_saves_fits_its_config(small, tmp_path, config):
    get_peft_model(copy.deepcopy(small[0]), config).save_pretrained(tmp_path)
    assert adapters.adapter_folder(tmp_path) == str(tmp_path)


def test_convolutions_and_experts_fit_their_config(tmp_path):
    config = LoraConfig(r=4, target_modules=["0"])
    get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3)), config).save_pretrained(tmp_path / "convolution")
    experts = torch.nn.Module()
    experts.weight = torch.nn.Parameter(torch.zeros(3, 8, 6))
    config = LoraConfig(r=4, target_parameters=["experts.weight"])
    get_peft_model(torch.nn.ModuleDict({"experts": experts}), config).save_pretrained(tmp_path / "experts")
    for kind in ("convolution", "experts"):
        assert adapters.adapter_folder(tmp_path / kind)


def test_a_base_that_is_no_model_is_refused(small, tmp_path):
    adapted(small).save_pretrained(tmp_path)
    with pytest.raises(LabError, match="base is 'x'. Give the base, a model"):
        adapters.adapter_folder(tmp_path, base="x")


@pytest.mark.parametrize("folder", ["s3://bucket/adapter", "~nobody-of-that-name/x", "a\0b", 3, None])
def test_what_is_no_folder_of_this_machine_is_refused(folder):
    with pytest.raises(LabError):
        adapters.adapter_folder(folder)


def test_an_adapter_knows_the_weights_it_was_trained_beside(tiny_model, tmp_path, capsys):
    other = copy.deepcopy(tiny_model)
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 0.1
    plain, own = adapters.base_identity(tiny_model), copy.deepcopy(tiny_model)
    assert plain == adapters.base_identity(copy.deepcopy(tiny_model).to(torch.bfloat16))
    assert plain != adapters.base_identity(other)
    model = get_peft_model(tiny_model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"],
                                                  trainable_token_indices=[3]))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert adapters.adapter_folder(tmp_path, base=own) and "score it" in capsys.readouterr().out  # nothing is noted yet
    for name, parameter in model.named_parameters():
        parameter.data += parameter.requires_grad  # training moves what PEFT added, and nothing else
    assert adapters.note_base(tmp_path, model) == plain
    assert adapters.adapter_folder(tmp_path, base=own) == str(tmp_path)
    with pytest.raises(LabError, match="trained beside other weights"):
        adapters.adapter_folder(tmp_path, base=other)
    (tmp_path / adapters.BASE).write_text("[]")
    with pytest.raises(LabError, match="Save the adapter again"):
        adapters.adapter_folder(tmp_path, base=own)


def test_a_merged_adapter_or_a_model_without_weights_has_no_base_to_note(tiny_model, tmp_path):
    model = get_peft_model(tiny_model, LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    model.merge_adapter()
    with pytest.raises(LabError, match="unmerge_adapter"):
        adapters.note_base(tmp_path, model)
    with torch.device("meta"), pytest.raises(LabError, match="no identity"):
        adapters.base_identity(torch.nn.Linear(2, 2))
