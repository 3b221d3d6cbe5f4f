"""targets.check against PEFT itself: the same layers adapted, and every silent miss reported."""

import copy
import functools

import pytest
import targets_fuzz
import torch
from architectures import CannotBuild, causal_lm_types, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_lab import LabError, load_base, pocket, targets
from peft import EvaConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def by_peft(model, config):
    """What PEFT does to a real copy of the model, or the error it raises."""
    try:
        adapted = get_peft_model(copy.deepcopy(model), copy.deepcopy(config))
    except Exception as error:
        return type(error).__name__
    tuner = adapted.base_model
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return set(tuner.targeted_module_names), set(tuner.targeted_parameter_names), trainable


def by_us(model, config):
    return said_by(targets.inspect(model, config))


def said_by(report):
    if report.refused:
        return report.refused.partition(":")[0]
    return set(report.modules), set(report.parameters), report.trainable


def configs(model):
    """Configs of every kind for `model`, each with the words that its report must contain if PEFT accepts it."""
    groups = targets.groups(model)
    names = list(dict.fromkeys(g.name for g in groups if g.kind != "Parameter" and "*" in g.where))
    one, two = names[0], names[:2]
    yield {}, ()
    yield dict(target_modules="all-linear"), ()
    yield dict(target_modules=two), ()
    yield dict(target_modules=[one, "no_such"]), ("no_such",)
    yield dict(target_modules=["no_such"]), ()
    yield dict(target_modules=rf".*\.({one}|no_such)"), ("no_such",)
    yield dict(target_modules=[one], layers_to_transform=[0, 99]), ("no layer 99",)
    yield dict(target_modules="all-linear", exclude_modules=[one, "no_such"]), ("exclude_modules: 'no_such'",)
    yield dict(target_modules=two, rank_pattern={one: 4, "no_such": 3}, use_rslora=True), ("rank_pattern: 'no_such'",)
    yield dict(target_modules=[one], modules_to_save=["no_such"]), ("modules_to_save: 'no_such'",)
    for group in [g for g in groups if g.kind == "Parameter"][:1]:
        ending = ".".join(group.where.split(".")[-2:])
        yield dict(target_modules=[], target_parameters=[ending, "no.such"]), ("target_parameters: 'no.such'",)


@pytest.mark.filterwarnings("ignore")  # PEFT's, on the real copies
@pytest.mark.parametrize("model_type", causal_lm_types())
def test_agrees_with_peft_and_reports_every_miss(model_type):
    """Every architecture with two configs and a third of the others, in turn."""
    model = built(model_type)
    if isinstance(model, str):
        pytest.skip(f"{model_type} cannot be built from its config: {model}")
    first, second, *others = configs(model)
    for options, words in (first, second, *others[causal_lm_types().index(model_type) % 3::3]):
        config = LoraConfig(r=2, **options)
        try:
            report, raised = targets.check(model, config), False
        except targets.TargetError as error:
            report, raised = error.report, True
        assert said_by(report) == by_peft(model, config), options
        assert raised == bool(report.refused or words), options
        if report.refused:
            continue
        assert [w for w in words if not any(w in problem for problem in report.problems)] == [], options
        assert len(report.problems) == len(words), (options, report.problems)


@functools.cache
def built(model_type):
    """The model, which nothing here changes, or why there is none."""
    try:
        return tiny(model_type)
    except CannotBuild as reason:
        return str(reason)


def test_most_architectures_are_compared(capsys):
    models = {model_type: built(model_type) for model_type in causal_lm_types()}
    reasons = {model_type: reason for model_type, reason in models.items() if isinstance(reason, str)}
    compared = len(models) - len(reasons)
    with capsys.disabled():
        print(f"\ntargets.check is compared with PEFT on {compared} architectures; {len(reasons)} are not built:")
        for model_type, reason in reasons.items():
            print(f"  {model_type}: {reason[:100]}")
    assert compared > 100


@pytest.fixture(scope="module")
def llama():
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                                            num_attention_heads=4, num_key_value_heads=2))


def problems(model, **options):
    return " / ".join(targets.inspect(model, LoraConfig(**options)).problems)


@pytest.mark.parametrize("options, words", [
    (dict(target_modules=["query", "v_proj"]), "'query' matches nothing. Nearest: q_proj."),
    (dict(target_modules=["q_proj", "w2"]), "'w2' matches nothing. Nearest: down_proj."),
    (dict(target_modules=["q_proj.weight", "v_proj"]), "wants the layer that holds it. Nearest: q_proj."),
    (dict(target_modules=["attn.q_proj", "v_proj"]), "Nearest: self_attn.q_proj"),
    (dict(target_modules=["all-linear", "v_proj"]), "give it as a string"),
    (dict(target_modules=[r".*\.q_proj", "v_proj"]), "a regular expression must be the whole target_modules"),
    (dict(target_modules="q_proj"), "Write it as a list: ['q_proj']"),
    (dict(target_modules=r".*\.query_proj"), "no layer's whole path fits"),
    (dict(target_modules=r".*\.[qx]_proj"), "the alternative 'x'"),
    (dict(target_modules=r".*\.q_proj|.*\.value"), r"the alternative '.*\\.value'"),
    (dict(target_modules=r".*layers\.(0|7)\.self_attn\.(q|v)_proj"), "the alternative '7'"),
    (dict(target_modules=r".*(attention\.)?q_proj|model\.layers\.0\.(mlp|ffn)?.*v_proj"), "the alternative 'ffn'"),
    (dict(target_modules=["norm", "q_proj"]), "'norm' is a LlamaRMSNorm here, which PEFT cannot adapt"),
    (dict(target_modules=["self_attn"]), "'self_attn' is a LlamaAttention here"),
    (dict(target_modules=["q_proj"], layers_to_transform=5), "there is no layer 5; the layers are 0 to 2"),
    (dict(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern="blocks"),
     "layers_pattern: no layer's number follows 'blocks', so there is no layer 0. Here the numbers follow 'layers'."),
    (dict(target_modules=["q_proj", "lm_head"], layers_to_transform=[1]), ""),
    (dict(target_modules=["q_proj", "model.layers.2.self_attn.v_proj"], layers_to_transform=[1]), ""),
    (dict(target_modules=["q_proj"], rank_pattern={"q_proj": 4, "layers.0.self_attn.q_proj": 8}), "comes too late"),
    (dict(target_modules=["q_proj"], alpha_pattern={"value": 4}), "alpha_pattern: 'value' matches none"),
    (dict(target_modules=["q_proj"], modules_to_save=["score"]), "modules_to_save: 'score' matches no module"),
    (dict(target_modules=["q_proj"], trainable_token_indices=[5, 99]), "there is no token 99"),
    (dict(target_modules="all-linear", exclude_modules=["mlp"]), "'mlp' is a whole block, and 9 adapted layers"),
    (dict(target_modules=["q_proj", 3]), "3 is a int, not a name"),
    (dict(target_modules=["q_proj"], exclude_modules=r".*\.(1|8)\..*"), "exclude_modules: '8'"),
    (dict(target_modules=["q_proj"], exclude_modules=["embed_tokens"]), "'embed_tokens' excludes nothing"),
    (dict(target_modules=["q_proj"], exclude_modules=r".*\.v_proj"), "excludes nothing: without it no"),
    (dict(target_modules=["q_proj"], exclude_modules=r".*\.1\..*|.*v_proj"), "'.*v_proj' excludes nothing"),
    (dict(target_modules="all-linear", exclude_modules=["q_proj", "self_attn.q_proj"]), "adds nothing to 'q_proj'"),
    (dict(target_modules=["q_proj", "self_attn.q_proj"]), "'self_attn.q_proj' adds nothing to 'q_proj'"),
    (dict(target_modules=r".*no_such", target_parameters=["q_proj.weight"]), "no layer's whole path fits '.*no_such'"),
    (dict(target_modules=["q_proj"], target_parameters=["v_proj.weight", "attn.v_proj.weight"]), "no parameter"),
    (dict(target_modules=["q_proj"], target_parameters=["k_proj.weight", "layers.0.self_attn.k_proj.weight"]), "adds"),
    (dict(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern=["layers", "h"]), "'h' decides nothing"),
    (dict(target_modules=["q_proj"], layers_to_transform=[1, 1]), "layer 1 is there twice"),
    (dict(target_modules=["model.layers.0.mlp.up_proj"], layers_to_transform=[0]), "0 decides nothing"),
    (dict(target_modules=["q_proj"], lora_alpha=0), "lora_alpha: 0 makes the scaling 0"),
    (dict(target_modules=["q_proj"], lora_alpha=-16), "lora_alpha: -16 makes the adapter subtract"),
    (dict(target_modules=["q_proj"], lora_alpha=float("nan")), "lora_alpha: nan makes the output"),
    (dict(target_modules=["q_proj"], lora_alpha=float("inf")), "lora_alpha: inf makes the output"),
    (dict(target_modules=["q_proj", "v_proj"], alpha_pattern={"v_proj": 0}), "alpha_pattern: 0 makes the scaling 0"),
    (dict(target_modules=["q_proj"], lora_dropout=1.0), "lora_dropout: 1 drops all"),
    (dict(target_modules=["q_proj"], lora_dropout=-0.1), "takes -0.1 for no dropout"),
    (dict(target_modules=["q_proj"], rank_pattern={"q_proj": 8}), "'q_proj' decides nothing: its layers have 8"),
    (dict(target_modules=["q_proj"], alpha_pattern={"layers.0.*": 4, "q_proj": 8}), "'q_proj' decides nothing"),
    (dict(target_modules=["q_proj"], modules_to_save=["act_fn"]), "SiLUActivation here, which has no weights"),
    (dict(target_modules=["q_proj"], modules_to_save=["lm_head", "head"]), "'head' adds nothing to 'lm_head'"),
    (dict(target_modules=["q_proj"], modules_to_save="lm_head"), "letter by letter"),
    (dict(target_modules=["q_proj"], trainable_token_indices=[3, 3]), "token 3 is there twice"),
    (dict(target_modules=["q_proj"], trainable_token_indices=[]), "an empty list trains nothing"),
    (dict(target_modules=["q_proj", "v_proj"], exclude_modules=["v_proj"]), "'v_proj' is left out again"),
    (dict(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"]), "'lm_head' is left out again"),
    (dict(target_modules=r".*\.(q|v)_proj", exclude_modules=["v_proj"]), "every match of 'v' is left out again"),
    (dict(target_modules=["q_proj"], bias="all"), "bias: 'all' trains nothing more: the model has no bias"),
    (dict(target_modules=["q_proj"], inference_mode=True), "inference_mode: True freezes all that PEFT adds"),
    (dict(target_modules=["q_proj"], eva_config=EvaConfig()), "eva_config: only init_lora_weights='eva' reads it"),
])
def test_problem_is_named_with_its_remedy(llama, options, words):
    assert words in problems(llama, **options)
    assert bool(words) == bool(problems(llama, **options))


@pytest.mark.parametrize("options", [
    dict(target_modules=["q_proj", "v_proj"]),
    dict(target_modules="ALL-LINEAR"),
    dict(target_modules=r"model\.layers\.\d+\.(self_attn|mlp)\.(q|up)_proj"),
    dict(target_modules=r"(?!.*(vision|audio)).*\.(?P<part>q|v)_proj"),
    dict(target_modules=r".*\.[kv]_proj$"),
    dict(target_modules="all-linear", exclude_modules=["o_proj"], modules_to_save=["lm_head"]),
    dict(target_modules=["q_proj"], layers_to_transform=[0, 2], layers_pattern="layers"),
    dict(target_modules=["q_proj", "embed_tokens"], rank_pattern={r"layers\.[01]\..*": 4, "q_proj": 2}),
    dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], use_dora=True),
    dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 2]}, init_lora_weights="pissa"),
])
def test_sound_config_has_no_problem_and_counts_as_peft(llama, options):
    config = LoraConfig(**options)
    report = targets.check(llama, config)
    if config.init_lora_weights is True:
        assert by_us(llama, config) == by_peft(llama, config)
    assert report.trainable >= sum(report.per_path.values()) > 0


SMALL = ["llama", "gpt2", "mixtral", "phi3", "gpt_oss", "bamba"]
JUNK = ["query", "w1", "gate", "norm", "", "q_proj.weight", "all-linear", ".*q_proj", "0", "self_attn", "lm_head",
        "embed_tokens", "experts.gate_up_proj", "(", "[a"]


@st.composite
def any_config(draw):
    """A model type, and a config of names that exist, nearly exist or do not, in every form PEFT takes."""
    model_type = draw(st.sampled_from(SMALL))
    paths = [path for path, _ in built(model_type).named_modules() if path]
    ending = st.tuples(st.sampled_from(paths), st.integers(1, 3)).map(lambda p: ".".join(p[0].split(".")[-p[1]:]))
    name = ending | st.sampled_from(JUNK)
    form = st.sampled_from([r".*\.({}|{})", r".*{}|.*\.{}", r".*\.(0|9)\..*({}|(x|{}))", "{}{}", "all-linear"])
    regex = st.tuples(form, name, name).map(lambda t: t[0].format(*t[1:]))
    options = {
        "target_modules": draw(st.lists(name, max_size=4) | regex | st.none()),
        "exclude_modules": draw(st.none() | st.lists(name, max_size=2) | regex),
        "layers_to_transform": draw(st.none() | st.sampled_from([0, [0, 99], [], [1]])),
        "modules_to_save": draw(st.none() | st.lists(name, max_size=1)),
        "rank_pattern": draw(st.dictionaries(name, st.integers(1, 4), max_size=2)),
        "use_dora": draw(st.booleans()),
        "target_parameters": draw(st.none() | st.lists(name, max_size=1)),
    }
    return model_type, options


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(any_config())
def test_any_config_ends_as_with_peft(given):
    model_type, options = given
    try:
        config = LoraConfig(r=2, **copy.deepcopy(options))
    except ValueError:  # PEFT refuses it before there is a model
        return
    model = built(model_type)
    assert by_us(model, config) == by_peft(model, config)


@pytest.mark.parametrize("init", [
    "PISSA", "pissa_niter_x", "pissa_niter_", "pissax", "evax", "EVA", "corda", "cordax", "olorax", "lora_gax", "gauss",
    "true", "loftqx", 1, "pissa", "pissa_niter_4", "eva", "olora", "OLoRA", "lora_ga", "orthogonal", "mica", "Gaussian",
    None, False,
])
@pytest.mark.parametrize("r", [3, 64])  # with 64 above the size of the weights
def test_initialisations_are_taken_and_refused_as_by_peft(llama, init, r):
    config = LoraConfig(r=r, target_modules=["q_proj", "k_proj"], init_lora_weights=init)
    real = LlamaForCausalLM(llama.config)
    assert by_us(real, config) == by_peft(real, config)


@pytest.mark.parametrize("pattern", [
    r".*q_proj[\])]?", "(?x) .*q_proj  # a ) comment", "(?x) .* ( q | v ) _proj # ( a\n", r".*[]|]?q_proj",
    r".*q_proj(?#a ( b)", r"(?i).*\.(Q|v)_proj", r"(.*\.)?(?(1)q|v)_proj", r".*(?x: q | v )_proj", r".*[^\]]_proj",
    r"(?P<a>.*)\.(?P<b>[qv]_proj)", r"(?>.*\.|)q_proj|.*[q\]v]_proj", r".*\.(q|v){1,2}_proj",
    r"(.*)\.[0-9]\.(\w+\.)(q|k)_proj",
])
def test_expressions_are_read_as_by_peft(llama, pattern):
    real = LlamaForCausalLM(llama.config)
    for options in (dict(target_modules=pattern), dict(target_modules="all-linear", exclude_modules=pattern)):
        assert by_us(real, LoraConfig(**options)) == by_peft(real, LoraConfig(**options))
    assert targets.inspect(llama, LoraConfig(target_modules=pattern)).problems == ()


def test_a_verbose_expression_has_its_dead_alternatives_named(llama):
    assert "the alternative 'w' of" in problems(llama, target_modules="(?x) .*\\. ( q | w ) _proj  # ) | x")


@pytest.mark.parametrize("pattern", ["layers", "(layers)", "lay.*s", ["h", "layers"]])
def test_layers_are_numbered_as_by_peft(llama, pattern):
    real, config = LlamaForCausalLM(llama.config), LoraConfig(target_modules=["q_proj"], layers_to_transform=[0, 2],
                                                              layers_pattern=pattern)
    assert by_us(real, config) == by_peft(real, config)
    assert all("'h'" in text for text in targets.inspect(real, config).problems)
    config.layers_to_transform = []  # PEFT 0.19 checks it where the config is made
    assert len(targets.inspect(real, config).problems) == (2 if isinstance(pattern, list) else 1)


def test_what_is_shared_counts_once():
    tied = LlamaForCausalLM(LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                        num_attention_heads=4, tie_word_embeddings=True))
    both = LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    report = targets.inspect(tied, both)
    assert report.per_path == {"model.embed_tokens": 2 * (99 + 32), "lm_head": 0}
    report = targets.inspect(tied, LoraConfig(r=2, target_modules=["lm_head"], trainable_token_indices=[1, 2]))
    assert (report.per_path, report.trainable) == ({"lm_head": 2 * (99 + 32)}, 2 * (99 + 32) + 2 * 32)


def test_an_exclusion_of_experts_beside_their_parameters_is_reported():
    config = LoraConfig(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"],
                        exclude_modules=["mlp.experts"])
    [problem] = targets.inspect(tiny("mixtral"), config).problems
    assert "exclude_modules: 'mlp.experts' is a whole block, and 2 adapted layers in it train all the same" in problem


@pytest.mark.parametrize("options", [
    dict(layers_to_transform=1.0), dict(layers_to_transform="1"), dict(lora_alpha="16"), dict(lora_dropout=1.5),
    dict(r=0), dict(target_modules=3), dict(modules_to_save=[3]), dict(rank_pattern={"q_proj": None}),
    dict(exclude_modules=3), dict(layers_to_transform=[0], layers_pattern="(?P<idx>layers)"),
    dict(trainable_token_indices=[99]),
])
def test_odd_values_end_as_with_peft(llama, options):
    real, config = LlamaForCausalLM(llama.config), LoraConfig(**dict(target_modules=["q_proj"]) | options)
    assert by_us(real, config) == by_peft(real, config)


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_the_fuzz_finds_no_difference():
    found = targets_fuzz.fuzz(60, seed=7)
    assert found["differences"] == [] and found["accepted"] > 10 and found["refused"] > 10


def test_broken_expression_is_named(llama):
    assert "is no regular expression: missing )" in problems(llama, target_modules="(q_proj")
    assert "exclude_modules: '[a'" in problems(llama, target_modules=["q_proj"], exclude_modules="[a")


def test_legacy_names_of_experts_are_what_peft_makes_of_them():
    mixtral = tiny("mixtral")
    config = LoraConfig(r=2, target_modules=["q_proj", "w1", "w2", "w3", "w4"])
    report = targets.inspect(mixtral, config)
    assert by_us(mixtral, config) == by_peft(mixtral, config)
    assert len(report.parameters) > 0
    chosen = LoraConfig(r=2, target_modules=["q_proj", "w1", "w2", "w3"], layers_to_transform=[1])
    assert targets.inspect(mixtral, chosen).problems == ()
    assert [p for p in report.problems] == [p for p in report.problems if "'w4'" in p] != []


def test_notes_tell_what_is_easy_to_overlook(llama):
    def notes(model, **options):
        return " / ".join(targets.check(model, LoraConfig(**options)).notes)

    assert "experts.gate_up_proj" in notes(tiny("qwen3_moe"), target_modules=["q_proj"])
    assert "input_layernorm" in notes(llama, target_modules=["q_proj"], modules_to_save=["norm"])
    assert "all layers" in notes(llama, target_modules=["q_proj"], layers_to_transform=[])
    assert "the others of" in notes(llama, target_modules=r".*(q_proj|attn\.q_proj)")
    every = LoraConfig(target_modules=["q_proj"], layers_to_transform=[])
    assert "\n- note: layers_to" in str(targets.check(llama, every))


def test_biases_that_train_are_no_problem():
    gpt2 = tiny("gpt2")
    assert problems(gpt2, target_modules=["c_attn"], bias="lora_only") == ""
    assert problems(gpt2, target_modules=["lm_head"], bias="all") == ""
    assert "the adapted layers have no bias" in problems(gpt2, target_modules=["lm_head"], bias="lora_only")


def test_looking_changes_neither_model_nor_config_nor_random_numbers():
    model = tiny("llama").train()
    model.gradient_checkpointing_enable()
    config = LoraConfig(target_modules="all-linear", layer_replication=[(0, 2), (1, 2)], task_type="CAUSAL_LM")
    before = {name: (id(p), p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    settings, asked, seed = model.config.to_dict(), copy.deepcopy(vars(config)), torch.random.get_rng_state()
    hooks = len(model.get_input_embeddings()._forward_hooks)
    assert targets.check(model, config).trainable > 0
    for name, p in model.named_parameters():
        assert (id(p), p.requires_grad) == before[name][:2] and torch.equal(p, before[name][2])
    assert (model.config.to_dict(), vars(config)) == (settings, asked)
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert len(model.get_input_embeddings()._forward_hooks) == hooks and model.training


@pytest.mark.parametrize("precision, kind", [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
def test_quantised_model_is_read_too(precision, kind, tmp_path):
    for part in pocket.load():
        part.save_pretrained(tmp_path)
    model, _ = load_base(str(tmp_path), precision)
    assert {g.kind for g in targets.groups(model)} == {kind, "Linear"}
    config = LoraConfig(target_modules=["q_proj", "v_proj"])
    assert targets.check(model, config).trainable == get_peft_model(model, config).get_nb_trainable_parameters()[0]


def test_adapted_model_and_other_configs_are_refused(llama):
    from peft import IA3Config

    adapted = get_peft_model(copy.deepcopy(llama), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(LabError, match="before get_peft_model"):
        targets.check(adapted, LoraConfig())
    with pytest.raises(LabError, match="Expected a LoraConfig, found IA3Config"):
        targets.check(llama, IA3Config())


def test_groups_show_names_shapes_and_counts(llama):
    rows = {g.where: (g.kind, g.shape, len(g.paths)) for g in targets.groups(llama)}
    assert rows["model.layers.*.self_attn.k_proj"] == ("Linear", (16, 32), 3)
    assert rows["lm_head"] == ("Linear", (99, 32), 1)
    gpt2 = {g.name: (g.kind, g.shape) for g in targets.groups(tiny("gpt2"))}
    assert gpt2["c_attn"] == ("Conv1D", (192, 64))
    assert any(g.kind == "Parameter" and len(g.shape) == 3 for g in targets.groups(tiny("mixtral")))
