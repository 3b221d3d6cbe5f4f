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
# # 5 · The alpha experiments
#
# *Lessons:* ← [4 · Where the memory goes](04_memory.ipynb) ·
# [6 · Merging and shipping](06_merge_and_ship.ipynb) →
#
# `lora_alpha` is one number in a config. A wrong one raises no error: the model learns nothing, or explodes, or answers
# in production as it never did in your notebook. Here you turn alpha on a trained adapter, find out when an edit of it
# acts, and train hundreds of tiny adapters to see what it has to do with the learning rate and the rank.
#
# **You will be able to** say what an edit of alpha does now, after a reload and after a merge, choose a learning rate
# for a new alpha from slopes that you measured, and run a sweep that survives a killed kernel.
#
# **You need** [Lesson 0](00_first_adapter.ipynb); [Lesson 1](01_low_rank_math.ipynb) helps.
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: not recorded).
#
# The sweeps train on several cores on Linux without a GPU alone; elsewhere it takes longer.

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
import functools
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from lora_lab import adapters, batches, compare, load_base, models, plots, pocket, progress, quiz, scoring, smart_home
from lora_lab.course import explorers
from lora_lab.display import table
from lora_lab.sweep import interval, sweep
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

# %%
SEED, STEPS = 0, 20  # 20 steps: short, so that hundreds of trainings fit
SEEDS = tuple(range(SEED, SEED + 5))  # five of them wherever a conclusion is drawn
CORES = torch.get_num_threads()
tokenizer = load_base()[1]

# %% [markdown]
# ## Turn it after training
#
# A LoRA layer computes $y = Wx + s\,BAx$. The **scaling** $s$ is alpha/r, or alpha/√r with rsLoRA. Think of a singer,
# the adapter, beside an orchestra, the base: alpha sets the singer's volume. First the volume of a finished recording,
# when A and B no longer change. It is your adapter of Lesson 0, if it is on your disk; otherwise a short training makes
# one.

# %%
def short_training(learning_rate=2e-3):
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_base(quiet=True)[0], config)
    rows = batches.encode(smart_home.commands("train", n=8 * STEPS, seed=SEED), tokenizer)
    arguments = TrainingArguments(
        output_dir="runs/alpha", max_steps=STEPS, per_device_train_batch_size=8, learning_rate=learning_rate,
        warmup_steps=3, max_grad_norm=0, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(), seed=SEED,
        bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16, use_cpu=model.device.type == "cpu")
    return Trainer(model, arguments, batches.AnswerCollator(tokenizer), batches.similar_lengths(rows, 8, SEED),
                   callbacks=[plots.LiveLoss()])

there = Path("adapters/first/adapter_model.safetensors").exists()
print("Lesson 0's adapter is there" if there else "no adapter of Lesson 0 here: a short training makes one")

# %%
if there:
    trained = PeftModel.from_pretrained(load_base(quiet=True)[0], adapters.adapter_folder("adapters/first"))
else:
    set_seed(SEED)
    trainer = short_training()
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trained = trainer.model.eval()
commands = smart_home.commands("test combinations", n=42, seed=SEED)  # each kind of action three times
as_trained = scoring.quick_score(trained, tokenizer, commands)
print("as trained:", as_trained)

# %%
quiz("alpha/doubled_score")

# %% [markdown]
# PEFT's `rescale_adapter_scale(model, factor)` multiplies the scaling of every LoRA layer inside a `with` block.
# `adapters.turned` is the same and refuses what makes no sense, such as NaN. At each factor you measure how many
# held-out commands are answered exactly, and the perplexity of ordinary prose. At factor 0 a plain LoRA adapter is off,
# and you measure the base.

# %%
FACTORS = (0, 0.5, 1, 1.5, 2, 3, 4)
dial, prose = {1: as_trained}, {}
for factor in FACTORS:
    with adapters.turned(trained, factor):
        if factor != 1:
            dial[factor] = scoring.quick_score(trained, tokenizer, commands, progress=f"factor {factor}")
        prose[factor] = scoring.perplexity(trained, tokenizer)
if dial[1].exact:
    compare("alpha/doubled_score", 100 * dial[2].exact / dial[1].exact)

# %%
plots.lines({"exact answers": (FACTORS, [100 * dial[f].exact for f in FACTORS])},
            "factor on the scaling (line: as trained)", "exact answers (%)", mark=1,
            title="Beyond factor 1: where do the answers break?")

# %%
plots.lines({"with the adapter": (FACTORS, [prose[f] for f in FACTORS]),
             "base": (FACTORS, [prose[0]] * len(FACTORS))}, "factor on the scaling (line: as trained)", "perplexity",
            mark=1, yscale="log", title="The same dial on prose: does it break at the same place?")

# %%
def first(broken):
    return next((f for f in FACTORS if broken(f)), math.inf)

answers_break = first(lambda f: f > 1 and dial[f].exact < dial[1].exact / 2)
prose_breaks = first(lambda f: prose[f] > 2 * prose[0])
print("Answers:", scoring.verdict(dial[1], dial[2], "at factor 1", "at 2"))
print(f"Prose: as trained the perplexity is {prose[1] / prose[0]:.2f} times the base's.")
for name, at in (("Fewer than half the answers left", answers_break), ("Twice the base's perplexity", prose_breaks)):
    print(name, f"from factor {at:g} on." if at < math.inf else "at none of these factors.")
print("By these two marks", "prose breaks first: who watches the score alone is warned late."
      if prose_breaks < answers_break else "the answers break first." if answers_break < prose_breaks
      else "both break at the same factor of this grid.")

# %% [markdown]
# Exact match reads which token comes first, on a job that training drilled: a first choice can lose much of its lead
# and still be first. Perplexity reads the probability of every token, on text where nothing ever kept the adapter's
# addition in check. If prose broke first, that is why. If it did not, this adapter leaves prose alone, or its first
# choices never had a lead.
#
# Move it yourself, and read what the model answers at each of these factors. Is there one at which it
# still speaks JSON, but says something else?

# %%
said = {}
for factor in FACTORS:
    with adapters.turned(trained, factor):
        said[factor] = scoring.generate(trained, tokenizer, [c.prompt for c in commands[:3]])
explorers.dial(dial, prose, commands[:3], said)

# %% [markdown]
# ## A model for many trainings
#
# One adapter has one curve. To see what holds in general you need many adapters, and seeds. So from here on you use a
# **pocket model**: a Llama of a quarter of a million weights, pretrained on Lesson 0's commands. Its new task is a
# *dialect*, in which rooms, devices and states go by one another's names. `quick_score` reads whether the right answer
# would be the model's own, token by token, in one pass.

# %% tags=["nbval-check-output"]
small, words = pocket.load()
lesson = tuple(pocket.dialect(smart_home.commands("train", n=1500, seed=0)))
held_out = pocket.dialect(smart_home.commands("validation combinations", n=60, seed=0))
print(f"{small.num_parameters():,} parameters;", lesson[0].text, "->", lesson[0].answer)
print(f"base: {scoring.quick_score(small, words, held_out).exact:.0%} of the dialect answered exactly")

# %% [markdown]
# Its training is in the open: PEFT's adapter, torch's optimizer, a rate that falls to zero in a straight line. Weight
# decay is off, since it would grow with the rate and blur the laws that follow.

# %%
@functools.cache
def data_of(seed, steps, commands=lesson, size=8):
    return list(itertools.islice(pocket.stream(list(commands), size, seed), steps))

def adapted(alpha=16, seed=SEED):
    torch.manual_seed(seed)
    return get_peft_model(copy.deepcopy(small), LoraConfig(r=8, lora_alpha=alpha, target_modules="all-linear"))

print(f"{adapted().get_nb_trainable_parameters()[0]:,} parameters train")

# %%
def follow(model, data, lr, optimizer="AdamW", clip=None, watch=lambda step: None):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    steps = getattr(torch.optim, optimizer)(weights, lr=lr, weight_decay=0)
    falling, model.clipped = torch.optim.lr_scheduler.LinearLR(steps, 1, 0, total_iters=len(data)), 0
    for number, batch in enumerate(data, 1):
        model.train()(**batch).loss.backward()
        if clip:
            model.clipped += int(torch.nn.utils.clip_grad_norm_(weights, clip) > clip)
        steps.step()
        steps.zero_grad()
        falling.step()
        if watch(number):
            break
    return model.eval()

print("one step:", scoring.quick_score(follow(adapted(), data_of(SEED, 1), 0.01), words, held_out))

# %%
tiny = follow(adapted(), data_of(SEED, 5 * STEPS), 0.01)
print(f"{5 * STEPS} steps:", scoring.quick_score(tiny, words, held_out))

# %% [markdown]
# ## Where alpha lives: now, loaded, merged
#
# You trained with alpha 16 and write 32 into the config. You test, and find nothing amiss. You save, and a colleague
# loads.

# %%
tiny.peft_config["default"].lora_alpha = 32
try:
    here = scoring.quick_score(tiny, words, held_out)
    tiny.save_pretrained("runs/alpha/edited")
finally:
    tiny.peft_config["default"].lora_alpha = 16  # as it was trained
print("in your notebook, after the edit:", here)

# %%
quiz("alpha/loaded")

# %%
loaded = PeftModel.from_pretrained(copy.deepcopy(small), "runs/alpha/edited")
there = scoring.quick_score(loaded, words, held_out)
print(scoring.verdict(here, there, "in your notebook", "loaded"))
if here.exact:
    compare("alpha/loaded", 100 * there.exact / here.exact)

# %% [markdown]
# Alpha stands in the config and in each layer. Each layer also has its `scaling`, alpha/r, worked out when it was
# built. So an edit depends on *where* you write it, and on *when* you look. Three calls of PEFT write to a layer:
# `set_scale(name, k)` makes the scaling k times alpha/r (not k), `scale_layer(k)` multiplies what it finds, and
# `unscale_layer()` goes back to alpha/r.

# %%
quiz("alpha/edits")

# %%
def lora_layers(model):
    return [layer for layer in model.modules() if hasattr(layer, "set_scale")]

def on_every_layer(change):
    return lambda model: [change(layer) for layer in lora_layers(model)]

EDITS = {
    'peft_config["default"].lora_alpha = 32': lambda model: setattr(model.peft_config["default"], "lora_alpha", 32),
    'layer.lora_alpha["default"] = 32': on_every_layer(lambda layer: layer.lora_alpha.update(default=32)),
    'layer.set_scale("default", 2)': on_every_layer(lambda layer: layer.set_scale("default", 2)),
    "layer.scale_layer(2)": on_every_layer(lambda layer: layer.scale_layer(2)),
}
EDITS["the config and set_scale"] = lambda model: [list(EDITS.values())[place](model) for place in (0, 2)]
print(f"{len(EDITS)} edits on the {len(lora_layers(tiny))} LoRA layers of the pocket model")

# %% tags=["nbval-check-output"]
def volume(model):  # what the first q_proj adds for some x, as a multiple of what it added in training
    x = torch.ones(1, 64, device=model.device)
    base, *layers = (next(layer for name, layer in m.named_modules() if name.endswith("q_proj"))
                     for m in (small, model, tiny))
    added = [(layer(x) - base(x)).norm().item() for layer in layers]
    return f"× {added[0] / added[1]:.3g}"

rows = []
for code, edit in EDITS.items():
    model = copy.deepcopy(tiny)
    row = {"edit": code, "now": (edit(model), volume(model))[1]}
    model.save_pretrained("runs/alpha/edited")
    row["saved and loaded"] = volume(PeftModel.from_pretrained(copy.deepcopy(small), "runs/alpha/edited"))
    row["merged"] = volume(copy.deepcopy(model).merge_and_unload())
    rows.append(row | {"done twice, now": (edit(model), volume(model))[1]})
table(rows)

# %% [markdown]
# The forward pass and the merge read `scaling` and nothing else. `save_pretrained` writes the config and nothing else
# beside A and B. So an edit of the config waits until layers are built from it, and an edit of the layers is gone then,
# unless you merged. (The alpha in a layer is a note for later: `set_scale` and `unscale_layer` work from it.)
#
# Layers are built by `get_peft_model`, by `from_pretrained`, and by `load_adapter` under a *new* name. Loading over a
# name that is there takes A and B only: the scaling stays. A training that is resumed does so too (Lesson 4, "Killed,
# and going on").
#
# **Look** at the last column: `scale_layer` multiplies what it finds, so a cell that runs twice multiplies twice.
#
# **Puzzle 1: ship it at another volume.** Suppose that your dial peaks at factor 0.8. Save the adapter so that it
# *loads* with a factor, and leave the live model as it is, even if saving fails: somebody may train on. Beware of
# adapters with an `alpha_pattern`, which gives some layers an alpha of their own.

# %%
def save_turned(model, folder, factor):
    model.save_pretrained(folder)  # this loads as it was trained

quiz("alpha/save_turned", save_turned)

# %% [markdown]
# ## Doubled in the middle of training
#
# Now the edit *between* two rounds of training: stop, load with twice the alpha, train on. What does it cost? The
# control trains on for just as long without the edit. A third arm doubles the scaling and halves the rate. Every run
# goes through `sweep`, which writes it to disk as soon as it is finished.

# %%
quiz("alpha/recovers")

# %%
ARMS = {"control": (1, 1), "doubled": (2, 1), "doubled, rate halved": (2, 0.5)}  # times the scaling, times the rate
FURTHER = (0, 12, 48)

def train_on(seed):
    taught, exact = follow(adapted(seed=seed), data_of(seed, 4 * STEPS), 0.01), {}
    for arm, (times, rate) in ARMS.items():
        model = copy.deepcopy(taught)
        on_every_layer(lambda layer: layer.scale_layer(times))(model)
        def look(step):
            if step in FURTHER:
                exact[f"{arm} {step}"] = scoring.quick_score(model.eval(), words, held_out).exact
        look(0)
        follow(model, data_of(seed + 100, FURTHER[-1]), 0.005 * rate, watch=look)
    return exact

later = sweep(train_on, {}, SEEDS, "runs/alpha/later", "trained on", None, CORES)
print(f"{len(later)} seeds, {len(ARMS)} arms, after {FURTHER} further steps")

# %%
def known(values):  # a seed can have no value, such as no best rate on a grid
    return [value for value in values if math.isfinite(value)] or [math.nan]

def told(differences, low, high, form="{:+.0f} ± {:.0f} points"):
    found = known(differences)
    if len(found) < 2:
        return "no comparison: too few seeds have a value"
    mean, half = interval(found)
    return form.format(mean, half) + ": " + (high if mean > half else low if mean < -half else "not told apart")

def sure(differences):  # how far the interval stays from 0; 0 where it holds 0
    mean, half = interval(differences)
    return 0 * half if abs(mean) <= half else mean - math.copysign(half, mean)

gaps = {(arm, more): [100 * (row[f"{arm} {more}"] - row[f"control {more}"]) for row in later.rows]
        for arm in list(ARMS)[1:] for more in FURTHER}
table([{"arm": arm} | {f"minus control, after {more} steps": told(gaps[arm, more], "behind", "ahead")
                       for more in FURTHER} for arm in list(ARMS)[1:]])

# %% [markdown]
# The differences are taken seed by seed: all three arms of a seed begin with the same A and B. ± is a 95 % interval
# over the seeds, by Student's t, a wider normal curve for few values: with five of them it reaches 2.776 standard
# errors to each side, in place of 1.96. Where it holds 0, nothing is told apart.

# %%
compare("alpha/recovers", sure(gaps["doubled", FURTHER[-1]]))
means = {arm: [[100 * value for value in later.figures(f"{arm} {more}")] for more in FURTHER] for arm in ARMS}
plots.lines({arm: (FURTHER, [np.mean(found) for found in every]) for arm, every in means.items()}, "further steps",
            "exact answers (%)", title="Does the doubled adapter come back, and to the control?",
            seeds={arm: zip(*((more, value) for more, found in zip(FURTHER, every) for value in found))
                   for arm, every in means.items()})

# %% [markdown]
# **Look:** does the gap shrink with the steps? And does half the rate help? (All arms begin with a fresh AdamW and a
# rate that had fallen to 0 before, so the control may lose at first, too: read differences.) The base is untouched, and
# with B halved the doubled layers would add what they added before. So A and B that do the job exist at any scaling;
# what you measure is how near training gets in these steps. Under AdamW the doubled arm also takes steps that count
# twice: that is the next section.
#
# ## Alpha and the learning rate
#
# What does alpha do to training itself? Suppose first that only B moves, from zero, and A stands still. Call $G$ the
# gradient that W would get if it trained. Then B's gradient is $s\,GA^\top$, and one step of SGD with rate $\eta$ adds
# $-\eta\,s\,GA^\top$ to B. The layer adds $s\,BA$, so its output changes by $s$ times that: $s$ enters twice. AdamW
# divides the gradient by its own size, which takes one $s$ out. Since $s$ = alpha/r, two trainings at one rank are the
# *same*, step by step, where this product is the same:
#
# | | product | best rate, as a power of alpha | slope of log(best rate) against log(alpha) |
# |---|---|---|---|
# | SGD, A stands still | $\eta\,\alpha^2$ | $\alpha^{-2}$ | $-2$ |
# | AdamW, A stands still | $\eta\,\alpha$ | $\alpha^{-1}$ | $-1$ |
#
# (If $\eta\,\alpha^2$ is a constant $c$, then $\log\eta = \log c - 2\log\alpha$: a straight line of slope $-2$ on two
# logarithmic axes.)
#
# You test that with A frozen: alpha times 16, and the rate divided by 256 (SGD) or by 16 (AdamW).

# %%
def with_frozen_A(optimizer, alpha, lr, clip, seed):
    model = adapted(alpha, seed)
    for layer in lora_layers(model):
        layer.lora_A.requires_grad_(False)
    return follow(model, data_of(seed, STEPS), lr, optimizer, clip)

def measure(model):
    return {"loss": scoring.quick_score(model, words, held_out).loss, "clipped": model.clipped}

PAIRS = [{"optimizer": optimizer, "alpha": 16 * k, "lr": lr / k**power}
         for optimizer, lr, power in (("SGD", 0.2, 2), ("AdamW", 0.01, 1)) for k in (1, 16)]
frozen = sweep(with_frozen_A, [pair | {"clip": clip} for clip in (None, 1.0) for pair in PAIRS], [SEED],
               "runs/alpha/frozen", "A frozen", measure, CORES)

# %%
def larger_alpha(clip, optimizer):
    one, other = (row["loss"] for row in frozen.where(clip=clip, optimizer=optimizer).rows)
    ratio = other / one
    print(f"{optimizer}, clipped at {clip or 'nothing'}: the loss at the larger alpha is {ratio:.5f} times the other:",
          "the same training." if abs(ratio - 1) < 1e-3 else "another training.")
    return ratio

untrained = scoring.quick_score(small, words, held_out).loss
print(f"held-out loss before any training: {untrained:.3f}; SGD with alpha 16: {frozen.rows[0]['loss']:.3f}")
for optimizer in ("SGD", "AdamW"):
    larger_alpha(None, optimizer)

# %% [markdown]
# **Look:** is the ratio 1? Then one thing to mind: the Trainer *clips*. Where the gradient, all of it together, is
# longer than `max_grad_norm`, 1.0 unless you say otherwise, it is shortened to that. The cell above has trained that
# way, too.

# %%
quiz("alpha/clipped")

# %%
larger_alpha(1.0, "AdamW")
compare("alpha/clipped", larger_alpha(1.0, "SGD"))
table([{"clipped at": row["clip"] or "never", f"steps clipped, of {STEPS}": f"{row['clipped']:.0f}"}
       | {name: row[name] for name in ("optimizer", "alpha", "lr")}
       | {"held-out loss": f"{row['loss']:.5f}"} for row in frozen.rows])

# %% [markdown]
# Clipping looks at the gradient of B, which has a factor $s$. A larger alpha is clipped harder, and SGD takes that as
# it comes: one of its two factors $s$ is gone, while the rate was divided for two. AdamW divides the size out anyway;
# what it can notice is that some steps are shortened more than others, which changes their weights in its averages.
# From here on nothing is clipped.
#
# **Puzzle 2: the other law.** LoRA trains A, too. Then there is a second exact pair. Divide A's *initial* values by
# $\sqrt{k}$ and multiply alpha by $k$. If A and B both stay $\sqrt{k}$ times smaller all the way, $s\,BA$ is the same
# all the way. Which rate keeps them so? The check trains both and compares their losses.

# %%
def rate_for(lr, k, optimizer):
    return lr / k  # what would be right for AdamW if A stood still

quiz("alpha/stretched", rate_for)

# %% [markdown]
# ## The ridge
#
# Ordinary LoRA neither shrinks A's start nor freezes A (LoRA-FA does: there the first law is exact). So which law
# holds? The first would, if A stood still. The second would, if A's start did not matter, because A has gone far from
# it. Draw the best rate of each alpha: on a map of losses that is the bottom of a long valley, here called the
# **ridge** of good rates. Each law is a straight line along it. Use the two powers of the table, and the two that you
# found.

# %%
quiz("alpha/slope")

# %% [markdown]
# You take the same rates for every alpha: the grid knows no law. A model this small spends most of a step on overhead.
# So `pocket.side_by_side` trains a copy at each rate, all at once in one batch. First see that it is the training that
# you know:

# %%
HELD_OUT = next(pocket.stream(held_out, batch_size=len(held_out)))
by_peft = measure(follow(adapted(), data_of(SEED, STEPS), 0.01))["loss"]
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
copies = pocket.side_by_side(small, config, [0.02, 0.01], data_of(SEED, STEPS), HELD_OUT, "AdamW", SEED)
print(f"loss untrained {untrained:.2f}, by PEFT {by_peft:.5f}, side by side {copies[1]['loss']:.5f}:",
      "the same." if math.isclose(by_peft, copies[1]["loss"], rel_tol=1e-3) else "not the same.")

# %% [markdown]
# Of each copy it returns the `loss`, and what A's way adds: `moved` is the size of $s\,B(A - A_0)$ over that of
# $s\,BA_0$, where $A_0$ is A's start. Far below 1, the layer adds what it would add if A stood still; far above, A's
# start hardly shows. (How far A itself went says less: few directions of A count, and $A_0$ is random in all of them.)
# To save time a batch has four commands in place of eight.

# %%
def at_all_rates(optimizer, alpha, low, high, seed, r=8, rslora=False):
    config = LoraConfig(r=r, lora_alpha=alpha, use_rslora=rslora, target_modules="all-linear")
    rates, data = [2.0**k for k in range(low, high + 1)], data_of(seed, STEPS, size=4)
    copies = pocket.side_by_side(small, config, rates, data, HELD_OUT, optimizer, seed)
    return {f"{figure}, lr={lr}": ended[figure] for lr, ended in zip(rates, copies) for figure in ended}

def many(name, grid):
    return sweep(at_all_rates, grid, SEEDS, "runs/alpha/ridge", name, None, CORES).apart("lr")

adam = many("AdamW", {"optimizer": ["AdamW"], "alpha": [1 / 16, 1, 16, 256, 4096], "low": [-15], "high": [0]})
adam.heat("loss", "lr", "alpha", f"AdamW, {STEPS} steps: how does the best loss (bold) move?")

# %% [markdown]
# **Look** at one row from left to right: where is its best, and what is right of it? Then look at how the best cell
# moves from row to row, and by how many columns. The next cells turn that into numbers.

# %%
def bottom(runs):
    """The rate with the smallest loss, between the points of the grid; NaN at its edge."""
    rows = sorted((row for row in runs.rows if row["status"] == "ok"), key=lambda row: row["lr"])
    x, y = np.log([row["lr"] for row in rows]), np.log([row["loss"] for row in rows])
    i = int(y.argmin())
    if i in (0, len(y) - 1):
        return math.nan
    a, b, _ = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)  # a parabola through three points
    return math.exp(-b / (2 * a))

def ridge(runs, setting):
    return {value: [bottom(runs.where(seed=seed, **{setting: value})) for seed in SEEDS]
            for value in runs.values(setting)}

def middle(rates):
    return math.exp(np.mean(np.log(known(rates))))  # the geometric mean

print("alpha 16, the best rate of each seed:", [f"{lr:.2g}" for lr in ridge(adam, "alpha")[16]])

# %%
def lowest(runs, figure="loss", at=0):  # at each seed's best rate of the grid, or `at` rates to the right of it
    found = []
    for seed in SEEDS:
        rows = sorted(runs.where(seed=seed).rows, key=lambda row: row["lr"])
        best = min((i for i, row in enumerate(rows) if row["status"] == "ok"), key=lambda i: rows[i]["loss"])
        found.append(rows[min(best + at, len(rows) - 1)][figure])
    return found

def optima(runs):
    return table([{
        "alpha": alpha, "best rate, seed by seed": " ".join(f"{rate:.2g}" for rate in best).replace("nan", "edge"),
        "loss at the best of the grid": f"{np.mean(lowest(runs.where(alpha=alpha))):.2f}",
        "at the next rate": f"{np.mean(lowest(runs.where(alpha=alpha), at=1)):.2f}".replace("nan", "diverged"),
    } for alpha, best in ridge(runs, "alpha").items()])

optima(adam)

# %% [markdown]
# ("edge": the best rate is at the edge of the grid, and not counted.) Were alpha nothing but a second learning rate,
# the loss at the best rate would be the same in every row.
#
# Now both laws as lines. The law of an A whose start is forgotten is drawn through the measurement at the smallest
# alpha, the law of an A that stands still through that at the largest: compare slopes, not positions.

# %%
LAWS = {"AdamW": {"A's start forgotten: −1/2": -0.5, "A stands still: −1": -1},
        "SGD": {"A's start forgotten: −1": -1, "A stands still: −2": -2}}

def draw(optimizer, best):
    alphas, curve = list(best), [middle(rates) for rates in best.values()]
    (far, far_slope), (still, still_slope) = LAWS[optimizer].items()
    plotted = {"measured": (alphas, curve),
               far: (alphas, [curve[0] * (a / alphas[0]) ** far_slope for a in alphas]),
               still: (alphas, [curve[-1] * (a / alphas[-1]) ** still_slope for a in alphas])}
    dots = {"measured": ([a for a in alphas for _ in SEEDS], [rate for rates in best.values() for rate in rates])}
    return plots.lines(plotted, "alpha", "best learning rate", xscale="log", yscale="log", seeds=dots,
                       title=f"{optimizer}, {STEPS} steps: which law's slope has each end of the ridge?")

draw("AdamW", ridge(adam, "alpha"))

# %%
def segments(best):
    """The slope between neighbours, seed by seed."""
    return {(low, high): [math.log(b / a) / math.log(high / low) for a, b in zip(best[low], best[high])]
            for low, high in itertools.pairwise(best)}

def judged(optimizer, runs):
    (far, still), rows = LAWS[optimizer].values(), []
    moved = {alpha: middle(lowest(runs.where(alpha=alpha), "moved")) for alpha in runs.values("alpha")}
    for (low, high), slopes in segments(ridge(runs, "alpha")).items():
        mean, half = interval(known(slopes))
        holds = [f"{law:g}" for law in (far, still) if abs(mean - law) <= half]
        between = "none, it lies between them" if still < mean < far else "none"
        rows.append({"from alpha": low, "to": high, "moved": f"{moved[low]:.2g} to {moved[high]:.2g}",
                     "slope": f"{mean:.2f} ± {half:.2f}", "laws within the interval": " and ".join(holds) or between})
    return table(rows)

judged("AdamW", adam)

# %%
def bend(optimizer, best):
    slopes = list(segments(best).values())
    change, half = interval(known(last - first for first, last in zip(slopes[0], slopes[-1])))
    print(f"{optimizer}: from the first segment to the last the slope changes by {change:+.2f} ± {half:.2f}.",
          "The ridge bends downwards: no single power of alpha describes it." if change + half < 0 else
          "It bends upwards." if change - half > 0 else "These seeds show no bend.")
    return np.mean(known(slopes[-1]))

compare("alpha/slope", bend("AdamW", ridge(adam, "alpha")))

# %% [markdown]
# Why would a ridge bend? Where the best rate is large, A goes far, and its start stops to matter: the second law is
# near. Where the best rate is small, A's way adds little: the first law is near. Does the table bear that out, segment
# by segment? Then one straight line through all of it gives an average of the slopes: at best right in the middle.
#
# **Puzzle 3: a number of your own.** You tuned the rate at alpha 16, and somebody sets alpha to 64, which is in no row
# of your table. By what do you multiply the rate? The check trains with it.

# %%
times = 1  # the rate stays
quiz("alpha/new_rate", times)

# %% [markdown]
# And SGD? It has its own two powers.

# %%
sgd = many("SGD", {"optimizer": ["SGD"], "alpha": [1, 4, 16, 64, 256], "low": [-10], "high": [4]})
optima(sgd)

# %% [markdown]
# Every training of both grids is in this figure. Walk along a row, past its circle: what do the losses do there?

# %%
explorers.ridge({"AdamW": adam, "SGD": sgd}, {"AdamW": ridge(adam, "alpha"), "SGD": ridge(sgd, "alpha")}, LAWS)

# %%
bend("SGD", ridge(sgd, "alpha"))
judged("SGD", sgd)

# %% [markdown]
# **Look** at the losses in both tables of optima. Is the next rate, twice as large, a step too far, or off a cliff?
# Where it is a cliff, the best rate is the largest one that still holds, and the parabola beside it is off by up to
# half a step of the grid. Is the loss at the best rate the same for every alpha? Where it is not, alpha is more than a
# second rate.
#
# Then look at `moved` beside the slopes, under both optimizers. Is it the smaller, the nearer the slope is to the law
# of an A that stands still? A slope may also match a law whose reason is not there: below 1, A's start still carries
# most of what the layer adds. Then something else sets the best rate, such as the edge of a cliff, and the rule does
# not carry over. All of this is for a training of few steps and a model of a quarter of a million weights. Another
# width or a longer training has other numbers, and was not measured here.
#
# Hu et al. 2021, section 4.1, say of Adam that tuning alpha is roughly tuning the rate if the start is scaled along.
# They name no exponent, set alpha to the first r that they try, and tune it no further. Who changes alpha and leaves
# the rate has changed both.
#
# ## Rank and rsLoRA
#
# With alpha fixed, alpha/r falls as the rank grows. It is said that this slows high ranks down, and that rsLoRA's
# alpha/√r repairs it (Kalajdzievski 2023). First the two scalings, as PEFT sets them at rank 64 on SmolLM2:

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    linear = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(576, 576)})
for r, rslora in itertools.product((8, 64), (False, True)):
    config = LoraConfig(r=r, lora_alpha=16, use_rslora=rslora, target_modules=["q_proj"])
    layer = get_peft_model(copy.deepcopy(linear), config).base_model.model.q_proj
    print(f"r={r:2}, {'alpha/√r' if rslora else 'alpha/r '}: scaling {layer.scaling['default']:.3f}")

# %% [markdown]
# Switch `use_rslora` on in a config that worked, and the scaling is √r times as large: tune again, or write the same
# scaling.
#
# **Puzzle 4.** This config was tuned. Write the same training with rsLoRA.

# %%
tuned = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
with_rslora = LoraConfig(r=16, lora_alpha=32, use_rslora=True, target_modules="all-linear")
quiz("alpha/same_scaling", tuned, with_rslora)

# %% [markdown]
# What happens to the best rate as the rank grows? Three habits, all under AdamW: alpha stays 16 with alpha/r, alpha
# stays 16 with alpha/√r, and "alpha = 2r", which keeps alpha/r at 2.

# %%
quiz("alpha/rank_and_rate")

# %% [markdown]
# The pocket model's layers are 64 wide. At rank 64, $BA$ can be *any* update, and nothing is low about it: so you stay
# below.

# %%
RANKS = (1, 8, 32)
KINDS = {"alpha 16, alpha/r": (lambda r: 16, False, 0), "alpha 16, alpha/√r": (lambda r: 16, True, -0.5),
         "alpha = 2r": (lambda r: 2 * r, False, -1)}  # the last figure: what one step says of the slope
wide = {layer.in_features for layer in lora_layers(tiny)} | {layer.out_features for layer in lora_layers(tiny)}
print("widths of the pocket model's layers:", sorted(wide), " ranks:", RANKS)
by_rank = {kind: many(kind, [{"optimizer": "AdamW", "alpha": alpha(r), "low": -9, "high": -3, "r": r, "rslora": rslora}
                             for r in RANKS]) for kind, (alpha, rslora, _) in KINDS.items()}

# %%
best = {kind: ridge(runs, "r") for kind, runs in by_rank.items()}
curves = {kind: (RANKS, [middle(found[r]) for r in RANKS]) for kind, found in best.items()}
dots = {kind: zip(*((r, rate) for r in RANKS for rate in found[r])) for kind, found in best.items()}
plots.lines(curves, "rank", "best learning rate", xscale="log", yscale="log", seeds=dots,
            title="AdamW: how does the best rate follow the rank?")

# %%
slopes = {kind: known([math.log(b / a) / math.log(RANKS[-1]) for a, b in zip(found[1], found[RANKS[-1]])])
          for kind, found in best.items()}
losses = {kind: {r: lowest(runs.where(r=r)) for r in RANKS} for kind, runs in by_rank.items()}
rows = []
for kind, (_, _, expected) in KINDS.items():
    mean, half = interval(slopes[kind])
    rows.append({"habit": kind, "slope": f"{mean:.2f} ± {half:.2f}", "one step says": expected,
                 "in the interval": "yes" if abs(mean - expected) <= half else "no"}
                | {f"loss, rank {r}": f"{np.mean(losses[kind][r]):.3f}" for r in RANKS})
compare("alpha/rank_and_rate", middle(best["alpha 16, alpha/r"][RANKS[-1]]) / middle(best["alpha 16, alpha/r"][1]))
table(rows)

# %%
plain, rslora = losses["alpha 16, alpha/r"], losses["alpha 16, alpha/√r"]
for r in RANKS[1:]:
    print(f"rank {r}, each at the best rate of the grid: loss with alpha/√r minus loss with alpha/r,",
          told(np.subtract(rslora[r], plain[r]).tolist(), "rsLoRA ends lower", "rsLoRA ends higher",
               "{:+.3f} ± {:.3f}"))
steady, second, *_ = sorted(slopes, key=lambda kind: abs(np.mean(slopes[kind])))
away = [abs(b) - abs(a) for a, b in zip(slopes[steady], slopes[second])]
print(f'slope nearest to 0: "{steady}", then "{second}". How much nearer:',
      told(away, "not nearer", "with the first a rate carries over best to another rank", "{:.2f} ± {:.2f}"))

# %% [markdown]
# "One step says" is this argument: under AdamW each of the $r$ columns of B moves by a full step. Column $i$ moves
# against $G a_i$, with $a_i$ the $i$-th row of A, and on the way forward it is multiplied by $a_i x$. On the input that
# made the gradient both carry the same sign, so the $r$ contributions add up, like $r$, and $s$ times that like $s\,r$.
# With alpha/r the rank drops out. With alpha/√r a factor √r is left, and the best rate would have to fall by it; with
# alpha = 2r a factor r is left.
#
# That has two premises: that the best rate goes as $1/s$ (A stands still), and that the columns go on adding up like
# $r$. Where the table says "no", which one fails? The habits differ only in how $s$ hangs on $r$. So write the best
# rate as $s^{-p}\,r^{-q}$. Then alpha/r has the slope $p - q$, alpha/√r has $p/2 - q$, and alpha = 2r, where $s$ stays,
# has $-q$: three slopes for two powers. $p$ against 1 tests the first premise. If the columns add up like $r$, the best
# rate hangs on $s\,r$ alone, so that $q = p$, whatever $p$ is: $p - q$ against 0 tests the second.

# %%
by_seed = [np.array([math.log(b / a) / math.log(RANKS[-1]) for a, b in zip(found[1], found[RANKS[-1]])])
           for found in best.values()]
p, q = 2 * (by_seed[0] - by_seed[1]), -by_seed[2]
for name, found, argued in (("p", p, 1), ("p - q", p - q, 0), ("p - q - slope of alpha/r", p - q - by_seed[0], 0)):
    mean, half = interval(known(found))
    print(f"{name}: {mean:.2f} ± {half:.2f}; {argued} is",
          "within the interval" if abs(mean - argued) <= half else "outside the interval")

# %% [markdown]
# Is $p$ the power that your ridge has near alpha 16?
#
# The losses are those at the best rate of the grid, which may be half a step off: a small difference can come from
# that. At one *fixed* rate you would compare rates as much as scalings. (Schulman et al., *LoRA Without Regret*, report
# a best rate that hardly depends on the rank, with alpha/r and a fixed alpha, for models with billions of weights.)
#
# ## What is forgotten
#
# Training on a new task can overwrite what the model knew. Does LoRA forget less than full fine-tuning? *LoRA
# Learns Less and Forgets Less* (Biderman et al. 2024) says it does. To test it, the new task must leave room for the
# old one. Here four devices go by one another's names; rooms, states and the other three devices stay, and training
# shows none of those three.

# %% tags=["nbval-check-output"]
NEXT = {"light": "fan", "fan": "music", "music": "volume", "volume": "light"}

def parted(commands):
    new, old = [], []
    for command in commands:
        (_, room), (device, state) = json.loads(command.answer).items()
        answer = json.dumps({"room": room, NEXT.get(device, device): state}, separators=(",", ":"))
        (new if device in NEXT else old).append(command._replace(answer=answer))
    return tuple(new), tuple(old)

taught, _ = parted(smart_home.commands("train", n=1500, seed=0))
new, old = parted(smart_home.commands("validation combinations", n=100, seed=0))
print(f"{len(new)} new:", new[0].text, "->", new[0].answer)
print(f"{len(old)} old:", old[0].text, "->", old[0].answer)

# %%
started_with = [100 * scoring.quick_score(small, words, asked).exact for asked in (new, old)]
print("before any training: {:.0f}% of the new and {:.0f}% of the old answers are right".format(*started_with))

# %% [markdown]
# A fair comparison reads both methods where they have learned *as much*: a method that was stopped early seems to
# forget little. So each training stops where half of the new answers are right, and there you count the old ones. (One
# that does not get there has no value and is left out.) The rate matters, too: a smaller one takes more steps to get
# there. Each method gets three, so paired that both take about as many steps.

# %%
LEARNED = 0.5

def until_learned(method, lr, seed):
    torch.manual_seed(seed)
    model, seen = adapted(seed=seed) if method == "LoRA" else copy.deepcopy(small), []
    def look(step):
        if step % 3 == 0:
            seen.append((step, *(scoring.quick_score(model.eval(), words, asked).exact for asked in (new, old))))
        return seen[-1][1] >= LEARNED  # which stops the training
    look(0)
    follow(model, data_of(seed, 4 * STEPS, taught), lr, watch=look)
    (_, few, before), (step, enough, after) = seen[-2:]
    share = (LEARNED - few) / (enough - few) if enough >= LEARNED else math.nan  # between two looks, in a straight line
    return {"old": 100 * (before + share * (after - before)), "steps": step}

print("one training:", {figure: round(value, 1) for figure, value in until_learned("full", 0.0012, SEED).items()})

# %%
RATES = {"LoRA": (0.001, 0.002, 0.004), "full": (0.0003, 0.0006, 0.0012)}
grid = [{"method": method, "lr": lr} for method, rates in RATES.items() for lr in rates]
EIGHT = range(SEED, SEED + 8)  # seeds: what is forgotten differs much between them
stopped = sweep(until_learned, grid, EIGHT, "runs/alpha/forgetting", "LoRA and full", None, CORES)
print(f"{len(stopped) - len(stopped.diverged)} of {len(stopped)} trainings get there")

# %%
quiz("alpha/forgotten")

# %%
curves = {method: [[np.mean(known(stopped.where(method=method, lr=lr).figures(figure))) for lr in rates[::-1]]
                   for figure in ("steps", "old")] for method, rates in RATES.items()}
dots = {method: [stopped.where(method=method).figures(figure) for figure in ("steps", "old")] for method in RATES}
plots.lines(curves, f"steps until {LEARNED:.0%} of the new answers are right", "old answers still right (%)",
            seeds=dots, title="At an equal score: how many old answers are left?")

# %%
gaps = []
for lora, full in zip(*RATES.values()):
    a, b = (stopped.where(method=method, lr=lr) for method, lr in (("LoRA", lora), ("full", full)))
    gaps.append(np.subtract(a.figures("old"), b.figures("old")))
    print(f"LoRA, rate {lora:g}, {a.mean('steps'):.0f} steps; full, rate {full:g}, {b.mean('steps'):.0f} steps:",
          "old answers, LoRA minus full,", told(gaps[-1].tolist(), "LoRA forgets more", "LoRA forgets less"))
apart = known(np.mean(gaps, axis=0).tolist())
print("all three rates, averaged seed by seed:", told(apart, "LoRA forgets more here", "LoRA forgets less here"))
slower, faster = (np.mean([stopped.where(method=m, lr=rates[at]).figures("old") for m, rates in RATES.items()], axis=0)
                  for at in (0, -1))
print("smallest rates minus largest:", told((slower - faster).tolist(), "slow forgets more", "slow forgets less"))
if math.isfinite(sure(apart)):
    compare("alpha/forgotten", sure(apart))

# %% [markdown]
# A low rank limits in how many directions a
# layer changes. It does not limit how far, nor on which inputs: old and new commands share most of their words. (Full
# fine-tuning trains the embeddings and norms as well; LoRA leaves them. The paper trains models of billions of weights
# for thousands of steps: what comes out here is about one toy, one task and three rates.)
#
# ## None is lost
#
# None of these trainings is lost when the kernel dies: `sweep` kept each under `runs/alpha`. Restart the kernel, run
# the cells again, and they are read. A stored run is known by its settings, its seed and what your functions use: their
# code, that of the helpers they call, the data, the versions of the packages. Edit one, and those runs are made anew.
# (What it cannot know: files that your functions read, environment variables, the machine.)

# %%
started = models.clock()
again = sweep(until_learned, grid, EIGHT, "runs/alpha/forgetting", "again", None, CORES)
print(f"{len(again)} runs in {models.clock() - started:.1f} s; as many as before: {len(again) == len(stopped)}")

# %% [markdown]
# **Break it:** stop a sweep in its fourth run, start it again, and count the calls.

# %% tags=["nbval-check-output"]
calls = []

def slow(lr=0.01, seed=0):
    calls.append(lr)
    if len(calls) == 4:
        raise KeyboardInterrupt  # as if you pressed stop
    return {"loss": math.inf if lr > 1 else lr}

shutil.rmtree("runs/alpha/stopped", ignore_errors=True)
for attempt in (1, 2):
    try:
        rows = sweep(slow, {"lr": [0.1, 0.2, 5.0, 0.4, 0.5]}, [0], "runs/alpha/stopped", None).rows
    except KeyboardInterrupt:
        print("stopped in call", len(calls))
print(len(rows), "rows,", len(calls), "calls;", [(row["lr"], row["status"]) for row in rows])

# %% [markdown]
# The run with an infinite loss is kept and marked. A table without it would flatter the grid.
#
# ## Error recovery
#
# Which of these does PEFT let pass?

# %% tags=["nbval-check-output"]
for alpha in (0, -16, float("nan")):
    print(f"alpha {alpha}: PEFT builds layers with scaling {lora_layers(adapted(alpha))[0].scaling['default']:g}")
    try:
        adapters.positive(alpha=alpha)
    except Exception as error:
        print("  adapters.positive:", error)
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
one = get_peft_model(copy.deepcopy(small), config)
config.lora_alpha = 64  # for the next model, you think
print("one config, edited for the next model: the first would now save alpha", one.peft_config["default"].lora_alpha)

# %% tags=["nbval-check-output"]
def nan_factor():
    with adapters.turned(tiny, float("nan")):
        pass

for attempt in (nan_factor, lambda: sweep(train_on, {"steps": [8]}, [0]),
                lambda: adapters.adapter_folder("runs/alpha/edited", r=16)):
    try:
        attempt()
    except Exception as error:
        print(type(error).__name__, error)

# %% [markdown]
# PEFT takes alpha 0, a negative one and NaN without a word, and a model keeps the very config object that you gave it.
# In a sweep, make a config for each model. And a resumed training takes its scheduler's state from the checkpoint: a
# new learning rate in the arguments is overridden by it.
#
# ## Experienced-dev note
#
# - Fix alpha at one number, such as 16 or 32, leave it when the rank changes, and tune the rate. Your table of habits
#   has what "alpha = 2r" does to a rate that was tuned at another rank.
# - Where to start at work, as advice and not from this lesson: AdamW at 1e-4 to 3e-4 for models of 1 to 10 billion
#   weights, about ten times the rate of full fine-tuning (a factor that Schulman et al. report), then up and down by 2
#   to 3. The rates here are for a toy.
# - A new alpha under AdamW: begin the search between the rates of the two laws. Under SGD, tune anew.
# - To ship another volume, edit the config on purpose, save, load, and measure the *loaded* adapter on the task and
#   beside it.
#
# ## Recap
#
# - After training, alpha is the volume of a plain LoRA adapter. Layers and merges obey `scaling` now; the config is
#   obeyed when layers are built.
# - In training, alpha and the rate act together. One exact law holds where A stands still, one where A's start does not
#   matter; your tables have what a small model did in a few steps of AdamW and of SGD, and where `moved` does not bear
#   out the law that a slope matches.
# - A new rank, scaling or optimizer is a new question about the rate. Tune it for each, then compare, seed by seed.
#
# **The exercise worth doing.** Take an adapter of your own. Draw its dial with `adapters.turned`, on your task *and* on
# text that it never saw, and see whether factor 1 is where you want it.

# %%
progress()

# %% [markdown]
# Next: **Lesson 6** merges what was trained and ships it.
#
# Sources: Hu et al., *LoRA* (2021), section 4.1; Kalajdzievski, *A Rank Stabilization Scaling Factor for Fine-Tuning
# with LoRA* (2023), section 3; Schulman et al., *LoRA Without Regret* (2025); Biderman et al., *LoRA Learns Less and
# Forgets Less* (2024); Student, *The probable error of a mean* (1908).
#
# *Lessons:* ← [4 · Where the memory goes](04_memory.ipynb) ·
# [6 · Merging and shipping](06_merge_and_ship.ipynb) →
