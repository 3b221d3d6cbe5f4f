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
# An adapter can be added into the weights for good. You do it by hand, with PEFT, and into every precision; find out
# where the training goes lost on the way; and ship a model whose answers you have checked.
#
# **You will be able to** merge without losing what was learned, say from measurements when not to merge, audit a
# deployed model against the one you trained, and save files that load on another machine.
#
# **You need** [Lesson 0](00_first_adapter.ipynb); [Lesson 3](03_train_in_8bit.ipynb) for what int8 and nf4 are.
#
# **It takes** about four minutes of computing on two CPU cores
# (on a GPU: not recorded).
#
# ## Why this matters
#
# This course grew from a teaching card, one page about LoRA. "The card" says: merge before deployment, get the speed
# back, ship one file. That is right as far as it goes. It leaves out that a merge writes into the weights' own
# precision, that it can be done twice, that the wrong object is easily saved, and that merging is sometimes the wrong
# thing to do. None of this raises an error. It shows as a model in production that answers differently than the one in
# your notebook.

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
import statistics
import warnings
from pathlib import Path

import torch
import transformers
from lora_lab import adapters, batches, compare, load_base, merging, plots, pocket, progress, quiz, scoring, smart_home
from lora_lab.display import table
from lora_lab.models import clock
from peft import LoraConfig, PeftModel, get_peft_model

transformers.set_seed(0)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
base, tokenizer = load_base(precision="float32")

# %%
def fresh_base():
    """The base loaded again: merging changes weights in place, and reading a file costs less than a deep copy."""
    return load_base(precision="float32", quiet=True)[0]

# %% [markdown]
# Lesson 0's adapter, if it is on your disk; otherwise a shorter training of the same kind:

# %%
adapter = "adapters/first" if Path("adapters/first/adapter_model.safetensors").exists() else "adapters/merging"
print("The adapter to be merged:", adapter)

# %%
if not Path(adapter, "adapter_model.safetensors").exists():
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(fresh_base(), config)
    rows = batches.encode(smart_home.commands("train", n=8 * 32, seed=0), tokenizer)
    arguments = transformers.TrainingArguments(
        output_dir="runs/merging", max_steps=32, per_device_train_batch_size=8, learning_rate=2e-3, warmup_steps=3,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", remove_unused_columns=False,
        disable_tqdm=True, dataloader_pin_memory=False)
    trainer = transformers.Trainer(model, arguments, batches.AnswerCollator(tokenizer),
                                   batches.similar_lengths(rows, 8), callbacks=[plots.LiveLoss()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    model.save_pretrained(adapter, save_embedding_layers=False)

# %%
trained = PeftModel.from_pretrained(fresh_base(), adapters.adapter_folder(adapter, r=8)).eval()
commands = smart_home.commands("test combinations", n=42, seed=0)  # each kind of action three times
print("with the adapter:", scoring.quick_score(trained, tokenizer, commands))

# %% [markdown]
# ## Explanation and analogy: the sheet becomes part of the page
#
# A LoRA layer computes $y = Wx + s\,BAx$ with $s = \alpha/r$. Both terms are linear in $x$, so one matrix does the
# same:
#
# $$W' = W + s\,BA$$
#
# In Lesson 0 the adapter was a clear sheet with corrections, laid over a printed page. Merging is photocopying the two
# together: one page again, as quick to read as the first. The corrections can no longer be lifted off. And the copy is
# as fine as the copier: one that knows only sixteen shades of grey may not show a thin pencil line at all.
#
# ## Code: merge one layer by hand
#
# One layer, four lines. Look at the last number.

# %%
layer = trained.base_model.model.model.layers[5].self_attn.q_proj
W, A, B = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
with torch.no_grad():
    merged_weight = W + layer.scaling["default"] * B @ A
    x = torch.randn(100, W.shape[1], device=W.device)
    difference = (layer(x) - x @ merged_weight.T).abs().max().item()
print("shapes:", tuple(W.shape), tuple(B.shape), tuple(A.shape), " scaling:", layer.scaling["default"])
print(f"size of the update {(merged_weight - W).norm().item():.2f}, of the weight {W.norm().item():.1f}")
print(f"largest difference between layer and merged weight: {difference:.1e}")

# %% [markdown]
# `merge_and_unload()` does that for all layers and takes the LoRA layers out. It works on the model it is called on,
# and what you want is its *return value*. Another load of base and adapter keeps `trained` as it is.
#
# **Predict.** After all 210 layers are merged: how far will any of the 49,152 logits move, at any position?

# %%
quiz("merge/float32_change")

# %%
merged = PeftModel.from_pretrained(fresh_base(), adapter).eval()
merged = merged.merge_and_unload(safe_merge=True)  # safe_merge looks for NaN before it writes
print(type(trained).__name__, "->", type(merged).__name__)
merged.save_pretrained("adapters/merged-float32")
tokenizer.save_pretrained("adapters/merged-float32")
merged = load_base("adapters/merged-float32", "float32", quiet=True)[0]  # weights in a file need no memory of their own

# %%
held_out = {kind: smart_home.commands(f"test {kind}", n=42, seed=0) for kind in ("combinations", "phrasings")}
answers = {}
for kind, asked in held_out.items():
    for name, model in {"unmerged": trained, "merged": merged}.items():
        answers[name, kind] = scoring.generate(model, tokenizer, [c.prompt for c in asked], progress=f"{kind}, {name}")
    same = sum(a == b for a, b in zip(answers["unmerged", kind], answers["merged", kind]))
    print(f"{kind}: {same} of {len(asked)} answers identical;", scoring.score(asked, answers["merged", kind]))

# %%
READ = [tokenizer(c.prompt + c.answer, return_tensors="pt") for c in commands[:14]]

@torch.no_grad()
def logits(model):
    """Logits at every position, for each of fourteen commands with their answers: one after the other."""
    for text in READ:
        yield model(**text.to(model.device)).logits[0].float()

reference = list(logits(trained))
change, of_adapter = (max((a - b).abs().max().item() for a, b in zip(logits(model), reference))
                      for model in (merged, base))
print(f"largest change of a logit: merging {change:.1e}, the adapter itself {of_adapter:.1f}")
compare("merge/float32_change", change)

# %% [markdown]
# Not zero: adding first and multiplying afterwards rounds in other places than multiplying first. It is the size of
# float32's own rounding and far below what turns one answer into another.
#
# ## Is it worth it? What the unmerged adapter costs
#
# The card says merging "recovers inference speed". How much is there to recover? Three models take turns on the same
# input: the base, the base with an adapter, the merged one. Two inputs: a long prompt, and the step that a chat
# model spends its time on, one new token behind a prompt. Each round gives one ratio to the base; you see the median.
#
# **Predict.** How much longer does one token take with rank 8 on all linear layers, unmerged?

# %%
quiz("merge/unmerged_cost")

# %%
@torch.no_grad()
def seconds(model, prompt):
    """For one new token after `prompt`, and for the prompt itself. The clock waits for a GPU to be done."""
    started = clock()
    past = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    middle = clock()
    model(prompt[:, :1], past_key_values=past, use_cache=True)
    return clock() - middle, middle - started

prompt = torch.randint(1000, 2000, (1, 128), device=base.device)
token, all_128 = [seconds(base, prompt) for _ in range(2)][1]  # the first call warms up
print(f"base: {1000 * token:.0f} ms for one token, {1000 * all_128:.0f} ms for a prompt of 128")

# %%
def ratios_to_base(models, rounds=6):
    for model in models.values():
        seconds(model, prompt)  # the first call warms up
    times = {name: [] for name in models}
    for turn in range(rounds):
        first = turn % len(models)  # each is first as often as the others
        for name in list(models)[first:] + list(models)[:first]:
            times[name].append(seconds(models[name], prompt))
    return {name: [statistics.median(t[k] / b[k] for t, b in zip(times[name], times["base"])) for k in (0, 1)]
            for name in models}

noise = ratios_to_base({"base": base, "base again": base})["base again"]
print("base against itself:", " and ".join(f"{ratio:.2f}" for ratio in noise), "(1 would be no noise)")

# %%
rows = []
for what, settings in {"8, q and v": dict(r=8, target_modules=["q_proj", "v_proj"]),
                       "8, all linear": dict(r=8, target_modules="all-linear"),
                       "64, all linear": dict(r=64, target_modules="all-linear")}.items():
    untrained, merged_too = (get_peft_model(fresh_base(), LoraConfig(**settings)).eval() for _ in range(2))
    found = ratios_to_base({"base": base, "unmerged": untrained, "merged": merged_too.merge_and_unload()})
    rows.append({"rank and layers": what} | {f"{name}, {part}": f"{found[name][k]:.2f}"
                for k, part in enumerate(("one token", "128 tokens")) for name in ("unmerged", "merged")})
    if what == "8, all linear":
        compare_unmerged = found["unmerged"][0]
    del untrained, merged_too  # before the next two are loaded
table(rows)

# %%
compare("merge/unmerged_cost", compare_unmerged)

# %% [markdown]
# **Look** along the first row, and down the column *unmerged, one token*. Merged is the base again, to the noise of the
# clock: the same matrices of the same shapes. Unmerged costs more the more layers carry an adapter, and the higher
# their rank. It costs far more than the adapter's share of the parameters: each layer calls two more products, however
# small they are. These are a CPU's ratios, each with the clock's noise; the [benchmark](../benchmarks/README.md) has
# more rounds of them. On a GPU, not measured here, servers with kernels made for many adapters change the picture
# again.
#
# ## Where training goes lost: the precision you merge into
#
# $W'$ is stored in the precision of $W$. What does that do to a small update? Eleven ways to end up with one model, all
# compared with the float32 model you trained. *In place* means: base loaded in that precision, adapter loaded onto it,
# `merge_and_unload()`. The loss and the exact answers are the task's; *perplexity*, on general text, tells what became
# of the language model itself (Lesson 0). Training has moved it, and a merge should keep it where *float32, merged* has
# it: back near the base's means that the training is gone.
#
# **Predict.** Merged in place into nf4: what share of the update is in the weights afterwards?

# %%
quiz("merge/nf4_left")

# %%
lines, losses = [], {}

def judge(name, model):
    worst, changed, kl = [], [], []
    for a, b in zip(reference, logits(model)):
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        worst.append((a - b).abs().max().item())
        changed.append(a.argmax(-1) != b.argmax(-1))
        kl.append((p.exp() * (p - q)).sum(-1))
    score = scoring.quick_score(model, tokenizer, commands, progress=name)
    losses[name] = {"KL": torch.cat(kl).mean().clamp(min=0).item(), "loss": score.loss}  # rounding may be below 0
    lines.append({"model": name, "worst logit": f"{max(worst):.2g}",
                  "next tokens changed": f"{torch.cat(changed).float().mean():.1%}",
                  "KL": f"{losses[name]['KL']:.1e}", "exact": f"{score.exact:.1%}", "loss": f"{score.loss:.3f}",
                  "perplexity": f"{scoring.perplexity(model, tokenizer):.4g}"})

# %%
judge("base, no adapter", base)
judge("float32, merged", merged)
for dtype in (torch.bfloat16, torch.float16):
    judge(f"{str(dtype).removeprefix('torch.')}, merged",
          PeftModel.from_pretrained(fresh_base().to(dtype), adapter).merge_and_unload().float())

# %% [markdown]
# The last line computes in float32 with the rounded weights (what was rounded off stays off): 16-bit arithmetic is slow
# on most CPUs, and the question is what the *weights* lost. Now the quantised bases. PEFT's warnings are collected
# instead of shown 210 times.

# %%
said = {}
for precision in ("int8", "nf4"):
    def quantised():
        return load_base(precision=precision, quiet=True)[0]
    judge(f"{precision} base, unmerged", PeftModel.from_pretrained(quantised(), adapter).eval())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_place = PeftModel.from_pretrained(quantised(), adapter).merge_and_unload()
    said[precision] = [str(w.message) for w in caught if "erge" in str(w.message)]
    judge(f"{precision} base, merged in place", in_place)
    del in_place
    judge(f"{precision} base back in float32, merged",
          PeftModel.from_pretrained(quantised().dequantize(), adapter).merge_and_unload())
    judge(f"merged in float32, then {precision}", load_base("adapters/merged-float32", precision, quiet=True)[0])

# %%
for precision, messages in said.items():
    print(f"{precision}: {len(messages)} times {messages[0]!r}")
table(lines)

# %% [markdown]
# **Look** at the column KL first: how far each model's predictions are from those of the model you trained, before
# a changed answer shows it. Then compare the int8 rows with one another, and the nf4 rows.
#
# - **float32** loses nothing. **float16** and **bfloat16** lose a little, bfloat16 more: it has 8 bits of precision,
#   float16 has 11.
# - **int8 in place** is further from what you trained than the other three int8 rows: merge in float32 and *then*
#   quantise. *Back in float32* is the closest, because int8 layers also round what goes into them (Lesson 3).
# - **nf4 in place** is the base again: the training is gone. The warning that PEFT gives for this is the same as for
#   int8, and speaks of rounding errors.
#
# The score on 42 commands is too coarse to put the int8 rows in order: a command more or less is chance. KL and the
# changed tokens look at every position, and see what the score does not.

# %%
print(f"KL to the trained model, int8: merged in place {losses['int8 base, merged in place']['KL']:.4f}, "
      f"merged in float32 and then int8 {losses['merged in float32, then int8']['KL']:.4f}")
assert losses["merged in float32, then int8"]["KL"] < losses["int8 base, merged in place"]["KL"]

# %% [markdown]
# ### Why? The update against the grid
#
# A quantised base lies *on* its grid: every weight is a grid point. Add an update much smaller than the distance to the
# next point, round to the grid again, and you are back where you started. The same small update added to weights that
# are *not* on this grid pushes those that lie close to a border across it: a few weights move by a whole step, and on
# average that adds up to the update.
#
# Test it on one layer. Scale its update up and down, and see what share of it arrives.

# %%
from bitsandbytes import functional


def nf4(weight):
    return functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))

def int8(weight):
    step = weight.abs().amax(1, keepdim=True) / 127
    return (weight / step).round() * step

def arrived(before, after, update):
    return (((after - before) * update).sum() / update.square().sum()).item()

W = base.model.layers[5].self_attn.q_proj.weight.detach().cpu()
update = layer.get_delta_weight("default").detach().cpu()
SIZES = [2.0**k for k in range(-2, 9)]
kept = {}
for grid in (nf4, int8):
    kept[f"{grid.__name__}, in place"] = [arrived(grid(W), grid(grid(W) + s * update), s * update) for s in SIZES]
    kept[f"{grid.__name__}, merged first"] = [arrived(grid(W), grid(W + s * update), s * update) for s in SIZES]

# %%
plots.lines({name: (SIZES, [100 * share for share in shares]) for name, shares in kept.items()},
            "update, times the trained one", "share of the update that arrives (%)", mark=1, xscale="log")

# %%
steps = {"nf4": W.reshape(-1, 64).abs().amax(1).mean().item() * 2 / 15, "int8": W.abs().amax(1).mean().item() / 127}
table([{"grid": name, "mean step": f"{step:.4f}", "the update's typical entry": f"{update.std().item():.4f}",
              "steps": f"{update.std().item() / step:.3f}",
              "arrives in place": f"{kept[f'{name}, in place'][2]:.1%}",
              "arrives merged first": f"{kept[f'{name}, merged first'][2]:.1%}"} for name, step in steps.items()])

# %%
compare("merge/nf4_left", 100 * kept["nf4, in place"][2])

# %% [markdown]
# **Look** at the upright line, where the trained adapter is, and at how far to the right the *in place* curves climb.
# What decides is the size of the update in steps of the grid. A longer or hotter training, or a larger alpha, gives
# larger updates: your adapter may survive what this one does not. *Merged first* arrives at every size; its price is
# noise, because each weight still moves by whole steps. In the table of all models, compare the last row with *nf4
# base, unmerged*: quantising the base alone costs most of that.
#
# So merge while the weights are in 16 or 32 bits and off the grid, and quantise the result if you must: this is also
# what PEFT's maintainers advise (issue 638). This adapter was trained on the float32 base. For one that was trained on
# a quantised base, which weights to merge into is a question of its own; a drill below measures it.

# %%
quiz("merge/dead_zone")

# %%
quiz("merge/order")

# %% [markdown]
# ## The merge audit
#
# Nobody should have to read tables to ship a model. `merging.audit(model, prompts, tokenizer)` merges a copy, asks both
# your own prompts, and says what it found. It works on any PEFT model of transformers.

# %%
prompts = [c.prompt for c in commands[:10]]
sound = merging.audit(trained, prompts, tokenizer)
print(sound)

# %%
on_nf4 = PeftModel.from_pretrained(load_base(precision="nf4")[0], adapter).eval()
lossy = merging.audit(on_nf4, prompts, tokenizer)
print(lossy)
table([{"prompt": p.strip(), "unmerged": a, "merged": b} for p, a, b in lossy.changed_answers[:4]]
            or [{"changed answers": "none"}])

# %% [markdown]
# Four verdicts. *Safe to ship*: every answer is the same, and the predictions move by less than a hundredth of what
# the adapter does. *Do not ship*: they move by more than a tenth of it, the interval of the answers that differ lies
# above a tenth, or the weights prove a fault, whatever the answers are. Between the two: *look before you ship*. *Not
# shown*: on these prompts the adapter does nothing, so they cannot tell. Take them from your users, not from your
# training data.
#
# One trap on CPUs with bfloat16 instructions: the first evaluation of an nf4 model packs its weights into another
# layout, and PEFT merges them as if it had not. Even the base is gone then. Merge first, evaluate afterwards:

# %%
print(f"unmerged: loss {scoring.quick_score(trained, tokenizer, commands[:14]).loss:.2f};",
      f"without adapter: {scoring.quick_score(base, tokenizer, commands[:14]).loss:.2f}")
with warnings.catch_warnings(action="ignore"):
    for when in ("merged before any evaluation", "merged after an evaluation"):
        if when == "merged after an evaluation":
            scoring.quick_score(on_nf4, tokenizer, commands[:2])
        merged_nf4 = copy.deepcopy(on_nf4).merge_and_unload()
        print(f"{when}: loss {scoring.quick_score(merged_nf4, tokenizer, commands[:14]).loss:.2f}")
del on_nf4, merged_nf4

# %% [markdown]
# If the last two are alike, your CPU does not pack. The audit evaluates copies, so that the model you give it stays
# fit to be merged; and if the weights are packed already, it says so.
#
# ## Common gotcha: three calls, three objects
#
# For the rest of the lesson a **pocket model** will do: a quarter of a million weights, pretrained on the course's
# commands. Its new skill is a dialect in which rooms, devices and states go by one another's names.

# %%
small, words = pocket.load()
DEVICES = {"one": ("light", "fan", "music", "volume"), "two": ("blinds", "door", "heating")}

def dialect(split, n, skill):
    chosen = [c for c in smart_home.commands(split, n=n, seed=0) if any(f'"{d}":' in c.answer for d in DEVICES[skill])]
    return pocket.dialect(chosen)

def train(model, skill, steps=120, lr=0.01):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for step, batch in zip(range(steps), pocket.stream(dialect("train", 2500, skill), batch_size=16, seed=0)):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()

# %%
def lora(**changes):
    return LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes)

transformers.set_seed(0)
skills = get_peft_model(copy.deepcopy(small), lora(), adapter_name="one")
train(skills, "one")
tests = {skill: dialect("validation combinations", 400, skill) for skill in DEVICES}
print("skill one:", scoring.quick_score(skills, words, tests["one"]))
skills.save_pretrained("adapters/skills", selected_adapters=["one"])
ONE = "adapters/skills/one"

# %%
def fresh():
    return PeftModel.from_pretrained(copy.deepcopy(small), adapters.adapter_folder(ONE))

rows = []
for call in ("merge_adapter", "merge_and_unload", "unload"):
    model = fresh()
    given_back = getattr(model, call)()
    held = model if given_back is None else given_back
    held.save_pretrained(f"runs/merging/{call}")
    rows.append({"call": call, "gives back": type(given_back).__name__,
                 "LoRA layers inside": any("lora_" in n for n, _ in held.named_parameters()),
                 "skill one": f"{scoring.quick_score(held, words, tests['one']).exact:.1%}",
                 "saving writes": ", ".join(f.name for f in Path(f"runs/merging/{call}").glob("*.safetensors"))})
table(rows)

# %%
quiz("merge/three_calls")

# %% [markdown]
# `merge_adapter` is for a moment: the adapter is added in and can be taken out again, and saving still writes the
# adapter alone. `merge_and_unload` is for good. `unload` throws the adapter away.
#
# ## Error recovery: eight ways to ship the wrong thing
#
# Some raise an error, some warn, some are silent. **Guess for each before you look.**

# %%
quiz("merge/silent")

# %% [markdown]
# **Merging and then training on.** Here the adapter is loaded to be trained, and then merged:

# %% tags=["nbval-check-output"]
batch = next(iter(pocket.stream(tests["one"], batch_size=4, seed=0)))
for call in ("nothing", "merge_adapter", "merge_and_unload"):
    model = PeftModel.from_pretrained(copy.deepcopy(small), ONE, is_trainable=True)
    model = model if call == "nothing" else getattr(model, call)() or model
    try:
        model(**batch).loss.backward()
        print(f"{call}: gradients for {sum(p.grad is not None for p in model.parameters())} tensors")
    except RuntimeError as error:
        print(f"{call}: RuntimeError: {error}")

# %% [markdown]
# After a merge there is nothing left to train, and the backward pass is the first to say so. The way back is
# `unmerge_adapter()`, or loading the adapter again with `is_trainable=True`.
#
# **Merging twice.** `merge_adapter` notices. Loading the adapter onto a model that has it merged in does not:

# %% tags=["nbval-check-output"]
model = fresh()
model.merge_adapter()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.merge_adapter()
messages = [str(w.message) for w in caught]
print("merge_adapter again:", len(messages), "times", set(messages))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    double = PeftModel.from_pretrained(fresh().merge_and_unload(), ONE)
print("loaded onto the merged model:", [str(w.message) for w in caught if "erge" in str(w.message)])

# %%
asked = [c.prompt for c in tests["one"][:28]]
print(merging.audit(fresh(), asked, words, deployed=double))

# %% [markdown]
# The audit also takes the model that production loads, as `deployed=`, and looks at its weights: that is how it can say
# *why*. Of an engine that hides its weights it takes the texts that it served, as `answers=`.
#
# **Saving the wrong object.** `merge_and_unload()` also takes the LoRA layers out of the model you called it on. If
# you throw its return value away, `model` still calls itself a PeftModel, and saving it writes:

# %%
model = fresh()
model.merge_and_unload()  # the return value is thrown away
model.save_pretrained("runs/merging/discarded")
print(type(model).__name__, "wrote", sorted(f.name for f in Path("runs/merging/discarded").iterdir()))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    again = PeftModel.from_pretrained(copy.deepcopy(small), adapters.adapter_folder("runs/merging/discarded"))
print("warned:", [str(w.message)[:58] + " ..." for w in caught if "missing" in str(w.message)])
print("loaded again:", scoring.quick_score(again, words, tests["one"]))

# %% [markdown]
# An adapter file without an adapter, saved without a word. Loading it warns, and gives the base. `shipping.ship`,
# below, refuses such a model:

# %% tags=["nbval-check-output"]
from lora_lab import shipping

try:
    shipping.ship(model, words, "runs/merging/refused", "a card")
except Exception as error:
    print(type(error).__name__, error)

# %% [markdown]
# **Forgetting the tokenizer.** The weights alone load; what asks them does not:

# %%
fresh().merge_and_unload().save_pretrained("runs/merging/no-tokenizer")
try:
    transformers.AutoTokenizer.from_pretrained("runs/merging/no-tokenizer")
except Exception as error:
    print(type(error).__name__, str(error).strip().splitlines()[0].rstrip(": "))

# %% [markdown]
# **Tied embeddings.** In many small models the output layer *is* the embedding matrix. An adapter on `lm_head` acts on
# the output alone; merged, it changes the input as well:

# %%
transformers.set_seed(0)
with warnings.catch_warnings(action="ignore"):
    tied = get_peft_model(copy.deepcopy(small), lora(target_modules=["q_proj", "lm_head"]))
    found = merging.audit(train(tied, "one", steps=40), asked, words)
print(found.verdict, "-", str(found).splitlines()[0], "\n", [line for line in found.findings if "tied" in line][0])

# %% [markdown]
# **NaN.** One bad number in an adapter spreads over every logit. `safe_merge=True` looks before it writes:

# %% tags=["nbval-check-output"]
model = fresh()
with torch.no_grad():
    model.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight[0, 0] = float("nan")
try:
    copy.deepcopy(model).merge_and_unload(safe_merge=True)
except ValueError as error:
    print("safe_merge:   ", error)
print("without:       NaN in the weights:", any(p.isnan().any().item() for p in model.merge_and_unload().parameters()))

# %% [markdown]
# **Unmerging, and what is left.** Adding and subtracting the same number is not the identity on a computer:

# %%
rows = []
for dtype in (torch.float32, torch.bfloat16):
    model = PeftModel.from_pretrained(copy.deepcopy(small).to(dtype), ONE)
    untouched = {n: p.clone() for n, p in model.named_parameters() if "base_layer" in n}
    for _ in range(5):
        model.merge_adapter()
        model.unmerge_adapter()
    after = {n: p for n, p in model.named_parameters() if n in untouched}
    changed = torch.cat([(after[n] != p).flatten() for n, p in untouched.items()]).float().mean().item()
    largest = max((after[n] - p).abs().max().item() for n, p in untouched.items())
    rows.append({"base": str(dtype).removeprefix("torch."), "weights changed by 5 rounds": f"{changed:.2%}",
                 "largest change": f"{largest:.1e}"})
table(rows)

# %%
quiz("merge/unmerge")

# %% [markdown]
# **Merging into another base than it was trained on.** An adapter trained on an nf4 base has learned to go with the
# *rounded* weights. Merge it into those, restored to float32, or into the original ones? Both, and what is left when
# the result is put onto the grid:

# %%
def on_grid(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in model.model.layers.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(nf4(layer.weight))
    return model

transformers.set_seed(0)
on_rounded = train(get_peft_model(on_grid(small), lora()), "one", steps=80, lr=0.003)
on_rounded.save_pretrained("runs/merging/on-rounded")
into = {where: PeftModel.from_pretrained(copy.deepcopy(start), adapters.adapter_folder("runs/merging/on-rounded"))
        .merge_and_unload() for where, start in {"rounded": on_grid(small), "original": small}.items()}

# %%
rows = words([c.prompt + c.answer for c in tests["one"][:50]], padding=True, return_tensors="pt")
seen = rows.pop("attention_mask").bool()
with torch.no_grad():
    p = on_rounded(rows["input_ids"]).logits[seen].log_softmax(-1)
    lines = []
    for where, model in into.items():
        for then, shipped in {"float32": model, "nf4 again": on_grid(model)}.items():
            q = shipped(rows["input_ids"]).logits[seen].log_softmax(-1)
            lines.append({"merged into": f"the {where} base", "served in": then,
                          "KL to what was trained": f"{(p.exp() * (p - q)).sum(-1).mean().abs():.1e}",
                          "skill one": f"{scoring.quick_score(shipped, words, tests['one']).exact:.1%}"})
table(lines)

# %%
one = on_rounded.base_model.model.model.layers[0].mlp.up_proj
step = one.base_layer.weight.reshape(-1, 64).abs().amax(1).mean().item() * 2 / 15
print(f"its update's typical entry: {one.get_delta_weight('default').std().item() / step:.2f} steps of the grid")

# %% [markdown]
# Served in float32, the rounded base gives exactly what was trained; the original is another base, and its predictions
# are others (KL), though the scores differ by no more than chance. Served in nf4 again, merging into the rounded base
# is what merging in place does: whether the update survives depends on its size. This one's is printed in steps of the
# grid; SmolLM2's, far smaller, stands in the table of the grids. So: `load_base(..., precision="nf4")[0]`,
# `dequantize()` and merge to serve in 16 or 32 bits; the original base to quantise again; and the audit against the
# model you *trained* for either.

# %% [markdown]
# ## Not merging: many skills on one base
#
# A merged model has one skill. An unmerged base can carry many adapters and switch between them. Train a second skill
# for the other devices, as a second adapter on the same base.

# %%
skills.add_adapter("two", lora())
skills.set_adapter("two")
train(skills, "two")

def scores(model):
    return {f"skill {skill}": f"{scoring.quick_score(model, words, test).exact:.1%}" for skill, test in tests.items()}

rows = []
for active in ("one", "two"):
    skills.set_adapter(active)
    rows.append({"active": active} | scores(skills))
with skills.disable_adapter():
    rows.append({"active": "none (disable_adapter)"} | scores(skills))
table(rows)

# %% [markdown]
# Each adapter knows its own half. Which one is active can differ from request to request, and even from row to row of a
# batch:

# %% tags=["nbval-check-output"]
mixed = tests["one"][:3] + tests["two"][:3]
rows = words([c.prompt for c in mixed], padding=True, padding_side="left", return_tensors="pt")
rows = {name: rows[name] for name in ("input_ids", "attention_mask")}
with torch.no_grad():
    output = skills.generate(**rows, do_sample=False, max_new_tokens=16, pad_token_id=words.pad_token_id,
                             adapter_names=["one"] * 3 + ["two"] * 3)
said = words.batch_decode(output[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)
table([{"adapter": name, "command": c.text, "answer": a, "right": a == c.answer}
             for name, c, a in zip(["one"] * 3 + ["two"] * 3, mixed, said)])

# %% [markdown]
# Could one adapter hold both? `add_weighted_adapter` makes a new one out of several, in one of these ways:
#
# - `cat` stacks the A's and the B's: the exact sum of the updates, and ranks add up.
# - `linear` adds the A's to one another, and the B's: the rank stays.
# - `svd` takes the exact sum, and cuts it to the rank `svd_rank` (Lesson 1).
# - `ties` keeps the largest entries of each A and B (the share `density` of them), and where signs disagree, those of
#   the stronger sign.
# - `dare_linear` and `dare_ties` drop entries at random until `density` is left, and scale the rest up to make good.
#
# **Predict** the exact match on
# skill one of the two put side by side (`cat`), which adds both updates to the weights, without error:

# %%
quiz("merge/both_skills")

# %%
rows, together = [], {}
for kind, options in {"cat": {}, "linear": {}, "svd": {"svd_rank": 8}, "ties": {"density": 0.5},
                      "dare_linear": {"density": 0.5}, "dare_ties": {"density": 0.5}}.items():
    for weight in (1.0, 0.5):
        transformers.set_seed(0)  # dare drops at random
        name = f"{kind} {weight}".replace(".", "_")
        skills.add_weighted_adapter(["one", "two"], [weight, weight], name, combination_type=kind, **options)
        skills.set_adapter(name)
        rank = skills.base_model.model.model.layers[0].mlp.up_proj.lora_A[name].weight.shape[0]
        together[kind, weight] = scoring.quick_score(skills, words, tests["one"]).exact
        rows.append({"combination": kind, "weights": weight, "rank": rank} | scores(skills))
        skills.set_adapter("one")
        skills.delete_adapter(name)
table(rows)

# %%
compare("merge/both_skills", 100 * together["cat", 1.0])

# %% [markdown]
# **Look** for a row that keeps both. Here two skills in a quarter of a million weights disturb one another, however
# they are put together; larger models and skills further apart are not measured here. The method does not tell you: the
# score of *each* skill does, and there is always the choice of switching instead.
#
# `linear` surprises even with one skill. It adds the A's and the B's, and the product of two sums has cross terms:
# $(B_1+B_2)(A_1+A_2)$ is more than $B_1A_1+B_2A_2$. Half an adapter plus half of the same adapter shows it:

# %% tags=["nbval-check-output"]
own = skills.base_model.model.model.layers[0].mlp.up_proj
for kind in ("linear", "cat"):
    skills.add_weighted_adapter(["one", "one"], [0.5, 0.5], "halves", combination_type=kind)
    times = (own.get_delta_weight("halves").norm() / own.get_delta_weight("one").norm()).item()
    print(f"{kind}: half plus half is {times:.2f} times the adapter")
    skills.delete_adapter("halves")

# %%
quiz("merge/linear_twice")

# %% [markdown]
# What does it cost to hold many skills, and to switch? `hotswap_adapter` puts another file's A and B into the place of
# those in memory, without building layers.

# %%
from peft.utils.hotswap import hotswap_adapter


def milliseconds(function, times=5):
    started = clock()
    for _ in range(times):
        function()
    return 1000 * (clock() - started) / times

trained.load_adapter(adapter, adapter_name="second")
costs = {"set_adapter": milliseconds(lambda: [trained.set_adapter(name) for name in ("second", "default")]) / 2,
         "hotswap_adapter": milliseconds(lambda: hotswap_adapter(trained, adapter, adapter_name="second")),
         "load another merged model": milliseconds(
             lambda: transformers.AutoModelForCausalLM.from_pretrained("adapters/merged-float32"), times=1)}
trained.delete_adapter("second")
size = {"one merged model": sum(p.nbytes for p in merged.parameters()),
        "one adapter": sum(p.nbytes for n, p in trained.named_parameters() if "lora_" in n)}
table([{"switch by": name, "ms": f"{ms:,.0f}"} for name, ms in costs.items()])

# %%
table([{"skills": n, "merged copies": f"{n * size['one merged model'] / 1e6:,.0f} MB",
              "base and adapters": f"{(size['one merged model'] + n * size['one adapter']) / 1e6:,.0f} MB"}
             for n in (1, 2, 10, 100)])

# %%
quiz("merge/bytes_served")

# %% [markdown]
# **Merge** when one skill serves all requests and every millisecond counts, or when the program that runs the model
# knows no adapters. **Do not merge** when several skills share a base, when you want to switch the skill off, or when
# the base is stored in 4 or 8 bits and the 16-bit base is out of reach.

# %%
quiz("merge/when_not")

# %% [markdown]
# ## Ship it
#
# What has to travel: weights as safetensors, the config, the tokenizer, and a card that says what this is. No pickle,
# no path of your machine. The card is yours to write; names, data, licence, scores and settings are what the next
# person will look for.

# %%
from huggingface_hub import ModelCardData


def card(kind, tags):
    config, score = trained.peft_config["default"], scoring.score(held_out["phrasings"], answers["merged", "phrasings"])
    return f"""---
{ModelCardData(base_model="HuggingFaceTB/SmolLM2-135M-Instruct", license="apache-2.0", language="en", **tags)}
---
# Home commands to JSON ({kind})

Asked "> " + a command + a newline, it answers with one JSON action.

- Base: HuggingFaceTB/SmolLM2-135M-Instruct, read from its 4-bit GGUF file. Licence: Apache-2.0.
- Data: lora_lab.smart_home, split "train", seed 0 (generated; held-out phrasings for the score).
- Score on held-out phrasings: {score}.
- LoRA: rank {config.r}, alpha {config.lora_alpha}, {len(config.target_modules)} kinds of layers.
"""

print(card("adapter", {"library_name": "peft"}))

# %% [markdown]
# `shipping.ship` calls `save_pretrained` for model and tokenizer in a folder beside the final one and swaps the two at
# the end. A full disk or a killed kernel leaves what was there before.

# %%
shipping.ship(trained, tokenizer, "adapters/shipped", card("adapter", {"library_name": "peft"}))
shipping.ship(merged, tokenizer, "adapters/shipped-merged", card("merged", {"library_name": "transformers"}))
table([{"folder": folder, "file": f.name, "kB": f"{f.stat().st_size / 1000:,.1f}"}
             for folder in ("adapters/shipped", "adapters/shipped-merged") for f in sorted(Path(folder).iterdir())])

# %% [markdown]
# The real test of a shipped model is another process that knows nothing of this notebook. It has transformers and PEFT
# and no `lora_lab`. It is handed the base that the adapter was trained on: the weights that the card calls by
# their public name, read from a 4-bit file. Weights of that name from elsewhere are rounded differently: another base.

# %%
Path("runs/merging/ask.py").write_text("""
import json, sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, base, prompts = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(base or folder)
if base:
    model = PeftModel.from_pretrained(model, folder)
rows = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
output = model.generate(**rows, do_sample=False, max_new_tokens=16)
print(json.dumps(tokenizer.batch_decode(output[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)))
""")
print("written: runs/merging/ask.py")

# %%
import json
import subprocess
import sys

from lora_lab import cache

asked = [c.prompt for c in held_out["phrasings"][:16]]
for folder, needs in (("adapters/shipped", str(cache.model_folder())), ("adapters/shipped-merged", None)):
    command = [sys.executable, "runs/merging/ask.py", json.dumps([folder, needs, asked])]
    there = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(f"{folder}: {sum(a == b for a, b in zip(there, answers['unmerged', 'phrasings']))} of {len(asked)} identical")

# %% [markdown]
# Other programs load the same folders. The first two ways were tried on a CPU; vLLM, which wants a GPU, was **not**.
# What llama.cpp answers to a hundred commands, and how to make its files from the merged model or from the adapter
# alone, is in the [benchmarks](../benchmarks/README.md): in 16 bits every answer was the same.
#
#     transformers serve adapters/shipped-merged --host 127.0.0.1 --port 8125   # pip install "transformers[serving]"
#     python convert_hf_to_gguf.py adapters/shipped-merged --outtype f16 --outfile merged.gguf  # of llama.cpp
#     vllm serve BASE --enable-lora --lora-modules home=adapters/shipped
#
# `transformers serve` has no option for an adapter yet: given the adapter's folder, it answers with an error. Merge
# for it.

# %%
quiz("merge/ship_both")

# %% [markdown]
# And a save that is stopped in the middle:

# %%
class StoppedHalfway:  # as if you pressed stop while the tokenizer was being saved
    def save_pretrained(self, folder):
        raise KeyboardInterrupt

try:
    shipping.ship(merged, StoppedHalfway(), "adapters/shipped-merged", "a card")
except KeyboardInterrupt:
    print("stopped; still", Path("adapters/shipped-merged/README.md").read_text().splitlines()[6])

# %% [markdown]
# ## What just happened?
#
# One sum, $W + s\,BA$, and everything that can go wrong around it. Merging itself is exact to float32's rounding. What
# loses the training is the grid of the weights you merge into; what ships the wrong model is doing it twice, saving
# another object, or loading another base. Most of it is silent, and all of it shows when the same prompts are put to
# the model you trained and the model you ship.
#
# ## Experienced-dev note
#
# - Keep the adapter and the exact name of its base, even if you ship the merged model: there is no way back from it.
# - A run trained on int8 or nf4: dequantise and merge to serve in 16 bits; merge into the original base to quantise
#   again; audit against the model you *trained*.
# - Merging does not keep you from trying other ranks, as the card says of merging in training: you would train another
#   adapter on the base you still have. What you lose by merging early is the trainable part.
# - The audit compares with greedy answers. If you sample in production, look at `worst_logit` and `lost`, too.
#
# ## Check your understanding

# %%
quiz("merge/audit_reads")

# %%
quiz("merge/same_warning")

# %%
quiz("merge/card_claim")

# %%
progress()

# %% [markdown]
# ## Exercises
#
# **1. Four deployments, three of them broken.** `adapters/deployed` holds deployments of skill one, `a` to `d`: a
# folder with the base, a folder with the adapter. One is sound. One has the wrong revision of the base, in one the
# base had the adapter merged in before, in one somebody edited alpha on disk. Audit each against `reference`, then
# fill in the faults below: `"sound"`, `"base"`, `"merged"` or `"alpha"`.

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
# **2. Repair them.** Complete the function: it gets the folder of a deployment, the right base (a loaded model) and the
# alpha of the training, and returns the model that should have been deployed. The check breaks fresh ones for it.

# %%
def repaired(folder, right_base, alpha):
    return load_deployed(folder)

quiz("merge/repaired", repaired)

# %% [markdown]
# **3. The one worth doing.** Take an adapter of your own, from work or from Lesson 3, and twenty prompts of your users.
# Audit the merge in the precision you serve in. If it says *look*, read the changed answers: would your users mind?
#
# ## Recap
#
# - $W' = W + s\,BA$: exact in float32, rounded in 16 bits, lost on a coarse grid that the base already lies on.
# - Merge in 16 or 32 bits, quantise after, and let the same prompts judge the model you trained and the one you ship.
# - Merge for one skill; keep adapters for many.
#
# Next: **Lesson 7** takes the training beyond one GPU.
#
# Merging was introduced with LoRA itself: Hu et al., *LoRA* (2021), section 4.1, "No Additional Inference Latency".
# TIES: Yadav et al. (2023). DARE: Yu et al. (2024).
#
# *Lessons:* ← [5 · The alpha experiments](05_alpha_scaling.ipynb) ·
# [7 · Past one GPU](07_past_one_gpu.ipynb) →
