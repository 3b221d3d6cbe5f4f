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
# # 2 · LoraConfig and target modules: saying where and how much
#
# *Lessons:* ← [1 · Low-rank math: why two thin matrices are enough](01_low_rank_math.ipynb) ·
# [3 · Training in 8 bits: where the memory goes](03_train_in_8bit.ipynb) →
#
# The names and numbers in a `LoraConfig` decide what trains. Many mistakes in them raise no error. Here you change each
# field and look at what it does to the model, make the classic mistakes on purpose, measure what they cost, and learn
# to catch them before training.
#
# **You will be able to** write a config for any model and any budget, read what it will train before it trains, and
# choose modules by measurement instead of by hearsay.
#
# **You need** [Lesson 0](00_first_adapter.ipynb) and [Lesson 1](01_low_rank_math.ipynb).
#
# **It takes** about three minutes of computing on two CPU cores
# (on a GPU: not recorded).
#
# ## Why this matters
#
# A model of another family calls its layers by other names. Copy a config from a tutorial, and some of its names match
# nothing. If none match, PEFT stops you. If only *some* do, it trains what is left, the loss falls, and nobody notices.

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
import copy
import warnings

import torch
from lora_lab import LabError, batches, compare, load_base, plots, progress, quiz, scoring, smart_home, targets
from lora_lab.course import explorers
from lora_lab.display import table
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments, set_seed

SEED = 0
set_seed(SEED)
base, tokenizer = load_base(precision="float32")  # for close comparisons; None trains as this machine does best

def adapt(precision="float32", **options):
    """The base, loaded again, with an adapter: these defaults, unless the options say otherwise."""
    defaults = dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(load_base(precision=precision, quiet=True)[0], LoraConfig(**defaults | options))

# %% [markdown]
# ## Explanation: a config is a set of names and a set of numbers
#
# **Where** is a matter of names: PEFT walks through the model's modules and compares each full name, such as
# `model.layers.7.self_attn.q_proj`, with what you gave. **How much** is a matter of numbers: rank, alpha, dropout.
#
# So first look at the names. These are the linear layers of our model, gathered by name:

# %%
# NBVAL_CHECK_OUTPUT
explorers.group_table(base)

# %% [markdown]
# **Analogy.** A config is a work order for a house: which doors (names) get which lock (numbers). A locksmith who is
# told "all front doors and the grage" does the front doors and goes home.
#
# ## Code: the target explorer
#
# Tick layers and move the rank (Tab and the space bar or arrow keys work too). The picture is one block, drawn to
# scale: grey are the frozen weights, the thin blue line is A, the thin orange one B. Below is the config, and what it
# trains.
#
# **Predict.** Which names add most parameters? Which least?

# %%
explorers.explore(base)

# %%
quiz("targets/named_config")

# %% [markdown]
# ## What just happened? Every field, one at a time
#
# **r** is the rank. The parameters grow in proportion to it.

# %%
# NBVAL_CHECK_OUTPUT
rows = []
for r in (1, 8, 64):
    trainable = targets.check(base, LoraConfig(r=r, target_modules=["q_proj", "v_proj"])).trainable
    layer = adapt(r=r).base_model.model.model.layers[0].self_attn.v_proj
    rows.append({"r": r, "A": tuple(layer.lora_A["default"].weight.shape),
                 "B": tuple(layer.lora_B["default"].weight.shape),
                 "trainable": f"{trainable:,}"})
table(rows)

# %% [markdown]
# **lora_alpha** and **use_rslora** set the scaling: alpha/r, or alpha/√r with rank-stabilised LoRA (Kalajdzievski
# 2023). PEFT's defaults are r = 8 and lora_alpha = 8.
#
# **Predict.** You raise r from 8 to 64 and leave alpha alone. What happens to the scaling in each case?

# %%
# NBVAL_CHECK_OUTPUT
def scaling(**options):
    return adapt(**options).base_model.model.model.layers[0].self_attn.v_proj.scaling["default"]

table([{"r": r, "lora_alpha": 16, "scaling": scaling(r=r),
              "with use_rslora": f"{scaling(r=r, use_rslora=True):.3f}"} for r in (1, 8, 64)])

# %% [markdown]
# **lora_dropout** zeroes random inputs of A while training. It makes two forward passes differ, until `model.eval()`.
# `get_peft_model` leaves the new layers in training mode, whatever mode the model was in: the first trap for anybody
# who compares outputs.

# %%
# NBVAL_CHECK_OUTPUT
ids = tokenizer("The ferry leaves the old harbour at", return_tensors="pt").to(base.device)

@torch.no_grad()
def apart(model_a, model_b):
    return (model_a(**ids).logits - model_b(**ids).logits).abs().max().item()

for dropout in (0.0, 0.5):
    model = adapt(lora_dropout=dropout, init_lora_weights=False)  # random B, or dropout would drop nothing visible
    print(f"dropout {dropout}: two passes in training mode differ: {apart(model, model) > 0};",
          f"in eval mode: {apart(model.eval(), model) > 0}")

# %% [markdown]
# **bias** can train the biases of the model too: of the adapted layers (`"lora_only"`) or of all (`"all"`). Llamas have
# none; Qwen2 has them on q, k and v. Trained biases belong to the model and not to the adapter's path: switching the
# adapter off does *not* take them back (PEFT's documentation warns of it). Leave it at `"none"` unless you know why.

# %%
# NBVAL_CHECK_OUTPUT
with torch.device("meta"):  # shapes without weights
    qwen = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=4, hidden_size=896, intermediate_size=4864,
                                        num_attention_heads=14, num_key_value_heads=2))
for name, model in (("our model", base), ("Qwen2", qwen)):
    for bias in ("none", "lora_only", "all"):
        report = targets.check(model, LoraConfig(target_modules=["q_proj", "o_proj"], bias=bias))
        print(f"{name:10} bias={bias!r:12} {report}")

# %% [markdown]
# **task_type** picks the wrapper class. With `"CAUSAL_LM"` you get the one that knows about generation; a misspelt
# type is an error. Without it you get a general wrapper, which forwards what it does not know to the model.

# %%
# NBVAL_CHECK_OUTPUT
for task_type in (None, "CAUSAL_LM"):
    print(task_type, "->", type(adapt(task_type=task_type)).__name__)
try:
    adapt(task_type="CAUSALLM")
except ValueError as error:
    print(f"ValueError: {str(error)[:60]}...")

# %% [markdown]
# **target_modules** comes in four forms. A **list**: each entry is a full name, or the end of one after a dot. A
# **string** is a regular expression for the *whole* name. **"all-linear"** takes every linear layer but the output
# head. **None** takes PEFT's own choice for this kind of model, if it has one.
#
# **Predict.** Which three lines below adapt the same layers?

# %%
# NBVAL_CHECK_OUTPUT
for chosen in (["q_proj", "v_proj"], r".*\.(q|v)_proj", r".*layers\.[0-9]\.mlp\..*_proj", "all-linear", None):
    report = targets.check(base, LoraConfig(target_modules=chosen))
    print(f"{str(chosen):35} {report}")

# %% [markdown]
# **exclude_modules** takes names out again. **layers_to_transform** keeps only some layers (with a list; in a regular
# expression you write the numbers yourself). What a layer number means, PEFT reads from the first number in the name.

# %%
# NBVAL_CHECK_OUTPUT
for options in (dict(target_modules="all-linear"),
                dict(target_modules="all-linear", exclude_modules=["down_proj"]),
                dict(target_modules="all-linear", exclude_modules=r".*layers\.(0|29)\..*"),
                dict(target_modules=["q_proj", "v_proj"], layers_to_transform=[27, 28, 29])):
    print(options, "\n   ", targets.check(base, LoraConfig(**options)))

# %% [markdown]
# **rank_pattern** and **alpha_pattern** give single layers their own rank and alpha. The first pattern that matches
# wins.
#
# **Predict.** `rank_pattern={"v_proj": 32}` raises the rank of the value projections. What happens to their scaling?

# %%
# NBVAL_CHECK_OUTPUT
def rank_and_scaling(**options):
    attention = adapt(**options).base_model.model.model.layers[0].self_attn
    return {name: f"r {layer.r['default']}, scaling {layer.scaling['default']}"
            for name, layer in (("q_proj", attention.q_proj), ("v_proj", attention.v_proj))}

table([{"config": text} | rank_and_scaling(**options) for text, options in {
    "r=8, lora_alpha=16": {},
    "rank_pattern v_proj: 32": dict(rank_pattern={"v_proj": 32}),
    "and alpha_pattern v_proj: 64": dict(rank_pattern={"v_proj": 32}, alpha_pattern={"v_proj": 64}),
}.items()])

# %% [markdown]
# Four times the rank, a quarter of the scaling: the layer you meant to favour now counts for less, until you give it an
# alpha of its own.
#
# **init_lora_weights** decides the start. The default is Lesson 1's: A random, B zero. Some others start from the
# weight's own singular vectors and *change the base weight* to make up for it. **use_dora** adds a trainable length for
# each output (Liu et al. 2024).
#
# **Predict.** Which of these starts leave the model exactly as it was?

# %%
rows = []
original = base.model.layers[5].self_attn.q_proj.weight
for options in (dict(init_lora_weights=True), dict(init_lora_weights="gaussian"), dict(init_lora_weights="orthogonal"),
                dict(init_lora_weights=False), dict(init_lora_weights="pissa"), dict(init_lora_weights="olora"),
                dict(use_dora=True)):
    model = adapt(target_modules=["q_proj"], layers_to_transform=[5], **options).eval()
    layer = model.base_model.model.model.layers[5].self_attn.q_proj
    rows.append({"start": str(options)[1:-1], "B is zero": not layer.lora_B["default"].weight.any().item(),
                 "largest change of a logit": f"{apart(model, base):.1g}",
                 "base weight changed": not torch.equal(layer.base_layer.weight, original),
                 "trainable": f"{model.get_nb_trainable_parameters()[0]:,}"})
table(rows)

# %% [markdown]
# Look at the column of changed base weights: an adapter that started that way only fits a base that was changed the
# same way. PEFT can convert it when it saves (`path_initial_model_for_weight_conversion`). Only
# `False`, meant for debugging, lets the model start elsewhere. With `"orthogonal"` both matrices are non-zero and
# their product is zero; a change of 3e-05 is float32 rounding.
#
# **modules_to_save** trains a full copy of a module, beside the adapters: a new classification head, for instance.
# **trainable_token_indices** trains single rows of the embedding, which is what you want for a few new tokens.
#
# **Predict.** Our embedding has 49,152 rows of 576 numbers. What will each of these cost?

# %%
# NBVAL_CHECK_OUTPUT
for options in ({}, dict(modules_to_save=["embed_tokens"]), dict(trainable_token_indices=[5, 6, 7, 8]),
                dict(modules_to_save=["norm"])):
    print(options, "\n   ", targets.check(base, LoraConfig(target_modules=["q_proj", "v_proj"], **options)))

# %% [markdown]
# Two things to see. `"norm"` caught far more than the final norm: modules_to_save compares the *end* of names, dot or
# not. And the full copy of the embedding comes with a warning: in our model the embedding and the output head are
# **tied**, one matrix in two places. PEFT trains a copy for one of the two, and they drift apart.
#
# **Predict.** Move what is trained a little, as a training would. Where do embedding and head still agree?

# %%
# NBVAL_CHECK_OUTPUT
def still_tied(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the one seen above
        model = adapt(**options)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.data += torch.randn_like(parameter)
    return torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)

for options in (dict(modules_to_save=["embed_tokens"]), dict(modules_to_save=["embed_tokens", "lm_head"]),
                dict(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
                dict(trainable_token_indices=[5, 6, 7, 8])):
    print(f"{options}: still tied?", still_tied(**copy.deepcopy(options)))  # PEFT adds to the list it is given

# %% [markdown]
# `ensure_weight_tying=True` keeps one matrix in both places, and single trained tokens stay tied by themselves. An
# untied model is not broken, but it has grown by a whole embedding, and merging needs care (Lesson 5).

# %% [markdown]
# The rest of `LoraConfig`, in a line each. You will rarely touch them; know that they are there.
#
# | field | what it is for |
# |---|---|
# | `target_parameters` | adapts bare parameters that are no layers, such as the experts of a mixture of experts |
# | `layers_pattern` | the name before the layer number, for `layers_to_transform` in models with unusual names |
# | `fan_in_fan_out` | for weights stored as (in, out); PEFT sets it itself for GPT-2's `Conv1D` |
# | `lora_bias` | gives B a bias; meant for adapters extracted from fully fine-tuned weights |
# | `layer_replication` | stacks copies of layers, each with its own adapter, into a deeper model |
# | `ensure_weight_tying` | keeps tied weights tied, as above |
# | `loftq_config`, `eva_config`, `corda_config`, `lora_ga_config` | details of the starts of those names |
# | `use_qalora`, `qalora_group_size` | quantisation-aware LoRA, for GPTQ weights only |
# | `alora_invocation_tokens` | Activated LoRA: the adapter acts only after these tokens; cannot be merged |
# | `velora_config`, `kasa_config`, `monteclora_config` | research variants of the layer, one at a time |
# | `use_bdlora`, `arrow_config` | block-diagonal A or B for fast serving; routing between several adapters |
# | `megatron_config`, `megatron_core` | for models built with Megatron |
# | `runtime_config` | settings of this run only, never saved |
# | `base_model_name_or_path`, `revision`, `inference_mode` | what PEFT fills in when it saves |
# | `peft_type`, `auto_mapping`, `peft_version` | the same |

# %%
quiz("targets/by_count")

# %%
quiz("targets/forms")

# %%
quiz("targets/pattern_scaling")

# %%
quiz("targets/qwen_bias")

# %% [markdown]
# ## Common gotcha: the name that matches nothing
#
# The teaching card that this course grew from warns that wrong names give "zero learning signal". Half of that is
# true. First, all names wrong:

# %%
# NBVAL_CHECK_OUTPUT
try:
    adapt(target_modules=["query"])
except ValueError as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# An error: you cannot miss it. Now one right and one wrong.

# %%
# NBVAL_CHECK_OUTPUT
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    half = adapt(target_modules=["q_proj", "value"])
said = [w for w in caught if "value" in str(w.message)]
print("warnings about 'value':", len(said))
half.print_trainable_parameters()

# %% [markdown]
# Nothing: no error, no warning, only a count that you would have to know by heart. The adapter on the value
# projections is missing.
#
# Train both on the task. Which loss falls: that of the right config, that of the wrong one, both? And the scores?

# %%
quiz("targets/wrong_name")

# %%
test = smart_home.commands("test combinations", 40, SEED) + smart_home.commands("test phrasings", 40, SEED)
collate = batches.AnswerCollator(tokenizer)
print(f"{len(test)} test commands, half of them in unseen phrasings")

def fit(model, steps, learning_rate, seed, callbacks=None):
    rows = batches.similar_lengths(batches.encode(smart_home.commands("train", steps * 8, seed), tokenizer), 8, seed)
    arguments = TrainingArguments(
        output_dir="runs/targets", max_steps=steps, per_device_train_batch_size=8, learning_rate=learning_rate,
        warmup_steps=3, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, seed=seed, dataloader_pin_memory=torch.cuda.is_available(),
        bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16, use_cpu=model.device.type == "cpu",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

# %%
losses, scores = {}, {}
for kind, names in {"q_proj, v_proj": ["q_proj", "v_proj"], "q_proj, value": ["q_proj", "value"]}.items():
    set_seed(SEED)
    model = adapt(precision=None, target_modules=names)
    losses[kind] = fit(model, steps=20, learning_rate=4e-3, seed=SEED, callbacks=[plots.LiveLoss()])
    scores[kind] = scoring.quick_score(model, tokenizer, test, progress=kind)
for kind, score in scores.items():
    print(f"{kind:16}", score)
plots.lines({kind: (range(1, 21), curve) for kind, curve in losses.items()}, "step", "training loss", yscale="log")

# %%
compare("targets/wrong_name", scores["q_proj, value"].exact / scores["q_proj, v_proj"].exact)

# %% [markdown]
# **Look** at the curves: both fall. Whoever watches the loss sees a training that works. What the one wrong name cost
# stands in the scores.
#
# `targets.check` runs PEFT on a copy of the model without weights, which takes a fraction of a second, and raises if
# any entry had no effect. Put it before every training:

# %%
# NBVAL_CHECK_OUTPUT
try:
    targets.check(base, LoraConfig(target_modules=["q_proj", "value"]))
except LabError as error:
    print(error)

# %% [markdown]
# More ways to miss in silence. For each, PEFT raises nothing; read what the check says.

# %%
# NBVAL_CHECK_OUTPUT
for options in (dict(target_modules=["q_proj"], layers_to_transform=[0, 99]),
                dict(target_modules=r".*\.(q|v|key)_proj"),
                dict(target_modules=["q_proj"], modules_to_save=["score"]),
                dict(target_modules="all-linear", exclude_modules=["o_proj", "gate"]),
                dict(target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 4, "layers.0.self_attn.v_proj": 64})):
    adapt(**options)
    print(options)
    for problem in targets.inspect(base, LoraConfig(**options)).problems:
        print("   ", problem)

# %% [markdown]
# The card's advice for finding the right names is `print(model.named_parameters())`. Try it, and then what works: the
# last part of the names of all linear layers, which is what a list wants.

# %%
print(base.named_parameters())
linear = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
print(sorted(linear))

# %%
quiz("targets/accepted")

# %% [markdown]
# ## Which modules? Measure it
#
# The card picks q and v, "where semantic understanding concentrates". Nobody has shown that. What people have measured:
#
# - **The LoRA paper** (Hu et al. 2021, section 7.1, table 5) gave GPT-3 a budget of 18 million parameters, on attention
#   only: q and v, or all four, did best; q alone was among the worst. The MLP was not tried.
# - **QLoRA** (Dettmers et al. 2023, section 4) found that adapting all linear layers is what it takes to match full
#   fine-tuning.
# - ***LoRA Without Regret*** (Schulman et al., Thinking Machines, 2025) found attention-only worse than MLP-only even
#   at the same number of parameters.
#
# Now you: four choices with about the same number of trainable parameters (a rank is a whole number, so not exactly),
# which takes a different rank for each.

# %%
# NBVAL_CHECK_OUTPUT
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
CHOICES = {"q and v": dict(r=32, target_modules=["q_proj", "v_proj"]),
           "attention": dict(r=16, target_modules=ATTENTION),
           "MLP": dict(r=10, target_modules=MLP),
           "all linear": dict(r=6, target_modules="all-linear")}
table([{"choice": kind, "rank": options["r"],
              "trainable": f"{targets.check(base, LoraConfig(**options)).trainable:,}"}
             for kind, options in CHOICES.items()])

# %% [markdown]
# **Predict.** Order the four by their score after a short training. And how far apart will best and worst be?

# %%
quiz("targets/choices_apart")

# %% [markdown]
# Each choice trains for a few steps only, so that you do not wait long; that measures how *fast* each learns. Two
# seeds, in two cells: the second tells you how much to trust the first.

# %%
results = {kind: {} for kind in CHOICES}

def race(seed):
    for kind, options in CHOICES.items():
        set_seed(seed)
        model = adapt(precision=None, **options, lora_alpha=2 * options["r"])
        fit(model, steps=10, learning_rate=4e-3, seed=seed)
        results[kind][seed] = scoring.quick_score(model, tokenizer, test)
        print(f"seed {seed}, {kind:10} {results[kind][seed]}")

race(seed=0)

# %%
race(seed=1)

# %%
table([{"choice": kind} | {f"exact match, seed {seed}": f"{score.exact:.0%}" for seed, score in runs.items()}
             | {f"loss, seed {seed}": f"{score.loss:.3f}" for seed, score in runs.items()}
             for kind, runs in results.items()])

# %%
means = [sum(score.exact for score in runs.values()) / len(runs) for runs in results.values()]
compare("targets/choices_apart", 100 * (max(means) - min(means)))

# %% [markdown]
# **Look** first at how far the two seeds of *one* choice are apart, and only then at the differences between choices. A
# difference smaller than that spread is not a finding.
#
# One learning rate served all four here, which is not fair to all. `benchmarks/which_modules.py` trains longer, tunes
# the rate for each and takes more seeds: [its table](../benchmarks/README.md) has the four close together. What
# differs there is the rate that each choice bears, and so how fast it can learn. One task on one small model is an
# anecdote with error bars: the habit to take to work is the experiment, not its winner.

# %%
quiz("targets/equal_budget")

# %% [markdown]
# ## Error recovery
#
# Three errors. Read, say what you would do, then look below.

# %%
# NBVAL_CHECK_OUTPUT
for options in (dict(target_modules=["self_attn"]), dict(target_modules="q_proj"),
                dict(target_modules="all-linear", layers_to_transform=[0])):
    try:
        adapt(**options)
    except (ValueError, NotImplementedError) as error:
        print(f"{options}\n    {type(error).__name__}: {' '.join(str(error).split())[:90]}...")

# %% [markdown]
# - **Not supported**: `self_attn` is a whole attention block. Name the linear layers in it.
# - **q_proj not found**, although it is there: a string is a regular expression for the whole name. Write a list.
# - **Cannot be used**: layer numbers go with a list. With a string, put them into the expression.
#
# ## Experienced-dev note
#
# - Fused layers change the question. GPT-2's `c_attn` and Phi-3's `qkv_proj` hold q, k and v in one matrix: you adapt
#   all three or none, and they share one A.
# - Many mixtures of experts keep their experts as bare parameters. "all-linear" may leave most of the model out;
#   `target_parameters` names them, and `targets.check` notes what stays frozen.
# - A config that is right for one version of a library can miss in the next, since layers get renamed. The check costs
#   nothing in CI.
# - Log `model.get_nb_trainable_parameters()` with each run. It is the one number that shows a missing half.
# - q and v is PEFT's default for Llamas, not a recommendation. Start from "all-linear", and save parameters by the
#   rank.
#
# ## Check your understanding
#
# Each question is about something you measured. A wrong answer gets a reply, hints come one at a time, and the full
# answer after an attempt. What you solved is kept on your machine. (After a restart of the kernel, run a question's
# cell again.)

# %%
quiz("targets/string_or_list")

# %%
quiz("targets/starts")

# %%
quiz("targets/row_cost")

# %%
quiz("targets/new_tokens")

# %%
quiz("targets/falling_loss")

# %%
quiz("targets/equal_rank")

# %%
quiz("targets/two_seeds")

# %%
quiz("targets/excluded_gate")

# %%
progress()

# %% [markdown]
# ## Exercises
#
# **1. A config for a budget.** At most one million trainable parameters, on the three MLP layers, in the upper half
# of the model only (layers 15 to 29), rank as high as that allows, scaling 2.

# %%
my_config = LoraConfig(r=8, lora_alpha=8, target_modules=["up_proj"])
quiz("targets/config_for_budget", my_config, base)

# %% [markdown]
# **2. Repair three configs.** Each was written for another model or in a hurry; the comment says what was meant.

# %%
my_repairs = [
    LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]),  # the whole attention, every layer
    LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[1, 30]),  # q and v, first and last layer
    LoraConfig(target_modules=r".*\.(gate|up|down)", modules_to_save=["norm"]),  # the MLP, and the final norm in full
]
quiz("targets/repaired_configs", my_repairs, base)

# %% [markdown]
# **3. Predict the count.** Before running: how many parameters does this config train? Write the arithmetic.

# %%
surprise = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 16},
                      layers_to_transform=list(range(10)))
my_prediction = 0
quiz("targets/predicted_count", my_prediction, surprise, base)

# %% [markdown]
# **4. The one worth doing.** Take a model you use at work, or the configuration of one
# (`AutoModelForCausalLM.from_config` under `torch.device("meta")` needs no weights), look at
# `explorers.group_table`, and run `targets.check` with the config from the tutorial you started from.
#
# ## Recap
#
# - Names decide where, numbers how much. Both can be wrong without an error.
# - No match at all is an error; a partial match is silence. `targets.check` before training, the count in the log
#   after.
# - Which modules are best is a question for a measurement at equal budgets, with more than one seed.
#
# Next: **Lesson 3** trains in 8 bits and says where the memory goes.
#
# Sources: Hu et al., *LoRA* (2021), section 7.1; Dettmers et al., *QLoRA* (2023), section 4; Schulman et al., *LoRA
# Without Regret* (Thinking Machines, 2025); Kalajdzievski, *A Rank Stabilization Scaling Factor for Fine-Tuning with
# LoRA* (2023); Liu et al., *DoRA* (2024).
#
# *Lessons:* ← [1 · Low-rank math: why two thin matrices are enough](01_low_rank_math.ipynb) ·
# [3 · Training in 8 bits: where the memory goes](03_train_in_8bit.ipynb) →
