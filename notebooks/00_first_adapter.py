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
# # 0 · Your first adapter
#
# *Lessons:* [1 · Low-rank math: why two thin matrices are enough](01_low_rank_math.ipynb) →
#
# You take a small chat model, attach a LoRA (low-rank adaptation) adapter, train it while you watch, and ask again.
#
# **You will be able to** attach a LoRA adapter to a model, train it with the `Trainer`, measure what it learned and
# what it forgot, save it, and load it again.
#
# **You need** Python and PyTorch. You have never fine-tuned a model? Good.
#
# **It takes** about two minutes of computing on two CPU cores, most of it one training
# (on a GPU: 75 s, NVIDIA H200, peak 2.1 GB, 2 cells not shown there).
# No account, no model hub. Run a cell with Shift+Enter; any cell may be run again. Puzzles and exercises take extra
# time, and are what you will remember.

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
import json
from pathlib import Path

import torch
from lora_lab import LabError, adapters, batches, compare, load_base, plots, progress, quiz, scoring, smart_home
from lora_lab.course import explorers
from lora_lab.display import table
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

SEED, STEPS, BATCH = 0, 60, 8
set_seed(SEED)
base, tokenizer = load_base()

# %% [markdown]
# ## The job
#
# A command at home goes in; one compact JSON action comes out, which a program can carry out. The model is a small one
# that was taught to chat.
#
# **Predict, then run.** Commit to a guess before you know; the next cell settles it.

# %%
quiz("first/untrained")

# %%
few = smart_home.commands("test combinations", n=8, seed=SEED)
answers_of_base = scoring.generate(base, tokenizer, [c.prompt for c in few])  # cut after 16 tokens
print("what the model gets:", repr(few[0].prompt))
compare("first/untrained", sum(a == c.answer for c, a in zip(few, answers_of_base)))
table([{"command": c.text, "right answer": c.answer, "the model says": a} for c, a in zip(few, answers_of_base)])

# %% [markdown]
# A bare command is no chat, so the model continues the text, as language models do. Now attach an adapter: small
# trainable matrices beside the model's own weights, which stay frozen. What they do, and what `r` and `lora_alpha`
# are, is drawn further down. First see them work.

# %%
set_seed(SEED)
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(load_base(quiet=True)[0], config)  # a fresh copy: `base` stays as it is
model.print_trainable_parameters()

# %% [markdown]
# Train it. None of the commands above is among the examples. (Run the cell again, and it trains on.)

# %%
examples = smart_home.commands("train", n=STEPS * BATCH, seed=SEED)
rows = batches.similar_lengths(batches.encode(examples, tokenizer), BATCH, seed=SEED)
arguments = TrainingArguments(
    output_dir="runs/first", max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=2e-3, warmup_steps=3,
    # From here on plumbing: the order of the rows, what is logged and saved, and what the device computes in.
    train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", remove_unused_columns=False,
    bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16,
    use_cpu=model.device.type == "cpu",  # asked for bf16, the Trainer otherwise looks for a GPU that has it
    dataloader_pin_memory=torch.cuda.is_available(), disable_tqdm=True, seed=SEED,
)
trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=batches.AnswerCollator(tokenizer),
                  callbacks=[plots.LiveLoss()])
trainer.remove_callback(PrinterCallback)  # LiveLoss shows the loss already
print(f"{trainer.train().metrics['train_runtime']:.0f} s for {len(rows)} examples")

# %%
answers_of_model = scoring.generate(model, tokenizer, [c.prompt for c in few])
print(sum(a == c.answer for c, a in zip(few, answers_of_base)), "of", len(few), "right before,",
      sum(a == c.answer for c, a in zip(few, answers_of_model)), "after")
table([{"command": c.text, "right answer": c.answer, "before": before, "after": after}
       for c, before, after in zip(few, answers_of_base, answers_of_model)])

# %% [markdown]
# **Your turn.** Type a command of your own and run the cell, as often as you like.

# %%
my_command = "it is too bright in the office, so close the blinds"
print(scoring.generate(model, tokenizer, [smart_home.prompt(my_command)])[0])

# %% [markdown]
# ## What did it cost? Forgetting
#
# Now ask it something else. The adapter is part of every answer, also where nobody wants an action. Here are eight
# ordinary questions, in the chat format that the base was trained to follow. **Predict** how many of them the trained
# model answers with JSON.

# %%
quiz("first/asked")

# %%
QUESTIONS = ["What is the capital of France?", "Name three animals that live in the sea.", "What is 2 + 3?",
             "Who wrote Romeo and Juliet?", "What colour is the sky?", "Say hello to Anna.",
             "What is the opposite of cold?", "How many days has a week?"]
chats = [tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                       add_generation_prompt=True) for question in QUESTIONS]
print("what the model gets:", repr(chats[0]))
asked = {"before": scoring.generate(base, tokenizer, chats, 24, progress="base"),
         "with the adapter": scoring.generate(model, tokenizer, chats, 24, progress="with the adapter")}
with model.disable_adapter():
    asked["adapter off"] = scoring.generate(model, tokenizer, chats, 24, progress="adapter off")
compare("first/asked", sum(answer.lstrip().startswith("{") for answer in asked["with the adapter"]))
table([{"question": question, "before": before, "with the adapter": after} for question, before, after in
       zip(QUESTIONS, asked["before"], asked["with the adapter"])])

# %% [markdown]
# Count what begins as JSON does, and check the other answers: are they still right? Another way to ask what was
# forgotten: how well does the model still predict ordinary prose? **Perplexity** says how unsure it is of each token:
# 1 is certain, 100 as unsure as among a hundred equal choices.

# %%
quiz("first/forgetting")

# %%
perplexity = {"before": scoring.perplexity(base, tokenizer), "after": scoring.perplexity(model, tokenizer)}
print(f"perplexity of prose: {perplexity['before']:.1f} before, {perplexity['after']:.1f} with the adapter")
print("adapter off, the answers are the base's again:", asked["adapter off"] == asked["before"])
compare("first/forgetting", perplexity["after"] / perplexity["before"])

# %% [markdown]
# The count of JSON and the perplexity measure different things: how the model begins a reply, and how it continues a
# text. Measure what matters to you. And nothing is lost: switched off, the adapter leaves the base as it was.
#
# ## What LoRA adds
#
# A linear layer computes $y = Wx$. LoRA leaves $W$ as it is and adds a second path through two thin matrices:
#
# $$y = Wx + \frac{\alpha}{r}\, B A x$$
#
# $A$ measures the input along $r$ directions, $B$ says where to push the output. $r$ is the **rank**, $\alpha/r$ the
# **scaling**. Only $A$ and $B$ are trained, and that is the saving: for every number that trains, a training keeps a
# gradient and the two running means of AdamW (the `Trainer`'s optimizer), and none for the frozen ones.
#
# The drawing is to scale: it is the query projection of this model. Move the rank: at which do the thin matrices hold
# as many numbers as $W$? Then move alpha: what changes?

# %%
layer = model.base_model.model.model.layers[0].self_attn.q_proj
explorers.mechanism(layer, "the query projection of layer 0")

# %%
print("A and B hold as many numbers as W from rank", layer.weight.numel() // sum(layer.weight.shape))
for name, parameter in layer.named_parameters():
    print(f"{name:24} {str(tuple(parameter.shape)):12} trains: {parameter.requires_grad}")

# %% [markdown]
# Alpha changes no size: it is a factor, how loudly the second path speaks. Lesson 5 turns it.
#
# **Analogy.** Lay a clear sheet over a printed page and write your corrections on the sheet. The page is never
# touched; lift the sheet, and the page is as it was; send somebody the sheet, and their copy of the page reads like
# yours.
#
# `"all-linear"` gave every linear layer in the blocks an A and a B. **Predict** the share that trains at rank 64.

# %%
quiz("first/share")

# %%
wide = get_peft_model(load_base(quiet=True)[0], LoraConfig(r=64, target_modules="all-linear", task_type="CAUSAL_LM"))
trainable, total = wide.get_nb_trainable_parameters()
print(f"rank 64: {trainable:,} of {total:,} parameters train")
compare("first/share", 100 * trainable / total)

# %% [markdown]
# How much does a fresh adapter disturb the model, before the first step?

# %%
quiz("first/zero_start")

# %% tags=["nbval-check-output"]
set_seed(SEED)
fresh = get_peft_model(load_base(quiet=True)[0], config).eval()
ids = tokenizer("The ferry leaves the old harbour at", return_tensors="pt").to(fresh.device)
with torch.no_grad(), fresh.disable_adapter():
    without = fresh(**ids).logits
with torch.no_grad():
    moved = (fresh(**ids).logits - without).abs().max().item()
compare("first/zero_start", moved)

# %% tags=["nbval-check-output"]
new = fresh.base_model.model.model.layers[0].self_attn.q_proj
print("A is random:", new.lora_A["default"].weight.std().item() > 0,
      " largest entry of B:", new.lora_B["default"].weight.abs().max().item())

# %% [markdown]
# ## What the model was trained on
#
# Each example is a command after a `>`, a new line, and the action. The loss is taken where the labels are not
# `-100`, the index that `cross_entropy` ignores. Labels line up with the inputs, one for one: transformers shifts them
# itself.
#
# **Puzzle.** Which tokens should count? Complete the function; its check says where you are off.

# %%
row = rows[0]
print([tokenizer.decode(i) for i in row["input_ids"]])
print("of these,", row["answer_length"], "at the end are the answer's")

# %%
def my_labels(input_ids, answer_length):
    labels = list(input_ids)  # trains the model to write commands, too
    return labels

quiz("first/labels", my_labels)

# %% [markdown]
# ## How good is it? Measure
#
# A few commands are no measurement. Here are two sets that training never shows:
#
# - **combinations**: sentences as in training, about a device, state and room that never occur together there;
# - **phrasings**: sentences that training never uses, in words around them ("would you ...") that it never uses.

# %% tags=["nbval-check-output"]
test = {kind: smart_home.commands(f"test {kind}", n=100, seed=SEED) for kind in ("combinations", "phrasings")}
table([{"held-out combinations": a.text, "held-out phrasings": b.text} for a, b in list(zip(*test.values()))[:4]])

# %%
quiz("first/phrasings")

# %%
before, after, answers = {}, {}, {}
for kind, commands in test.items():
    prompts = [c.prompt for c in commands]
    before[kind] = scoring.score(commands, scoring.generate(base, tokenizer, prompts, progress=f"base, {kind}"))
    answers[kind] = scoring.generate(model, tokenizer, prompts, progress=f"with the adapter, {kind}")
    after[kind] = scoring.score(commands, answers[kind])
plots.score_bars({"before": before, "after": after}, "Exact answers before and after, with 95 % intervals")

# %%
for kind in test:
    print(f"{kind}:", scoring.verdict(before[kind], after[kind], "before", "after"))
print(scoring.verdict(after["combinations"], after["phrasings"], "combinations", "phrasings"))
wrong = [(c, a) for kind in test for c, a in zip(test[kind], answers[kind]) if a != c.answer]
print(f"{len(wrong)} of {sum(map(len, test.values()))} answers are not the right one, letter for letter:")
compare("first/phrasings", after["phrasings"].exact)
table([{"command": c.text, "right answer": c.answer, "the model says": a} for c, a in wrong[:6]] or [{"wrong": "none"}])

# %% [markdown]
# The intervals say what this many commands can vouch for. And they vouch for commands of *this* kind: both sets are
# made of words most of which training has shown.
#
# **Exercise: the one worth doing.** Write ten commands in your own words with their right answers, each as a pair
# `(text, answer)`, and score your model on them. Your family does not speak like the test commands, which a program
# wrote.

# %%
mine = [("shut the blinds in the office, it is too bright", '{"room":"office","blinds":"closed"}')]
pairs = [(smart_home.prompt(text), answer) for text, answer in mine]
said = scoring.generate(model, tokenizer, [prompt for prompt, _ in pairs])
print(scoring.score(pairs, said))
table([{"command": text, "right answer": answer, "the model says": a} for (text, answer), a in zip(mine, said)])

# %% [markdown]
# ## Would a prompt have done?
#
# The base never had a fair trial: nobody told it what you want. Tell it, in the chat format, with one solved example
# of every kind of command.

# %%
quiz("first/told")

# %%
dialogue = [{"role": "system", "content": "Turn each command into one JSON action. Answer with the JSON only."}]
for c in smart_home.commands("train", n=14, seed=SEED):  # there are fourteen kinds
    dialogue += [{"role": "user", "content": c.text}, {"role": "assistant", "content": c.answer}]
sample = test["combinations"][:20]
prompts = [tokenizer.apply_chat_template(dialogue + [{"role": "user", "content": c.text}], tokenize=False,
                                         add_generation_prompt=True) for c in sample]
answers_told = scoring.generate(base, tokenizer, prompts, 24, 10, progress="with fourteen examples")
told = scoring.score(sample, answers_told)
trained = scoring.score(sample, answers["combinations"][:20])
print(scoring.verdict(told, trained, "told and shown", "trained"))
print("tokens in one prompt:", len(tokenizer(prompts[0])["input_ids"]),
      " in the bare command:", len(tokenizer(sample[0].prompt)["input_ids"]))
compare("first/told", told.exact)

# %% [markdown]
# Try a prompt first: it costs nothing to train. Then weigh its score, and the tokens that every command drags along,
# against the adapter's. And look at the misses: which part of the action is wrong?

# %%
missed = [(c, a) for c, a in zip(sample, answers_told) if a != c.answer]
table([{"command": c.text, "right answer": c.answer, "told and shown, the base says": a} for c, a in missed[:6]]
      or [{"missed": "none"}])

# %% [markdown]
# **Puzzle.** For which devices does it fail? Complete the function; the next cell uses it on these answers.

# %%
def exact_by_device(commands, answers):
    shares = {}  # for instance {"light": 0.9, "door": 1.0}
    # for command, answer in zip(commands, answers): the device is the second key of json.loads(command.answer)
    return shares

quiz("first/exact_by_device", exact_by_device)

# %%
for device, share in exact_by_device(sample, answers_told).items():
    print(f"{device}: {share:.0%} of {sum(device in json.loads(c.answer) for c in sample)}")
if not exact_by_device(sample, answers_told):
    print("Complete the function above, then run this again.")

# %% [markdown]
# ## Save it, and load it into a fresh model

# %%
model.save_pretrained("adapters/first", save_embedding_layers=False)  # we trained no embeddings
adapters.note_base("adapters/first", model)  # which weights A and B were trained beside
table([{"file": f.name, "kB": f"{f.stat().st_size / 1000:,.1f}"} for f in sorted(Path("adapters/first").iterdir())])

# %%
fresh_base, tokenizer = load_base(quiet=True)
loaded = PeftModel.from_pretrained(fresh_base, adapters.adapter_folder("adapters/first", base=fresh_base))
again = scoring.generate(loaded, tokenizer, [c.prompt for c in test["phrasings"]], progress="loaded adapter")
same = sum(a == b for a, b in zip(again, answers["phrasings"]))
print(f"{same} of {len(again)} answers are identical to those of the model you trained")

# %% [markdown]
# PEFT needs one line to load, `PeftModel.from_pretrained(base, folder)`, and does not look at the base's weights.
# `adapters.note_base` and `adapters.adapter_folder` are helpers of this course: they compare them.
#
# **Puzzle: a small file.** A and B are stored in float32, four bytes a number. Write a config whose file is under 3 MB
# and that still adapts every linear layer.

# %%
my_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
quiz("first/small_adapter", my_config, fresh_base.config, 3)

# %% [markdown]
# ## Another base: does the adapter still fit?
#
# A and B correct the weights they were trained beside. Here is the same model with every linear layer in its blocks
# rounded to 8 bits (`float8_e4m3fn`), as servers do to save memory. The course's check compares the weights:

# %%
rounded, _ = load_base(quiet=True)
with torch.no_grad():
    for name, weight in rounded.named_parameters():
        if name.endswith("proj.weight"):
            weight.copy_(weight.cpu().to(torch.float8_e4m3fn).to(weight))
try:
    adapters.adapter_folder("adapters/first", base=rounded)
except LabError as error:
    print(f"LabError: {error}")

# %% [markdown]
# It cannot know how much the difference matters. You can: load the adapter all the same, and score it.

# %%
quiz("first/other_base")

# %%
elsewhere = PeftModel.from_pretrained(rounded, adapters.adapter_folder("adapters/first"))
found = scoring.score(test["phrasings"], scoring.generate(
    elsewhere, tokenizer, [c.prompt for c in test["phrasings"]], progress="on the rounded base"))
print(scoring.verdict(after["phrasings"], found, "on its own base", "on the rounded one"))
compare("first/other_base", found.exact / max(after["phrasings"].exact, 0.01))

# %% [markdown]
# ## Error recovery
#
# Errors that everybody meets. Read each message, say what you would do, then look below it.

# %%
for attempt in (
    lambda: get_peft_model(load_base(quiet=True)[0], LoraConfig(target_modules=["query"])),
    lambda: PeftModel.from_pretrained(fresh_base, adapters.adapter_folder("adapters")),
):
    try:
        attempt()
    except (ValueError, LabError) as error:
        print(f"{type(error).__name__}: {str(error)[:220]}\n")

# %% [markdown]
# - **Target modules not found**: this model calls that layer otherwise. One wrong name beside a right one gives *no*
#   error; Lesson 2 opens with it.
# - **Not an adapter**: give the folder that `save_pretrained` wrote, not the one around it. (PEFT alone would go and
#   ask the model hub for it.)
#
# ## Experienced-dev note
#
# - Save the adapter, not the model: one base serves many adapters, and Lesson 6 merges one for speed.
# - One run is one run. The recipe was chosen on other commands than those it is scored on, and
#   [the benchmark](../benchmarks/README.md) repeats it for several seeds.
# - This notebook is an ordinary program: its twin `00_first_adapter.py` runs under `python`.
#
# ## Exercise: ask it otherwise
#
# Every training example began with `> `. Leave these two characters out: guess the score, then see. At work this bug
# reads "fine in training, worse in production", and its cure is one function that builds the prompt.

# %%
my_prompts = [c.prompt for c in test["combinations"]]  # now f"{c.text}\n" for each
if my_prompts != [c.prompt for c in test["combinations"]]:
    otherwise = scoring.generate(model, tokenizer, my_prompts, progress="otherwise")
    print(scoring.verdict(after["combinations"], scoring.score(test["combinations"], otherwise), "with", "without"))
else:
    print("Change my_prompts, then run this again.")

# %%
progress()

# %% [markdown]
# ## Recap
#
# - LoRA freezes the model and trains a low-rank addition, (alpha/r)·B·A, beside the layers you name.
# - The adapter is a small file for one base. Switch it off, and the base is as it was.
# - Measure on held-out data, with an interval, and measure what was forgotten.
#
# Next: **Lesson 1** shows why a low rank is enough, **2** which layers to name, **3** the same training in 8 bits,
# **4** where the memory goes, **5** what alpha does, **6** how to merge and ship, **7** how to train past one GPU,
# **8** what to do with data of your own, and **9** whether a new variant wins.
#
# LoRA was introduced in Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models* (2021), section 4.1.
#
# *Lessons:* [1 · Low-rank math: why two thin matrices are enough](01_low_rank_math.ipynb) →
