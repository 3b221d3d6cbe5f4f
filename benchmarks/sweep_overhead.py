"""Pocket-model trainings a minute, and what `lora_lab.sweep` adds to the bare loops: in turns, in one run.

    make bench        (or: python benchmarks/sweep_overhead.py)

A run is what lesson 5 sweeps: rank 8, 40 steps of 16 commands, scored on 200. The sweep writes to a fresh folder.
"""

import copy
import itertools
import statistics
import tempfile
import time

import recipe
import torch
from lora_lab import pocket, scoring, smart_home
from lora_lab.sweep import sweep
from peft import LoraConfig, get_peft_model

ROUNDS, RATES, SEEDS = 15, (0.005, 0.02), (0, 1)


def main():
    small, words = pocket.load()
    data = pocket.dialect(smart_home.commands("train", n=1500, seed=0))
    held_out = pocket.dialect(smart_home.commands("validation combinations", n=200, seed=0))
    batches = {seed: list(itertools.islice(pocket.stream(data, 16, seed), 40)) for seed in SEEDS}

    def train(lr, seed=0):
        torch.manual_seed(seed)
        model = get_peft_model(copy.deepcopy(small), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, fused=True)
        model.train()
        for step, batch in enumerate(batches[seed]):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / 40)
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": scoring.quick_score(model, words, held_out).loss}

    def bare():
        for lr, seed in itertools.product(RATES, SEEDS):
            train(lr, seed)

    def swept():
        with tempfile.TemporaryDirectory() as folder:
            sweep(train, {"lr": RATES}, SEEDS, folder)

    seconds = {"bare": [], "swept": []}
    bare()  # warm up
    for _ in range(ROUNDS):
        for name, job in (("bare", bare), ("swept", swept)):
            started = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:  # the sweep's own work: runs that train nothing
        started = time.perf_counter()
        sweep(lambda x, seed=0: {"loss": x}, {"x": range(1, 201)}, [0], folder)
        own = (time.perf_counter() - started) / 200
    runs = len(RATES) * len(SEEDS)
    ratios = [with_sweep / alone for alone, with_sweep in zip(*seconds.values())]
    recipe.write_results("sweep_overhead", {
        "rounds": ROUNDS, "runs_in_a_round": runs, "threads": torch.get_num_threads(),
        "runs_per_minute": 60 * runs / statistics.median(seconds["swept"]),
        "sweep_milliseconds_per_run": 1000 * own,
        "seconds_swept_over_bare": {"median": statistics.median(ratios), "all": ratios},
    })


if __name__ == "__main__":
    main()
