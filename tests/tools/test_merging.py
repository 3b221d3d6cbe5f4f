"""The merge audit: against brute force on many adapters, and on deployments with a known fault."""

import copy
import re
import warnings

import pytest
import torch
from lora_lab import LabError, merging, pocket, smart_home
from lora_lab.course.exercises import deployments
from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, PeftModel, PromptTuningConfig, VeraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

PROMPTS = [c.prompt for c in smart_home.commands("test combinations", n=14, seed=0)]
IDS = [pocket.tokenizer()(prompt)["input_ids"] for prompt in PROMPTS]


def adapted(seed=0, std=0.05, **settings):
    """A pocket model with a random adapter, as if trained."""
    model, _ = pocket.load()
    torch.manual_seed(seed)
    with warnings.catch_warnings(action="ignore"):
        config = LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings)
        model = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name or "modules_to_save" in name:
                parameter.add_(std * torch.randn_like(parameter))
    return model


@torch.no_grad()
def brute_force(model, merged):
    """Worst logit change, share of changed next tokens, number of changed answers."""
    pairs = [(model(torch.tensor([ids])).logits[0], merged(torch.tensor([ids])).logits[0]) for ids in IDS]
    worst = max((a - b).abs().max().item() for a, b in pairs)
    tokens = torch.cat([a.argmax(-1) != b.argmax(-1) for a, b in pairs]).float().mean().item()
    answers = 0
    for ids in IDS:
        said = [m.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                           do_sample=False, max_new_tokens=16, pad_token_id=0)[0].tolist() for m in (model, merged)]
        answers += said[0] != said[1]
    return worst, tokens, answers


@pytest.mark.parametrize("settings, safe", [
    (dict(r=1), True),
    (dict(r=32, lora_alpha=64), True),
    (dict(r=4, target_modules=["v_proj", "down_proj"], use_rslora=True), True),
    (dict(r=4, target_modules=r".*layers\.[02]\..*up_proj", rank_pattern={"layers.0": 7}), True),
    (dict(r=4, use_dora=True), True),
    (dict(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]), True),
    (dict(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6]), True),
    (dict(r=4, target_modules=["q_proj"], bias="all"), True),
    (dict(r=4, lora_dropout=0.5), True),
    (dict(r=4, target_modules=["q_proj", "lm_head"]), False),  # tied
    (dict(r=4, target_modules=["embed_tokens"]), False),
    (dict(r=4, target_modules=["q_proj", "lm_head"], ensure_weight_tying=True), False),
], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_audit_agrees_with_brute_force(settings, safe):
    model = adapted(**settings)
    untouched = {name: p.clone() for name, p in model.named_parameters()}
    found = merging.audit(model, PROMPTS, pocket.tokenizer())
    assert all(torch.equal(p, untouched[name]) for name, p in model.named_parameters())
    again = adapted(**settings)
    worst, tokens, answers = brute_force(model, again.merge_and_unload())
    assert found.safe is safe
    assert found.worst_logit == pytest.approx(worst, rel=0.5, abs=1e-4)
    assert found.changed_tokens == pytest.approx(tokens, abs=1e-6)
    assert len(found.changed_answers) == answers
    if safe:
        assert answers == 0 and worst < 1e-3


def test_audit_leaves_training_mode_and_takes_token_ids():
    model = adapted(r=4).train()
    assert merging.audit(model, IDS).safe
    assert model.training and all(layer.training for layer in model.modules())


def test_audit_names_inactive_adapters():
    model = adapted(r=4)
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    assert "other" in str(merging.audit(model, IDS))


@pytest.mark.parametrize("seed", range(3))
def test_audit_tells_the_three_faults_apart(tmp_path, seed):
    model = adapted(r=4, seed=seed, std=0.02)
    deployments.make(model, tmp_path, seed)
    words = {"base": "Another base", "merged": "holds the update", "alpha": "Another scaling"}
    faults = deployments.faults(tmp_path)
    assert sorted(faults.values()) == sorted(deployments.FAULTS)
    for name, fault in faults.items():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / name / "base")
        served = PeftModel.from_pretrained(base, tmp_path / name / "adapter")
        for deployed in (served, copy.deepcopy(served).merge_and_unload()):
            found = merging.audit(model, PROMPTS, pocket.tokenizer(), deployed=deployed)
            assert found.safe is (fault == "sound"), (fault, str(found))
        if fault != "sound":
            found = merging.audit(model, IDS, deployed=served)
            assert found.verdict == "broken" and words[fault] in str(found)


def test_audit_finds_nan_and_an_adapter_that_is_not_in_it():
    model = adapted(r=4)
    unloaded = copy.deepcopy(model).unload()
    assert "never merged" in str(merging.audit(model, IDS, deployed=unloaded))
    with torch.no_grad():
        model.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight[0, 0] = float("nan")
    found = merging.audit(model, IDS)
    assert found.verdict == "broken" and "NaN" in str(found)


def test_rounding_of_bfloat16_is_seen_and_measured():
    model = adapted(r=4, std=0.02).to(torch.bfloat16)
    found = merging.audit(model, IDS)
    assert 1e-3 < found.worst_logit and found.update == pytest.approx(1, abs=0.05)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A pocket model on an nf4 grid, with an adapter too small for it."""
    folder = tmp_path_factory.mktemp("pocket")
    pocket.load()[0].save_pretrained(folder)

    def load(four_bit):
        config = BitsAndBytesConfig(load_in_4bit=four_bit, load_in_8bit=not four_bit, bnb_4bit_quant_type="nf4")
        base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.002)
        return model

    return load


@pytest.mark.filterwarnings("ignore")
def test_nf4_in_place_loses_the_update_and_the_audit_says_so(quantised):
    model = quantised(four_bit=True)
    found = merging.audit(model, IDS)
    assert found.update < 0.5 and not found.safe
    assert "rounded away" in str(found) and "4-bit" in found.warnings[0]


@pytest.mark.filterwarnings("ignore")
def test_audit_leaves_a_4_bit_model_fit_to_be_merged(quantised):
    model = quantised(four_bit=True)
    merging.audit(model, IDS)
    with torch.no_grad():
        expected = quantised(four_bit=True).merge_and_unload()(torch.tensor([IDS[0]])).logits
        assert torch.equal(model.merge_and_unload()(torch.tensor([IDS[0]])).logits, expected)


@pytest.mark.filterwarnings("ignore")
def test_int8_in_place_keeps_more_than_nf4(quantised):
    eight, four = (merging.audit(quantised(bits), IDS).update for bits in (False, True))
    assert four < eight


def _taken_out():
    model = adapted(r=2)
    model.merge_and_unload()
    return model


@pytest.mark.parametrize("call, words", [
    (lambda: merging.audit(pocket.load()[0], IDS), "unmerged PEFT model"),
    (lambda: merging.audit(adapted(r=2), PROMPTS[0], pocket.tokenizer()), "list of texts"),
    (lambda: merging.audit(adapted(r=2), PROMPTS), "give the tokenizer"),
    (lambda: merging.audit(adapted(r=2), []), "list of texts"),
    (lambda: merging.audit(adapted(r=2), [[]]), "no token"),
    (lambda: merging.audit(adapted(r=2), None), "list of texts"),
    (lambda: merging.audit(adapted(r=2), IDS[0]), "list of token ids for each"),
    (lambda: merging.audit(adapted(r=2), [PROMPTS[0], IDS[0]], pocket.tokenizer()), "texts alone"),
    (lambda: merging.audit(adapted(r=2), [[{"role": "user", "content": "hi"}]], pocket.tokenizer()), "chat_template"),
    (lambda: merging.audit(adapted(r=2), pocket.tokenizer()(PROMPTS[:2]), pocket.tokenizer()), "list of texts"),
    (lambda: merging.audit(adapted(r=2), [[5, 99_999]]), "tokenizer of another model"),
    (lambda: merging.audit(adapted(r=2), IDS, deployed="folder"), "Load it first"),
    (lambda: merging.audit(get_peft_model(pocket.load()[0], PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2)), IDS), "changes no weights"),
    (lambda: merging.audit("adapters/first", IDS), "give that model"),
    (lambda: merging.audit(_taken_out(), IDS), "taken out of this model"),
    (lambda: merging.audit(adapted(r=2), IDS, max_new_tokens=0), "whole number above 0"),
    (lambda: merging.audit(adapted(r=2), IDS, max_new_tokens="16"), "whole number above 0"),
    (lambda: merging.audit(adapted(r=2), PROMPTS, "tokenizer"), "AutoTokenizer"),
    (lambda: merging.audit(adapted(r=2), [[True]]), "list of token ids"),
    (lambda: merging.audit(adapted(r=2), IDS, deployed=torch.nn.Linear(2, 2)), "Load it first"),
])
def test_audit_says_what_it_needs(call, words):
    with pytest.raises(LabError, match=words):
        call()


def test_audit_refuses_a_merged_adapter():
    model = adapted(r=2)
    model.merge_adapter()
    with pytest.raises(LabError, match="unmerge_adapter"):
        merging.audit(model, IDS)


def test_prompts_may_come_one_by_one():
    model = adapted(r=4)
    once = merging.audit(model, (prompt for prompt in PROMPTS), pocket.tokenizer())
    assert once == merging.audit(model, PROMPTS, pocket.tokenizer())


@pytest.mark.parametrize("config", [
    IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    OFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], oft_block_size=4),
    VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
], ids=lambda config: config.peft_type.value)
def test_other_tuners_than_lora_merge_safely(config):
    torch.manual_seed(0)
    model = get_peft_model(pocket.load()[0], config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    found = merging.audit(model, IDS)
    assert found.safe and not found.findings, str(found)
    assert "Another base" not in str(merging.audit(model, IDS, deployed=copy.deepcopy(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_base_is_seen_through_another_precision(dtype):
    model, other = adapted(r=4), adapted(r=4)
    assert "Another base" not in str(merging.audit(model, IDS, deployed=copy.deepcopy(model).to(dtype)))
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lora_" not in name:
                parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
    assert "Another base" in str(merging.audit(model, IDS, deployed=other.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_merge_held_in_float32_has_the_same_base(dtype):
    model = adapted(r=4)
    merged = copy.deepcopy(model).to(dtype).merge_and_unload().float()
    found = merging.audit(model, IDS, deployed=merged)
    assert found.verdict != "broken" and "Another base" not in str(found)


def test_an_answer_ends_where_the_model_ended_it():
    model = adapted(r=4)
    merged = copy.deepcopy(model).merge_and_unload()
    first = min(map(len, IDS))
    batch = [ids[:first] for ids in IDS]
    answers = [model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=16, pad_token_id=0)
               [0, first:].tolist() for ids in batch]
    early = next(token for token in answers[0][:8] if any(token not in answer for answer in answers[1:]))
    model.generation_config.eos_token_id = early  # ends the first answer before the others
    merged.generation_config.eos_token_id = None
    changed = {row: expected for row, expected, _ in merging.audit(model, batch, deployed=merged).changed_answers}
    alone = merging.audit(model, batch[:1], deployed=merged).changed_answers[0]
    assert changed[alone[0]] == alone[1]


def _change(layer, how):
    with torch.no_grad():
        how(layer.weight)


def _another_layer(model, merged):
    _change(merged.model.layers[1].mlp.up_proj, lambda weight: weight.mul_(1.2))


def _another_alpha(model, merged):
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 1.5)


def _fewer_layers(model, merged):
    merged.model.layers = merged.model.layers[:-1]


def _another_head(model, merged):
    _change(merged.lm_head, lambda weight: weight.add_(0.2 * torch.randn_like(weight)))


@pytest.mark.parametrize("spoil, settings, words", [
    (_another_layer, {}, "differ by more than the update"),
    (_another_alpha, {}, "another alpha"),
    (_fewer_layers, {}, "Another architecture: 7 of the adapted layers"),
    (_another_head, dict(modules_to_save=["lm_head"], target_modules=["q_proj"]), "lm_head was trained as a whole"),
], ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.filterwarnings("ignore")
def test_a_difference_is_explained(spoil, settings, words):
    model = adapted(r=4, std=0.2, **settings)
    merged = copy.deepcopy(model).merge_and_unload()
    assert merging.audit(model, IDS, deployed=merged).findings == ()
    spoil(model, merged)
    found = merging.audit(model, IDS, deployed=merged)
    assert not found.safe and re.search(words, str(found)), str(found)


def test_another_alpha_of_an_unmerged_adapter_is_not_called_rounding():
    model = adapted(r=4, std=0.2)
    other = copy.deepcopy(model)
    for layer in other.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 0.5)
    found = merging.audit(model, IDS, deployed=other)
    assert "Another scaling" in str(found) and "rounded away" not in str(found)


def test_a_prompt_beyond_the_last_position_is_named():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = get_peft_model(GPT2LMHeadModel(config), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)).eval()
    with pytest.raises(LabError, match="take up to 20 tokens, and the model has 16 positions"):
        merging.audit(model, [[5] * 12], max_new_tokens=8)


@pytest.mark.parametrize("idle", ["untrained", "disabled"])
def test_an_adapter_that_does_nothing_is_said_to(idle):
    model = adapted(r=4) if idle == "disabled" else get_peft_model(
        pocket.load()[0], LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    if idle == "disabled":
        model.disable_adapter_layers()
    assert "does nothing" in str(merging.audit(model, IDS))


def test_models_of_two_vocabularies_are_not_compared():
    bigger = pocket.load()[0]
    bigger.resize_token_embeddings(bigger.config.vocab_size + 8)
    with pytest.raises(LabError, match="one tokenizer"):
        merging.audit(adapted(r=2), IDS, deployed=bigger)


def test_the_same_adapter_is_deployed_in_the_same_order(tmp_path):
    for folder in ("first", "second"):
        deployments.make(adapted(r=4), tmp_path / folder)
    assert deployments.faults(tmp_path / "first") == deployments.faults(tmp_path / "second")


def test_deployments_on_a_full_disk(tmp_path):
    (tmp_path / "b").write_text("in the way")
    with pytest.raises(LabError, match="Make room"):
        deployments.make(adapted(r=4), tmp_path)
