"""What `memory.plan` says of trainings whose peak of GPU memory has been published; nothing is trained.

    python benchmarks/published_peaks.py

Reads published_peaks.toml and writes planned / published to results/published_peaks.json. `reserve` there is the
largest part by which a plan fell short, for 16-bit and for 4-bit bases: `fits` keeps as much free (`memory.RESERVE`).
A source from before transformers 4.50 is planned a second time with the loss of its time, which copied the logits.
"""

import json
import math
import time
import tomllib
from pathlib import Path

import recipe
import torch
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


def with_old_loss(config):
    """The model of `config` with the loss of transformers before 4.50: logits in float32, then all but the last."""
    model_class = transformers.AutoModelForCausalLM._model_mapping[type(config)]

    def forward(self, labels=None, **inputs):
        output = model_class.forward(self, **inputs)
        if labels is not None:
            logits = output.logits.float()
            output.loss = torch.nn.functional.cross_entropy(
                logits[..., :-1, :].contiguous().view(-1, config.vocab_size), labels[..., 1:].reshape(-1))
        return output

    old = type(model_class.__name__, (model_class,), {"forward": forward})
    with torch.device("meta"):
        return old(config).to(torch.bfloat16)


def main():
    rows = []
    for peak in TABLE["peaks"]:
        config, started = config_of(peak["model"]), time.perf_counter()
        plan = planned(config, peak["plan"])
        row = {"id": peak["id"], "bits": BITS[peak["plan"]["precision"]], "gb": peak["gb"],
               "planned_gb": round(plan.total_bytes / 1e9, 2), "seconds": round(time.perf_counter() - started, 1),
               "ratio": round(plan.total_bytes / 1e9 / peak["gb"], 3), "parts": plan.parts()}
        if TABLE["sources"][peak["source"]].get("old_loss"):
            row["ratio_old_loss"] = round(
                planned(with_old_loss(config), peak["plan"]).total_bytes / 1e9 / peak["gb"], 3)
        rows.append(row)
        print({name: value for name, value in row.items() if name != "parts"}, flush=True)
    reserve = {bits: math.ceil(100 * (1 - min(row["ratio"] for row in rows if row["bits"] == bits))) / 100
               for bits in BITS.values()}
    print(json.dumps(reserve))
    recipe.write_results("published_peaks", {"reserve": reserve, "rows": rows})


if __name__ == "__main__":
    main()
