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
# acts, and train hundreds of tiny adapters to see what it has to do with the learning rate, the rank and the optimizer.
#
# **You will be able to** say what an edit of alpha does now and after a reload, choose a learning rate for a new alpha
# from a law that you measured, and run a sweep that survives a killed kernel.
#
# **You need** [Lesson 0](00_first_adapter.ipynb); [Lesson 1](01_low_rank_math.ipynb) helps.
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: not recorded).

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
import math
from pathlib import Path

import numpy as np
import torch
from lora_lab import adapters, batches, compare, load_base, models, plots, pocket, progress, quiz, scoring, smart_home
from lora_lab.course import explorers
from lora_lab.display import Progress, table
from lora_lab.sweep import Runs, interval, sweep
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

# %%
SEED, STEPS = 0, 20
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
def with_alpha(alpha):
    return LoraConfig(r=8, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")

def trainer_for(model, learning_rate, steps, *callbacks):
    rows = batches.encode(smart_home.commands("train", n=8 * steps, seed=SEED), tokenizer)
    arguments = TrainingArguments(
        output_dir="runs/alpha", max_steps=steps, per_device_train_batch_size=8, learning_rate=learning_rate,
        warmup_steps=3, max_grad_norm=0, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(), seed=SEED,
        bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16, use_cpu=model.device.type == "cpu")
    trainer = Trainer(model, arguments, batches.AnswerCollator(tokenizer), batches.similar_lengths(rows, 8, SEED),
                      callbacks=[*callbacks])
    trainer.remove_callback(PrinterCallback)
    return trainer

print("alpha 16 at rank 8 is a scaling of", with_alpha(16).lora_alpha / with_alpha(16).r)

# %%
if Path("adapters/first/adapter_model.safetensors").exists():
    trained = PeftModel.from_pretrained(load_base(quiet=True)[0], adapters.adapter_folder("adapters/first"))
    print("loaded your adapter of Lesson 0")
else:
    set_seed(SEED)
    trainer = trainer_for(get_peft_model(load_base(quiet=True)[0], with_alpha(16)), 2e-3, STEPS, plots.LiveLoss())
    trainer.train()
    trained = trainer.model.eval()

# %%
quiz("alpha/doubled_score")

# %% [markdown]
# PEFT's `rescale_adapter_scale(model, factor)` multiplies the scaling of every LoRA layer inside a `with` block.
# `adapters.turned` is the same and refuses what makes no sense, such as NaN. You measure at each factor how many
# held-out commands are answered exactly, and the perplexity of ordinary prose.

# %%
FACTORS = (0, 0.5, 1, 1.5, 2, 3, 4)
commands = smart_home.commands("test combinations", n=42, seed=SEED)  # each kind of action three times

dial, prose = {}, {}
for factor in FACTORS:
    with adapters.turned(trained, factor):
        dial[factor] = scoring.quick_score(trained, tokenizer, commands, progress=f"factor {factor}")
        prose[factor] = scoring.perplexity(trained, tokenizer)
compare("alpha/doubled_score", 100 * dial[2].exact)

# %%
plots.lines({"exact answers": (FACTORS, [100 * dial[f].exact for f in FACTORS])},
            "factor on the scaling", "exact answers (%)", mark=1, title="Beyond factor 1: where do the answers break?")

# %%
plots.lines({"prose": (FACTORS, [prose[f] for f in FACTORS])}, "factor on the scaling", "perplexity", mark=1,
            yscale="log", title="The same dial on prose: does it break at the same place?")

# %%
def first(broken):
    return next((f for f in FACTORS if f > 1 and broken(f)), math.inf)

answers_break = first(lambda f: dial[f].exact < dial[1].exact / 2)
prose_breaks = first(lambda f: prose[f] > 2 * prose[1])
print("Answers:", scoring.verdict(dial[1], dial[2], "at factor 1", "at 2"))
for name, at in (("Fewer than half of the answers are left", answers_break), ("Perplexity has doubled", prose_breaks)):
    print(name, f"from factor {at:g} on." if at < math.inf else "at none of these factors.")
print("Prose breaks first: who watches the score alone is warned late." if prose_breaks < answers_break else
      "The answers break first." if answers_break < prose_breaks else "On this grid both break at the same factor.")

# %% [markdown]
# Exact match reads which token comes first, on a job that training drilled: a first choice can lose much of its lead
# and still be first. Perplexity reads the probability of every token, on text where nothing ever kept the adapter's
# addition in check. At factor 0 the adapter is off, and you measure the base.
#
# Move it yourself. The figures are those of the curves; the button asks the model at that setting.

# %%
def figures_at(factor):
    return table([{"factor": factor, "score": str(dial[factor]), "perplexity": f"{prose[factor]:,.0f}"}])

def answers_at(factor):
    with adapters.turned(trained, factor):
        answers = scoring.generate(trained, tokenizer, [c.prompt for c in commands[:3]])
    return table([{"command": c.text, "answer": answer} for c, answer in zip(commands, answers)])

explorers.dial(figures_at, FACTORS, answers_at)

# %% [markdown]
# ## A model for many trainings
#
# One adapter has one curve. To see what holds in general you need many adapters, and seeds. So from here on you mostly
# use a **pocket model**: a Llama of a quarter of a million weights that was pretrained on Lesson 0's commands and
# answers them all. Its new task is a *dialect*, in which rooms, devices and states go by one another's names.

# %% tags=["nbval-check-output"]
small, words = pocket.load()
lesson = tuple(pocket.dialect(smart_home.commands("train", n=1500, seed=0)))
held_out = pocket.dialect(smart_home.commands("validation combinations", n=60, seed=0))
print(f"{small.num_parameters():,} parameters;", lesson[0].text, "->", lesson[0].answer)
print(f"base: {scoring.quick_score(small, words, held_out).exact:.0%} of the dialect answered")

# %% [markdown]
# Its training is in the open: PEFT's adapter, torch's optimizer, a rate that falls to zero in a straight line.

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
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = getattr(torch.optim, optimizer)(weights, lr=lr)
    falling = torch.optim.lr_scheduler.LinearLR(steps, 1, 0, total_iters=len(data))
    for number, batch in enumerate(data, 1):
        model.train()(**batch).loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(weights, clip)
        steps.step()
        steps.zero_grad()
        falling.step()
        watch(number)
    return model.eval()

tiny = follow(adapted(), data_of(SEED, 5 * STEPS), 0.01)
print("the dialect:", scoring.quick_score(tiny, words, held_out))

# %% [markdown]
# ## Where alpha lives: now, and after a reload
#
# Back to the question that people ask: you trained with alpha 16 and write 32, what happens? That depends on *where*
# you write it, and on *when* you look. Alpha stands in the config and in each layer; each layer also has its `scaling`,
# alpha/r, worked out when it was built.

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
    'layer.scaling["default"] = 4': on_every_layer(lambda layer: layer.scaling.update(default=4)),
}
EDITS["the first and the third"] = lambda model: [list(EDITS.values())[place](model) for place in (0, 2)]
print(f"{len(EDITS)} edits on the {len(lora_layers(tiny))} LoRA layers of the pocket model")

# %% tags=["nbval-check-output"]
def volume(model):  # what a layer adds for some x, as a multiple of what it added in training
    x = torch.ones(1, 64, device=model.device)
    added = [(layer(x) - layer.base_layer(x)).norm().item() for layer in (lora_layers(m)[0] for m in (model, tiny))]
    return f"× {added[0] / added[1]:.3g}"

rows = []
for code, edit in EDITS.items():
    model = copy.deepcopy(tiny)
    row = {"edit": code, "now": (edit(model), volume(model))[1]}
    model.save_pretrained("runs/alpha/edited")
    row["saved and loaded"] = volume(PeftModel.from_pretrained(copy.deepcopy(small), "runs/alpha/edited"))
    rows.append(row | {"done twice, now": (edit(model), volume(model))[1]})
table(rows)

# %% [markdown]
# The forward pass reads `scaling` and nothing else. `save_pretrained` writes the config and nothing else beside A and
# B. So an edit of the config waits for the next load, with nobody looking; an edit of the layers is gone after it. (The
# alpha in a layer is a note for later: `set_scale` and `unscale_layer` work from it.)
#
# **Look** at the last column: `scale_layer` multiplies what it finds, so a cell that runs twice multiplies twice.
# `layer.unscale_layer()` goes back to alpha/r. The block of `rescale_adapter_scale` undoes itself.
#
# Now the config's edit as it happens at work: the score before you save, and the score of what your colleague loads.

# %%
tiny.peft_config["default"].lora_alpha = 32
tiny.save_pretrained("runs/alpha/edited")
tiny.peft_config["default"].lora_alpha = 16  # as it was trained
again = PeftModel.from_pretrained(copy.deepcopy(small), "runs/alpha/edited")
here, there = (scoring.quick_score(model, words, held_out) for model in (tiny, again))
print(scoring.verdict(here, there, "in your notebook", "loaded"))

# %% [markdown]
# **Puzzle 1: ship it at another volume.** You found on the dial that your adapter works best at another factor. Save it
# so that it *loads* with that factor, and leave the live model as it is: somebody may train on. Beware of adapters with
# an `alpha_pattern`, which gives some layers an alpha of their own.

# %%
def save_turned(model, folder, factor):
    model.save_pretrained(folder)  # this loads as it was trained

quiz("alpha/save_turned", save_turned)

# %% [markdown]
# ## How far does it hold?
#
# One dial belongs to one adapter. What decides how far you can turn it? Train pocket adapters for three lengths, with
# five seeds each, and turn them all. Every run goes through `sweep`, which writes it to disk as soon as it is finished.

# %%
quiz("alpha/best_factor")

# %%
TURNED = (0.5, 1, 1.25, 1.5, 2, 3)

def of_length(length, seed):
    return follow(adapted(seed=seed), data_of(seed, length), 0.006)

def along_the_dial(model):
    found = {}
    for factor in TURNED:
        with adapters.turned(model, factor):
            score = scoring.quick_score(model, words, held_out)
        found |= {f"loss at {factor:g}": score.loss, f"exact at {factor:g}": score.exact}
    return found | {"best factor": min(TURNED, key=lambda factor: found[f"loss at {factor:g}"])}

LENGTHS = (STEPS // 4, 2 * STEPS, 6 * STEPS)
lengths = sweep(of_length, {"length": LENGTHS}, SEEDS, "runs/alpha/lengths", "lengths", along_the_dial, CORES)
compare("alpha/best_factor", lengths.mean("best factor", length=LENGTHS[0]))

# %%
curves, dots = {}, {}
for length in LENGTHS:
    found = {factor: lengths.where(length=length).figures(f"loss at {factor:g}") for factor in TURNED}
    curves[f"{length} steps"] = TURNED, [sum(losses) / len(losses) for losses in found.values()]
    dots[f"{length} steps"] = zip(*((factor, loss) for factor, losses in found.items() for loss in losses))
plots.lines(curves, "factor on the scaling", "held-out loss", mark=1, yscale="log", seeds=dots,
            title="Where is the bottom of each valley, and how steep is it?")

# %%
def known(values):  # later a seed may have no best rate on a grid
    return [value for value in values if math.isfinite(value)] or [math.nan]

def plus_minus(values, form="{:.2f}", times=1):
    return "{0} ± {0}".format(form).format(*interval([times * value for value in known(values)]))

rows = []
for length in LENGTHS:
    runs = lengths.where(length=length)
    rows.append({"steps": length, "best factor, seed by seed": " ".join(f"{f:g}" for f in runs.figures("best factor"))}
                | {f"exact at {f:g} (%)": plus_minus(runs.figures(f"exact at {f:g}"), "{:.0f}", 100)
                   for f in (1, 1.25, 1.5, 2)})
table(rows)

# %% [markdown]
# (± is a 95 % interval over the five seeds, from Student's t with four degrees of freedom.)
#
# Why should the bottom lie at factor 1 in time? The scaling is not trained. But stretching $s$ does to the output what
# stretching B does: $s\,\partial L/\partial s = \langle B, \partial L/\partial B\rangle$. B *is* trained. Where a
# longer B gains nothing any more, turning the dial gains nothing either. An adapter that was stopped early has not got
# there: further along its line, the loss may still fall. The law speaks of the training loss, and it says nothing about
# how steep the valley is.

# %%
for length in LENGTHS:
    runs = lengths.where(length=length)
    at_one = runs.figures("best factor").count(1)
    mean, half = interval([math.log(row["loss at 1.5"] / row["loss at 1"]) for row in runs.rows])
    print(f"{length} steps: the lowest loss is at factor 1 under {at_one} of {len(SEEDS)} seeds. Turned to 1.5 it is "
          f"{math.exp(mean):.2f} times as large ({math.exp(mean - half):.2f} to {math.exp(mean + half):.2f}):",
          "that harms." if mean > half else "that helps." if mean < -half else "no difference that shows.")

# %% [markdown]
# ## Doubled in the middle of training
#
# Now the edit *between* two rounds of training: stop, load with twice the alpha, train on. What does it cost? The
# control trains on for just as long without the edit.

# %%
quiz("alpha/recovers")

# %%
trained_once = functools.cache(lambda seed: follow(adapted(seed=seed), data_of(seed, 4 * STEPS), 0.01))

def train_on(more, doubled, seed):
    model = copy.deepcopy(trained_once(seed))
    if doubled:
        on_every_layer(lambda layer: layer.set_scale("default", 2))(model)
    return follow(model, data_of(seed + 100, more), 0.005) if more else model

def measure(model):
    score = scoring.quick_score(model, words, held_out)
    return {"loss": score.loss, "exact": score.exact}

MORE = (0, 12, 48)
later = sweep(train_on, {"more": MORE, "doubled": [True, False]}, SEEDS, "runs/alpha/later", "trained on", measure,
              CORES)
compare("alpha/recovers", 100 * later.mean("exact", more=MORE[-1], doubled=True))

# %%
kinds = {"doubled": True, "control": False}
runs = {kind: [later.where(more=more, doubled=doubled).figures("exact") for more in MORE]
        for kind, doubled in kinds.items()}
curves = {kind: (MORE, [100 * sum(found) / len(found) for found in every]) for kind, every in runs.items()}
dots = {kind: zip(*((more, 100 * exact) for more, found in zip(MORE, every) for exact in found))
        for kind, every in runs.items()}
plots.lines(curves, "further steps", "exact answers (%)", seeds=dots,
            title="Does the doubled adapter come back, and to the control?")

# %%
for more, doubled, control in zip(MORE, runs["doubled"], runs["control"]):
    mean, half = interval([a - b for a, b in zip(doubled, control)])
    print(f"after {more:2} further steps: doubled minus control {100 * mean:+.0f} ± {100 * half:.0f} points,",
          "behind." if mean + half < 0 else "ahead." if mean - half > 0 else "not told apart.")

# %% [markdown]
# The pairs are seed by seed: doubled and control began with the same A and B. The base is untouched, and with B halved
# the doubled layers would add what they added before, so a way back exists. The steps that it takes are the price.
#
# ## Alpha is a learning rate
#
# What does alpha do to training itself? Suppose first that only B moves, from zero. One step of SGD adds
# $-\eta\,s\,GA^\top$ to B, with $G$ the gradient of the weight. The layer's output changes by $s$ times that: $s$
# enters twice. AdamW divides the gradient by its own size, which takes one $s$ out. So two trainings should be the
# *same*, step by step, where $\eta\,\alpha^2$ (SGD) or $\eta\,\alpha$ (AdamW) is the same.
#
# You test that with A frozen: alpha times 16, and the rate divided by 16 or by 256. One thing to mind: the Trainer
# *clips*. Where the gradient is longer than `max_grad_norm`, 1.0 unless you say otherwise, it is shortened to that.

# %%
quiz("alpha/clipped")

# %%
def with_frozen_A(optimizer, alpha, lr, clip, seed):
    model = adapted(alpha, seed)
    for layer in lora_layers(model):
        layer.lora_A.requires_grad_(False)
    return follow(model, data_of(seed, STEPS), lr, optimizer, clip)

pairs = [{"optimizer": optimizer, "alpha": 16 * k, "lr": lr / k**power, "clip": clip} for clip in (None, 1.0)
         for optimizer, lr, power in (("SGD", 0.2, 2), ("AdamW", 0.01, 1)) for k in (1, 16)]
frozen = sweep(with_frozen_A, pairs, [SEED], "runs/alpha/frozen", "A frozen", measure, CORES)
table([{"clipped at": row["clip"] or "never"} | {name: row[name] for name in ("optimizer", "alpha", "lr")}
       | {"held-out loss": f"{row['loss']:.5f}"} for row in frozen.rows])

# %%
def larger_alpha(clip, optimizer):
    one, other = (row["loss"] for row in frozen.where(clip=clip, optimizer=optimizer).rows)
    return other / one

for clip, optimizer in itertools.product((None, 1.0), ("SGD", "AdamW")):
    ratio = larger_alpha(clip, optimizer)
    print(f"{optimizer}, clipped at {clip or 'nothing'}: the loss at the larger alpha is {ratio:.4f} times the other:",
          "the same training." if abs(ratio - 1) < 1e-3 else "another training.")
compare("alpha/clipped", larger_alpha(1.0, "SGD"))

# %% [markdown]
# Clipping looks at the gradient of B, which has a factor $s$. A larger alpha is clipped harder, and SGD takes that as
# it comes: one of its two factors $s$ is gone, while the rate was divided for two. AdamW divides the size out anyway;
# it notices only that some steps were clipped and others were not. From here on nothing is clipped.
#
# **Puzzle 2: the other law.** LoRA trains A, too. Then there is a second exact law. Divide A's *initial* values by
# $\sqrt{k}$ and multiply alpha by $k$. If A and B both stay $\sqrt{k}$ times smaller all the way, $s\,BA$ is the same
# all the way. Which rate keeps them so? The check trains both and compares their losses.

# %%
def rate_for(lr, k, optimizer):
    return lr / k  # what would be right for AdamW if A stood still

quiz("alpha/stretched", rate_for)

# %% [markdown]
# ## The ridge
#
# In real training nobody freezes A or shrinks its start. So which law holds? Each says how the best rate moves with
# alpha, as a straight line on two logarithmic axes. In the first, A stands still; the second would hold if A's start
# did not matter at all, because A has gone far away from it. Use the first two powers that you saw, and the two that
# you found.

# %%
quiz("alpha/bend")

# %% [markdown]
# You take the same rates for every alpha: the grid knows no law. That makes hundreds of trainings. A model this small
# spends most of a step on overhead. So `pocket.side_by_side` trains a copy at each rate, all at once in one batch, and
# returns the loss of each and how far A has moved. First see that it is the training you know:

# %%
untrained = scoring.quick_score(small, words, held_out).loss
HELD_OUT = next(pocket.stream(held_out, batch_size=len(held_out)))
ADAPTER = dict(r=8, target_modules="all-linear")
by_peft = measure(follow(adapted(), data_of(SEED, STEPS), 0.01))["loss"]
copies = pocket.side_by_side(small, LoraConfig(lora_alpha=16, **ADAPTER), [0.02, 0.01], data_of(SEED, STEPS), HELD_OUT,
                             "AdamW", SEED)
print(f"loss untrained {untrained:.2f}, by PEFT {by_peft:.5f}, side by side {copies[1]['loss']:.5f}:",
      "the same." if math.isclose(by_peft, copies[1]["loss"], rel_tol=1e-3) else "not the same.")

# %%
def at_all_rates(optimizer, alpha, low, high, seed, r=8, rslora=False):
    config = LoraConfig(r=r, lora_alpha=alpha, use_rslora=rslora, target_modules="all-linear")
    rates, data = [2.0**k for k in range(low, high + 1)], data_of(seed, STEPS, size=4)
    copies = pocket.side_by_side(small, config, rates, data, HELD_OUT, optimizer, seed)
    return {f"{figure} {lr}": ended[figure] for lr, ended in zip(rates, copies) for figure in ended}

def one_by_one(runs):  # a row for each rate
    return Runs([{name: value for name, value in row.items() if not name.startswith(("loss", "moved"))}
                 | {"lr": float(name.split()[1]), "loss": loss, "moved": row[name.replace("loss", "moved")],
                    "status": "ok" if math.isfinite(loss) else "diverged"}
                 for row in runs.rows for name, loss in row.items() if name.startswith("loss")])

GRID = {"AdamW": dict(alpha=(1 / 16, 1, 16, 256, 4096), low=[-15], high=[0]),
        "SGD": dict(alpha=(1, 4, 16, 64, 256), low=[-10], high=[4])}
for optimizer, grid in GRID.items():
    print(f"{optimizer}: the rates 2^{grid['low'][0]} to 2^{grid['high'][0]} for each of the alphas {grid['alpha']}")

# %%
adam = one_by_one(sweep(at_all_rates, {"optimizer": ["AdamW"]} | GRID["AdamW"], SEEDS, "runs/alpha/ridge", "AdamW",
                        None, CORES))
adam.heat("loss", "lr", "alpha", "AdamW: where is the best loss of each row, and what is right of it?")

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
def distance(runs, alpha, best):  # of A from its start, at the rate of the grid that is nearest to the best
    near = min(runs.values("lr"), key=lambda lr: abs(math.log(lr / middle(best))))
    return runs.mean("moved", alpha=alpha, lr=near) if max(known(best)) > 0 else math.nan

def optima(runs):
    rows = []
    for alpha, best in ridge(runs, "alpha").items():
        loss = {lr: runs.mean("loss", alpha=alpha, lr=lr) for lr in runs.values("lr")}
        half_gone = (min(filter(math.isfinite, loss.values())) + untrained) / 2
        lost = [lr for lr in loss if lr > max(known(best)) and not loss[lr] < half_gone]
        rows.append({"alpha": alpha, "best rate, seed by seed": " ".join(f"{rate:.2g}" for rate in best),
                     "half of the gain gone from": f"{lost[0]:.2g}, {lost[0] / middle(best):.0f} times the best"
                     if lost else "nowhere on the grid",
                     "A has moved at the best (times its size)": f"{distance(runs, alpha, best):.2g}"})
    return table(rows)

optima(adam)

# %% [markdown]
# Now both laws as lines. The law of an A that forgot its start is drawn through the measurement at the smallest alpha;
# the law of an A that stands still through that at the largest.

# %%
LAWS = {"AdamW": {"A forgot its start: −1/2": -0.5, "A stands still: −1": -1},
        "SGD": {"A forgot its start: −1": -1, "A stands still: −2": -2}}

def draw(optimizer, best):
    alphas, curve = list(best), [middle(rates) for rates in best.values()]
    (far, far_slope), (still, still_slope) = LAWS[optimizer].items()
    plotted = {"measured": (alphas, curve),
               far: (alphas, [curve[0] * (a / alphas[0]) ** far_slope for a in alphas]),
               still: (alphas, [curve[-1] * (a / alphas[-1]) ** still_slope for a in alphas])}
    dots = {"measured": ([a for a in alphas for _ in SEEDS], [rate for rates in best.values() for rate in rates])}
    return plots.lines(plotted, "alpha", "best learning rate", xscale="log", yscale="log", seeds=dots,
                       title=f"{optimizer}: which law does each end of the ridge follow?")

draw("AdamW", ridge(adam, "alpha"))

# %%
def segments(best):
    """The slope between neighbours, seed by seed."""
    return {(low, high): [math.log(b / a) / math.log(high / low) for a, b in zip(best[low], best[high])]
            for low, high in itertools.pairwise(best)}

def judged(optimizer, best):
    far, still = LAWS[optimizer].values()
    rows = []
    for (low, high), slopes in segments(best).items():
        mean, half = interval(known(slopes))
        holds = [f"{law:g}" for law in (far, still) if abs(mean - law) <= half]
        between = "none, it lies between them" if still < mean < far else "none"
        rows.append({"from alpha": low, "to": high, "slope": plus_minus(slopes),
                     "laws within the interval": " and ".join(holds) or between})
    return table(rows)

judged("AdamW", ridge(adam, "alpha"))

# %%
def bend(optimizer, runs):
    best = ridge(runs, "alpha")
    slopes, ends = list(segments(best).values()), (min(best), max(best))
    change, half = interval(known(last - first for first, last in zip(slopes[0], slopes[-1])))
    print(f"{optimizer}: from the first segment to the last the slope changes by {change:+.2f} ± {half:.2f}.",
          "The ridge bends downwards: no single power of alpha describes it." if change + half < 0 else
          "It bends upwards." if change - half > 0 else "These seeds show no bend.")
    near, far = (distance(runs, alpha, best[alpha]) for alpha in ends)
    print(f"At the best rate A moves by {near:.2g} times its size with alpha {ends[0]}, by {far:.2g} with {ends[1]}:",
          "it stands still where alpha is large." if far < near / 3 else "it moves where alpha is large."
          if near < far / 3 else "no clear difference.")

bend("AdamW", adam)
compare("alpha/bend", np.mean(known(list(segments(ridge(adam, "alpha")).values())[-1])))

# %% [markdown]
# Why would a ridge bend? Where the best rate is large, A goes far from its start, and the start stops to matter: the
# second law is near. Where the best rate is small, A stays near its start: the first law is near. Compare the printed
# distances with the table of optima. The argument is the same for SGD, with its own pair of powers.

# %%
sgd = one_by_one(sweep(at_all_rates, {"optimizer": ["SGD"]} | GRID["SGD"], SEEDS, "runs/alpha/ridge", "SGD", None,
                       CORES))
optima(sgd)

# %%
draw("SGD", ridge(sgd, "alpha"))

# %%
bend("SGD", sgd)
judged("SGD", ridge(sgd, "alpha"))

# %% [markdown]
# So alpha acts as a second learning rate, and how far A goes decides with which exponent. (Hu et al. 2021, section 4.1,
# say of Adam that tuning alpha is roughly tuning the rate if the start is scaled along: your second law.) "alpha = 2r"
# is a convention: it fixes one of two numbers that do much the same, so that the other can be tuned. Keep it, and tune
# the rate. Who changes alpha and leaves the rate has changed both.
#
# ## Does a real model know these laws?
#
# SmolLM2 is six hundred times larger. You cannot map its ridge here, but you can ask which law it follows: train with
# alpha 16, then with alpha 256 and the rate that each law asks for. Where a law holds, its loss curve lies on the first
# one.

# %%
def second_adapter(alpha):
    """A fresh adapter beside the dial's, on the same base; returns its matrices A."""
    if "tried" in trained.peft_config:
        trained.set_adapter("default")
        trained.delete_adapter("tried")
    set_seed(SEED)
    trained.add_adapter("tried", with_alpha(alpha))
    trained.set_adapter("tried")
    return [A for name, A in trained.named_parameters() if "lora_A.tried" in name]

print(len(second_adapter(alpha=16)), "matrices A of a second adapter, at their random start")

# %%
def length(matrices):
    return math.sqrt(sum(matrix.detach().square().sum().item() for matrix in matrices))

followed, travelled = {}, {}
with Progress("three trainings", total=3) as bar:
    for name, alpha, divided in (("alpha 16", 16, 1), ("256, rate / 16", 256, 16), ("256, rate / 4", 256, 4)):
        matrices = second_adapter(alpha)
        start = [A.detach().clone() for A in matrices]
        trainer = trainer_for(trained, 2e-3 / divided, 6)
        trainer.train()
        travelled[name] = length(A - before for A, before in zip(matrices, start)) / length(start)
        followed[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        bar.update(1)
trained.set_adapter("default")

# %%
plots.lines({name: (range(1, len(curve) + 1), curve) for name, curve in followed.items()}, "step", "training loss",
            title="Alpha times 16: which of the two rates repeats the training?")

# %%
def off(name):
    return np.mean([abs(math.log(b / a)) for a, b in zip(followed["alpha 16"], followed[name])])

one, root = off("256, rate / 16"), off("256, rate / 4")
print(f"mean distance from alpha 16: {one:.1%} with the rate / 16, {root:.1%} with the rate / 4")
print(f"A has moved by {travelled['alpha 16']:.0%} of its size with alpha 16:", "the law of the A that stands still is"
      if one < root else "the law of the A that forgot its start is", "the nearer one here.")

# %% [markdown]
# How far A has moved is a figure that you can print for any training of yours. Far below its own size, take the rate
# along with alpha in full; far above, with its root; in between, try both.
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
# Switch `use_rslora` on in a config that worked, and the scaling is another.
#
# **Puzzle 3.** This config was tuned. Write the same training with rsLoRA.

# %%
tuned = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
with_rslora = LoraConfig(r=16, lora_alpha=32, use_rslora=True, target_modules="all-linear")
quiz("alpha/same_scaling", tuned, with_rslora)

# %% [markdown]
# What happens to the best rate as the rank grows? An argument from one step: under AdamW each of the $r$ columns of B
# moves by a full step, and they all follow one gradient, so their sum grows like $r$ and $s$ times that like $s\,r$.
# With alpha/r the rank drops out. With alpha/√r a factor √r is left, and the best rate would have to fall by it. Under
# SGD with alpha/r the sum goes like $s^2 r = \alpha^2/r$, and the rate would have to grow with $r$.

# %%
quiz("alpha/rank_and_rate")

# %% [markdown]
# One step is not a training, so measure. The pocket model's layers are 64 wide. At rank 64, $BA$ can be *any* update,
# and nothing is low about it: so you stay below.

# %%
RANKS = (1, 8, 32)
wide = {layer.in_features for layer in lora_layers(tiny)} | {layer.out_features for layer in lora_layers(tiny)}
print("widths of the pocket model's layers:", sorted(wide), " ranks:", RANKS)
KINDS = {"AdamW, alpha/r": ("AdamW", False, 0), "AdamW, alpha/√r": ("AdamW", True, -0.5),
         "SGD, alpha/r": ("SGD", False, 1)}  # what one step says of the slope comes last
by_rank = {}
for kind, (optimizer, rslora, _) in KINDS.items():
    low, high = (-9, -4) if optimizer == "AdamW" else (-7, 2)
    grid = {"optimizer": [optimizer], "alpha": [16], "low": [low], "high": [high], "r": RANKS, "rslora": [rslora]}
    by_rank[kind] = one_by_one(sweep(at_all_rates, grid, SEEDS, "runs/alpha/ranks", kind, None, CORES))

# %%
best = {kind: ridge(runs, "r") for kind, runs in by_rank.items()}
curves = {kind: (RANKS, [middle(found[r]) for r in RANKS]) for kind, found in best.items()}
dots = {kind: zip(*((r, rate) for r in RANKS for rate in found[r])) for kind, found in best.items()}
plots.lines(curves, "rank", "best learning rate", xscale="log", yscale="log", seeds=dots,
            title="Alpha stays 16: how does the best rate follow the rank?")

# %%
rows = []
for kind, (_, _, expected) in KINDS.items():
    slopes = [math.log(b / a) / math.log(RANKS[-1]) for a, b in zip(best[kind][1], best[kind][RANKS[-1]])]
    mean, half = interval(known(slopes))
    lowest = {r: min(by_rank[kind].mean("loss", r=r, lr=lr) for lr in by_rank[kind].values("lr")) for r in RANKS}
    rows.append({"kind": kind, "slope": plus_minus(slopes), "one step says": expected,
                 "in the interval": "yes" if abs(mean - expected) <= half else "no"}
                | {f"loss, rank {r}": f"{lowest[r]:.3f}" for r in RANKS})
compare("alpha/rank_and_rate", middle(best["AdamW, alpha/r"][RANKS[-1]]) / middle(best["AdamW, alpha/r"][1]))
table(rows)

# %% [markdown]
# The slope says how far a rate that was tuned at one rank carries to another, with this optimizer and this scaling. The
# losses are those at each rank's own best rate: compare the two scalings there. At one *fixed* rate you would compare
# rates as much as scalings. (Schulman et al., *LoRA Without Regret*, report a best rate that hardly depends on the
# rank, with alpha/r, for models with billions of weights.)
#
# ## What is forgotten
#
# A larger alpha or rate may overwrite more of what the model knew. Does LoRA at least forget less than full
# fine-tuning? *LoRA Learns Less and Forgets Less* (Biderman et al. 2024) says it does. To test it, the new task must
# leave room for the old one. Here four devices go by one another's names; rooms, states and the other three devices
# stay, and training shows none of those three.

# %% tags=["nbval-check-output"]
import json

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
print("new:", new[0].text, "->", new[0].answer)
print("old:", old[0].text, "->", old[0].answer)

# %% [markdown]
# A fair comparison reads both methods where they have learned *as much*. So you follow each training, and note the new
# and the old answers every few steps. Each method gets two rates.

# %%
quiz("alpha/forgotten")

# %%
def path(method, lr, seed):
    torch.manual_seed(seed)
    model = adapted(seed=seed) if method == "LoRA" else copy.deepcopy(small)
    found = {}
    def look(step):
        if step % 4 == 0:
            for name, asked in (("new", new), ("old", old)):
                found[f"{name} {step}"] = scoring.quick_score(model, words, asked).exact
    look(0)
    follow(model, data_of(seed, 2 * STEPS, taught), lr, watch=look)
    return found

METHODS = {"LoRA": (0.004, 0.008), "full": (0.001, 0.002)}
grid = [{"method": method, "lr": lr} for method, rates in METHODS.items() for lr in rates]
paths = sweep(path, grid, SEEDS, "runs/alpha/forgetting", "LoRA and full", None, CORES)

# %%
LEARNED, LOOKS = 0.5, range(0, 2 * STEPS + 1, 4)

def old_at(row):
    """Old answers where the new ones first reach `LEARNED`, between two looks in a straight line."""
    for before, after in itertools.pairwise(LOOKS):
        if row[f"new {after}"] >= LEARNED > row[f"new {before}"]:
            share = (LEARNED - row[f"new {before}"]) / (row[f"new {after}"] - row[f"new {before}"])
            return row[f"old {before}"] + share * (row[f"old {after}"] - row[f"old {before}"])
    return math.nan

kept = {(run["method"], run["lr"]): [100 * old_at(row) for row in paths.where(**run).rows] for run in grid}
kept = {run: shares for run, shares in kept.items() if all(map(math.isfinite, shares))}
print(f"{len(kept)} of {len(grid)} settings get there under every seed; the others are left out")
plots.dots({f"{method}, rate {lr:g}": shares for (method, lr), shares in kept.items()}, "old answers still right (%)",
           f"At {LEARNED:.0%} of the new answers: how many old ones are left?", form="{:.0f}")

# %%
def best_of(method):
    return max((run for run in kept if run[0] == method), key=lambda run: sum(kept[run]), default=(method, math.nan))

lora, full = best_of("LoRA"), best_of("full")
apart, half = interval([a - b for a, b in zip(kept.get(lora, [math.nan]), kept.get(full, [math.nan]))])
print(f"each at the rate that keeps most, LoRA {lora[1]:g} and full {full[1]:g}: "
      f"old answers, LoRA minus full, {apart:+.0f} ± {half:.0f} points.")
print("One of them never learned enough for the comparison." if math.isnan(half) else
      "LoRA forgets less here." if apart > half else "LoRA forgets more here." if apart < -half else
      "Five seeds cannot tell them apart.")
if math.isfinite(apart):
    compare("alpha/forgotten", apart)

# %%
curves = {}
for method, lr in (lora, full):
    runs = paths.where(method=method, lr=lr)
    curves[f"{method}, {lr:g}"] = [[100 * runs.mean(f"{kind} {step}") for step in LOOKS] for kind in ("new", "old")]
plots.lines(curves, "new answers right (%)", "old answers still right (%)", mark=100 * LEARNED,
            title="What does each method pay for what it learns?")

# %% [markdown]
# **Look** along the curves: does the order of the two depend on where you compare? A method that was stopped early
# seems to forget little. Only equal scores are fair, and only where something is left of the old answers can a
# difference show. A low rank limits in how many directions a layer changes. It does not limit how far, nor on which
# inputs: old and new commands share most of their words.
#
# ## None is lost
#
# Hundreds of trainings, and none is lost when the kernel dies: `sweep` kept each under `runs/alpha`. Restart the
# kernel, run the cells again, and they are read. A stored run is known by its settings, its seed and everything that
# your functions use: their code, that of the helpers they call, the data, the versions of the packages. Edit one, and
# those runs are made anew.

# %%
started = models.clock()
again = sweep(path, grid, SEEDS, "runs/alpha/forgetting", "again", None, CORES)
print(f"{len(again)} runs in {models.clock() - started:.1f} s; the same rows:", again.rows == paths.rows)

# %% [markdown]
# **Break it:** stop a sweep in its fourth run, and start it again. How often is `slow` called in all?

# %% tags=["nbval-check-output"]
import shutil

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
# Four mistakes. Guess which of them PEFT itself would let pass.

# %% tags=["nbval-check-output"]
def nan_factor():
    with adapters.turned(tiny, float("nan")):
        pass

for attempt in (nan_factor, lambda: adapters.positive(alpha=0),
                lambda: sweep(of_length, {"steps": [8]}, [0]),
                lambda: adapters.adapter_folder("runs/alpha/edited", r=16)):
    try:
        attempt()
    except Exception as error:
        print(type(error).__name__, error)

# %% [markdown]
# PEFT takes alpha 0 and a scaling of NaN without a word: the first trains nothing, the second everything to NaN.
# (Resuming a training with another alpha in the config raises nothing, either: compare the saved config with yours.)
#
# ## Experienced-dev note
#
# - Tune the rate in factors of two at a fixed alpha, and look at both neighbours of the best before you settle on it.
# - Print how far A has moved. It tells which law your training is nearer to.
# - To ship another volume, edit the config on purpose, save, load, and measure the *loaded* adapter on the task and
#   beside it.
# - One seed tells you little. Five give an interval with four degrees of freedom, and 2.776 in place of 1.96.
#
# ## Recap
#
# - After training, alpha is a volume. Layers obey `scaling` now; the config is obeyed at the next load.
# - In training, alpha is a second learning rate. Two exact laws say how the best rate follows it, and how far A moves
#   says which of them is near.
# - A new rank, scaling or optimizer is a new question about the rate. Tune it for each, then compare.
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
