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
# # 4 · Where the memory goes
#
# *Lessons:* ← [3 · Training in 8 bits](03_train_in_8bit.ipynb) ·
# [5 · The alpha experiments](05_alpha_scaling.ipynb) →
#
# A training runs for three hours and then stops: out of memory, at the longest row of the data. A common first idea is
# a lower rank. Here you count every byte of a training step, and find out what helps and what only sounds as if it did.
# You run out of memory on purpose, and climb out. Then you kill a training and lose no more than the steps since it was
# last saved.
#
# **You will be able to** say what a step will need before you start it, choose the change that makes it fit, and go on
# after a crash.
#
# **You need** [Lesson 0](00_first_adapter.ipynb) and [Lesson 3](03_train_in_8bit.ipynb).
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: 1.5 min, NVIDIA H200, peak 3.2 GB, 7 cells not shown there).

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
import logging
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from lora_lab import compare, load_base, memory, plots, progress, quiz
from lora_lab.course import explorers
from lora_lab.display import Progress, table
from peft import LoraConfig, PeftConfig, get_peft_model, prepare_model_for_kbit_training
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, PrinterCallback, Qwen2Config

# %% [markdown]
# ## Will this step fit?
#
# Llama-2-7B has 6.7 billion weights. In 16 bits that is 13.5 GB. You want to train an adapter of rank 8 on q and v,
# less than a thousandth of the parameters, on a GPU with 16 GB (10⁹ bytes each, here and everywhere below). One row of
# text at a time, 2,048 tokens long.
#
# Does it fit? Commit to a number.

# %%
quiz("memory/step_gb")

# %% [markdown]
# `memory.plan` answers without the weights. It takes the model's config, and lets the model's own code run one training
# step on tensors that have a shape and no contents. Meanwhile it keeps the account of what is alive.

# %%
GPU_GB = 16  # a T4 (Colab's free one) has as many; it computes in float16, which takes the same bytes
llama = LlamaConfig(dtype="bfloat16")  # Llama-2-7B's sizes

def lora(r=8, target_modules="all-linear", **others):
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=target_modules, task_type="CAUSAL_LM", **others)

qv = lora(8, ["q_proj", "v_proj"])
rows = {f"1 × {length:,}": memory.plan(llama, qv, "bfloat16", batch_size=1, seq_len=length)
        for length in (512, 1024, 2048)}
print(rows["1 × 2,048"])
compare("memory/step_gb", rows["1 × 2,048"].total_bytes / 1e9)

# %%
plots.memory({name: planned.parts() for name, planned in rows.items()}, GPU_GB,
             "One row of 512, 1,024 or 2,048 tokens: which parts grow with the text?")

# %% [markdown]
# **Look** at the colours. Which parts grow with the text? This is what a step holds:
#
# | part | what it is | grows with |
# |---|---|---|
# | weights | the frozen base | model, precision |
# | quantization | the scales of a base in 8 or 4 bits (Lesson 3) | model, precision |
# | adapter | A and B | rank, targets |
# | gradient | a number for each entry of A and B | rank, targets |
# | optimizer | AdamW's running means, two for each entry | rank, targets |
# | activation | what the forward pass keeps for the backward pass | tokens, depth, targets |
# | logits | a score for each token of the vocabulary, at each place, and the loss's copies | tokens, vocabulary |
#
# (Eager attention also keeps a score for each pair of places: there a row counts with its square.)
#
# Turn the controls and try to get below the line. Which of them move the bar, and which do nothing that you can see?

# %%
explorers.plan_memory(GPU_GB, model="Llama-2-7B", precision="bfloat16", seq_len=2048)

# %% [markdown]
# ## Count a step yourself
#
# A plan is a promise. Check it on our model, with a real step: everything that is there afterwards can be counted.
#
# Activations and logits are gone by then. `memory.measure` watches for them while the step runs. On a GPU it asks torch
# what was allocated. On a CPU it adds up what torch's operations return and subtracts what is freed.

# %%
base, _ = load_base(precision="float32")  # small differences matter in this lesson

def fill(model, rows=2, length=128, **options):
    """Take one step, and return the most bytes that it held beside parameters and gradients."""
    for p in model.parameters():
        if p.requires_grad and p.grad is None:  # as every step after the first one finds them
            p.grad = torch.zeros_like(p)
    ids = torch.randint(0, 1000, (rows, length), device=model.device)
    labels = ids[:, -options.get("logits_to_keep", 0):]
    with memory.measure(model.train()) as used:
        model(input_ids=ids, labels=labels, use_cache=False, **options).loss.backward()
    return used.peak_tensor_bytes

model = get_peft_model(base, lora())
print(f"a step of 2 rows of 128 tokens held {memory.human(fill(model))} beside parameters and gradients")

# %%
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained)
optimizer.step()
means = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim()]
counted = {"weights": sum(p.nbytes for p in model.parameters()) - sum(p.nbytes for p in trained),
           "adapter": sum(p.nbytes for p in trained), "gradient": sum(p.grad.nbytes for p in trained),
           "optimizer": sum(tensor.nbytes for tensor in means), "activation and logits": fill(model)}
plan = memory.plan(model, batch_size=2, seq_len=128)
planned = {part: getattr(plan, f"{part}_bytes", 0) for part in counted}
planned["activation and logits"] = plan.activation_bytes + plan.logits_bytes
table([{"part": part, "counted": memory.human(counted[part]), "planned": memory.human(planned[part]),
        "planned / counted": f"{planned[part] / counted[part]:.3f}"} for part in counted])

# %%
worst = max(counted, key=lambda part: abs(planned[part] / counted[part] - 1))
print(f"The plan is furthest off for {worst}: {planned[worst] / counted[worst] - 1:+.2%}.",
      "Its shapes and lifetimes are those of a real step." if abs(planned[worst] / counted[worst] - 1) < 0.05 else
      "That is more than rounding: here the plan leaves something out, or counts something that is not there.")
base = model.unload()  # the adapter is off again

# %% [markdown]
# Both columns add up tensors in the same way, one of them without their contents. What a process takes beside its
# tensors is in neither.
#
# But why are there so many activations? Let one block speak, with an adapter on q and v alone. torch hands every tensor
# that a layer keeps for its backward pass to a hook. (A layer may also keep one past that way. You will meet one that
# does.)

# %%
frozen = {p.data_ptr() for p in base.parameters()}
kept = {}

def keep(tensor):
    if tensor.data_ptr() not in frozen:  # the same tensor is kept once, and a weight is there anyway
        kept[tensor.data_ptr()] = tensor
    return tensor

adapted = get_peft_model(base, qv).train()
block = adapted.base_model.model.model.layers[5]
hidden = torch.randn(2, 128, base.config.hidden_size, device=base.device, requires_grad=True)
turned = base.model.rotary_emb(hidden, torch.arange(128, device=base.device)[None])
with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
    block(hidden, position_embeddings=turned)
shapes = [tuple(tensor.shape) for tensor in kept.values() if tensor.nbytes > 1e5]
table([{"kept, shape": str(shape), "times": shapes.count(shape)} for shape in sorted(set(shapes), key=str)])

# %%
size, depth = sum(tensor.nbytes for tensor in kept.values()), base.config.num_hidden_layers
thin = sum(p.nbytes for p in block.parameters() if p.requires_grad)
print(f"One block keeps {len(kept)} tensors ({len(shapes)} of them large), {memory.human(size)} for 256 tokens;",
      f"{depth} blocks {memory.human(depth * size)}. Its A and B take {memory.human(thin)}.")
kept.clear()
base = adapted.unload()

# %% [markdown]
# ## Does the plan hold on a GPU?
#
# That was our model. For large ones there are figures that other people published: peaks of their trainings, and cards
# with the longest row that they could take. Below are six of the 21 that the course has found. Each is planned as its
# source trained it. What a source leaves out is assumed, and [the benchmark](../benchmarks/README.md) says what. (GB
# are read as 10⁹ bytes. Where a source means 2³⁰, its figure is 7 % larger, and the plan falls that much shorter.)
#
# Two words that come up in these settings: `checkpointing` forgets and computes again, in one of two kinds, and
# `prepared` is a base that went through `prepare_model_for_kbit_training`, whose float32 parts are steadier arithmetic
# and more memory. Sections below try both.

# %%
quiz("memory/planner_gap")

# %%
wide = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, dtype="bfloat16")
llama_31 = LlamaConfig(**wide, intermediate_size=14336, num_key_value_heads=8, vocab_size=128256)
qwen = Qwen2Config(**wide, intermediate_size=11008, num_key_value_heads=32, vocab_size=151936)
mlp_too = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
nf4 = dict(precision="nf4", double_quant=True, checkpointing="reentrant")
half = dict(precision="bfloat16", checkpointing="reentrant")
PEAKS = {  # who, bits, rows × tokens: published GB, model, adapter, how it was trained (HF: a table of Unsloth's docs)
    "HF in a 16 GB card, 4 bits, 1 × 2,551": (16, llama_31, lora(32), dict(nf4, seq_len=2551, prepared=True)),
    "HF in a 48 GB card, 4 bits, 1 × 15,502": (48, llama_31, lora(32), dict(nf4, seq_len=15502, prepared=True)),
    "LLaMA-Factory, 4 bits, 1 × 8,192": (12, llama, lora(8), dict(nf4, seq_len=8192)),
    "LLaMA-Factory, 16 bits, 4 × 1,024": (17, llama, lora(8), dict(half, batch_size=4, seq_len=1024)),
    "Qwen's README, 16 bits, 1 × 2,048": (23.8, qwen, lora(64, lora_dropout=0.05), dict(half, seq_len=2048)),
    "torchtune, 16 bits, 2 × 2,048": (17.4, llama_31, lora(8, mlp_too), dict(half, batch_size=2, seq_len=2048,
                                                                            cross_entropy="chunked"))}
print(f"{len(PEAKS)} published figures")

# %%
found = {}
with Progress("planning", total=len(PEAKS)) as bar:
    for name, (_, config, adapter, options) in PEAKS.items():
        found[name] = memory.plan(config, adapter, **options)
        bar.update(1)
plots.memory({name: planned.parts() for name, planned in found.items()}, title="How far is each plan from its diamond?",
             marks={name: peak[0] for name, peak in PEAKS.items()})

# %%
gaps = {name: planned.total_bytes / 1e9 / PEAKS[name][0] - 1 for name, planned in found.items()}
table([{"published by": name, "published, GB": PEAKS[name][0], "planned, GB": f"{planned.total_bytes / 1e9:.1f}",
        "off by": f"{gaps[name]:+.0%}"} for name, planned in found.items()])

# %%
worst = max(gaps, key=lambda name: abs(gaps[name]))
short = sum(gap < 0 for gap in gaps.values())
print(f"{short} of {len(gaps)} plans are short of the published figure. Furthest off: {worst}, {gaps[worst]:+.0%}.")
kept = {options["precision"]: found[name].reserve for name, (*_, options) in PEAKS.items()}
print("From all figures of the benchmark, fits() keeps part of a GPU free:",
      ", ".join(f"{share:.0%} for a base in {kind}" for kind, share in kept.items()))
compare("memory/planner_gap", 100 * abs(gaps[worst]))

# %% [markdown]
# A GPU holds CUDA's own context and what the allocator cannot use, and a published figure has its own choices: whole
# GB, older code, another attention. The reserve is the largest shortfall of all the benchmark's figures, after half a
# GB for those in whole GB, and was tested on no others. For 8 bits none was found, so it takes that of 16 bits. Is
# there a run of the course's own?

# %%
recorded = Path("../benchmarks/results/gpu_8bit.json")
runs = json.loads(recorded.read_text())["configurations"].values() if recorded.exists() else ()
runs = [job for job in runs if job["status"] == "ok" and job.get("planned") and job["steps"]["peak_allocated_bytes"]]
off = [job["planned"]["total_bytes"] / job["steps"]["peak_allocated_bytes"] - 1 for job in runs]
for bits in dict.fromkeys(job["precision"] for job in runs):
    furthest = max((gap for job, gap in zip(runs, off) if job["precision"] == bits), key=abs)
    print(f"{bits}: the plan is off by {furthest:+.1%} at most")
(table([{"model": job["model"], "bits": job["precision"], "rows × tokens": f"{job['batch']} × {job['seq']:,}",
         "prepared": job["prepared"], "checkpointing": job["checkpointing"],
         "planned": memory.human(job["planned"]["total_bytes"]),
         "took": memory.human(job["steps"]["peak_allocated_bytes"]), "off by": f"{gap:+.1%}"}
        for job, gap in zip(runs, off)]) if runs else
 print("Not recorded. benchmarks/gpu_8bit.py records one, on a machine with a GPU."))

# %% [markdown]
# In 8 bits a GPU holds what the plan leaves out: columns of an input that hold a value of 6 or more are kept once more,
# in 16 bits (Lesson 3 counts some). How many there are depends on the weights.
# [The benchmark](../benchmarks/README.md) counted them, in random weights and in our model.
#
# ## Out of memory, on purpose
#
# Now run into the wall. A process of its own may take 600 MB above what it has after its first step. It doubles the
# rows of a step until that is too little. Then it takes the same rows in parts, and lets the gradients add up: each
# part's mean loss counts for its share of the rows. (That is the gradient of the whole because all these rows have
# equally many labels. Exercise 1 is about rows that have not.)
#
# **Guess:** which tensor will it be that it cannot get? Each row has 64 places. A place has 576 numbers of 4 bytes
# between the blocks, 1,536 in the MLP, and 49,152 scores at the end.

# %%
model_and_limit = '''
import psutil, torch; from lora_lab import load_base
from peft import LoraConfig, get_peft_model
model = get_peft_model(load_base(precision="float32", quiet=True)[0], LoraConfig(target_modules="all-linear")).train()
ids = torch.randint(0, 1000, (32, 64), device=model.device)
def step(rows, parts=1): (model(input_ids=rows, labels=rows, use_cache=False).loss / parts).backward()
step(ids[:1])
if torch.cuda.is_available():
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 6e8) / whole)
else:
    import resource  # Linux holds a process to this limit, macOS does not, Windows has none
    most = psutil.Process().memory_info().data + 6 * 10**8
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))'''
print(len(model_and_limit.splitlines()), "lines: the model, one step, and then the limit")

# %%
script = model_and_limit + '''
for rows in (2, 4, 8, 16, 32):
    try:
        step(ids[:rows])
        print(rows, "rows fit")
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        print(f"{rows} rows: {type(error).__name__}: {str(error).splitlines()[0].split('Allocator: ')[-1][:110]}")
        break
else: print("and no error: this system does not hold a process to such a limit")
model.zero_grad()
for some in ids[:rows].split(2): step(some, rows // 2)
print(f"{rows} rows, two at a time: fit. The process is still able to train.")'''
print(len(script.splitlines()), "lines in all")

# %%
with Progress("running into the wall", total=1):
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
if ran.returncode and (torch.cuda.is_available() or sys.platform.startswith("linux")):
    raise RuntimeError(ran.stderr[-2000:])
print("This system sets no such limit." if ran.returncode else ran.stdout)

# %% [markdown]
# If a line names an error, read its class and the bytes that it asked for. Divide them by the rows, by 64 and by 4, and
# compare with your guess. Which tensor is the *last* straw may change from run to run: what fills the memory was there
# before. On a GPU the class is `torch.OutOfMemoryError`, a RuntimeError as well, and the process goes on, as the last
# line shows. A CPU process without such a limit gets no error: the system kills it.
#
# What a failed step holds is freed only when nothing refers to it, and the error's own traceback does. So leave the
# `except` block before you try again. In a notebook an uncaught error is worse: the kernel keeps its traceback, with
# every tensor of the step. Restart the kernel; or clear `sys.last_exc`, `sys.last_value` and `sys.last_traceback`, set
# the gradients to None, and call `gc.collect()` and `torch.cuda.empty_cache()`.
#
# Rows in parts are **gradient accumulation**: in the Trainer, `per_device_train_batch_size=2` and
# `gradient_accumulation_steps=16` in place of 32 rows. (It weighs each label alike, however the rows are cut.)
#
# ## The ladder: what helps?
#
# Start from a training of our model with rank 64 and dropout 0.05, on 2 rows of 128 tokens. Change *one* thing at a
# time, each time from the start. Only the last 16 places of each row get scores here, so that the activations stand
# alone. First everybody's first idea.

# %%
quiz("memory/lower_rank")

# %%
SWITCH = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"  # before transformers 5.23

def climb(base, r=64, lora_dropout=0.05, rows=2, checkpointing=False):
    """Return the parts of one step in bytes, with the logits of the last 16 places only."""
    if checkpointing:
        getattr(base, f"{SWITCH}_checkpointing_enable")({"use_reentrant": checkpointing == "reentrant"})
    weights = base.get_memory_footprint()
    model = get_peft_model(base, lora(r, lora_dropout=lora_dropout))
    adapter = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    held = fill(model, rows, logits_to_keep=16)
    getattr(model.unload(), f"{SWITCH}_checkpointing_disable")()
    return {"weights_bytes": weights, "adapter_bytes": adapter, "gradient_bytes": adapter,
            "optimizer_bytes": 2 * adapter, "activation_bytes": held}

START = "start: r 64, dropout 0.05, 2 × 128"
climbed = {START: climb(base)}
print(START, {part: memory.human(size) for part, size in climbed[START].items()})

# %%
CHANGES = {"rank 64 → 4": dict(r=4), "dropout 0.05 → 0": dict(lora_dropout=0.0), "rows 2 → 1": dict(rows=1)}
with Progress("climbing", total=len(CHANGES)) as bar:
    for label, change in CHANGES.items():
        climbed[label] = climb(base, **change)
        bar.update(1)
plots.memory(climbed, title="Which change leaves least, and which part shrinks?")

# %%
start = climbed[START]
for label, parts in climbed.items():
    print(f"{label:35} {sum(parts.values()) / sum(start.values()):4.0%} of the start's memory, "
          f"{parts['activation_bytes'] / start['activation_bytes']:4.0%} of its activations")
least = min(climbed, key=lambda label: sum(climbed[label].values()))
adapter = start["adapter_bytes"]
of_llama = memory.plan(llama, lora(64), "bfloat16")
print(f"Least is left by: {least}. At rank 64 the adapter is {adapter / start['weights_bytes']:.0%} of this base, and "
      f"{of_llama.adapter_bytes / of_llama.weights_bytes:.0%} of Llama-2-7B in 16 bits.")
compare("memory/lower_rank", 100 * sum(climbed["rank 64 → 4"].values()) / sum(start.values()))

# %% [markdown]
# **Look** at the orange. What forward keeps for backward depends on how many tokens pass through how many layers. The
# rank is the width of one thin tensor among many. It counts in the three other parts: adapter, gradient, optimizer. How
# much these weigh hangs on the size of the model: the last line has ours and a larger one.
#
# Dropout keeps a mask and a masked copy of the input for every adapted layer. (On a CPU the mask takes four bytes for
# each entry, on a GPU one.)
#
# ## Checkpointing: forget, and compute again
#
# Why does the forward pass keep anything? The gradient of a product needs both factors, so the backward pass needs what
# the layers were given. It comes to them in reverse order, and until then everything waits.
#
# **Checkpointing** (Chen et al. 2016) keeps only the input of each block and forgets the rest. When the backward pass
# reaches a block, it runs the block's forward pass again, from the kept input. See it on 16 small blocks, and count how
# often a block runs.

# %%
nn = torch.nn
blocks = nn.ModuleList(nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)) for _ in range(16))
blocks.to(base.device)
calls = []
for block in blocks:
    block.register_forward_pre_hook(lambda *_: calls.append(1))

def through(x, forget):
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if forget else block(x)
    return x.sum()

x = torch.randn(512, 256, device=base.device)
through(x, forget=False).backward()  # from now on the gradients are there
print(f"16 blocks ran {len(calls)} times in one step")

# %%
for forget in (False, True):
    calls.clear()
    with memory.measure(blocks) as used:
        through(x, forget).backward()
    print(f"{'with' if forget else 'without'} checkpointing: held {memory.human(used.peak_tensor_bytes)}, "
          f"blocks ran {len(calls)} times")

# %% [markdown]
# So checkpointing costs one more forward pass. In transformers it is one switch of `TrainingArguments`:
# `activation_checkpointing=True` (before version 5.23, and in TRL, it is called `gradient_checkpointing`). Each of our
# model's 30 blocks is then run again.

# %%
quiz("memory/checkpointing")

# %%
climbed["checkpointing"] = climb(base, checkpointing=True)
left = climbed["checkpointing"]["activation_bytes"]
print(f"activations: {memory.human(start['activation_bytes'])} without checkpointing, {memory.human(left)} with it")
compare("memory/checkpointing", start["activation_bytes"] / left)

# %% [markdown]
# What is left? The inputs of all blocks, and one block in full: the one that the backward pass is at.
#
# ## The logits: a loss in pieces
#
# The last big tensor is the scores. Our vocabulary has 49,152 tokens, so each place of each row has 49,152 scores, and
# the loss makes copies of them, in float32 whatever the model computes in. The ladder left most of them out. Now take
# them all: 2 rows of 127 places, as the last place of a row has no next token.
#
# They are needed only for the loss, a sum over places. So compute it piece by piece: 32 places, their scores, their
# part of the sum, and on to the next 32.

# %%
quiz("memory/pieces")

# %%
def piece(hidden, labels):
    return torch.nn.functional.cross_entropy(base.get_output_embeddings()(hidden).float(), labels, reduction="sum")

def loss_in_pieces(hidden, labels, size=32, forget=False):
    total = 0
    for some, right in zip(hidden[:, :-1].flatten(0, 1).split(size), labels[:, 1:].flatten().split(size)):
        total = total + (checkpoint(piece, some, right, use_reentrant=False) if forget else piece(some, right))
    return total / labels[:, 1:].numel()

ids = torch.randint(0, 1000, (2, 128), device=base.device)
base.requires_grad_(False)
with torch.no_grad():
    hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
whole = base(input_ids=ids, labels=ids).loss.item()
print(f"loss from all scores {whole:.5f}, in pieces of 32 places {loss_in_pieces(hidden, ids).item():.5f}")

# %%
WAYS = {"all scores at once": dict(size=10**6), "in pieces": dict(size=32),
        "in pieces, forgetting": dict(size=32, forget=True)}
held = {}
for name, options in WAYS.items():
    given = hidden.clone().requires_grad_()
    with memory.measure(base) as used:
        loss_in_pieces(given, ids, **options).backward()
    held[name] = used.peak_tensor_bytes
    print(f"{name:22} held {memory.human(held[name])}")
loop, forgetting = (held[name] / held["all scores at once"] for name in ("in pieces", "in pieces, forgetting"))
print(f"The loop holds {loop:.0%}, forgetting each piece {forgetting:.0%} of what all at once hold.")
compare("memory/pieces", 100 * loop)

# %% [markdown]
# In the loop, autograd keeps the probabilities of every piece until the backward pass. **Look** at the third line:
# there a piece is forgotten and computed again. It is checkpointing once more, of the smallest kind. You need not write
# this yourself. TRL's SFTTrainer (1.16) computes its loss in pieces. Liger's kernel also computes the gradient on the
# way (Hsu et al. 2024): `use_liger_kernel=True` in `TrainingArguments`, with the package liger-kernel and a GPU (not
# run here). The plan knows all three: "full" is all scores at once, "chunked" in pieces as TRL does it, "fused" with
# the gradient as Liger does it. Llama-3.1-8B's sizes, one row of 4,096 tokens, checkpointing. (Which moment of the step
# is the fullest changes from line to line, so the whole need not follow the logits.)

# %%
for loss in ("full", "chunked", "fused"):
    planned = memory.plan(llama_31, lora(), "bfloat16", seq_len=4096, checkpointing=True, cross_entropy=loss)
    print(f"loss {loss:8} logits {memory.human(planned.logits_bytes):>8} of {memory.human(planned.total_bytes)}")

# %% [markdown]
# **Exercise 1: a loss in pieces, for answers only.** Training on answers masks the prompt's labels with -100. This
# function takes the mean of each piece, and then the mean of those means. Pieces hold different numbers of labels that
# count. Repair it: it must give the loss of all the scores at once.

# %%
def mean_loss(head, hidden, labels, size):
    """hidden: (places, width), labels: (places,), of which -100 do not count; head gives the scores."""
    means = []
    for some, right in zip(hidden.split(size), labels.split(size)):
        means.append(torch.nn.functional.cross_entropy(head(some), right, ignore_index=-100))
    return torch.stack(means).mean()

quiz("memory/mean_loss", mean_loss)

# %% [markdown]
# ## Eight bits and checkpointing
#
# A base in 8 bits saves weights, checkpointing saves activations. Take both, at rank 4 without dropout. transformers
# knows two kinds of checkpointing, `use_reentrant=False` and `True`. The Trainer's switch takes the first.

# %%
quiz("memory/both")

# %%
eight, _ = load_base(precision="int8")
small = dict(r=4, lora_dropout=0.0)
KINDS = {"": False, ", use_reentrant=False": True, ", use_reentrant=True": "reentrant"}
both = {}
with Progress("two bases, three ways", total=6) as bar:
    for name, model in (("float32", base), ("int8", eight)):
        for kind, checkpointing in KINDS.items():
            both[name + kind] = climb(model, **small, checkpointing=checkpointing)
            bar.update(1)
plots.memory({label: {"activation_bytes": parts["activation_bytes"]} for label, parts in both.items()},
             title="Activations, and 16 places' scores: what does checkpointing leave?")

# %%
held = {label: parts["activation_bytes"] for label, parts in both.items()}
for label, size in held.items():
    print(f"{label:28} activations {memory.human(size)}")
remains = held["int8, use_reentrant=False"] / held["int8"]
reentrant = held["int8, use_reentrant=True"] / held["int8"]
exact = held["float32, use_reentrant=False"] / held["float32, use_reentrant=True"]
print(f"use_reentrant=False leaves {remains / reentrant:.1f} times as much as True on the 8-bit base, its other parts "
      f"in {eight.dtype}, and {exact:.1f} times on float32.", "The kind matters in 8 bits."
      if remains > 1.3 * reentrant * exact else "In 8 bits it matters no more than there.")
compare("memory/both", 100 * remains)

# %%
one = base.model.layers[5]  # q, k and v share an input, gate and up another
inputs = sum(one.get_submodule(name).in_features for name in
             ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"))
inputs *= 256 * base.config.num_hidden_layers * eight.dtype.itemsize
apart = held["int8, use_reentrant=False"] - held["int8, use_reentrant=True"]
print(f"Between the two kinds lie {memory.human(apart)} in 8 bits; the inputs of all linear layers, each once, are "
      f"{memory.human(inputs)}")

# %% [markdown]
# Why? The kind `use_reentrant=False` drops what layers *save for backward* in the official way. bitsandbytes' 8-bit
# layer hangs its input on the object that carries it to the backward pass, past that way, so it stays: four inputs a
# block, as q, k and v share one, and gate and up another. The older, *reentrant* kind runs the first forward pass
# without a graph, and then there is nothing to hang it on. 4-bit layers do not keep their input.
#
# Preparing switches checkpointing on and leaves the kind to torch, which takes the reentrant one (2.13 does, and warns
# that this will change). But a Trainer whose own switch is on comes later, and sets `use_reentrant=False` again. It is
# on by default in TRL's `SFTConfig` (there under the old name). So name the kind in both places:
#
# ```python
# model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": True})
# TrainingArguments(..., activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True})
# ```
#
# What was measured above is bitsandbytes 0.50 on a CPU. Its GPU code keeps the input in the same way, and columns with
# large values once more, which the plan leaves out. Here is what it comes to on a card of 16 GB. **Look** at the first
# two lines as well: preparing turns embedding, head and norms into float32, and what flows between the blocks with
# them.

# %%
for bits, kind in (("bfloat16", False), ("int8", False), ("int8", True), ("int8", "reentrant")):
    planned = memory.plan(llama, lora(), bits, seq_len=2048, checkpointing=kind, prepared=bits == "int8")
    print(f"Llama-2-7B, 1 × 2,048, {bits:8} checkpointing {kind!s:9} {memory.human(planned.total_bytes):>9}:",
          "fits" if planned.fits(GPU_GB) else "does not fit")

# %% [markdown]
# **Exercise 2: repair.** This function was written in a hurry. It must return a model whose adapter trains, whose base
# is frozen, and whose blocks are checkpointed in the way that suits 8-bit layers.

# %%
def ready(model, config):
    model = get_peft_model(model, config)
    return prepare_model_for_kbit_training(model)

quiz("memory/ready", ready)

# %% [markdown]
# ## The ladder on a GPU
#
# Back to Llama-2-7B's sizes and 16 GB. You start with all linear layers at rank 64, and 4 rows of 2,048 tokens. This
# time each rung stands on the one before it. Which takes away the most?

# %%
quiz("memory/ladder_order")

# %%
one, four = dict(batch_size=1, seq_len=2048), dict(batch_size=4, seq_len=2048)
RUNGS = {"start: bf16, r 64, 4 × 2,048": (64, "bfloat16", four), "rank 64 → 8": (8, "bfloat16", four),
         "rows 4 → 1": (8, "bfloat16", one), "checkpointing": (8, "bfloat16", one | dict(checkpointing="reentrant")),
         "base in 8 bits": (8, "int8", one | dict(checkpointing="reentrant", prepared=True)),
         "base in 4 bits": (8, "nf4", one | dict(checkpointing="reentrant", prepared=True))}
plans = {label: memory.plan(llama, lora(r), precision, **options) for label, (r, precision, options) in RUNGS.items()}
plots.memory({label: planned.parts() for label, planned in plans.items()}, 0.9 * GPU_GB,
             "Which rung leaves a tenth of 16 GB free?")

# %% tags=["nbval-check-output"]
before = None
for label, planned in plans.items():
    saved = f"{(before - planned.total_bytes) / 1e9:5.1f} GB less" if before else " " * 13
    print(f"{label:30} {memory.human(planned.total_bytes):>9} {saved}  {'fits' if planned.fits(GPU_GB) else ''}")
    before = planned.total_bytes

# %% [markdown]
# By price the order is another. A smaller batch with accumulation is the same training, as long as every label weighs
# alike. Checkpointing is the same training, too, and costs a forward pass. Fewer bits are another base; what that
# costs, Lesson 3 measures. A lower rank is another adapter. Between them stand: dropout 0, a loss in pieces, the
# longest rows cut or left out.
#
# (A base that does not fit may fit unprepared.)
#
# **Exercise 3: make it fit.** Llama-2-7B's sizes on 16 GB, at least 4,096 tokens in a step (rows times length), rows of
# at least 2,048, the loss from all scores at once, and the highest precision that allows it. A quantised base counts as
# prepared.

# %%
my_settings = dict(precision="bfloat16", batch_size=1, seq_len=2048, checkpointing=False)
quiz("memory/fits_gpu", my_settings, 16)

# %% [markdown]
# ## Killed, and going on
#
# Kernels die, with or without an error. The Trainer saves **checkpoints**: folders from which a training can go on.
# (They share nothing but the name with the checkpointing above.) A training that you cannot afford to lose belongs into
# a file:

# %%
script = '''
from lora_lab import batches, cache, load_base, smart_home
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed
def make_trainer(folder, r=8, alpha=16):
    base, tokenizer = load_base(str(cache.model_folder()), "float32", quiet=True)  # PEFT would ask the hub about a name
    set_seed(0)  # A is drawn at random, and before the Trainer seeds anything
    model = get_peft_model(base, LoraConfig(r=r, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = batches.encode(smart_home.commands("train", n=24, seed=0), tokenizer)
    return Trainer(model, TrainingArguments(folder, max_steps=8, per_device_train_batch_size=3, learning_rate=2e-3,
        warmup_steps=2, save_steps=4, logging_steps=1, remove_unused_columns=False, disable_tqdm=True,
        dataloader_pin_memory=False), batches.AnswerCollator(tokenizer), rows)
if __name__ == "__main__": make_trainer("runs/killed").train()'''
Path("runs").mkdir(exist_ok=True)
print(Path("runs/train_job.py").write_text(script), "characters written to runs/train_job.py")

# %% [markdown]
# Start it in a process of its own. It saves at step 4. Let it go on to step 5, and kill it without warning, as the
# system would:

# %%
shutil.rmtree("runs/killed", ignore_errors=True)
log = Path("runs/train_job.log")
process = subprocess.Popen([sys.executable, "-u", "runs/train_job.py"], stdout=subprocess.PIPE,  # -u: line by line
                           stderr=log.open("w"), text=True)
seen = 0
with Progress("training, until it is killed", total=5) as bar:
    for line in process.stdout:  # the Trainer prints a line for every step
        seen += "'loss'" in line
        bar.update("'loss'" in line)
        if seen == 5:
            process.kill()
            break
print("exit status:", process.wait(), "after steps:", seen)  # -9: killed by signal 9
assert seen == 5, log.read_text()[-2000:]

# %%
files = list(Path("runs/killed/checkpoint-4").iterdir())
adapter = Path("runs/killed/checkpoint-4/adapter_model.safetensors").stat().st_size
print("saved:", sorted(path.name for path in Path("runs/killed").glob("checkpoint-*")),
      f"{sum(path.stat().st_size for path in files) / adapter:.1f} times as large as the adapter in it")
table([{"file": path.name, "kB": f"{path.stat().st_size / 1000:,.0f}"}
       for path in sorted(files)])

# %%
quiz("memory/resume")

# %% [markdown]
# What was computed after the last checkpoint is computed again. So save often, and keep few (`save_total_limit=2`). One
# that was being written when the kill came may be incomplete: then take the one before it. Resume here, in another
# process than the one that died, and beside it run the same training without an accident:

# %%
make_trainer = runpy.run_path("runs/train_job.py")["make_trainer"]
trainers = {}

def go_on(label, folder, checkpoint=None, **changed):
    trainers[label] = make_trainer(folder, **changed)
    trainers[label].remove_callback(PrinterCallback)
    trainers[label].train(resume_from_checkpoint=checkpoint)
    return [entry["loss"] for entry in trainers[label].state.log_history if "loss" in entry]

curves = {"resumed": go_on("resumed", "runs/killed", "runs/killed/checkpoint-4"),
          "not killed": go_on("not killed", "runs/whole")}
apart = max(abs(a - b) / b for a, b in zip(*(curve[4:] for curve in curves.values())))
print(f"largest relative difference of a loss, steps 5 to 8: {apart:.1g}.", "One training." if apart < 1e-3 else
      "Close, not equal." if apart < 0.05 else "These are two different trainings.")

# %% [markdown]
# Optimizer, schedule and the order of the data went on where they were. That needs the *same* script. Suppose that you
# find the training too timid, and double alpha before you resume. What will the Trainer say, and what happens to the
# loss of the next step?

# %%
quiz("memory/other_alpha")

# %%
def speak(record):
    spoken.append(record.getMessage())
    return True

spoken = []
for name in ("transformers.trainer", "peft.peft_model"):
    logging.getLogger(name).filters = [speak]
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    curves["resumed, alpha 32"] = go_on("other", "runs/other", "runs/killed/checkpoint-4", alpha=32)
spoken += [str(warning.message) for warning in warned]
print("warnings and log lines that mention alpha:", sum("alpha" in words for words in spoken))
steps = range(4, 9)
plots.lines({label: (steps, curve[3:]) for label, curve in curves.items()}, "step", "training loss",
            title="After step 4 alpha is doubled. Does the training notice?")

# %%
ratio = curves["resumed, alpha 32"][4] / curves["not killed"][4]
layer = trainers["other"].model.base_model.model.model.layers[0].self_attn.q_proj
print(f"scaling now {layer.scaling['default']}; loss of step 5: {curves['resumed, alpha 32'][4]:.3f}, "
      f"and {curves['not killed'][4]:.3f} at the old alpha")
print("The next step starts", "worse." if ratio > 1.05 else "better." if ratio < 0.95 else "about where it was.")
compare("memory/other_alpha", 100 * ratio)
try:
    go_on("wider", "runs/other", "runs/killed/checkpoint-4", r=16)
except RuntimeError as error:
    print("and with rank 16: RuntimeError:", str(error).splitlines()[1].split("copying ")[-1])

# %% [markdown]
# The checkpoint's `adapter_config.json` has the old alpha, but on resume nobody reads it: an adapter of that name is
# there, so only weights are loaded. A rank that does not fit is refused. An alpha always fits. Read the file yourself,
# before the first step:

# %%
def same_adapter(model, checkpoint):
    saved, mine = PeftConfig.from_pretrained(checkpoint), model.peft_config["default"]
    keys = ("r", "lora_alpha", "use_rslora", "target_modules")
    return {key: (getattr(saved, key), getattr(mine, key)) for key in keys if getattr(saved, key) != getattr(mine, key)}

for label in ("resumed", "other"):
    print(f"{label:8} (checkpoint, script) differ in:", same_adapter(trainers[label].model, "runs/killed/checkpoint-4"))

# %% [markdown]
# Put an `assert not same_adapter(...)` into the script. (One seed and a batch of three rows: how far the loss jumps is
# this run's. That the scaling jumped is not.)
#
# ## Experienced-dev note
#
# - Watch the longest row of your data, not the mean. Plan for it, or try it first.
# - "Reserved but unallocated" memory that is large: free pieces, and none of them large enough. On Linux set
#   `PYTORCH_ALLOC_CONF=expandable_segments:True` before torch starts. (It was called `PYTORCH_CUDA_ALLOC_CONF`; that
#   name is still read. Not run here: it is about a GPU's allocator.)
# - To resume, `resume_from_checkpoint=True` takes the newest folder. Keep `max_steps`, batch, accumulation and the
#   number of processes, or schedule and data differ.
# - `nvidia-smi` shows what torch has reserved, and CUDA's context. `torch.cuda.max_memory_allocated()` says what the
#   tensors needed, `max_memory_reserved()` what has to fit.
# - Out of memory in *evaluation*: set `per_device_eval_batch_size` first (it is 8 by default). With `compute_metrics`
#   the Trainer gathers all logits; return the argmax from `preprocess_logits_for_metrics` in their place.
# - `auto_find_batch_size=True` makes the Trainer halve a batch that does not fit, and start again.
# - An 8-bit or paged optimizer saves little here: it holds the state of the adapter alone.
# - On a CPU a plan is a lower bound. Quantising while you load reads the float32 file, and what was read may stay
#   resident. `save_pretrained` the 8-bit model once, and load that folder.
# - `training_args.bin` and `optimizer.pt` in a checkpoint are pickles: resume from your own only.
#
# ## Recap
#
# - Weights, activations and logits fill the memory of a LoRA step; beside a large base, adapter, gradients and
#   optimizer are thin.
# - Fewer rows at a time and checkpointing come first, fewer bits next; a lower rank helps where the adapter is thick.
# - Check that two savings add up: 8 bits and the wrong kind of checkpointing do not.
# - A checkpoint, the same script and the same data: a killed training goes on from where it was last saved.
#
# **The exercise worth doing.** Take the model and the GPU that you have at work. Plan a training that should fit with a
# tenth to spare, and one that should not. Run both, and compare with `torch.cuda.max_memory_allocated()` and
# `max_memory_reserved()`.

# %%
progress()

# %% [markdown]
# Next: **Lesson 5** turns the dial alpha.
#
# Sources: Chen et al., *Training Deep Nets with Sublinear Memory Cost* (2016); Korthikanti et al., *Reducing Activation
# Recomputation in Large Transformer Models* (2022), section 4.1; Hsu et al., *Liger Kernel* (2024); Hu et al., *LoRA*
# (2021), section 4.2; the published peaks: Unsloth's benchmarks, LLaMA-Factory's wiki, Qwen's README, torchtune's
# README.
#
# *Lessons:* ← [3 · Training in 8 bits](03_train_in_8bit.ipynb) ·
# [5 · The alpha experiments](05_alpha_scaling.ipynb) →
