"""`lora_lab.targets` against PEFT: thousands of configs, each also with one entry left out at a time.

    python benchmarks/targets_fuzz.py [cases] [seed]

PEFT on real weights is the judge, through `get_peft_model` alone. A config that it refuses must be refused with the
same error, one that it accepts must give the same layers, parameters and count. Then every entry is left out in turn:
where PEFT then makes the same model, the report must name the entry, and where it does not, no problem may.
"""

import copy
import json
import math
import random
import sys
import time
import warnings
from collections import Counter
from functools import cache

import torch
from lora_lab import targets
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

LLAMA = dict(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2)
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True, attention_bias=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=32)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**LLAMA | dict(num_hidden_layers=2, num_local_experts=2))),
    "t5": lambda: T5ForConditionalGeneration(T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2,
                                                      num_heads=4)),
}
JUNK = ["query", "w1", "norm", "q_proj.weight", "all-linear", ".*q_proj", "0", "self_attn", "mlp", "layers", "act_fn",
        "lm_head", "embed_tokens", "mlp.experts", "experts.gate_up_proj", "(", "[a", "no_such", "proj"]
FORMS = [r".*\.({}|{})", r".*{}|.*\.{}", r".*\.(0|9)\..*({}|(x|{}))", "{}{}", r".*{}[\])]?",
         "(?x) .* {} # a ) and | {}", r".*\.[qkvo]_proj",
         r"(?i).*\.(?:{}|{})", r"(?P<one>.*)\.(?P<two>{}|{})", r"(.*)\.[0-9]\.(.*\.)?({}|{})$", r".*(?<!x)(?=.)({}|{})",
         r"(?>.*\.|){}|{}", r".*[]|]?{}(?#a comment ()|x{}", r"(.*\.)?(?(1){}|{})", r".*(?x: {} | {} )",
         r".*\.(c_attn|[a-z_]+_proj)", r".*([^\]]){}|({}){{1,2}}"]
INITS = [True] * 20 + [False, None, "", 0, 1, "gaussian", "Gaussian", "gauss", "eva", "evax", "EVA", "olora", "OLoRA",
                      "olorax", "pissa", "PISSA", "pissa_niter_4", "pissa_niter_x", "pissa_niter_", "pissax", "corda",
                      "cordax", "lora_ga", "lora_gax", "orthogonal", "Orthogonal", "mica", "MiCA", "loftqx", "true"]
# What a field holds without its last entry; [-1] and "(?!)" fit no layer, where an empty list would mean all of them.
EMPTY = {"target_modules": [], "exclude_modules": None, "target_parameters": [], "modules_to_save": None,
         "layers_to_transform": [-1], "layers_pattern": ["(?!)"]}


@cache
def model(name):
    """Return one of MODELS, made once."""
    torch.manual_seed(0)
    return MODELS[name]()


def draw(rng: random.Random) -> tuple[str, dict]:
    """Return the name of a model, and options for a LoraConfig: names that exist, nearly exist or do not."""
    chosen = rng.choice(list(MODELS))
    held = [n for n, p in model(chosen).named_parameters() if p.ndim > 1]
    paths = [n for n, _ in model(chosen).named_modules() if n]
    linear = targets.linear_paths(model(chosen))

    def ending(names):
        parts = rng.choice(names).split(".")
        return ".".join(parts[-rng.randint(1, min(3, len(parts))) :])

    def name(junk=0.15):
        return rng.choice(JUNK) if rng.random() < junk else ending(linear if rng.random() < 0.8 else paths)

    def names(most, junk=0.15):
        return [name(junk) for _ in range(rng.randint(1, most))]

    def regex():
        return rng.choice(FORMS).format(name(0.1).replace(".", r"\."), name(0.3).replace(".", r"\."))

    options = {"r": rng.choice([2, 2, 2, 3, 64]), "target_modules": rng.choice(
        [lambda: names(4, 0.1)] * 6 + [regex] * 4 + [lambda: "all-linear", lambda: None, lambda: [], lambda: name()])()}
    for field, share, value in (
        ("exclude_modules", 0.4, lambda: regex() if rng.random() < 0.4 else names(2)),
        ("layers_to_transform", 0.2, lambda: rng.choice([0, 1, 9, [0], [0, 99], [], [1, 1], (0, 1), "1", 1.0])),
        ("layers_pattern", 0.15, lambda: rng.choice(["layers", "h", "(layers)", "block", ["layers", "h"], [],
                                                     ["x", "block"], "(?P<idx>h)", "(", "lay.*s"])),
        ("modules_to_save", 0.15, lambda: names(2) if rng.random() < 0.95 else "lm_head"),
        ("rank_pattern", 0.25, lambda: {n: rng.choice([2, 4]) for n in names(3)}),
        ("alpha_pattern", 0.25, lambda: {n: rng.choice([8, 16, 0]) for n in names(3)}),
        ("target_parameters", 0.12, lambda: [ending(held), *rng.choice([[], ["no.x"], [ending(held)]])]),
        ("trainable_token_indices", 0.1, lambda: rng.choice([[1, 2], [99], [-1], [3, 3], [], {"embed_tokens": [1]},
                                                             {"lm_head": [0, 5]}, {"no_such": [1]}])),
        ("lora_alpha", 0.4, lambda: rng.choice([16, 16, 16, 1, 0, -4, float("nan"), float("inf")])),
        ("lora_dropout", 0.2, lambda: rng.choice([0.1, 0.1, 0.5, 1.0, -0.1, 1.5])),
        ("init_lora_weights", 0.4, lambda: rng.choice(INITS)),
        ("use_rslora", 0.2, lambda: True), ("use_dora", 0.1, lambda: True), ("ensure_weight_tying", 0.1, lambda: True),
        ("bias", 0.2, lambda: rng.choice(["all", "lora_only"])), ("lora_bias", 0.05, lambda: True),
        ("layer_replication", 0.03, lambda: [(0, 2), (1, 2)]), ("task_type", 0.3, lambda: "CAUSAL_LM"),
    ):
        if rng.random() < share:
            options[field] = value()
    return chosen, options


def by_peft(name: str, config: LoraConfig):
    """Return what PEFT makes of a copy of the model; an error's type if it refuses."""
    try:
        return get_peft_model(copy.deepcopy(model(name)), copy.deepcopy(config))
    except Exception as error:  # whatever PEFT has against it is the answer
        return type(error)


def made(adapted) -> dict:
    """Return what can be seen of a config in `adapted`: weights, what trains, ranks, scalings, dropout."""
    if isinstance(adapted, type):
        return {"refused": adapted}
    seen = {n: (tuple(p.shape), p.requires_grad) for n, p in adapted.named_parameters()}
    return seen | {n: str((m.r, m.lora_alpha, m.scaling, m.lora_dropout)) for n, m in adapted.named_modules()
                   if isinstance(m, LoraLayer)}


def entries(config: LoraConfig):
    """Yield every entry of every field that lists some: (field, entry, what the field holds without it)."""
    for field, empty in EMPTY.items():
        value = getattr(config, field)
        if value is None or value == [] or isinstance(value, str) and field == "target_modules":
            continue
        whole = list(value) if isinstance(value, (list, set, tuple)) else [value]
        for at, entry in enumerate(whole):
            yield field, entry, whole[:at] + whole[at + 1 :] or empty
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, field):
            yield field, key, {k: v for k, v in getattr(config, field).items() if k != key}


def judge(name: str, options: dict) -> tuple[str, list[str]]:
    """Return how PEFT takes a config ("invalid", "refused", "accepted"), and every way in which the report differs."""
    try:
        config = LoraConfig(**copy.deepcopy(options))
    except Exception:  # PEFT refuses it before there is a model
        return "invalid", []
    real = by_peft(name, config)
    try:
        report = targets.inspect(model(name), config)
    except Exception as error:
        return "refused" if isinstance(real, type) else "accepted", [f"crash: {error!r}"]
    if isinstance(real, type):
        return "refused", [] if report.refused.partition(":")[0] == real.__name__ else [
            f"PEFT raises {real.__name__}, the report says {report.refused or 'accepted'}"]
    tuner, wrong = real.base_model, []
    theirs = (set(tuner.targeted_module_names), set(tuner.targeted_parameter_names),
              real.get_nb_trainable_parameters()[0])
    if (ours := (set(report.modules), set(report.parameters), report.trainable)) != theirs:
        wrong.append(f"PEFT adapts {theirs}, the report says {report.refused or ours}")
    if sum(report.per_path.values()) > report.trainable:
        wrong.append(f"per_path counts {sum(report.per_path.values())} of {report.trainable}")
    said, with_all = "\n".join(report.problems + report.notes), made(real)
    for field, entry, rest in [] if isinstance(config.modules_to_save, str) else entries(config):
        without = copy.deepcopy(config)
        setattr(without, field, rest)
        idle = made(by_peft(name, without)) == with_all
        if idle and repr(entry) not in said and f" {entry}" not in said:
            wrong.append(f"{field}: {entry!r} changes nothing and is not reported")
        blamed = [p for p in report.problems if p.startswith((f"{field}: {entry!r} ", f"{field}: layer {entry} "))]
        if not idle and [p for p in blamed if " is a whole block" not in p and " makes the " not in p]:
            wrong.append(f"{field}: {entry!r} does something, and the report says {blamed}")
    alphas = {str(m.scaling["default"]) for m in real.modules() if isinstance(m, LoraLayer)}
    if any(not 0 < float(alpha) < math.inf for alpha in alphas) and "alpha" not in said:
        wrong.append(f"scalings {alphas} are not reported")
    return "accepted", wrong


def fuzz(cases: int, seed: int) -> dict:
    """Return how many of `cases` configs PEFT accepts and refuses, and every difference found."""
    rng, kinds, differences = random.Random(seed), Counter(), []
    for _ in range(cases):
        name, options = draw(rng)
        kind, wrong = judge(name, options)
        kinds[kind] += 1
        differences += [{"model": name, "options": repr(options), "difference": text} for text in wrong]
    return {"cases": cases, "seed": seed, **kinds, "differences": differences}


if __name__ == "__main__":
    import recipe

    warnings.simplefilter("ignore")
    started, (cases, seed) = time.monotonic(), (*map(int, sys.argv[1:]), *(3000, 0)[len(sys.argv) - 1 :])
    found = fuzz(cases, seed)
    print(json.dumps(found, indent=1))
    recipe.write_results("targets_fuzz", found | {"minutes": round((time.monotonic() - started) / 60, 1)})
