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
# # 3 · Training in 8 bits: where the memory goes
#
# *Lessons:* ← [2 · LoraConfig and target modules: saying where and how much](02_config_and_targets.ipynb) ·
# [5 · The alpha experiments](05_alpha_scaling.ipynb) →
#
# A model that does not fit cannot be trained. This course grew from a teaching card, one page about LoRA; "the card"
# below is that page. It has a program that trains a large model in 8 bits. You run it, see it stop at every turn, and
# repair it line by line. You look at what 8 bits do to a weight, train on a truly 8-bit model, and account for every
# byte of its tensors, until you can say before the first step what a training will need.
#
# **You will be able to** load and train a model in 8 bits on whatever machine you have, say where its memory goes,
# climb out of an out-of-memory error by the right rung, and lose nothing when the kernel dies.
#
# **You need** [Lesson 0](00_first_adapter.ipynb); lessons [1](01_low_rank_math.ipynb) and
# [2](02_config_and_targets.ipynb) help.
#
# **It takes** about four minutes of computing on two CPU cores
# (on a GPU: not recorded).
#
# ## Why this matters
#
# The weights of a model with seven billion parameters take 13.5 GB in 16 bits. LoRA trains a thousandth of them, but
# the others must lie in memory all the same. Storing them in 8 bits halves that. It is the step that brings such a
# model onto one ordinary GPU, and it comes with myths: that 8 bits train faster, that a lower rank cures "out of
# memory", that the footprint is the memory you need. You measure all three.

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
import runpy
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

print({name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")})

# %%
import torch
import transformers
from lora_lab import batches, cache, compare, load_base, memory, models, plots, progress, quiz, scoring, smart_home
from lora_lab.display import table
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, Trainer, TrainingArguments

SEED, STEPS, BATCH = 0, 60, 8
transformers.utils.logging.disable_progress_bar()
transformers.set_seed(SEED)
base, tokenizer = load_base(precision="float32")

def fresh_base():
    """The base loaded again: its weights are read from the file where they lie, so this costs no memory."""
    return load_base(precision="float32", quiet=True)[0]

# %% [markdown]
# ## The card's code, error by error
#
# The card's program loads a 7B model in 8 bits and puts an adapter on it. These are its last lines, as printed:

# %% tags=["nbval-check-output"]
card = '''
trainable_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
total_params = sum(p.numel() for p in model.parameters())
print(f"LoRA params only: {sum(p.numel() for p in model.peft_config['default'].get_submodules())}") Trainable: 4,194,816
'''
try:
    compile(card, "card.py", "exec")
except SyntaxError as error:
    print(f"{type(error).__name__}: {error.msg}, line {error.lineno}: ...{error.text.strip()[-40:]}")

# %% [markdown]
# The output of a program was pasted into the program. Without it Python reads the file, and meets what follows. We
# put our model in the place of the card's, which needs a licence agreement and 13.5 GB.

# %% tags=["nbval-check-output"]
folder = cache.model_folder()  # the course's model, as a folder that from_pretrained reads
small = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100)
toy = get_peft_model(AutoModelForCausalLM.from_config(small), LoraConfig(task_type="CAUSAL_LM"))

def meet(attempt, number=""):
    try:
        attempt()
    except Exception as error:
        print(f"{number}{type(error).__name__}: {str(error).split(' (/')[0]}")

meet(lambda: exec("from transformers import LoraConfig"))
meet(lambda: AutoModelForCausalLM.from_pretrained(folder, load_in_8bit=True))
meet(lambda: toy.peft_config["default"].get_submodules())
meet(lambda: exec("from peft import prepare_model_for_int8_training"))  # not the card's: older tutorials'

# %% [markdown]
# Read each message, then its repair:
#
# | what the message is about | repair |
# |---|---|
# | `LoraConfig` | it lives in `peft`; the card's text looks for it in transformers |
# | `load_in_8bit` | left transformers with version 5; it is a setting of `BitsAndBytesConfig` now |
# | `get_submodules` | a config is a set of options and has no parameters; count those of the model |
# | `prepare_model_for_int8_training` | is called `prepare_model_for_kbit_training` today |
#
# And two that still run: `torch_dtype` is now `dtype`, and `device_map="auto"` may spread a model over GPU and CPU,
# which is for inference. For training on one device, name it.
#
# **Predict.** Our model takes 538 MB in float32. How much of that will be left in 8 bits?

# %%
quiz("eight/footprint")

# %%
device, dtype = models.pick_device(), models.pick_dtype(models.pick_device())
eight = AutoModelForCausalLM.from_pretrained(
    folder,
    quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    dtype=dtype,
    device_map={"": "cpu" if device.type == "mps" else device},
)
share = eight.get_memory_footprint() / base.get_memory_footprint()
print(f"{eight.get_memory_footprint() / 1e6:.1f} MB of {base.get_memory_footprint() / 1e6:.1f} MB: {share:.1%}")
print(eight.model.layers[0].self_attn.q_proj)
compare("eight/footprint", 100 * share)

# %% [markdown]
# Not a quarter. Look at what is in 8 bits and what is not:

# %%
kinds = {}
for name, parameter in eight.named_parameters():
    kind = (name.rsplit(".", 2)[-2] if "layernorm" not in name else "norms", str(parameter.dtype))
    kinds[kind] = kinds.get(kind, 0) + parameter.nbytes
table([{"weights of": name, "dtype": dtype.removeprefix("torch."), "MB": f"{size / 1e6:.1f}"}
             for (name, dtype), size in kinds.items()])

# %% [markdown]
# Only the linear layers inside the blocks are stored in 8 bits. The embedding, which is the output head too in our
# model, stays as it was, and in a small model with 49,152 tokens it is a fifth of all parameters. In a 7B model it is
# a twenty-fifth: there, 8 bits come close to half of 16 bits.
#
# ### Ready to train
#
# `prepare_model_for_kbit_training` does three things: it freezes all weights, turns 16-bit parameters that are left
# (embedding, norms) into float32, and switches on **checkpointing**, which you meet below. It must come *before*
# `get_peft_model`:

# %% tags=["nbval-check-output"]
def lora(r=8, **others):
    """Lesson 0's adapter, unless you say otherwise."""
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM", **others)

prepared = prepare_model_for_kbit_training(eight)
print("checkpointing:", any(getattr(module, "gradient_checkpointing", False) for module in eight.modules()))
model = get_peft_model(prepared, lora())
model.print_trainable_parameters()
prepare_model_for_kbit_training(model)
print("prepared once more, after get_peft_model:")
model.print_trainable_parameters()

# %% [markdown]
# No error and no warning, and nothing is left to train. The Trainer would find out at its first backward pass, by an
# error about something else (you meet it below), so read the count first. The adapter's own dtype is float32,
# whatever the base is in: its updates are too small for 16 bits.
#
# The card says that 4,194,816 of 3,251,449,856 parameters train, "a 780x reduction". A model without weights has the
# counts of the real one:

# %% tags=["nbval-check-output"]
card_config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, bias="none",
                         task_type="CAUSAL_LM")
with torch.device("meta"):
    llama = get_peft_model(AutoModelForCausalLM.from_config(LlamaConfig()), card_config)  # Llama-2-7B's sizes
llama.print_trainable_parameters()
trainable, total = llama.get_nb_trainable_parameters()
print(f"one in {total / trainable:,.1f}")

# %% [markdown]
# Neither of the card's numbers can come out: in such a model every q and v of rank 8 adds a multiple of 65,536, and
# 4,194,816 is none. Where its total comes from we do not know. A count can go wrong like this: a 4-bit tensor packs two
# weights into one entry, and whoever adds up entries counts half of them.

# %% tags=["nbval-check-output"]
entries = sum(p.numel() // 2 if "_proj" in name and "lora_" not in name else p.numel()
              for name, p in llama.named_parameters())
print(f"the same model in 4 bits: {entries:,} entries of {total:,} parameters")

# %% [markdown]
# ### Padding, and the end of a text
#
# The card loads a tokenizer and never uses it. Training needs it, and needs a token to pad with. Llama's has none.

# %% tags=["nbval-check-output"]
llama_like = copy.deepcopy(tokenizer)
llama_like.pad_token = None
meet(lambda: llama_like(["a short text", "and a longer text"], padding=True))
llama_like.pad_token = llama_like.eos_token
collate = transformers.DataCollatorForLanguageModeling(llama_like, mlm=False)
ids = llama_like("lights on")["input_ids"] + [llama_like.eos_token_id]
print("tokens:", ids, " labels:", collate([{"input_ids": ids}])["labels"][0].tolist())

# %% [markdown]
# With the usual repair, `pad_token = eos_token`, the collator masks every pad token in the labels, and so the *real*
# end of text with it: -100 in the last place. The model never learns to stop. This course's `AnswerCollator` masks by
# position instead, so its models do.

# %%
quiz("eight/order")

# %%
quiz("eight/pad_is_eos")

# %% [markdown]
# ## Explanation: what 8 bits are
#
# Take a row of a weight matrix. Its largest absolute value becomes 127, and everything else is rounded to a whole
# number on that scale. This is **absmax quantisation**. By hand, on one row:

# %%
weight = base.model.layers[0].self_attn.q_proj.weight.detach().float().cpu()
row = weight[0]
scale = row.abs().max() / 127
codes = torch.round(row / scale).to(torch.int8)
print("weights ", [f"{w:.4f}" for w in row[:6].tolist()])
print("codes   ", codes[:6].tolist())
print("restored", [f"{w:.4f}" for w in (codes[:6] * scale).tolist()])
plots.lines({"weights": (range(60), row[:60].tolist()), "restored": (range(60), (codes[:60] * scale).tolist())},
            "entry of the row", "value")

# %% [markdown]
# One byte an entry, and one float32 scale a row. Is that what bitsandbytes stores? Compare all rows of the layer:

# %%
layer = base.model.layers[0].self_attn.q_proj
ours = torch.round(weight / weight.abs().amax(1, keepdim=True) * 127).to(torch.int8)
loaded, _ = load_base(precision="int8")
stored = loaded.model.layers[0].self_attn.q_proj.weight
print(f"equal codes: {(ours == stored.data.cpu()).float().mean():.1%},",
      f"largest difference: {(ours.int() - stored.data.cpu().int()).abs().max().item()}")
print("scales:", tuple(stored.SCB.shape), stored.SCB.dtype, f"{4 * stored.SCB.numel()} bytes beside {stored.nbytes}")

# %% [markdown]
# The same but for a few entries that lie between two codes: bitsandbytes rounds the weights to float16 first.
# **Analogy.** A row is measured with a ruler of 255 marks whose length is the row's largest entry. One giant in the
# row, and all the others share a few marks. That is why every row gets a ruler of its own, and in 4 bits (**nf4**,
# QLoRA) every 64 weights.
#
# **Predict.** How large is the error of a whole layer, in percent of its weights, in 8 bits and in 4?

# %%
quiz("eight/error_ratio")

# %%
four, _ = load_base(precision="nf4")

def restored(layer):
    from bitsandbytes.functional import dequantize_4bit
    if layer.weight.dtype == torch.int8:
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB  # moved by the first forward pass
        return layer.weight.data.float() * scales[:, None] / 127
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()

errors = {"int8": [], "nf4": []}
for name in [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]:
    exact = base.get_submodule(name).weight.detach().float()
    for kind, quantised in (("int8", loaded), ("nf4", four)):
        errors[kind].append(100 * ((restored(quantised.get_submodule(name)) - exact).norm() / exact.norm()).item())

# %%
plots.lines({kind: (range(len(values)), values) for kind, values in errors.items()}, "linear layer of the model",
            "error (% of the weights' norm)", yscale="log")

# %%
means = {kind: sum(values) / len(values) for kind, values in errors.items()}
print(", ".join(f"{kind}: {value:.2f} %" for kind, value in means.items()))
compare("eight/error_ratio", means["nf4"] / means["int8"])

# %% [markdown]
# **Look** how little the error differs from layer to layer: absmax by row is as good for the first layer as for the
# last. A small error in all weights is one thing. What does it do to the model?
#
# ### Outliers, and why the input is the harder half
#
# LLM.int8() (Dettmers et al. 2022) also multiplies in 8 bits: the layer's *input* is quantised too, one scale for each
# token. On a CPU bitsandbytes does so in scoring (`model.eval()`) and not in training; you see both below. Inputs are
# not as tame as weights:

# %%
peaks, hooks = {}, []
for name, module in base.named_modules():
    if isinstance(module, torch.nn.Linear) and name != "lm_head":
        hooks.append(module.register_forward_pre_hook(
            lambda _, inputs, name=name: peaks.__setitem__(name, inputs[0].detach()[0].abs().amax(0).cpu())))
scoring.perplexity(base, tokenizer)
for hook in hooks:
    hook.remove()
plots.lines({kind: (range(30), [peaks[f"model.layers.{i}.{where}"].max().item() for i in range(30)])
             for kind, where in (("q_proj", "self_attn.q_proj"), ("o_proj", "self_attn.o_proj"),
                                 ("gate_proj", "mlp.gate_proj"), ("down_proj", "mlp.down_proj"))},
            "block", "largest input", yscale="log")

# %%
for name in ("model.layers.5.self_attn.q_proj", "model.layers.11.mlp.down_proj"):
    peak = peaks[name]
    print(f"{name}: largest input {peak.max():.0f}, median feature's largest {peak.median():.2f},",
          f"{(peak > 6).sum().item()} of {len(peak)} features above 6")

# %% [markdown]
# A few features of a few layers are hundreds of times larger than the rest: one giant, and a ruler too coarse for
# everybody else. LLM.int8() therefore takes the features above a **threshold** (6.0) out of the 8-bit product and
# multiplies them in 16 bits. Measure what the threshold is worth, and, with the restored weights in a float32 model,
# what rounding the weights alone costs.

# %%
rounded = fresh_base()  # the 8-bit weights, restored, and exact inputs
for name, layer in loaded.named_modules():
    if hasattr(layer, "state"):
        rounded.get_submodule(name).weight.data = restored(layer).to(base.device)

perplexity = {"float32": scoring.perplexity(base, tokenizer)}
if dtype != torch.float32:
    perplexity[str(dtype).removeprefix("torch.")] = scoring.perplexity(load_base()[0], tokenizer)
perplexity["int8 weights, exact inputs"] = scoring.perplexity(rounded, tokenizer)
for label, threshold in (("int8, no threshold", 0.0), ("int8, threshold 6.0", 6.0)):
    for layer in loaded.modules():
        if hasattr(layer, "state"):
            layer.state.threshold = threshold
    perplexity[label] = scoring.perplexity(loaded, tokenizer)

# %%
perplexity["nf4"] = scoring.perplexity(four, tokenizer)
table([{"precision": label, "perplexity of prose": f"{value:.2f}",
              "above float32": f"{value / perplexity['float32'] - 1:+.1%}"} for label, value in perplexity.items()])

# %% [markdown]
# **Look** at the order. Rounding the weights to 8 bits costs next to nothing; rounding the inputs costs more, and
# without the threshold more still; 4 bits cost most. (One text, one small model: the order is the finding, not the
# digits. A machine that computes in 16 bits adds a row for them.)

# %%
quiz("eight/weights_or_inputs")

# %%
quiz("eight/one_giant")

# %% [markdown]
# ## Train on the 8-bit model
#
# Lesson 0's task, data and recipe, on a base in 8 bits. `prepare_model_for_kbit_training` turned checkpointing on,
# which trades time for memory; this model fits, so leave it off here.
#
# **Predict.** Lesson 0 answered nearly all held-out combinations exactly. And on a base whose weights are rounded?

# %%
quiz("eight/score")

# %%
def fingerprint(tensor):  # of its values: a second copy of the base would take their memory
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy()).hexdigest()

eight = loaded = four = prepared = rounded = model = None  # their work is done
transformers.set_seed(SEED)
fresh, _ = load_base(precision="int8")
frozen = [(parameter, fingerprint(parameter)) for parameter in fresh.parameters()]
model = get_peft_model(prepare_model_for_kbit_training(fresh, use_gradient_checkpointing=False), lora())
rows = batches.similar_lengths(batches.encode(smart_home.commands("train", STEPS * BATCH, SEED), tokenizer), BATCH)
arguments = TrainingArguments(
    output_dir="runs/eight", max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=2e-3, warmup_steps=3,
    train_sampling_strategy="sequential", bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16,
    use_cpu=model.device.type == "cpu", dataloader_pin_memory=torch.cuda.is_available(), logging_steps=1,
    save_strategy="no", remove_unused_columns=False, disable_tqdm=True, seed=SEED,
)
collate = batches.AnswerCollator(tokenizer)

# %%
trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[plots.LiveLoss()])
trainer.remove_callback(transformers.PrinterCallback)
result = trainer.train()
model.save_pretrained("adapters/eight", save_embedding_layers=False)
print(f"{result.metrics['train_runtime']:.0f} s for {len(rows)} commands; the adapter is in adapters/eight")

# %% [markdown]
# The base must not have moved by a bit:

# %% tags=["nbval-check-output"]
same = sum(fingerprint(parameter) == before for parameter, before in frozen)
print(f"{same} of {len(frozen)} tensors of the base are bit-identical after training")
linear = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
print(type(linear).__name__, linear.weight.dtype)

# %% [markdown]
# Now the scores; beside them those of your adapter of Lesson 0, if it is still on your disk.

# %%
test = {"combinations": smart_home.commands("test combinations", n=100, seed=SEED),
        "phrasings": smart_home.commands("test phrasings", n=60, seed=SEED)}
candidates = {"8 bits": model}
if Path("adapters/first/adapter_model.safetensors").exists():
    candidates["float32 (Lesson 0)"] = PeftModel.from_pretrained(fresh_base(), "adapters/first")
scores = {label: {} for label in candidates}
for label, candidate in candidates.items():
    for kind, commands in test.items():
        scores[label][kind] = scoring.quick_score(candidate, tokenizer, commands, progress=f"{label}, {kind}")
        print(f"{label}, {kind}: {scores[label][kind]}")
plots.score_bars(scores)

# %%
compare("eight/score", 100 * scores["8 bits"]["combinations"].exact)
recorded = Path("../benchmarks/results/recipe_scores.json")
if recorded.exists():
    runs = json.loads(recorded.read_text())["runs"]
    seeds = [run["trained"]["combinations"]["exact"] for run in runs]
    print(f"float32, recorded with the course, {len(seeds)} seeds: {min(seeds):.1%} to {max(seeds):.1%} exact")

# %% [markdown]
# ## What just happened? The same skill, and on a CPU no faster
#
# The adapter learned the task on a base whose weights are rounded: the forward pass is exact enough, and the adapter
# itself is float32. Whether it differs from a float32 base by more than the interval or the spread of seeds, you can
# read off above.
#
# **Predict.** Tokens a second, in 8 bits, as a percentage of float32's?

# %%
quiz("eight/speed")

# %%
racers = {"float32": get_peft_model(fresh_base(), lora()), "int8": model,
          "nf4": get_peft_model(load_base(precision="nf4")[0], lora())}
if dtype != torch.float32:
    racers |= {str(dtype).removeprefix("torch."): get_peft_model(load_base()[0], lora())}
batch = collate(rows[:BATCH])

def seconds_of_a_step(racer):
    started = models.clock()  # waits for the GPU, which works on while Python goes ahead
    racer.train()(**batch.to(racer.device)).loss.backward()
    racer.zero_grad()
    return models.clock() - started

# %%
seconds = {name: [] for name in racers}
for _ in range(4):  # in turns, so that a slow moment hits them all; the first turn warms up
    for name, racer in racers.items():
        seconds[name].append(seconds_of_a_step(racer))
rates = {name: batch["input_ids"].numel() / sorted(taken[1:])[1] for name, taken in seconds.items()}
table([{"base": name, "tokens per second": f"{rate:.0f}", "of float32's": f"{rate / rates['float32']:.0%}"}
             for name, rate in rates.items()])

# %%
compare("eight/speed", 100 * rates["int8"] / rates["float32"])

# %% [markdown]
# On a CPU a training step restores every 8-bit weight before it multiplies, forward and backward; on a GPU the
# backward pass does. So on a CPU training sees *exact* inputs, while scoring (`model.eval()`) rounds them too, as the
# perplexity above showed; on a GPU both round them. See it in one layer:

# %%
inputs = torch.randn(8, linear.in_features, device=linear.weight.device)
exact = inputs @ restored(linear).T
for mode in ("scoring", "training"):
    output = linear.train(mode == "training")(inputs).detach()
    print(f"{mode:8} {(output - exact).norm() / exact.norm():.1e} off the product of exact inputs and restored weights")

# %% [markdown]
# What is left in the smaller number is the round-off of the floats. Eight bits are for saving memory; what they do to
# the time on your machine, the table above says. The next cell says what a GPU took, if a run on one was recorded.

# %%
recorded = Path("../benchmarks/results/gpu_8bit.json")
if recorded.exists():
    run = json.loads(recorded.read_text())
    theirs = {job["precision"]: job["tokens_per_second"] for job in run["configurations"].values()
              if job["status"] == "ok" and "random" not in job["model"] and job["seq"] == 128
              and not job["checkpointing"]}
    table([{"base": name, "your machine": f"{rates.get(name, float('nan')) / rates['float32']:.0%} of float32's",
                  f"recorded on {run['hardware']['gpu']}": f"{rate:,.0f} tokens/s, {rate / theirs['float32']:.0%}"}
                 for name, rate in theirs.items()])
else:
    print("No GPU run has been recorded: benchmarks/gpu_8bit.py makes one, on a machine with a GPU.")

# %% [markdown]
# ## Where the memory goes
#
# Training holds these things at once. `memory.plan` says how large each will be, from the model's config alone:
#
# | part | what | grows with |
# |---|---|---|
# | weights | the frozen base | model, precision |
# | quantization | the scales of its rows or blocks | model, precision |
# | adapter, gradient | A and B, and a gradient for each entry | rank, targets |
# | optimizer | AdamW's two running means for each entry | rank, targets |
# | activation | what forward keeps for backward | batch × length, depth, targets |
# | logits | a score for each token of the vocabulary, and the loss's copies | batch × length, vocabulary |

# %%
llama_config = LlamaConfig(dtype="bfloat16")  # Llama-2-7B's sizes
for precision in ("bfloat16", "int8", "nf4"):
    print(f"{precision:9}", memory.plan(llama_config, card_config, precision, batch_size=1, seq_len=2048))

# %% [markdown]
# int8 has *more* activations than bfloat16: an 8-bit layer keeps its own input for the backward pass. (The card's
# config has dropout 0.05; the planner below has none.)
#
# `plan` does not guess these from a formula. It lets the model's own code take one training step on tensors that have a
# shape and no contents, and keeps the account of what is alive. Move the parts yourself; the line is the GPU you name
# (16 GB is a T4, Colab's free one):

# %%
from lora_lab.course import explorers

explorers.plan_memory(llama_config, gpu_gb=16, precision="int8", seq_len=2048)

# %%
quiz("eight/rank_or_length")

# %% [markdown]
# Can you trust it? The plan beside the measurement, for one real step of our model. (On a GPU, measured is what torch
# allocated. On a CPU it is what torch's operations returned, counted one by one and by the planner's own rules, so here
# you see that shapes and lifetimes are right. The course's tests also compare with torch's profiler. With a GPU it has
# not been compared yet.)

# %%
def fill(model, batch_size=2, length=128, logits_to_keep=0):
    """One step on full rows: what it needs at most above parameters and gradients, in bytes."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:  # as later steps find them with gradient accumulation
            parameter.grad = torch.zeros_like(parameter)
    ids = torch.randint(0, 1000, (batch_size, length), device=model.device)
    labels = ids[:, -logits_to_keep:]  # all of them for 0
    model.train()
    with memory.measure(model) as used:
        model(input_ids=ids, labels=labels, use_cache=False, logits_to_keep=logits_to_keep).loss.backward()
    return used.peak_tensor_bytes

racers = {name: racers[name] for name in ("float32", "int8")}  # the others' work is done
print("a step of 2 rows of 128 tokens:", memory.human(fill(racers["float32"])))

# %%
rows_of_table = []
for name in ("float32", "int8"):
    planned, measured = memory.plan(base, lora(), name, 2, 128), fill(racers[name])
    trained = [p for p in racers[name].parameters() if p.requires_grad]
    weights = sum(p.nbytes for p in racers[name].parameters()) - sum(p.nbytes for p in trained)
    step = planned.activation_bytes + planned.logits_bytes
    rows_of_table.append({"base": name, "weights, planned": memory.human(planned.weights_bytes),
                          "measured": memory.human(weights), "activations and logits, planned": memory.human(step),
                          "measured ": memory.human(measured)})
table(rows_of_table)

# %% [markdown]
# **Look** at the two columns on the right: the two bases differ in their weights alone. What a step keeps for its
# backward pass, and the scores of 49,152 tokens at 256 places, are planned the same for both. They are less than the
# weights in float32, and more than those in 8 bits.
#
# ### The process takes more than the account
#
# `get_memory_footprint` and the plan count tensors. Your system counts *resident* memory, with Python, its libraries
# and everything that was ever read and not given back. Measure the peak in fresh processes: the same training, on the
# float32 base, on the 8-bit base, and on an 8-bit base that was saved in 8 bits before.
#
# **Predict.** The footprint fell to two fifths. Does the process's peak fall, too?

# %%
quiz("eight/resident")

# %%
job = '''
import sys
from lora_lab import batches, load_base, memory, smart_home
from peft import LoraConfig, get_peft_model
with memory.measure() as used:
    base, tokenizer = load_base(sys.argv[1]) if "/" in sys.argv[1] else load_base(precision=sys.argv[1])
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    rows = batches.encode(smart_home.commands("train", n=4, seed=0), tokenizer)
    model(**batches.AnswerCollator(tokenizer)(rows).to(model.device)).loss.backward()
print("peak", used.peak_rss_bytes)
'''
load_base(precision="int8")[0].save_pretrained("runs/int8")
tokenizer.save_pretrained("runs/int8")
resident = {}

# %%
for label, source in (("float32", "float32"), ("int8 from float32", "int8"), ("int8 from int8", "./runs/int8")):
    said = subprocess.run([sys.executable, "-c", job, source], capture_output=True, text=True, check=True).stdout
    resident[label] = int(said.split("peak")[1])
    print(f"{label:18} peak resident memory {resident[label] / 1e6:,.0f} MB")
compare("eight/resident", 100 * resident["int8 from float32"] / resident["float32"])

# %% [markdown]
# Quantising *while loading* reads every float32 weight first. The file is mapped into memory rather than copied, and as
# the embedding, which stays in float32, goes on using that mapping, the pages of all the others remain resident beside
# their 8-bit copies. No footprint shows them. In a model saved in 8 bits the blocks have no float32 to read:
# `save_pretrained` once, load from there ever after. (The system may drop mapped pages when memory is short.)
#
# On a CPU, then, a plan is a *lower* bound: what the system's allocator keeps after use comes on top, and it may be
# more than the plan itself. [benchmarks/planner_cpu.py](../benchmarks/README.md) has both for thirteen settings.
#
# ## Out of memory, on purpose
#
# On a GPU the next cell allows this process a sliver of the memory and runs into the real error, and shows that the
# kernel survives it. On a CPU it is the plan that says what would happen on the GPU you name; a CPU process that runs
# out of memory is not told: the system kills it.

# %%
GPU_GB = 16  # a T4
big = dict(batch_size=4, seq_len=2048)
if torch.cuda.is_available():
    allowed = torch.cuda.memory_reserved() + 300e6
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        fill(racers["float32"], 4, 1024)
    except torch.OutOfMemoryError as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
    torch.cuda.set_per_process_memory_fraction(1.0)
    racers["float32"].zero_grad()
    torch.cuda.empty_cache()
planned = memory.plan(llama_config, lora(64), "bfloat16", **big)
print(f"Llama-2-7B, rank 64, no dropout, {GPU_GB} GB: {'fits' if planned.fits(GPU_GB) else 'does not fit'}\n{planned}")
print(f"and the next step works: {memory.human(fill(racers['float32'], 1, 32))} in use at most")

# %% [markdown]
# The error is `torch.OutOfMemoryError`. It leaves the kernel alive, but what the failed step had allocated is freed
# only when nothing refers to it, the error's own traceback included: leave the `except` block, set the gradients to
# None, then `torch.cuda.empty_cache()`.
#
# ### The ladder, one rung at a time
#
# What helps? Everybody's first idea is a lower rank. Start from a training of our model with rank 64 and dropout 0.05,
# and change *one* thing at a time, each time from the start.
#
# **Predict.** How much of the start's memory remains at rank 4? And by what factor does checkpointing cut the
# activations?

# %%
quiz("eight/lower_rank")

# %%
quiz("eight/checkpointing")

# %%
RUNGS = {"start: r=64, dropout 0.05, 2 × 128": {}, "rank 64 → 4": {"r": 4},
         "dropout 0.05 → 0": {"lora_dropout": 0.0},
         "batch 2 → 1": {"batch_size": 1}, "checkpointing": {"checkpointing": True}, "base in 8 bits": {"on": "int8"}}
climbed = {}

def climb(r=64, lora_dropout=0.05, batch_size=2, checkpointing=False, on="float32"):
    """The parts of one step, in bytes: activations measured, with the logits of the last 16 places only."""
    model = fresh_base() if on == "float32" else load_base("./runs/int8")[0]
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    weights = model.get_memory_footprint()
    model = get_peft_model(model, lora(r, lora_dropout=lora_dropout))
    adapter = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return {"weights_bytes": weights, "adapter_bytes": adapter, "gradient_bytes": adapter,
            "optimizer_bytes": 2 * adapter, "activation_bytes": fill(model, batch_size, logits_to_keep=16)}

# %%
for label, change in RUNGS.items():
    climbed[label] = climb(**change)
    print(f"{label:36} {memory.human(sum(climbed[label].values())):>9},",
          f"activations {memory.human(climbed[label]['activation_bytes'])}")
start = climbed["start: r=64, dropout 0.05, 2 × 128"]
compare("eight/lower_rank", 100 * sum(climbed["rank 64 → 4"].values()) / sum(start.values()))
compare("eight/checkpointing", start["activation_bytes"] / climbed["checkpointing"]["activation_bytes"])

# %%
plots.memory(climbed)

# %% [markdown]
# **Look** at the blue. Lowering the rank shrinks the colours in the middle and leaves the blue as it is: what forward
# keeps for backward depends on how many tokens pass through how many layers. (Rank 64 on all layers of so small a
# model is a seventh of the model; in a 7B model it is a fortieth, as you see below.) Dropout keeps a mask and a
# masked copy for every adapted layer; on a CPU the mask takes four bytes an element, on a GPU one, and one is what the
# plan counts. **Checkpointing** keeps only each block's input, and computes the rest again in
# the backward pass: one more forward pass is its price. And the base in 8 bits has *more* blue than before.
#
# ### A rung that gives way: checkpointing on an 8-bit base
#
# Now both together, at rank 4 and dropout 0. The savings should add up. Do they?

# %%
both = {"float32, checkpointing": climb(r=4, lora_dropout=0.0, checkpointing=True),
        "int8, checkpointing": climb(r=4, lora_dropout=0.0, checkpointing=True, on="int8"),
        "int8, use_reentrant=True": climb(r=4, lora_dropout=0.0, checkpointing="reentrant", on="int8")}
for label, parts in both.items():
    print(f"{label:26} activations {memory.human(parts['activation_bytes'])}")
plots.memory(both)

# %% [markdown]
# Torch's present kind of checkpointing, which transformers' `activation_checkpointing_enable()` and the Trainer's
# option `activation_checkpointing=True` take, drops the tensors that layers *save for backward* in the official way.
# bitsandbytes' 8-bit layer keeps its input by another way (as an attribute of its context), so it is not dropped: the
# activations of 8-bit layers stay. The older, *reentrant* kind runs the first forward pass without building a graph,
# and nothing can stay. `prepare_model_for_kbit_training` leaves the choice to torch, which takes the reentrant kind
# and warns that you ought to name it. So name it, and leave the Trainer's own option for checkpointing off:
#
# `prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": True})`
#
# We found this by measuring, in bitsandbytes 0.50 on a CPU; its GPU code keeps the input the same way, so the plan
# predicts the same there, but no GPU run has been recorded. 4-bit layers do not keep their input.
#
# The whole ladder on the GPU you named, for Llama-2-7B's sizes and dropout 0, by the plan. This time you climb each
# rung on top of the last. The quantised bases are planned with `prepared=True`: `prepare_model_for_kbit_training` has
# turned their embedding, head and norms into float32.

# %%
one = dict(r=8, batch_size=1, seq_len=2048)
llama_rungs = {
    "start: bf16, r=64, 4 × 2048": dict(precision="bfloat16", **big),
    "rank 64 → 8": dict(precision="bfloat16", r=8, **big),
    "batch 4 → 1": dict(precision="bfloat16", **one),
    "checkpointing": dict(precision="bfloat16", checkpointing=True, **one),
    "base in 8 bits": dict(precision="int8", checkpointing="reentrant", prepared=True, **one),
    "base in 4 bits": dict(precision="nf4", checkpointing="reentrant", prepared=True, **one),
}
plans = {label: memory.plan(llama_config, lora(options.pop("r", 64)), **options)
         for label, options in copy.deepcopy(llama_rungs).items()}
for label, planned in plans.items():
    print(f"{label:28} {memory.human(planned.total_bytes):>9}  {'fits' if planned.fits(GPU_GB) else 'does not fit'}")
plots.memory({label: planned.parts() for label, planned in plans.items()}, GPU_GB)

# %% [markdown]
# Each rung stands on top of the last, in the order in which people try them, and what it saves depends on those before
# it. By price the order is another: a smaller batch with gradient accumulation trains the same; checkpointing costs
# another forward pass; fewer bits cost some accuracy; a lower rank costs little and brings little. Between them: cut
# the longest rows, dropout 0, and on large vocabularies a loss that needs no full logits.
#
# What does preparing take? With embedding, head and norms in float32, what flows between the blocks is in float32,
# too. Steadier arithmetic, at a price:

# %%
for prepared in (False, True):
    planned = memory.plan(llama_config, lora(), "int8", **big, checkpointing="reentrant", prepared=prepared)
    print(f"4 × 2048 in 8 bits, prepared={prepared}: {planned}")

# %%
quiz("eight/first_rung")

# %%
quiz("eight/reentrant")

# %% [markdown]
# ## Common gotcha: errors you really meet
#
# The card lists three errors. One has another text, one cannot occur, and the ones that people do meet are missing.
# Reproduce each; say what you would do; then look below.

# %% tags=["nbval-check-output"]
def new_toy():
    return AutoModelForCausalLM.from_config(small)

def loss_of(model):
    ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
    return model(input_ids=ids, labels=ids, use_cache=False).loss

adapted = get_peft_model(new_toy(), LoraConfig(task_type="CAUSAL_LM"))
merged = get_peft_model(new_toy(), LoraConfig(task_type="CAUSAL_LM")).merge_and_unload()
print("the card's error: PeftModel has no save_pretrained?", not hasattr(adapted, "save_pretrained"))
meet(lambda: get_peft_model(new_toy(), LoraConfig(target_modules=["query"])), "1. ")
meet(lambda: loss_of(prepare_model_for_kbit_training(adapted)).backward(), "2. ")
meet(lambda: adapted.peft_config.save_pretrained("adapters/toy"), "3. ")
meet(lambda: torch.nn.DataParallel(adapted).save_pretrained("adapters/toy"), "4. ")
meet(lambda: merged.merge_and_unload(), "5. ")

# %% tags=["nbval-check-output"]
bare, _ = load_base("./runs/int8", quiet=True)
meet(lambda: Trainer(model=bare, args=arguments), "6. ")
meet(lambda: bare.half(), "7. ")
reentrant, block, inputs = torch.utils.checkpoint.checkpoint, torch.nn.Linear(4, 4), torch.ones(1, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    meet(lambda: reentrant(block, inputs, use_reentrant=True).sum().backward(), "8. ")
print("   and before it, a warning:", *[w.message for w in caught if "Gradients" in str(w.message)])

# %% [markdown]
# 1. **Not found**: no name matches. Lesson 2: look the names up, `targets.check`.
# 2. **Does not require grad**: nothing trains. Here the model was prepared after it had its adapter.
# 3. **'dict' object**: `peft_config` holds a config for each adapter; `model.save_pretrained` saves adapter and config.
# 4. **'DataParallel' object**: a wrapper hides the model. Save `wrapper.module`.
# 5. **No attribute 'merge_and_unload'**: it is merged already; what is left is the plain model.
# 6. **Purely quantized**: 8-bit weights cannot be trained. Put an adapter on them first.
# 7. **`.half()`**: a quantised model's dtype is fixed when it is loaded.
# 8. The same message as 2, another cause: reentrant checkpointing sees the inputs alone, and where none of them
#    requires a gradient, it builds no graph. `enable_input_require_grads` is the repair that guides name; today's
#    transformers and PEFT do it for you when checkpointing is switched on, so you meet this only with torch's own
#    function.
#
# And each repair, checked:

# %% tags=["nbval-check-output"]
good = get_peft_model(prepare_model_for_kbit_training(new_toy()), LoraConfig(target_modules=["q_proj", "v_proj"]))
loss_of(good).backward()
print("1, 2. trains:", all(p.grad is not None for n, p in good.named_parameters() if "lora_" in n))
torch.nn.DataParallel(good).module.save_pretrained("adapters/toy")
print("3, 4. saved:", sorted(path.name for path in Path("adapters/toy").glob("adapter_*")))
print("5. merged once:", not any("lora_" in name for name, _ in merged.named_parameters()))
Trainer(model=get_peft_model(bare, lora()), args=arguments)
chosen, _ = load_base(precision="int8", quiet=True)
print("6. the Trainer takes it;  7. dtype chosen at loading:", chosen.lm_head.weight.dtype == dtype)
reentrant(block, inputs.requires_grad_(), use_reentrant=True).sum().backward()
print("8. gradient:", block.weight.grad is not None)

# %%
quiz("eight/same_message")

# %% [markdown]
# ## Error recovery: kill it, and go on
#
# Kernels die. A long training therefore saves **checkpoints** (folders with adapter, optimizer, schedule and random
# state; not to be confused with activation checkpointing) and goes on from the last. A training that you cannot afford
# to lose belongs into a file:

# %%
script = '''
import sys
from lora_lab import batches, load_base, smart_home
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed
def make_trainer(folder):
    base, tokenizer = load_base("./runs/int8")
    set_seed(0)  # A is drawn at random, and before the Trainer seeds anything
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = batches.encode(smart_home.commands("train", n=24, seed=0), tokenizer)
    return Trainer(model, TrainingArguments(folder, max_steps=8, per_device_train_batch_size=3, learning_rate=2e-3,
        warmup_steps=2, save_steps=3, logging_steps=1, remove_unused_columns=False, disable_tqdm=True,
        dataloader_pin_memory=False), batches.AnswerCollator(tokenizer), rows)
if __name__ == "__main__": make_trainer(sys.argv[1]).train()'''
print(Path("runs/train_job.py").write_text(script), "characters written to runs/train_job.py")

# %% [markdown]
# Start it in a process of its own, wait for its first checkpoint (step 3), let it go on, and kill it without warning,
# as the system would:

# %%
shutil.rmtree("runs/killed", ignore_errors=True)
process = subprocess.Popen([sys.executable, "runs/train_job.py", "runs/killed"], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, text=True)
seen = 0
for line in process.stdout:  # the Trainer prints a line for every step
    seen += "'loss'" in line
    if seen == 5:
        process.kill()
        break
print("exit status:", process.wait(), " steps seen:", seen)
print("left on disk:", sorted(path.name for path in Path("runs/killed").iterdir()))
table([{"file": path.name, "kB": f"{path.stat().st_size / 1000:,.0f}"}
             for path in sorted(Path("runs/killed/checkpoint-3").iterdir())])

# %% [markdown]
# The base is not in the checkpoint; two steps are lost. Resume in this kernel, and beside it run the same training
# without an accident:

# %%
make_trainer = runpy.run_path("runs/train_job.py")["make_trainer"]
runs = {}
for label, folder, checkpoint in (("killed and resumed", "runs/killed", True), ("uninterrupted", "runs/whole", None)):
    trainer = make_trainer(folder)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    runs[label] = trainer
curves = {label: [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
          for label, trainer in runs.items()}
plots.lines({label: (range(1, 9), curve) for label, curve in curves.items()}, "step", "training loss")

# %% tags=["nbval-check-output"]
round_off = 1e-5 if dtype == torch.float32 else 0.05  # 16 bits, which a GPU may add up in another order each time
moved = [torch.cat([p.detach().flatten() for n, p in trainer.model.named_parameters() if "lora_B" in n])
         for trainer in runs.values()]  # B began as zero: all of it is training
print("same adapter, to round-off:", ((moved[0] - moved[1]).norm() / moved[1].norm()).item() < round_off)
print("same loss at every step:", all(abs(a - b) <= round_off * b for a, b in zip(*curves.values())))

# %% [markdown]
# **Look**: one curve. Optimizer, schedule and order of the data went on as if nothing had been. This needs the *same*
# script: change the rank and PEFT refuses the weights, change alpha and nobody notices (Lesson 5).

# %%
quiz("eight/resume")

# %% [markdown]
# ## From here to a model of your size
#
# Which real models fit which GPU? By the plan: rank 16 on all linear layers, dropout 0, one row of 1,024 tokens,
# checkpointing, quantised bases prepared, and the highest precision of bfloat16, int8 and nf4 that fits. Licences and
# gates are those stated by the publishers when this table was made; look again before you use one.

# %%
from transformers import Qwen2Config


def sized(kind, hidden, mlp, layers, heads, kv_heads, vocabulary, tied):
    return kind(hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=kv_heads, vocab_size=vocabulary, tie_word_embeddings=tied, dtype="bfloat16")

MODELS = {  # hub id: licence, gated, config
    "HuggingFaceTB/SmolLM2-360M": ("Apache-2.0", "no", sized(LlamaConfig, 960, 2560, 32, 15, 5, 49152, True)),
    "Qwen/Qwen2.5-0.5B": ("Apache-2.0", "no", sized(Qwen2Config, 896, 4864, 24, 14, 2, 151936, True)),
    "Qwen/Qwen2.5-1.5B": ("Apache-2.0", "no", sized(Qwen2Config, 1536, 8960, 28, 12, 2, 151936, True)),
    "HuggingFaceTB/SmolLM2-1.7B": ("Apache-2.0", "no", sized(LlamaConfig, 2048, 8192, 24, 32, 32, 49152, True)),
    "meta-llama/Llama-3.2-3B": ("Llama 3.2", "yes", sized(LlamaConfig, 3072, 8192, 28, 24, 8, 128256, True)),
    "mistralai/Mistral-7B-v0.3": ("Apache-2.0", "no", sized(LlamaConfig, 4096, 14336, 32, 32, 8, 32768, False)),
    "meta-llama/Llama-3.1-8B": ("Llama 3.1", "yes", sized(LlamaConfig, 4096, 14336, 32, 32, 8, 128256, False)),
}
print(len(MODELS), "models")

# %%
from lora_lab.display import Progress

ladder = []
with Progress("planning", total=len(MODELS)) as bar:
    for name, (licence, gated, its_config) in MODELS.items():
        plans = {}
        for kind in ("bfloat16", "int8", "nf4"):
            plans[kind] = memory.plan(its_config, lora(16), kind, 1, 1024, checkpointing="reentrant",
                                      prepared=kind != "bfloat16")
            if plans[kind].fits(8):
                break
        ladder.append({"model": name, "licence": licence, "gated": gated} | {
            f"{gpu} GB": next((f"{kind}, {plan.total_bytes / 1e9:.1f}" for kind, plan in plans.items()
                               if plan.fits(gpu)), "-") for gpu in (8, 16, 24, 80)})
        bar.update(1)
table(ladder)

# %% [markdown]
# (Precision, and GB needed.) To train one of them, take these lines: plan, load, prepare, adapt, train. Make
# `arguments` and `rows` as above, with the batch that you planned and the new tokenizer:
#
# ```python
# name, reentrant = "Qwen/Qwen2.5-1.5B", {"use_reentrant": True}
# config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
# print(memory.plan(name, config, "int8", batch_size=1, seq_len=1024, checkpointing="reentrant", prepared=True))
# base, tokenizer = load_base(name, precision="int8")
# base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs=reentrant)
# model = get_peft_model(base, config)
# Trainer(model=model, args=arguments, train_dataset=rows, data_collator=batches.AnswerCollator(tokenizer)).train()
# ```
#
# A gated model also needs your hub account and its publisher's consent. Whether the hub can be reached, the name is
# right and you may read the model, `plan` tells you before anything is downloaded but a config. Some of its answers
# to mistakes:

# %% tags=["nbval-check-output"]
for mistake in (dict(batch_size=-1), dict(optimizer="adam_w"), dict(precision="int7"),
                dict(lora=None, precision="int8")):
    meet(lambda: memory.plan(llama_config, **dict(lora=lora()) | mistake))

# %% [markdown]
# ## Experienced-dev note
#
# - Eight bits are for fitting, and they are not free: perplexity rose, and on a CPU they were no faster (on a GPU: not
#   measured). Where 16 bits fit, take 16 bits.
# - An adapter is trained on the *rounded* base and corrects its rounding a little, too. Evaluate it on the base that
#   you will serve it with: next to a float32 base it meets other weights.
# - Watch the longest row of your data, not the mean: one outlier decides whether a night's training survives.
# - `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True` helps where plenty is free in pieces. `nvidia-smi` shows what
#   torch has reserved; `torch.cuda.max_memory_allocated()` what it needed.
# - Paged or 8-bit optimizers save little here: the optimizer holds the adapter's state only.
# - A checkpoint is as large as three adapters, so save often. Its `optimizer.pt` and `training_args.bin` are pickles:
#   resume from your own only.
# - An nf4 model that was evaluated on a CPU with AVX512-BF16 has its weights repacked for inference and passes no
#   gradients (torch warns). Load it anew before you train.

# %%
answers = {"8 bits, as trained": scores["8 bits"]["phrasings"]}
for label, precision in (("float32", "float32"), ("4 bits", "nf4")):
    other = PeftModel.from_pretrained(load_base(precision=precision)[0], "adapters/eight")
    answers[label] = scoring.quick_score(other, tokenizer, test["phrasings"], progress=label)
table([{"the adapter on a base in": label, "exact match": str(score)} for label, score in answers.items()])

# %% [markdown]
# Read the 95 % intervals before the order: a difference of one answer shows nothing. What the table does show is
# whether the adapter still works elsewhere.

# %%
quiz("eight/other_base")

# %% [markdown]
# ## Check your understanding
#
# Each question is about something you measured. A wrong answer gets a reply, hints come one at a time, and the full
# answer after an attempt. What you solved is kept on your machine. (After a restart of the kernel, run a question's
# cell again.)

# %%
quiz("eight/where_bits")

# %%
quiz("eight/footprint_7b")

# %%
quiz("eight/scales_missing")

# %%
quiz("eight/card_count")

# %%
quiz("eight/seven_b_adamw")

# %%
quiz("eight/parts")

# %%
quiz("eight/ladder_order")

# %%
quiz("eight/fits_but")

# %%
quiz("eight/eight_speed")

# %%
progress()

# %% [markdown]
# ## Exercises
#
# **1. Quantise in blocks.** nf4 gives every 64 weights a scale of their own, int8 every row. Write absmax quantisation
# with a block length that divides the row: it returns the codes (int8, the shape of `weights`) and the scales (one a
# block). Then compare the error of blocks of 64 with that of whole rows on `weight`.

# %%
def absmax(weights, block):
    scales = weights.abs().amax(1) / 127  # one a row: not yet one a block
    return torch.round(weights / scales[:, None]).to(torch.int8), scales

quiz("eight/absmax", absmax)

# %% [markdown]
# **2. Make it fit.** Llama-2-7B's sizes on a 16 GB GPU, at least 8,192 tokens in a step (batch times length), length at
# least 2,048, and the highest precision that allows it. A quantised base is prepared: the checker plans it with
# `prepared=True`, as you should.

# %%
my_settings = dict(precision="bfloat16", batch_size=1, seq_len=2048, checkpointing=False)
quiz("eight/fits_gpu", my_settings, 16)

# %% [markdown]
# **3. Repair.** This function was written by somebody in a hurry. It must return a model whose adapter trains, whose
# base is frozen, and whose blocks are checkpointed in the way that suits 8-bit layers.

# %%
def ready(model, config):
    model = get_peft_model(model, config)
    return prepare_model_for_kbit_training(model)

quiz("eight/ready", ready)

# %% [markdown]
# **4. The one worth doing.** Take the model and the GPU you have at work. Plan a training that should fit with a
# tenth to spare, and one that should not. Run both, and compare with `memory.measure()`.
#
# ## Recap
#
# - 8 bits halve the memory of 16-bit weights, cost little accuracy where outliers are kept apart, and save no time on
#   a CPU (on a GPU: not measured).
# - Activations grow with tokens and can outweigh the weights: batch and checkpointing come first, rank last.
# - Plan before you load, measure in a fresh process, and check that two savings add up.
# - Checkpoints make a killed kernel cost minutes.
#
# Next: **Lesson 5** turns the dial alpha.
#
# Sources: Dettmers et al., *LLM.int8()* (2022), sections 2 and 3; Dettmers et al., *QLoRA* (2023), section 3; Chen et
# al., *Training Deep Nets with Sublinear Memory Cost* (2016); Korthikanti et al., *Reducing Activation Recomputation
# in Large Transformer Models* (2022), section 4.1; Hu et al., *LoRA* (2021), section 4.2.
#
# *Lessons:* ← [2 · LoraConfig and target modules: saying where and how much](02_config_and_targets.ipynb) ·
# [5 · The alpha experiments](05_alpha_scaling.ipynb) →
