"""What `memory.plan` says of trainings whose peak of GPU memory has been published; nothing is trained.

    python benchmarks/published_peaks.py

Reads published_peaks.toml and writes planned / published to results/published_peaks.json, and `reserve`: the largest
part by which a plan fell short, for 16-bit and for 4-bit bases, which `fits` keeps free (`RESERVE` in the planner). A
figure in whole GB counts half a GB less there: a published 9 may have been 8.5. `with_another_copy` is the ratio with
one more float32 copy of all logits, which those with 4-bit bases seem to have had; today's code does not keep it.
"""

import json
import time
import tomllib
from pathlib import Path

import recipe
import transformers
from lora_lab import memory
from peft import LoraConfig

HERE = Path(__file__).resolve().parent
TABLE = tomllib.loads((HERE / "published_peaks.toml").read_text())
BITS = {"bfloat16": "16-bit", "nf4": "4-bit"}


def config_of(name: str):
    model = TABLE["models"][name]
    return getattr(transformers, model["class"])(**model["config"], dtype="bfloat16")


def planned(model, plan: dict) -> memory.Plan:
    plan = dict(plan)
    lora = LoraConfig(r=plan.pop("r"), lora_alpha=16, target_modules=plan.pop("targets", "all-linear"),
                      lora_dropout=plan.pop("lora_dropout", 0.0), task_type="CAUSAL_LM")
    return memory.plan(model, lora, **plan)


def main():
    rows = []
    for peak in TABLE["peaks"]:
        config, source, started = config_of(peak["model"]), TABLE["sources"][peak["source"]], time.perf_counter()
        plan = planned(config, peak["plan"])
        row = {"id": peak["id"], "bits": BITS[peak["plan"]["precision"]], "gb": peak["gb"],
               "planned_gb": round(plan.total_bytes / 1e9, 2), "seconds": round(time.perf_counter() - started, 1),
               "ratio": round(plan.total_bytes / 1e9 / peak["gb"], 3), "parts": plan.parts()}
        if "another_copy" in source:
            copy = 4 * peak["plan"]["seq_len"] * peak["plan"].get("batch_size", 1) * config.vocab_size
            row["with_another_copy"] = round((plan.total_bytes + copy) / 1e9 / peak["gb"], 3)
        row["short"] = round(1 - plan.total_bytes / 1e9 / (peak["gb"] - source["rounding_gb"] / 2), 3)
        rows.append(row)
        print({name: value for name, value in row.items() if name != "parts"}, flush=True)
    reserve = {bits: round(max(row["short"] for row in rows if row["bits"] == bits), 2) for bits in BITS.values()}
    print(json.dumps(reserve))
    recipe.write_results("published_peaks", {"reserve": reserve, "rows": rows})


if __name__ == "__main__":
    main()
