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
# # 3 · Training in 8 bits
#
# *Lessons:* ← [2 · LoraConfig and target modules: saying where and how much](02_config_and_targets.ipynb) ·
# [4 · Where the memory goes](04_memory.ipynb) →
#
# A model that does not fit into memory cannot be trained. In this lesson one does not fit, and then does: you store
# each weight in 8 bits, and later in 4. You round weights by hand and look at what is lost. Then you train on rounded
# weights, and measure what that costs in answers and in time.
#
# **You will be able to** load and train a model in 8 or 4 bits on whatever machine you have, say which of its weights
# are rounded and by how much, and decide by measurement whether it is worth it.
#
# **You need** [Lesson 0](00_first_adapter.ipynb); lessons [1](01_low_rank_math.ipynb) and
# [2](02_config_and_targets.ipynb) help.
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: 80 s, NVIDIA H200, peak 2.0 GB, 9 cells not shown there).

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
from pathlib import Path

import torch
import transformers
from lora_lab import batches, cache, compare, load_base, memory, models, plots, progress, quiz, scoring, smart_home
from lora_lab.display import Progress, table
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, Trainer, TrainingArguments

SEED, STEPS, BATCH = 0, 16, 8
transformers.utils.logging.disable_progress_bar()
base, tokenizer = load_base(precision="float32")
device = torch.device("cpu") if base.device.type == "mps" else base.device  # 8 bits were not run on Apple's GPU
base = base.to(device)

# %% [markdown]
# The line above says it: the course's model is a small download, whose weights were once stored in 4 bits and are
# float32 again. You have trained on a rounded model since Lesson 0. In this lesson that copy is the **reference**: what
# you measure is how far a *second* rounding moves it, not how far it is from the model on the hub.
#
# ## A model that does not fit, and then does
#
# Llama-2-7B has 6.7 billion weights. LoRA trains less than a thousandth of that number, but all the others must lie in
# memory while it does. You have a GPU with 12 GB, and want to train with one row of 1,024 tokens. In 16 bits, 2 bytes
# each, the weights alone are more than that.
#
# `memory.plan` says what a training step holds, from the model's config alone. (Lesson 4 takes it apart, with its words
# and colours, and with *checkpointing*, which forgets most of what the forward pass keeps. Here it is on.) **Guess:**
# what share of the bar for 16 bits (bfloat16) is left in 8 bits (int8), and in 4 (nf4)? Half of it, and a quarter?

# %%
llama = LlamaConfig(dtype="bfloat16")  # Llama-2-7B's sizes
qv = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, task_type="CAUSAL_LM")
plans = {kind: memory.plan(llama, qv, kind, batch_size=1, seq_len=1024, checkpointing="reentrant",
                           prepared=kind != "bfloat16") for kind in ("bfloat16", "int8", "nf4")}
plots.memory({kind: plan.parts() for kind, plan in plans.items()}, 12, "One step of a 7B model: what fits 12 GB?")

# %%
for kind, plan in plans.items():
    share = plan.total_bytes / plans["bfloat16"].total_bytes
    print(f"{kind:9} {plan.total_bytes / 1e9:5.1f} GB, {share:4.0%} of bfloat16: "
          f"{'fits' if plan.fits(12) else 'does not fit'} (kept free, since plans fell short by so much: "
          f"{plan.reserve:.0%})")

# %% [markdown]
# **Look** at which part shrinks with the bits. The orange part (activations) is what the forward pass keeps for the
# backward pass: it grows with the number of tokens, not with the weights. It is wider in 8 and 4 bits for another
# reason: the plan counts these bases as *prepared* for training, which turns what is not rounded into float32 (below).
#
# That was on paper. Now our own model, in bytes that are really there. In float32 it takes 538 MB.

# %%
quiz("eight/footprint")

# %%
eight = AutoModelForCausalLM.from_pretrained(
    cache.model_folder(),  # the course's model, as a folder
    quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    dtype=models.pick_dtype(base.device),  # of all that is not in 8 bits
    device_map={"": device},
)
megabytes = {kind: model.get_memory_footprint() / 1e6 for kind, model in (("float32", base), ("int8", eight))}
share = megabytes["int8"] / megabytes["float32"]
print(f"{megabytes['int8']:.0f} MB of {megabytes['float32']:.0f} MB: {share:.1%}",
      "(and the scales of the next section, which this count leaves out)")
compare("eight/footprint", 100 * share)

# %%
kinds = {}
for name, p in eight.named_parameters():
    kind = ("norms" if "norm" in name else name.split(".")[-2], str(p.dtype).removeprefix("torch."))
    kinds[kind] = kinds.get(kind, 0) + p.nbytes
table([{"weights of": name, "stored as": dtype, "MB": f"{size / 1e6:.1f}"} for (name, dtype), size in kinds.items()])

# %% [markdown]
# Only the linear layers inside the blocks are in 8 bits. The embedding, which is our model's output head too, is not.
# How much that is hangs on the model: in Llama-2-7B embedding and head are a twenty-fifth of all parameters, in
# Llama-3-8B, with 128,000 tokens, an eighth.
#
# ## Absmax, by hand
#
# How do you store a weight in 8 bits? Take a row of a weight matrix. Its largest absolute value becomes 127. Everything
# else is divided by the same **scale** and rounded to a whole number. One byte an entry, one scale a row: **absmax**
# quantisation.

# %%
W = base.model.layers[5].self_attn.q_proj.weight.detach().float().cpu()
torch.manual_seed(SEED)
row = 0.1 * torch.randn(W.shape[1], device=W.device)  # a made-up row: ours lie on the marks of their old 4 bits
scale = row.abs().max() / 127
codes = torch.round(row / scale).to(torch.int8)
print("weights ", [f"{w:+.4f}" for w in row[:6].tolist()])
print("codes   ", codes[:6].tolist())
print("restored", [f"{w:+.4f}" for w in (codes[:6] * scale).tolist()])

# %% [markdown]
# Weights and restored weights would lie on one another in a plot. So draw what is left: the difference. Between which
# two lines must it stay?

# %%
residual = row - codes * scale
entries, half_step = range(96), [scale.item() / 2] * 96  # all 576 would be too dense to see
plots.lines({"weight minus restored": (entries, residual[:96].tolist()), "half a step": (entries, half_step),
             "minus half a step": (entries, [-h for h in half_step])}, "entry of the row", "what rounding leaves",
            title="Rounding to 255 marks: does any entry leave the lines?")

# %%
print(f"largest difference: {residual.abs().max() / scale:.2f} of a step; "
      f"relative error (norm of the difference over norm of the row): {residual.norm() / row.norm():.2%}")
ours = torch.round(W / W.abs().amax(1, keepdim=True) * 127).to(torch.int8)
stored = eight.model.layers[5].self_attn.q_proj.weight
halved = W.to(eight.dtype).half().float()  # as it was loaded, and then as bitsandbytes takes it
ours = {"ours": ours, "ours, of W in 16 bits": torch.round(halved * (127 / halved.abs().amax(1, keepdim=True)))}
for name, codes_of in ours.items():
    apart = (codes_of.int() - stored.data.cpu().int()).abs()
    print(f"{name}: the code that bitsandbytes stores for {(apart == 0).float().mean():.1%} of a layer's weights,",
          f"{apart.max()} steps away at most")

# %% [markdown]
# **Analogy.** The row is measured with a ruler of 255 marks that reaches to its largest entry, on either side. Put
# one giant into the row, a hundred times as large as the largest of the others.

# %%
quiz("eight/giant")

# %%
spoilt = row.clone()
spoilt[300] *= 100 * row.abs().max() / row[300].abs()
others = torch.arange(len(row), device=row.device) != 300
zeros = (torch.round(spoilt / spoilt.abs().max() * 127)[others] == 0).float().mean().item()
print(f"{zeros:.0%} of the other weights have the code 0")
compare("eight/giant", 100 * zeros)

# %% [markdown]
# What would confine the giant? A scale of its own for each short block of entries.
#
# **Exercise 1: quantise in blocks.** Write absmax with a block length that divides the row. Return the codes (int8, in
# the shape of `weights`) and the scales, one a block, in one row (`weights.numel() // block` of them).

# %%
def absmax(weights, block):
    scales = weights.abs().amax(1) / 127  # one a row: not yet one a block
    return torch.round(weights / scales[:, None]).to(torch.int8), scales

quiz("eight/absmax", absmax)

# %%
def absmax_residual(weights, block):
    blocks = weights.reshape(-1, block)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    return (blocks - torch.round(blocks / scales) * scales).reshape(weights.shape)

left = {"one scale for the row": absmax_residual(spoilt, 576), "one for every 64 entries": absmax_residual(spoilt, 64)}
shown = range(192, 384)  # three blocks of 64, the giant in the middle one
plots.lines({name: (shown, residual[192:384].tolist()) for name, residual in left.items()}, "entry of the row",
            "what rounding leaves", title="One giant at entry 300: whom does it hurt?")

# %% [markdown]
# **Look** at how far the damage reaches with each. (The block of the giant is 256 to 319.) The price is more scales.
# 8-bit weights of bitsandbytes take one scale a row, 4-bit weights one for every 64.
#
# ## The inputs are the other half
#
# A product has two factors. LLM.int8() (Dettmers et al. 2022) rounds the layer's *input* to 8 bits as well, with one
# scale for each token, so that whole numbers can be multiplied. Are there giants in the inputs? Record each layer's
# largest inputs, by feature and by token, while the model reads ordinary prose.

# %%
peaks, of_tokens, hooks = {}, {}, []
linear = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]

def record(name, inputs):
    sizes = inputs[0].detach()[0].abs().cpu()  # tokens × features
    peaks[name], of_tokens[name] = sizes.amax(0), sizes.amax(1)

for name in linear:
    hooks.append(base.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs)))
perplexity = {"float32": scoring.perplexity(base, tokenizer)}
for hook in hooks:
    hook.remove()
print(f"{len(of_tokens[linear[0]])} tokens of prose: perplexity {perplexity['float32']:.2f}")

# %%
PLACES = {"q_proj": "self_attn", "o_proj": "self_attn", "up_proj": "mlp", "down_proj": "mlp"}
depth = range(base.config.num_hidden_layers)
plots.lines({kind: (depth, [peaks[f"model.layers.{i}.{place}.{kind}"].max().item() for i in depth])
             for kind, place in PLACES.items()}, "block", "largest input", yscale="log",
            title="How large is the largest input of a layer?")

# %%
worst = max(peaks, key=lambda name: peaks[name].max() / peaks[name].median())
peak, tokens = peaks[worst], of_tokens[worst]
print(f"{worst}: the largest input is {peak.max():,.0f}, the median feature's largest {peak.median():.2g}.")
rest = torch.cat([tokens[:tokens.argmax()], tokens[tokens.argmax() + 1:]]).max()
print(f"It stands at token {tokens.argmax().item()} of the text. The largest of all other tokens is {rest:,.0f}.")
over = {limit: sum(p.max().item() > limit for p in peaks.values()) for limit in (6, 100)}
print(f"{over[6]} of {len(peaks)} layers have an input above 6, {over[100]} above 100.")

# %% [markdown]
# With such a giant in the row of a token, the ruler is too coarse for everybody else. LLM.int8() therefore takes the
# features above a **threshold** (6.0 by default) out of the 8-bit product and multiplies them in 16 bits. (A giant may
# sit in one token, often the first, to which heads turn that have nothing to look at; or in the same feature of many
# tokens. The method was made for the second kind.)
#
# What are the weights, the inputs and the threshold worth? Perplexity of prose says how surprised the model is; lower
# is better. Rounding to 16 bits moves it a little, too, as the last row says: differences of that size say nothing.

# %%
quiz("eight/inputs")

# %%
def restored(layer):
    from bitsandbytes.functional import dequantize_4bit
    if layer.weight.dtype == torch.int8:
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB  # moved by the first forward pass
        return layer.weight.data.float() * scales[:, None] / 127
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()

rounded = load_base(precision="float32", quiet=True)[0].to(device)  # 8-bit weights in float32, and exact inputs
for name in linear:
    rounded.get_submodule(name).weight.data = restored(eight.get_submodule(name)).to(device)
perplexity["int8 weights, exact inputs"] = scoring.perplexity(rounded, tokenizer)
del rounded
print({kind: round(value, 2) for kind, value in perplexity.items()})

# %%
for kind, threshold in (("int8, no threshold", 0.0), ("int8, threshold 6", 6.0)):
    for name in linear:
        eight.get_submodule(name).state.threshold = threshold
    perplexity[kind] = scoring.perplexity(eight, tokenizer)
HALF = torch.float16 if models.pick_dtype(device) == torch.float16 else torch.bfloat16
own = load_base(precision=str(HALF).removeprefix("torch."), quiet=True)[0].to(device)
perplexity["16 bits, nothing in 8"] = scoring.perplexity(own, tokenizer)
rise = {kind: 100 * (value / perplexity["float32"] - 1) for kind, value in perplexity.items()}
table([{"what is rounded": kind, "perplexity": f"{perplexity[kind]:.2f}", "above float32": f"{rise[kind]:+.1f} %"}
       for kind in perplexity])

# %%
alone, inputs, helped, half = (rise[kind] for kind in list(rise)[1:])
small = max(0.5, 2 * abs(half))  # what 16 bits do, twice
print(f"Weights alone: {alone:+.1f} %. With the inputs: {inputs:+.1f} %.",
      "The inputs cost more than the weights." if inputs - alone > small else "The inputs cost little here.")
print(f"With the threshold: {helped:+.1f} %.",
      "It takes part of that back." if inputs - helped > small else "It does not show in this text.")
compare("eight/inputs", inputs)

# %% [markdown]
# One text and one small model. In larger models the giants weigh more: at about 6.7 billion parameters the authors
# found them in every layer (Dettmers et al. 2022, section 4).
#
# Does a layer round its inputs always? See one of the 8-bit model's, with the same inputs in both modes:

# %%
layer = eight.model.layers[5].self_attn.q_proj
inputs = torch.randn(8, layer.in_features, device=layer.weight.device)
exact = inputs @ restored(layer).T
for mode in ("scoring", "training"):
    output = layer.train(mode == "training")(inputs).detach()
    print(f"{mode:8} {(output - exact).norm() / exact.norm():.1e} off the product of exact inputs and restored weights")
print("back to scoring:", not layer.eval().training)

# %% [markdown]
# Where the difference is that of floats, no input was rounded: the layer restored its weights and multiplied as ever. A
# GPU's code (bitsandbytes 0.50, read, not run here) rounds the inputs in both modes, except the features above the
# threshold; its backward pass restores the weights.
#
# ## Four bits
#
# With 4 bits there are 16 marks. **nf4** (QLoRA, Dettmers et al. 2023) does not set them evenly. Weights crowd around
# zero, roughly in the shape of a bell, so the marks do, too. Each block of 64 weights has its scale. Below, a layer's
# weights are sorted and cut into 16 equal groups. If the marks went with the middles of the groups, each would serve as
# many weights as any other.

# %%
from bitsandbytes.functional import get_4bit_type

marks = get_4bit_type("nf4", device="cpu").tolist()
even = [(2 * code - 15) / 15 for code in range(16)]
blocks = W.reshape(-1, 64)
sizes = (blocks / blocks.abs().amax(1, keepdim=True)).flatten().sort().values
middles = sizes[(torch.arange(16, device=sizes.device) + 0.5).mul(len(sizes) / 16).long()].tolist()
plots.lines({"nf4": (range(16), marks), "even steps": (range(16), even), "a layer's weights": (range(16), middles)},
            "code, or sixteenth of the weights", "share of the block's largest",
            title="Which sixteen marks go with the weights?")

# %% [markdown]
# How much coarser is that than 8 bits? Measure the relative error of each linear layer.

# %%
quiz("eight/error_ratio")

# %%
four = AutoModelForCausalLM.from_pretrained(
    cache.model_folder(), dtype=models.pick_dtype(base.device), device_map={"": device},
    quantization_config=BitsAndBytesConfig(  # left out, these are fp4 (coarser), and float32 to compute in (slow)
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=models.pick_dtype(base.device)))
for layer in four.modules():  # on some CPUs, scoring would repack the codes, and they could not train any more
    layer.support_avx512bf16_for_cpu = False
megabytes["nf4"] = four.get_memory_footprint() / 1e6
print(f"{megabytes['nf4']:.0f} MB")

# %%
errors = {"int8": [], "nf4": []}
for name in linear:
    exact = base.get_submodule(name).weight.detach().float().to(device)
    for kind, quantised in (("int8", eight), ("nf4", four)):
        off = (restored(quantised.get_submodule(name)) - exact).norm() / exact.norm()
        errors[kind].append(100 * off.item())
plots.lines({kind: (range(len(found)), found) for kind, found in errors.items()}, "linear layer of the model",
            "relative error (%)", yscale="log", title="How far apart are 8 and 4 bits, in every layer?")

# %%
means = {kind: sum(found) / len(found) for kind, found in errors.items()}
print(", ".join(f"{kind}: {mean:.2f} %" for kind, mean in means.items()))
perplexity["nf4"] = scoring.perplexity(four, tokenizer)
print("perplexity of prose, above float32:", ", ".join(
    f"{kind} {perplexity[kind] / perplexity['float32'] - 1:+.1%}"
    for kind in ("int8 weights, exact inputs", "int8, threshold 6", "nf4")))
compare("eight/error_ratio", means["nf4"] / means["int8"])

# %% [markdown]
# Scales take room, too: 4 bytes for every 64 weights, half a bit for each. **Double quantisation** stores the scales
# themselves in 8 bits, in blocks of 256, each with a scale of 4 bytes. How many bits does a weight take in all, then?

# %%
quiz("eight/bits")

# %%
from bitsandbytes.functional import quantize_4bit

for double in (False, True):
    packed, state = quantize_4bit(W.to(device), quant_type="nf4", compress_statistics=double)
    scales = state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    print(f"double quantisation {double!s:5}: {8 * packed.nbytes / W.numel():.0f} bits a weight, and "
          f"{8 * scales / W.numel():.3f} for the scales: {8 * (packed.nbytes + scales) / W.numel():.3f}")

# %% [markdown]
# Now count the parameters of a 4-bit model in the usual way. Which of these lines would you have written?

# %% tags=["nbval-check-output"]
print(f"sum of numel()           {sum(p.numel() for p in four.parameters()):>13,}")
print(f"model.num_parameters()   {four.num_parameters():>13,}")
with torch.device("meta"):
    shapes = AutoModelForCausalLM.from_config(llama)
packed = sum(p.numel() // 2 if "_proj" in name else p.numel() for name, p in shapes.named_parameters())
print(f"and Llama-2-7B: {shapes.num_parameters():,} parameters, {packed:,} entries in 4 bits")

# %% [markdown]
# An entry of a tensor has at least a byte, and a byte holds two weights. So `numel()` counts half of each packed layer.
# (Lesson 7 packs into wider entries; there it counts still fewer.) `num_parameters()` and PEFT's
# `print_trainable_parameters()` know of the packing.
#
# ## Ready to train
#
# `prepare_model_for_kbit_training` makes a quantised base ready for training. It freezes the parameters, turns what is
# in 16 bits (embedding, norms) into float32, and switches checkpointing on. Suppose that you first call
# `get_peft_model`, then prepare what that returns, and train.

# %%
quiz("eight/order")

# %%
def lora(r=8):
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")

late = get_peft_model(load_base(precision="int8", quiet=True)[0].to(device), lora())
late.print_trainable_parameters()
print(f"before preparing {late.get_memory_footprint() / 1e6:.0f} MB", end=", ")
prepare_model_for_kbit_training(late, gradient_checkpointing_kwargs={"use_reentrant": True})  # torch's own choice
print(f"after it {late.get_memory_footprint() / 1e6:.0f} MB")
late.print_trainable_parameters()

# %%
ids, losses = torch.arange(20, device=device)[None], []
optimizer = torch.optim.SGD(late.parameters(), lr=0.1)
for _ in range(3):
    losses.append(late.train()(input_ids=ids, labels=ids, use_cache=False).loss)
    losses[-1].backward()
    optimizer.step()
print("three steps, and no error; losses:", [round(loss.item(), 4) for loss in losses])
print("parameters with a gradient:", sum(p.grad is not None for p in late.parameters()))
del late, optimizer, losses

# %% [markdown]
# Checkpointing makes the model's inputs ask for a gradient, so `backward` finds something to do and nobody complains.
# One line in your script finds it: `assert any(p.requires_grad for p in model.parameters())`.
#
# Where embedding and norms were loaded in 16 bits, preparing costs memory, as the two MB figures say: twice the bytes
# for these, and what flows between the blocks gets wider. It is not required. Where it does not fit, call
# `get_peft_model` on the loaded model, and train with `bf16=True`.
#
# Training needs a token to pad with, too, and Llama's tokenizer has none. The usual repair is `pad_token = eos_token`.
# A **collator** pads rows to one length and makes their labels. A label of -100 does not count in the loss.
# The collator of transformers is `DataCollatorForLanguageModeling`. Where will it put -100?

# %%
quiz("eight/pad_is_eos")

# %% tags=["nbval-check-output"]
llama_like = copy.deepcopy(tokenizer)
llama_like.pad_token = llama_like.eos_token
masking = transformers.DataCollatorForLanguageModeling(llama_like, mlm=False)
ids = llama_like("lights on")["input_ids"] + [llama_like.eos_token_id]
print("tokens", ids)
print("labels", masking([{"input_ids": ids}])["labels"][0].tolist())

# %% [markdown]
# Compare the two last entries. Check two things in your own data: that the end token is in `input_ids` at all (Llama's
# tokenizer does not add it by itself), and that its label is not -100. Another pad token repairs the second, if the
# vocabulary has one that nobody uses; so does a collator that masks by place, as this course's `AnswerCollator` does.
#
# ## Train on rounded weights
#
# Lesson 0's task, on the same model in float32, in 16 bits, in 8 and in 4. The comparison that counts is with 16 bits:
# that is what you would take at work if it fitted. Can your machine compute in 16 bits at all? Some processors only
# emulate them.

# %%
def seconds(dtype):
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((512, 576), (576, 1536)))
    a @ b
    started = models.clock()
    for _ in range(8):
        a @ b
    return models.clock() - started

ratio = seconds(HALF) / seconds(torch.float32)
SIXTEEN = ratio < 3
OWN = str(HALF).removeprefix("torch.") if SIXTEEN else "float32"  # what the others are compared with
print(f"A product in {HALF} takes {ratio:.2f} times as long as in float32:", "16 bits take part." if SIXTEEN else
      "emulated, so they stay out, and float32 stands in for them.")

# %%
quiz("eight/answers")

# %%
train_rows = batches.encode(smart_home.commands("train", n=STEPS * BATCH, seed=SEED), tokenizer)
collate = batches.AnswerCollator(tokenizer)

class Tick(transformers.TrainerCallback):
    def __init__(self, bar):
        self.bar = bar

    def on_step_end(self, *_, **__):
        self.bar.update(1)

print(f"{len(train_rows)} commands; the first: {tokenizer.decode(train_rows[0]['input_ids'])!r}")

# %%
def fit(model, half, seed, bar):
    arguments = TrainingArguments(
        output_dir="runs/eight", max_steps=STEPS, per_device_train_batch_size=BATCH,
        learning_rate=4e-3, warmup_steps=3,  # a rate for few steps of a tiny model: 1e-4 to 2e-4 is usual for 7B
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, seed=seed, dataloader_pin_memory=torch.cuda.is_available(),
        bf16=half and HALF == torch.bfloat16, fp16=half and HALF == torch.float16, use_cpu=model.device.type == "cpu")
    rows = batches.similar_lengths(train_rows, BATCH, seed)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Tick(bar)])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

print(f"{STEPS} steps of {BATCH} commands")

# %%
test = smart_home.commands("test combinations", 40, SEED) + smart_home.commands("test phrasings", 40, SEED)
bases = {"float32": base, "int8": prepare_model_for_kbit_training(eight, use_gradient_checkpointing=False),
         "nf4": prepare_model_for_kbit_training(four, use_gradient_checkpointing=False)}
for model in (eight, four):  # as load_base does: without it, transformers multiplies by the head in a slow way
    model.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
print(f"{len(test)} test commands; bases: {', '.join(bases)}")

# %%
losses, scores = {}, {}

def trial(kind, label=None, seed=SEED):
    label = label or kind
    transformers.set_seed(seed)
    model = get_peft_model(bases[kind], lora())
    with Progress(f"training on {label}", total=STEPS) as bar:
        losses[label] = fit(model, SIXTEEN and kind != "float32", seed, bar)
    scores[label] = scoring.quick_score(model, tokenizer, test, progress=f"scoring {label}")
    model.save_pretrained(f"adapters/eight/{label}", save_embedding_layers=False)
    bases[kind] = model.unload()
    print(f"{label}: {scores[label]}")

trial("float32")

# %%
if SIXTEEN:
    bases[OWN] = own
    megabytes[OWN] = bases[OWN].get_memory_footprint() / 1e6
    for kind in ("int8", "nf4"):  # the same kind of attention for all three
        bases[kind].set_attn_implementation(bases[OWN].config._attn_implementation)
    trial(OWN)
trial(OWN, f"{OWN}, other seed", SEED + 1)

# %%
def fingerprint(model):  # of the values: a copy would take as much memory again
    return [hashlib.sha256(model.get_submodule(name).weight.detach().cpu().numpy()).hexdigest() for name in linear]

before = fingerprint(bases["int8"])
trial("int8")
same = sum(a == b for a, b in zip(before, fingerprint(bases["int8"])))
print(f"{same} of {len(before)} weights of the 8-bit base are bit-identical after the training")

# %%
trial("nf4")

# %%
same_batches = {kind: (range(1, STEPS + 1), curve) for kind, curve in losses.items() if "seed" not in kind}
plots.lines(same_batches, "step", "training loss", yscale="log",
            title="The same batches: how far from one another do the bases train?")

# %%
plots.score_bars(scores, "Do the bits of the base show in the answers?")

# %%
for kind in scores:
    if kind != OWN:
        print(scoring.verdict(scores[OWN], scores[kind], OWN, kind))
print("held-out loss: " + ", ".join(f"{kind} {score.loss:.4f}" for kind, score in scores.items()))
points, loss = ({kind: getattr(score, name) - getattr(scores[OWN], name) for kind, score in scores.items()}
                for name in ("exact", "loss"))
seed = f"{OWN}, other seed"
print(f"one other seed: {100 * points[seed]:+.1f} points, loss {loss[seed]:+.4f}")
for kind in ("int8", "nf4"):
    further = [name for name, away in (("answers", points), ("loss", loss))
               if round(abs(away[kind]), 4) > round(abs(away[seed]), 4)]
    print(f"{kind}: {100 * points[kind]:+.1f} points, loss {loss[kind]:+.4f}:",
          f"further away than the seed by {' and '.join(further)}." if further else "no further away than the seed.")
compare("eight/answers", 100 * (scores["int8"].exact - scores[OWN].exact))

# %% [markdown]
# Three measures, and they need not agree: perplexity before any training, answers and loss after it. The interval says
# which differences of answers 80 commands can show at all: a price of a few points is not among them. The other seed
# has the same base, another order of the data and another random A. It is *one* draw of chance: "further away" is a
# hint, three to five seeds would be evidence.
#
# ## Does the adapter correct the rounding?
#
# The adapter of the 8-bit base was trained beside rounded weights. It is not rounded itself. Did it learn to make up
# for the rounding? Then it would be at home on its own base, and lose on unrounded weights. Serve both adapters on both
# bases. (Two things differ between them: the weights are rounded, and in scoring the inputs are, too. On a CPU the
# adapter was trained with exact inputs, as you saw in one layer.)

# %%
quiz("eight/served")

# %%
served = {f"on {kind}": {f"{kind}'s adapter": scores[kind]} for kind in ("float32", "int8")}
for trained_on, served_on in (("float32", "int8"), ("int8", "float32")):
    model = PeftModel.from_pretrained(bases[served_on], f"adapters/eight/{trained_on}")
    served[f"on {served_on}"][f"{trained_on}'s adapter"] = scoring.quick_score(model, tokenizer, test, "scoring")
    bases[served_on] = model.unload()
plots.score_bars(served, "Is an adapter at home on its own base?")

# %%
home, away = served["on int8"]["int8's adapter"], served["on float32"]["int8's adapter"]
print(scoring.verdict(home, away, "on its own 8-bit base", "on unrounded weights"))
print(f"held-out loss: {home.loss:.3f} at home, {away.loss:.3f} on unrounded weights")
compare("eight/served", 100 * (away.exact - home.exact))

# %% [markdown]
# Where the cell says that it cannot tell the two apart, the answers say nothing about a correction, in either
# direction. The held-out loss below is a hint, without an interval. What you do know after such a table is whether the
# adapter still works elsewhere. Score yours on the base that will serve it.
#
# ## Is it faster?
#
# The linear layers take half the bytes that they take in 16 bits. **Predict** the speed of a training step. (Where the
# rest was loaded in 16 bits, a prepared base has more float32 in it. Does that cost time? One that was not prepared
# runs along.)

# %%
quiz("eight/race")

# %%
bases.setdefault("int8 (prepared)", bases["int8"])  # once: the next lines put an unprepared one in its place
four = None  # room for the others
for kind in ("int8", "nf4"):
    bases[kind] = load_base(precision=kind, quiet=True)[0].to(device)
    bases[kind].set_attn_implementation(bases[OWN].config._attn_implementation)
racers = {kind: get_peft_model(model, lora()) for kind, model in bases.items()}
batch = collate(train_rows[:BATCH])

def seconds_of_a_step(racer, half):
    started = models.clock()  # which waits for the GPU
    with torch.autocast(racer.device.type, dtype=HALF, enabled=half):
        loss = racer.train()(**batch.to(racer.device)).loss
    loss.backward()
    racer.zero_grad()
    return models.clock() - started

print(f"{batch['input_ids'].numel()} tokens, {torch.get_num_threads()} threads; {', '.join(racers)}")

# %%
taken = {kind: [] for kind in racers}
with Progress("a race in turns", total=5) as bar:
    for _ in range(5):  # a slow moment hits them all
        for kind in racers:
            taken[kind].append(seconds_of_a_step(racers[kind], SIXTEEN and kind != "float32"))
        bar.update(1)
for kind, rounds in taken.items():
    print(f"{kind:16} seconds in each round, the first to warm up:", ", ".join(f"{s:.3f}" for s in rounds))

# %%
middle = {kind: sorted(rounds[1:])[len(rounds) // 2] for kind, rounds in taken.items()}
rates = {kind: batch["input_ids"].numel() / seconds for kind, seconds in middle.items()}
table([{"base": kind, "tokens per second": f"{rate:.0f}", f"of {OWN}'s": f"{rate / rates[OWN]:.0%}"}
       for kind, rate in rates.items()])

# %%
for one, other in (("int8", OWN), ("nf4", OWN), ("int8 (prepared)", "int8"), ("int8", "nf4")):
    mine, theirs = taken[one][1:], taken[other][1:]
    print(f"{one}: {rates[one] / rates[other]:.0%} of the speed of {other};",
          "its quickest round is slower than the other's slowest." if min(mine) > max(theirs) else
          "its slowest round is quicker than the other's quickest." if max(mine) < min(theirs)
          else "their rounds overlap, so this race does not settle it.")
compare("eight/race", 100 * rates["int8"] / rates[OWN])

# %% [markdown]
# Storing in 8 bits is not computing in 8 bits. In training, a CPU restores every weight to a float before it
# multiplies, in the forward pass and again in the backward pass. A small model and short rows on this machine say
# nothing of a 7B model on a GPU. What did one take, if a run was recorded?

# %%
recorded = Path("../benchmarks/results/gpu_8bit.json")
runs = json.loads(recorded.read_text()) if recorded.exists() else {"configurations": {}}
theirs = {job["precision"]: job["tokens_per_second"] for job in runs["configurations"].values() if job["status"] == "ok"
          and "random" not in job["model"] and job["seq"] == 128 and not job["checkpointing"]}
for kind, rate in theirs.items():
    print(f"{kind} on {runs['hardware']['gpu']}: {rate:,.0f} tokens per second; here {rates.get(kind, 0):,.0f}")
if not theirs:
    print("Not recorded. benchmarks/gpu_8bit.py records one, on a machine with a GPU.")

# %% [markdown]
# What you measured, by the bits of the base. (MB and tokens a second are of bases that were not prepared, answers and
# loss of prepared ones; the race's nf4 had no double quantisation.) Which one would you train on, and what would you
# measure before you answer?

# %%
said = {"int8": "int8, threshold 6", OWN: "16 bits, nothing in 8"} | {"float32": "float32"}
table([{"base": kind, "MB": f"{size:.0f}", "relative error": f"{means[kind]:.2f} %" if kind in means else "-",
        "perplexity": f"{perplexity[said.get(kind, kind)]:.2f}" if said.get(kind, kind) in perplexity else "-",
        "answers": f"{scores[kind].exact:.1%}", "loss": f"{scores[kind].loss:.3f}",
        "tokens a second": f"{rates[kind]:.0f}"} for kind, size in megabytes.items()])

# %% [markdown]
# ## The card
#
# This course grew from a teaching card, one page about LoRA with a program that loads Llama-2-7B in 8 bits. This is the
# program. Its last lines are shortened: behind them the output was pasted. **Guess** how often it will stop, and where.

# %%
CARD = '''import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
model_name = "meta-llama/Llama-2-7b-hf"
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForCausalLM.from_pretrained(
    model_name, device_map="auto", torch_dtype=torch.bfloat16, load_in_8bit=True)
lora_config = LoraConfig(
    r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
model = get_peft_model(model, lora_config)
trainable_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
total_params = sum(p.numel() for p in model.parameters())
print(f"Trainable: {trainable_params:,} | Total: {total_params:,}")
print(f"LoRA params only: {sum(p.numel() for p in model.peft_config['default'].get_submodules())}") Trainable: 4,194'''
print(f"{len(CARD.splitlines())} lines")

# %% [markdown]
# Our model takes the place of the card's, which needs a licence agreement and 13.5 GB. Run it; at each error, read the
# message, make one repair, and run it again.

# %% tags=["nbval-check-output"]
REPAIRS = {"": "", " Trainable: 4,194": "",
           "load_in_8bit=True": "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
           "p in model.peft_config['default'].get_submodules()": "n, p in model.named_parameters() if 'lora_' in n"}
program = CARD.replace("meta-llama/Llama-2-7b-hf", str(cache.model_folder()))
program = program.replace("torch_dtype=", "dtype=")  # the old name still runs, with a notice
for wrong, right in REPAIRS.items():
    program = program.replace(wrong, right) if wrong else program
    try:
        exec(program, {"BitsAndBytesConfig": BitsAndBytesConfig})
        print("It runs to its end.")
    except Exception as error:
        print(f"{type(error).__name__}: {str(error).split(' (')[0]}")

# %% [markdown]
# - **SyntaxError**: output is no code.
# - **TypeError**: `load_in_8bit` left `from_pretrained` with transformers 5. It is a setting of `BitsAndBytesConfig`.
# - **AttributeError**: a config is a set of options. The parameters are the model's.
#
# What runs and still bites in training: nothing pads, and `device_map="auto"` spreads the model over all GPUs that it
# finds (what does not fit them is refused in 8 bits). For training, give each process its own: `device_map={"":
# local_rank}`. And the counts that the card prints, 4,194,816 of 3,251,449,856, come out of no model of these sizes.
# Lesson 1 found that for the first. The second is not the count in 4 bits either, which a cell above prints.
#
# ## Error recovery
#
# Three errors of quantised models that people really meet. Read each, and say what you would do.

# %% tags=["nbval-check-output"]
def meet(attempt):
    try:
        attempt()
    except (ValueError, RuntimeError) as error:
        print(f"{type(error).__name__}: {str(error)[:300]}")

def no_adapter(): Trainer(model=bare, args=TrainingArguments("runs/eight", use_cpu=bare.device.type == "cpu"))

def prepared_too_late():
    late = prepare_model_for_kbit_training(get_peft_model(bare, lora()), use_gradient_checkpointing=False)
    late(**batch.to(late.device)).loss.backward()

bare = racers["int8"].unload()
for attempt in (lambda: bare.half(), no_adapter, prepared_too_late):
    meet(attempt)

# %% [markdown]
# - **`.half()`**: a quantised model's dtype is chosen when it is loaded, by `dtype`.
# - **Purely quantized**: codes have no gradient. Put an adapter on first.
# - **Does not require grad**: nothing trains. Here the model was prepared after it had its adapter, and without
#   checkpointing, so that `backward` does complain. Other causes: `PeftModel.from_pretrained` without
#   `is_trainable=True`, and reentrant checkpointing switched on by hand, where the count of trainable parameters is
#   right and `enable_input_require_grads()` is missing.
#
# ## Experienced-dev note
#
# - Too large? First checkpointing and a batch of one with accumulation. Then nf4 with double quantisation. int8 where
#   your own measurement says that nf4 costs too much. Where 16 bits fit, take 16 bits.
# - Score on the base that you will serve with.
# - Loading quantises anew each time. `save_pretrained` the quantised model once, before you prepare it and before it
#   has an adapter, and load that folder.
# - On a CPU with AVX512-BF16, bitsandbytes (0.50) repacks nf4 codes as soon as you evaluate, and then no gradient
#   passes that layer, with a warning and without an error. Do not evaluate between steps there, load the model anew
#   before you train, or switch that off as the lesson did (by a private attribute).
# - Other ways to few bits: GPTQ and AWQ choose codes with the help of sample texts. Their files come ready-made and
#   take adapters as well.
#
# ## Recap
#
# - A quantised weight is a code and a scale. One giant spoils its block; so blocks are short, and giants in the inputs
#   are multiplied apart.
# - Adapters are trained in floats beside frozen codes. Whether the rounding shows in the answers is a measurement, with
#   an interval and a second seed.
# - Fewer bits save memory. What they do to the time of a step, your own table says.
#
# **The exercise worth doing.** Take a model that you use at work, in 16 bits and in 8. Compare perplexity on a text of
# your own, then the scores of two adapters. Is the difference larger than that of two seeds?

# %%
progress()

# %% [markdown]
# Next: **Lesson 4** counts every byte of a training step.
#
# Sources: Dettmers et al., *LLM.int8()* (2022), sections 2 to 4; Dettmers et al., *QLoRA* (2023), section 3; Hu et al.,
# *LoRA* (2021), section 4.2.
#
# *Lessons:* ← [2 · LoraConfig and target modules: saying where and how much](02_config_and_targets.ipynb) ·
# [4 · Where the memory goes](04_memory.ipynb) →
