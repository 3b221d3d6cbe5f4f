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
# # 9 · Does the new variant win? Put a claim to the test
#
# *Lessons:* ← [8 · Your own data, your own model](08_your_own_data.ipynb)
#
# New variants of LoRA keep coming, and each comes with a table in which it is ahead. Four of them are one line of PEFT
# away. Should you switch? Here you first let a comparison go wrong on purpose, so that the verdict hangs on a number
# that has nothing to do with the variants. Then you compare them so that the verdict can be trusted, whichever it is.
#
# **You will be able to** say what DoRA, rsLoRA, PiSSA and LoRA+ change, see in a table of results which of its arms was
# tuned, compare two methods with paired seeds and an interval, and say what a variant costs and how it ships.
#
# **You need** [Lesson 0](00_first_adapter.ipynb); [Lesson 5](05_alpha_scaling.ipynb) for learning rates and scaling.
#
# **It takes** about two minutes of computing on two CPU cores
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
import statistics
import warnings

import torch
from lora_lab import batches, compare, load_base, plots, pocket, progress, quiz, scoring, smart_home
from lora_lab.display import table
from lora_lab.models import clock
from lora_lab.sweep import interval, sweep
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

# %% [markdown]
# ## Five arms
#
# An **arm** is what one method does in a comparison. This is what each variant changes, and who made the claim:
#
# | arm | in PEFT | what it changes | first claimed in |
# |---|---|---|---|
# | LoRA | nothing | | Hu et al. 2021 |
# | rsLoRA | `use_rslora=True` | the scaling is alpha/√r, not alpha/r | Kalajdzievski 2023 |
# | DoRA | `use_dora=True` | the length of each row of the weight trains by itself | Liu et al. 2024 |
# | PiSSA | `init_lora_weights="pissa"` | A and B start as the strongest directions of W | Meng et al. 2024 |
# | LoRA+ | `create_loraplus_optimizer` | B has a rate of its own, a multiple of A's | Hayou et al. 2024 |
#
# Each of the last four papers reports that its variant did better than LoRA on its tasks. PEFT's help text repeats it
# of some: of PiSSA, that it "converges more rapidly than LoRA and ultimately achieves superior performance".
#
# You test that with the pocket model of Lesson 5, a Llama of a quarter of a million weights, and its task, a dialect in
# which rooms, devices and states go by one another's names. It is so small that each arm can have many trainings.

# %%
SEED, STEPS = 0, 30
SEEDS = tuple(range(SEED, SEED + 5))  # they judge
TUNING = (SEED + 100, SEED + 101)  # they choose a rate, and judge nothing
CORES, RATIO = torch.get_num_threads(), 16  # how many times A's rate is B's, in LoRA+
ARMS = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True},
        "PiSSA": {"init_lora_weights": "pissa"}, "LoRA+": {}}
VARIANTS = list(ARMS)[1:]
small, words = pocket.load()
lesson = tuple(pocket.dialect(smart_home.commands("train", n=1500, seed=0)))
held_out = {part: tuple(pocket.dialect(smart_home.commands(f"{part} combinations", n=84, seed=0)))
            for part in ("validation", "test")}  # the one to choose a rate, the other to judge
print(f"{small.num_parameters():,} parameters;", lesson[0].text, "->", lesson[0].answer)

# %%
def adapted(arm, seed=SEED):
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **ARMS.get(arm, {}))
    return get_peft_model(copy.deepcopy(small), config)

def loss_of(model, part="test"):
    return scoring.quick_score(model.eval(), words, held_out[part]).loss

facts = []
for arm in ARMS:
    model = adapted(arm)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    facts.append({"arm": arm, "parameters that train": f"{model.get_nb_trainable_parameters()[0]:,}",
                  "scaling": f"{layer.scaling['default']:.3g}",
                  "largest entry of B": f"{layer.lora_B['default'].weight.abs().max().item():.2g}",
                  "loss before training": f"{loss_of(model):.3f}"})
table(facts)

# %% [markdown]
# **Look** at the columns: which arm has more to train, which another scaling, which another start? All begin as the
# same model: at the start no arm has changed what the base answers.
#
# The training is that of Lesson 5: AdamW, a rate that falls to zero in a straight line, no weight decay. The seed draws
# A's start and the order of the rows. So two arms under one seed read the same rows in the same order.

# %%
@functools.cache
def data_of(seed, steps):
    return list(itertools.islice(pocket.stream(list(lesson), 4, seed), steps))

def trained(arm, lr, seed, steps=STEPS):
    model = adapted(arm, seed + 1000 if arm == "LoRA again" else seed)
    optimizer = (create_loraplus_optimizer(model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=RATIO)
                 if arm == "LoRA+" else torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=steps)
    for batch in data_of(seed, steps):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
    return {"loss": loss_of(model, "validation"), "judged": loss_of(model)}

print("one training of LoRA:", trained("LoRA", 2e-3, SEED))

# %% [markdown]
# ## The trap: one rate for all
#
# Somebody has a recipe that works: that of Lesson 0, with its learning rate of `2e-3`. They add the variant's line,
# leave all else as it is ("to be fair"), and train five seeds of each arm. **Predict** what they report.

# %%
quiz("variants/borrowed")

# %%
RECIPE = 2e-3

def many(name, arms, seeds=SEEDS):  # (arm, rate) pairs
    grid = [{"arm": arm, "lr": lr} for arm, lr in arms]
    return sweep(trained, grid, seeds, "runs/variants/pocket", name, None, CORES)

def judged(runs):
    return {arm: runs.where(arm=arm).figures("judged") for arm in dict.fromkeys(row["arm"] for row in runs.rows)}

found = {"at the recipe's rate": judged(many("all at the recipe's rate", [(arm, RECIPE) for arm in ARMS]))}
plots.dots(found["at the recipe's rate"], "loss on held-out commands (nats an answer token)",
           "All at the recipe's rate: who is ahead?", form="{:.3f}")

# %% [markdown]
# The report is a difference: the variant's loss minus LoRA's, seed by seed, with a 95 % interval over the seeds
# (Student's t, as in Lesson 5). Below zero, the variant is ahead. Where the interval holds zero, these seeds cannot
# tell the two apart.

# %%
def signed(value):
    return f"{value:+.3f}".replace("-", "−")

def told(name, variant, plain):
    mean, half = interval([a - b for a, b in zip(variant, plain)])
    says = ("no verdict, a training diverged" if math.isnan(half) else "cannot be told apart" if abs(mean) <= half
            else "the variant ends lower" if mean < 0 else "the variant ends higher")
    return (f"{name}: {signed(mean)} ({signed(mean - half)} to {signed(mean + half)}) nats held-out loss, "
            f"{len(plain)} seeds: {says}")

def lines(design):
    return [told(f"{arm} against LoRA, {design}", found[design][arm], found[design]["LoRA"]) for arm in VARIANTS]

print("\n".join(lines("at the recipe's rate")))
compare("variants/borrowed", sum(line.endswith("lower") for line in lines("at the recipe's rate")))

# %% [markdown]
# Five seeds, pairs, an interval: what could be wrong with it? Somebody else does the same, and begins by tuning the
# rate of plain LoRA. Two seeds try each rate of a grid, on other commands than those that judge.

# %%
RATES = [1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3]
tuning = many("rates for LoRA", [("LoRA", lr) for lr in RATES], TUNING)

def best_rate(runs, arm):
    return min((runs.mean("loss", arm=arm, lr=lr), lr) for lr in RATES if not runs.where(arm=arm, lr=lr).diverged)[1]

rates = {"LoRA": best_rate(tuning, "LoRA")}
print(f"LoRA's best rate of the grid: {rates['LoRA']:.2g}, {rates['LoRA'] / RECIPE:.1f} times the recipe's.")
plots.lines({"LoRA": (RATES, [tuning.mean("loss", lr=lr) for lr in RATES])}, "learning rate", "held-out loss",
            xscale="log", yscale="log", mark=RECIPE, title="Where is the recipe's rate (line) on LoRA's valley?")

# %%
design = "at LoRA's best rate"
found[design] = judged(many("all at LoRA's best rate", [(arm, rates["LoRA"]) for arm in ARMS]))
print("\n".join(lines(design)))
reports = zip(VARIANTS, lines("at the recipe's rate"), lines(design))
turned = [arm for arm, one, two in reports if one.split(": ")[-1] != two.split(": ")[-1]]
print(f"The same code, seeds and rows; another rate. Another verdict for {len(turned)} of {len(VARIANTS)}:", *turned)
moved = statistics.mean(found["at the recipe's rate"]["LoRA"]) - statistics.mean(found[design]["LoRA"])
print(f"Plain LoRA itself has moved by {signed(-moved)} nats from one report to the other.")

# %% [markdown]
# Neither report says a word about the variants. "The same rate" is not the same thing in every arm. Under AdamW an
# entry of B moves by about the rate in each step. rsLoRA, at rank 8, makes √8 times as much of that, and LoRA+ moves B
# 16 times as far. At a rate too low for LoRA, larger steps are an advantage. At a rate that suits LoRA, they may be too
# large. The first report compared with a baseline that nobody had tuned, the second with variants that nobody had
# tuned.

# %%
quiz("variants/fair")

# %% [markdown]
# ## Tune every arm
#
# The remedy is dull: every arm gets the same number of trials, on the same grid, with the same seeds, and these seeds
# and commands judge nothing. (Why other seeds? The best of many trials is partly the luckiest. Whoever reports the
# trial that won reports the luck as well, and the more trials an arm had, the more of it.)

# %%
trials = tuning + many("rates for the variants", [(arm, lr) for arm in VARIANTS for lr in RATES], TUNING)
valleys = {arm: [trials.mean("loss", arm=arm, lr=lr) for lr in RATES] for arm in ARMS}
plots.lines({arm: (RATES, losses) for arm, losses in valleys.items()}, "learning rate (of A, in LoRA+)",
            "held-out loss (mean of the tuning seeds)", xscale="log", yscale="log",
            title="Does every arm have its valley at the same rate?")

# %%
for arm in ARMS:
    rates[arm] = best_rate(trials, arm)
    edge = " That is the edge of the grid: its best may lie beyond." if rates[arm] in (RATES[0], RATES[-1]) else ""
    print(f"{arm}: {rates[arm]:.2g}, {rates[arm] / rates['LoRA']:.2g} times LoRA's.{edge}")
print(f"Each arm had {len(RATES)} rates and {len(TUNING)} seeds.")

# %% [markdown]
# Now five fresh seeds of each arm, each at its own rate. **Predict** how many of the four variants can be told apart
# from LoRA. With them goes a **placebo**: "LoRA again", plain LoRA with other random numbers in A. It is no better and
# no worse by construction. If the method of comparing is sound, it should not be found to be so, but for one time in
# twenty.

# %%
quiz("variants/tuned")

# %%
tuned = "both tuned"
found[tuned] = judged(many("each at its own rate", [*rates.items(), ("LoRA again", rates["LoRA"])]))
plots.dots(found[tuned], "loss on held-out commands (nats an answer token)",
           "Each arm at its own rate: who is ahead now?", form="{:.3f}")

# %% [markdown]
# ## The verdicts
#
# **rsLoRA.** The claim is one about ranks: with alpha/r high ranks learn slowly, and alpha/√r repairs it. At *one* rank
# alpha/√r is another alpha, and alpha and the rate act together (Lesson 5). So at a tuned rate, how much can be left of
# it?

# %%
def verdict_on(arm):
    return told(f"{arm} against LoRA, {tuned}", found[tuned][arm], found[tuned]["LoRA"])

print(verdict_on("rsLoRA"))

# %% [markdown]
# **DoRA.** It writes a weight as a direction times a length for each of its rows, lets LoRA change the directions, and
# trains the lengths beside it. The paper reports that under full fine-tuning lengths and directions change together in
# another way than under LoRA, and that DoRA comes closer to that.

# %%
print(verdict_on("DoRA"))

# %% [markdown]
# **PiSSA.** A and B begin as the first directions of the weight's singular value decomposition, and what is left of
# the weight is frozen. So both matrices have large gradients from the first step on. Nothing else differs from LoRA.

# %%
print(verdict_on("PiSSA"))

# %% [markdown]
# **LoRA+.** The argument is one about wide models: with one rate for both matrices, A or B moves too little or too
# much. The pocket model is narrow, and a ratio of 16 was taken as it is, where it could have been tuned, too.

# %%
print(verdict_on("LoRA+"))

# %% [markdown]
# And the placebo. What it shows is what chance does.

# %%
print(verdict_on("LoRA again").replace("the variant", "it"))
apart = [arm for arm in VARIANTS if verdict_on(arm).endswith(("lower", "higher"))]
print(f"{len(apart)} of {len(VARIANTS)} variants can be told apart from LoRA:", ", ".join(apart) or "none")
compare("variants/tuned", len(apart))
between = [statistics.mean(found[tuned][arm]) for arm in ARMS]
widest = max(between) - min(between)
print(f"Largest difference between two tuned arms: {widest:.3f} nats. LoRA, from the recipe's rate to its best: "
      f"{abs(moved):.3f} nats, {abs(moved) / max(widest, 1e-9):.1f} times that.")

# %% [markdown]
# One interval in twenty misses by luck. You looked at four. How often does at least one of four equal variants look
# different?

# %%
quiz("variants/luck")

# %%
luck = 1 - 0.95 ** len(VARIANTS)
print(f"At least one of {len(VARIANTS)} independent 95 % intervals misses: {luck:.1%} of the time.",
      f"Ask {' and '.join(apart)} again, with fresh seeds, before you believe it." if apart else
      "Here none was apart, so there is nothing to ask again.")

# %%
FRESH = range(SEED + 10, SEED + 15)
again = judged(many("asked again", [(arm, rates[arm]) for arm in ["LoRA", *apart]], FRESH)) if apart else {}
for arm in apart:
    print(told(f"{arm} against LoRA, {tuned}, other seeds", again[arm], again["LoRA"]))
print(f"asked again: {len(apart)}")

# %% [markdown]
# ## What it costs
#
# A variant that is ahead is not free: it may train more, and take longer for a step. **Predict** the one that computes
# most: DoRA needs the length of every row of $W + sBA$ in every step.

# %%
quiz("variants/step_time")

# %%
def one_step(model, optimizer, batch):
    started = clock()
    model.train()(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return clock() - started

ready = {arm: (model := adapted(arm), torch.optim.AdamW(model.parameters(), lr=1e-4)) for arm in ARMS}
taken = {arm: [] for arm in ARMS}
for batch, arm in itertools.product(data_of(SEED, STEPS)[:12], ARMS):  # in turns, so that all meet the same noise
    taken[arm].append(one_step(*ready[arm], batch))
times = {arm: statistics.median(taken[arm]) / statistics.median(taken["LoRA"]) for arm in ARMS}
compare("variants/step_time", times["DoRA"])
table([{name: fact[name] for name in ("arm", "parameters that train")}
       | {"time of a step, LoRA = 1": f"{times[fact['arm']]:.2f}"} for fact in facts])

# %% [markdown]
# (LoRA+ has two rates in place of one, which costs no time; here all arms were timed with the same optimizer. The
# pocket model is so small that a step is mostly overhead; the base model below has a ratio of its own.)
#
# So what else could you buy for that time? Plain LoRA may train longer. Give it half as many steps again, at its own
# rate:

# %%
longer = sweep(trained, {"arm": ["LoRA"], "lr": [rates["LoRA"]], "steps": [STEPS * 3 // 2]}, SEEDS,
               "runs/variants/pocket", "LoRA, half as many steps again", None, CORES).figures("judged")
said = told("LoRA with half as many steps again against LoRA", longer, found[tuned]["LoRA"])
print(said.replace("the variant", "the longer one"))
worth = abs(statistics.mean(longer) - statistics.mean(found[tuned]["LoRA"]))
for arm in VARIANTS:
    gain = statistics.mean(found[tuned]["LoRA"]) - statistics.mean(found[tuned][arm])
    print(f"{arm}: a mean gain of {signed(gain)} nats, {signed(gain / worth)} of what the longer training gains; "
          f"a step takes {times[arm]:.2f} times as long.")

# %% [markdown]
# "Cannot be told apart" is not "equal". A wide interval says that you do not know; one that is narrow, and near zero,
# says that whatever difference there is does not matter to you. For that you need a number beforehand: the smallest
# difference that you would pay for. One choice is what the longer training gained, called `worth` above.
#
# **Exercise 1: four verdicts.** Complete the function: `"lower"` and `"higher"` where the *whole* interval lies beyond
# `worth` on that side, `"alike"` where all of it lies within `worth` of zero, and `"open"` for all else.

# %%
def my_verdict(differences, worth):  # variant minus LoRA, seed by seed
    mean, half = interval(differences)
    return "lower" if mean < 0 else "higher"

quiz("variants/four_verdicts", my_verdict)

# %%
for arm in [*VARIANTS, "LoRA again"]:
    apart_by = [a - b for a, b in zip(found[tuned][arm], found[tuned]["LoRA"])]
    print(f"{arm}: {my_verdict(apart_by, worth)} (by your function, worth {worth:.3f} nats)")

# %% [markdown]
# ## The same question on the base model
#
# A toy is a toy. So one comparison again on Lesson 0's model and task, small enough for this notebook: DoRA against
# LoRA, few steps of few commands, `r=8` on the linear layers of the upper third of the blocks. Three rates for each
# arm, one seed to choose, five others and other commands to judge. **Predict** the outcome.

# %%
quiz("variants/base_model")

# %%
BASE_STEPS, BASE_RATES = 6, [4e-3, 8e-3, 16e-3]
base, tokenizer = load_base()
blocks = base.config.num_hidden_layers
UPPER = rf".*layers\.({'|'.join(map(str, range(2 * blocks // 3, blocks)))})\..*_proj"
asked = {part: smart_home.commands(f"{part} combinations", n, SEED)
         for part, n in (("validation", 14), ("test", 28))}

def arguments_for(model, lr, seed):  # those of Lesson 0, with fewer steps and commands
    return TrainingArguments(
        output_dir="runs/variants/base", max_steps=BASE_STEPS, per_device_train_batch_size=4, learning_rate=lr,
        warmup_steps=2, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=torch.cuda.is_available(), seed=seed,
        use_cpu=model.device.type == "cpu", bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16)

print("the base, untrained:", scoring.quick_score(base, tokenizer, asked["test"]))

# %%
def on_base(arm, lr, seed, part):
    set_seed(seed)
    model = get_peft_model(base, LoraConfig(
        r=8, lora_alpha=16, target_modules=UPPER, task_type="CAUSAL_LM", **ARMS[arm]))
    rows = batches.encode(smart_home.commands("train", 4 * BASE_STEPS, seed), tokenizer)
    trainer = Trainer(model, arguments_for(model, lr, seed), batches.AnswerCollator(tokenizer),
                      batches.similar_lengths(rows, 4, seed))
    trainer.remove_callback(PrinterCallback)
    try:
        seconds = trainer.train().metrics["train_runtime"] / BASE_STEPS
        return {"loss": scoring.quick_score(model, tokenizer, asked[part]).loss, "seconds": seconds}
    finally:
        model.unload()  # which leaves the base as it was

tried = sweep(on_base, {"arm": ["LoRA", "DoRA"], "lr": BASE_RATES, "part": ["validation"]}, [SEED + 100],
              progress="rates for the base model")

# %%
own = {arm: min(BASE_RATES, key=lambda lr: tried.mean("loss", arm=arm, lr=lr)) for arm in ("LoRA", "DoRA")}
print("best rates of the grid:", own, *(f"; {arm} is at its edge" for arm in own if own[arm] in BASE_RATES[::2]))
tried.table("loss", "arm", "lr")

# %%
base_runs = sweep(on_base, [{"arm": arm, "lr": lr, "part": "test"} for arm, lr in own.items()], SEEDS,
                  progress="five seeds of each")
ends = {arm: base_runs.where(arm=arm).figures("loss") for arm in own}
plots.dots(ends, "loss on held-out commands (nats an answer token)",
           "The base model, both tuned: do the arms differ?", form="{:.3f}")

# %%
print(told("DoRA against LoRA on the base model, both tuned", ends["DoRA"], ends["LoRA"]))
mean, half = interval([a - b for a, b in zip(ends["DoRA"], ends["LoRA"])])
compare("variants/base_model", 0 if abs(mean) <= half else mean - math.copysign(half, mean))
seconds = {arm: statistics.median(base_runs.where(arm=arm).figures("seconds")) for arm in own}
print(f"A step of DoRA took {seconds['DoRA'] / seconds['LoRA']:.2f} times as long as one of LoRA.")

# %% [markdown]
# One task, one model, few steps, one rank: what comes out is a fact about that. Lee et al. (*Learning Rate Matters*,
# 2026) tuned the variants and plain LoRA on larger models, and report that their best rates differ, and that with tuned
# rates they end close together. Take the method to your own model, rather than the winner.
#
# ## Ship it
#
# A training is half the story. What do you get out, and what does it fit?

# %%
quiz("variants/switched_off")

# %%
ids = next(pocket.stream(list(held_out["test"]), 8))["input_ids"]

@torch.no_grad()
def off(model, other):  # the largest difference of a logit
    return (model.eval()(input_ids=ids).logits - other.eval()(input_ids=ids).logits).abs().max().item()

def pushed(arm):  # a stand-in for a training: every number that trains is moved a little
    model = adapted(arm)
    model.save_pretrained(f"runs/variants/{arm} start")
    torch.manual_seed(SEED)
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight += 0.01 * torch.randn_like(weight)
    return model

print(f"a push moves a logit of LoRA by up to {off(pushed('LoRA'), small):.2g}")

# %%
PLAIN = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")  # what an engine knows that reads r, alpha, A and B
shipped = []
for arm in ("LoRA", "rsLoRA", "DoRA", "PiSSA"):  # LoRA+ leaves LoRA's own kind of adapter
    model, folder = pushed(arm), f"runs/variants/{arm}"
    model.save_pretrained(folder)
    with model.disable_adapter():
        row = {"arm": arm, "switched off, against the base": off(model, small)}
    for name, options in (("loaded by PEFT", {}), ("read as plain LoRA", {"config": copy.deepcopy(PLAIN)})):
        row[name] = off(PeftModel.from_pretrained(copy.deepcopy(small), folder, **options), model)
    shipped.append(row | {"merged": off(copy.deepcopy(model).merge_and_unload(), model)})
table([{name: f"{value:.1g}" if name != "arm" else value for name, value in row.items()} for row in shipped])

# %% [markdown]
# The figures are the largest differences of a logit: what is below 1e-3 is rounding. **Look** at each column.
#
# - *Merged*: all four become plain weights, $W + sBA$, in DoRA with each row brought to its trained length. After that
#   no variant costs anything. PEFT's help text recommends it for DoRA, since unmerged it has more to compute than LoRA
#   for every token.
# - *Switched off*: PEFT builds PiSSA by taking the strongest directions out of the base's own weights. So off is not
#   the base, and one base in memory cannot serve it beside other adapters: PEFT warns.
# - *Loaded by PEFT*: the saved config says "pissa", and PEFT takes the base apart again at each load. That fits the
#   very weights that it was trained beside, and nothing else.
# - *Read as plain LoRA*: what a serving engine does that knows r, alpha, A and B. (vLLM reads `use_rslora` as well, and
#   refuses `use_dora`: `vllm/lora/peft_helper.py`.) A wrong scaling, lengths left out, or directions that are there
#   twice raise no error.
#
# PiSSA can be had as a plain LoRA adapter, if you kept it as it was before the first step: what training changed is
# $s(BA - B_0A_0)$, a matrix of twice the rank.
#
# **Exercise 2: ship it.** `model` is trained from PiSSA's start, and `start` is a folder with the adapter before the
# first step. Save a plain LoRA adapter that fits the base as it is on disk. (PEFT has an argument for it, and warns
# while it loads the start beside the model. The path of the start needs a folder before its name, as in `runs/start`.)

# %%
def ship(model, start, folder):
    model.save_pretrained(folder)

quiz("variants/ship_pissa", ship)

# %%
model = pushed("PiSSA")
ship(model, "runs/variants/PiSSA start", "runs/variants/converted")
converted = PeftModel.from_pretrained(copy.deepcopy(small), "runs/variants/converted")
print(f"By your function: rank {converted.peft_config['default'].r}, start "
      f"{converted.peft_config['default'].init_lora_weights!r}; a logit is off by {off(converted, model):.1g}")
with converted.disable_adapter():
    print(f"switched off, it is off from the base by {off(converted, small):.1g}")

# %% [markdown]
# ## Error recovery
#
# Read each message, and say what you would change.

# %% tags=["nbval-check-output"]
def beside_another():
    with warnings.catch_warnings(action="error", category=UserWarning):
        adapted("PiSSA").load_adapter("runs/variants/LoRA", "second")

def in_double():
    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights="pissa")
    get_peft_model(copy.deepcopy(small).double(), config)

for attempt in (beside_another, in_double, lambda: create_loraplus_optimizer(adapted("LoRA"), torch.optim.AdamW, lr=1),
                lambda: LoraConfig(use_dora=True, lora_bias=True)):
    try:
        attempt()
    except (TypeError, ValueError, UserWarning) as error:
        print(f"- {str(error)[:115]}\n")

# %% [markdown]
# PiSSA needs weights that it can take apart, in 16 or 32 bits: build it there, and quantise what is left of the base
# afterwards. LoRA+ has no default for its ratio, since a good one depends on the model and the task.
#
# ## Experienced-dev note: when is a difference worth it?
#
# - Read a table of results from its baseline: was it tuned, with how many trials, on how many seeds, and did what chose
#   the rate also judge? Where that is not said, the table compares rates.
# - First tune plain LoRA. It is what you would ship otherwise.
# - Before you run, fix the difference that you would pay for: in tuning, in time for a step, in an engine that may
#   refuse the variant. Then ask whether the interval lies beyond it.
# - Name what the variant changes: the size of the steps (rsLoRA, LoRA+), the start (PiSSA), or what can be learned
#   (DoRA). If a rate does the same, tune the rate.
# - Try one variant at a time, ask a winner again with fresh seeds, and say how many you tried.
#
# ## Recap
#
# - A rate means another step in each arm: at a borrowed one the verdict belongs to the rate.
# - Equal trials for every arm, other seeds to judge, pairs and an interval, a placebo: then a verdict can be trusted,
#   "cannot be told apart" included.
# - All four merge into plain weights. Unmerged, PiSSA needs a conversion, and DoRA an engine that knows it.
#
# **The exercise worth doing.** Take the variant that you have heard of last. Tune it and LoRA on your own task, with
# the same trials, and write down beforehand which difference would make you switch.

# %%
progress()

# %% [markdown]
# Sources: Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models* (2021); Kalajdzievski, *A Rank
# Stabilization Scaling Factor for Fine-Tuning with LoRA* (2023); Liu et al., *DoRA: Weight-Decomposed Low-Rank
# Adaptation* (2024); Meng et al., *PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
# Models* (2024); Hayou et al., *LoRA+: Efficient Low Rank Adaptation of Large Models* (2024); Lee et al., *Learning
# Rate Matters: Vanilla LoRA May Suffice for LLM Fine-tuning* (2026); Student, *The probable error of a mean* (1908).
# Help texts and behaviour: PEFT's `LoraConfig`, `tuners/lora` and `optimizers/loraplus.py`.
#
# *Lessons:* ← [8 · Your own data, your own model](08_your_own_data.ipynb)
