"""The merge audit: against brute force on many adapters, and on deployments with a known fault."""

import copy
import http.server
import json
import random
import re
import threading
import urllib.request
import warnings

import audit_cases
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


def audit(model, deployed=None):
    """The audit with answers of four tokens, for what does not depend on their length."""
    return merging.audit(model, IDS, deployed=deployed, max_new_tokens=4)


@torch.no_grad()
def brute_force(model, merged):
    """Worst logit change, share of changed next tokens, number of changed answers."""
    pairs = [(model(torch.tensor([ids])).logits[0], merged(torch.tensor([ids])).logits[0]) for ids in IDS]
    worst = max((a - b).abs().max().item() for a, b in pairs)
    tokens = torch.cat([a.argmax(-1) != b.argmax(-1) for a, b in pairs]).float().mean().item()
    answers = 0
    for ids in IDS:
        said = [m.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                           do_sample=False, max_new_tokens=8, pad_token_id=0)[0].tolist() for m in (model, merged)]
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
    found = merging.audit(model, PROMPTS, pocket.tokenizer(), max_new_tokens=8)
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
    assert audit(model).safe
    assert model.training and all(layer.training for layer in model.modules())


def test_audit_names_inactive_adapters():
    model = adapted(r=4)
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    assert "other" in str(audit(model))


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
            found = merging.audit(model, PROMPTS, pocket.tokenizer(), deployed, max_new_tokens=4)
            assert found.safe is (fault == "sound"), (fault, str(found))
        if fault != "sound":
            found = audit(model, deployed=served)
            assert found.verdict == "broken" and words[fault] in str(found)


def test_audit_finds_nan_and_an_adapter_that_is_not_in_it():
    model = adapted(r=4)
    unloaded = copy.deepcopy(model).unload()
    assert "never merged" in str(audit(model, deployed=unloaded))
    with torch.no_grad():
        model.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight[0, 0] = float("nan")
    found = audit(model)
    assert found.verdict == "broken" and "NaN" in str(found)


def test_rounding_of_bfloat16_is_seen_and_measured():
    model = adapted(r=4, std=0.02).to(torch.bfloat16)
    found = audit(model)
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
    found = audit(model)
    assert found.update < 0.5 and not found.safe
    assert "rounded away" in str(found) and "4-bit" in found.warnings[0]


@pytest.mark.filterwarnings("ignore")
def test_audit_leaves_a_4_bit_model_fit_to_be_merged(quantised):
    model = quantised(four_bit=True)
    audit(model)
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
    (lambda: merging.audit(adapted(r=2), PROMPTS, "tokenizer"), "tokenizer is 'tokenizer'"),
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
        audit(model)


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
    found = audit(model)
    assert found.safe and not found.findings, str(found)
    assert "Another base" not in str(audit(model, deployed=copy.deepcopy(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_base_is_seen_through_another_precision(dtype):
    model, other = adapted(r=4), adapted(r=4)
    assert "Another base" not in str(audit(model, deployed=copy.deepcopy(model).to(dtype)))
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lora_" not in name:
                parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
    assert "Another base" in str(audit(model, deployed=other.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_merge_held_in_float32_has_the_same_base(dtype):
    model = adapted(r=4)
    merged = copy.deepcopy(model).to(dtype).merge_and_unload().float()
    found = audit(model, deployed=merged)
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
    assert audit(model, deployed=merged).findings == ()
    spoil(model, merged)
    found = audit(model, deployed=merged)
    assert not found.safe and re.search(words, str(found)), str(found)


def test_another_alpha_of_an_unmerged_adapter_is_not_called_rounding():
    model = adapted(r=4, std=0.2)
    other = copy.deepcopy(model)
    for layer in other.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 0.5)
    found = audit(model, deployed=other)
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
    assert "does nothing" in str(audit(model))
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert {layer.disable_adapters for layer in layers} == {idle == "disabled"}


def test_a_smaller_vocabulary_is_not_compared():
    smaller = pocket.load()[0]
    smaller.resize_token_embeddings(smaller.config.vocab_size - 8)
    with pytest.raises(LabError, match="one tokenizer"):
        merging.audit(adapted(r=2), IDS, deployed=smaller)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_vocabulary_padded_for_serving_is_compared_as_far_as_it_goes(lost):
    model = adapted(r=4)
    padded = getattr(copy.deepcopy(model), "unload" if lost else "merge_and_unload")()
    padded.resize_token_embeddings(padded.config.vocab_size + 26)
    found = audit(model, deployed=padded)
    assert found.verdict == ("broken" if lost else "safe"), str(found)


def test_the_same_adapter_is_deployed_in_the_same_order(tmp_path):
    for folder in ("first", "second"):
        deployments.make(adapted(r=4), tmp_path / folder)
    assert deployments.faults(tmp_path / "first") == deployments.faults(tmp_path / "second")


def test_deployments_on_a_full_disk(tmp_path):
    (tmp_path / "b").write_text("in the way")
    with pytest.raises(LabError, match="Make room"):
        deployments.make(adapted(r=4), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_verdicts_on_generated_cases_agree_with_brute_force():
    drawn = random.Random(7).sample(audit_cases.cases([1]), 40)
    wrong = [found for case in drawn if (found := audit_cases.run(*case))["wrong"]]
    assert not wrong, wrong


def case(kind, deployed, architecture="llama"):
    """The audit of a generated case."""
    base, model = audit_cases.adapted(architecture, kind, 0)
    served = base if deployed == "base" else audit_cases.DEPLOYED[deployed](model)
    return merging.audit(model, audit_cases.PROMPTS, deployed=served, max_new_tokens=4)


@pytest.mark.parametrize("kind, deployed, words", [
    ("rows alone", "a row lost", "1 of the 3 rows of model.embed_tokens.weight"),
    ("rows alone", "never merged", "never merged"),
    ("trained embedding", "base", "model.embed_tokens was trained as a whole"),
    ("embedding", "half merged", r"Without the update: 4 of 7 adapted layers, "),
    ("lora", "another config", r"rope_parameters.rope_theta 100.0 in the deployed model instead of 10000.0"),
    ("lora", "NaN", "NaN or infinite numbers are in the weights"),
    ("lora", "fewer layers", "Another architecture"),
    ("lora", "another matrix", "Another base: 1 of the 15 tensors"),
])
@pytest.mark.filterwarnings("ignore")
def test_what_the_weights_prove_counts_whichever_prompts_were_asked(kind, deployed, words):
    found = case(kind, deployed)
    assert found.verdict == "broken" and re.search(words, str(found)), str(found)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_peft_converted_is_the_same(kind):
    assert audit_cases.run("llama", kind, "converted", 0)["verdict"] == "safe"


@pytest.mark.parametrize("how", ["two as cat", "two as svd"])
@pytest.mark.filterwarnings("ignore")
def test_two_active_adapters_are_the_one_that_combines_them(how):
    assert case("lora", how).safe and case("embedding", how.replace("svd", "cat")).safe


@pytest.mark.filterwarnings("ignore")
def test_trained_rows_may_be_rounded():
    for how in ("bfloat16", "float16", "bfloat16 held in float32"):
        found = case("trained rows", how)
        assert found.verdict in ("safe", "look") and "architecture" not in str(found), str(found)


@pytest.mark.filterwarnings("ignore")
def test_half_merged_models_name_the_layers_without_the_update():
    _, model = audit_cases.adapted("llama", "lora", 0)
    partly = copy.deepcopy(model)
    before = {name: weight.clone() for name, weight in copy.deepcopy(model).unload().state_dict().items()}
    partly = partly.merge_and_unload()
    lost = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    with torch.no_grad():
        for path in lost:
            partly.get_submodule(path).weight.copy_(before[f"{path}.weight"])
    found = merging.audit(model, [[5]], deployed=partly, max_new_tokens=1)
    assert sorted(found.missing) == lost and all(path in str(found) for path in lost)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_the_prompts_do_not_reach_is_not_shown():
    _, model = audit_cases.adapted("llama", "rows alone", 0)
    found = merging.audit(model, audit_cases.PROMPTS, max_new_tokens=4)
    assert found.verdict == "not shown" and "cannot tell" in str(found) and not found.safe
    assert merging.audit(model, [*audit_cases.PROMPTS, [60, 5]], max_new_tokens=4).safe


@pytest.mark.filterwarnings("ignore")
def test_replicated_layers_are_named_as_such_and_can_be_parted():
    def replicated():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], layer_replication=[(0, 2), (1, 2)])
        model = get_peft_model(audit_cases.llama(), config).eval()
        audit_cases.train(model)
        return model

    found = merging.audit(replicated(), audit_cases.PROMPTS, max_new_tokens=4)
    assert found.verdict == "broken" and "layer_replication" in str(found) and "tie_word" not in str(found)
    parted = replicated()
    for layer in parted.modules():
        if isinstance(layer, LoraLayer):
            layer.base_layer = copy.deepcopy(layer.base_layer)
    assert merging.audit(replicated(), audit_cases.PROMPTS, deployed=parted.merge_and_unload(), max_new_tokens=4).safe


@pytest.mark.parametrize("architecture", ["llama, no head", "bert, no head", "llama, classifier"])
@pytest.mark.filterwarnings("ignore")
def test_models_that_generate_nothing_are_compared(architecture):
    sound, broken = (case("lora", how, architecture) for how in ("merged", "half the alpha"))
    assert sound.safe and broken.verdict == "broken"
    assert ("no answers" in str(sound)) is ("no head" in architecture)


def test_a_model_without_its_head_is_not_what_was_deployed():
    with pytest.raises(LabError, match="deployed is a LlamaModel, and the unmerged model a LlamaForCausalLM"):
        merging.audit(adapted(r=2), IDS, deployed=pocket.load()[0].model)


@pytest.mark.filterwarnings("ignore")
def test_settings_that_change_nothing_do_not_count():
    model = adapted(r=4)
    merged = copy.deepcopy(model).merge_and_unload()
    merged.config.update(dict(use_cache=False, max_position_embeddings=9, attention_dropout=0.3, pad_token_id=7))
    assert audit(model, deployed=merged).safe
    merged.config.some_flag = True
    found = audit(model, deployed=merged)
    assert found.verdict == "look" and "some_flag True" in str(found)


@pytest.mark.filterwarnings("ignore")
def test_equal_weights_are_never_broken_whatever_was_generated():
    model = adapted(r=4)
    merged = copy.deepcopy(model).merge_and_unload()
    merged.generation_config.eos_token_id = list(range(5, 150))
    found = merging.audit(model, IDS, deployed=merged)
    assert found.verdict == "look" and len(found.changed_answers) > 7 and "eos_token_id" in str(found)


@pytest.mark.filterwarnings("ignore")
def test_a_layer_whose_merge_computes_something_else_is_said_to_be_unread():
    _, model = audit_cases.adapted("llama", "lora", 0)
    layer = next(layer for layer in model.modules() if isinstance(layer, LoraLayer))
    layer.register_forward_hook(lambda layer, asked, given: 1.1 * given)
    found = merging.audit(model, audit_cases.PROMPTS, max_new_tokens=4)
    assert not found.safe and "Not compared" in str(found) and "model.layers.0.self_attn.q_proj" in str(found)


@pytest.fixture(scope="module")
def endpoint():
    """An engine on loopback, with the completions of whichever model it is given, as OpenAI's API returns them."""
    words = pocket.tokenizer()

    class Engine(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids = words(asked["prompt"], return_tensors="pt")["input_ids"]
            output = self.server.model.generate(input_ids=ids, do_sample=False, max_new_tokens=asked["max_tokens"])
            text = words.decode(output[0, ids.shape[1]:], skip_special_tokens=True)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"text": text}]}).encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, model, prompts):
    server.model = model
    answers = []
    for prompt in prompts:
        body = json.dumps({"prompt": prompt, "temperature": 0, "max_tokens": 8}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/v1/completions", body) as reply:
            answers.append(json.load(reply)["choices"][0]["text"])
    return answers


@pytest.mark.filterwarnings("ignore")
def test_answers_that_an_engine_served_are_audited(endpoint):
    model, words = adapted(r=4, std=0.5), pocket.tokenizer()
    prompts = [c.prompt for c in smart_home.commands("test combinations", n=36, seed=0)]

    def audit(answers, count=len(prompts)):
        return merging.audit(model, prompts[:count], words, max_new_tokens=8, answers=answers[:count])

    sound = ask(endpoint, copy.deepcopy(model).merge_and_unload(), prompts)
    of_base = ask(endpoint, copy.deepcopy(model).unload(), prompts[:10])
    served = audit(sound)
    assert served.safe and served.lost is None and "Largest change" not in str(served)
    unserved = audit(of_base, 10)
    assert unserved.verdict == "broken" and "those of the base: is the adapter served?" in str(unserved)
    few = audit(sound, 10)
    assert few.verdict == "look" and "0% to 28%" in str(few) and "ask 35" in str(few), str(few)
    one = audit([of_base[0], *sound[1:]], 5)
    assert one.verdict == "look" and one.interval[0] < 0.1 and "1 of 5" in str(one)
    assert "do both stop at 8 tokens?" in str(audit([text[:-4] for text in sound], 5))
    untrained = get_peft_model(pocket.load()[0], LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    assert merging.audit(untrained, prompts[:5], words, max_new_tokens=8, answers=of_base[:5]).verdict == "not shown"
    empty = str(audit([""] * 5, 5))
    assert "5 of the answers that differ are empty" in empty and "begin alike" not in empty


@pytest.mark.parametrize("answers, more, words", [
    (["a"] * 3, {}, "3 answers to 14 prompts"), ("text", {}, "list of texts"), ([1] * 14, {}, "text of each"),
    (["a"] * 14, dict(deployed=pocket.load()[0]), "not both"), (["a"] * 14, dict(tokenizer=None), "tokenizer"),
])
def test_answers_are_texts_one_for_each_prompt(answers, more, words):
    with pytest.raises(LabError, match=words):
        merging.audit(adapted(r=2), IDS, **dict(tokenizer=pocket.tokenizer(), answers=answers) | more)


def _hooked(deployed):
    def silence(module, inputs, output):
        return torch.zeros_like(output)

    deployed.model.layers[1].mlp.register_forward_hook(silence)


def _other_positions(deployed):
    deployed.model.rotary_emb.inv_freq.mul_(0.2)


def _other_attention(deployed):
    for layer in deployed.model.layers:
        layer.self_attn.scaling *= 0.1


def _other_activation(deployed):
    for layer in deployed.model.layers:
        layer.mlp.act_fn = torch.nn.Tanh()


@pytest.mark.parametrize("spoil, words", [
    (_hooked, "Forward hooks on model.layers.1.mlp: .*silence in the deployed"),
    (_other_positions, "The buffer model.rotary_emb.inv_freq"),
    (_other_attention, "compute otherwise, by more than rounding"), (_other_activation, "another activation"),
])
def test_equal_weights_that_compute_otherwise_are_not_called_rounding(spoil, words):
    model = adapted(r=4)
    merged = copy.deepcopy(model).merge_and_unload()
    spoil(merged)
    found = audit(model, deployed=merged)
    assert re.search(words, str(found)) and "rounding while computing" not in str(found), str(found)
    assert (found.verdict == "broken") is (max(found.lost_interval[0], found.interval[0]) > 0.1), str(found)
    assert found.verdict in ("broken", "look")


def test_a_hook_that_changes_nothing_does_not_count():
    model = adapted(r=4)
    merged = copy.deepcopy(model).merge_and_unload()
    merged.enable_input_require_grads()
    found = audit(model, deployed=merged)
    assert found.safe and found.findings == ()


def test_a_deployed_model_that_samples_is_named():
    model = adapted(r=4)
    merged = copy.deepcopy(model).merge_and_unload()
    merged.generation_config.do_sample, merged.generation_config.temperature = True, 0.7
    found = audit(model, deployed=merged)
    assert found.safe and "would sample (do_sample=True, temperature 0.7)" in str(found)
