"""Which modules should get the adapter? Lesson 2's two questions, for several seeds.

    python benchmarks/which_modules.py --seeds 0 1 2

Budget: four choices of modules with about the same number of trainable parameters. Each choice gets
the learning rate, doubled from 1e-3 on, at which the held-out loss of the validation commands stops
falling, found with a seed of its own, and is then scored on test commands. Names: what a misspelt name
costs, at lesson 0's learning rate.
"""

import argparse
import json
import time

import recipe
from lora_lab import batches, load_base, scoring, smart_home
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

STEPS = 30
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
BUDGET = {
    "q and v": dict(target_modules=["q_proj", "v_proj"], r=32),
    "attention": dict(target_modules=ATTENTION, r=16),
    "MLP": dict(target_modules=MLP, r=10),
    "all linear": dict(target_modules="all-linear", r=6),
}
NAMES = {
    "q_proj, v_proj": dict(target_modules=["q_proj", "v_proj"], r=8),
    "query, v_proj": dict(target_modules=["query", "v_proj"], r=8),
    "q_proj, value": dict(target_modules=["q_proj", "value"], r=8),
}
FIRST_RATE = 1e-3
SWEEP_SEED = 100


def train(options: dict, rate: float, seed: int, split: str) -> dict:
    started = time.perf_counter()
    set_seed(seed)
    model, tokenizer = load_base(quiet=True)
    config = recipe.LORA | options | {"lora_alpha": 2 * options["r"]}
    model = get_peft_model(model, LoraConfig(**config))
    rows = batches.encode(smart_home.commands("train", STEPS * recipe.BATCH, seed), tokenizer)
    schedule = recipe.SCHEDULE | {"learning_rate": rate, "max_steps": STEPS}
    trainer = Trainer(
        model=model, data_collator=batches.AnswerCollator(tokenizer),
        train_dataset=batches.similar_lengths(rows, recipe.BATCH, seed),
        args=TrainingArguments(**schedule, **recipe.SAMPLING, **recipe.QUIET, **recipe.precision(model), seed=seed,
                               remove_unused_columns=False),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    result = {"seed": seed, "learning_rate": rate, "trainable": model.get_nb_trainable_parameters()[0]}
    for kind in ("combinations", "phrasings"):
        score = scoring.quick_score(model, tokenizer, smart_home.commands(f"{split} {kind}", 200, seed))
        result[kind], result[f"{kind} loss"] = score.exact, score.loss
    return result | {"seconds": time.perf_counter() - started}


def best_rate(options: dict) -> tuple[float, list[dict]]:
    """Doubles the rate for as long as the held-out loss falls."""
    def held_out(run):
        return run["combinations loss"] + run["phrasings loss"]

    tried = [train(options, FIRST_RATE, SWEEP_SEED, "validation")]
    while tried[-1] is min(tried, key=held_out):
        tried.append(train(options, 2 * tried[-1]["learning_rate"], SWEEP_SEED, "validation"))
    return tried[-2]["learning_rate"], tried


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    results = {"steps": STEPS, "batch": recipe.BATCH, "budget": {}, "names": {}}
    for name, options in BUDGET.items():
        rate, tried = best_rate(options)
        runs = [train(options, rate, seed, "test") for seed in seeds]
        results["budget"][name] = {"options": options, "learning_rate": rate, "sweep": tried, "runs": runs}
        print(name, json.dumps(results["budget"][name]), flush=True)
    for name, options in NAMES.items():
        runs = [train(options, recipe.SCHEDULE["learning_rate"], seed, "test") for seed in seeds]
        results["names"][name] = {"options": options, "runs": runs}
        print(name, json.dumps(results["names"][name]), flush=True)
    recipe.write_results("which_modules", results)


if __name__ == "__main__":
    main()
