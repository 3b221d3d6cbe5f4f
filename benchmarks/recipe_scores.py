"""Lesson 0's recipe for several seeds: training seconds, and test scores by greedy generation.

    python benchmarks/recipe_scores.py --seeds 0 1 2

The test commands are drawn with the run's seed, so every run is scored on other ones.
"""

import argparse
import warnings
from dataclasses import asdict

import recipe
from lora_lab import batches, scoring, smart_home
from transformers import PrinterCallback, Trainer, TrainingArguments


def run(seed: int) -> dict:
    model, tokenizer = recipe.adapted_base(seed)
    test = {kind: smart_home.commands(f"test {kind}", 200, seed) for kind in ("combinations", "phrasings")}
    result = {"seed": seed, "base": scores(model, tokenizer, test)}
    result["base_perplexity"] = scoring.perplexity(model, tokenizer)
    rows = recipe.training_rows(tokenizer, seed)
    arguments = TrainingArguments(
        **recipe.SCHEDULE, **recipe.SAMPLING, **recipe.QUIET, **recipe.precision(model), seed=seed,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=batches.AnswerCollator(tokenizer))
    trainer.remove_callback(PrinterCallback)
    result["training_seconds"] = trainer.train().metrics["train_runtime"]
    result["trained"] = scores(model, tokenizer, test)
    result["trained_perplexity"] = scoring.perplexity(model, tokenizer)
    return result


def scores(model, tokenizer, test: dict) -> dict:
    found = {}
    for kind, commands in test.items():
        score = scoring.score(commands, scoring.generate(model, tokenizer, [c.prompt for c in commands]))
        found[kind] = asdict(score) | {"interval": score.interval}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    warnings.filterwarnings("ignore")
    runs = []
    for seed in parser.parse_args().seeds:
        runs.append(run(seed))
        print(runs[-1], flush=True)
    recipe.write_results("recipe_scores", {"runs": runs})


if __name__ == "__main__":
    main()
