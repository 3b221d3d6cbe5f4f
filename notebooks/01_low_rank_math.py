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
# Lesson 0 trained less than two percent of a model's size and got the job done. Here you find out why that can work:
# you look into weights and into what training does to them, build LoRA yourself in a dozen lines, and prove your layer
# equal to PEFT's.
#
# **You will be able to** say what rank is and see it, write a LoRA layer from memory, count its parameters for any
# model, and tell what LoRA saves from what it does not.
#
# **You need** [Lesson 0](00_first_adapter.ipynb), and matrix multiplication. The singular value decomposition is
# introduced where it is used.
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: not recorded),
# and up to 4 GB of memory,
# because one part trains all weights of the model. A machine that has less, such as Binder's with 2 GB, trains five
# blocks in full there instead of all thirty: the lesson finds out by itself and says so.
#
# ## Why this matters
#
# "Low rank" is a bet: that what fine-tuning has to change in a weight is far simpler than the weight. If the bet
# holds for your task, you can train a tiny part of the parameters. If it does not, you need a rank so high that
# little is saved. So you should know how to look.

# %%
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
import torch
from IPython.display import display
from lora_lab import batches, compare, load_base, models, plots, progress, quiz, scoring, smart_home
from lora_lab.course import explorers
from lora_lab.display import Progress, table
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

SEED, STEPS, BATCH = 0, 20, 8
set_seed(SEED)
base, tokenizer = load_base(precision="float32")  # small differences matter in this lesson

# %% [markdown]
# ## Rank, seen
#
# The **rank** of a matrix is the number of independent directions it can send its input to. A matrix of rank 1 is one
# column times one row: however big it is, all it can do is measure the input along one direction and push the output
# along another. A matrix of rank $r$ is a sum of $r$ such pairs, so $r$ columns and $r$ rows describe all of it.
#
# The **singular value decomposition** (SVD) writes any matrix as such a sum, strongest pair first. Cut the sum after
# $r$ pairs, and you have the best approximation of rank $r$ there is (Eckart and Young, 1936).
#
# Here is a real weight of the model, the query projection of layer 5 with its 576 × 576 numbers: one corner of it as an
# image, beside the same corner of the best approximation and of what that misses. Error and counts are of the whole.
#
# **Predict, then run.** Then move the slider (or give it focus and use the arrow keys), and watch the count in the
# title: when does the thin form cost more than the matrix?

# %%
quiz("math/thin_weight")

# %%
W = base.model.layers[5].self_attn.q_proj.weight.detach().float().cpu()
U, S, Vh = torch.linalg.svd(W)

def look(r):
    W_r = (U[:, :r] * S[:r]) @ Vh[:r]  # the r strongest pairs
    error = (W - W_r).norm() / W.norm()
    count = r * (W.shape[0] + W.shape[1])
    corner = slice(0, 64), slice(0, 64)  # all of it would be too fine to see
    return plots.matrices({f"W: {W.numel():,} numbers": W[corner], f"rank {r}: {count:,} numbers": W_r[corner],
                           f"what is missing: error {error:.0%}": (W - W_r)[corner]})

missing = ((S**2).sum() - (S**2).cumsum(0)).clamp(min=0).sqrt() / W.norm()
print("error under 10 % from rank", int((missing > 0.1).sum()) + 1, "on; the thin form costs as much at", 576 // 2)
explorers.slide(look, "rank", 1, 400, start=8)

# %%
compare("math/thin_weight", int((missing > 0.1).sum()) + 1)

# %% [markdown]
# A weight of a trained model is *not* of low rank: to get the error under 10 % you need a rank at which the thin form
# is no smaller than the matrix itself. If LoRA replaced weights by thin matrices, it would ruin the model. It does not.

# %%
quiz("math/break_even")

# %% [markdown]
# ## Explanation: the update is what counts
#
# Fine-tuning moves each weight from $W$ to $W + \Delta W$. LoRA keeps $W$ whole and bets on $\Delta W$ only: that the
# *change* is close to a matrix of low rank (Hu et al. 2021, section 4.1). You can check that. Fine-tune the model the
# expensive way, all weights trainable, and look at the difference.
#
# **Predict.** Will the difference between the two weights be a matrix of low rank, or full of small changes everywhere?

# %%
train_rows = batches.encode(smart_home.commands("train", n=STEPS * BATCH, seed=SEED), tokenizer)
train_rows = batches.similar_lengths(train_rows, BATCH, seed=SEED)
collate = batches.AnswerCollator(tokenizer)
print(f"{len(train_rows)} commands in {STEPS} batches")

def fit(model, learning_rate, callbacks=None):
    arguments = TrainingArguments(
        output_dir="runs/low_rank", max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=learning_rate,
        warmup_steps=3, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, seed=SEED, dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=train_rows, data_collator=collate, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.zero_grad()  # for a full fine-tuning, half a gigabyte
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

# %%
names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
set_seed(SEED)
full, _ = load_base(precision="float32")
tuned, FULL, learning_rate = names, "full fine-tuning", 1e-4
if not models.has_memory(5, "it trains 5 of the 30 blocks in full, and calls that full fine-tuning"):
    tuned = [name for name in names if name.split(".")[2] in ("5", "10", "15", "20", "25")]
    FULL, learning_rate = "5 blocks in full", 1e-3  # fewer weights have to go further in as many steps
    full.requires_grad_(False)
    for name in tuned:
        full.get_submodule(name).requires_grad_(True)
full_losses = fit(full, learning_rate, callbacks=[plots.LiveLoss()])

# %% [markdown]
# (The learning rate for all blocks is twenty times lower than LoRA's in Lesson 0. Why the two need different ones, and
# which is best for each, is measured in Lesson 4.)
#
# Now the question: how much of each $\Delta W$ do its strongest directions hold? "Hold" is measured by energy, the sum
# of squared entries. Beside it: the weight itself, and a random matrix of the same size, which has no structure at all.

# %%
quiz("math/half_energy")

# %%
def energy(matrix):
    """Share of the squared entries that the best approximation of rank 1, 2, 3, ... keeps."""
    squares = torch.linalg.svdvals(matrix.detach().float().cpu()) ** 2
    return (squares.cumsum(0) / squares.sum()).tolist()

update = {name: (full.get_submodule(name).weight - base.get_submodule(name).weight).detach() for name in tuned}
for name in ("model.layers.5.self_attn.q_proj", "model.layers.5.mlp.up_proj"):
    weight = base.get_submodule(name).weight
    kept = {"the update": energy(update[name]), "the weight": energy(weight),
            "a random matrix": energy(torch.randn(weight.shape, device=weight.device))}
    for kind, shares in kept.items():
        half = sum(share < 0.5 for share in shares) + 1
        print(f"{name}, {kind}: the top 8 directions hold {shares[7]:.0%}; half takes {half}")
    curves = {kind: (range(1, len(shares) + 1), shares) for kind, shares in kept.items()}
    display(plots.lines(curves, "rank (directions kept)", "share of energy", mark=8, xscale="log"))

# %%
compare("math/half_energy", sum(share < 0.5 for share in energy(update["model.layers.5.self_attn.q_proj"])) + 1)

# %% [markdown]
# **Look** at the left ends. The update's curve climbs far ahead of the other two: training wrote most of its change
# into few directions, in an attention weight as in an MLP weight. The weights themselves look much more like the
# random matrix. But neither update *is* of low rank: the tail is long.
#
# Does the tail matter? Energy cannot say. The task can: keep only the $r$ strongest directions of every update, put the
# model together again, and give it the test commands.

# %%
quiz("math/rank_one")

# %%
test = smart_home.commands("test combinations", 50, SEED) + smart_home.commands("test phrasings", 50, SEED)
parts = {}
with Progress("SVD of every update", total=len(tuned)) as bar:
    for name in tuned:
        left, strengths, right = torch.linalg.svd(update[name].float().cpu(), full_matrices=False)
        parts[name] = left[:, :16].clone(), strengths[:16], right[:16].clone()  # the rest would fill half a gigabyte
        bar.update(1)

# %%
RANKS = [0, 1, 2, 4, 8, 16]
truncated = {}
for r in RANKS:
    for name, (left, strengths, right) in parts.items():
        change = (left[:, :r] * strengths[:r]) @ right[:r]
        weight = base.get_submodule(name).weight
        full.get_submodule(name).weight.data = weight.detach() + change.to(weight)
    truncated[r] = scoring.quick_score(full, tokenizer, test, progress=f"rank {r}")
for name in tuned:
    full.get_submodule(name).weight.data = base.get_submodule(name).weight.detach() + update[name]
truncated["all"] = scoring.quick_score(full, tokenizer, test)
table([{"rank kept of each update": r, "exact match": f"{score.exact:.0%}", "held-out loss": f"{score.loss:.3f}"}
             for r, score in truncated.items()])

# %%
compare("math/rank_one", truncated[1].exact)

# %% [markdown]
# A handful of directions in each layer carry most of the skill, although they hold only part of the energy. That is
# the bet of LoRA, won: for *this* task, a job with a narrow answer that 160 commands taught. Where training
# has much more to write (a new language, a new field of knowledge), expect a longer tail, and expect LoRA to fall
# behind full fine-tuning: Biderman et al., *LoRA Learns Less and Forgets Less* (2024), measured that on code and
# mathematics.
#
# (Where all weights were trained, rank 0 is not exactly the base: embeddings and norms keep their change.)
#
# **Analogy.** A rank-1 update is one instruction: *whenever the input points this way, push the output that way*. The
# full update is a page of such instructions, the important ones on top. LoRA hands the model a form with $r$ lines.

# %%
quiz("math/energy_order")

# %% [markdown]
# ## Code: LoRA by hand
#
# Cutting down a finished update needs a full fine-tuning first. LoRA trains the thin form from the start:
# $\Delta W = \frac{\alpha}{r} BA$. $A$ (r × d_in) measures the input along $r$ directions, $B$ (d_out × r) says where
# to push the output, $\alpha/r$ is the scaling. That is all there is to write:

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
# Freeze the model and put the layer in place of every linear layer inside the blocks. Beside it, PEFT's version of the
# same. Both use the same seed, and both draw their random numbers in the same order.

# %%
by_hand, _ = load_base(precision="float32")
by_hand.requires_grad_(False)
set_seed(SEED)
for name in names:
    parent, _, child = name.rpartition(".")
    setattr(by_hand.get_submodule(parent), child, LoRALinear(by_hand.get_submodule(name), r=8, alpha=16))

fresh, _ = load_base(precision="float32")
set_seed(SEED)
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
by_peft = get_peft_model(fresh, config)
for model in (by_hand, by_peft):
    print(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters train")

# %% [markdown]
# Are they the same? Compare all A and B, then the outputs and the gradients on one batch.

# %%
def pairs():
    """A and B of each layer, by hand and by PEFT."""
    for name in names:
        ours, theirs = by_hand.get_submodule(name), by_peft.base_model.model.get_submodule(name)
        yield ours.A.weight, theirs.lora_A["default"].weight
        yield ours.B.weight, theirs.lora_B["default"].weight

def off(a, b):
    """The largest difference, relative to the largest entry."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()

print(len(list(pairs())), "matrices by hand,", len(list(pairs())), "by PEFT")

# %%
def show_differences():
    batch, logits = collate(train_rows[:BATCH]).to(base.device), []
    for model in (by_hand, by_peft):
        model.train().zero_grad()
        output = model(**batch)
        output.loss.backward()
        logits.append(output.logits.detach())
    print("A and B  ", max(off(a.data, b.data) for a, b in pairs()))
    print("logits   ", off(*logits))
    print("gradients", max(off(a.grad, b.grad) for a, b in pairs()))

show_differences()

# %% [markdown]
# Nothing differs, or only in the last digits that a float32 can hold. Now train both on the same batches, and compare
# the curves and, once more, everything else. (Run one of the two cells again and that model trains on; to start over,
# run the cell that builds both.)

# %%
hand_losses = fit(by_hand, 2e-3, callbacks=[plots.LiveLoss()])

# %%
peft_losses = fit(by_peft, 2e-3, callbacks=[plots.LiveLoss()])

# %%
steps = range(1, STEPS + 1)
apart = max(abs(a - b) / b for a, b in zip(hand_losses, peft_losses))
print(f"largest relative difference of the {STEPS} losses: {apart:.1e}")
show_differences()
plots.lines({"by hand": (steps, hand_losses), "PEFT": (steps, peft_losses), FULL: (steps, full_losses)},
            "step", "training loss", yscale="log")

# %%
scores = {"LoRA by hand, rank 8": scoring.quick_score(by_hand, tokenizer, test, progress="scoring"),
          FULL: truncated["all"], "its update cut to rank 8": truncated[8]}
for name, score in scores.items():
    print(f"{name:26}", score)

# %% [markdown]
# Your dozen lines are LoRA. (PEFT adds what production needs: saving, merging, several adapters, quantised layers.)
# The scores are those of one seed, a short training and learning rates that nobody tuned: look at the intervals before
# you rank anything. The first and the last line differ in kind: a rank-8 update *trained* as such could choose its
# directions knowing that it has only eight. Whether that helps, these scores do not decide.

# %%
quiz("math/double_rank")

# %% [markdown]
# ## What just happened? The two zeros at the start
#
# Why is $A$ random and $B$ zero? The gradients answer. With $y = Wx + \frac{\alpha}{r} B A x$:
#
# $$\frac{\partial L}{\partial B} = \frac{\alpha}{r}\, \frac{\partial L}{\partial y}\, (Ax)^\top \qquad
# \frac{\partial L}{\partial A} = \frac{\alpha}{r}\, B^\top \frac{\partial L}{\partial y}\, x^\top$$
#
# **Predict.** With $B = 0$ at step 0: which of the two gradients is exactly zero? And if *both* start at zero?

# %%
def start(A_random, B_random):
    """A fresh hand-made adapter with A and B random or zero; returns the model."""
    set_seed(SEED)
    for name in names:
        layer = by_hand.get_submodule(name)
        for matrix, random in ((layer.A, A_random), (layer.B, B_random)):
            nn.init.kaiming_uniform_(matrix.weight, a=5**0.5) if random else nn.init.zeros_(matrix.weight)
    return by_hand

def largest_gradient(which):
    return max(getattr(by_hand.get_submodule(name), which).weight.grad.abs().max().item() for name in names)

print("B after training, largest entry:", max(B.abs().max().item() for _, B in pairs()))
start(A_random=True, B_random=False)
print("B after a fresh start:", max(by_hand.get_submodule(name).B.weight.abs().max().item() for name in names))

# %%
batch = collate(train_rows[:BATCH]).to(base.device)
with torch.no_grad():
    of_base = base(**batch).logits
STARTS = {"A random, B zero (LoRA)": (True, False), "A zero, B random": (False, True),
          "both zero": (False, False), "both random": (True, True)}
rows = []
for kind, (A_random, B_random) in STARTS.items():
    output = start(A_random, B_random)(**batch)
    by_hand.zero_grad()
    output.loss.backward()
    rows.append({"start": kind, "logits move by": f"{(output.logits - of_base).abs().max().item():.3g}",
                 "perplexity of prose": f"{scoring.perplexity(by_hand, tokenizer):.0f}",
                 "gradient of A": f"{largest_gradient('A'):.2g}", "gradient of B": f"{largest_gradient('B'):.2g}"})
table(rows)

# %% [markdown]
# - **A random, B zero**: the model starts as exactly the base, the gradient of A is exactly zero at the first step, and
#   that of B is not. B moves first; from the second step on both do.
# - **A zero, B random** starts as the base as well, with the roles swapped.
# - **both zero**: each waits for the other. Both gradients are zero, and will be for ever.
# - **both random**: there are gradients, but the model is no longer the base. Before the first step, every layer adds
#   noise to what it knew; the perplexity of ordinary prose says how much.
#
# **Predict.** Train each a little. Which one does not learn? And does the one that starts from noise learn the task?

# %%
curves = {}
with Progress("four starts", total=4 * 8) as bar:
    for kind, (A_random, B_random) in STARTS.items():
        model, curves[kind] = start(A_random, B_random).train(), []
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
        for step in range(8):
            loss = model(**collate(train_rows[step * BATCH : step * BATCH + 4]).to(base.device)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curves[kind].append(loss.item())
            bar.update(1)
        print(f"{kind:24} perplexity of prose afterwards {scoring.perplexity(model, tokenizer):,.0f}")
plots.lines({kind: (range(8), losses) for kind, losses in curves.items()}, "steps done", "training loss", yscale="log")

# %% [markdown]
# **Look** at the loss and at the perplexity together. Both zero learns nothing, as the gradients said (its
# loss moves only because each step brings other commands). The others
# learn, even the one that started from noise: task loss alone would never have told you what it did to the rest of
# the model.
#
# And do not conclude that a random B is the better start because its loss falls faster here. Its entries are drawn
# for layers with $r$ inputs and A's for 576 or more, so they are larger, and the same learning rate moves the product
# further. To compare the two starts you would have to tune the rate for each, as Hayou et al. did (*The Impact of
# Initialization on LoRA Finetuning Dynamics*, 2024): they found random A, zero B better, because it bears larger
# rates.

# %%
quiz("math/first_step")

# %%
quiz("math/noise_start")

# %% [markdown]
# ## Counting
#
# $A$ has $r \cdot d_{in}$ entries and $B$ has $d_{out} \cdot r$, so a layer costs $r\,(d_{in} + d_{out})$. The card
# that this course grew from counts Llama-2-7B with $r = 8$ on the query and value projections, so do that: by
# formula, by code, by PEFT. The model has its true shape and no weights: on the *meta* device a tensor is a shape
# without memory.
#
# **Predict.** 32 layers, each with two matrices of 4096 × 4096. How many parameters train?

# %%
# NBVAL_CHECK_OUTPUT
llama_7b = LlamaConfig(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
                       num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32)
q_and_v = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
with torch.device("meta"):
    seven_b = get_peft_model(LlamaForCausalLM(llama_7b), q_and_v)

by_formula = 8 * (4096 + 4096) * 2 * 32
by_code = sum(p.numel() for name, p in seven_b.named_parameters() if "lora_" in name)
by_library, total = seven_b.get_nb_trainable_parameters()
print(f"by formula {by_formula:,}   by code {by_code:,}   by PEFT {by_library:,}")
print(f"of {total:,} in all: {by_library / total:.4%}, or one in {total / by_library:,.0f}")

# %% [markdown]
# The card prints something else: `Trainable: 4,194,816 | Total: 3,251,449,856 | 0.13%`, and calls it a 780-fold
# reduction. Can it be? Check it without running anything.

# %%
# NBVAL_CHECK_OUTPUT
one_pair = 8 * (4096 + 4096)
print(f"one adapted layer costs {one_pair:,}; the card's count leaves a remainder of {4_194_816 % one_pair}")
linear = sum(m.weight.numel() for n, m in seven_b.named_modules() if isinstance(m, nn.Linear) and
             "lora_" not in n and "lm_head" not in n)
print(f"if 4-bit storage packed two weights into one, PyTorch would count {total - linear + linear // 2:,}")
print(f"the card's own two numbers make a factor of {3_251_449_856 / 4_194_816:.0f}")

# %% [markdown]
# Every adapted layer adds the same number, so any true count is a multiple of it, and the card's is not. Nor is its
# total that of a 7B model in 16, 8 or 4 bits (loading in 4 bits packs two weights into one entry, which halves what
# PyTorch counts; `print_trainable_parameters` corrects for it). Nobody ran that program: it also calls
# `get_submodules` on a config, which has no such method.
#
# Parameters are not bytes. The adapter's *file* holds the trained entries in some precision, plus a header:

# %%
# NBVAL_CHECK_OUTPUT
adapter = get_peft_model_state_dict(seven_b, save_embedding_layers=False)
for dtype in (torch.float32, torch.bfloat16):
    zeros = {name: torch.zeros(tensor.shape, dtype=dtype) for name, tensor in adapter.items()}
    file = save(zeros, metadata={"format": "pt"})
    print(f"adapter_model.safetensors in {dtype}: {len(file):,} bytes for {len(adapter)} matrices")

# %%
quiz("math/adapter_file")

# %% [markdown]
# ## Cost: what LoRA saves, and what it does not
#
# Training holds more than weights: a **gradient** for every trainable parameter, AdamW's **two running means** for
# each, and the **activations** that the forward pass keeps for the backward pass. Measure all of it on one batch of
# the lesson's task: full fine-tuning, LoRA on q and v, LoRA on all linear layers at rank 8 and 64.
#
# **Predict.** Which of the columns will hardly change?

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

def megabytes(tensors):
    return f"{sum(tensor.nbytes for tensor in tensors) / 1e6:,.1f} MB"

print("all weights:", megabytes(full.parameters()))

# %%
def cost(kind, model):
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)  # a step that changes nothing
    activations, loss = kept_for_backward(model, batch)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    with FlopCounterMode(display=False) as forward:
        model(**batch)
    optimizer.step()
    means = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return {"training": kind, "trainable": f"{sum(p.numel() for p in trained):,}", "saved to disk": megabytes(trained),
            "gradients": megabytes(p.grad for p in trained), "AdamW state": megabytes(means),
            "activations": f"{activations / 1e6:,.0f} MB", "GFLOP forward": f"{forward.get_total_flops() / 1e9:.1f}",
            "GFLOP backward": f"{backward.get_total_flops() / 1e9:.1f}"}

# %%
def adapted(**options):
    return get_peft_model(load_base(precision="float32", quiet=True)[0], LoraConfig(**options))

only_q_v, rank_64 = adapted(r=8, target_modules=["q_proj", "v_proj"]), adapted(r=64, target_modules="all-linear")
kinds = {FULL: full, "LoRA, q and v": only_q_v, "LoRA, all linear": by_peft, "the same, rank 64": rank_64}
costs = []
for kind, model in kinds.items():
    costs.append(cost(kind, model))
    model.zero_grad()  # for a full fine-tuning, half a gigabyte
table(costs)

# %% [markdown]
# **Look** at it column by column. Gradients, optimizer state and what you save to disk shrink with the trainable
# parameters: that is what LoRA saves, and for a model of billions of parameters it decides whether the training fits
# at all. The **activations** shrink little: the backward pass still travels through every layer. (A frozen layer
# without an adapter need not keep its input, hence the smaller figure for q and v.) The **forward** pass even does a
# little more work. The **backward** pass saves about half: it still computes the gradients of the activations, but
# not those of the frozen weights. (On the smaller path the first row freezes most weights too, and the gap is smaller.)
#
# So a LoRA run that goes out of memory is rarely cured by a lower rank. Lesson 3 does that accounting on a GPU.
#
# ## Common gotcha: the forgotten scaling
#
# The card writes the forward pass as $y = Wx + BAx$. Many do, and it is wrong whenever $\alpha \ne r$. Take a layer of
# the adapter you trained and compute both.

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
# With $\alpha/r = 2$ the card's formula misses half of what the adapter does. It happens to people who export A and B
# to another program, or merge by hand, and then find a model that is "a bit weaker".

# %%
quiz("math/missing_scaling")

# %% [markdown]
# ## Error recovery
#
# Three mistakes that people make when they build it themselves. Two raise an error. Which one does not?

# %%
def swapped():
    return nn.Linear(576, 8)(nn.Linear(8, 192)(torch.randn(1, 576)))  # B before A

def all_frozen():
    layer = LoRALinear(nn.Linear(576, 192), r=8, alpha=16).requires_grad_(False)  # froze after wrapping
    layer(torch.randn(1, 576)).sum().backward()

def nothing_frozen():
    layer = LoRALinear(nn.Linear(576, 192), r=8, alpha=16)  # never froze the base
    print("trainable:", [name for name, p in layer.named_parameters() if p.requires_grad])

for mistake in (swapped, all_frozen, nothing_frozen):
    try:
        mistake()
    except RuntimeError as error:
        print(f"RuntimeError: {error}")

# %% [markdown]
# - **shapes cannot be multiplied**: A comes first (d_in to r), then B (r to d_out).
# - **does not require grad**: everything is frozen. Freeze the model *first*, then put the new layers in.
# - **no error**: the base trains too. You pay for full fine-tuning and the "adapter" you save is only part of what
#   changed. Print what is trainable, always.
#
# ## Experienced-dev note
#
# - $BA$ has rank *at most* $r$, and exactly 0 at the start. The rank is a ceiling, not a target.
# - Do not read the rank to train with off a truncated update. Train an adapter of rank 1 or 2 and compare it with the
#   table: a good exercise.
# - On `nn.Embedding`, PEFT initialises the other way round: A zero, B random. The product is zero all the same.
# - A and B are not unique: $(BM)(M^{-1}A)$ is the same update for any invertible $M$. Do not compare adapters entry by
#   entry, and do not average A with A and B with B: compare or average the products.
# - `get_nb_trainable_parameters` and `print_trainable_parameters` know about packed 4-bit weights;
#   `sum(p.numel() ...)` does not.
#
# ## Check your understanding
#
# Each question is about something you measured. A wrong answer gets a reply, hints come one at a time, and the full
# answer after an attempt. What you solved is kept on your machine. (After a restart of the kernel, run a question's
# cell again.)

# %%
quiz("math/why_no_contradiction")

# %%
quiz("math/energy_and_score")

# %%
quiz("math/mlp_layer_cost")

# %%
quiz("math/ruled_out")

# %%
quiz("math/cost_columns")

# %%
quiz("math/out_of_memory")

# %%
quiz("math/same_update")

# %%
quiz("math/silent_mistake")

# %%
progress()

# %% [markdown]
# ## Exercises
#
# **1. The layer, from memory.** Complete `forward`. This time A and B are bare parameters: A is (r × d_in), B is
# (d_out × r), and `x` is (..., d_in). The check uses inputs of its own, with dropout on and off.

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
# **2. Count before you build.** A model has 24 layers, hidden size 2048, MLP size 8192, 16 query heads and 4 key-value
# heads of 128 each. Rank 16 on all seven linear layers of each block (q, k, v, o, gate, up, down): how many parameters
# train? Write the arithmetic, not only the result. The check asks PEFT.

# %%
my_count = 0
quiz("math/count_for_new_model", my_count)

# %% [markdown]
# **3. The smallest rank that will do.** Complete the function: the smallest rank whose best approximation of `W` has a
# relative error (in the Frobenius norm, as in the first picture) of at most `bound`. The check brings matrices whose
# answer it knows.

# %%
def smallest_rank(W, bound):
    singular_values = torch.linalg.svdvals(W)
    return len(singular_values)  # too many: how many do you need?

quiz("math/smallest_rank", smallest_rank)

# %% [markdown]
# **4. The one worth doing: merge by hand.** Return one weight that does what the base and its adapter do together, so
# that the adapter can be thrown away. Shapes: `W` (d_out × d_in), `A` (r × d_in), `B` (d_out × r). Lesson 5 builds on
# it.

# %%
def merged(W, A, B, alpha, r):
    return W

quiz("math/merged_weight", merged)

# %% [markdown]
# ## Recap
#
# - Weights are not of low rank, nor is a whole update; the part of it that a narrow task needs nearly is.
# - LoRA is $W$ frozen plus $\frac{\alpha}{r}BA$, with B zero at the start. It costs $r\,(d_{in} + d_{out})$ per layer.
# - It saves gradients, optimizer state and disk, and about half of the backward pass. It does not save activations.
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
