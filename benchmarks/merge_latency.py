"""Seconds of base, unmerged and merged model in turns: one new token, and a prompt of 128 tokens.

    python benchmarks/merge_latency.py

Each round times all three on the same input and gives one ratio to the base; who comes first rotates.
"""

import copy
import itertools
import statistics
import time

import recipe
import torch
from lora_lab import load_base
from peft import LoraConfig, get_peft_model

ROUNDS, TOKENS = 60, 128
ADAPTERS = {
    "8, q and v": dict(r=8, target_modules=["q_proj", "v_proj"]),
    "8, all linear": dict(r=8, target_modules="all-linear"),
    "16, all linear": dict(r=16, target_modules="all-linear"),
    "64, all linear": dict(r=64, target_modules="all-linear"),
}


@torch.no_grad()
def seconds(model, prompt) -> dict[str, float]:
    clock = [now(model)]
    past = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    clock.append(now(model))
    model(prompt[:, :1], past_key_values=past, use_cache=True)
    clock.append(now(model))
    return {"one token": clock[2] - clock[1], "128 tokens": clock[1] - clock[0]}


def now(model) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main():
    base, _ = load_base(quiet=True)
    prompt = torch.randint(1000, 2000, (1, TOKENS), device=base.device)
    results = {}
    for adapter, settings in ADAPTERS.items():
        unmerged = get_peft_model(copy.deepcopy(base), LoraConfig(**settings)).eval()
        models = {"base": base, "unmerged": unmerged, "merged": copy.deepcopy(unmerged).merge_and_unload()}
        for model in models.values():
            seconds(model, prompt)
        rounds = []
        for _, order in zip(range(ROUNDS), itertools.cycle(itertools.permutations(models))):
            rounds.append({name: seconds(models[name], prompt) for name in order})
        results[adapter] = {
            f"{name}, {part}": {
                "median_ratio_to_base": statistics.median(ratios := [r[name][part] / r["base"][part] for r in rounds]),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
            }
            for part in ("one token", "128 tokens") for name in ("unmerged", "merged")
        }
        results[adapter]["base_milliseconds"] = {
            part: 1000 * statistics.median(r["base"][part] for r in rounds) for part in ("one token", "128 tokens")
        }
        print(adapter, {k: round(v["median_ratio_to_base"], 3) for k, v in results[adapter].items() if "," in k})
    recipe.write_results("merge_latency", {"rounds": ROUNDS, "device": str(base.device), "adapters": results})


if __name__ == "__main__":
    main()
