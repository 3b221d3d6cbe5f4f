"""float32 beside bfloat16 on this CPU: a training step and greedy generation at the lesson's sizes.

    python benchmarks/cpu_dtype.py

The two take turns, so that a machine that slows down slows both. Decides what `load_base` picks on a CPU.
"""

import contextlib
import os
import statistics
import time

import recipe
import torch
from lora_lab import batches, load_base, scoring, tasks
from peft import LoraConfig, get_peft_model

ROUNDS = 6


def main():
    models = {}
    for precision in ("float32", "bfloat16"):
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            base, tokenizer = load_base(precision=precision)
        models[precision] = get_peft_model(base, LoraConfig(**recipe.LORA))
    collate, rows = batches.AnswerCollator(tokenizer), recipe.training_rows(tokenizer, seed=0)
    texts = [c.text for c in tasks.commands("test combinations", 50)]
    steps, generations = {p: [] for p in models}, {p: [] for p in models}
    for turn in range(ROUNDS + 1):
        batch = collate(rows[turn * recipe.BATCH : (turn + 1) * recipe.BATCH])
        for precision, model in models.items():
            model.train()
            started = time.perf_counter()
            model(**batch).loss.backward()
            steps[precision].append(time.perf_counter() - started)
            model.zero_grad()
        if turn % 3 == 0:
            for precision, model in models.items():
                started = time.perf_counter()
                scoring.answer(model, tokenizer, texts)
                generations[precision].append(time.perf_counter() - started)
    results = {}
    for name, seconds in {"training_step": steps, "generation_of_50": generations}.items():
        medians = {p: statistics.median(s[1:]) for p, s in seconds.items()}  # the first of each warms up
        results[name] = medians | {"bfloat16_over_float32": medians["bfloat16"] / medians["float32"]}
        print(name, results[name])
    results["bf16_instructions"] = {
        name: value for name, value in getattr(torch.cpu, "get_capabilities", dict)().items() if "bf16" in name
    }
    recipe.write_results("cpu_dtype", results)


if __name__ == "__main__":
    main()
