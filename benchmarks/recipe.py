"""Lesson 0's recipe, for the scripts beside it. A test keeps it equal to the notebook."""

import json
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from lora_lab import batches, load_base, smart_home
from peft import LoraConfig, get_peft_model
from transformers import set_seed

STEPS, BATCH = 60, 8
LORA = dict(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
SCHEDULE = dict(max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=2e-3, warmup_steps=3)
SAMPLING = dict(train_sampling_strategy="sequential")
QUIET = dict(
    save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no", output_dir="runs/benchmark"
)


def adapted_base(seed: int, precision: str | None = None):
    """A fresh base with a fresh adapter, and its tokenizer."""
    set_seed(seed)
    model, tokenizer = load_base(precision=precision, quiet=True)
    return get_peft_model(model, LoraConfig(**LORA)), tokenizer


def tokenizer():
    return load_base(precision="float32", quiet=True)[1]  # its weights stay in their file


def precision(model) -> dict:
    """What a trainer's arguments say about the precision of `model`, as in the lesson."""
    return dict(bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16,
                use_cpu=model.device.type == "cpu")


def training_rows(tokenizer, seed: int) -> list[dict]:
    rows = batches.encode(smart_home.commands("train", STEPS * BATCH, seed), tokenizer)
    return batches.similar_lengths(rows, BATCH, seed)


def matmul_peak(dtype=torch.float32, size: int = 2048, repeats: int = 8) -> float:
    """The fastest matrix product this machine does in `dtype`, in FLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
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
        **{name: bool(cpu.get(name)) for name in ("avx512_f", "avx512_bf16", "amx_bf16")},
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def of_this_cpu(name: str) -> str:
    """A CPU with AMX has a file of its own beside that of the others: their ratios differ."""
    return name + "_amx" * machine()["amx_bf16"]


def write_results(name: str, results: dict) -> None:
    file = Path(__file__).parent / "results" / f"{name}.json"
    file.write_text(json.dumps({"date": date.today().isoformat(), "machine": machine(), **results}, indent=1) + "\n")
    print(f"written to benchmarks/results/{file.name}")
