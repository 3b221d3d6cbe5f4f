"""Is the merge audit right? Generated deployments, sound and faulty, against brute force over the whole vocabulary.

    python benchmarks/audit_cases.py --seeds 0 1

Each case is a small random model of some architecture, an adapter of some kind, and what was deployed of it. Brute
force puts random texts with every token of the vocabulary to both; the audit sees four short prompts. A false "safe" is
a deployment that computes something else, a false "broken" one that was made without a fault and is equal to rounding.
"""

import argparse
import collections
import copy
import itertools
import random
import tempfile
import warnings
from collections.abc import Callable

import recipe
import torch
import transformers
from lora_lab import merging
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)

TOKENS = 96
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [7, 14]]
SIZES = dict(vocab_size=TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def llama(tied=False, kind="Llama", model="ForCausalLM", **more):
    config = getattr(transformers, f"{kind}Config")(**SIZES | dict(tie_word_embeddings=tied) | more)
    return getattr(transformers, f"{kind}{model}")(config)


ARCHITECTURES = {
    "llama": llama,
    "llama, tied": lambda: llama(tied=True),
    "qwen2, tied": lambda: llama(tied=True, kind="Qwen2"),
    "gemma, tied": lambda: llama(tied=True, kind="Gemma", head_dim=8),
    "mixtral": lambda: llama(kind="Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "gpt2, tied": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)),
    "llama, no head": lambda: llama(model="Model"),
    "llama, classifier": lambda: llama(model="ForSequenceClassification", num_labels=3),
    "bert, no head": lambda: transformers.BertModel(transformers.BertConfig(
        vocab_size=TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64), add_pooling_layer=False),
    "t5, tied": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)),
}
LINEAR = {"llama": ["q_proj", "v_proj", "down_proj"], "qwen2": ["q_proj", "v_proj", "down_proj"],
          "gemma": ["q_proj", "v_proj", "down_proj"], "mixtral": ["q_proj", "v_proj"], "gpt2": ["c_attn", "c_fc"],
          "bert": ["query", "value"], "t5": ["q", "v", "wo"]}
EMBEDDING = {"gpt2": "wte", "bert": "word_embeddings", "t5": "shared"}


def lora(family, **more):
    return LoraConfig(**{"r": 4, "target_modules": LINEAR[family], "fan_in_fan_out": family == "gpt2"} | more)


ADAPTERS: dict[str, Callable] = {
    "lora": lora,
    "lora, rs and patterns": lambda family: lora(family, use_rslora=True, rank_pattern={LINEAR[family][0]: 3}),
    "dora": lambda family: lora(family, use_dora=True),
    "pissa": lambda family: lora(family, init_lora_weights="pissa"),
    "olora": lambda family: lora(family, init_lora_weights="olora"),
    "embedding": lambda family: lora(family, target_modules=[*LINEAR[family], EMBEDDING.get(family, "embed_tokens")]),
    "trained rows": lambda family: lora(family, trainable_token_indices={
        EMBEDDING.get(family, "embed_tokens"): [60, 70, 80]}),
    "rows alone": lambda family: TrainableTokensConfig(
        token_indices=[60, 70, 80], target_modules=[EMBEDDING.get(family, "embed_tokens")]),
    "trained embedding": lambda family: lora(family, modules_to_save=[EMBEDDING.get(family, "embed_tokens")]),
    "trained head": lambda family: lora(family, modules_to_save=["lm_head"]),
    "experts": lambda family: lora(family, target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
    "ia3": lambda family: IA3Config(target_modules=LINEAR[family], feedforward_modules=[]),
    "loha": lambda family: LoHaConfig(r=4, target_modules=LINEAR[family]),
    "oft": lambda family: OFTConfig(target_modules=LINEAR[family][:1], oft_block_size=4, r=0),
    "vera": lambda family: VeraConfig(r=4, target_modules=LINEAR[family][:1]),
}


def adapted(architecture: str, kind: str, seed: int, folder=None):
    """Return the base, and a model on it with an adapter that has been trained, as if; `folder` gets it untrained."""
    torch.manual_seed(seed)
    base = ARCHITECTURES[architecture]().eval()
    model = get_peft_model(copy.deepcopy(base), ADAPTERS[kind](architecture.split(",")[0])).eval()
    if folder:
        start = model.peft_config["default"].init_lora_weights
        model.peft_config["default"].init_lora_weights = True  # as PEFT's guide says
        model.save_pretrained(folder)
        model.peft_config["default"].init_lora_weights = start
    train(model)
    return base, model


@torch.no_grad()
def train(model) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


def merged(model):
    return copy.deepcopy(model).merge_and_unload()


def loaded(folder, like):
    return type(like).from_pretrained(folder, dtype=torch.float32).eval()


# Deployments that are equal to rounding.

def saved(model):
    with tempfile.TemporaryDirectory() as folder:
        merged(model).save_pretrained(folder)
        return loaded(folder, model.get_base_model())


def adapter_again(model):
    return copy.deepcopy(model)


def merged_in_place(model):
    again = copy.deepcopy(model)
    again.merge_adapter()
    return again


def padded(model):
    done = merged(model)
    with torch.random.fork_rng():
        done.resize_token_embeddings(TOKENS + 32)
    return done


def in_16_bits(dtype, held=None):
    return lambda model: merged(model).to(dtype).to(held or dtype)


def combined(how):
    """One adapter of two that are active at once."""
    def deploy(model):
        model.add_adapter("second", model.peft_config["default"])
        model.base_model.set_adapter(["default", "second"])
        train(model)
        again = copy.deepcopy(model)
        again.add_weighted_adapter(["default", "second"], [1.0, 1.0], "both", how, svd_rank=8 if how == "svd" else None)
        again.set_adapter("both")
        return again
    return deploy


SOUND = {
    "merged": merged, "saved and loaded": saved, "adapter again": adapter_again, "merge_adapter": merged_in_place,
    "padded": padded, "two as cat": combined("cat"), "two as svd": combined("svd"),
    "bfloat16": in_16_bits(torch.bfloat16), "float16": in_16_bits(torch.float16),
    "bfloat16 held in float32": in_16_bits(torch.bfloat16, torch.float32), "converted": None,
}


# Deployments with a fault, written into the merged weights.

def states(model):
    """Return the merged model, its weights and those of the base, and the names of those that differ."""
    done = merged(model)
    after, before = ({name: tensor.clone() for name, tensor in one.state_dict().items()}
                     for one in (done, copy.deepcopy(model).unload()))
    first: dict[int, str] = {}  # of tied weights
    names = [name for name, tensor in done.state_dict().items() if first.setdefault(tensor.data_ptr(), name) == name
             and name in before and not torch.equal(after[name], before[name])]
    return done, after, before, names


def spoiled(change):
    def deploy(model):
        done, after, before, names = states(model)
        change(after, before, names)
        with torch.no_grad():
            for name, parameter in done.named_parameters():  # a tied weight once
                parameter.copy_(after[name])
        return done
    return deploy


def never(after, before, names):
    after.update({name: before[name] for name in names})


def half(after, before, names):
    after.update({name: before[name] for name in names[::2]})


def one_layer(after, before, names):
    after[names[-1]] = before[names[-1]]


def times(factor):
    def change(after, before, names):
        after.update({name: before[name] + factor * (after[name] - before[name]) for name in names})
    return change


def other_training(after, before, names):
    for name in names:
        update = (after[name] - before[name]).flatten()
        after[name] = before[name] + update[torch.randperm(len(update))].view_as(after[name])


def lost_row(after, before, names):
    name = next((name for name in names if after[name].dim() == 2), names[0])
    rows = (after[name] != before[name]).flatten(1).any(1).nonzero() if after[name].dim() > 1 else torch.tensor([[0]])
    after[name][rows[-1]] = before[name][rows[-1]]


def another_base(after, before, names):
    after.update({name: tensor * (1 + 0.02 * torch.randn_like(tensor)) for name, tensor in after.items()})


def another_matrix(after, before, names):
    name = next(name for name in reversed(after) if name not in names and after[name].dim() == 2 and "head" not in name)
    after[name] = after[name] * 1.05


def nan(after, before, names):
    after[names[0]][-1] = float("nan")


def settings(model):
    done = merged(model)
    config = copy.deepcopy(done.config)
    if getattr(config, "rope_parameters", None):
        config.rope_parameters = config.rope_parameters | {"rope_theta": 100.0}
    elif hasattr(config, "layer_norm_epsilon") and config.model_type != "t5":
        config.layer_norm_epsilon = 0.1
    elif hasattr(config, "layer_norm_eps"):
        config.layer_norm_eps = 0.1
    else:
        config.relative_attention_max_distance = 24
    other = type(done)(config, **({"add_pooling_layer": False} if config.model_type == "bert" else {})).eval()
    other.load_state_dict(done.state_dict())
    return other


def fewer_layers(model):
    done = merged(model)
    for stack in [module for module in done.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 2]:
        del stack[1]
    for name in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if hasattr(done.config, name):
            setattr(done.config, name, 1)
    return done


FAULTY = {
    "never merged": spoiled(never), "half merged": spoiled(half), "one layer without": spoiled(one_layer),
    "merged twice": spoiled(times(2)), "half the alpha": spoiled(times(0.5)), "other training": spoiled(other_training),
    "a row lost": spoiled(lost_row), "another base": spoiled(another_base), "another matrix": spoiled(another_matrix),
    "NaN": spoiled(nan), "another config": settings, "fewer layers": fewer_layers,
}
DEPLOYED: dict[str, Callable | None] = SOUND | FAULTY


def fits(architecture: str, kind: str, deployed: str) -> bool:
    """Return whether there is such a case."""
    family, headless = architecture.split(",")[0], "no head" in architecture or "classifier" in architecture
    return not (
        kind == "experts" and family != "mixtral"
        or kind == "trained head" and (headless or family == "t5")
        or kind in ("ia3", "oft", "vera", "loha") and family == "gpt2"
        or deployed == "converted" and kind not in ("pissa", "olora")
        or deployed.startswith("two as") and kind not in ("lora", "lora, rs and patterns", "embedding")
        or family == "t5" and kind in ("embedding", "trained rows", "rows alone", "trained embedding")  # three holders
        or family == "t5" and deployed == "fewer layers"  # its blocks hold lists of two, too
        or family == "gpt2" and kind in ("pissa", "olora")
        or kind == "rows alone" and deployed in ("half merged", "one layer without")
    )


def cases(seeds) -> list[tuple[str, str, str, int]]:
    return [(*case, seed) for seed in seeds for case in itertools.product(ARCHITECTURES, ADAPTERS, DEPLOYED)
            if fits(*case)]


def probe() -> list[list[int]]:
    """Twelve texts of 24 tokens, each token in three of them."""
    generator = torch.Generator().manual_seed(0)
    return [row.tolist() for _ in range(3) for row in torch.randperm(TOKENS, generator=generator).view(4, 24)]


@torch.no_grad()
def brute_force(model, deployed, rounded: bool) -> float:
    """Return the largest difference of the first thing both compute, as a share of the largest number there.

    Of `rounded` models the mean of both: rounding sends a token to another expert here and there.
    """
    ids = torch.tensor(probe())
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    if "Classification" in type(deployed).__name__:
        pairs = [(model(ids[i:i + 1])[0], deployed(ids[i:i + 1])[0]) for i in range(len(ids))]
    else:
        pairs = [(model(input_ids=ids, **more)[0], deployed(input_ids=ids, **more)[0])]
    of = torch.mean if rounded else torch.max
    worst = max((of((b[..., :a.shape[-1]].float() - a).abs()) / of(a.abs()) for a, b in pairs), key=float)
    return float("inf") if any(b.isnan().any() for _, b in pairs) else worst.item()


def run(architecture: str, kind: str, deployed: str, seed: int) -> dict:
    """Return the verdict on a case, how far brute force finds the two models apart, and whether the audit is wrong."""
    with warnings.catch_warnings(action="ignore"), tempfile.TemporaryDirectory() as begun:
        base, model = adapted(architecture, kind, seed, begun if deployed == "converted" else None)
        if deployed == "converted":
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder, path_initial_model_for_weight_conversion=begun)
                served = PeftModel.from_pretrained(base, folder).eval()
        else:
            served = DEPLOYED[deployed](model)
        halves = deployed in ("bfloat16", "float16", "bfloat16 held in float32")
        apart = brute_force(model, served, halves)
        audit = merging.audit(model, PROMPTS, deployed=served, max_new_tokens=4)
    equal = ROUNDED if halves else EQUAL
    wrong = "safe" if audit.safe and apart > equal else \
        "broken" if audit.verdict == "broken" and deployed in SOUND and apart <= equal else ""
    return {"case": f"{architecture}; {kind}; {deployed}; {seed}", "verdict": audit.verdict, "apart": apart,
            "wrong": wrong, "said": str(audit)}


EQUAL, ROUNDED = 2e-5, 0.05  # rounding in float32, of the largest number; and in 16 bits, of the mean


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sample", type=int, help="so many of the cases, drawn at random")
    options = parser.parse_args()
    chosen = cases(options.seeds)
    if options.sample:
        chosen = random.Random(0).sample(chosen, options.sample)
    counts, wrong = collections.defaultdict(collections.Counter), []
    for number, case in enumerate(chosen, 1):
        found = run(*case)
        counts[case[2]][found["verdict"]] += 1
        if found["wrong"]:
            wrong.append(found)
            print(number, found["wrong"], found["case"], f"{found['apart']:.2g}", found["said"], sep="\n", flush=True)
    print(len(chosen), "cases,", len(wrong), "wrong")
    recipe.write_results("audit_cases", {
        "cases": len(chosen), "false safe": sum(found["wrong"] == "safe" for found in wrong),
        "false broken": sum(found["wrong"] == "broken" for found in wrong),
        "verdicts": {name: dict(counter) for name, counter in counts.items()}, "wrong": wrong})


if __name__ == "__main__":
    main()
