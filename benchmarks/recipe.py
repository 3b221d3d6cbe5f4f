"""Lesson 0's recipe, for the scripts beside it. A test keeps it equal to the notebook."""

import contextlib
import json
import os
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from lora_lab import batches, load_base, tasks
from peft import LoraConfig, get_peft_model
from transformers import set_seed

STEPS, BATCH = 60, 8
LORA = dict(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
SCHEDULE = dict(max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=2e-3, warmup_steps=3)
SAMPLING = dict(train_sampling_strategy="sequential")
QUIET = dict(
    save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no", output_dir="runs/benchmark"
)


def adapted_base(seed: int):
    """A fresh base with a fresh adapter, and its tokenizer."""
    set_seed(seed)
    model, tokenizer = quietly(load_base)
    return get_peft_model(model, LoraConfig(**LORA)), tokenizer


def quietly(function):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return function()


def training_rows(tokenizer, seed: int) -> list[dict]:
    rows = batches.encode(tasks.commands("train", STEPS * BATCH, seed), tokenizer)
    return batches.similar_lengths(rows, BATCH, seed)


def matmul_peak(size: int = 2048, repeats: int = 8) -> float:
    """The fastest float32 matrix product this machine does, in FLOP/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def machine() -> dict:
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "cpu": cpu.get("cpu_name") or platform.processor() or platform.machine(),
        "avx512": bool(cpu.get("avx512_f")), "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def write_results(name: str, results: dict) -> None:
    file = Path(__file__).parent / "results" / f"{name}.json"
    file.write_text(json.dumps({"date": date.today().isoformat(), "machine": machine(), **results}, indent=1) + "\n")
    print(f"written to benchmarks/results/{file.name}")
