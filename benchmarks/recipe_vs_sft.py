"""Seconds to 90 % exact match: Lesson 0's recipe against trl's SFTTrainer, same LoRA, learning rate and data.

    make bench        (or: python benchmarks/recipe_vs_sft.py --seeds 0 1 2 3 4)

Every variant runs in turn within each seed, so that a machine that slows down slows all of them. The
clock stands still while the score is taken (every 3 steps from step 12 on, on validation combinations). With its
defaults SFTTrainer gets the model as transformers loads it, with its best setting the one of `load_base`.
"""

import argparse
import statistics
import time
import warnings

import recipe
import torch
from lora_lab import batches, scoring, smart_home
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

GOAL, EVERY, FIRST = 0.9, 3, 12


class Clock(TrainerCallback):
    """Training seconds without the scoring; stops the run once the goal is reached."""

    def __init__(self, score):
        self.score, self.seconds, self.steps, self.reached = score, 0.0, 0, None

    def on_step_begin(self, args, state, control, **_):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        self.seconds += time.perf_counter() - self.started
        self.steps += 1
        if self.steps % EVERY == 0 and self.steps >= FIRST and self.score() >= GOAL:
            self.reached = self.seconds
            control.should_training_stop = True


def lesson(model, tokenizer, seed, sampling=recipe.SAMPLING):
    arguments = TrainingArguments(**recipe.SCHEDULE, **sampling, **recipe.QUIET, **recipe.precision(model), seed=seed,
                                  remove_unused_columns=False)
    return Trainer(model=model, args=arguments, train_dataset=recipe.training_rows(tokenizer, seed),
                   data_collator=batches.AnswerCollator(tokenizer))


def grouped(model, tokenizer, seed):
    return lesson(model, tokenizer, seed, dict(train_sampling_strategy="group_by_length"))


def sft(attention=None, **options):
    def build(model, tokenizer, seed):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        if attention:
            model.set_attn_implementation(attention)
        # Its default bf16=True is refused on a CPU without use_cpu ("Your setup doesn't support bf16/gpu").
        arguments = SFTConfig(**recipe.SCHEDULE, **recipe.QUIET, **recipe.precision(model), seed=seed, **options)
        rows = smart_home.commands("train", recipe.STEPS * recipe.BATCH, seed)
        data = Dataset.from_list([{"prompt": c.prompt, "completion": c.answer} for c in rows])
        return SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)

    return build


VARIANTS = {
    "lesson 0": lesson,
    "SFTTrainer, defaults": sft(attention="sdpa"),
    "SFTTrainer, no checkpointing": sft(gradient_checkpointing=False),
    "lesson 0 with group_by_length": grouped,
}


def run(variant: str, seed: int) -> dict:
    model, tokenizer = recipe.adapted_base(seed)
    held_out = smart_home.commands("validation combinations", 140, seed)
    trainer = VARIANTS[variant](model, tokenizer, seed)
    trainer.remove_callback(PrinterCallback)
    clock = Clock(lambda: scoring.quick_score(model, tokenizer, held_out).exact)
    trainer.add_callback(clock)
    trainer.train()
    return {"variant": variant, "seed": seed, "seconds_to_goal": clock.reached, "steps": clock.steps,
            "seconds_per_step": clock.seconds / clock.steps}


def share_of_peak(precision: str, seed: int = 0, steps: int = 8) -> dict:
    """FLOP/s of the lesson's training steps, over those of the machine's best product in `precision` just before.

    And where the time of a step goes, by torch's profiler: products of the base's weights, of the head's, of the
    adapter's thin matrices, and everything that is no product.
    """
    model, tokenizer = recipe.adapted_base(seed, precision)
    peak = recipe.matmul_peak(model.dtype)
    rows, collate = recipe.training_rows(tokenizer, seed), batches.AnswerCollator(tokenizer)
    data = [collate(rows[i * recipe.BATCH : (i + 1) * recipe.BATCH]) for i in range(steps)]
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=2e-3, fused=True)

    def step(batch):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    flops, seconds = 0, 0.0
    for batch in data:
        with FlopCounterMode(display=False) as counter:
            step(batch)
        started = time.perf_counter()
        step(batch)
        seconds += time.perf_counter() - started
        flops += counter.get_total_flops()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as told:
        for batch in data[:3]:
            step(batch)
    goes = {"base": 0.0, "head": 0.0, "adapter": 0.0, "no product": 0.0}
    for event in told.key_averages(group_by_input_shape=True):
        sides = [side for shape in event.input_shapes for side in shape]
        kind = "no product"
        if event.key in ("aten::mm", "aten::bmm", "aten::addmm"):
            kind = "head" if model.config.vocab_size in sides else "adapter" if recipe.LORA["r"] in sides else "base"
        goes[kind] += event.self_cpu_time_total
    whole = sum(goes.values())
    return {"matmul_gflops": peak / 1e9, "training_gflops": flops / seconds / 1e9, "share": flops / seconds / peak,
            "seconds_per_step": seconds / steps,
            "where_time_goes": {kind: spent / whole for kind, spent in goes.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    peaks = {precision: share_of_peak(precision) for precision in ("float32", "bfloat16")}
    for precision, peak in peaks.items():
        print(f"{precision}: matrix product {peak['matmul_gflops']:.0f} GFLOP/s, training reaches {peak['share']:.0%}; "
              f"time by kind {peak['where_time_goes']}")
    runs = []
    for seed in options.seeds:
        for variant in options.variants:
            runs.append(run(variant, seed))
            print(runs[-1], flush=True)
    ours = {r["seed"]: r for r in runs if r["variant"] == "lesson 0"}
    table = {}
    for variant in options.variants:
        mine = [r for r in runs if r["variant"] == variant]
        reached = [r for r in mine if r["seconds_to_goal"]]
        table[variant] = {
            "reached": f"{len(reached)} of {len(mine)}",
            "median_seconds_to_goal": statistics.median(r["seconds_to_goal"] for r in reached) if reached else None,
            "median_steps_to_goal": statistics.median(r["steps"] for r in reached) if reached else None,
            "median_seconds_per_step": statistics.median(r["seconds_per_step"] for r in mine),
            "time_ratio_to_lesson": statistics.median(
                r["seconds_to_goal"] / ours[r["seed"]]["seconds_to_goal"] for r in reached if r["seed"] in ours
            ) if reached and ours else None,
            "step_ratio_to_lesson": statistics.median(
                r["seconds_per_step"] / ours[r["seed"]]["seconds_per_step"] for r in mine if r["seed"] in ours
            ) if ours else None,
        }
        print(variant, table[variant])
    recipe.write_results(recipe.of_this_cpu("recipe_vs_sft"), {"share_of_peak": peaks, "table": table, "runs": runs})


if __name__ == "__main__":
    main()
