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
# # 6 · Merging and shipping
#
# *Lessons:* ← [5 · The alpha experiments](05_alpha_scaling.ipynb) ·
# [7 · Past one GPU](07_past_one_gpu.ipynb) →
#
# An adapter can be added into the weights for good. Then the model is one file, and as quick as it was. Here you merge
# into every precision and measure what is left of the training, learn when not to merge, and ship a model whose
# answers you have checked.
#
# **You will be able to** merge without losing what was learned, say from measurements when not to merge, audit what is
# deployed against what you trained, and ship files that answer elsewhere as they do here.
#
# **You need** [Lesson 0](00_first_adapter.ipynb); [Lesson 2](02_config_and_targets.ipynb) for target modules and tied
# embeddings, [Lesson 3](03_train_in_8bit.ipynb) for what int8 and nf4 are.
#
# **It takes** about two minutes of computing on two CPU cores
# (on a GPU: not recorded).
#
# ## Why this matters
#
# Common advice about LoRA is: merge before deployment, recover the speed, ship a single file. That can be good advice.
# It leaves out that a merge writes into the weights' own precision, that an adapter can be loaded onto weights that
# have it already, that the wrong object is easily saved, and that an engine may ask the model otherwise than you
# trained it. None of this has to raise an error. It shows as a model in production that answers differently from the
# one in your notebook.

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
import copy
import hashlib
import json
import math
import random
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import transformers
from lora_lab import adapters, batches, compare, load_base, merging, plots, pocket, progress, quiz, scoring, smart_home
from lora_lab.display import Progress, table
from peft import LoraConfig, PeftModel, get_peft_model

# %% [markdown]
# First an adapter to merge: Lesson 0's training with fewer steps. (It is trained once: its folder is named
# after seed and steps.) A merge changes weights in place, so the lesson loads the base anew whenever it needs a clean
# one.

# %%
SEED, STEPS = 0, 24
transformers.set_seed(SEED)
transformers.logging.disable_progress_bar()
base, tokenizer = load_base(precision="float32")

def fresh_base():
    return load_base(precision="float32", quiet=True)[0]

adapter = f"adapters/merging-{SEED}-{STEPS}"
data = smart_home.commands("train", n=8 * STEPS, seed=SEED)
digest = hashlib.sha256(json.dumps([(c.prompt, c.answer) for c in data]).encode()).hexdigest()
print(f"{adapter}: trained on {len(data)} commands such as {data[0].prompt!r}, sha256 {digest[:12]}...")

# %%
if not Path(adapter, "base_model.json").exists():
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(fresh_base(), config)
    arguments = transformers.TrainingArguments(
        output_dir="runs/merging", max_steps=STEPS, per_device_train_batch_size=8, learning_rate=2e-3, warmup_steps=3,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", remove_unused_columns=False,
        disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(), use_cpu=model.device.type == "cpu")
    rows = batches.similar_lengths(batches.encode(data, tokenizer), 8, SEED)
    trainer = transformers.Trainer(model, arguments, batches.AnswerCollator(tokenizer), rows,
                                   callbacks=[plots.LiveLoss()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    model.save_pretrained(adapter, save_embedding_layers=False)
    adapters.note_base(adapter, model)

# %%
trained = PeftModel.from_pretrained(fresh_base(), adapters.adapter_folder(adapter, r=8, base=base)).eval()
commands = smart_home.commands("test phrasings", n=28, seed=SEED)  # each kind of action twice
asked = [c.prompt for c in commands]
answers = {"unmerged": scoring.generate(trained, tokenizer, asked, progress="the trained model")}
print("with the adapter:", scoring.score(commands, answers["unmerged"]))

# %% [markdown]
# ## One sum
#
# A LoRA layer computes $y = Wx + s\,BAx$ with $s = \alpha/r$. Both terms are linear in $x$, so one matrix does the
# same:
#
# $$W' = W + s\,BA$$
#
# **Analogy.** In Lesson 0 the adapter was a clear sheet with corrections, laid over a printed page. Merging is
# photocopying the two together: one page again, as quick to read as the first. The copy is as fine as the copier. One
# that knows few shades of grey may not show a thin pencil line at all.
#
# By hand, for one layer:

# %%
layer = trained.base_model.model.model.layers[5].self_attn.q_proj
W, A, B = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
with torch.no_grad():
    update = layer.scaling["default"] * B @ A
    x = torch.randn(100, W.shape[1], device=W.device)
    same = torch.allclose(layer(x), x @ (W + update).T, rtol=1e-3, atol=1e-3)
print("W", tuple(W.shape), " B", tuple(B.shape), " A", tuple(A.shape), " scaling:", layer.scaling["default"])
print(f"the layer computes what the merged weight computes, to three digits: {same}")

# %% [markdown]
# `merge_and_unload()` does that for every layer and takes the LoRA layers out. It *returns* the model that you want.
# (A **logit** is the score that the model gives a possible next token; here they are tens.)

# %%
quiz("merge/float32_change")

# %%
merged = PeftModel.from_pretrained(fresh_base(), adapter).merge_and_unload(safe_merge=True)
print(type(trained).__name__, "->", type(merged).__name__)
merged.save_pretrained("adapters/merged")
tokenizer.save_pretrained("adapters/merged")
merged = load_base("adapters/merged", "float32", quiet=True)[0]  # weights in a file need no memory of their own
answers["merged"] = scoring.generate(merged, tokenizer, asked, progress="the merged model")
same = sum(a == b for a, b in zip(answers["unmerged"], answers["merged"]))
print(same, "of", len(asked), "answers are the same, letter for letter")

# %%
rows = batches.encode([*zip(asked, answers["unmerged"])][:14], tokenizer)
READ = batches.AnswerCollator(tokenizer)(rows)  # fourteen commands, and what the trained model answers

@torch.no_grad()
def logits(model):
    """Logits at every token of the answers, for each command."""
    read = READ.to(model.device)
    found = model(**read).logits[:, :-1].float()
    return [one[counted] for one, counted in zip(found, read["labels"][:, 1:] != batches.IGNORED)]

reference = logits(trained)
moved = {name: max((a - b).abs().max().item() for a, b in zip(reference, logits(model)))
         for name, model in {"merging": merged, "taking the adapter off": base}.items()}
print("largest change of a logit:", ", ".join(f"{name} {change:.1e}" for name, change in moved.items()))
compare("merge/float32_change", moved["merging"])

# %% [markdown]
# Adding first and multiplying afterwards rounds in other places than multiplying first. In float32 that concerns the
# last of its digits.
#
# ## What does it win? Time
#
# How much speed is there to recover? Five models take turns, in an order drawn anew for each round. One of them is the
# base a second time: its ratio to the base is the noise of the clock. A chat model spends its time on single tokens
# behind a prompt, so that is what you time.

# %%
from lora_lab.models import clock

ROUNDS = 30
prompt = torch.randint(1000, 2000, (1, 128), device=base.device)
two_kinds = get_peft_model(fresh_base(), LoraConfig(r=8, target_modules=["q_proj", "v_proj"])).eval()
racers = {"base": base, "base again": base, "merged": merged, "q and v unmerged": two_kinds,
          "all linear unmerged": trained}
with torch.no_grad():
    pasts = {name: model(prompt, use_cache=True, logits_to_keep=1).past_key_values for name, model in racers.items()}
for name, model in racers.items():
    print(f"{name}: {sum(p.numel() for p in model.parameters()) / base.num_parameters() - 1:.2%} more parameters")

# %%
quiz("merge/unmerged_cost")

# %%
times, order = {name: [] for name in racers}, random.Random(SEED)
with Progress("one token", total=ROUNDS) as bar, torch.no_grad():
    for _ in range(ROUNDS):
        for name in order.sample(list(racers), len(racers)):
            started = clock()  # waits until a GPU is done
            racers[name](prompt[:, :1], past_key_values=pasts[name], logits_to_keep=1)
            times[name].append(clock() - started)
            pasts[name].crop(-1)  # the token is forgotten again, for the next round
        bar.update(1)
ratios = {name: [a / b for a, b in zip(times[name], times["base"])] for name in list(racers)[1:]}
plots.dots(ratios, "time for one token, base = 1", "Which models are slower than the base?", each="round",
           middle="median")

# %%
def median_interval(values):
    """A median and an interval of about 95 %: ranks of the sorted values, by the binomial distribution."""
    least = max(0, int(len(values) / 2 - 0.98 * math.sqrt(len(values))))
    return sorted(values)[least], statistics.median(values), sorted(values)[-1 - least]

quickest, _, slowest = median_interval(ratios["base again"])
for name, values in ratios.items():
    low, middle, high = median_interval(values)
    said = "slower" if low > max(1, slowest) else "quicker" if high < min(1, quickest) else \
        "not to be told from the base"
    print(f"one token, {name}: {middle:.3f} times the base ({low:.3f} to {high:.3f}), {said}")
print(f"Ranges that overlap {low:.2f} to {high:.2f} are compatible with this run.")
if said == "not to be told from the base":
    print("This clock is too noisy to decide the question: run the race again when nothing else runs.")
else:
    compare("merge/unmerged_cost", statistics.median(ratios["all linear unmerged"]))

# %% [markdown]
# A row counts as slower or quicker only where its interval lies beyond 1 *and* beyond that of *base again*.
#
# A merged layer is a matrix of the same shape in the same place. An unmerged layer makes further calls, however little
# each has to compute. These are the ratios of your machine, for one request at a time;
# [the benchmark](../benchmarks/README.md) has more ranks, more rounds, and whole prompts. Servers for many adapters
# compute the adapters of a whole batch at once, with code written for that.
#
# ## What can it lose? Each precision is a grid
#
# $W'$ is stored in the precision of $W$. Each precision is a grid of numbers that it can hold, its *marks*. Here is one
# weight on each grid. (These functions do the arithmetic of the precisions on weights alone. An int8 layer rounds what
# comes into it as well: Lesson 3.)

# %%
from bitsandbytes.functional import get_4bit_type


def int8(weight):  # 255 marks for each row, evenly spaced
    step = weight.abs().amax(1, keepdim=True) / 127
    return (weight / step).round() * step

def nf4(weight):  # 16 marks for each block of 64
    marks, blocks = get_4bit_type("nf4", device=weight.device), weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)  # kept in float32 (without double quantisation)
    return (marks[torch.bucketize(blocks / scale, (marks[1:] + marks[:-1]) / 2)] * scale).reshape(weight.shape)

GRIDS = {"float32": lambda weight: weight, "float16": lambda weight: weight.half().float(),
         "bfloat16": lambda weight: weight.bfloat16().float(), "int8": int8, "nf4": nf4}
W, update = W.detach().cpu(), update.cpu()
print("the first weight in", ", ".join(f"{name}: {grid(W)[0, 0].item():+.5f}" for name, grid in GRIDS.items()))

# %% [markdown]
# What counts is how far apart the marks are, beside the update that has to find its place between them:

# %%
marks, blocks = get_4bit_type("nf4", device=W.device), W.reshape(-1, 64)
scale = blocks.abs().amax(1, keepdim=True)
above = torch.bucketize(blocks / scale, marks).clamp(1, 15)  # the mark above each weight
power = W.abs().clamp(min=2**-14).log2().floor()
STEPS_OF = {"float16": 2 ** (power - 10), "bfloat16": 2 ** (power - 7),
            "int8": (W.abs().amax(1, keepdim=True) / 127).expand_as(W),
            "nf4": ((marks[above] - marks[above - 1]) * scale).reshape(W.shape)}
table([{"stored in": name, "step at the first weight": f"{step[0, 0].item():.6f}",
        "its update": f"{update[0, 0].item():+.6f}",
        "update in steps, median of the layer": f"{(update.abs() / step).median().item():.2g}"}
       for name, step in STEPS_OF.items()])

# %% [markdown]
# *Merged in place* means: the base is loaded in that precision, the update is added, and the sum is rounded to the grid
# again. Commit to two guesses about the weights of all layers.

# %%
quiz("merge/bf16_unmoved")

# %%
quiz("merge/nf4_left")

# %% [markdown]
# Now all layers and all grids. A model on a rounded base is not the one you trained, merged or not. So each precision
# gets a **control**: the rounded base with the adapter *unmerged* on it. (It is also what you get if you put the
# rounded base back into float32 and merge there.) Only what goes beyond the control is the merge's own doing. On the
# two coarse grids there is a third way: merge first, then round.

# %%
layers = {name.removeprefix("base_model.model."): module for name, module in trained.named_modules()
          if hasattr(module, "lora_A")}

@torch.no_grad()
def build(scratch, place):
    """Put each layer's weight, as `place` has it, into `scratch`; returns four sums that tell what changed."""
    sums = torch.zeros(4, dtype=torch.float64, device="cpu")
    for name, one in layers.items():
        U = one.get_delta_weight("default").cpu()
        before, after = place(one.base_layer.weight.cpu(), U)
        scratch.get_submodule(name).weight.copy_(after)
        D = after - before
        sums += torch.stack([D.count_nonzero(), (D - U).norm() ** 2, (D * U).sum(), U.norm() ** 2])
    return sums.tolist()

entries = sum(one.base_layer.weight.numel() for one in layers.values())
print(f"{len(layers)} layers have an adapter, with {entries:,} weights")

# %% [markdown]
# Users see answers, not weights. So each model is also asked. The **KL divergence** is how far its next-token
# probabilities are from the trained model's, here over the tokens of the answers: 0 is the same, and at 1 *nat* it
# gives what the trained model would say, on average, $e \approx 2.7$ times less probability. And an answer is *kept* if
# the model's first choice is the same at each of its tokens.

# %%
@torch.no_grad()
def judge(model):
    """KL to the trained model on each of the fourteen answers, and how many of them are kept."""
    kl, kept = [], 0
    for a, b in zip(reference, logits(model)):
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1).mean().clamp(min=1e-9).item())  # rounding may be below 0
        kept += (a.argmax(-1) == b.argmax(-1)).all().item()
    return kl, kept

lost, kept = judge(base)
print(f"without the adapter: KL {statistics.mean(lost):.2g} nats a token, {kept} of {len(lost)} answers kept")

# %%
WAYS = {"rounded base, unmerged": lambda grid: lambda W, U: (W, grid(W) + U),
        "merged in place": lambda grid: lambda W, U: (grid(W), grid(grid(W) + U)),
        "merged first, then rounded": lambda grid: lambda W, U: (W, grid(W + U))}
judged, reached, scratch = {("no adapter", ""): (lost, kept)}, {}, fresh_base().eval()
with Progress("merging", total=len(GRIDS)) as bar:
    for name, grid in GRIDS.items():
        for way in list(WAYS)[:3 if name in ("int8", "nf4") else 2]:
            moved, off, along, size = build(scratch, WAYS[way](grid))
            judged[name, way] = judge(scratch)
            if way == "merged in place":
                reached[name] = {"update that arrives": along / size, "weights that move": moved / entries,
                                 "error, relative to the update": math.sqrt(off / size)}
        bar.update(1)
scratch = None  # 538 MB

# %%
for name, found in reached.items():
    print(f"{name:8}", ", ".join(f"{what} {share:.2%}" for what, share in found.items()))
compare("merge/bf16_unmoved", 100 * (1 - reached["bfloat16"]["weights that move"]))
compare("merge/nf4_left", 100 * reached["nf4"]["update that arrives"])
plots.shares(reached, "Merged in place: how much of the update reaches the weights?")

# %% [markdown]
# *Arrives* is the share of the update that the change of the weights contains: the part along the update, by least
# squares. Compare the panels in the row of bfloat16. Where the update is below half a step, the weight stays. Where it
# is larger, the weight moves by whole steps, too far or not far enough. Weight by weight that is wrong. But the errors
# go both ways, and what arrives is an average.
#
# In the row of nf4, compare how many weights move and what arrives. Look for the culprit in one layer:

# %%
before, after, U = (matrix.reshape(-1, 64) for matrix in (nf4(W), nf4(nf4(W) + update), update))
largest = before.abs().argmax(1, keepdim=True)  # of each block
marks_of = [blocks / blocks.abs().amax(1, keepdim=True) for blocks in (before, after)]
change = (after - before) * U / U.square().sum()
print(f"nf4, one layer: {(after != before).float().mean().item():.0%} of the weights move, and "
      f"{((marks_of[1] - marks_of[0]).abs() > 1e-3).float().mean().item():.2%} get another of the 16 marks.")
print(f"Of the update {change.sum().item():.2%} arrives. The largest weight of each block alone, "
      f"{largest.numel() / before.numel():.2%} of the weights, brings {change.gather(1, largest).sum().item():.2%}.")

# %% [markdown]
# The scale of a block is its outermost weight, and is kept in float32. If one weight lies out there alone, it takes its
# update in full; if several share that mark, whichever is pushed furthest sets the scale for all of them. The numbers
# that the 16 marks stand for move with the scale: the other weights keep their marks and move all the same, not as they
# should. (Recipes for QLoRA often round the scales, too: *double quantisation*.)
#
# And this is how the models answer. Compare each row with its control, and nf4 merged in place with no adapter at all:

# %%
from lora_lab.course import explorers

explorers.merges(judged, reached)

# %%
for (name, way), (kl, kept) in judged.items():
    control = judged.get((name, "rounded base, unmerged"), (kl,))[0]
    further = sum(one > other for one, other in zip(kl, control))
    said = "" if control is kl else "; further off than the control" if further >= 12 else \
        "; closer than the control" if sum(one < other for one, other in zip(kl, control)) >= 12 else \
        "; not to be told from the control"
    print(f"{name:10} {way:26} KL {statistics.mean(kl):8.2g}, {kept:2} of {len(kl)} answers kept{said}")

# %% [markdown]
# ("Further off" and "closer" take 12 of the 14 commands, as equal models get them by luck one time in eighty. A row can
# be further off and keep all its answers. Then the difference is there, and these users do not see it.)
#
# On a coarse grid the update can be below half a step for nearly every weight, and then there is nothing to average.
# **Puzzle 1: get it onto the grid.** You have the weight before it is rounded to *this* grid. Return a weight *on the
# grid* that holds the update.

# %%
def onto_grid(W, A, B, scaling, grid):
    return grid(grid(W) + scaling * B @ A)  # in place

quiz("merge/onto_grid", onto_grid)

# %% [markdown]
# Why do the two ways differ? A base in nf4 lies *on* its marks, and each weight is half a step away from the border to
# the next. A small push tips none of them over. Weights that lie anywhere between two marks are another matter: the
# same push tips those over that lie close to a border. Each of them moves by a whole step, and on average that is the
# update. (This base has been through another 4-bit format, whose marks lie elsewhere. For nf4 its weights lie between
# the marks.) So what decides is the size of the update in steps of the grid, and where the weights lie. Turn the size
# from large to small:

# %%
SIZES = [2.0**k for k in range(6, -5, -1)]  # from large to small

def arrives(before, after, change):
    return 100 * (((after - before) * change).sum() / change.square().sum()).item()

curves = {name: (SIZES, [arrives(grid(W), grid(grid(W) + s * update), s * update) for s in SIZES])
          for name, grid in list(GRIDS.items())[1:]}
curves["nf4, merged first"] = SIZES, [arrives(nf4(W), nf4(W + s * update), s * update) for s in SIZES]
plots.lines(curves, "update of one layer, times the trained one: smaller to the right", "share that arrives (%)",
            mark=1, title="How small may an update get? (Upright line: your adapter, this layer)", xscale="log",
            xlim=(SIZES[0], SIZES[-1]))

# %% [markdown]
# One layer has its own steps, so its shares are not those of all layers. (Above 100 % is scatter: at tiny sizes a few
# weights that tip over count for much. And nf4 has a floor: the scale of each block moves with its outermost weight,
# and the other weights with the scale.)
#
# Look at bfloat16, too, to the right of the line. Most checkpoints on the hub *are* in bfloat16, on its grid. A small
# update can get lost there as well. So **merge in float32, and measure what arrives in the precision that you ship**.
# If too little does: ship float32, or float16 with its finer steps, or the adapter.
#
# **Trained on an nf4 base (QLoRA)?** Then the rounded base is the one that the adapter knows. Load it, call
# `model.dequantize()` before anything else, put the adapter on, merge, and serve the result in 16 bits. Do not quantise
# it to nf4 again: its weights lie on the marks, and that is merging in place. To serve in 4 bits keep base and
# adapter apart. Or merge into the original weights, quantise once, and evaluate what comes out as a new model.
#
# ## The merge audit
#
# Nobody should have to draw such pictures to ship a model. `merging.audit` puts your prompts to the model you trained
# and to the merged one, compares the weights, and says what it found.

# %%
alike = [c for c in smart_home.commands("test phrasings", n=400, seed=SEED)
         if len(tokenizer(c.prompt)["input_ids"]) == 11][:36]  # of one length, so that an audit asks them in one go
prompts = [c.prompt for c in alike]
print(merging.audit(trained, prompts[:6], tokenizer, deployed=merged))

# %% [markdown]
# The distance is a KL over the tokens of the prompts, as a share of the KL between the trained model and its base. The
# interval shows how little so few answers can tell. What carries a verdict here are the weights: the audit reads how
# many times the update is in them.
#
# Now let PEFT merge in place on a real nf4 base. Before you run it: what should the share of the update be, by your own
# measurement?

# %%
on_nf4 = PeftModel.from_pretrained(load_base(precision="nf4", quiet=True)[0], adapter).eval()
lossy = merging.audit(on_nf4, prompts[:6], tokenizer)  # without `deployed` it merges a copy
print(lossy)
by_hand = reached["nf4"]["update that arrives"]
print(f"share of the update: {lossy.update:.4f} by the audit, {by_hand:.4f} by hand:",
      "the same." if math.isclose(lossy.update, by_hand, rel_tol=0.05) else "not the same.")
del on_nf4

# %% [markdown]
# Look at what PEFT warned of. It says "rounding errors" for every quantised layer, however much is lost: it does not
# measure.
#
# The four verdicts: *safe to ship* (all answers are the same, and predictions hardly move beside what the adapter
# does), *look before you ship*, *do not ship* (or the weights prove a fault), and *not shown*: on these prompts the
# adapter does nothing, so they cannot tell. Take prompts of your users.
#
# ## Common gotcha: which object do you hold?
#
# From here a **pocket model** will do: a quarter of a million weights, pretrained on the course's commands. Its new
# skill is a dialect in which rooms, devices and states go by one another's names, for some of the devices.

# %%
small, words = pocket.load()
DEVICES = {"one": ("light", "fan", "music", "volume"), "two": ("blinds", "door", "heating")}

def dialect(split, n, skill):
    every = smart_home.commands(split, n=n, seed=SEED)
    return pocket.dialect([c for c in every if any(f'"{d}":' in c.answer for d in DEVICES[skill])], seed=SEED)

def train(model, skill, steps=80, lr=0.01):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for step, batch in zip(range(steps), pocket.stream(dialect("train", 1500, skill), batch_size=16, seed=SEED)):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()

# %%
def lora(**changes):
    return LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes)

transformers.set_seed(SEED)
skills = get_peft_model(copy.deepcopy(small), lora(), adapter_name="one")
with Progress("skill one", total=1) as bar:
    train(skills, "one")
tests = {skill: dialect("validation combinations", 200, skill) for skill in DEVICES}
print("skill one:", scoring.quick_score(skills, words, tests["one"]))
skills.save_pretrained("adapters/skills", selected_adapters=["one"])
ONE = "adapters/skills/one"

# %% [markdown]
# After `merge_and_unload` every weight is frozen, as the base's were. **Guess first:** which of these go wrong in
# silence? The next cells do each of them.

# %%
quiz("merge/silent")

# %%
def fresh():
    return PeftModel.from_pretrained(copy.deepcopy(small), adapters.adapter_folder(ONE)).eval()

rows = []
for call, keep in (("merge_adapter", True), ("merge_and_unload", True), ("merge_and_unload", False), ("unload", True)):
    model, folder = fresh(), Path(f"runs/merging/{call}-{keep}")
    given_back = getattr(model, call)()
    held = given_back if keep and given_back is not None else model
    held.save_pretrained(folder)
    file = next(folder.glob("*.safetensors"))
    rows.append({"call": call, "you keep": "what it returned" if held is given_back else "the model you called it on",
                 "a": type(held).__name__, "skill one": f"{scoring.quick_score(held, words, tests['one']).exact:.0%}",
                 "saving writes": f"{file.name}, {file.stat().st_size / 1000:,.0f} kB"})
table(rows)

# %% [markdown]
# Which row answers as the merged model, calls itself a PeftModel, and saves next to nothing?
#
# `merge_adapter` is for a moment (`unmerge_adapter` takes it out again), `merge_and_unload` is for good, `unload`
# throws the adapter away. And who trains on? `enable_input_require_grads` is what gradient checkpointing calls, which
# many trainers turn on by themselves.

# %% tags=["nbval-check-output"]
batch = next(iter(pocket.stream(tests["one"], batch_size=16, seed=SEED)))
for call, checkpointing in (("nothing", False), ("merge_and_unload", False), ("merge_and_unload", True)):
    model = PeftModel.from_pretrained(copy.deepcopy(small), ONE, is_trainable=True)
    model = model if call == "nothing" else getattr(model, call)()
    if checkpointing:
        model.enable_input_require_grads()
    what = call + ", inputs that ask for a gradient, as under checkpointing" * checkpointing + ", then backward"
    try:
        model(**batch).loss.backward()
        print(f"{what}: no error, {sum(p.grad is not None for p in model.parameters())} tensors get a gradient")
    except RuntimeError as error:
        print(f"{what}: RuntimeError: {error}")

# %% tags=["nbval-check-output"]
bad = fresh()
bad.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight.data[0, 0] = math.nan
shipped = transformers.AutoModelForCausalLM.from_pretrained("runs/merging/merge_and_unload-True")  # the second row
for what, mistake in {"loaded onto a merged base": lambda: PeftModel.from_pretrained(copy.deepcopy(shipped), ONE),
                      "merge_adapter twice": lambda: [model.merge_adapter() for model in [fresh()] * 2],
                      "NaN": lambda: copy.deepcopy(bad).merge_and_unload(),
                      "safe_merge": lambda: copy.deepcopy(bad).merge_and_unload(safe_merge=True)}.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            mistake()
            said = [str(one.message) for one in caught if one.category is UserWarning]  # others are for developers
            print(f"{what}: {len(said)} warnings", *set(said), sep=", ")
        except ValueError as error:
            print(f"{what}: ValueError: {error}")

# %% [markdown]
# If a merged model "trains" and its loss stands still, look at `grad_norm`: 0 means that nothing trains.
#
# **Tied embeddings.** In many small models, this one and SmolLM2 among them, the output head *is* the embedding matrix.
# Which ways of training it survive a merge? (Lesson 2 asked that of the embedding; here it is the head's turn.)

# %%
quiz("merge/tied")

# %%
HEADS = {"adapter on lm_head": dict(target_modules=["q_proj", "lm_head"]),
         "adapters on both, tied": dict(target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True),
         "full copy of lm_head": dict(modules_to_save=["lm_head"]),
         "full copy of both, tied": dict(modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=True),
         "rows of the embedding": dict(trainable_token_indices=[5, 6, 7])}
ids = words([c.prompt for c in tests["one"][:1]], return_tensors="pt")["input_ids"]

def merged_with(options):
    """Logits before the merge, the merged model, and how many warnings PEFT gave."""
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        model = get_peft_model(copy.deepcopy(small), lora(**options)).eval()
        for weights in (p for p in model.parameters() if p.requires_grad):
            weights += 0.02 * torch.randn_like(weights)  # as if trained
        return model(ids).logits, model.merge_and_unload(), sum(one.category is UserWarning for one in caught)

print("to be merged:", *HEADS, sep="\n")

# %%
rows = []
for place, (kind, options) in enumerate(HEADS.items()):
    before, whole, warned = merged_with(options)
    whole.save_pretrained(f"runs/merging/tied-{place}")
    again = transformers.AutoModelForCausalLM.from_pretrained(f"runs/merging/tied-{place}")
    with torch.no_grad():
        off, off_again = ((model(ids).logits - before).abs().max().item() for model in (whole, again))
    tied = whole.get_input_embeddings().weight.data_ptr() == whole.get_output_embeddings().weight.data_ptr()
    rows.append({"trained": kind, "largest change of a logit": f"{off:.1g}", "saved and loaded": f"{off_again:.1g}",
                 "one matrix": tied, "warnings": warned})
table(rows)

# %% [markdown]
# An adapter on the head, merged, reaches the shared matrix and so the input, too. Adapters on both sides reach it once
# from each. Full copies merge by being put in place; of one side alone, that leaves two matrices (older versions of
# PEFT do not note that, and the next program ties them again). Single rows are written into the shared matrix, where
# both sides read them. So before you put an adapter on the head of a tied model, untie it.
#
# **Puzzle 2: four deployments, three of them broken.** `adapters/deployed` holds deployments of skill one, `a` to `d`.
# One is sound. One has another revision of the base, in one the adapter had been merged into the base before, in one
# somebody doubled alpha on disk. First decide what each fault does to the base's hash, and how many times the update
# is then in the weights. Then name the faults from the table.

# %%
from lora_lab.course.exercises import deployments

reference_model, asked_of_skill_one, signs = fresh(), [c.prompt for c in tests["one"][:12]], []
deployments.make(reference_model, "adapters/deployed")
for name in "abcd":
    deployed = transformers.AutoModelForCausalLM.from_pretrained(f"adapters/deployed/{name}/base")
    same = adapters.base_identity(deployed) == adapters.base_identity(reference_model)
    deployed = PeftModel.from_pretrained(deployed, f"adapters/deployed/{name}/adapter")
    last_audit = found = merging.audit(reference_model, asked_of_skill_one, words, deployed=deployed)
    signs.append({"deployment": name, "base's hash": "as trained" if same else "another",
                  "times the update": "cannot be read" if found.update is None else f"{found.update:.2f}",
                  "answers that differ": f"{len(found.changed_answers)} of {found.n}"})
table(signs)

# %%
faults = {"a": "sound", "b": "sound", "c": "sound", "d": "sound"}
quiz("merge/faults", faults, "adapters/deployed")

# %% [markdown]
# (`print(last_audit)` says in words what the audit made of the last one.)
#
# ## When not to merge: many skills on one base
#
# A merged model has one skill. A base can carry many adapters, and switch between requests, or between the rows of one
# batch. Train a second skill for the other devices, on the same base:

# %%
if "two" not in skills.peft_config:
    skills.add_adapter("two", lora())
skills.set_adapter("two")
with Progress("skill two", total=1) as bar:
    train(skills, "two")
mixed = tests["one"][:20] + tests["two"][:20]
rows = words([c.prompt for c in mixed], padding=True, padding_side="left", return_tensors="pt").to(skills.device)
output = skills.generate(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], do_sample=False,
                         max_new_tokens=16, pad_token_id=words.pad_token_id, adapter_names=["one"] * 20 + ["two"] * 20)
said = words.batch_decode(output[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)
print("one batch, an adapter for each row:", sum(a == c.answer for a, c in zip(said, mixed)), "of 40 right")

# %% [markdown]
# Could one adapter hold both? `add_weighted_adapter` makes a new one out of several, with a weight $w$ for each:
#
# - `cat` stacks the A's and the B's: the sum of the updates, each times its weight. Ranks add up.
# - `svd` cuts that sum to a rank (Lesson 1).
# - `linear` adds A to A and B to B, each times $\sqrt w$: of one adapter alone, that makes $w$ times its update. The
#   rank stays. PEFT's own documentation calls it a very rough approximation.
# - `ties` and `dare_ties` drop entries and elect a sign for each entry, before they add as `linear` does.

# %%
quiz("merge/halves")

# %% tags=["nbval-check-output"]
own = skills.base_model.model.model.layers[0].mlp.up_proj
times = {}
for kind in ("cat", "linear"):
    skills.add_weighted_adapter(["one", "one"], [0.5, 0.5], "halves", combination_type=kind)
    times[kind] = (own.get_delta_weight("halves").norm() / own.get_delta_weight("one").norm()).item()
    print(f"{kind}: half of an adapter plus half of the same adapter is {times[kind]:.2f} times the adapter")
    skills.delete_adapter("halves")
compare("merge/halves", times["linear"])

# %% [markdown]
# With weights below 0, A alone gets the sign. And the scaling is multiplied in, under the same root. Check it by hand:

# %% tags=["nbval-check-output"]
for weights in ([1.0, 0.5], [1.0, -1.0]):
    skills.add_weighted_adapter(["one", "two"], weights, "mix", combination_type="linear")
    roots = [math.sqrt(abs(w * own.scaling[name])) for w, name in zip(weights, ("one", "two"))]
    sign_of = [math.copysign(1, w) for w in weights]
    A = sum(sign * root * own.lora_A[name].weight for sign, root, name in zip(sign_of, roots, ("one", "two")))
    B = sum(root * own.lora_B[name].weight for root, name in zip(roots, ("one", "two")))
    same = torch.allclose(own.get_delta_weight("mix"), B @ A, atol=1e-6)
    print(f"weights {weights}: roots {[round(root, 3) for root in roots]}, signs {sign_of}, scaling "
          f"{own.scaling['mix']:g}; B A by hand is PEFT's: {same}")
    skills.delete_adapter("mix")

# %% [markdown]
# (For adapters with rsLoRA none of these is right in PEFT 0.21: the new adapter keeps the flag, and with it a scaling
# of $\sqrt r$ in place of 1. And a name that exists already is left as it is, without a word: delete it first.)
#
# **Predict**: how much of each skill is left in each combination?

# %%
def both():
    return {f"skill {skill}": scoring.quick_score(skills, words, test) for skill, test in tests.items()}

combined = {f"adapter {name}, alone": (skills.set_adapter(name), both())[1] for name in ("one", "two")}
for kind, options in (("cat", {}), ("svd", {"svd_rank": 8}), ("linear", {}), ("ties", {"density": 0.5}),
                      ("dare_ties", {"density": 0.5})):
    for weight in (1.0, 0.5):
        transformers.set_seed(SEED)  # dare drops at random
        skills.add_weighted_adapter(["one", "two"], [weight, weight], "mix", combination_type=kind, **options)
        skills.set_adapter("mix")
        combined[f"{kind}, weights {weight:g}"] = both()
        skills.set_adapter("one")
        skills.delete_adapter("mix")
plots.shares({kind: {skill: score.exact for skill, score in found.items()} for kind, found in combined.items()},
             "Can these two be combined after training? Exact answers")

# %%
alone = [combined[f"adapter {s}, alone"][f"skill {s}"].exact for s in DEVICES]
keeps = [kind for kind, found in list(combined.items())[2:]
         if all(found[f"skill {s}"].interval[1] >= one for s, one in zip(DEVICES, alone))]
print("Within the intervals, both skills are kept by:", ", ".join(keeps) or "none of them. Switching keeps them.")

# %% [markdown]
# `linear` has cross terms that nobody trained: $(B_1+B_2)(A_1+A_2) = B_1A_1 + B_2A_2 + B_1A_2 + B_2A_1$. `cat` has
# none, so they cannot be all. Each update was trained beside the base alone. In the sum each layer also gets what the
# *other* update makes of the command. How loud is that, and does it tell how much is lost?

# %%
@torch.no_grad()
def loudness(adapter, skill):
    """How far an adapter moves the logits of a skill's commands, on average."""
    rows = words([c.prompt for c in tests[skill][:20]], padding=True, padding_side="right", return_tensors="pt")
    rows = {name: rows[name].to(skills.device) for name in ("input_ids", "attention_mask")}
    skills.set_adapter(adapter)
    on = skills(**rows).logits
    with skills.disable_adapter():
        return (on - skills(**rows).logits)[rows["attention_mask"].bool()].abs().mean().item()

heard = {(a, s): loudness(a, s) for a in DEVICES for s in DEVICES}
skills.set_adapter("one")
for a, s in (("one", "two"), ("two", "one")):
    best = max(scores[f"skill {s}"].exact for name, scores in combined.items() if "alone" not in name)
    print(f"On commands of skill {s}, adapter {a} moves the logits {heard[a, s] / heard[s, s]:.2f} times as far as "
          f"adapter {s} does; the best combination keeps {best:.0%} of that skill.")

# %% [markdown]
# Does the louder one win? Either way, an adapter acts on every command, also on those that it was not trained for. To
# have both skills in one adapter, train one on both sets of rows.
#
# What does a switch cost, and the memory? Two adapters take turns (here one skill under two names). The clock runs
# until the first token is there, so that every weight has been read. (The merged model's file is in memory already;
# from a disk it takes its time.)

# %%
from peft.utils.hotswap import hotswap_adapter

if "second" not in trained.peft_config:
    trained.load_adapter(adapter, adapter_name="second")

def another_model(_):
    return transformers.AutoModelForCausalLM.from_pretrained("adapters/merged", dtype=torch.float32).to(base.device)

switches = {"no switch": lambda _: trained, "set_adapter": lambda name: trained.set_adapter(name) or trained,
            "hotswap_adapter": lambda _: hotswap_adapter(trained, adapter, "default") or trained,
            "load a merged model": another_model}
print("to be timed:", *switches, sep="\n")

# %%
taken = {name: [] for name in switches}
with Progress("switching", total=9) as bar, torch.no_grad():
    for turn in range(9):
        for name in order.sample(list(switches), len(switches)):
            started = clock()
            switches[name](("default", "second")[turn % 2])(prompt[:, :8])
            taken[name].append(1000 * (clock() - started))
        bar.update(1)
trained.set_adapter("default")
plots.dots({name: found[1:] for name, found in taken.items()}, "ms until the first token (without the first turn)",
           "What does it cost to switch the skill?", "{:.0f}", each="turn", middle="median", xscale="log")

# %%
idle = median_interval(taken["no switch"][1:])
for name, found in list(taken.items())[1:]:
    low, middle, high = median_interval(found[1:])
    said = "longer than no switch" if low > idle[2] else "not to be told from no switch"
    print(f"{name}: {middle:.0f} ms ({low:.0f} to {high:.0f}), {middle / idle[1]:.1f} times no switch: {said}")

# %%
one = {"merged copy": sum(p.nbytes for p in merged.parameters()),
       "adapter": sum(p.nbytes for n, p in trained.named_parameters() if ".default." in n)}
table([{"skills": n, "merged copies, MB": f"{n * one['merged copy'] / 1e6:,.0f}",
        "one base and adapters, MB": f"{(one['merged copy'] + n * one['adapter']) / 1e6:,.0f}"} for n in (1, 10, 100)])

# %% [markdown]
# So, from what you measured:
#
# - **Merge** when one skill serves all requests, or the program that runs the model knows no adapters; in 16 or 32
#   bits, with an audit.
# - **Keep adapters** when skills share a base, when you want to switch a skill off for ordinary text, or when the base
#   is in 4 or 8 bits and you cannot merge before it is quantised.
# - Keep the adapter in any case: to go on training. It can even be given a higher rank in place.

# %%
quiz("merge/widen")

# %%
narrow = fresh()

def widened(alpha, times_A, times_B):
    """Rank 16 from skill one's rank 8: the new eight are random numbers, times these."""
    wide = get_peft_model(copy.deepcopy(small), lora(r=16, lora_alpha=alpha))
    old = dict(narrow.named_parameters())
    for name, new in wide.named_parameters():
        if "lora_A" in name:
            new.data[:8], new.data[8:] = old[name].data, new.data[8:] * times_A
        elif "lora_B" in name:
            new.data[:, :8], new.data[:, 8:] = old[name].data, torch.randn_like(new.data[:, 8:]) * times_B
    return wide

print("rank", widened(32, 1, 0).peft_config["default"].r)

# %%
rows = []
for kind, options in {"A random, B zero; alpha 16": (16, 1, 0), "A random, B zero; alpha 32": (32, 1, 0),
                      "both zero; alpha 32": (32, 0, 0), "both random; alpha 32": (32, 1, 0.1)}.items():
    wide = widened(*options)
    wide.train()(**batch).loss.backward()
    gradient = max(p.grad[:, 8:].abs().max().item() for n, p in wide.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        apart = (wide.eval()(ids).logits - narrow(ids).logits).abs().max().item()
    rows.append({"the new eight": kind, "largest change of a logit": f"{apart:.1g}",
                 "largest gradient in the new columns of B": f"{gradient:.1g}"})
table(rows)

# %% [markdown]
# Columns of zeros in B add nothing, whatever A has there, as long as the scaling stays what it was. (With rsLoRA that
# is alpha over the *root* of r.) And they can learn, as the gradient of B has A as a factor (Lesson 1). The optimiser's
# moments and the schedule start anew.
#
# ## Ship it: the template is part of the model
#
# Programs that serve models, such as llama.cpp's server or vLLM, offer a chat interface. They put your user's words
# into the **chat template** that the files carry, and the model sees the result. Yours was trained on `> `, the command
# and a new line. The folder of the base carries the base's template. Somebody on your team has written one for the
# adapter. Look at the end of what they make:

# %%
TEMPLATES = {"the base's": tokenizer.chat_template, "the team's": "> {{ messages[-1].content }}\n"}

def through(template):
    """The prompts that an engine makes of the commands, with this template."""
    return [tokenizer.apply_chat_template([{"role": "user", "content": c.text}], tokenize=False,
                                          add_generation_prompt=True, chat_template=template) for c in commands]

for name, template in TEMPLATES.items():
    print(f"{name:10} ...{through(template)[0][-105:]!r}")
print(f"training's {commands[0].prompt!r}")

# %% [markdown]
# The base's template surrounds the command with another text. The team's loses one character: Jinja, the language of
# templates, drops a new line at the end of a template.

# %%
quiz("merge/template")

# %%
ASKED = 20
asked_so = {"asked as trained": scoring.score(commands[:ASKED], answers["merged"][:ASKED])}
for name, template in TEMPLATES.items():
    answers[name] = scoring.generate(merged, tokenizer, through(template)[:ASKED], progress=f"through {name} template")
    asked_so[f"through {name} template"] = scoring.score(commands[:ASKED], answers[name])
for name, found in list(asked_so.items())[1:]:
    print(scoring.verdict(asked_so["asked as trained"], found, "asked as trained", name))
compare("merge/template", 100 * asked_so["through the team's template"].exact)

# %%
plots.score_bars(asked_so, "What does a template cost?")

# %%
told = [(c.text, *said) for c, *said in zip(commands[:ASKED], *(answers[name] for name in ("merged", *TEMPLATES)))]
told.sort(key=lambda row: -len(set(row[1:])))  # those that differ come first
table([dict(zip(("command", "as trained", *TEMPLATES), row)) for row in told[:5]])

# %% [markdown]
# How much of the prompt changes does not tell you what it costs. That depends on what the base had learned before, and
# on your training. So measure; no error tells you.
#
# **Puzzle 3: the template.** Write one that makes of the last message what training showed, to the letter. (Compare the
# token ids, too, if your tokenizer puts a token before each text, as Llama's and Gemma's do: it has to come once.)

# %%
my_template = "> {{ messages[-1].content }}\n"
quiz("merge/my_template", my_template)

# %% [markdown]
# ## Ship it: what was forgotten
#
# A card should also say what the model lost. The tool that everybody cites for that, `lm-eval`, asks which of several
# endings a model finds the likeliest. Its own tasks need the network:
#
#     lm_eval --model hf --model_args pretrained=BASE,peft=adapters/shipped --tasks arc_easy   # not run here
#
# Here is the same measure on a small set, which [a benchmark](../benchmarks/README.md) also hands to lm-eval itself,
# and Lesson 0's perplexity beside it. **Predict**: does the trained model still know these? And is it as sure of
# ordinary text?

# %%
ITEMS = [line.split("|") for line in """The capital of France is|Paris|Rome|Berlin;Gold is a|metal|fruit|bird
The sky on a clear day is|blue|green|red;The opposite of hot is|cold|wet|loud;Two plus two is|four|five|nine
A dog is an|animal|apple|instrument;The sun rises in the|east|north|kitchen;Ice is frozen|water|milk|sand
Fish live in|water|trees|caves;A week has seven|days|hours|years;We see with our|eyes|ears|feet
The heart pumps|blood|air|sand;Bees make|honey|milk|bread;The Earth goes around the|Sun|Moon|city
A triangle has three|sides|wheels|legs;Shakespeare was a|writer|painter|farmer;Snow is|white|black|hot
Cows give|milk|honey|wool;The largest ocean is the|Pacific|Baltic|Sahara;Winter is colder than|summer|ice|snow
An hour has sixty|minutes|days|years;Water boils when it is|heated|frozen|dark;Spain lies in|Europe|Asia|America
The first month is|January|Monday|spring;A baby cat is called a|kitten|puppy|calf;People read|books|spoons|clouds
The opposite of up is|down|left|blue;Birds have two|wings|wheels|roofs""".replace("\n", ";").split(";")]
print(len(ITEMS), "beginnings, such as", ITEMS[0])

# %%
@torch.no_grad()
def knows(model):
    """How often the true ending, the first, is the likeliest: what lm-eval calls acc."""
    texts = [f"{beginning} {ending}" for beginning, *endings in ITEMS for ending in endings]
    rows = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(model.device)
    each = model(**rows).logits[:, :-1].log_softmax(-1).gather(2, rows["input_ids"][:, 1:, None]).squeeze(2)
    total = (each * rows["attention_mask"][:, 1:]).sum(1)  # the beginning counts alike for its three endings
    right = total.view(len(ITEMS), 3).argmax(1) == 0
    return scoring.Score(right.float().mean().item(), None, len(ITEMS))

known = {"base": knows(base), "trained": knows(merged)}
print("True endings are the likeliest:", scoring.verdict(*known.values(), *known))

# %%
prose = {"base": scoring.perplexity(base, tokenizer), "trained": scoring.perplexity(merged, tokenizer)}
times = prose["trained"] / prose["base"]
print(f"Perplexity of a page of prose: base {prose['base']:.1f}, trained {prose['trained']:.1f}, {times:.2f} times.",
      "It is less sure of ordinary text than before." if times > 1.1 else
      "It is surer of this text than before." if times < 0.9 else "On one page that is hardly a change.")
IDLE = ["what a lovely evening", "who wrote this book", "good night"]
chatted = scoring.generate(merged, tokenizer, [smart_home.prompt(text) for text in IDLE])
acted = sum('{"' in text for text in chatted)
general = "; ".join(f"{name}: perplexity of prose {prose[name]:.0f}, {len(ITEMS)} easy questions {score.exact:.0%}"
                    for name, score in known.items())
print(f"To {len(IDLE)} sentences that ask for nothing it answers {acted} times with what begins like an action:",
      chatted)

# %% [markdown]
# So few and so easy questions can only show a large loss. Perplexity is the finer measure. Whatever changed here, the
# training changed it, and the merge made it permanent: an adapter that is kept apart can be switched off for ordinary
# text (`with model.disable_adapter():`), and a merged one cannot.
#
# ## Ship it: ask from outside, then ship
#
# What travels: weights as safetensors (which cannot run code where they are loaded), the config, the tokenizer with its
# template, and a card. Before it travels, another program has to ask it that knows nothing of this notebook. This one
# stands for an engine: it has the folder, and answers whole prompts and chats.

# %%
engine = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts, chats = json.loads(sys.argv[1])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
texts = prompts + [tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False,
                                                 add_generation_prompt=True) for text in chats]
rows = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
output = model.generate(**rows, do_sample=False, max_new_tokens=16)
print(json.dumps(tokenizer.batch_decode(output[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)))
"""
Path("runs/merging").mkdir(parents=True, exist_ok=True)
print(Path("runs/merging/engine.py").write_text(engine), "characters are all that the engine knows")

# %%
own_tokenizer = copy.deepcopy(tokenizer)
own_tokenizer.chat_template = my_template
own_tokenizer.save_pretrained("adapters/merged")
request = json.dumps(["adapters/merged", asked[:8], [c.text for c in alike]])
with Progress("another process", total=1) as bar:
    ran = subprocess.run([sys.executable, "runs/merging/engine.py", request], capture_output=True, text=True)
assert ran.returncode == 0, ran.stderr
served = json.loads(ran.stdout)
same = sum(a == b for a, b in zip(served, answers["unmerged"][:8]))
print(f"whole prompts: {same} of 8 answers are the trained model's")
print("chat:", scoring.score(alike, served[8:]))

# %% [markdown]
# An engine hides its weights. What it cannot hide are its answers, and the audit takes those, too. It asks the trained
# model the prompts that you mean, greedily: it always takes the likeliest token. So your server has to do the same,
# with temperature 0 and as many tokens.

# %%
if "second" in trained.peft_config:
    trained.delete_adapter("second")  # it was there for the clock
audited = merging.audit(trained, prompts, tokenizer, answers=served[8:])
print(audited)

# %% [markdown]
# The card states what you have measured. A name is not enough in it: a name has many weights, and this course's base is
# not what its name on the hub gives. So the card has hashes of the base and of the data. (For a base from the hub,
# state its commit as well: `get_peft_model(model, config, revision="...")` writes it into the adapter's config.)

# %%
from lora_lab import cache, shipping

CARD = f"""---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
license: apache-2.0
---
# Home commands to JSON
- Base: a 4-bit copy of the above, read as float32: {cache.SMOLLM2.project} {cache.SMOLLM2.version}, sha256 by
  lora_lab.adapters.base_identity {adapters.base_identity(base)}. Not tested on the hub's weights.
- Data: lora_lab.smart_home, "train", rows 1 to {len(data)}: sha256 {digest}
- LoRA: rank 8, alpha 16, all linear layers. Prompt: "> ", the command, a new line. Greedy, up to 16 tokens.
- Held-out phrasings, whole prompts: {scoring.score(commands, answers["merged"])}.
- The same through this folder's chat template: {scoring.score(alike, served[8:])}.
- {general}.
- Limits: {acted} of {len(IDLE)} sentences that ask for nothing got what begins like an action. English. Ten rooms."""
print(CARD)

# %% [markdown]
# `shipping.ship` writes everything beside the folder and swaps the two at the end. If the disk is full or the kernel is
# killed, what was there before is there again. It refuses empty adapters, NaN, pickles (files that can run code) and
# paths of your machine. It does not ask whether the model answers well: that is your gate.

# %%
if audited.safe:
    shipping.ship(trained, own_tokenizer, "adapters/shipped", CARD)
    shipping.ship(merged, own_tokenizer, "adapters/shipped-merged", CARD)
    adapters.adapter_folder("adapters/shipped", r=8, base=base)  # raises if it is not complete, or for other weights
    folders = "adapters/shipped", "adapters/shipped-merged"
else:
    folders = ("adapters/merged",)
    print("Not shipped: the audit found answers that differ. Through a chat interface, the template decides (Puzzle "
          "3). Solve it, run its cell, then the cell that begins with own_tokenizer and the three below it. What would "
          "have travelled:")
table([{"folder": folder, "file": file.name, "kB": f"{file.stat().st_size / 1000:,.1f}"}
       for folder in folders for file in sorted(Path(folder).iterdir()) if file.is_file() and file.name[0] != "."])

# %% [markdown]
# ### Other engines
#
# `BASE` in these commands is the base that the adapter was trained beside. With another revision you have a fault of
# Puzzle 2, and no engine reports it. And ask them as the audit does, with whole prompts and temperature 0 (many engines
# sample unless you say so):
#
#     curl localhost:8000/v1/completions -H "Content-Type: application/json" \
#       -d '{"model": "home", "prompt": "> lights on in the attic\n", "temperature": 0, "max_tokens": 16}'
#
# **llama.cpp and Ollama** take GGUF files, made by two scripts of llama.cpp's sources. (`f16` rounds once more: audit
# what they answer.)
#
#     python convert_hf_to_gguf.py adapters/shipped-merged --outtype f16 --outfile merged.gguf
#     python convert_lora_to_gguf.py adapters/shipped --base BASE_FOLDER --outtype f32 --outfile adapter.gguf
#
# The first takes the template from the folder's `chat_template.jinja`. The second writes none: an adapter's file is
# asked through the *base's* template unless you give one. [The benchmark](../benchmarks/README.md) has both files run
# in llama.cpp with whole prompts, and the merged one as a chat: with the right template, with the team's, with none.
#
# Ollama runs no Jinja. It looks whether the file's template resembles one that it knows, and else sends the bare words.
# So write the template into the Modelfile, in Ollama's own language, and look at `ollama show --template` (**not run
# here**):
#
#     FROM ./merged.gguf
#     TEMPLATE """> {{ .Prompt }}
#     """
#     PARAMETER temperature 0
#
# **vLLM, SGLang and TGI** serve many adapters on one base (**not run here**):
#
#     vllm serve BASE --enable-lora --max-lora-rank 16 --max-loras 4 --lora-modules home=adapters/shipped \
#       --chat-template adapters/shipped/chat_template.jinja
#     python -m sglang.launch_server --model-path BASE --lora-paths home=adapters/shipped --max-loras-per-batch 4
#     LORA_ADAPTERS=OWNER/NAME text-generation-launcher --model-id BASE   # names on the hub
#
# In vLLM, `--max-lora-rank` (16 unless you say otherwise) refuses adapters of a higher rank, and room for that rank is
# set aside for each. `--max-loras` (1) says how many may share a batch; the next one waits. It takes A and B alone: an
# adapter with `modules_to_save` is refused, so merge that one. The template is one for the whole server. And a merged
# folder in float32 may be loaded in 16 bits: state `--dtype`, and audit that.
#
# ## Experienced-dev note
#
# - Keep the adapter and the hash of its base, even if you ship the merged model. (With the base at hand, a difference
#   and an SVD give the update back, if it was merged in float32: Lesson 1.)
# - The audit compares greedy answers. If you sample in production, read the distance of the merged model, too.
# - On CPUs with bfloat16 instructions, bitsandbytes packs nf4 weights at the first evaluation. Merging or
#   `dequantize()` after that gives nonsense: do it before, or load anew.
# - A merge takes the active adapters alone, and some kinds cannot be merged at all.
#
# %%
progress()

# %% [markdown]
# ## Recap
#
# - $W' = W + s\,BA$. Merge in float32, once, and measure what arrives in the precision that you ship.
# - Merge for one skill, and for speed where your clock shows a gain; keep adapters for many skills, and for further
#   training.
# - Ship template, hashes and limits with the weights, and let the same prompts judge what you trained and what answers.
#
# **The exercise worth doing.** Take an adapter of your own and forty prompts of your users. Audit the merge in the
# precision you serve in, then the answers of your server (temperature 0) through `answers=`. If a verdict says *look*,
# read the changed answers: would your users mind?
#
# Next: **Lesson 7** takes the training beyond one GPU.
#
# Sources: Hu et al., *LoRA* (2021), section 4.1, "No Additional Inference Latency"; Dettmers et al., *QLoRA* (2023),
# for nf4; Yadav et al., *TIES-Merging* (2023); Yu et al., *Language Models are Super Mario* (DARE, 2024).
#
# *Lessons:* ← [5 · The alpha experiments](05_alpha_scaling.ipynb) ·
# [7 · Past one GPU](07_past_one_gpu.ipynb) →
