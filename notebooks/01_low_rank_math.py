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
# # 1 · Low-rank math: why two thin matrices are enough
#
# *Lessons:* ← [0 · Your first adapter](00_first_adapter.ipynb) ·
# [2 · LoraConfig and target modules: saying where and how much](02_config_and_targets.ipynb) →
#
# Lesson 0 trained less than two percent of a model's size and got the job done. Here you find out why that can work.
# You look into weights and into what training does to them, build LoRA in a dozen lines, and prove your layer equal
# to PEFT's.
#
# **You will be able to** say what rank is and see it, write a LoRA layer from memory, count its parameters for any
# model, take an adapter out of a merged weight, and tell what LoRA saves from what it does not.
#
# **You need** [Lesson 0](00_first_adapter.ipynb) and matrix multiplication.
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: 50 s, NVIDIA H200, peak 4.6 GB, 9 cells not shown there).
# One part trains whole matrices and takes 2.8 GB of memory. With less than 4 GB, as on Binder, it trains five blocks
# of the model instead of thirty, and 1.7 GB are enough: the lesson finds out by itself and says so.
#
# ## Why this matters
#
# "Low rank" is a bet: that what fine-tuning has to change in a weight is far simpler than the weight. If the bet
# holds for your task, you train a tiny part of the parameters. If it does not, you need a rank so high that little is
# saved. So you should know how to look.

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
import math
import random

import torch
import transformers
from lora_lab import batches, compare, load_base, models, plots, progress, quiz, scoring, smart_home
from lora_lab.course import explorers
from lora_lab.display import Progress, table
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, set_seed

SEED, STEPS, BATCH = 0, 20, 8

# %% [markdown]
# ## One push: rank 1 in the plane
#
# A matrix of **rank 1** is one column times one row, $b\,a^\top$. Hand it a point $x$. It reads a single number, how
# far $x$ reaches along $a$, and answers with $b$ times that number. So $x + b\,(a^\top x)$ pushes $x$ along $b$, by
# as much as $x$ reaches along $a$.
#
# **Guess, then run.** Dots are points before the push, green arrows lead to where it takes them. Which points
# stay where they are? And what will change when you turn $a$ (in the notebook, by the slider or its arrow keys)?

# %%
def look(degrees):
    angle = math.radians(degrees)
    return plots.push(a=(math.cos(angle), math.sin(angle)), b=(0.7, 0.25))

explorers.slide(look, "angle of a", 0, 180, start=70)

# %% [markdown]
# **Look** at the arrows: they are parallel, since there is one direction to move in. Their lengths differ, and $a$
# decides. On the dashed line $a$ reads zero, and the points stay (black). Turning $a$ moves that line. An arrow never
# turns, except end for end.
#
# A push can act on 576 numbers as well as on two. A matrix of **rank** $r$ is a sum of $r$ such pushes, and of no
# fewer.
#
# ## Pushes, added one by one
#
# Here is a matrix of 5 × 19 zeros and ones that you can read. **Guess:** how many columns times rows must you add to
# write it exactly? One for each dark cell? One for each letter?

# %% tags=["nbval-check-output"]
LETTERS = ("#... .##. ###. .##.",
           "#... #..# #..# #..#",
           "#... #..# ###. ####",
           "#... #..# #.#. #..#",
           "#### .##. #..# #..#")
word = torch.tensor([[float(mark == "#") for mark in line] for line in LETTERS], device="cpu")
U, S, Vh = torch.linalg.svd(word, full_matrices=False)
r = int((S > 1e-5).sum())
alpha = 2 * r
B, A = U[:, :r] * S[:r] / (alpha / r), Vh[:r]
print(f"{r} pairs write {word.numel()} numbers, {int(word.sum())} of them dark.")
print("alpha/r times B A is the word:", torch.allclose(alpha / r * B @ A, word, atol=1e-5))

# %%
plots.pairs(B, A, alpha / r, "A word grows, one column times one row at a time")

# %% [markdown]
# **Read it line by line.** A column of $B$ (orange) times a row of $A$ (blue) is a whole matrix, their *outer
# product*; dark entries are above zero, pink ones below. The picture on the right adds it to those before. That sum
# is what the matrix product $BA$ means. The rank is at most the shorter side. Here it is no less, and pairs of 5 + 19
# numbers save nothing. A thin form pays where a large matrix has a low rank.
#
# LoRA writes its change in this form, with one number in front: $\Delta W = \frac{\alpha}{r}\,BA$. You choose
# $\alpha$; $r$ is the number of pairs.
#
# Who finds such pairs? The **singular value decomposition** (SVD) does: it writes any matrix as a sum of outer
# products, strongest first. A pair is also called a **direction**. Their strengths are the **singular values** ($S$
# in the code), and the squares of these add up to the sum of all squared entries. Stop after $r$ pairs, and you have
# the best approximation of rank $r$ (Eckart and Young, 1936). Its **error** is the length of the difference over the
# length of the matrix, each taken as one long vector.
#
# ## A real weight
#
# Now a weight of the model from Lesson 0: the query projection of layer 5. It has 576 × 576 numbers, and a pair costs
# 576 + 576 of them.

# %%
base, tokenizer = load_base(precision="float32", quiet=True)  # small differences matter in this lesson
quiz("math/thin_weight")

# %% [markdown]
# Move the rank and watch what is missing. You see one corner of the matrix; error and counts are of the whole.

# %%
W = base.model.layers[5].self_attn.q_proj.weight.detach().cpu()
U, S, Vh = torch.linalg.svd(W)

def without(r):
    return W - (U[:, :r] * S[:r]) @ Vh[:r]  # what the r strongest pairs leave

explorers.ranks({"the weight": W})

# %%
needed = next(r for r in range(1, 577) if without(r).norm() < 0.1 * W.norm())
even = W.numel() / sum(W.shape)
print(f"error under 10 % from rank {needed} on. At rank {even:.0f} the thin form costs as much as the matrix:",
      "a copy this good saves nothing." if needed >= even else "a copy this good would save something.")
compare("math/thin_weight", needed)

# %% [markdown]
# **Puzzle 1: the smallest rank that will do.** Complete the function: the smallest rank whose best approximation of
# `W` has an error of at most `bound`. The cell above builds hundreds of approximations to find it. The singular values
# alone will do. The check brings matrices of its own. Where your function fails, it draws the one that it failed on: a
# counterexample.

# %%
def smallest_rank(W, bound):
    singular_values = torch.linalg.svdvals(W)
    return len(singular_values)  # too many: how many do you need?

quiz("math/smallest_rank", smallest_rank)

# %% [markdown]
# ## Explanation: the update is what counts
#
# Fine-tuning moves each weight from $W$ to $W + \Delta W$. LoRA keeps $W$ whole and bets on $\Delta W$ alone: that
# the *change* is close to a matrix of low rank (Hu et al. 2021, section 4.1). You can check that. Train every number
# of the matrices in the blocks, the expensive way, and look at the difference. (`Steps` keeps a copy of one weight
# after each step, for later.)

# %%
train_rows = batches.encode(smart_home.commands("train", n=STEPS * BATCH, seed=SEED), tokenizer)
train_rows = batches.similar_lengths(train_rows, BATCH, seed=SEED)
collate = batches.AnswerCollator(tokenizer)

def fit(model, learning_rate, *callbacks, rows=train_rows, steps=STEPS):
    arguments = transformers.TrainingArguments(
        output_dir="runs/low_rank", max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=learning_rate,
        warmup_steps=3, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, seed=SEED, dataloader_pin_memory=torch.cuda.is_available())
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[*callbacks])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

print(f"{len(train_rows)} commands, {STEPS} steps of {BATCH}")

# %%
WATCHED = "model.layers.5.self_attn.q_proj"

class Steps(TrainerCallback):
    def on_train_begin(self, *_, model, **__):
        self.weights = [model.get_submodule(WATCHED).weight.detach().clone()]

    def on_step_end(self, *_, model, **__):
        self.weights.append(model.get_submodule(WATCHED).weight.detach().clone())

names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
tuned, FULL, rate = names, "full fine-tuning", 1e-4
if not models.has_memory(4, "it trains 5 of the 30 blocks in full, and calls that full fine-tuning"):
    tuned = [name for name in names if name.split(".")[2] in ("5", "10", "15", "20", "25")]
    FULL, rate = "5 blocks in full", 1e-3  # fewer weights have to go further in as many steps
print(f"{FULL}: {sum(base.get_submodule(name).weight.numel() for name in tuned):,} numbers in {len(tuned)} matrices")

# %%
def unfrozen():
    """A fresh model in which only the matrices in `tuned` train."""
    model = load_base(precision="float32", quiet=True)[0].requires_grad_(False)
    for name in tuned:
        model.get_submodule(name).weight.requires_grad_(True)
    return model

full, path = unfrozen(), Steps()
full_losses = fit(full, rate, plots.LiveLoss(), path)
full.zero_grad()  # hundreds of megabytes

# %% [markdown]
# How much of $\Delta W$ do its strongest directions hold? "Hold" is measured by **energy**, the sum of the squared
# numbers. Beside the update: the weight itself, and a random matrix, which has no structure at all. **Guess:** how
# many of the 576 directions hold half of the update's energy?

# %%
def energy(matrix):
    """Share of the energy that the best approximation of rank 1, 2, 3, ... keeps."""
    squares = torch.linalg.svdvals(matrix.float().cpu()) ** 2
    return (squares.cumsum(0) / squares.sum()).tolist()

def half(matrix):
    return sum(share < 0.5 for share in energy(matrix)) + 1

update = path.weights[-1] - path.weights[0]
kinds = {"the update": update, "the weight": path.weights[0], "random": torch.randn_like(update)}
curves = {kind: (range(1, 129), energy(matrix)[:128]) for kind, matrix in kinds.items()}
plots.lines(curves, "directions kept, strongest first", "share of the energy", xscale="log",
            title="Where does each reach half (0.5) of its energy?")

# %%
counts = {kind: half(matrix) for kind, matrix in kinds.items()}
print("directions that hold half of the energy:", ", ".join(f"{kind} {count}" for kind, count in counts.items()))
print("The update is", "concentrated: it needs less than half as many directions as the weight."
      if counts["the update"] < counts["the weight"] / 2 else "not much more concentrated than the weight.")

# %% [markdown]
# See it in their entries. Which of the two turns into itself sooner, as the rank goes up?

# %%
explorers.ranks({"the weight": path.weights[0], "the update": update})

# %% [markdown]
# (Noise, too, has stronger and weaker directions, by chance. And the energy kept is 1 − error²: half of it is a
# milder test than the error of 10 % that the weight had to meet above. Compare curves, not these two numbers.)
#
# ## A control: is that the task, or only few steps?
#
# Do not trust the count yet. It may have nothing to do with the task. Two controls, with the same model and
# optimizer:
#
# - **The steps, shuffled.** Each of the steps you kept, with its rows and columns put in an order of its own. Each is
#   as strong and as concentrated as before, but no two share their directions any more. If the low count came from
#   the small number of steps, the shuffled sum would need as few directions as the update.
# - **Random answers.** The same commands, but random tokens in place of each answer. All that is left to learn is that
#   every token is as likely as any other, a loss of $\ln 49152 \approx 10.8$ a token, and where the end comes. (Half as
#   many steps, to save time.)

# %%
quiz("math/random_answers")

# %%
random.seed(SEED)
random_rows = []
for row in train_rows[: len(train_rows) // 2]:
    ids, length = list(row["input_ids"]), row["answer_length"]
    ids[-length:-1] = [random.randrange(len(tokenizer)) for _ in range(length - 1)]  # the end of text stays
    random_rows.append(row | {"input_ids": ids})

control, control_path = unfrozen(), Steps()
fit(control, rate, plots.LiveLoss(), control_path, rows=random_rows, steps=STEPS // 2)
del control

# %%
def shuffled(weights):
    total, sums = torch.zeros_like(weights[0]), [weights[0]]
    for before, after in zip(weights, weights[1:]):
        rows, columns = (torch.randperm(side, device=after.device) for side in after.shape)
        total = total + (after - before)[rows][:, columns]
        sums.append(weights[0] + total)
    return sums

runs = {"the task": path.weights, "random answers": control_path.weights, "steps shuffled": shuffled(path.weights)}
trend = {}
for kind, weights in runs.items():
    steps = range(2, len(weights), 2)  # the first step of a warm-up has length zero
    trend[kind] = steps, [half(weights[step] - weights[0]) for step in steps]
plots.lines(trend, "steps", "directions for half of the energy", title="Few steps? The task? Two controls")

# %%
task, few, by_chance = (dict(zip(*trend[kind])) for kind in ("the task", "steps shuffled", "random answers"))
last, common = max(task), max(by_chance)
print(f"Few steps: shuffled, {last} steps need {few[last]} directions, the update {task[last]}.",
      "The steps share directions; their small number is not the whole reason." if few[last] > 1.5 * task[last]
      else "Few steps alone would explain the count.")
print(f"The task: after {common} steps random answers need {by_chance[common]} directions, the task {task[common]}.",
      "Without a task to learn the count is low as well: alone it is no sign of an easy task."
      if by_chance[common] < counts["random"] / 2 else "What there is to learn makes the difference.")
compare("math/random_answers", by_chance[common] / task[common])

# %% [markdown]
# What do the steps share, then? Each gradient is a sum of outer products, one for each token: how the output should
# move, times the token's input to this layer. Have the inputs much in common? Look at those of one batch:

# %%
seen, batch = [], collate(train_rows[:BATCH]).to(base.device)
hook = base.get_submodule(WATCHED).register_forward_pre_hook(
    lambda _, inputs: seen.append(inputs[0][batch["attention_mask"].bool()]))
with torch.no_grad():
    base(**batch)
hook.remove()
inputs, noise = seen[0], torch.randn_like(seen[0])
print(f"{len(inputs)} inputs of this layer: {half(inputs)} directions hold half of their energy,",
      f"of as many random ones {half(noise)}.")

# %% [markdown]
# (A likely reason, not a proof: AdamW divides each entry of a gradient by its usual size, so a step is no gradient,
# and its momentum makes each step resemble the one before.)
#
# ## Does the rest matter?
#
# Energy cannot say which directions the task needs. The task can: keep only the strongest directions of *every*
# update, put the model together again, and give it the test commands.

# %%
quiz("math/rank_one")

# %%
test = smart_home.commands("test combinations", 50, SEED) + smart_home.commands("test phrasings", 50, SEED)
whole = scoring.quick_score(full, tokenizer, test, progress="the whole update")
parts = {}
with Progress("the strongest directions of every update", total=len(tuned)) as bar:
    for name in tuned:
        change = full.get_submodule(name).weight - base.get_submodule(name).weight
        parts[name] = torch.svd_lowrank(change.detach().cpu(), q=24, niter=4)  # a quick SVD: the first 24 alone
        bar.update(1)
print("the whole update:", whole)

# %%
shortened, cut = load_base(precision="float32", quiet=True)[0], {}
for r in (0, 1, 2, 4, 8):
    for name, (left, strengths, right) in parts.items():
        change = (left[:, :r] * strengths[:r]) @ right[:, :r].T
        weight = base.get_submodule(name).weight.detach()
        shortened.get_submodule(name).weight.data = weight + change.to(weight)
    cut[r] = scoring.quick_score(shortened, tokenizer, test, progress=f"rank {r}")
del shortened

bars = {f"rank {r} (loss {score.loss:.2f})": score for r, score in cut.items()}
bars[f"whole (loss {whole.loss:.2f})"] = whole
plots.score_bars(bars, "What is left of the score when the update is cut?")

# %%
print("Answers:", scoring.verdict(cut[8], whole, "cut to rank 8", "the whole update"))
ratio = cut[8].loss / whole.loss
print(f"Held-out loss: {ratio:.1f} times that of the whole update.", "The tail is not idle: without it the model is "
      "less sure of the answers." if ratio > 1.1 else "The tail does not show in the loss.")
compare("math/rank_one", cut[1].exact)

# %% [markdown]
# **Analogy.** A rank-1 update is one instruction: *whenever the input points this way, push the output that way*. The
# full update is a page of such instructions, the strongest on top. LoRA hands the model a form with $r$ lines.
#
# (Do not read the rank that you need off such a cut: trained at that rank, an adapter finds directions of its own.)
# The task here is narrow. Where training has more to write, such as a new language, expect a longer tail, and LoRA to
# fall behind: Biderman et al., *LoRA Learns Less and Forgets Less* (2024), measured that on code and mathematics.
#
# ## Code: LoRA by hand
#
# To cut an update down you need a full fine-tuning first. LoRA trains the thin form from the start. The frozen $W$
# and the two thin matrices side by side, to scale; here for a value projection, which has 192 outputs:

# %%
explorers.mechanism(base.model.layers[5].self_attn.v_proj, "the value projection of layer 5")

# %% [markdown]
# $A$ (r × d_in) reads $r$ numbers, $B$ (d_out × r) pushes along $r$ directions. That is all there is to write:

# %%
class LoRALinear(nn.Module):
    def __init__(self, base, r, alpha, dropout=0.0):
        super().__init__()
        self.base, self.scaling, self.dropout = base, alpha / r, nn.Dropout(dropout)
        self.A = nn.Linear(base.in_features, r, bias=False)
        self.B = nn.Linear(r, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.A.weight, a=5**0.5)
        nn.init.zeros_(self.B.weight)
        self.to(base.weight.device, base.weight.dtype)

    def forward(self, x):
        return self.base(x) + self.B(self.A(self.dropout(x))) * self.scaling

print(LoRALinear(nn.Linear(576, 192), r=8, alpha=16))

# %% [markdown]
# Freeze the model and put the layer in place of every linear layer in the blocks. Beside it, let PEFT do the same.
# Both start from the same seed and draw their random numbers in the same order.

# %%
by_hand = load_base(precision="float32", quiet=True)[0].requires_grad_(False)
set_seed(SEED)
for name in names:
    parent, _, child = name.rpartition(".")
    setattr(by_hand.get_submodule(parent), child, LoRALinear(by_hand.get_submodule(name), r=8, alpha=16))

set_seed(SEED)
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
by_peft = get_peft_model(load_base(precision="float32", quiet=True)[0], config)
for model in (by_hand, by_peft):
    print(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters train")

# %% [markdown]
# Are they the same? Compare all A and B, then the outputs and the gradients on one batch: the largest difference,
# relative to the largest entry.

# %%
def off(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()

def show_differences():
    pairs, logits = [], []
    for name in names:
        ours, theirs = by_hand.get_submodule(name), by_peft.base_model.model.get_submodule(name)
        pairs += [(ours.A.weight, theirs.lora_A["default"].weight), (ours.B.weight, theirs.lora_B["default"].weight)]
    for model in (by_hand, by_peft):
        model.train().zero_grad()
        output = model(**collate(train_rows[:BATCH]).to(base.device))
        output.loss.backward()
        logits.append(output.logits.detach())
    print(f"{len(pairs)} matrices {max(off(a.data, b.data) for a, b in pairs):.1g}, logits {off(*logits):.1g},",
          f"gradients {max(off(a.grad, b.grad) for a, b in pairs):.1g}")

show_differences()

# %% [markdown]
# Zero means: the same bits. With B at zero the logits had to agree; the gradients of B, and what training makes of
# both, are the test. (Another order of summing would leave about 1e-7, the seventh digit of float32.) Now train both
# on the same batches, and compare once more. (Run one of the two cells again, and that model trains on. To start
# over, run the cell that builds both.)

# %%
hand_losses = fit(by_hand, 2e-3, plots.LiveLoss())

# %%
peft_losses = fit(by_peft, 2e-3, plots.LiveLoss())

# %%
show_differences()
apart = max(abs(a - b) / b for a, b in zip(hand_losses, peft_losses))
print(f"largest relative difference of the {STEPS} losses: {apart:.1g}")
print("Your layer is PEFT's." if apart < 1e-3 else "They drifted apart: look where the first difference is.")
by_hand_score = scoring.quick_score(by_hand, tokenizer, test, progress="scoring")
print("Answers:", scoring.verdict(by_hand_score, whole, "LoRA of rank 8", FULL))

# %% [markdown]
# The last line is no race: one seed, few steps, and rates that nobody tuned. (The best rates published for LoRA are
# about ten times those of full fine-tuning: Schulman et al. 2025.) Lesson 0 gave the same adapter more steps: compare
# its score. PEFT adds what production needs: saving, merging, several adapters, quantised layers.
#
# **Puzzle 2: the layer, from memory.** Complete `forward` without looking up. This time A and B are bare parameters:
# A is (r × d_in), B is (d_out × r), and `x` is (..., d_in).

# %%
class MyLoRALinear(nn.Module):
    def __init__(self, base, r, alpha, dropout=0.0):
        super().__init__()
        self.base, self.scaling, self.dropout = base, alpha / r, nn.Dropout(dropout)
        self.A = nn.Parameter(torch.randn(r, base.in_features, device=base.weight.device))
        self.B = nn.Parameter(torch.zeros(base.out_features, r, device=base.weight.device))

    def forward(self, x):
        return self.base(x)  # add what is missing

quiz("math/lora_forward", MyLoRALinear)

# %% [markdown]
# ## What just happened? Two matrices, four starts
#
# Both trainings began with A random and B zero. Why not both zero, or both random? Commit to two predictions.

# %%
quiz("math/first_step")

# %%
quiz("math/noise_start")

# %%
def start(A_random, B_random):
    set_seed(SEED)
    for name in names:
        layer = by_hand.get_submodule(name)
        for matrix, drawn in ((layer.A, A_random), (layer.B, B_random)):
            nn.init.kaiming_uniform_(matrix.weight, a=5**0.5) if drawn else nn.init.zeros_(matrix.weight)
    return torch.optim.AdamW([p for p in by_hand.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)

def largest_gradient(which):
    return max(getattr(by_hand.get_submodule(name), which).weight.grad.abs().max().item() for name in names)

STARTS = {"A random, B zero": (True, False), "A zero, B random": (False, True), "both zero": (False, False),
          "both random": (True, True)}
print(f"{len(STARTS)} ways to start the {len(names)} layers that you made")

# %%
losses, rows, prose = {kind: [] for kind in STARTS}, [], {"base": scoring.perplexity(base, tokenizer)}
with Progress("four starts", total=4 * 6) as bar:
    for kind, drawn in STARTS.items():
        optimizer, gradients = start(*drawn), {}
        prose[kind] = scoring.perplexity(by_hand, tokenizer)
        for step in range(1, 7):
            optimizer.zero_grad()
            loss = by_hand.train()(**collate(train_rows[step * BATCH : step * BATCH + 4]).to(base.device)).loss
            loss.backward()
            losses[kind].append(loss.item())
            gradients |= {f"gradient of {m}, step {step}": f"{largest_gradient(m):.2g}" for m in "AB" if step < 3}
            optimizer.step()
            bar.update(1)
        rows.append({"start": kind} | gradients)

# %%
table(rows)

# %% [markdown]
# **Look** at step 1, then at step 2. The formulas say why. With $y = Wx + \frac{\alpha}{r} B A x$:
#
# $$\frac{\partial L}{\partial B} = \frac{\alpha}{r}\, \frac{\partial L}{\partial y}\, (Ax)^\top \qquad
# \frac{\partial L}{\partial A} = \frac{\alpha}{r}\, B^\top \frac{\partial L}{\partial y}\, x^\top$$
#
# Each gradient has the *other* matrix as a factor. Where B is zero, A gets no gradient at step 1. B moves, and at
# step 2 A wakes. Where both are zero, each waits for the other, for ever. Where both are random, nothing waits, but
# $BA$ is not zero: every layer adds noise before training has begun. What does that cost?

# %%
plots.lines({kind: (range(1, 7), values) for kind, values in losses.items()}, "step", "training loss", yscale="log",
            title="Four starts: which of them learn, and from where?")

# %%
for kind in STARTS:
    print(f"{kind:17} loss {losses[kind][0]:.2f} at step 1, {losses[kind][-1]:.2f} at step 6; "
          f"perplexity of prose at the start {prose[kind]:.0f}, the base has {prose['base']:.0f}")
learns = losses["both random"][-1] < losses["both random"][0] / 2
print("From the noise, the task's loss", "more than halves" if learns else "does not halve", "in six steps.")
compare("math/noise_start", prose["both random"] / prose["base"])

# %% [markdown]
# (Where nothing learns, the loss still moves: each step brings other commands. And the curves do not say that a
# random B is the better start. Its entries are larger than A's here, so the same learning rate moves the product
# further. Hayou et al., *The Impact of Initialization on LoRA Finetuning Dynamics* (2024), tuned the rate for each
# and found random A, zero B better.)
#
# ## Counting
#
# $A$ has $r \cdot d_{in}$ entries and $B$ has $d_{out} \cdot r$, so a layer costs $r\,(d_{in} + d_{out})$.
#
# **Puzzle 3: count before you build.** A model has 24 layers, hidden size 2048, MLP size 8192, 16 query heads and 4
# key-value heads of 128 each. Rank 16 on all seven linear layers of a block (q, k, v, o, gate, up, down): how many
# parameters train? Write the arithmetic, not only the result. The check asks PEFT.

# %%
my_count = 0
quiz("math/count_for_new_model", my_count)

# %% [markdown]
# Now a count that somebody printed. This course grew from a card, one page about LoRA. It shows a line that Llama-2-7B
# is said to print with $r = 8$ on the query and value projections, 4096 × 4096 each, in 32 layers. Could it be real?
# You can tell without running anything.

# %%
quiz("math/printed_count")

# %% [markdown]
# Settle it three ways: by formula, by code, by PEFT. The model has its true shapes and no weights: on the *meta*
# device a tensor is a shape without memory.

# %% tags=["nbval-check-output"]
llama_7b = LlamaConfig(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
                       num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32)
q_and_v = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
with torch.device("meta"):
    seven_b = get_peft_model(LlamaForCausalLM(llama_7b), q_and_v)

one_layer = 8 * (4096 + 4096)
by_code = sum(p.numel() for name, p in seven_b.named_parameters() if "lora_" in name)
by_library, total = seven_b.get_nb_trainable_parameters()
print(f"by formula {one_layer * 2 * 32:,}, by code {by_code:,}, by PEFT {by_library:,}")
print(f"of {total:,} in all: {by_library / total:.4%}, or one in {total / by_library:,.0f}")
print(f"the card: {4_194_816:,} leaves {4_194_816 % one_layer} over when divided by {one_layer:,}, "
      f"and is {4_194_816 / 3_251_449_856:.2%} of its total")

# %% [markdown]
# Parameters are not bytes. The adapter's *file* holds the trained entries in some precision, plus a header.

# %% tags=["nbval-check-output"]
adapter = get_peft_model_state_dict(seven_b, save_embedding_layers=False)
for dtype in (torch.float32, torch.bfloat16):
    zeros = {name: torch.zeros(tensor.shape, dtype=dtype, device="cpu") for name, tensor in adapter.items()}
    print(f"adapter_model.safetensors in {dtype}: {len(save(zeros, metadata={'format': 'pt'})):,} bytes")

# %% [markdown]
# ## Cost: what LoRA saves, and what it does not
#
# A training step holds the weights, a **gradient** for each one that trains, AdamW's **two running means** for each
# of those, and the **activations**: what the forward pass keeps for the backward pass. How much of it does LoRA save?

# %%
quiz("math/cost_total")

# %% [markdown]
# Activations are the one part that you cannot count from the parameters. PyTorch lets you watch instead:
# `saved_tensors_hooks` calls a function of yours with each tensor that autograd puts aside for the backward pass.

# %%
def kept_for_backward(model, batch):
    """Bytes of the tensors that autograd keeps, without the model's own weights; and the loss."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}
    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).loss
    return sum(kept.values()), loss

print(f"by PEFT, rank 8: {kept_for_backward(by_peft.train(), batch)[0] / 1e6:.0f} MB of activations")

# %%
def adapted(r, layers):
    return get_peft_model(load_base(precision="float32", quiet=True)[0], LoraConfig(r=r, target_modules=layers))

def cost(model):
    """Bytes by part, and what a forward and a backward pass compute, in FLOP."""
    activations, loss = kept_for_backward(model.train(), batch)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(**batch)
    model.zero_grad()
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in model.parameters()) - trained
    return ({"weights": frozen + trained, "gradient": trained, "optimizer": 2 * trained, "activation": activations},
            frozen, forward.get_total_flops(), backward.get_total_flops())

# %%
costs = {}
kinds = {"all, embedding too": full.requires_grad_(True), "LoRA, q and v, rank 8": adapted(8, ["q_proj", "v_proj"]),
         "LoRA, all linear, rank 8": by_peft, "LoRA, all linear, rank 64": adapted(64, "all-linear")}
for kind, model in kinds.items():
    costs[kind] = cost(model)
plots.memory({kind: parts for kind, (parts, *_) in costs.items()}, title="Where the memory of a training step goes")

# %%
table([{"training": kind, "frozen weights, MB": f"{frozen / 1e6:,.0f}",
        "trained": f"{(parts['weights'] - frozen) / 1e6:,.0f}", "gradients": f"{parts['gradient'] / 1e6:,.0f}",
        "AdamW's means": f"{parts['optimizer'] / 1e6:,.0f}", "activations": f"{parts['activation'] / 1e6:,.0f}",
        "total": f"{sum(parts.values()) / 1e6:,.0f}", "GFLOP forward": f"{forward / 1e9:.0f}",
        "backward": f"{backward / 1e9:.0f}"} for kind, (parts, frozen, forward, backward) in costs.items()])

# %%
every, _, every_forward, every_backward = costs["all, embedding too"]
for kind, (parts, _, forward, backward) in list(costs.items())[1:]:
    print(f"{kind}: memory {sum(parts.values()) / sum(every.values()) - 1:+.0%}, activations alone "
          f"{parts['activation'] / every['activation'] - 1:+.0%}; computing {forward / every_forward - 1:+.0%} "
          f"forward, {backward / every_backward - 1:+.0%} backward")
ranks = [costs[f"LoRA, all linear, rank {r}"][0] for r in (64, 8)]
stays = ranks[1]["weights"] + ranks[1]["activation"]
print(f"From rank 64 down to 8 the whole step saves {1 - sum(ranks[1].values()) / sum(ranks[0].values()):.0%}. "
      f"Of what rank 8 takes, {stays / sum(ranks[1].values()):.0%} are weights and activations.")
compare("math/cost_total", sum(ranks[1].values()) / sum(every.values()))

# %% [markdown]
# **Look** at the bars part by part. Gradients and AdamW's means follow what trains: that is LoRA's saving. The frozen
# weights are all still there (Lesson 3 makes those smaller). Activations shrink by what the lines say: a frozen layer
# without an adapter need not keep its input, and a frozen norm neither. But the backward pass still travels through
# every layer, and needs what it meets there. It computes the gradients of the activations, and no longer those of the
# frozen weights.
#
# A LoRA run goes out of memory, and you think of a lower rank? The last line says what that can save here, and what a
# rank hardly touches.
#
# ## Common gotcha: the forgotten scaling
#
# The same card writes the forward pass as $y = Wx + BAx$. Take a layer of the adapter you trained and see what that
# does.

# %%
layer = by_peft.base_model.model.model.layers[5].self_attn.q_proj
x = torch.randn(4, layer.in_features, device=base.device)
with torch.no_grad():
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    y, Wx, BAx = layer(x), layer.base_layer(x), x @ A.T @ B.T
    scaling = layer.scaling["default"]
    print(f"what the adapter adds, at most   {(y - Wx).abs().max().item():.4f}")
    print(f"error of Wx + BAx                {(y - (Wx + BAx)).abs().max().item():.4f}")
    print(f"error of Wx + (alpha/r) BAx      {(y - (Wx + scaling * BAx)).abs().max().item():.1e}")

# %% [markdown]
# With $\alpha/r = 2$ the card's formula misses half of what the adapter does. Export A and B to another program
# without the factor, and no error tells you that the model there does something else than the one you trained.
#
# **Puzzle 4: merge by hand.** Return one weight that does what the base and its adapter do together, so that the
# adapter can be thrown away. Shapes: `W` (d_out × d_in), `A` (r × d_in), `B` (d_out × r). Lesson 6 builds on it.

# %%
def merged(W, A, B, alpha, r):
    return W

quiz("math/merged_weight", merged)

# %% [markdown]
# ## Error recovery
#
# Three mistakes that people make when they build it themselves. Two raise an error. **Guess:** which one does not?

# %%
def swapped():
    down, up = nn.Linear(8, 192), nn.Linear(576, 8)
    return up(down(torch.randn(1, 576, device=down.weight.device)))

def all_frozen():
    layer = LoRALinear(nn.Linear(576, 192), r=8, alpha=16).requires_grad_(False)
    layer(torch.randn(1, 576, device=layer.A.weight.device)).sum().backward()

def nothing_frozen():
    layer = LoRALinear(nn.Linear(576, 192), r=8, alpha=16)
    print("trainable:", [name for name, p in layer.named_parameters() if p.requires_grad])

for mistake in (swapped, all_frozen, nothing_frozen):
    try:
        mistake()
    except RuntimeError as error:
        print(f"{mistake.__name__}: {error}")

# %% [markdown]
# - **shapes cannot be multiplied**: A comes first (d_in to r), then B (r to d_out).
# - **does not require grad**: everything is frozen. Freeze the model *first*, then put the new layers in.
# - **no error**: the base trains too. You pay for full fine-tuning, and the file of A and B is only part of what
#   changed. Print what is trainable, always.
#
# ## Experienced-dev note
#
# - $BA$ has rank *at most* $r$, and 0 at the start. The rank is a ceiling, not a target. Nor can you read the rank that
#   you need off an update that was cut: train at rank 1 or 2 and compare.
# - On `nn.Embedding`, PEFT starts the other way round: A zero, B random.
# - A and B are not unique: $(BM)(M^{-1}A)$ is the same update for any invertible $M$. Compare or average products,
#   never A with A and B with B.
# - `get_nb_trainable_parameters` and `print_trainable_parameters` know about packed 4-bit weights, where one entry
#   holds two; `sum(p.numel() ...)` does not.
#
# ## Check your understanding: an adapter from two weights
#
# Somebody publishes a merged model and no adapter. You have its base. **Guess:** if you subtract the two weights,
# what will the singular values of the difference look like? Here is the adapter that you trained, merged.

# %%
W = layer.base_layer.weight.detach()
whole_weight = W + layer.get_delta_weight("default").detach()
seen = {"kept in float32": torch.linalg.svdvals((whole_weight - W).cpu()).tolist(),
        "kept in bfloat16": torch.linalg.svdvals((whole_weight.bfloat16().float() - W).cpu()).tolist()}
for kind, strengths in seen.items():
    print(f"merged weight {kind}:", ", ".join(f"{strength:.1e}" for strength in strengths[:12]))
plots.lines({kind: (range(1, 33), strengths[:32]) for kind, strengths in seen.items()}, "number", "singular value",
            yscale="log", title="Can you see the rank of a merged adapter?")

# %% [markdown]
# Where the line breaks off, the adapter ends. Published weights are usually kept in 16 bits: their rounding is a floor
# that hides what lies below it.
#
# **Puzzle 5, the one worth doing: recover the adapter.** Return `A` (r × d_in) and `B` (d_out × r) such that `merged`
# is `W + B @ A`. You will not find the A and B that were trained: the note above says why. Which ones are as good?

# %%
def recovered(W, merged, r):
    A = torch.zeros(r, W.shape[1], device=W.device)
    B = torch.zeros(W.shape[0], r, device=W.device)
    return A, B

quiz("math/recovered", recovered)

# %%
progress()

# %% [markdown]
# ## Recap
#
# - A matrix of rank $r$ is $r$ pushes: read a number, move along a direction. A weight may take many. What
#   counts is how many an *update* takes for your task, and you know how to look.
# - LoRA is $W$ frozen plus $\frac{\alpha}{r}BA$, with B zero at the start. It costs $r\,(d_{in} + d_{out})$ per
#   layer.
# - It saves gradients, optimizer state and disk. Frozen weights stay, and so do the activations that the backward
#   pass needs.
#
# Next: [Lesson 2](02_config_and_targets.ipynb) says which layers should get how much, and how to notice when they do
# not.
#
# Sources: Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models* (2021), sections 4.1 and 7.2; Aghajanyan et
# al., *Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning* (2020); Eckart and Young,
# *The approximation of one matrix by another of lower rank* (1936).
#
# *Lessons:* ← [0 · Your first adapter](00_first_adapter.ipynb) ·
# [2 · LoraConfig and target modules: saying where and how much](02_config_and_targets.ipynb) →
