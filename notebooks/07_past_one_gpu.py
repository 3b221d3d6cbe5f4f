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
# *Lessons:* ← [6 · Merging and shipping](06_merge_and_ship.ipynb)
#
# The notebook gets too small: the model does not fit, or a run takes the night. You save what you tuned as a recipe,
# launch it on several processes, and check that they take the very steps that the notebook took.
#
# **You will be able to** move a training from a notebook to several processes without changing it, say what travels
# between GPUs and what a step waits for, and go on after a process has died.
#
# **You need** [Lesson 0](00_first_adapter.ipynb); [Lesson 3](03_train_in_8bit.ipynb) for the memory planner.
#
# **It takes** about two minutes of computing on two CPU cores
# (on a GPU: not recorded). What runs here runs on two CPU processes, and what is said of GPUs is calculated and
# marked so.
#
# ## Why this matters
#
# One GPU ends in two ways. The step does not fit: the frozen base alone is too large. Or it fits and takes too long.
# The two call for different things, and LoRA changes the price of both.

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
import shutil
import signal
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
from lora_lab import LabError, batches, compare, distributed, memory, plots, pocket, progress, quiz, smart_home
from lora_lab.display import table
from lora_lab.finetune import recipes, run_folder
from peft import LoraConfig, get_peft_model

transformers.logging.set_verbosity_error()
Path("runs/fleet").mkdir(parents=True, exist_ok=True)
lora_of_large = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
seven = transformers.LlamaConfig(dtype="bfloat16")  # the shape of a 7B model, no weights
seventy = transformers.LlamaConfig(
    dtype="bfloat16", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8, vocab_size=128256)
shown = {}
for name, config, rows in (("7B, 64 rows", seven, 64), ("7B, 4 rows", seven, 4), ("70B, 1 row", seventy, 1)):
    shown[name] = memory.plan(config, lora_of_large, None, rows, 512, checkpointing=True)
    print(f"{name}: {shown[name]}")

# %%
plots.memory({name: plan.parts() for name, plan in shown.items()}, limit_gb=80)

# %% [markdown]
# **Look** at the last bar: calculated, not measured. With a single row, the 70B shape is past a GPU of 80 GB by its
# frozen weights alone. The 7B shape fits with 64 rows. There, more GPUs buy time and nothing else.
#
# ## Explanation and analogy: marking exams in shares
#
# A stack of exams has to be marked and the class's mean reported. Two examiners take half each. Each reports a mean;
# the mean of the two is the class's mean *if the halves are of equal size*. Otherwise each mean counts by its number.
#
# **Data parallelism (DDP)** is that: every GPU holds the whole model, takes a share of the batch, and the gradients
# are averaged before the step. **FSDP** also cuts the model: each GPU keeps a share of every weight, and a layer is
# gathered when it is needed, as if the examiners shared one textbook in pieces and passed the pages around.
#
# ## Code: cut a batch in two
#
# The pocket model (234,816 parameters) learns a dialect of Lesson 0's commands. Every third row asks for two things at
# once, so that answers differ in length.

# %%
pairs = zip(*[iter(pocket.dialect(smart_home.commands("train", n=384, seed=0)))] * 2)
commands = [(smart_home.prompt(f"{a.text} {b.text}"), a.answer + b.answer) if i % 3 == 0 else a
            for i, (a, b) in enumerate(pairs)]
Path("runs/fleet/rows.jsonl").write_text(
    "".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in commands))
words = pocket.tokenizer()
collate = batches.AnswerCollator(words)
rows = batches.similar_lengths(batches.encode(commands, words), 8, seed=0)
unequal = [i for i in range(0, len(rows), 8) if len({r["answer_length"] for r in rows[i:i + 8]}) > 2]
batch = sorted(rows[unequal[0]:unequal[0] + 8], key=lambda row: row["answer_length"])
print(len(commands), "rows; answer tokens of one batch of 8:", [row["answer_length"] for row in batch])

# %% [markdown]
# **Predict.** You compute the gradient of the first four rows, that of the last four, and average. How far is this
# from the gradient of all eight, as a share of it?

# %%
quiz("fleet/mean_of_means")

# %%
transformers.set_seed(0)
lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(pocket.load()[0], lora)

def gradient(rows):
    """Of the mean loss of these rows' answer tokens, all of the adapter in one row of numbers."""
    model.zero_grad()
    model(**collate(rows)).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

whole, halves = gradient(batch), [gradient(batch[:4]), gradient(batch[4:])]
tokens = [sum(row["answer_length"] for row in half) for half in (batch[:4], batch[4:])]
print(f"{len(whole):,} numbers; answer tokens of the halves: {tokens}")

# %%
merged = {"mean of the two means": (halves[0] + halves[1]) / 2,
          "each counted by its tokens": (tokens[0] * halves[0] + tokens[1] * halves[1]) / sum(tokens)}
off = {name: ((found - whole).norm() / whole.norm()).item() for name, found in merged.items()}
table([{"two halves merged": name, "distance from the whole, relative": f"{far:.1e}"}
             for name, far in off.items()])

# %%
compare("fleet/mean_of_means", 100 * off["mean of the two means"])
assert off["each counted by its tokens"] < 1e-5

# %% [markdown]
# **Look** at the two rows. A loss is a mean over *answer tokens*. Where the shares have different numbers of them, the
# mean of the means is another training, with no error and no warning. The Trainer's
# `average_tokens_across_devices=True` counts tokens over all processes; you see below that it mends this.
#
# ## Code: what travels
#
# Averaging needs every GPU to hear from every other (an *all-reduce*). In a ring, each sends one piece to its neighbour
# at a time: first the sums collect, then they go round. Nobody sends to all.

# %%
def ring(tensors):
    """The sum of one tensor a GPU, on each of them, and the bytes that each sent."""
    n, sent = len(tensors), 0
    pieces = [list(tensor.tensor_split(n)) for tensor in tensors]
    for step in range(2 * (n - 1)):
        parcels = [(gpu, (gpu - step) % n, pieces[gpu][(gpu - step) % n]) for gpu in range(n)]
        for gpu, place, parcel in parcels:
            there = pieces[(gpu + 1) % n]
            there[place] = there[place] + parcel if step < n - 1 else parcel
            sent += parcel.nbytes
    return [torch.cat(own) for own in pieces], sent / n

summed, sent = ring([tokens[0] * halves[0] / sum(tokens), tokens[1] * halves[1] / sum(tokens)])
print(f"two GPUs: off by {(summed[0] - whole).abs().max():.1e}; each sent {sent:,.0f} of {whole.nbytes:,} bytes")

# %%
lines = []
for n in (2, 4, 8, 64):
    given = [torch.randn(6400) for _ in range(n)]
    results, sent = ring(given)
    assert all(torch.allclose(found, sum(given), atol=1e-4) for found in results)
    lines.append({"GPUs": n, "sent by each, times the gradient": f"{sent / given[0].nbytes:.4f}",
                  "2 (N-1)/N": f"{2 * (n - 1) / n:.4f}"})
table(lines)

# %% [markdown]
# **Look** down the column: it stops growing. 64 GPUs cost each one hardly more than 8. What counts is the size of the
# gradient, and LoRA has gradients for the adapter alone. For the 7B shape, calculated:

# %%
adapter_bytes = shown["7B, 4 rows"].gradient_bytes
full_bytes = shown["7B, 4 rows"].weights_bytes  # full fine-tuning has a gradient for every weight, in bfloat16
table([{"training": name, "gradients": memory.human(size), "sent by each of 8 GPUs": memory.human(size * 7 / 4)}
             for name, size in (("LoRA, rank 8, all linear", adapter_bytes), ("full fine-tuning", full_bytes))])

# %%
quiz("fleet/ring_bytes")

# %%
quiz("fleet/what_travels")

# %% [markdown]
# ## Code: the recipe
#
# What you tuned, as a file. `batch_size` counts the rows of *all* processes together: the number that decides the
# steps stays the same on any number of GPUs. Where a GPU cannot hold its share at once,
# `gradient_accumulation_steps` takes it in so many passes, and `gradient_checkpointing` is what Lesson 3 has it for.

# %%
def write(name, batch_size=8, **in_lora):
    """A recipe that trains into a new folder."""
    shutil.rmtree(f"runs/fleet/{name}", ignore_errors=True)
    recipe = dict(model="pocket", data={"path": "runs/fleet/rows.jsonl"}, output=f"runs/fleet/{name}",
                  lora={"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | in_lora,
                  training=dict(max_steps=24, batch_size=batch_size, learning_rate=1e-2, warmup_steps=2, save_steps=6))
    return recipes.write(recipe, f"runs/fleet/{name}.yaml")

print(write("one").read_text())

# %% [markdown]
# First the notebook's own Trainer, by the same numbers. Its losses are what the launches have to meet.

# %%
def in_notebook(batch_size=8):
    recipe = recipes.read(write("notebook", batch_size))
    transformers.set_seed(recipe.training.seed)
    model, t = get_peft_model(pocket.load()[0], recipe.lora_config()), recipe.training
    arguments = transformers.TrainingArguments(
        output_dir=recipe.output, max_steps=t.max_steps, per_device_train_batch_size=t.batch_size, logging_steps=1,
        learning_rate=t.learning_rate, warmup_steps=t.warmup_steps, train_sampling_strategy="sequential",
        save_strategy="no", remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False, use_cpu=True)
    rows = batches.similar_lengths(batches.encode(commands, words), t.batch_size, t.seed)
    trainer = transformers.Trainer(model, arguments, collate, rows)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]

losses = {"notebook": in_notebook()}
print(f"{len(losses['notebook'])} steps: loss {losses['notebook'][0]:.3f} to {losses['notebook'][-1]:.3f}")

# %% [markdown]
# ## Code: launch it
#
# `accelerate launch` starts the processes and tells each its number, the *rank* (no kin of LoRA's). How many, and on
# what, is in a config file. This one is the repository's `launch/cpu2.yaml`: two processes on the CPU. (accelerate's
# own MULTI_CPU starts one process where there is no MPI; so these are two GPU processes without a GPU, and they talk
# over *gloo*, PyTorch's way between CPUs.) `ddp.yaml` and `fsdp.yaml` lie beside it.

# %%
Path("runs/fleet/cpu2.yaml").write_text(yaml.safe_dump({
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 1, "machine_rank": 0,
    "num_processes": 2, "gpu_ids": "-1,-1", "mixed_precision": "no", "main_training_function": "main"}))

def start(*what, port=0):
    """A launch, started; its output is one stream. Port 0 means any that is free."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "runs/fleet/cpu2.yaml",
               "--main_process_port", str(port), *map(str, what)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)

print(" ".join("accelerate launch --config_file runs/fleet/cpu2.yaml -m lora_lab.finetune RECIPE".split()))

# %%
SHOW = r"processes share|process takes|Going on|adapter is in|LabError|exitcode|Signal|rank +:|rror:"

def follow(process, show=SHOW):
    """Print the lines that matter as they come; returns all of them and the exit code."""
    said, began = [], time.perf_counter()
    for line in process.stdout:
        said.append(line.rstrip())
        if re.search(show, line):
            print(re.sub(r"(?<!\w)/\S+/|\S+: UserWarning: ", "", said[-1])[:150])
    print(f"exit code {process.wait()} after {time.perf_counter() - began:.0f} s")
    return said, process.returncode

single = [sys.executable, "-m", "lora_lab.finetune", str(write("one"))]
on_cpu = os.environ | {"ACCELERATE_USE_CPU": "true"}  # as the other two runs, where there is a GPU
_ = follow(subprocess.Popen(single, env=on_cpu, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
_ = follow(start("-m", "lora_lab.finetune", write("two")))

# %% [markdown]
# **Predict.** How far apart are the losses of two processes and of the notebook, in the worst step?

# %%
quiz("fleet/two_processes")

# %%
for name, folder in (("1 process", "one"), ("2 processes", "two")):
    losses[name] = [line["loss"] for line in run_folder.read_metrics(f"runs/fleet/{folder}")]
    assert len(losses[name]) == 24, f"{name} is not complete: run the launch above again"
plots.lines({name: (range(1, 25), values) for name, values in losses.items()}, "step", "loss")

# %%
worst = {name: max(abs(a - b) for a, b in zip(values, losses["notebook"])) for name, values in losses.items()}
table([{"run": name, "last loss": f"{losses[name][-1]:.6f}", "worst difference": f"{far:.1e}"}
             for name, far in worst.items()])

# %%
compare("fleet/two_processes", worst["2 processes"])

# %% [markdown]
# **Look** at the three curves: one. The differences are float32's round-off, because sums are added up in another
# order. So token counts were averaged rightly too: a mean of means would show here.
#
# ## Error recovery: a process dies
#
# A node fails, the kernel takes the memory back. You do it by hand: `SIGKILL` to the second process, in the middle. A
# callback slows the steps down so that you can hit it.

# %%
Path("runs/fleet/slowly.py").write_text("""
import sys, time
from lora_lab import finetune
from lora_lab.finetune import recipes
from transformers import TrainerCallback

class Slowly(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        time.sleep(0.2)

finetune.train(recipes.read(sys.argv[1], 2), callbacks=(Slowly(),))
""")
print("runs/fleet/slowly.py is written")

# %%
recipe = write("killed")
process = start("runs/fleet/slowly.py", recipe)
while process.poll() is None and run_folder.last_checkpoint("runs/fleet/killed") is None:
    time.sleep(0.05)  # until there is a first checkpoint
print("complete:", run_folder.last_checkpoint("runs/fleet/killed"))
for child in psutil.Process(process.pid).children():
    if child.environ().get("RANK") == "1":
        child.send_signal(signal.SIGKILL)
said, code = follow(process)
print("steps on record:", len(run_folder.read_metrics("runs/fleet/killed")))
assert code != 0

# %% [markdown]
# **Look** at the rank (here: which process) and the signal: the launcher names who died and of what, ends the other
# process, and returns an exit code that is not 0. Launch the same recipe again, and the folder is protected:

# %%
try:
    recipes.read(recipe, processes=2)
except LabError as error:
    print(error)

# %%
_ = follow(start("-m", "lora_lab.finetune", recipe, "--resume"))
resumed = [line["loss"] for line in run_folder.read_metrics("runs/fleet/killed")]
far = max(abs(a - b) for a, b in zip(resumed, losses["2 processes"], strict=True))
table([{"run": "never stopped", "steps": 24, "last loss": f"{losses['2 processes'][-1]:.6f}"},
             {"run": "killed, resumed", "steps": len(resumed), "last loss": f"{resumed[-1]:.6f}"}])

# %%
print(f"worst difference of any step: {far:.1e}")
assert far < 1e-5

# %%
quiz("fleet/after_kill")

# %% [markdown]
# ### What people get told
#
# A recipe is checked whole, before any model loads. Its faults come together, each with its key. If many processes are
# launched, read the first lines: what follows is the launcher's own report.

# %%
bad = yaml.safe_load(write("bad").read_text())
bad["lora"]["r"] = 100
bad["training"] |= {"learning_rate": "fast", "batchsize": 8}
Path("runs/fleet/bad.yaml").write_text(yaml.safe_dump(bad))
for path, processes in (("runs/fleet/bad.yaml", 2), (write("good"), 3)):
    try:
        recipes.read(path, processes=processes)
    except LabError as error:
        print(error, "\n")

# %% [markdown]
# Two launches on one machine want the same port, 29500, unless told otherwise. Something else holds the port here:

# %%
with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    said, code = follow(start("-m", "lora_lab.finetune", write("port"), port=taken.getsockname()[1]),
                        show="already in use|processes share|adapter is in")

# %% [markdown]
# On one machine accelerate says so, takes a free port and goes on: look at the exit code. `--main_process_port 0` asks
# for a free one from the start, as `start` does.

# %%
quiz("fleet/refused")

# %% [markdown]
# ## Common gotcha: the same numbers, another training
#
# Most launchers count the batch *per process*. Keep 8 there, and two processes train on 16 rows a step: other steps,
# and a learning rate tuned for something else.

# %%
losses_16 = in_notebook(batch_size=16)  # two processes with 8 each take these steps
table([{"rows a step": size, "rows seen": size * 24, "last loss": f"{values[-1]:.4f}",
              "mean of the last six": f"{sum(values[-6:]) / 6:.4f}"}
             for size, values in ((8, losses["notebook"]), (16, losses_16))])

# %% [markdown]
# **Look** at both losses. 16 rows a step saw twice as many rows in as many steps, and ended lower here: not better, but
# another training, and no longer the one that you tuned. A last loss is that of one batch; the mean of six says more.

# %%
quiz("fleet/rows_seen")

# %% [markdown]
# Does each process draw an adapter of its own, if its seed is its own? Ask two processes, before and after DDP.

# %%
_ = Path("runs/fleet/seeds.py").write_text("""
import torch
from accelerate import PartialState, utils
from lora_lab import pocket
from peft import LoraConfig, get_peft_model

torch.manual_seed(rank := PartialState(cpu=True).process_index)
model = get_peft_model(pocket.load()[0], LoraConfig(r=4, target_modules="all-linear"))
for when in ("before DDP", "with DDP"):
    found = utils.gather(sum(p.detach().abs().sum() for n, p in model.named_parameters() if "lora_A" in n)).tolist()
    if rank == 0:
        print(f"seeds: sum of |A| {when}, process 0 and 1: {found[0]:.4f} {found[1]:.4f}", flush=True)
    model = torch.nn.parallel.DistributedDataParallel(model) if when == "before DDP" else model
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
""")

# %%
_ = follow(start("runs/fleet/seeds.py"), show="seeds:")

# %% [markdown]
# **Look** at the second line: DDP begins by sending process 0's parameters to all. An adapter of one's own does not
# survive it, and a training loop without DDP would have two adapters that drift apart.
#
# `lora_dropout` is the exception to equal steps: each process drops entries of its own.

# %%
_ = follow(subprocess.Popen([sys.executable, "-m", "lora_lab.finetune", str(write("drop1", lora_dropout=0.1))],
                            env=on_cpu, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
_ = follow(start("-m", "lora_lab.finetune", write("drop2", lora_dropout=0.1)))
dropped = [[line["loss"] for line in run_folder.read_metrics(f"runs/fleet/{name}")] for name in ("drop1", "drop2")]
print(f"worst difference with dropout {max(abs(a - b) for a, b in zip(*dropped)):.1e}, "
      f"without {worst['2 processes']:.1e}")

# %% [markdown]
# And int8 or nf4 under FSDP is refused here, before it goes wrong:

# %%
try:
    distributed.plan(seven, lora_of_large, "nf4", gpus=8, mode="fsdp")
except LabError as error:
    print(error)

# %% [markdown]
# ## On paper: 1, 8, 64 GPUs
#
# Calculated, not measured. Set the two speeds to what *you* measured: what one GPU reaches in training, and what it
# sends over the slowest link on the way. The numbers below are placeholders.

# %%
SPEEDS = dict(flop_per_second=200e12, bytes_per_second=25e9)
SHAPE = dict(batch_size=64, seq_len=512, checkpointing=True)
plans = {(name, mode, share.gpus): share for name, config in (("7B", seven), ("70B", seventy))
         for mode in distributed.MODES
         for share in distributed.plan(config, lora_of_large, gpus=(1, 8, 64), mode=mode, **SHAPE, **SPEEDS)}
table([{"shape": name, "mode": mode.upper(), "GPUs": n, "rows each": s.rows,
              "memory each": memory.human(s.memory.total_bytes), "in 80 GB": "yes" if s.memory.fits(80) else "no",
              "sent a step": memory.human(s.sent_bytes), "sending": f"{s.send_seconds:.3f} s",
              "computing": f"{s.compute_seconds:.2f} s"}
             for (name, mode, n), s in plans.items() if n > 1 or mode == "ddp"])

# %% [markdown]
# **Look** at the column of what is sent. DDP sends megabytes, and LoRA is bound by computing. FSDP makes the 70B shape
# fit, and pays: the whole frozen base is gathered twice a step, whether it trains or not. Full fine-tuning would send
# its gradients once on top: here LoRA saves about a third of what is sent, and not nearly all.

# %%
GPUS = (2, 4, 8, 16, 32, 64)
by_mode = {mode: distributed.plan(seven, lora_of_large, gpus=GPUS, mode=mode, **SHAPE, **SPEEDS)
           for mode in distributed.MODES}
plots.lines({"sending, FSDP": (GPUS, [s.send_seconds for s in by_mode["fsdp"]]),
             "computing": (GPUS, [s.compute_seconds for s in by_mode["ddp"]]),
             "sending, DDP": (GPUS, [s.send_seconds for s in by_mode["ddp"]])},
            "GPUs that share 64 rows", "seconds a step (calculated)", yscale="log")

# %% [markdown]
# **Look** where the line of computing crosses that of FSDP. Computing falls with the rows of a GPU; gathering does
# not. So FSDP with LoRA waits for the network when the batch per GPU is small. The way out is more rows a GPU:

# %%
rows_each = []
for rows in (1, 4, 16, 64):
    (share,) = distributed.plan(seven, lora_of_large, gpus=8, mode="fsdp", **SHAPE | {"batch_size": 8 * rows}, **SPEEDS)
    rows_each.append({"rows a GPU": rows, "sending": f"{share.send_seconds:.2f} s",
                      "computing": f"{share.compute_seconds:.2f} s", "bound by": share.bound_by})
table(rows_each)

# %%
quiz("fleet/bound")

# %% [markdown]
# ## What just happened?
#
# A recipe took the training out of the notebook. One process and two took the notebook's steps, to round-off; a killed
# one went on to the same loss. Only the adapter's gradients travel under DDP. FSDP cuts the memory of the frozen base,
# and gathers it again and again.
#
# ## Experienced-dev note
#
# - Do not, if you need not. A base that fits one GPU in int8 or nf4 ([Lesson 3](03_train_in_8bit.ipynb)) needs no
#   network, no launcher and no FSDP.
# - Try more rows before more GPUs: a GPU that is not full is not helped by a second one.
# - DDP and FSDP on GPUs were not tried for this lesson; `launch/ddp.yaml` and `launch/fsdp.yaml` say so, too.
# - DeepSpeed calls the same cuts ZeRO: stage 1 shares optimizer states, 2 gradients, 3 parameters as well. FSDP with
#   `reshard_after_forward` is stage 3. LoRA has few gradients and states, so stages 1 and 2 save little.
# - Choose `save_steps` by what you can afford to lose: a resume repeats everything after the last complete checkpoint.
#
# ## Check your understanding

# %%
quiz("fleet/when_not")

# %%
progress()

# %% [markdown]
# ## Exercises
#
# **1. Repair the recipe** until two processes can train by it. The check reads it as a launch would.

# %%
my_recipe = {
    "model": "pocket", "data": {"path": "runs/fleet/rows.jsonl"}, "output": "runs/fleet/mine",
    "lora": {"r": 80, "lora_alpha": 16, "target_modules": ["q_proj", "o_projj"]},
    "training": {"max_steps": 20, "batch_size": 9, "learning_rate": "0.01x", "warmup": 2},
}
quiz("fleet/repaired_recipe", my_recipe)

# %% [markdown]
# **2. The smallest fleet.** The 7B shape, 64 rows of 512 tokens a step with checkpointing, GPUs of 12 GB: which number
# (1, 2, 4, ... 64) and which mode is the fewest that fits?

# %%
my_fleet = {"gpus": 64, "mode": "fsdp"}
quiz("fleet/smallest_fleet", my_fleet)

# %% [markdown]
# **3. Equal steps.** Write the function: a global batch, a number of processes, and the most rows that a GPU can hold
# at a time. Return the rows a process and the number of times that gradients are accumulated, so that a step sees the
# global batch exactly, in as few passes as possible.

# %%
def per_process(batch_size, processes, most_rows):
    return batch_size, 1

quiz("fleet/per_process", per_process)

# %% [markdown]
# **The one worth doing.** Write the recipe of your own run, launch it on two CPU processes for five steps, and compare
# with your notebook's first five losses before you pay for a GPU.
#
# ## Recap
#
# - Same global batch, tokens counted over all processes: any number of processes takes the same steps.
# - DDP with LoRA sends the adapter's gradients: megabytes. FSDP gathers the frozen base: gigabytes.
# - Checkpoints, `--resume`, and an exit code that is not 0: a dead process costs the steps since the last save.
#
# Ring all-reduce: Patarasuk & Yuan (2009). ZeRO: Rajbhandari et al. (2020). FSDP: Zhao et al. (2023).
#
# *Lessons:* ← [6 · Merging and shipping](06_merge_and_ship.ipynb)
