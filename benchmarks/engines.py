"""One training in every engine of Lesson 7: do their losses agree, step by step?

    pip install deepspeed                # where you want its rows; `make bench` installs TRL alone
    python benchmarks/engines.py

The lesson's own cells are run, so that its programs are what is compared: the notebook, `train.py` under torchrun, the
recipe under accelerate (DDP and FSDP), TRL's SFTTrainer where it is installed. Added here: the recipe under torchrun,
TRL on one process and under accelerate, DeepSpeed's ZeRO stages 2 and 3. Two processes on the CPU, over gloo.
"""

import argparse
import contextlib
import json
import tempfile
from importlib import metadata, util
from pathlib import Path

import recipe
import twins

LESSON = Path(__file__).parents[1] / "notebooks/07_past_one_gpu.py"
LEFT_OUT = (  # what trains nothing that is compared
    "quiz(", "progress()", "distributed.plan", "machines = [", "killed", "FlopCounterMode(", "sending.py", "measured",
    "nf4", "shard.py", 'found["LoRA"]', "weights + trained", "fleet.items()", "NETWORKS", "by_mode", "except LabError",
    "models.load_to_shard", "alone = {", 'alone["', "per_step", "Linear4bit(", "find_spec(")
SAME = 1e-4


def compared() -> dict[str, list[float]]:
    """Run the lesson's trainings and the others in the working folder; returns the losses of each engine."""
    names = {"compare": lambda *_: None, "__name__": "lesson"}
    for source in twins.cells(LESSON):
        if not any(words in source for words in LEFT_OUT):
            exec(source.replace("batches, compare,", "batches,"), names)
    losses, folder, settings = names["losses"], names["FLEET"], names["SETTINGS"]
    torchrun = "torchrun --standalone --nproc-per-node 2 "

    def run(engine: str, line: str, output: str, **changes) -> None:
        (folder / "settings.json").write_text(json.dumps(settings | changes))
        try:
            names["follow"](names["start"](line))
        except AssertionError:  # DeepSpeed's threads may abort a program that has done its work
            if len(names["losses_in"](output)) < settings["max_steps"]:
                raise
            print(f"{engine}: the program ended with an error after its last step")
        losses[engine] = names["losses_in"](output)

    names["write"]("torchrun_recipe")
    run("recipe, torchrun", f"{torchrun}-m lora_lab.finetune runs/fleet/torchrun_recipe.yaml", "torchrun_recipe")
    model, words = names["pocket"].load()
    model.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    if util.find_spec("trl"):
        run("TRL, torchrun", f"{torchrun}runs/fleet/sft.py runs/fleet/trl2 4", "trl2")
        run("TRL, 1 process", "python runs/fleet/sft.py runs/fleet/trl1 8", "trl1")
        run("TRL, accelerate", f"{names['LAUNCH']}cpu2.yaml runs/fleet/sft.py runs/fleet/trl_accelerate 4",
            "trl_accelerate")
    if util.find_spec("deepspeed"):
        names["QUIET"]["DS_ACCELERATOR"] = "cpu"
        for stage in (2, 3):
            (folder / "zero.json").write_text(json.dumps(names["zero3"] | {"zero_optimization": {"stage": stage}}))
            run(f"DeepSpeed, ZeRO {stage}", f"{torchrun}runs/fleet/train.py runs/fleet/zero{stage} 4", f"zero{stage}",
                deepspeed="runs/fleet/zero.json")
    return losses


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        losses = compared()
    known = losses["notebook"]
    rows = {engine: {"worst": max(abs(a - b) for a, b in zip(found, known, strict=True)), "losses": found}
            for engine, found in losses.items()}
    for engine, row in rows.items():
        print(f"{engine:22} {row['worst']:.1e} {'the same' if row['worst'] < SAME else 'another training'}")
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate", "trl",
                                                          "deepspeed") if util.find_spec(name)}
    recipe.write_results("engines", {"versions": versions, "engines": rows})


if __name__ == "__main__":
    main()
