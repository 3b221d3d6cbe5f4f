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
# **You need** [Lesson 0](00_first_adapter.ipynb); [Lesson 3](03_train_in_8bit.ipynb) for what int8 and nf4 are.
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: not recorded).
#
# ## Why this matters
#
# The card about LoRA that this course grew from says: merge before deployment, recover the speed, ship a single file.
# That can be good advice. It leaves out that a merge writes into the weights' own precision, that it can be done
# twice, that the wrong object is easily saved, and that an engine may ask the model otherwise than you trained it.
# None of this has to raise an error. It shows as a model in production that answers differently from the one in your
# notebook.

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
# Lesson 0's adapter, if it is on your disk. Otherwise the cell after this one trains one in the same way, for fewer
# steps. A merge changes weights in place, so the lesson loads the base anew whenever it needs a clean one.

# %%
SEED, STEPS = 0, 32
transformers.set_seed(SEED)
transformers.logging.disable_progress_bar()
base, tokenizer = load_base(precision="float32")

def fresh_base():
    return load_base(precision="float32", quiet=True)[0]

adapter = "adapters/first" if Path("adapters/first/adapter_model.safetensors").exists() else "adapters/merging"
print("The adapter to be merged:", adapter)

# %%
if not Path(adapter, "adapter_model.safetensors").exists():
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(fresh_base(), config)
    rows = batches.encode(smart_home.commands("train", n=8 * STEPS, seed=SEED), tokenizer)
    arguments = transformers.TrainingArguments(
        output_dir="runs/merging", max_steps=STEPS, per_device_train_batch_size=8, learning_rate=2e-3, warmup_steps=3,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", remove_unused_columns=False,
        disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(), use_cpu=model.device.type == "cpu")
    trainer = transformers.Trainer(model, arguments, batches.AnswerCollator(tokenizer),
                                   batches.similar_lengths(rows, 8, SEED), callbacks=[plots.LiveLoss()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    model.save_pretrained(adapter, save_embedding_layers=False)
    adapters.note_base(adapter, model)

# %%
trained = PeftModel.from_pretrained(fresh_base(), adapters.adapter_folder(adapter, r=8, base=base)).eval()
commands = smart_home.commands("test phrasings", n=42, seed=SEED)  # each kind of action three times
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
    difference = (layer(x) - x @ (W + update).T).abs().max().item()
print("W", tuple(W.shape), " B", tuple(B.shape), " A", tuple(A.shape), " scaling:", layer.scaling["default"])
print(f"the update has {update.norm().item() / W.norm().item():.1%} of the weight's size")
print(f"largest difference between the layer and the merged weight: {difference:.1e}")

# %% [markdown]
# `merge_and_unload()` does that for every layer and takes the LoRA layers out. What you want is its *return value*.

# %%
quiz("merge/float32_change")

# %%
merged = PeftModel.from_pretrained(fresh_base(), adapter).merge_and_unload(safe_merge=True)  # refuses NaN
print(type(trained).__name__, "->", type(merged).__name__)
merged.save_pretrained("adapters/merged-float32")
tokenizer.save_pretrained("adapters/merged-float32")
merged = load_base("adapters/merged-float32", "float32", quiet=True)[0]  # weights in a file need no memory of their own
answers["merged"] = scoring.generate(merged, tokenizer, asked, progress="the merged model")
print(sum(a == b for a, b in zip(*answers.values())), "of", len(asked), "answers are the same, letter for letter")

# %%
READ = [tokenizer(c.prompt + c.answer, return_tensors="pt") for c in commands[:14]]

@torch.no_grad()
def logits(model):
    """Logits at every position of fourteen commands with their answers, one command after the other."""
    for text in READ:
        yield model(**text.to(model.device)).logits[0].float()

reference = list(logits(trained))
moved = {name: max((a - b).abs().max().item() for a, b in zip(reference, logits(model)))
         for name, model in {"merging": merged, "taking the adapter off": base}.items()}
print("largest change of a logit:", ", ".join(f"{name} {change:.1e}" for name, change in moved.items()))
compare("merge/float32_change", moved["merging"])

# %% [markdown]
# Adding first and multiplying afterwards rounds in other places than multiplying first. Float32 has room for that.
#
# ## What does it win? Time
#
# How much speed is there to recover? Five models take turns, each first as often as the others. One of them is the
# base a second time: its ratio to the base is pure noise, and what is no further from 1 than that is not slower. A chat
# model spends its time on single tokens behind a prompt, so that comes first.

# %%
quiz("merge/unmerged_cost")

# %%
from lora_lab.models import clock

prompt = torch.randint(1000, 2000, (1, 128), device=base.device)
two_kinds = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
racers = {"base": base, "base again": base, "merged": merged,
          "q and v unmerged": get_peft_model(fresh_base(), two_kinds).eval(), "all linear unmerged": trained}
with torch.no_grad():
    pasts = {name: model(prompt, use_cache=True, logits_to_keep=1).past_key_values for name, model in racers.items()}
print(f"{len(racers)} models have read a prompt of {prompt.shape[1]} tokens")

# %%
@torch.no_grad()
def one_token(name):
    racers[name](prompt[:, :1], past_key_values=pasts[name], logits_to_keep=1)
    pasts[name].crop(-1)  # forgotten again, for the next round

def ratios(action, rounds, label):
    times = {name: [] for name in racers}
    with Progress(label, total=rounds) as bar:
        for turn in range(rounds):
            for name in [*racers, *racers][turn % len(racers):][:len(racers)]:
                started = clock()  # waits until a GPU is done
                action(name)
                times[name].append(clock() - started)
            bar.update(1)
    return {name: [one / other for one, other in zip(times[name], times["base"])] for name in list(racers)[1:]}

token = ratios(one_token, 40, "one token, 40 rounds")

# %%
plots.dots(token, "time for one token, base = 1", "Which models are slower than the base?", each="round",
           middle="median")

# %%
@torch.no_grad()
def whole_prompt(name):
    return racers[name](prompt, logits_to_keep=1)

def median_interval(values):
    """A median and its 95 % interval: ranks of the sorted values, by the binomial distribution (a sign test)."""
    least = max(0, int(len(values) / 2 - 0.98 * math.sqrt(len(values))))
    return sorted(values)[least], statistics.median(values), sorted(values)[-1 - least]

for what, found in {"one token": token, "the prompt": ratios(whole_prompt, 10, "a prompt, 10 rounds")}.items():
    for name, values in found.items():
        low, middle, high = median_interval(values)
        said = "slower" if low > 1 else "quicker" if high < 1 else "not to be told from the base"
        print(f"{what}, {name}: {middle:.3f} times the base ({low:.3f} to {high:.3f}), {said}")

# %%
compare("merge/unmerged_cost", statistics.median(token["all linear unmerged"]))

# %% [markdown]
# (An interval of 95 % misses by luck one time in twenty, also in the row *base again*.) A merged layer is a matrix of
# the same shape in the same place. An unmerged layer makes further calls, however little each has to compute. These
# are the ratios of your machine; [the benchmark](../benchmarks/README.md) has more ranks and rounds. Servers for many
# adapters use kernels of their own.
#
# ## What can it lose? Each precision is a grid
#
# $W'$ is stored in the precision of $W$. Each precision is a grid of numbers that it can hold. Look at some weights of
# one layer on each grid, and at the update that has to fit in between.

# %%
from bitsandbytes.functional import get_4bit_type


def int8(weight):  # 255 marks for each row, evenly spaced
    step = weight.abs().amax(1, keepdim=True) / 127
    return (weight / step).round() * step

def nf4(weight):  # 16 marks for each block of 64
    marks, blocks = get_4bit_type("nf4", device=weight.device), weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)  # kept in float32, so that the largest weight is exact
    nearest = torch.bucketize(blocks / scale, (marks[1:] + marks[:-1]) / 2)
    return (marks[nearest] * scale).reshape(weight.shape)

GRIDS = {"float32": lambda weight: weight, "float16": lambda weight: weight.half().float(),
         "bfloat16": lambda weight: weight.bfloat16().float(), "int8": int8, "nf4": nf4}
W, update = W.detach().cpu(), update.cpu()
rows = {name: grid(W)[0, :5] for name, grid in GRIDS.items()} | {"the update": update[0, :5]}
table([{"stored in": name} | {f"weight {k}": f"{value:+.5f}" for k, value in enumerate(row.tolist())}
       for name, row in rows.items()])

# %% [markdown]
# *Merged in place* means: the base is loaded in that precision, the update is added, and the sum is rounded to the grid
# again. Commit to two predictions about the weights of all layers. (Users see predictions, not weights. So each model
# is compared by these as well: by the **KL divergence** from the trained model's next-token probabilities, which is 0
# where they are the same.)

# %%
quiz("merge/bf16_unmoved")

# %%
quiz("merge/nf4_left")

# %%
layers = {name.removeprefix("base_model.model."): module for name, module in trained.named_modules()
          if hasattr(module, "lora_A")}
scratch = fresh_base().eval()  # its weights are replaced again and again

@torch.no_grad()
def build(place):
    """Put each layer's weight, as `place` has it, into `scratch`; returns five sums that tell what changed."""
    sums = torch.zeros(5, dtype=torch.float64)
    for name, one in layers.items():
        U = one.get_delta_weight("default").cpu()
        before, after = place(one.base_layer.weight.cpu(), U)
        scratch.get_submodule(name).weight.copy_(after)
        D = after - before
        sums += torch.stack([(D != 0).sum(), (D - U).square().sum(), (D * U).sum(), U.square().sum(), (U == U).sum()])
    return sums.tolist()

print(len(layers), "layers have an adapter")

# %%
@torch.no_grad()
def judge(model):
    """KL to the trained model for each of the fourteen commands, and the share of next tokens that change."""
    kl, changed = [], []
    for a, b in zip(reference, logits(model)):
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1).mean().clamp(min=1e-9).item())  # rounding may be below 0
        changed += (a.argmax(-1) != b.argmax(-1)).tolist()
    return kl, sum(changed) / len(changed)

apart, changed = judge(base)
print(f"without the adapter: KL {statistics.mean(apart):.2g} nats a token, {changed:.0%} of next tokens change")

# %%
kl, reached = {}, {}
with Progress("merging in place", total=len(GRIDS)) as bar:
    for name, grid in GRIDS.items():
        moved, off, along, size, entries = build(lambda W, U: (grid(W), grid(grid(W) + U)))
        reached[name] = {"weights that move": moved / entries, "error, relative to the update": math.sqrt(off / size),
                         "update that arrives": along / size}
        kl[name, "merged in place"] = judge(scratch)
        bar.update(1)
for name, found in reached.items():
    print(f"{name:8}", ", ".join(f"{what} {share:.2%}" for what, share in found.items()))

# %%
compare("merge/bf16_unmoved", 100 * (1 - reached["bfloat16"]["weights that move"]))
compare("merge/nf4_left", 100 * reached["nf4"]["update that arrives"])
plots.shares(reached, "Merged in place: how much of the update reaches the weights?")

# %% [markdown]
# *Arrives* is the share of the update that the change of the weights contains: the part along the update, by least
# squares. Compare the panels in the row of bfloat16. Where the update is below half a step, the weight stays. Where it
# is larger, the weight moves by whole steps, too far or not far enough. Weight by weight that is wrong. But the errors
# go both ways, and what arrives is an average.
#
# And nf4: do weights move there, with hardly anything to show for it? Look for the culprit in one layer.

# %%
before, after, U = (matrix.reshape(-1, 64) for matrix in (nf4(W), nf4(nf4(W) + update), update))
largest = before.abs().argmax(1, keepdim=True)  # of each block
change = (after - before) * U / U.square().sum()
print(f"nf4, one layer: {(after != before).float().mean().item():.0%} of the weights move, and "
      f"{change.sum().item():.2%} of the update arrives.")
print(f"The largest weight of each block alone, {largest.numel() / before.numel():.2%} of the weights, brings "
      f"{change.gather(1, largest).sum().item():.2%}.")

# %% [markdown]
# The scale of a block is its largest weight, and is kept in float32. So this one weight takes its update in full, and
# drags the marks of the others along: they move with *it*, and not as they should.
#
# On a coarse grid the update can be below half a step for nearly every weight, and then there is nothing to average.
# **Puzzle 1: get it onto the grid.** You have the weight as it was before anybody rounded it. Return a weight *on the
# grid* that holds the update.

# %%
def onto_grid(W, A, B, scaling, grid):
    return grid(grid(W) + scaling * B @ A)  # in place: too little arrives

quiz("merge/onto_grid", onto_grid)

# %% [markdown]
# ## Controls: what did the merge cost, and what the rounding?
#
# A model on a rounded base is not the one you trained, merged or not. So each precision gets a control: the rounded
# base with the adapter *unmerged* on it. It is at the same time what you get if you put the rounded base back into
# float32 and merge there. Only what goes beyond the control is the merge's own doing.

# %%
PLACES = {"rounded base, unmerged": lambda grid: lambda W, U: (W, grid(W) + U),
          "merged first, then rounded": lambda grid: lambda W, U: (W, grid(W + U))}
with Progress("controls", total=len(PLACES) * len(GRIDS)) as bar:
    for name, grid in GRIDS.items():
        for way, place in PLACES.items():
            if name != "float32":  # its grid is the weights' own
                build(place(grid))
                kl[name, way] = judge(scratch)
            bar.update(1)
scratch = None  # 538 MB
order = sorted(kl, key=lambda row: (list(GRIDS).index(row[0]), row[1] != "rounded base, unmerged", row[1]))
plots.dots({f"{name}, {way}": kl[name, way][0] for name, way in order}, "KL to the trained model, nats a token",
           "How far is each from what you trained?", "{:.1e}", each="command", middle="median", xscale="log")

# %%
for name in list(GRIDS)[1:]:
    control = kl[name, "rounded base, unmerged"][0]
    for way in ("merged in place", "merged first, then rounded"):
        further = sum(one > other for one, other in zip(kl[name, way][0], control))
        said = "further off" if further >= 12 else "closer" if further <= 2 else "not to be told apart"
        times = statistics.mean(kl[name, way][0]) / statistics.mean(control)
        print(f"{name:8} {way:26} KL {times:5.1f} times the control's, higher on {further} of 14 commands: {said}; "
              f"{kl[name, way][1]:.1%} of next tokens change")
best = "merged first, then rounded" if statistics.mean(kl["nf4", "merged first, then rounded"][0]) < \
    statistics.mean(kl["nf4", "merged in place"][0]) else "merged in place"
print(f"For nf4, {best} is nearer to what you trained.")

# %% [markdown]
# ("Further" and "closer" need 12 of 14 commands, as equal models get them by luck one time in eighty.)
#
# Why can *merged first* work where *in place* does not? A base in nf4 lies *on* its marks, and each weight is half a
# step away from the border to the next. A small push tips none of them over. Weights that were never rounded lie
# anywhere between two marks. The same push tips those over that lie close to a border; each of them moves by a whole
# step, and on average that is the update. So what decides is the size of the update in steps of the grid. Turn it from
# large to small:

# %%
SIZES = [2.0**k for k in range(6, -6, -1)]  # from large to small

def arrives(before, after, change):
    return 100 * (((after - before) * change).sum() / change.square().sum()).item()

curves = {name: (SIZES, [arrives(grid(W), grid(grid(W) + s * update), s * update) for s in SIZES])
          for name, grid in list(GRIDS.items())[1:]}
curves["nf4, merged first"] = SIZES, [arrives(nf4(W), nf4(W + s * update), s * update) for s in SIZES]
plots.lines(curves, "update of one layer, times the trained one: smaller to the right", "share that arrives (%)",
            mark=1, title="How small may an update be, and still get onto each grid?", xscale="log",
            xlim=(SIZES[0], SIZES[-1]))

# %% [markdown]
# The upright line is your adapter. A longer or hotter training, or a larger alpha, moves it to the left. So merge
# while the weights are in 16 or 32 bits and off the grid, and quantise afterwards if you must; PEFT's maintainers
# advise the same (issue 638). To serve a run that was trained on an nf4 base in 16 bits, `model.dequantize()` that
# base and merge there: that is the control's row.
#
# ## The merge audit
#
# Nobody should have to draw such pictures to ship a model. `merging.audit` puts your prompts to the model you trained
# and to the merged one, compares the weights, and says what it found.

# %%
print(merging.audit(trained, asked[:8], tokenizer, deployed=merged))

# %% [markdown]
# Now let PEFT merge in place on a real nf4 base. Before you run it: what should the share of the update be, by your own
# measurement?

# %%
on_nf4 = PeftModel.from_pretrained(load_base(precision="nf4", quiet=True)[0], adapter).eval()
lossy = merging.audit(on_nf4, asked[:8], tokenizer)  # without `deployed` it merges a copy
print(lossy)
by_hand = reached["nf4"]["update that arrives"]
print(f"share of the update: {lossy.update:.4f} by the audit, {by_hand:.4f} by hand:",
      "the same." if abs(lossy.update - by_hand) < 0.01 else "not the same.")
del on_nf4

# %% [markdown]
# Look at what PEFT warned of. It warns of "rounding errors" for every quantised layer, whether nothing is lost or
# everything: it does not measure.
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
    for step, batch in zip(range(steps), pocket.stream(dialect("train", 2500, skill), batch_size=16, seed=SEED)):
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
tests = {skill: dialect("validation combinations", 400, skill) for skill in DEVICES}
print("skill one:", scoring.quick_score(skills, words, tests["one"]))
skills.save_pretrained("adapters/skills", selected_adapters=["one"])
ONE = "adapters/skills/one"

# %% [markdown]
# **Guess first:** which of these go wrong in silence? The next cells do each of them.

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
# Look at the third row: it answers as the merged model, calls itself a PeftModel, and saves an adapter with nothing in
# it.
# `merge_adapter` is for a moment (`unmerge_adapter` takes it out again), `merge_and_unload` is for good, `unload`
# throws the adapter away.

# %% tags=["nbval-check-output"]
batch = next(iter(pocket.stream(tests["one"], batch_size=16, seed=SEED)))
for call in ("nothing", "merge_adapter", "merge_and_unload"):
    model = PeftModel.from_pretrained(copy.deepcopy(small), ONE, is_trainable=True)
    model = model if call == "nothing" else getattr(model, call)() or model
    try:
        model(**batch).loss.backward()
        print(f"{call}, then backward: {sum(p.grad is not None for p in model.parameters())} tensors get a gradient")
    except RuntimeError as error:
        print(f"{call}, then backward: RuntimeError: {error}")

# %% tags=["nbval-check-output"]
bad = fresh()
bad.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight.data[0, 0] = math.nan
for what, mistake in {"loaded onto a merged base": lambda: PeftModel.from_pretrained(fresh().merge_and_unload(), ONE),
                      "merge_adapter twice": lambda: [model.merge_adapter() for model in [fresh()] * 2],
                      "NaN": lambda: copy.deepcopy(bad).merge_and_unload(),
                      "safe_merge": lambda: copy.deepcopy(bad).merge_and_unload(safe_merge=True)}.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            mistake()
        except ValueError as error:
            print(f"{what}: ValueError: {error}")
            continue
    said = [str(warning.message) for warning in caught if "merge" in str(warning.message)]
    print(f"{what}:", f"{len(said)} warnings, {said[0]!r}" if said else "no word")

# %% [markdown]
# **Tied embeddings.** In many small models, this one and SmolLM2 among them, the output head *is* the embedding matrix.
# Which ways of training it survive a merge? (Lesson 2 asked that of the embedding; here it is the head's turn.)

# %%
quiz("merge/tied")

# %%
HEADS = {"adapter on lm_head": dict(target_modules=["q_proj", "lm_head"]),
         "full copy of lm_head": dict(modules_to_save=["lm_head"]),
         "full copy of both, tied": dict(modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=True),
         "rows of the embedding": dict(trainable_token_indices=[5, 6, 7])}
ids, rows = words([c.prompt for c in tests["one"][:1]], return_tensors="pt")["input_ids"], []
for kind, options in HEADS.items():
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        model = get_peft_model(copy.deepcopy(small), lora(**options)).eval()
        for weights in (p for p in model.parameters() if p.requires_grad):
            weights += 0.02 * torch.randn_like(weights)  # as if trained
        before, whole = model(ids).logits, model.merge_and_unload()
    tied = whole.get_input_embeddings().weight.data_ptr() == whole.get_output_embeddings().weight.data_ptr()
    rows.append({"trained": kind, "largest change of a logit": f"{(whole(ids).logits - before).abs().max().item():.1g}",
                 "one matrix afterwards": tied})
table(rows)

# %% [markdown]
# Merged, an adapter on one side reaches the shared matrix and so the other side, too. Full copies merge by being put in
# place; of one side alone, that leaves two matrices, and a file that is larger by one. Single rows are written into the
# shared matrix, where both sides read them.
#
# **Puzzle 2: four deployments, three of them broken.** `adapters/deployed` holds deployments of skill one, `a` to `d`.
# One is sound. One has another revision of the base, in one the base had the adapter merged in before, in one somebody
# edited alpha on disk. Audit each against `reference`, and name its fault: `"sound"`, `"base"`, `"merged"`, `"alpha"`.

# %%
from lora_lab.course.exercises import deployments

reference = fresh()
deployments.make(reference, "adapters/deployed")

def load_deployed(folder):
    deployed = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/base")
    return PeftModel.from_pretrained(deployed, f"{folder}/adapter")

asked_of_skill_one = [c.prompt for c in tests["one"][:28]]
# print(merging.audit(reference, asked_of_skill_one, words, deployed=load_deployed("adapters/deployed/a")))

# %%
faults = {"a": "sound", "b": "sound", "c": "sound", "d": "sound"}
quiz("merge/faults", faults, "adapters/deployed")

# %% [markdown]
# ## When not to merge: many skills on one base
#
# A merged model has one skill. A base can carry many adapters, and switch between requests, or between the rows of one
# batch. Train a second skill for the other devices, on the same base:

# %%
skills.add_adapter("two", lora())
skills.set_adapter("two")
with Progress("skill two", total=1) as bar:
    train(skills, "two")

def both():
    return {f"skill {skill}": scoring.quick_score(skills, words, test) for skill, test in tests.items()}

mixed = tests["one"][:20] + tests["two"][:20]
rows = words([c.prompt for c in mixed], padding=True, padding_side="left", return_tensors="pt").to(skills.device)
output = skills.generate(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], do_sample=False,
                         max_new_tokens=16, pad_token_id=words.pad_token_id, adapter_names=["one"] * 20 + ["two"] * 20)
said = words.batch_decode(output[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)
print("one batch, an adapter for each row:", sum(a == c.answer for a, c in zip(said, mixed)), "of 40 right")

# %% [markdown]
# Could one adapter hold both? `add_weighted_adapter` makes a new one out of several:
#
# - `cat` stacks the A's and the B's: the exact sum of the updates. Ranks add up.
# - `svd` cuts that sum to a rank (Lesson 1).
# - `linear` adds A to A and B to B. The rank stays. `ties` and `dare_ties` do the same after dropping entries.

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
# `linear` works on A and B apart, so each gets the *root* of its weight (times the scaling), and A alone gets the
# *sign*. Check it by hand:

# %% tags=["nbval-check-output"]
for weights in ([1.0, 0.5], [1.0, -1.0]):
    skills.add_weighted_adapter(["one", "two"], weights, "mix", combination_type="linear")
    roots = [math.sqrt(abs(w * own.scaling[name])) for w, name in zip(weights, ("one", "two"))]
    signs = [math.copysign(1, w) for w in weights]
    A = sum(sign * root * own.lora_A[name].weight for sign, root, name in zip(signs, roots, ("one", "two")))
    B = sum(root * own.lora_B[name].weight for root, name in zip(roots, ("one", "two")))
    same = torch.allclose(own.get_delta_weight("mix"), B @ A, atol=1e-6)
    print(f"weights {weights}: roots {[round(root, 3) for root in roots]}, signs {signs}, scaling "
          f"{own.scaling['mix']:g}; B A by hand is PEFT's: {same}")
    skills.delete_adapter("mix")

# %% [markdown]
# The product of two sums has cross terms: $(B_1+B_2)(A_1+A_2) = B_1A_1 + B_2A_2 + B_1A_2 + B_2A_1$. Nobody trained the
# last two. **Predict** which of these combinations keeps both skills, if any.

# %%
combined = {f"adapter {name}, alone": (skills.set_adapter(name), both())[1] for name in ("one", "two")}
for kind, weight, options in (("cat", 1.0, {}), ("cat", 0.5, {}), ("svd", 1.0, {"svd_rank": 8}), ("linear", 0.5, {}),
                              ("ties", 1.0, {"density": 0.5}), ("dare_ties", 1.0, {"density": 0.5})):
    transformers.set_seed(SEED)  # dare drops at random
    skills.add_weighted_adapter(["one", "two"], [weight, weight], "mix", combination_type=kind, **options)
    skills.set_adapter("mix")
    combined[f"{kind}, weights {weight:g}"] = both()
    skills.set_adapter("one")
    skills.delete_adapter("mix")
plots.shares({kind: {skill: score.exact for skill, score in found.items()} for kind, found in combined.items()},
             "Can one adapter hold two skills? Exact answers")

# %%
alone = [combined[f"adapter {s}, alone"][f"skill {s}"].exact for s in DEVICES]
keeps = [kind for kind, found in list(combined.items())[2:]
         if all(found[f"skill {s}"].interval[1] >= one for s, one in zip(DEVICES, alone))]
print("Within the intervals, both skills are kept by:", ", ".join(keeps) or "none of them. Switching keeps them.")

# %% [markdown]
# What does a switch cost, and the memory? The clock runs until the first token is there, so that every weight has been
# read. (`from_pretrained` alone only maps a file. And this file is in memory already; from a disk it takes its time.)

# %%
from peft.utils.hotswap import hotswap_adapter

trained.load_adapter(adapter, adapter_name="second")

def another_model():
    path = "adapters/merged-float32"
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(base.device)

switches = {"no switch": lambda: trained, "set_adapter": lambda: trained.set_adapter("default") or trained,
            "hotswap_adapter": lambda: hotswap_adapter(trained, adapter, "default") or trained,
            "load another merged model": another_model}
print(*switches, sep="; ")

# %%
taken = {name: [] for name in switches}
with torch.no_grad():
    for _ in range(5):
        for name, switch in switches.items():
            started = clock()
            switch()(prompt[:, :8])
            taken[name].append(1000 * (clock() - started))
trained.delete_adapter("second")
plots.dots(taken, "ms until the first token", "What does it cost to switch the skill?", "{:.0f}", each="turn",
           middle="median", xlim=(0, 1.05 * max(map(max, taken.values()))))

# %%
one = {"merged copy": sum(p.nbytes for p in merged.parameters()),
       "adapter": sum(p.nbytes for n, p in trained.named_parameters() if "lora_" in n)}
table([{"skills": n, "merged copies, MB": f"{n * one['merged copy'] / 1e6:,.0f}",
        "one base and adapters, MB": f"{(one['merged copy'] + n * one['adapter']) / 1e6:,.0f}"} for n in (1, 10, 100)])

# %% [markdown]
# **Merge** when one skill serves all requests, or the program that runs the model knows no adapters. **Keep adapters**
# when skills share a base, when you want to switch a skill off, or when the base is in 4 or 8 bits. And when you want
# to go on training: an adapter can even be given a higher rank in place.

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
# Eight more columns of zeros in B add nothing, whatever A has there, as long as alpha/r stays what it was. And they
# learn: the gradient of B has A as a factor (Lesson 1). It is a higher rank for further training, and no new training.
#
# ## Ship it: the template is part of the model
#
# Programs that serve models, such as Ollama, llama.cpp's server or vLLM, offer a chat interface. They put your user's
# words into the **chat template** that the files carry, and the model sees the result. Yours was trained on `> `, the
# command and a new line. The folder of the base carries the base's template. Somebody on your team has written one for
# the adapter. Look at the end of what they make:

# %%
TEMPLATES = {"the base's": None, "the team's": "> {{ messages[-1].content }}\n"}

def through(template):
    """The prompts that an engine makes of the commands, with this template."""
    return [tokenizer.apply_chat_template([{"role": "user", "content": c.text}], tokenize=False,
                                          add_generation_prompt=True, chat_template=template) for c in commands]

for name, template in TEMPLATES.items():
    print(f"{name:10} ...{through(template)[0][-105:]!r}")
print(f"training's {commands[0].prompt!r}")

# %% [markdown]
# The base's template surrounds the command with another text. The team's loses one character: Jinja drops a new line at
# the end of a template.

# %%
quiz("merge/template")

# %%
asked_so = {"asked as trained": scoring.score(commands[:28], answers["merged"][:28])}
for name, template in TEMPLATES.items():
    answers[name] = scoring.generate(merged, tokenizer, through(template)[:28], progress=f"through {name} template")
    asked_so[f"through {name} template"] = scoring.score(commands[:28], answers[name])
for name, found in list(asked_so.items())[1:]:
    print(scoring.verdict(asked_so["asked as trained"], found, "asked as trained", name))
compare("merge/template", 100 * asked_so["through the team's template"].exact)

# %%
plots.score_bars({"exact": asked_so}, "What does a template cost?")

# %%
table([{"command": c.text} | {name: texts[place] for name, texts in list(answers.items())[1:]}
       for place, c in enumerate(commands[:5])])

# %% [markdown]
# What each of them costs depends on what the base had learned before, and on your training; no error tells you.
#
# **Puzzle 3: the template.** Write one that makes of the last message what training showed, to the letter.

# %%
my_template = "> {{ messages[-1].content }}\n"
quiz("merge/my_template", my_template)

# %% [markdown]
# ## Ship it: what was forgotten
#
# A card should also say what the model lost. The tool that everybody cites for that, `lm-eval`, asks which of several
# endings a model finds the likeliest. Its own tasks need the hub:
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

kept = {"base": knows(base), "merged": knows(merged)}
print("True endings are the likeliest:", scoring.verdict(*kept.values(), *kept))

# %%
prose = {"base": scoring.perplexity(base, tokenizer), "merged": scoring.perplexity(merged, tokenizer)}
print(f"Perplexity of prose: base {prose['base']:.1f}, merged {prose['merged']:.1f}.",
      "It is less sure of ordinary text than before." if prose["merged"] > 1.05 * prose["base"]
      else "It is as sure of ordinary text as before.")

# %% [markdown]
# ## Ship it: a card, and all or nothing
#
# What travels: weights as safetensors, the config, the tokenizer with its template, and a card. A name is not enough in
# it: a name has many weights. So the card states hashes of the base and of the data, scores with their intervals, and
# the limits. (For a base from the hub, state its commit as well: `get_peft_model(model, config, revision="...")` writes
# it into the adapter's config.)

# %%
from lora_lab import cache, shipping

data = json.dumps([(c.prompt, c.answer) for c in smart_home.commands("train", n=8 * STEPS, seed=SEED)])
general = ", ".join(f"{name} {found.exact:.0%}, perplexity {prose[name]:.0f}" for name, found in kept.items())
CARD = f"""---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
license: apache-2.0
---
# Home commands to JSON
- Base: as above, from {cache.SMOLLM2.project} {cache.SMOLLM2.version}; weights sha256 {adapters.base_identity(base)}
- Data: lora_lab.smart_home, "train". Rows 1 to {8 * STEPS}: sha256 {hashlib.sha256(data.encode()).hexdigest()}
- LoRA: rank 8, alpha 16, all linear layers. Prompt: "> ", the command, a new line.
- Held-out phrasings: {scoring.score(commands, answers["merged"])}.
- {len(ITEMS)} questions of general knowledge, and prose: {general}.
- Limits: answers everything with an action, also where none is wanted. English. Ten rooms."""
print(CARD)

# %% [markdown]
# `shipping.ship` writes everything beside the folder and swaps the two at the end. A full disk or a killed kernel
# leaves what was there before. It refuses empty adapters, NaN, pickles and paths of your machine.

# %%
right = through(my_template) == asked
print("The template makes the training's prompts." if right else "The template does not make the training's prompts "
      "yet (Puzzle 3): the folders are fit to be asked with whole prompts, and not through a chat interface.")
tokenizer.chat_template = my_template
shipping.ship(trained, tokenizer, "adapters/shipped", CARD)
shipping.ship(merged, tokenizer, "adapters/shipped-merged", CARD)
adapters.adapter_folder("adapters/shipped", r=8, base=base)  # raises if it is not complete, or for other weights
table([{"folder": folder, "file": file.name, "kB": f"{file.stat().st_size / 1000:,.1f}"}
       for folder in ("adapters/shipped", "adapters/shipped-merged") for file in sorted(Path(folder).iterdir())
       if not file.name.startswith(".")])

# %% [markdown]
# The real test of a shipped model is another program that knows nothing of this notebook. This one stands for an
# engine: it has the folder, and answers whole prompts or chats.

# %%
Path("runs/merging").mkdir(parents=True, exist_ok=True)
Path("runs/merging/engine.py").write_text("""
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, way, texts = json.loads(sys.argv[1])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
if way == "chat":
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False,
                                           add_generation_prompt=True) for text in texts]
rows = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
output = model.generate(**rows, do_sample=False, max_new_tokens=16)
print(json.dumps(tokenizer.batch_decode(output[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)))
""")
print("written: runs/merging/engine.py")

# %%
served = {}
with Progress("another process", total=2) as bar:
    for way, texts in (("whole prompts", asked[:36]), ("chat", [c.text for c in commands[:10]])):
        request = json.dumps(["adapters/shipped-merged", way, texts])
        command = [sys.executable, "runs/merging/engine.py", request]
        served[way] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        print(f"{way}:", scoring.score(commands[:len(texts)], served[way]))
        bar.update(1)

# %% [markdown]
# An engine hides its weights. What it cannot hide are its answers, and the audit takes those, too:

# %%
for way, texts in served.items():
    print(f"{way}: {merging.audit(trained, asked[:len(texts)], tokenizer, answers=texts)}\n")

# %% [markdown]
# ### Other engines
#
# **llama.cpp and Ollama** take GGUF files, made by two scripts of llama.cpp's sources:
#
#     python convert_hf_to_gguf.py adapters/shipped-merged --outtype f16 --outfile merged.gguf
#     python convert_lora_to_gguf.py adapters/shipped --base BASE_FOLDER --outtype f32 --outfile adapter.gguf
#
# The first takes the template from the folder's `chat_template.jinja`. The second writes none: an adapter's file is
# asked through the *base's* template unless you give one. [The benchmark](../benchmarks/README.md) has both files run
# in llama.cpp with whole prompts, and the merged one as a chat: with the right template, with the team's, with none.
#
# **vLLM, SGLang and TGI** serve many adapters on one base. They want a GPU: **not run here**.
#
#     vllm serve BASE --enable-lora --max-lora-rank 16 --max-loras 4 --lora-modules home=adapters/shipped
#     python -m sglang.launch_server --model-path BASE --lora-paths home=adapters/shipped --max-loras-per-batch 4
#     LORA_ADAPTERS=OWNER/NAME text-generation-launcher --model-id BASE   # names on the hub
#
# In vLLM, `--max-lora-rank` (16 unless you say otherwise) refuses adapters of a higher rank, and room for that rank is
# set aside for each. `--max-loras` (1) says how many may share a batch; the next one waits. It takes A and B alone: an
# adapter with `modules_to_save` is refused, so merge that one. A high rank has a price at the server, too.
#
# ## Experienced-dev note
#
# - Keep the adapter and the hash of its base, even if you ship the merged model. (With the base at hand, a difference
#   and an SVD give the update back: Lesson 1.)
# - The audit compares greedy answers. If you sample in production, read its distance, too.
# - On CPUs with bfloat16 instructions the first evaluation of an nf4 model packs its weights, and PEFT then merges
#   nonsense. Merge first, evaluate afterwards; the audit says if it comes too late.
# - "Don't merge during training", says the card. A merged model has nothing left that trains, as you saw. To try
#   another rank, train another adapter on the base, or widen the one you have.

# %%
progress()

# %% [markdown]
# ## Recap
#
# - $W' = W + s\,BA$. Merge in 16 or 32 bits, off the grid, and quantise after.
# - Merge for one skill and for speed; keep adapters for many skills, and for further training.
# - Ship template, hashes and limits with the weights, and let the same prompts judge what you trained and what answers.
#
# **The exercise worth doing.** Take an adapter of your own and forty prompts of your users. Audit the merge in the
# precision you serve in, then the answers of your server through `answers=`. If a verdict says *look*, read the changed
# answers: would your users mind?
#
# Next: **Lesson 7** takes the training beyond one GPU.
#
# Sources: Hu et al., *LoRA* (2021), section 4.1, "No Additional Inference Latency"; Dettmers et al., *QLoRA* (2023),
# for nf4; Yadav et al., *TIES-Merging* (2023); Yu et al., *Language Models are Super Mario* (DARE, 2024).
#
# *Lessons:* ← [5 · The alpha experiments](05_alpha_scaling.ipynb) ·
# [7 · Past one GPU](07_past_one_gpu.ipynb) →
