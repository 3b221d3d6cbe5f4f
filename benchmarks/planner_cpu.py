"""The memory planner against measurement on a CPU: bytes of a step's tensors, and resident memory of the process.

    make bench        (or: python benchmarks/planner_cpu.py)

Every configuration runs in a process of its own: load, adapter, AdamW, two steps on full rows. Resident memory is
its growth over the imports. `int8 folder` is a base that was saved in 8 bits and is loaded from there.
"""

import json
import subprocess
import sys
import tempfile

import recipe
from lora_lab import load_base

ALL, QV = "all-linear", ["q_proj", "v_proj"]
CONFIGS = [  # base, targets, batch, length, checkpointing
    ("float32", ALL, 2, 128, False), ("float32", ALL, 8, 128, False), ("float32", QV, 4, 256, False),
    ("float32", ALL, 8, 128, True), ("int8", ALL, 2, 128, False), ("int8", ALL, 8, 128, False),
    ("int8", ALL, 8, 128, True), ("int8", ALL, 8, 128, "reentrant"), ("int8 folder", ALL, 2, 128, False),
    ("int8 folder", ALL, 8, 128, False), ("int8 folder", ALL, 8, 128, "reentrant"), ("nf4", ALL, 8, 128, False),
    ("nf4", QV, 2, 128, True),
]
JOB = """
import json, sys, torch
from lora_lab import load_base, memory
from peft import LoraConfig, get_peft_model
base, folder, targets, batch_size, seq_len, checkpointing = json.loads(sys.argv[1])
lora = LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
ids = torch.randint(0, 1000, (batch_size, seq_len))
with memory.measure() as process:
    model, _ = load_base(folder) if base == "int8 folder" else load_base(precision=base)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    model = get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
with memory.measure(model) as step:
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
plan = memory.plan(model, lora, None, batch_size, seq_len, "adamw", checkpointing)
print("result", json.dumps({"planned": plan.parts() | {"total_bytes": plan.total_bytes},
    "step_bytes": step.peak_tensor_bytes, "resident_growth_bytes": process.peak_rss_bytes - process.rss_before_bytes}))
"""


def main():
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_base(precision="int8")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for base, targets, batch_size, seq_len, checkpointing in CONFIGS:
            config = json.dumps([base, folder, targets, batch_size, seq_len, checkpointing])
            run = subprocess.run([sys.executable, "-c", JOB, config], capture_output=True, text=True, check=True)
            found = json.loads(run.stdout.split("result")[1])
            planned = found["planned"]
            found = {"base": base, "targets": targets, "batch_size": batch_size, "seq_len": seq_len,
                     "checkpointing": checkpointing} | found
            found["step_ratio"] = (planned["activation_bytes"] + planned["logits_bytes"]) / found["step_bytes"]
            found["resident_ratio"] = found["resident_growth_bytes"] / planned["total_bytes"]
            results.append(found)
            print(f"{base:11} {str(targets):22} {batch_size} x {seq_len}, checkpointing {checkpointing!s:9}: "
                  f"planned {planned['total_bytes'] / 1e6:,.0f} MB; planned step / measured {found['step_ratio']:.3f}; "
                  f"resident growth / planned {found['resident_ratio']:.2f}", flush=True)
    recipe.write_results("planner_cpu", {"runs": results})


if __name__ == "__main__":
    main()
