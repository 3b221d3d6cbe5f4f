# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7 · Past one GPU
#
# *Lessons:* ← [6 · Merging and shipping](06_merge_and_ship.ipynb) ·
# [8 · Your own data, your own model](08_your_own_data.ipynb) →
#
# The notebook gets too small: the model does not fit, or a run takes the night. Here you train on two processes, count
# the bytes that they send each other, and cut a model in two. At the end you see what the same run looks like in the
# programs that you will meet at work.
#
# **You will be able to** move a training to several processes or machines without changing it, say what travels
# between them and what a step waits for, shard a base that no GPU can hold, and go on after a process has died.
#
# **You need** [Lesson 0](00_first_adapter.ipynb), [Lesson 3](03_train_in_8bit.ipynb) for four bits (nf4 and its
# scales), [Lesson 4](04_memory.ipynb) for the planner and checkpointing.
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: not recorded).
#
# Everything that is run here runs on the CPU, on one, two or four processes. What is said of GPUs is calculated or
# cited, and marked so.

# %% jupyter={"source_hidden": true}
# Set-up: where the course is missing, as on Colab, gets it and changes no package that is there. Elsewhere: nothing.
import os
from importlib import invalidate_caches, util

if util.find_spec("lora_lab") is None:
    course = os.environ.get("LORA_LAB_REPOSITORY", "")
    assert course, "lora_lab is not installed. Clone the course and run `make lab` in it: its README says how."
    # %pip install -q --no-deps git+{course}
    invalidate_caches()
    from lora_lab.course import environment
    environment.complete()
    environment.report()

# %%
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
import transformers
import yaml

# %%
from lora_lab import LabError, batches, compare, distributed, memory, models, plots, pocket, progress, quiz, smart_home
from lora_lab.display import Progress, table
from lora_lab.finetune import recipes, run_folder
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

SEED, STEPS, BATCH = 0, 16, 8
FLEET = Path("runs/fleet")
FLEET.mkdir(parents=True, exist_ok=True)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# %% [markdown]
# ## One GPU ends in two ways
#
# Either a step does not fit, because the frozen base alone is too large. Or it fits and takes too long. The two call
# for different things. Here are the shapes of a 7B and a 70B model, planned on paper for one GPU of 80 GB that computes
# 200 TFLOP a second. (That speed is a placeholder: put in what *you* measured in training.)

# %% tags=["nbval-check-output"]
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
FLOP_PER_SECOND = 200e12
seven = transformers.LlamaConfig(dtype="bfloat16")
seventy = transformers.LlamaConfig(dtype="bfloat16", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                                   num_attention_heads=64, num_key_value_heads=8, vocab_size=128256)
alone = {}
for name, shape, n_rows in (("7B", seven, 64), ("70B", seventy, 1)):
    (alone[name],) = distributed.plan(shape, LORA, gpus=1, batch_size=n_rows, checkpointing=True)
    needed, seconds = alone[name].memory, alone[name].flops / FLOP_PER_SECOND
    print(f"{name}, rows of 512 tokens: {n_rows}. {memory.human(needed.total_bytes)}, of it weights "
          f"{memory.human(needed.weights_bytes)}:", f"it fits. A step computes for {seconds:.2f} s, 10,000 steps for "
          f"{10_000 * seconds / 3600:.1f} hours." if needed.fits(80) else "it does not fit.")

# %% [markdown]
# A model that fits needs *time* from other GPUs: each takes a share of the rows. A model that does not fit needs
# *room*: each holds a share of the weights. You do the first now, and the second further down.
#
# ## Sharing the rows
#
# Under **distributed data parallelism** (DDP), every process holds the whole model and computes the gradient of its own
# rows. The gradients are averaged before the step. You can try the averaging here, without a second process.
#
# The pocket model (a Llama of a quarter of a million weights) learns a dialect of Lesson 0's commands, in which rooms,
# devices and states go by one another's names. Every third row asks for two things at once, so that answers differ in
# length. The loss of a batch is the mean over all its answer tokens.

# %%
spoken = pocket.dialect(smart_home.commands("train", n=2 * STEPS * BATCH, seed=SEED))
commands = [(smart_home.prompt(f"{a.text} {b.text}"), a.answer + b.answer) if i % 3 == 0 else (a.prompt, a.answer)
            for i, (a, b) in enumerate(zip(spoken[::2], spoken[1::2]))]
words = pocket.tokenizer()
encoded = [row | {"at": at} for at, row in enumerate(batches.encode(commands, words))]
rows = batches.similar_lengths(encoded, BATCH, seed=SEED)
unequal = [i for i in range(0, len(rows), BATCH) if len({row["answer_length"] for row in rows[i:i + BATCH]}) > 2]
batch = sorted(rows[unequal[0]:unequal[0] + BATCH], key=lambda row: row["answer_length"])
print(f"{len(rows)} rows; answer tokens of one batch of {BATCH}: {[row['answer_length'] for row in batch]}")

# %%
quiz("fleet/mean_of_means")

# %%
collate = batches.AnswerCollator(words)
transformers.set_seed(SEED)
model = get_peft_model(pocket.load()[0], LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))

def gradient(rows):
    """Of the mean loss of these rows' answer tokens, all of the adapter in one row of numbers."""
    model.zero_grad()
    model(**collate(rows).to(model.device)).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

whole, halves = gradient(batch), [gradient(batch[:4]), gradient(batch[4:])]
tokens = [sum(row["answer_length"] for row in half) for half in (batch[:4], batch[4:])]
print(f"{len(whole):,} numbers; answer tokens of the two halves: {tokens}")

# %%
merged = {"mean of the two means": (halves[0] + halves[1]) / 2,
          "each counted by its tokens": (tokens[0] * halves[0] + tokens[1] * halves[1]) / sum(tokens)}
off = {name: ((found - whole).norm() / whole.norm()).item() for name, found in merged.items()}
for name, far in off.items():
    print(f"{name}: off the gradient of all {BATCH} rows by {far:.1e} of its norm")
compare("fleet/mean_of_means", 100 * off["mean of the two means"])

# %% [markdown]
# Shares of a batch often have different numbers of answer tokens, and then a mean of their means is another training.
# The Trainer's `average_tokens_across_devices` counts tokens over all processes. It is on by default in transformers 5,
# and was off in older versions. A training loop of your own has to do it by itself. You will switch it off to see what
# that does.
#
# ## A program for any number of processes
#
# Here is a training in plain PEFT and the Trainer, in a file. The number of processes stands nowhere in it; its two
# arguments are the output folder and the rows that *one* process takes. It reads its settings from a file, so that
# every run below has the same ones (their names are those of transformers 5).
#
# `rows.jsonl` has the rows as they came. `ordered.jsonl` has them in the order of the batches, for programs that read
# from top to bottom. Every process reads the whole file, and the Trainer deals the batches out in turn: of two
# processes with four rows each, the first takes rows 1 to 4, the second 5 to 8, and so on.

# %%
SETTINGS = dict(max_steps=STEPS, learning_rate=1e-2, warmup_steps=2, seed=SEED, logging_steps=1, save_strategy="no",
                train_sampling_strategy="sequential", average_tokens_across_devices=True,
                ddp_find_unused_parameters=False, remove_unused_columns=False, disable_tqdm=True, report_to="none")
(FLEET / "settings.json").write_text(json.dumps(SETTINGS))

def program(name, text):
    (FLEET / name).write_text(text.lstrip())
    print(f"{FLEET / name}: {len(text.strip().splitlines())} lines")

for name, order in (("rows", range(len(rows))), ("ordered", [row["at"] for row in rows])):
    lines = [json.dumps(dict(zip(("prompt", "completion"), commands[at]))) for at in order]
    program(f"{name}.jsonl", "\n".join(lines) + "\n")

# %%
program("train.py", """
import json, sys, torch
from lora_lab import batches, pocket
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed
from watch import Watch  # prints what a process holds and sends; delete it at work

settings = json.load(open("runs/fleet/settings.json")) | {"use_cpu": not torch.cuda.is_available()}
arguments = TrainingArguments(sys.argv[1], per_device_train_batch_size=int(sys.argv[2]), **settings)
set_seed(arguments.seed)
model, words = pocket.load()
model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
rows = [tuple(json.loads(line).values()) for line in open("runs/fleet/ordered.jsonl")]
trainer = Trainer(model, arguments, batches.AnswerCollator(words), batches.encode(rows, words), callbacks=[Watch()])
trainer.train(), trainer.save_state(), trainer.save_model(), trainer.accelerator.end_training()
""")

# %% [markdown]
# Every process calls `save_model`, and the first one writes. `if rank == 0: trainer.save_model()` is a habit that hangs
# as soon as weights are cut, because the others have to send their pieces.
#
# The last two files only count. On Linux, the system knows how many bytes a process has written: to connections, files
# and pipes. (Elsewhere the counter is the machine's, and other programs count, too.)

# %%
program("counted.py", """
import psutil
import torch.distributed as dist

def sent():
    if psutil.LINUX:
        return psutil.Process().io_counters().write_chars
    return psutil.net_io_counters().bytes_sent / dist.get_world_size()  # a share of what the machine sent
""")

# %%
program("watch.py", """
from counted import sent
from transformers import TrainerCallback

class Watch(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        self.before = sent()
    def on_step_end(self, args, state, control, model=None, **_):
        held = sum(getattr(p, "_local_tensor", p).nbytes for p in model.parameters())  # its shard, if it is cut
        if state.global_step == state.max_steps:
            print(f"watch {args.process_index} {held} {sent() - self.before:.0f}")
""")

# %% [markdown]
# First in this notebook, on one process with the whole batch. Every run below is compared with this one.

# %%
def in_notebook():
    transformers.set_seed(SEED)
    model = get_peft_model(pocket.load()[0], LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    arguments = transformers.TrainingArguments("runs/fleet/notebook", per_device_train_batch_size=BATCH, use_cpu=True,
                                               **SETTINGS)
    trainer = transformers.Trainer(model, arguments, collate, batches.encode([commands[r["at"]] for r in rows], words))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(), trainer.save_model()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]

losses = {"notebook": in_notebook()}
print(f"{STEPS} steps: loss {losses['notebook'][0]:.3f} at the first, {losses['notebook'][-1]:.3f} at the last")

# %% [markdown]
# ## Launch it: `torchrun`
#
# `torchrun` comes with torch. It starts the processes, tells each its number (the *rank*: no kin of LoRA's), and ends
# all of them if one fails. On GPUs each process takes the GPU of its number, and they talk over *NCCL*. Two processes
# on a CPU talk over *gloo*, through the network interface of the machine. You type these lines into a terminal. The two
# helpers run them from the notebook, with the GPUs hidden, and print the lines of output that matter.

# %%
STARTS = {"torchrun": "-m torch.distributed.run", "accelerate launch": "-m accelerate.commands.launch", "python": ""}
QUIET = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

def start(line):
    """Start a command line with this notebook's Python, on the CPU; its output is one stream."""
    print("$", line)
    name = next(name for name in STARTS if line.startswith(name))
    command = [sys.executable, *shlex.split(STARTS[name] + line.removeprefix(name))]
    return subprocess.Popen(command, env=os.environ | QUIET, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)

print(start("python --version").communicate()[0])

# %%
SHOW = r"processes share|process takes|Going on|adapter is in|LabError"

def follow(process, show=SHOW):
    """Print what matters of a started process as it comes; returns all that it said, and the exit code."""
    said = ""
    with Progress("the processes at work", total=STEPS) as bar:
        for line in process.stdout:
            said += line
            bar.update("loss" in line and bar.done < STEPS)
            if re.search(show, line):
                print(re.sub(r"(?<!\w)/\S+/", "", line.rstrip())[:150])
    assert process.wait() == 0 or show != SHOW, said[-3000:]
    return said, process.returncode

watched, code = follow(start("torchrun --standalone --nproc-per-node 2 runs/fleet/train.py runs/fleet/torchrun 4"))

# %% [markdown]
# Two processes with four rows each make a batch of eight.

# %%
quiz("fleet/two_processes")

# %%
def losses_in(folder):
    """What a run logged, step by step: the Trainer's own file, or that of lora_lab.finetune."""
    state = FLEET / folder / "trainer_state.json"
    found = json.loads(state.read_text())["log_history"] if state.exists() else run_folder.read_metrics(FLEET / folder)
    found = [line["loss"] for line in found if "loss" in line]
    assert len(found) == STEPS, f"{folder} is not complete: run its launch again"
    return found

losses["torchrun"] = losses_in("torchrun")
worst = max(abs(a - b) for a, b in zip(losses["torchrun"], losses["notebook"]))
print(f"worst difference of {STEPS} losses: {worst:.1e}.",
      "The same steps, to rounding." if worst < 1e-4 else "These are other steps.")
compare("fleet/two_processes", worst)

# %% [markdown]
# (With `lora_dropout` the two would differ: each process draws what it drops for its own rows.) Now break it in the two
# ways that people break it.
#
# - **The batch counts per process.** Leave `per_device_train_batch_size` at what the notebook had, and two processes
#   take twice the rows in a step.
# - **The mean of means.** Without `average_tokens_across_devices`, each process divides by its own tokens.
#
# **Guess:** will a broken run print a warning?

# %%
def broken(name, rows_each, **changes):
    (FLEET / "settings.json").write_text(json.dumps(SETTINGS | changes))
    try:
        line = f"torchrun --standalone --nproc-per-node 2 runs/fleet/train.py runs/fleet/{name} {rows_each}"
        said, _ = follow(start(line))
    finally:
        (FLEET / "settings.json").write_text(json.dumps(SETTINGS))
    print(f"lines that warn: {said.lower().count('warn')}, in the run before: {watched.lower().count('warn')}")
    return losses_in(name)

losses["8 rows each"] = broken("eight_each", BATCH)
losses["mean of means"] = broken("mean_of_means", BATCH // 2, average_tokens_across_devices=False)

# %%
def distances(name):
    return [abs(a - b) for a, b in zip(losses[name], losses["notebook"])]

plots.lines({name: (range(1, STEPS + 1), [max(far, 1e-7) for far in distances(name)])
             for name in ("torchrun", "8 rows each", "mean of means")}, "step",
            "distance in loss (from 1e-7 up)", yscale="log",
            title="How far is each run from the notebook's losses?")

# %% [markdown]
# Look at the left end. The rate warms up from zero, so the first two losses are of an adapter that has not moved: what
# differs there is only *which* rows were averaged, and how. One broken run starts exactly right if its first batch has
# as many tokens in both shares. So a loss alone proves little. Ask what was trained:

# %%
def adapter_in(folder):
    """All that a run trained, in one row of numbers."""
    place = FLEET / folder / ("adapter" if (FLEET / folder / "adapter").exists() else "")
    found = load_file(place / "adapter_model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])

def apart(folder):
    return ((adapter_in(folder) - adapter_in("notebook")).norm() / adapter_in("notebook").norm()).item()

for name, folder in {"torchrun": "torchrun", "8 rows each": "eight_each", "mean of means": "mean_of_means"}.items():
    print(f"{name:14} adapter off the notebook's by {apart(folder):.1e} of its norm:",
          "the same training" if apart(folder) < 1e-2 else "another training")

# %% [markdown]
# A learning rate that was tuned for one batch is not tuned for another. All this is float32. In bfloat16, rounding may
# move the losses much further, so make such a comparison once in float32.
#
# **Exercise: equal steps.** A global batch, a number of processes, and the most rows that a GPU can hold at a time.
# Return the rows that a process takes at a time and how often it accumulates gradients, so that a step sees the global
# batch exactly, in as few passes as possible.

# %%
def per_process(batch_size, processes, most_rows):
    return batch_size, 1

quiz("fleet/per_process", per_process)

# %% [markdown]
# ## What travels
#
# Averaging needs every process to hear from every other: an *all-reduce*. Gloo does it in a ring; NCCL chooses among
# rings, trees and switches. In a ring of $N$ processes the gradient is cut into $N$ pieces. Each process passes a piece
# to its neighbour and adds the one that it receives. After $N-1$ moves every piece is summed somewhere. In $N-1$ more
# moves the sums go round.

# %%
quiz("fleet/sent")

# %% [markdown]
# A process sends one piece in each move, which makes $2(N-1)/N$ times the gradient. Does a real program send that? This
# one asks the counter. It also asks about the two halves of the ring. The *reduce-scatter* is the first: everybody gets
# the sum of one piece. The *all-gather* is the second: everybody gets all pieces. Each should send half of it.

# %%
program("sending.py", """
import json, torch, torch.distributed as dist
from counted import sent

dist.init_process_group("gloo")
n, gradient = dist.get_world_size(), torch.randn(1_200_000, device="cpu")
piece = gradient[: len(gradient) // n].clone()
calls = {"all-reduce": lambda: dist.all_reduce(gradient),
         "all-gather": lambda: dist.all_gather([torch.empty_like(piece) for _ in range(n)], piece),
         "reduce-scatter": lambda: dist.reduce_scatter_tensor(piece.clone(), gradient)}
for name, call in calls.items():
    before = sent()
    call()
    print("sent", json.dumps([name, n, (sent() - before) / gradient.nbytes]))
dist.destroy_process_group()
""")

# %%
measured = {}
for n in (2, 4):
    said, code = follow(start(f"torchrun --standalone --nproc-per-node {n} runs/fleet/sending.py"))
    for name, processes, times in map(json.loads, re.findall(r"sent (\[.*?\])", said)):
        measured.setdefault((name, processes), []).append(times)
formula = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}
table([{"call": name, "processes": n, "sent by each, times the tensor": f"{sum(found) / len(found):.3f}",
        "formula": f"{formula[name] * (n - 1) / n:.3f}"} for (name, n), found in measured.items()])

# %%
for (name, n), found in measured.items():
    off = sum(found) / len(found) / (formula[name] * (n - 1) / n) - 1
    print(f"{name}, {n} processes: {off:+.1%} off.", "The formula holds." if abs(off) < 0.1 else "It does not hold.")
compare("fleet/sent", sum(measured["all-reduce", 4]) / len(measured["all-reduce", 4]))

# %% [markdown]
# Where a line says that the formula does not hold, the library does the call in another way than a ring. (Gloo may sum
# everything and throw away what a process does not need.) So count before you trust a formula. NCCL is not counted
# here.
#
# Now the training that you ran. `Watch` reported the last step of each process.

# %%
trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
for rank, held, sent in re.findall(r"watch (\d+) (\d+) (\d+)", watched):
    print(f"process {rank} sent {int(sent):,} bytes; the adapter's gradients are {trained:,}: "
          f"{int(sent) / trained - 1:+.1%}. It holds {int(held):,} bytes of weights.")

# %% [markdown]
# With two processes $2(N-1)/N$ is one. DDP sends what has a gradient, and the frozen base has none. What the few bytes
# on top are, this counter does not say. (`ddp_find_unused_parameters=False` in the settings saves some: for an adapter
# the Trainer would otherwise ask in each step which parameters went unused.) At the start DDP sends something else,
# once: the first process's weights to all.
#
# For the 7B shape, by the formula that you checked on 2 and 4 processes:

# %% tags=["nbval-check-output"]
adapter, base = alone["7B"].memory.gradient_bytes, alone["7B"].memory.weights_bytes
for kind, size in (("LoRA, rank 8, in float32", adapter), ("full fine-tuning, in bfloat16", base)):
    each = {n: 2 * (n - 1) / n * size for n in (2, 8, 64)}
    print(f"{kind}: " + ", ".join(f"{memory.human(sent)} on {n} GPUs" for n, sent in each.items()))
print(f"64 GPUs send {each[64] / each[8] - 1:.1%} more each than 8.")

# %% [markdown]
# ## The recipe
#
# A program whose batch counts per process has to be edited for every fleet. `lora_lab.finetune`, the launcher of this
# course, takes a *recipe* instead. In it `batch_size` counts the rows of all processes together. From the seed it makes
# the same order of rows as `ordered.jsonl` has. It also checks the rows, the adapter and the folder before any model
# loads, so that eight GPUs do not wait for your typing error.

# %%
def write(name, model="pocket", precision="auto", **training):
    """Write a recipe that trains into a new folder."""
    shutil.rmtree(FLEET / name, ignore_errors=True)
    settings = dict(max_steps=STEPS, batch_size=BATCH, learning_rate=1e-2, warmup_steps=2, seed=SEED, save_steps=4)
    recipe = dict(model=model, precision=precision, output=f"runs/fleet/{name}",
                  data={"path": "runs/fleet/rows.jsonl", "answer": "{completion}"},
                  lora={"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}, training=settings | training)
    return recipes.write(recipe, FLEET / f"{name}.yaml")

print(write("accelerate").read_text())

# %% [markdown]
# `accelerate launch` starts the processes as `torchrun` does, and reads how many from a config file. The repository has
# them in `launch/`. This is `launch/cpu2.yaml`, two processes on the CPU. (accelerate's own `MULTI_CPU` needs MPI, a
# launcher from supercomputing. So we say `MULTI_GPU` and give no GPU: "-1". Port 0 takes a free one.)

# %%
CPU2 = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 1, "machine_rank": 0,
        "num_processes": 2, "gpu_ids": "-1,-1", "mixed_precision": "no", "main_training_function": "main"}
(FLEET / "cpu2.yaml").write_text(yaml.safe_dump(CPU2))
LAUNCH = "accelerate launch --main_process_port 0 --config_file runs/fleet/"
follow(start(f"{LAUNCH}cpu2.yaml -m lora_lab.finetune runs/fleet/accelerate.yaml"))
losses["recipe, DDP"] = losses_in("accelerate")
print(f"worst difference from the notebook: {max(distances('recipe, DDP')):.1e}")

# %% [markdown]
# **Exercise: repair the recipe** until two processes can train by it. The check reads it as a launch would, and lists
# all faults that it can see. (A rank is compared with the layers once these have their right names.)

# %%
my_recipe = {
    "model": "pocket", "data": {"path": "runs/fleet/rows.jsonl", "answer": "{completion}"}, "output": "runs/fleet/mine",
    "lora": {"r": 80, "lora_alpha": 16, "target_modules": ["q_proj", "o_projj"]},
    "training": {"max_steps": 20, "batch_size": 9, "learning_rate": "0.01x", "warmup": 2},
}
quiz("fleet/repaired_recipe", my_recipe)

# %% [markdown]
# ## Sharing the weights
#
# With DDP every GPU holds the whole base. **FSDP** (fully sharded data parallel) cuts every weight: each of N processes
# keeps 1/N. Before a block computes, its pieces are gathered; afterwards they are dropped. Each block is gathered once
# in the forward pass and once in the backward pass. Gradients are summed and cut in the same way. In torch it is one
# call a block, and one for the rest. (This program only counts. One that trains gives all processes the same seed
# first, as `train.py` does: `fully_shard` does not compare their weights.)

# %%
program("shard.py", """
import torch, torch.distributed as dist, torch.distributed.fsdp
from counted import sent
from lora_lab import pocket
from peft import LoraConfig, get_peft_model

dist.init_process_group("gloo")
for kind in ("LoRA", "full"):
    base, tokens = pocket.load()[0], torch.ones(4, 32, dtype=int, device="cpu")
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")) if kind == "LoRA" else base
    for module in (*base.model.layers, model): dist.fsdp.fully_shard(module)
    before = sent()
    model(input_ids=tokens, labels=tokens).loss.backward()
    print(f"shard {kind} {sent() - before:.0f}")
dist.destroy_process_group()
""")

# %%
quiz("fleet/fsdp_saves")

# %%
said, code = follow(start("torchrun --standalone --nproc-per-node 2 runs/fleet/shard.py"))
found = {kind: int(count) for kind, count in re.findall(r"shard (\w+) (\d+)", said)}  # the two processes tell the same
small = pocket.load()[0]
weights, blocks = (sum(p.nbytes for p in part.parameters()) for part in (small, small.model.layers))
once = sum(measured["reduce-scatter", 2]) / len(measured["reduce-scatter", 2])  # a gradient's way, as counted above
ledger = {}
for kind, extra, gradients in (("LoRA", trained, trained), ("full", 0, weights)):
    ledger[kind] = {"forward": (weights + extra) / 2, "backward": (blocks + extra) / 2, "gradients": once * gradients}
table([{"training": kind, **{f"{part}, bytes": f"{size:,.0f}" for part, size in parts.items()},
        "sum": f"{sum(parts.values()):,.0f}", "sent by each": f"{found[kind]:,}",
        "off": f"{found[kind] / sum(parts.values()) - 1:+.1%}"} for kind, parts in ledger.items()])

# %%
ratio = found["LoRA"] / found["full"]
by_formula = (2 * (weights + trained) + trained) / (3 * weights)
print(f"LoRA sends {ratio:.0%} of what full fine-tuning sends here. In a ring, with all gathered twice, it would be "
      f"{by_formula:.0%}.")
for kind, parts in ledger.items():
    far = found[kind] / sum(parts.values()) - 1
    print(f"{kind}: {far:+.1%} off its ledger:", "the ledger holds." if abs(far) < 0.1 else "the ledger does not hold.")
compare("fleet/fsdp_saves", 100 * ratio)

# %% [markdown]
# Compare this with DDP, where the share was that of the adapter in the weights. FSDP gathers every block twice, frozen
# or not. LoRA saves the third trip alone, that of the gradients. Why is there less in the ledger for the backward pass?
# What is in no block (here the embedding and the last norm) stays gathered between the passes, unless
# `reshard_after_forward=True` is said of it, too.
#
# ### Where are the weights before they are cut?
#
# `from_pretrained` fills the memory of the *host*, once for each process: eight processes hold eight bases before
# anything is cut. So the first process loads, and the others build the model on the *meta* device, where a tensor is a
# shape without memory. Then each receives its pieces. The launcher does that. (For a program of your own, accelerate's
# `fsdp_cpu_ram_efficient_loading` does, if `TrainingArguments` are made *before* the model is loaded, as in
# `train.py`.)

# %%
small.save_pretrained(FLEET / "base")
words.save_pretrained(FLEET / "base")
for first in (True, False):
    loaded, _ = models.load_to_shard(FLEET / "base", "float32", first)
    devices = {parameter.device.type for parameter in loaded.parameters()}
    print(f"{'the first process' if first else 'every other one'}: parameters on {devices}, buffers on "
          f"{ {buffer.device.type for buffer in loaded.buffers()} }")

# %% [markdown]
# (Buffers are fixed tables, such as the positions' frequencies. Each process builds its own.) The config for accelerate
# is `launch/fsdp.yaml`, not run on GPUs. (`FULL_STATE_DICT` collects the whole base in the first process at each save,
# even for a small adapter: leave the host room for it.) `launch/cpu2_fsdp.yaml` is the same for two CPU processes:

# %%
FSDP = dict(fsdp_version=2, fsdp_reshard_after_forward=True, fsdp_auto_wrap_policy="TRANSFORMER_BASED_WRAP",
            fsdp_state_dict_type="FULL_STATE_DICT", fsdp_cpu_ram_efficient_loading=True)
(FLEET / "cpu2_fsdp.yaml").write_text(yaml.safe_dump(CPU2 | {"distributed_type": "FSDP", "fsdp_config": FSDP}))
(FLEET / "watched.py").write_text("""
import sys
from lora_lab import finetune
from lora_lab.finetune import recipes
from watch import Watch

trainer = finetune.train(recipes.read(sys.argv[1], 2), callbacks=(Watch(),))
trainer.accelerator.end_training()
""")
write("fsdp")
watched_fsdp, _ = follow(start(f"{LAUNCH}cpu2_fsdp.yaml runs/fleet/watched.py runs/fleet/fsdp.yaml"))
losses["recipe, FSDP"] = losses_in("fsdp")

# %%
held = [int(size) for size in re.findall(r"watch \d+ (\d+)", watched_fsdp)]
print(f"weights and adapter: {weights + trained:,} bytes; held by the two processes: {held}")
table([{"run on two processes": name, "worst difference in loss": f"{max(distances(name)):.1e}",
        "adapter off by": f"{apart(folder):.1e}",
        "so it is": "the notebook's training" if apart(folder) < 1e-2 else "another training"}
       for name, folder in (("torchrun", "torchrun"), ("recipe, DDP", "accelerate"), ("recipe, FSDP", "fsdp"))])

# %% [markdown]
# ### A base in four bits, cut in two
#
# Four bits and FSDP together ([FSDP-QLoRA](https://huggingface.co/docs/bitsandbytes/fsdp_qlora)) bring a 70B base onto
# small GPUs. bitsandbytes packs two weights into a byte and keeps the bytes as integers; FSDP cuts floating-point
# tensors only. The way out is one argument. `bnb_4bit_quant_storage` stores the *same bytes* under another name:

# %% tags=["nbval-check-output"]
from bitsandbytes.nn import Linear4bit

for storage in (torch.uint8, torch.bfloat16, torch.float32):
    layer = Linear4bit(64, 192, bias=False, quant_type="nf4", quant_storage=storage, device="cpu").to("cpu")
    print(f"{storage}: shape {tuple(layer.weight.shape)}, {layer.weight.nbytes:,} bytes")

# %% [markdown]
# Give it the dtype that the model computes in, so that a block's tensors are of one kind. In transformers:
#
# ```python
# config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
#                             bnb_4bit_quant_storage=torch.bfloat16)
# model = AutoModelForCausalLM.from_pretrained(name, quantization_config=config, device_map={"": "cpu"})
# ```
#
# Two traps. Forget the storage, and nothing fails: accelerate leaves the integers whole on every GPU and warns once. So
# check what is held, as the cell below does. Forget `device_map`, and transformers puts the whole base in four bits
# onto each GPU before it is cut. Every process reads the packed base here (accelerate sends none), so count the host's
# memory for all of them.
#
# The launcher does this for `precision: nf4` under FSDP. Two processes, a small base in four bits (on GPUs: not run):

# %%
write("nf4", model="runs/fleet/base", precision="nf4")
said, code = follow(start(f"{LAUNCH}cpu2_fsdp.yaml runs/fleet/watched.py runs/fleet/nf4.yaml"))
packed = [int(size) for size in re.findall(r"watch \d+ (\d+)", said)]
print(f"held by the two processes: {packed}; with the base in float32: {held}")

# %%
whole_base, _ = models.load_to_shard(FLEET / "base", "nf4", True)
with torch.no_grad():
    first = whole_base(**collate(rows[:BATCH]).to(whole_base.device)).loss.item()
print(f"loss of the first batch, four bits: cut in two {losses_in('nf4')[0]:.3f}, whole {first:.3f}")

# %% [markdown]
# The two losses need not meet in every digit, as the two compute with other roundings. But bytes that were put together
# wrongly would be another model. (The adapter is in float32, so it shrinks by the cut alone. The scales are no
# parameters, and come on top.)
#
# With DDP and four bits each process needs the base on *its* GPU: `device_map={"": int(os.environ["LOCAL_RANK"])}`.
# (`"auto"` spreads one model over all GPUs, and is refused in such a launch.) And `python train.py`, without a
# launcher, on a machine with eight GPUs is *not* a run on one of them: the Trainer uses all. Set
# `CUDA_VISIBLE_DEVICES=0`.
#
# Now the 70B shape on eight GPUs, planned. **Guess** before you look: which of these fit into 80 GB, and which part is
# left over when weights are cut?

# %%
ways = {"bfloat16, DDP": (None, "ddp"), "bfloat16, FSDP": (None, "fsdp"), "nf4, DDP": ("nf4", "ddp"),
        "nf4, FSDP": ("nf4", "fsdp")}
fleet = {}
with Progress("planning", total=len(ways)) as bar:
    for name, (precision, mode) in ways.items():
        (fleet[name],) = distributed.plan(seventy, LORA, precision, 8, batch_size=8, mode=mode, checkpointing=True)
        bar.update(1)
parts = {name: share.memory.parts() for name, share in fleet.items()}
for precision in ("bfloat16", "nf4"):  # what an eighth leaves over
    gathered = parts[f"{precision}, FSDP"]["weights_bytes"] - parts[f"{precision}, DDP"]["weights_bytes"] // 8
    parts[f"{precision}, FSDP"]["weights_bytes"] -= gathered
    parts[f"{precision}, FSDP"]["gathered_bytes"] = gathered
plots.memory(parts, limit_gb=80, title="70B on 8 GPUs, one row each: what is left when weights are cut?")

# %%
for name, share in fleet.items():
    print(f"{name:14} {memory.human(share.memory.total_bytes):>9} on each GPU,",
          f"{'fits' if share.memory.fits(80) else 'does not fit'} 80 GB less {share.memory.reserve:.0%},",
          f"{memory.human(share.sent_bytes)} sent")
packed = fleet["nf4, DDP"].memory.weights_bytes + fleet["nf4, DDP"].memory.quantization_bytes
print(f"While eight processes load it in four bits, the host holds {memory.human(8 * packed)}.")

# %% [markdown]
# Under FSDP a GPU holds its share, and what is gathered at the moment (dotted): the largest block, and all that is in
# no block. The scales of four bits (hatched) stay whole on every GPU; `bnb_4bit_use_double_quant` makes them smaller.
#
# **Exercise: the smallest fleet.** The 7B shape in bfloat16, 64 rows of 512 tokens *in one pass*, with checkpointing,
# GPUs of 12 GB of which a tenth stays free. Which number (1, 2, 4, ... 64) and which mode is the fewest that fits?

# %%
my_fleet = {"gpus": 64, "mode": "fsdp"}
quiz("fleet/smallest_fleet", my_fleet)

# %%
ways = {"64 rows in one pass, bfloat16": (None, 64, (2, 4)), "8 rows in a pass, bfloat16": (None, 8, (1, 2)),
        "8 rows in a pass, nf4": ("nf4", 8, (1,))}
for name, (precision, n_rows, gpus) in ways.items():
    for share in distributed.plan(seven, LORA, precision, gpus, batch_size=n_rows, mode="fsdp", checkpointing=True):
        print(f"{name}, GPUs: {share.gpus}. {memory.human(share.memory.total_bytes)} on each,",
              "fits" if share.memory.fits(12) else "does not fit")

# %% [markdown]
# Before you buy GPUs, take fewer rows in a pass and accumulate, or fewer bits.
#
# ## Several machines
#
# Start the same program on every machine and tell each who it is. One machine is the meeting point. For three machines
# with four GPUs each, a line for each machine:
#
# ```
# torchrun --nnodes 3 --node-rank 0 --nproc-per-node 4 --master-addr 10.1.1.7 --master-port 29500 train.py
# torchrun --nnodes 3 --node-rank 1 --nproc-per-node 4 --master-addr 10.1.1.7 --master-port 29500 train.py
# torchrun --nnodes 3 --node-rank 2 --nproc-per-node 4 --master-addr 10.1.1.7 --master-port 29500 train.py
# ```
#
# `accelerate launch` calls these `--num_machines`, `--machine_rank`, `--main_process_ip` and `--main_process_port`. One
# thing differs: its `--num_processes` counts those of *all* machines.
#
# Often one of three things is wrong: the code, the data or a version differ between machines; a firewall closes
# ports (NCCL opens others than yours); NCCL takes the wrong network card (`NCCL_SOCKET_IFNAME` names the right one).
# The adapter is written by the first machine. You have one machine, so two launches of one process each play two of
# them. They test the commands, and none of these three.

# %%
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
line = ("torchrun --nnodes 2 --node-rank {} --nproc-per-node 1 --master-addr 127.0.0.1 --master-port " + str(port)
        + " runs/fleet/train.py runs/fleet/machines 4")
machines = [start(line.format(rank)) for rank in (0, 1)]
for machine in machines:
    follow(machine)
print(f"adapter off the notebook's by {apart('machines'):.1e} of its norm:",
      "the same training" if apart("machines") < 1e-2 else "another training")

# %% [markdown]
# **Exercise: the second machine.** Now two machines with eight GPUs each. The first one has the address 10.0.0.1 and
# listens on port 29400. Write the `torchrun` command for the *second* machine.

# %%
my_command = "torchrun --nproc-per-node 16 train.py"
quiz("fleet/second_machine", my_command)

# %% [markdown]
# ## What does a step wait for?
#
# For sending or for computing. First the computing. A forward pass costs 2 operations a weight and token. The backward
# pass costs 2 for the gradients of the activations, and 2 more where a weight trains. Checkpointing keeps few
# activations and computes the others again in the backward pass (Chen et al. 2016). That has a price.

# %%
quiz("fleet/recompute")

# %%
def operations(model, checkpointing):
    """What forward and backward compute, in FLOP, as torch counts them."""
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        model.train()(**collate(batch).to(model.device)).loss.backward()
    return counter.get_total_flops()

counted = {kind: [operations(get_peft_model(pocket.load()[0], LORA) if kind == "LoRA" else pocket.load()[0], again)
                  for again in (False, True)] for kind in ("LoRA", "full")}
for kind, on_paper in (("LoRA", 3 / 2), ("full", 4 / 3)):
    once, twice = counted[kind]
    print(f"{kind}: {once / 1e6:.0f} MFLOP, with checkpointing {twice / 1e6:.0f}: {twice / once:.2f} times, "
          f"in passes {on_paper:.2f}")
compare("fleet/recompute", counted["LoRA"][1] / counted["LoRA"][0])

# %% [markdown]
# Checkpointing adds a second forward pass. It weighs more where the backward pass is
# short, and with a frozen base it is. `distributed.plan` counts it. (Counted in passes the factor comes out too high:
# the head is in no block, and torch stops computing a block again as soon as it has what the backward pass needs. In
# full fine-tuning that spares the block's last matrix.)
#
# Now the sending.

# %%
quiz("fleet/slow_network")

# %%
NETWORKS = {"1 Gbit/s, office": 1, "10 Gbit/s": 10, "100 Gbit/s": 100, "250 Gbit/s, PCIe 4 x16": 250,
            "400 Gbit/s": 400, "3,600 Gbit/s, NVLink of an H100": 3600}
by_mode = {mode: distributed.plan(seven, LORA, gpus=8, batch_size=64, mode=mode, checkpointing=True)[0]
           for mode in distributed.MODES}
computing = by_mode["ddp"].flops / FLOP_PER_SECOND
seconds = {network: [by_mode[mode].sent_bytes / (gbit * 1e9 / 8) for mode in distributed.MODES]
           for network, gbit in NETWORKS.items()}
table([{"each GPU sends, one way": network, "DDP": f"{1000 * ddp:,.1f} ms", "FSDP": f"{1000 * fsdp:,.0f} ms",
        "computing": f"{1000 * computing:,.0f} ms"} for network, (ddp, fsdp) in seconds.items()])

# %%
xs = list(NETWORKS.values())
crossings = {mode: by_mode[mode].sent_bytes / computing * 8 / 1e9 for mode in distributed.MODES}
plots.lines({"FSDP sends": (xs, [fsdp for _, fsdp in seconds.values()]),
             "DDP sends": (xs, [ddp for ddp, _ in seconds.values()]), "computing": (xs, [computing] * len(xs))},
            "network, Gbit/s", "seconds a step (calculated)", xscale="log", yscale="log",
            seeds={f"{mode.upper()} sends": ((at,), (computing,)) for mode, at in crossings.items()},
            title="7B with LoRA on 8 GPUs: left of a dot, sending takes longer")

# %%
for mode, share in by_mode.items():
    print(f"{mode.upper()} sends {memory.human(share.sent_bytes)}. At {crossings[mode]:,.1f} Gbit/s that takes as long "
          f"as computing, at {10 * crossings[mode]:,.0f} a tenth of it.")
asked = by_mode["ddp"].flops / 200e12  # the question's speed, whatever yours is
compare("fleet/slow_network", 100 * by_mode["ddp"].sent_bytes / (1e9 / 8) / asked)

# %% [markdown]
# Two ways out follow from how often each sends. Under DDP, accumulate gradients over several passes: a step sends once,
# however much it computes. Under FSDP every pass gathers anew, so take more rows in a pass, or go back to four bits and
# DDP. (These are sums on paper. Real programs send while they compute; eight GPUs that share a network card have an
# eighth of it each; and for megabytes the number of moves counts as well as the bytes.)
#
# ## A process dies
#
# A node fails, or the operating system ends a process because memory is short. You do it by hand, to the second
# process, in the middle. A callback slows the steps down so that you can hit it. **Guess:** does the other process go
# on, wait or end?

# %%
program("slowly.py", """
import sys, time
from lora_lab import finetune
from lora_lab.finetune import recipes
from transformers import TrainerCallback

class Slowly(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        time.sleep(0.2)

finetune.train(recipes.read(sys.argv[1], 2), callbacks=(Slowly(),))
""")
recipe = write("killed")
process = start(f"{LAUNCH}cpu2.yaml runs/fleet/slowly.py runs/fleet/killed.yaml")
while process.poll() is None and len(run_folder.read_metrics(FLEET / "killed")) < 5:
    time.sleep(0.05)
print("steps on record:", len(run_folder.read_metrics(FLEET / "killed")))

# %%
for child in psutil.Process(process.pid).children() if process.poll() is None else ():
    if child.environ().get("RANK") == "1":
        child.kill()
said, code = follow(process, show=r"^ +(rank|exitcode) +:")
assert code != 0, "The run was complete before you hit it: run the cell before this one again."
ended = "had an error when its partner was gone." if "[rank0]:" in said else "was ended without an error of its own."
print(f"exit code {code}; the first process {ended} Neither goes on.")
print("last whole checkpoint:", run_folder.last_checkpoint(FLEET / "killed"))

# %% [markdown]
# Look who died of what. The launcher names them, ends those who are left, and returns an exit code that is not 0.
#
# **This was gloo on one machine.** A connection of gloo breaks at once. Over NCCL a process that misses another usually
# *waits*. On its own machine the launcher ends it. On other machines it may wait until a limit: `ddp_timeout`, half an
# hour if you say nothing to the Trainer. The same silence follows when the processes disagree, as when one has a batch
# more, or saves alone. Set the limit to a few minutes; `NCCL_DEBUG=INFO` and `py-spy dump` show who waits for what.
#
# Now launch the same recipe again. It is read first, and the folder is protected:

# %%
try:
    recipes.read(recipe, processes=2)
except LabError as error:
    print(error)

# %%
follow(start(f"{LAUNCH}cpu2.yaml -m lora_lab.finetune runs/fleet/killed.yaml --resume"))
far = max(abs(a - b) for a, b in zip(losses_in("killed"), losses["recipe, DDP"]))
print(f"killed and resumed against never stopped, worst difference of {STEPS} losses: {far:.1e}.",
      "The same training, some steps of it computed twice." if far < 1e-5 else "The resumed run went another way.")

# %% [markdown]
# What came after the last checkpoint was computed again. Choose `save_steps` by what you can afford to repeat. In a
# program of your own it is `trainer.train(resume_from_checkpoint=True)`, with `save_strategy="steps"`.
#
# ## Take an engine that others maintain
#
# This course's launcher is small, so that you can read it. At work you take one that many people keep alive. They all
# stand on the same parts, so what you know holds: rows a process, tokens counted over all, what is cut and what is
# sent. Take **TRL**. Its `SFTTrainer` is the Trainer with the data preparation for language models. This should be the
# same run, once two defaults are undone: `SFTConfig` switches checkpointing and bfloat16 on. The adapter is made as in
# `train.py`, after the same seed and the same loading. (SFTTrainer also takes a `peft_config`, and draws one itself.
# Another draw of $A$ is another training, and the first losses do not show it: $B$ starts at zero.)

# %%
program("sft.py", """
import json, sys, torch, transformers, trl
from datasets import Dataset
from lora_lab import pocket
from peft import LoraConfig, get_peft_model

settings = json.load(open("runs/fleet/settings.json")) | {"use_cpu": not torch.cuda.is_available()}
settings |= {"gradient_checkpointing": False, "bf16": False}  # as in train.py; SFTConfig has both on
arguments = trl.SFTConfig(sys.argv[1], per_device_train_batch_size=int(sys.argv[2]), **settings)
rows = Dataset.from_list([json.loads(line) for line in open("runs/fleet/ordered.jsonl")])
transformers.set_seed(arguments.seed)
model, words = pocket.load()
model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
trainer = trl.SFTTrainer(model, arguments, train_dataset=rows, processing_class=words)
trainer.train(), trainer.save_state(), trainer.save_model(), trainer.accelerator.end_training()
""")

# %%
if util.find_spec("trl") and util.find_spec("datasets"):
    shutil.rmtree(FLEET / "trl", ignore_errors=True)
    follow(start("torchrun --standalone --nproc-per-node 2 runs/fleet/sft.py runs/fleet/trl 4"))
    losses["TRL"] = losses_in("trl")
    print(f"worst difference from the notebook: {max(distances('TRL')):.1e}")
else:
    print("TRL is not installed here, so this cell did not run it. `pip install trl`, then run the cell again.")
    recorded = Path("../benchmarks/results/engines.json")
    known = json.loads(recorded.read_text())["engines"] if recorded.exists() else {}
    for engine in (name for name in known if "TRL" in name or "DeepSpeed" in name):
        print(f"recorded by the benchmark: {engine}, worst difference from the notebook {known[engine]['worst']:.1e}")

# %% [markdown]
# TRL adds the end of the text by itself, cuts what is longer than `max_length`, and asks the tokenizer for prompt and
# answer together, so that tokens at the seam may differ. So compare before you believe it.
# [A benchmark](../benchmarks/engines.py) does: it runs these very programs, TRL and DeepSpeed among them, and compares
# their losses with the notebook's, step by step.
#
# **DeepSpeed** calls the same cuts ZeRO: stage 1 shares optimizer states, stage 2 gradients, stage 3 parameters as well
# (Rajbhandari et al. 2020). LoRA has few gradients and states, so stages 1 and 2 save little; stage 3 is FSDP's way. It
# is a file, and an argument of the Trainer: `TrainingArguments(deepspeed="zero3.json")`. Make these arguments before
# the model is loaded, or each process loads all of it. "auto" takes what the Trainer was told.

# %% tags=["nbval-check-output"]
zero3 = {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
         "train_micro_batch_size_per_gpu": "auto",
         "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
(FLEET / "zero3.json").write_text(json.dumps(zero3, indent=1))
print((FLEET / "zero3.json").read_text())

# %% [markdown]
# Three more that you will meet. **None of these was run for this lesson**: they want a GPU. Look into the first rows
# that they tokenize before you believe them.
#
# **Axolotl**: one YAML file; `axolotl train axolotl.yaml`. It sets the four bits' storage for FSDP by itself.
#
# ```yaml
# base_model: meta-llama/Llama-3.1-8B
# special_tokens: {pad_token: "<|finetune_right_pad_id|>"}
# load_in_4bit: true
# adapter: qlora
# lora_r: 8
# lora_alpha: 16
# lora_target_linear: true
# datasets:
#   - path: rows.jsonl
#     ds_type: json
#     type:
#       field_instruction: prompt
#       field_output: completion
#       format: "{instruction}"
#       no_input_format: "{instruction}"
# sequence_len: 512
# micro_batch_size: 2
# gradient_accumulation_steps: 4
# max_steps: 60
# learning_rate: 0.0002
# bf16: auto
# gradient_checkpointing: true
# fsdp_version: 2
# fsdp_config:
#   auto_wrap_policy: TRANSFORMER_BASED_WRAP
#   transformer_layer_cls_to_wrap: LlamaDecoderLayer
#   state_dict_type: FULL_STATE_DICT
#   reshard_after_forward: true
#   cpu_ram_efficient_loading: true
# output_dir: runs/axolotl
# ```
#
# **LLaMA-Factory**: one YAML file too; `FORCE_TORCHRUN=1 llamafactory-cli train factory.yaml`. It sends chat messages,
# so the base is one that was trained for them. The rows are described in `data/dataset_info.json`: `{"home_commands":
# {"file_name": "rows.jsonl", "columns": {"prompt": "prompt", "response": "completion"}}}`.
#
# ```yaml
# model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
# stage: sft
# do_train: true
# finetuning_type: lora
# lora_rank: 8
# lora_alpha: 16
# lora_target: all
# dataset: home_commands
# template: llama3
# cutoff_len: 512
# per_device_train_batch_size: 2
# gradient_accumulation_steps: 4
# max_steps: 60
# learning_rate: 2.0e-4
# bf16: true
# deepspeed: zero3.json
# output_dir: runs/factory
# ```
#
# **Unsloth**: its own kernels for one GPU, and TRL's trainer around them; several GPUs by `torchrun` or `accelerate`.
#
# ```python
# from unsloth import FastLanguageModel
# model, tokenizer = FastLanguageModel.from_pretrained("unsloth/Llama-3.1-8B", max_seq_length=512, load_in_4bit=True)
# model = FastLanguageModel.get_peft_model(model, r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj",
#     "o_proj", "gate_proj", "up_proj", "down_proj"], use_gradient_checkpointing="unsloth")
# trainer = SFTTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)  # the adapter is on it
# ```

# %%
quiz("fleet/engine_rows")

# %%
per_step = {gpus: 2 * 4 * gpus for gpus in (1, 4, 8, 16)}  # micro_batch_size, gradient_accumulation_steps, GPUs
for gpus, rows_a_step in per_step.items():
    print(f"GPUs: {gpus:2}, rows a step: {rows_a_step:3}, rows in 60 steps: {60 * rows_a_step:,}")

# %%
progress()

# %% [markdown]
# ## Recap
#
# - Count rows and tokens over *all* processes, and any number of them takes the notebook's steps, to rounding. Before
#   you pay for a night, compare some steps after the warm-up in float32, on rows of unequal lengths, and the adapters.
# - DDP with LoRA sends the adapter's gradients. FSDP makes the base fit and gathers it again and again. Where the base
#   fits in four bits, DDP may do.
# - A dead process costs the steps since the last checkpoint, if the program can resume. On GPUs, set the time limit.
#
# **The exercise worth doing.** Take `runs/fleet/train.py`, put your own model and rows into it, and run five steps on
# two CPU processes. Do the losses meet those of your notebook? Before you start it on GPUs: take `Watch` out, choose
# `save_strategy`, `bf16` and `gradient_checkpointing`, and look whether `adapter_model.safetensors` is in the folder
# after five steps.
#
# Next: **Lesson 8** takes a file of your own to a verdict.
#
# Sources: Li et al., *PyTorch Distributed* (2020); Patarasuk and Yuan, *Bandwidth optimal all-reduce
# algorithms* (2009); Rajbhandari et al., *ZeRO* (2020), section 7; Zhao et al., *PyTorch FSDP* (2023); Chen et al.,
# *Training Deep Nets with Sublinear Memory Cost* (2016); bitsandbytes, *FSDP-QLoRA*; NVIDIA, *H100 data sheet* (NVLink:
# 900 GB a second in both directions together).
#
# *Lessons:* ← [6 · Merging and shipping](06_merge_and_ship.ipynb) ·
# [8 · Your own data, your own model](08_your_own_data.ipynb) →
