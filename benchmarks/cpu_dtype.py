"""float32 beside bfloat16 on this CPU, for all that Lesson 0 computes: decides what `load_base` picks on a CPU.

    python benchmarks/cpu_dtype.py [--seeds 0 1 2]

First the training step by itself: as transformers calls the head, with the head's input made contiguous (as `load_base`
does), and with each decoder layer compiled. Then whole lessons: training, 400 answers, perplexity. The variants take
turns, so that a machine that slows down slows all of them.
"""

import argparse
import os
import statistics
import tempfile
import time

import recipe
import torch
from lora_lab import batches, scoring, smart_home
from transformers import PrinterCallback, Trainer, TrainingArguments

ROUNDS = 9
PRECISIONS = ("float32", "bfloat16")


def prepared(precision: str, variant: str):
    """A model to train, as in Lesson 0; the variants are those of `steps`."""
    model, tokenizer = recipe.adapted_base(0, precision)
    if variant == "as transformers calls it":
        model.get_output_embeddings()._forward_pre_hooks.clear()
    elif variant == "contiguous, compiled layers":
        model.config.use_cache = False
        for layer in model.base_model.model.model.layers:
            layer.compile(dynamic=True)
    return model.train(), tokenizer


def step(model, batch) -> tuple[float, float]:
    """Seconds and loss of a forward and backward pass, in the autocast that the Trainer uses."""
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    seconds = time.perf_counter() - started
    model.zero_grad()
    return seconds, loss.item()


def steps() -> dict:
    found = {}
    for precision in PRECISIONS:
        models = {variant: prepared(precision, variant)[0] for variant in
                  ("as transformers calls it", "contiguous", "contiguous, compiled layers")}
        tokenizer = recipe.tokenizer()
        collate, rows = batches.AnswerCollator(tokenizer), recipe.training_rows(tokenizer, seed=0)
        seconds, losses = {v: [] for v in models}, {v: [] for v in models}
        for turn in range(ROUNDS):
            batch = collate(rows[turn * recipe.BATCH : (turn + 1) * recipe.BATCH])
            for variant, model in models.items():
                taken, loss = step(model, batch)
                seconds[variant].append(taken)
                losses[variant].append(loss)
        usual = statistics.median(seconds["as transformers calls it"][2:])
        for variant in models:
            median = statistics.median(seconds[variant][2:])
            found[f"{precision}, {variant}"] = {
                "seconds": median, "of_the_usual": median / usual, "first_two_seconds": sum(seconds[variant][:2]),
                "largest_relative_loss_difference": max(
                    abs(a - b) / b for a, b in zip(losses[variant], losses["as transformers calls it"]))}
            print(f"{precision}, {variant}", found[f"{precision}, {variant}"], flush=True)
    return found


def lesson(precision: str, seed: int) -> dict:
    """Seconds and results of all that Lesson 0 computes after its loading."""
    model, tokenizer = recipe.adapted_base(seed, precision)
    arguments = TrainingArguments(**recipe.SCHEDULE, **recipe.SAMPLING, **recipe.QUIET, **recipe.precision(model),
                                  seed=seed, remove_unused_columns=False)
    trainer = Trainer(model=model, args=arguments, train_dataset=recipe.training_rows(tokenizer, seed),
                      data_collator=batches.AnswerCollator(tokenizer))
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    trained = time.perf_counter()
    right = 0
    for kind in ("combinations", "phrasings"):
        commands = smart_home.commands(f"test {kind}", 200, seed)
        answers = scoring.generate(model, tokenizer, [c.prompt for c in commands])
        right += round(200 * scoring.score(commands, answers).exact)
    perplexity = scoring.perplexity(model, tokenizer)
    ended = time.perf_counter()
    return {"precision": precision, "seed": seed, "training_s": trained - started, "scoring_s": ended - trained,
            "right_of_400": right, "perplexity": perplexity}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as compiled:  # what an interrupted run left half written would be loaded
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        results = {"steps": steps(), "lessons": []}
    for seed in options.seeds:
        for precision in PRECISIONS:
            results["lessons"].append(lesson(precision, seed))
            print(results["lessons"][-1], flush=True)
    total = {(run["precision"], run["seed"]): run["training_s"] + run["scoring_s"] for run in results["lessons"]}
    results["bfloat16_over_float32"] = statistics.median(
        total["bfloat16", seed] / total["float32", seed] for seed in options.seeds)
    for precision in PRECISIONS:
        right = sum(run["right_of_400"] for run in results["lessons"] if run["precision"] == precision)
        score = scoring.Score(right / (400 * len(options.seeds)), None, 400 * len(options.seeds), 0.0)
        results[f"{precision}_exact_with_interval"] = [score.exact, *score.interval]
    print("lesson, bfloat16 over float32:", results["bfloat16_over_float32"])
    recipe.write_results(recipe.of_this_cpu("cpu_dtype"), results)


if __name__ == "__main__":
    main()
