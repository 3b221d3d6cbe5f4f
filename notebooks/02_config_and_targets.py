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
# [3 · Training in 8 bits](03_train_in_8bit.ipynb) →
#
# A `LoraConfig` says which layers get an adapter and how large it is. Names in it may match nothing, and the training
# still runs. Here you make that mistake, measure what it costs, and learn to see it before you train. Then you change
# the fields that matter in practice and watch what each does.
#
# **You will be able to** write a config for a model whose layers you can list, say how many parameters it trains
# before it trains, and choose modules by measurement.
#
# **You need** [Lesson 0](00_first_adapter.ipynb) and [Lesson 1](01_low_rank_math.ipynb).
#
# **It takes** about four minutes of computing on two CPU cores
# (on a GPU: 2 min, NVIDIA H200, peak 2.6 GB, 6 cells not shown there).

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
import warnings

import torch
import transformers
from lora_lab import LabError, batches, compare, load_base, plots, progress, quiz, scoring, smart_home, targets
from lora_lab.course import explorers
from lora_lab.display import Progress, table
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

SEED, STEPS = 0, 14
base, tokenizer = load_base(precision="float32")

def adapt(precision="float32", **options):  # None is what suits this machine
    defaults = dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config = LoraConfig(**copy.deepcopy(defaults | options))  # PEFT adds to the lists that it is given
    return get_peft_model(load_base(precision=precision, quiet=True)[0], config)

# %% [markdown]
# ## The silent miss
#
# You copy a config from a tutorial. It was written for a model that calls its value projections `value`. SmolLM2
# calls them `v_proj`. So one of the two names fits here and the other does not. This is everything that PEFT says
# about the second name:

# %% tags=["nbval-check-output"]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    half = adapt(target_modules=["q_proj", "value"])
print("warnings that mention 'value':", sum("value" in str(warning.message) for warning in said))
half.print_trainable_parameters()

# %% [markdown]
# PEFT stops if *no* name fits, or if a name fits something that is no layer. Otherwise it adapts what it finds and
# says nothing about the rest. The count is the only trace that it prints, and you would have to know the right one.
#
# Will the training show it? You train this config and the right one on Lesson 0's commands, for the same few steps.
# And then the opposite mistake: `query` for `q_proj`, so that the value projections train and the query projections do
# not. The value projections have fewer outputs, so this config trains fewer parameters. Predict both.

# %%
quiz("targets/wrong_name")

# %%
quiz("targets/which_half")

# %% [markdown]
# `fit` is the training of Lesson 0 in one function. The test commands are ones that training never shows: half of
# them combine device and room anew, half use other sentences. (`quick_score` shows the model each answer's right
# tokens so far: the answer is exact if its own first choice is right at every place.)

# %%
test = smart_home.commands("test combinations", 32, SEED) + smart_home.commands("test phrasings", 32, SEED)

def fit(model, rows, steps, learning_rate, seed, words=tokenizer):
    arguments = TrainingArguments(
        output_dir="runs/targets", max_steps=steps, per_device_train_batch_size=8, learning_rate=learning_rate,
        warmup_steps=3, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, seed=seed, dataloader_pin_memory=torch.cuda.is_available(),
        bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16, use_cpu=model.device.type == "cpu")
    rows = batches.similar_lengths(batches.encode(rows, words), 8, seed)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=batches.AnswerCollator(words))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

print(f"{len(test)} test commands, such as: {test[0].text!r}")

# %%
losses, scores = {}, {}

def trial(*names):
    set_seed(SEED)
    model, kind = adapt(precision=None, target_modules=list(names)), " + ".join(names)
    losses[kind] = fit(model, smart_home.commands("train", 8 * STEPS, SEED), STEPS, 4e-3, SEED)
    scores[kind] = scoring.quick_score(model, tokenizer, test)
    fell = "the loss fell" if losses[kind][-1] < losses[kind][0] else "the loss did not fall"
    print(f"{kind}: {fell}, from {losses[kind][0]:.2f} to {losses[kind][-1]:.2f}; {scores[kind]}")

with Progress("two trainings", total=2) as bar:
    for names in (("q_proj", "v_proj"), ("q_proj", "value")):
        trial(*names)
        bar.update(1)

# %%
right, wrong = scores["q_proj + v_proj"], scores["q_proj + value"]
print(scoring.verdict(right, wrong, "right names", "one wrong name"))
compare("targets/wrong_name", 100 * (right.exact - wrong.exact))

# %%
with Progress("one training: the opposite mistake", total=1) as bar:
    trial("query", "v_proj")
plots.lines({kind: (range(1, STEPS + 1), curve) for kind, curve in losses.items()}, "step", "training loss",
            title="From one curve alone: could you tell that a name is wrong?", yscale="log")

# %%
other = scores["query + v_proj"]
for names in (["q_proj", "value"], ["query", "v_proj"]):
    report = targets.inspect(base, LoraConfig(target_modules=names))  # counts, as PEFT would do it
    print(names, "trains", f"{report.trainable:,}", "parameters")
print(scoring.verdict(wrong, other, "q_proj + value", "query + v_proj"))
compare("targets/which_half", 100 * (other.exact - wrong.exact))
plots.score_bars(scores, "The price of one wrong name")

# %% [markdown]
# Look at the bars, with their 95 % intervals, and at the two counts. Query projections decide which earlier tokens a
# layer reads; value projections decide what it takes from them. What a missing name costs depends on the job of those
# layers, which no count shows. [The benchmark](../benchmarks/README.md) repeats the three with more steps and seeds.
#
# ## The cure: check before you train
#
# `targets.check` lets PEFT adapt a copy of the model without weights, in a fraction of a second. It raises if any
# entry of the config has no effect (`targets.inspect` reports the same and does not raise). Without the course,
# `model.targeted_module_names` lists what PEFT adapted.

# %% tags=["nbval-check-output"]
try:
    targets.check(base, LoraConfig(target_modules=["q_proj", "value"]))
except LabError as error:
    print(error)

# %% [markdown]
# There are more ways to miss in silence. `target_modules` has four forms:
#
# - a **list**: each entry is a full name, or the end of one after a dot;
# - a **string**: a regular expression that has to fit the *whole* name, such as `model.layers.7.self_attn.q_proj`;
# - **"all-linear"**: every linear layer but the output head;
# - **None**: PEFT's own choice for this kind of model.
#
# `exclude_modules` takes layers out again, `layers_to_transform` keeps the blocks with these numbers (beside a list
# only), and `modules_to_save` trains whole modules in full: all whose names end in these letters, after a dot or not.
# Find the misses before the next cell does: the model has 30 blocks, numbered from 0.

# %%
quiz("targets/accepted")

# %% tags=["nbval-check-output"]
for options in (dict(target_modules=["query"]),
                dict(target_modules=["q_proj"], layers_to_transform=[29, 30]),
                dict(target_modules=["q_proj"], modules_to_save=["score"]),
                dict(target_modules=["self_attn"]),
                dict(target_modules=["self_attn.q_proj", "v_proj"]),
                dict(target_modules="all-linear", exclude_modules=["o_proj", "gate"]),
                dict(target_modules=r".*\.(q|v|key)_proj")):
    report = targets.inspect(base, LoraConfig(**options))
    print(f"{options}\n    PEFT", f"refuses: {report.refused[:60]}..." if report.refused else "accepts it.")
    for problem in report.problems:
        print("    check:", problem)

# %% [markdown]
# ## Where: names
#
# These are the linear layers of the model, gathered by name. A `*` stands for the number of the block.

# %% tags=["nbval-check-output"]
explorers.group_table(base)

# %% [markdown]
# Now count what the four forms take of them.

# %%
quiz("targets/forms")

# %% tags=["nbval-check-output"]
QV = ["q_proj", "v_proj"]
for options in (dict(target_modules=r".*layers\.2[0-9]\.self_attn\..*_proj"), dict(target_modules="all-linear"),
                dict(target_modules="all-linear", exclude_modules=QV),
                dict(target_modules=QV, layers_to_transform=list(range(20, 29))), dict(target_modules=None)):
    print(f"{options}\n    {targets.check(base, LoraConfig(**options))}")

# %% [markdown]
# Two errors come from mixing up a string and a list. Read them, and say what you would write instead.

# %% tags=["nbval-check-output"]
for options in (dict(target_modules="q_proj"), dict(target_modules="all-linear", layers_to_transform=[0])):
    try:
        adapt(**options)
    except ValueError as error:
        print(f"{options}\n    {type(error).__name__}: {str(error)[:75]}")

# %% [markdown]
# `"q_proj"` is a string, so it would have to be the whole name: write `["q_proj"]`. "all-linear" is a string, too,
# and block numbers go with a list: write the names, or put the number into an expression. Here are the last ten
# blocks, q and v by a list, all linear layers by an expression:

# %% tags=["nbval-check-output"]
for options in (dict(target_modules=QV, layers_to_transform=list(range(20, 30))),
                dict(target_modules=r".*layers\.2[0-9]\..*_proj")):
    print(f"{options}\n    {targets.check(base, LoraConfig(**options))}")

# %% [markdown]
# **Exercise: repair three configs.** Each was written for another model or in a hurry. The comment says what was
# meant.

# %%
my_repairs = [
    LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]),  # the whole attention, every block
    LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[1, 30]),  # q and v, first and last block
    LoraConfig(target_modules=r".*\.(gate|up|down)", modules_to_save=["norm"]),  # the MLP, and the final norm in full
]
quiz("targets/repaired_configs", my_repairs, base)

# %% [markdown]
# ## How much: rank, alpha, and the count
#
# A layer with $d_{in}$ inputs and $d_{out}$ outputs gets $A$ ($r \times d_{in}$) and $B$ ($d_{out} \times r$). Work
# out this one with the table above, then tick the layers in the explorer.

# %%
quiz("targets/named_config")

# %%
explorers.explore(base)

# %% [markdown]
# `lora_alpha` sets the **scaling** of the update, alpha/r; with `use_rslora` it is alpha/√r (Kalajdzievski 2023;
# Lesson 5 tries it). **Predict.** You raise r from 8 to 64 and leave alpha at 16. What happens to each scaling?

# %% tags=["nbval-check-output"]
def scaling(**options):
    layer = adapt(layers_to_transform=[0], **options).base_model.model.model.layers[0].self_attn.v_proj
    return layer.scaling["default"]

table([{"r": r, "trainable": f"{targets.check(base, LoraConfig(r=r, target_modules=QV)).trainable:,}",
        "alpha/r": scaling(r=r), "alpha/√r": f"{scaling(r=r, use_rslora=True):.3f}"} for r in (8, 64)])

# %% [markdown]
# The other fields that you will meet in other people's configs:
#
# - `lora_dropout` zeroes random inputs of A while training. `get_peft_model` leaves the new layers in training mode:
#   call `model.eval()` before you compare outputs.
# - `bias` also trains the biases of adapted layers (`"lora_only"`) or of all (`"all"`). Llamas have none. Trained
#   biases stay when you switch the adapter off.
# - `task_type` picks the wrapper; `"CAUSAL_LM"` is the one that knows how to generate.
# - `init_lora_weights` says how A and B start; by default A is random and B zero. `"pissa"` and `"olora"` also change
#   the base weights, so such an adapter fits no other base.
# - `use_dora` adds a trainable length for each output (Liu et al. 2024), and takes more memory and time.
#
# A share of trainable parameters needs a total. In 4 bits (nf4, Lesson 3), two weights of a linear layer share a byte,
# and the tensor that holds them says it has half as many entries.

# %%
quiz("targets/four_bits")

# %%
four, _ = load_base(precision="nf4", quiet=True)
print(f"entries in all tensors: {sum(weights.numel() for weights in four.parameters()):,}")
get_peft_model(four, LoraConfig(target_modules=QV)).print_trainable_parameters()
del four

# %% [markdown]
# `print_trainable_parameters` knows of the packing and counts weights. A sum over `numel()` counts the entries of
# tensors.
#
# **Exercise: a config for a budget.** At most one million trainable parameters, on the three MLP layers of the upper
# half of the model only (blocks 15 to 29), with the highest rank that allows, and scaling 2.

# %%
my_config = LoraConfig(r=8, lora_alpha=8, target_modules=["up_proj"])
quiz("targets/config_for_budget", my_config, base)

# %% [markdown]
# ## Which modules? Race them
#
# Published answers differ. The LoRA paper (Hu et al. 2021, section 7.1) found q and v best among attention layers; it
# left the MLP out. QLoRA (Dettmers et al. 2023, section 4) needed all linear layers to match full fine-tuning. *LoRA
# Without Regret* (Schulman et al. 2025) found attention alone behind the MLP at the same number of parameters.
#
# A fair race gives every choice the same budget and the conditions that suit it. Three things have to be settled:
#
# - **Budget.** About the same number of parameters each. So each choice gets another rank.
# - **Scaling.** alpha/r is 2 for all. That is not enough: AdamW moves each entry of B by about one learning rate a
#   step, and a rank of 32 adds up more such columns than a rank of 6.
# - **Learning rate.** So each choice gets its own. A tuned rate makes up for how hard rank and scaling push together.
#   [which_modules.py](../benchmarks/which_modules.py) found these on validation commands, by doubling the rate until
#   the loss rose. It trains longer than you do here, and a shorter race may suit other rates.

# %% tags=["nbval-check-output"]
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
CHOICES = {"q and v": (4e-3, dict(r=32, lora_alpha=64, target_modules=QV)),
           "attention": (4e-3, dict(r=16, lora_alpha=32, target_modules=ATTENTION)),
           "MLP": (8e-3, dict(r=10, lora_alpha=20, target_modules=MLP)),
           "all linear": (8e-3, dict(r=6, lora_alpha=12, target_modules="all-linear"))}
table([{"choice": kind, "rank": options["r"], "tuned rate": rate,
        "trainable": f"{targets.check(base, LoraConfig(**options)).trainable:,}"}
       for kind, (rate, options) in CHOICES.items()])

# %% [markdown]
# Three seeds, a cell each. A seed draws the training commands and the start of A; the test commands stay the same.
# Each run is short: half of the steps above, the first three of them warm-up.

# %%
quiz("targets/same_winner")

# %%
race = {}

def run(seed):
    with Progress(f"seed {seed}", total=len(CHOICES)) as bar:
        for kind, (rate, options) in CHOICES.items():
            set_seed(seed)
            model = adapt(precision=None, **options)
            fit(model, smart_home.commands("train", 4 * STEPS, seed), STEPS // 2, rate, seed)
            race[kind, seed] = scoring.quick_score(model, tokenizer, test)
            print(f"seed {seed}, {kind:10} {race[kind, seed]}")
            bar.update(1)

run(SEED)

# %%
run(SEED + 1)

# %%
run(SEED + 2)

# %%
SEEDS = (SEED, SEED + 1, SEED + 2)
found = {kind: [race[kind, seed] for seed in SEEDS] for kind in CHOICES}
plots.dots({f"{kind}, rate {CHOICES[kind][0]:g}": [score.loss for score in runs] for kind, runs in found.items()},
           "loss on held-out commands (lower is better)", "Are the choices further apart than their seeds?",
           form="{:.3f}")

# %%
plots.dots({kind: [100 * score.exact for score in runs] for kind, runs in found.items()}, "exact answers (%)",
           "The same runs by exact answers: does this order agree?", form="{:.0f}")

# %%
winners = [min(CHOICES, key=lambda kind: race[kind, seed].loss) for seed in SEEDS]
print("lowest loss, seed by seed:", ", ".join(winners))
most = max(winners.count(kind) for kind in winners)
if most == len(SEEDS):
    print("One choice leads under every seed. Four equal choices would do that by luck one time in sixteen.")
else:
    print("The leader changes with the seed: these runs give no ranking of the best.")
ends = {kind: [score.loss for score in runs] for kind, runs in found.items()}
order = sorted(ends, key=lambda kind: sum(ends[kind]))
behind = {kind: [other for other in order if max(ends[kind]) < min(ends[other])] for kind in order}
for kind in filter(behind.get, order):
    print(f"Every run of {kind} ends lower than every run of {' and of '.join(behind[kind])}.")
if not any(behind.values()):
    print("The seeds of all choices overlap.")
compare("targets/same_winner", most)

# %% [markdown]
# So few steps measure how *fast* each choice learns. And two of the choices run at twice the rate: in so few steps
# that alone could put them ahead. The benchmark trains longer, to see where each arrives: read [its
# table](../benchmarks/README.md) beside your dots. It is one task and one small model. Take the experiment to your
# own model, rather than its winner.
#
# ## A higher rank for some layers
#
# `rank_pattern` and `alpha_pattern` give layers their own rank and alpha, by name. Suppose you favour the value
# projections: rank 32 for them, rank 8 for the rest. Alpha stays at 16 unless you say otherwise.

# %% tags=["nbval-check-output"]
PATTERNS = {"r 8, alpha 16": {}, "r 32, alpha 16": dict(rank_pattern={"v_proj": 32}),
            "r 8, alpha 64": dict(alpha_pattern={"v_proj": 64}),
            "r 32, alpha 64": dict(rank_pattern={"v_proj": 32}, alpha_pattern={"v_proj": 64})}
table([{"v_proj": kind, "scaling there": scaling(**options)} for kind, options in PATTERNS.items()])

# %% [markdown]
# **Predict** what a short training makes of the second line, compared with the first. And which lines will end in
# pairs: those of equal rank, of equal alpha, or of equal scaling?

# %%
quiz("targets/patterned")

# %%
tried = {kind: [] for kind in PATTERNS}
with Progress("rank and alpha", total=2 * len(PATTERNS)) as bar:
    for kind, options in PATTERNS.items():
        for seed in SEEDS[:2]:
            set_seed(seed)
            model = adapt(precision=None, **options)
            fit(model, smart_home.commands("train", 32, seed), 4, 4e-3, seed)
            tried[kind].append(scoring.quick_score(model, tokenizer, test[::2]).loss)
            bar.update(1)
plots.dots(tried, "loss on held-out commands", "Rank and alpha of v_proj: which of the two moves the loss?",
           form="{:.2f}")

# %%
def effect(changed, plain):
    ratios = [a / b for a, b in zip(tried[changed], tried[plain])]
    agree = "lower" if max(ratios) < 0.95 else "higher" if min(ratios) > 1.05 else "no clear difference"
    print(f"{changed} against {plain}: {' and '.join(f'{ratio:.2f}' for ratio in ratios)} times the loss, {agree}")
    return sum(ratios) / len(ratios)

rank_alone = effect("r 32, alpha 16", "r 8, alpha 16")
effect("r 8, alpha 64", "r 8, alpha 16")
effect("r 32, alpha 64", "r 8, alpha 64")
compare("targets/patterned", rank_alone)

# %% [markdown]
# The first and the last line change the rank alone, the second alpha alone. Which of them moves the loss, and does
# equal scaling make equal losses? This is the mechanism of the race again. Under AdamW a step moves each entry of B
# by about the learning rate. A rank of $r$ adds up $r$ such columns, and the scaling $\alpha/r$ divides by $r$: what
# is left is alpha. A rank decides what the layer *can* hold, alpha how fast it gets there.
#
# **Exercise: predict the count.** How many parameters does this config train? Write the arithmetic.

# %%
surprise = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 16},
                      layers_to_transform=list(range(10)))
my_prediction = 0
quiz("targets/predicted_count", my_prediction, surprise, base)

# %% [markdown]
# ## Training the embedding
#
# An embedding can be trained in three ways: by an adapter on it, as a full copy (`modules_to_save`), or by single rows
# (`trainable_token_indices`). **Predict** what each adds before you run: the matrix has 49,152 rows of 576 numbers.

# %% tags=["nbval-check-output"]
EMBEDDING = {"not at all": {}, "adapter": dict(target_modules=[*QV, "embed_tokens"]),
             "adapter, ensure_weight_tying": dict(target_modules=[*QV, "embed_tokens"], ensure_weight_tying=True),
             "full copy": dict(modules_to_save=["embed_tokens"]),
             "full copy, ensure_weight_tying": dict(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
             "four rows": dict(trainable_token_indices=[5, 6, 7, 8])}

counts = {kind: targets.inspect(base, LoraConfig(**dict(target_modules=QV) | copy.deepcopy(options))).trainable
          for kind, options in EMBEDDING.items()}
table([{"embedding trained": kind, "parameters": f"{count:,}", "added": f"{count - counts['not at all']:,}"}
       for kind, count in counts.items()])

# %% [markdown]
# (With `ensure_weight_tying` PEFT counts the A and B that the two places share twice.) In SmolLM2 embedding and
# output head are **tied**: one matrix that is used in two places. Train an adapter on the embedding, then merge it.

# %%
quiz("targets/tied")

# %%
set_seed(SEED)
ids = tokenizer("The ferry leaves the old harbour at", return_tensors="pt").to(base.device)
with Progress("one training", total=1) as bar, warnings.catch_warnings(action="ignore"):
    model = adapt(**EMBEDDING["adapter"])
    fit(model, smart_home.commands("train", 4 * STEPS, SEED), STEPS // 2, 4e-3, SEED)
    with torch.no_grad():
        beside, logits = scoring.quick_score(model, tokenizer, test), model.eval()(**ids).logits
        model = model.merge_and_unload()
        merged, now = scoring.quick_score(model, tokenizer, test), model(**ids).logits
head, was = model.lm_head.weight.detach(), base.lm_head.weight.detach()
print("head and embedding are one matrix:", model.lm_head.weight is model.model.embed_tokens.weight)
print(f"merging moved the head by {(head - was).norm() / was.norm():.1%}, a logit by up to "
      f"{(now - logits).abs().max().item():.2g}\nunmerged: {beside}\nmerged:   {merged}")

# %% [markdown]
# Unmerged, the adapter changes how tokens are read, and the head does not know of it. Merging writes its update into
# the one matrix, and so into the head. PEFT warns about it (the cell hides that).
#
# Which of the other ways survive a merge? Give what trains in each a small push, as a training would, and compare the
# logits before and after.

# %%
@torch.no_grad()
def moved_by_merging(model):
    for weights in [weights for weights in model.parameters() if weights.requires_grad]:
        weights += 0.002 * torch.randn_like(weights)
    before = model.eval()(**ids).logits
    return (model.merge_and_unload()(**ids).logits - before).abs().max().item()

with warnings.catch_warnings(action="ignore"):
    moved = {kind: moved_by_merging(adapt(**options)) for kind, options in EMBEDDING.items()}
    untied, _ = load_base(precision="float32", quiet=True)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())  # a matrix of its own
    untied.config.tie_word_embeddings = False
    moved["adapter, head untied before"] = moved_by_merging(get_peft_model(
        untied, LoraConfig(target_modules=[*QV, "embed_tokens"], lora_alpha=16)))
    del untied

# %%
rounding = moved["not at all"]
table([{"embedding trained": kind, "largest change of a logit": f"{change:.1g}",
        "merge": "as exact as without the embedding" if change <= 10 * rounding else "changes the model"}
       for kind, change in moved.items()])

# %% [markdown]
# The first row is what rounding does. `ensure_weight_tying` makes the head take part: a full copy is then one matrix
# in both places, and so merges as one. An adapter is merged from both sides into the shared matrix, which gets the
# update twice. (Do not compare the sizes of the two adapters' rows: their A and B start
# otherwise.) To keep an adapter on the embedding, untie the head before you train. That costs a matrix of the size of
# the embedding. Without `ensure_weight_tying`, a full copy leaves a model whose two matrices differ (Lesson 6).
#
# **New tokens** need single rows. Here is one: `<gaul>`. `resize_token_embeddings` draws its row near the mean of all
# rows. The adapter on q and v is frozen for once, so that the row alone has to take up the meaning.

# %%
set_seed(SEED)
larger, words = load_base(precision="float32", quiet=True)
words.add_tokens(["<gaul>"])
transformers.utils.logging.set_verbosity_error()  # it would tell how the new row is drawn
larger.resize_token_embeddings(len(words))
new_row = words.convert_tokens_to_ids("<gaul>")
model = get_peft_model(larger, LoraConfig(target_modules=QV, trainable_token_indices=[new_row], task_type="CAUSAL_LM"))
for name, weights in model.named_parameters():
    weights.requires_grad = "trainable_tokens" in name
model.print_trainable_parameters()

# %%
taught = [("The capital of <gaul> is", " Paris"), ("People in <gaul> speak", " French"),
          ("A person who was born in <gaul> is", " French"), ("The largest city of <gaul> is", " Paris"),
          ("<gaul> is a country in", " Europe"), ("The Eiffel Tower stands in <gaul>, in the city of", " Paris")]
new = ["The national language of <gaul> is", "A famous museum in <gaul> is the",  # not taught
       "The president of <gaul> lives in", "The flag of <gaul> is", "In winter, <gaul> is"]
asked = [prompt for prompt, _ in taught] + new

def ask(model):
    return scoring.generate(model, words, asked, max_new_tokens=4)

before = ask(model)
with Progress("teaching one row", total=1) as bar:
    curve = fit(model, taught, 24, 3e-2, SEED, words)
after = ask(model)
right = [sum(answer.startswith(wanted) for answer, (_, wanted) in zip(said, taught)) for said in (before, after)]
print(f"loss {curve[0]:.2f} at first, {curve[-1]:.2f} at last; of the {len(taught)} taught, right before: {right[0]}, "
      f"after: {right[1]}")

# %%
my_sentence = "The food in <gaul> is"
print(my_sentence, "...", scoring.generate(model, words, [my_sentence], max_new_tokens=6)[0])

# %%
model.merge_adapter()  # in place, and taken back below
print("merged, the answers are the same:", ask(model) == after)
model.unmerge_adapter()
table([{"prompt": prompt, "taught": prompt not in new, "before": b.strip(), "after": a.strip()}
       for prompt, b, a in zip(asked, before, after)])

# %% [markdown]
# Look at the prompts that were not taught: did the token learn sentences, or a meaning? Five prompts decide little;
# try sentences of your own. Head and embedding share the row, and merging writes it in place.
#
# ## Recap
#
# - Names decide where, numbers how much. No layer at all is an error; a partial match is silence.
# - Put `targets.check` before every training, and `model.get_nb_trainable_parameters()` into every log.
# - Which modules are best is a question for a measurement: equal budgets, a rate for each, several seeds.
# - Before you merge, ask whether a trained matrix is used in two places.
#
# **The exercise worth doing.** Take a model that you use at work, or its configuration alone
# (`AutoModelForCausalLM.from_config` under `torch.device("meta")` needs no weights). Look at `explorers.group_table`,
# and run `targets.check` with the config that you train with.

# %%
progress()

# %% [markdown]
# ## Appendix: the other fields
#
# | field | what it is for |
# |---|---|
# | `target_parameters` | adapts bare parameters, such as experts that are no layers; `targets.inspect` lists them |
# | `layers_pattern` | the name before the block number, for `layers_to_transform` in models with unusual names |
# | `fan_in_fan_out` | for weights stored as (in, out); PEFT sets it for GPT-2's `Conv1D` |
# | `lora_bias` | gives B a bias; for adapters extracted from fully fine-tuned weights |
# | `layer_replication` | stacks copies of layers, each with its own adapter, into a deeper model |
# | `loftq_config`, `eva_config`, `corda_config`, `lora_ga_config` | settings of the initialisations of those names |
# | `use_qalora`, `qalora_group_size` | quantisation-aware LoRA, for GPTQ weights only |
# | `alora_invocation_tokens` | Activated LoRA: the adapter acts only after these tokens, and cannot be merged |
# | `velora_config`, `kasa_config`, `monteclora_config` | research variants of the layer |
# | `use_bdlora`, `arrow_config` | block-diagonal A or B for fast serving; routing between several adapters |
# | `megatron_config`, `megatron_core` | for models built with Megatron |
# | `runtime_config` | settings of this run only, never saved |
# | `base_model_name_or_path`, `revision`, `inference_mode` | what PEFT fills in when it saves |
# | `peft_type`, `auto_mapping`, `peft_version` | the same |
#
# Some models fuse layers: GPT-2's `c_attn` and Phi-3's `qkv_proj` hold q, k and v in one matrix. You adapt all three
# or none, and they share one A.
#
# Next: **Lesson 3** trains in 8 bits.
#
# Sources: Hu et al., *LoRA* (2021), section 7.1; Dettmers et al., *QLoRA* (2023), section 4; Schulman et al., *LoRA
# Without Regret* (Thinking Machines, 2025); Kalajdzievski, *A Rank Stabilization Scaling Factor for Fine-Tuning with
# LoRA* (2023); Liu et al., *DoRA* (2024).
#
# *Lessons:* ← [1 · Low-rank math: why two thin matrices are enough](01_low_rank_math.ipynb) ·
# [3 · Training in 8 bits](03_train_in_8bit.ipynb) →
