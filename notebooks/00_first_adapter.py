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
# In ten minutes of reading and running you take a language model and a job, train less than two percent of the model's
# size, and watch what becomes of it. At the end you hold a file of a few megabytes that carries the new skill.
#
# **You will be able to** attach a LoRA adapter to a model, train it with the `Trainer`, measure what it learned
# and what it forgot, save it, and load it again.
#
# **You need** Python and PyTorch. You have never fine-tuned a model? Good.
#
# **It takes** about two minutes of computing on two CPU cores, most of one training
# (on a GPU: not recorded).
# No account, no model hub. Any cell may be run again. (`# NBVAL_CHECK_OUTPUT` marks cells whose output must be
# the same on every machine; the course's tests compare it.)
#
# ## Why this matters
#
# A general model knows a little about everything. A product needs a model that does one thing right, every time.
# Training all weights for that is expensive: AdamW keeps a gradient and two running means for every weight it trains.
# LoRA (*low-rank adaptation*) freezes the model and trains a small addition to it instead.

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
from pathlib import Path

import torch
from lora_lab import LabError, adapters, batches, compare, load_base, plots, progress, quiz, scoring, smart_home
from lora_lab.display import table
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

SEED, STEPS, BATCH = 0, 60, 8
set_seed(SEED)

# %% [markdown]
# ## Meet the model
#
# `load_base()` loads SmolLM2-135M-Instruct, a real language model of the Llama family. It prints what it picked for
# your machine. Ask the model something ordinary first.

# %%
base, tokenizer = load_base()

# %%
QUESTIONS = ["What is the capital of France?", "Name three animals that live in the sea.", "What is 2 + 3?"]
answers_of_base = [scoring.chat(base, tokenizer, question) for question in QUESTIONS]
table([{"question": q, "the model says": a} for q, a in zip(QUESTIONS, answers_of_base)])

# %% [markdown]
# It speaks English and knows a few things. Now the job: turn a command at home into one compact JSON action that a
# program can carry out. There are fourteen kinds of them; here is one of each, with its only right answer.

# %%
# NBVAL_CHECK_OUTPUT
examples = smart_home.commands("train", n=14, seed=SEED)
table([{"command": c.text, "right answer": c.answer} for c in examples])

# %% [markdown]
# **Predict, then run.** Commit to a guess before you know; the lesson comes back to it. (Shift+Enter runs a cell.)

# %%
quiz("first/untrained")

# %% [markdown]
# Show the model three commands.

# %%
few = smart_home.commands("test combinations", n=3, seed=SEED)
table([{"command": c.text, "it says": a} for c, a in
             zip(few, scoring.generate(base, tokenizer, [c.prompt for c in few]))])

# %% [markdown]
# It continues the text, as language models do. That is not a fair trial: nobody told it what we want. So tell it, in
# the chat format it was trained to follow, with one solved example of every kind of command.

# %%
dialogue = [{"role": "system", "content": "Turn each command into one JSON action. Answer with the JSON only."}]
for c in examples:
    dialogue += [{"role": "user", "content": c.text}, {"role": "assistant", "content": c.answer}]
asked = smart_home.commands("test combinations", n=14, seed=SEED)
prompts = [tokenizer.apply_chat_template(dialogue + [{"role": "user", "content": c.text}], tokenize=False,
                                         add_generation_prompt=True) for c in asked]
told = scoring.generate(base, tokenizer, prompts, max_new_tokens=24, batch_size=7, progress="with fourteen examples")
print("with instructions and fourteen examples:", scoring.score(asked, told))
print("tokens in one prompt:", len(tokenizer(prompts[0])["input_ids"]),
      " in the bare command:", len(tokenizer(asked[0].prompt)["input_ids"]))
table([{"command": c.text, "it says": a} for c, a in zip(asked[:6], told)])

# %% [markdown]
# Prompting is worth trying first, and often enough: the answers now look right, and some are. (Fourteen commands cannot
# say more: look how wide the interval is.) Two things remain. Too many answers are wrong for a door lock. And every
# command now drags all the examples along, which costs time with every single answer.
#
# Now measure the bare command properly, before and after training. Two sets of 200 commands that training never shows:
#
# - **combinations**: sentences as in training, about a device, state and room that never occur together there;
# - **phrasings**: sentences that training never uses, in words around them ("would you ...") that it never uses.

# %%
# NBVAL_CHECK_OUTPUT
test = {kind: smart_home.commands(f"test {kind}", n=200, seed=SEED) for kind in ("combinations", "phrasings")}
table([{"held-out combinations": a.text, "held-out phrasings": b.text}
             for a, b in list(zip(*test.values()))[:6]])

# %% [markdown]
# Look at the interval beside each score: it is the range that 200 commands can vouch for.

# %%
before = {}
for kind, commands in test.items():
    answers = scoring.generate(base, tokenizer, [c.prompt for c in commands], progress=kind)
    before[kind] = scoring.score(commands, answers)
    print(f"before training, {kind}: {before[kind]}")
compare("first/untrained", before["combinations"].exact)

# %%
perplexity_before = scoring.perplexity(base, tokenizer)
print(f"perplexity on ordinary prose: {perplexity_before:.1f} (lower is better; keep it for later)")

# %% [markdown]
# ## Explanation: what LoRA adds
#
# A linear layer computes $y = Wx$. LoRA leaves $W$ as it is and adds a second path through two thin matrices:
#
# $$y = Wx + \frac{\alpha}{r}\, B A x$$
#
# $A$ takes the input down to $r$ numbers, $B$ takes them back up. $r$, the **rank**, is small, so $A$ and $B$ have few
# entries. $\alpha/r$ is the **scaling**. Only $A$ and $B$ are trained. $B$ starts at zero, so at first the addition
# changes nothing.
#
# **Analogy.** Lay a clear sheet over a printed page and write your corrections on the sheet. The page is never
# touched; lift the sheet, and the page is as it was; send somebody the sheet, and their copy of the page reads like
# yours. What makes the sheet light is its low rank, and Lesson 1 shows what that means and when it is enough.
#
# ## Code
#
# `LoraConfig` says where the addition goes and how big it is; `get_peft_model` puts it there. Both come from the
# library PEFT, whatever you may have read about transformers. `"all-linear"` means every linear layer inside the
# transformer blocks. `get_peft_model` changes the model it is given, so this cell starts from a fresh one each time
# you run it.
#
# **Predict.** Which share of the model's parameters will train: about 0.2, 2 or 20 percent?

# %%
set_seed(SEED)
fresh_copy, _ = load_base()
config = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules="all-linear",
    lora_dropout=0.0,
    bias="none",
    task_type="CAUSAL_LM",
)
model = get_peft_model(fresh_copy, config)
model.print_trainable_parameters()

# %% [markdown]
# Look at one layer: the old weight is still there as `base_layer`, and the two thin matrices stand beside it.

# %%
# NBVAL_CHECK_OUTPUT
layer = model.base_model.model.model.layers[0].self_attn.q_proj
for name, parameter in layer.named_parameters():
    print(f"{name:24} {str(tuple(parameter.shape)):12} trains: {parameter.requires_grad}")
print("scaling alpha/r =", layer.scaling["default"])
print("largest entry of B =", layer.lora_B["default"].weight.abs().max().item())

# %% [markdown]
# B is all zeros, so the model must still be exactly the model it was. Check it: the difference below is between the
# logits with the adapter and without it.

# %%
# NBVAL_CHECK_OUTPUT
model.eval()  # get_peft_model returns the model in training mode
ids = tokenizer("The ferry leaves the old harbour at", return_tensors="pt").to(model.device)
with torch.no_grad(), model.disable_adapter():
    plain = model(**ids).logits
with torch.no_grad():
    adapted = model(**ids).logits
print("largest difference of any logit:", (adapted - plain).abs().max().item())

# %%
quiz("first/zero_start")

# %%
quiz("first/alpha_before")

# %% [markdown]
# ## The data, as the model sees it
#
# Each example is the command after a `>`, a new line, and the action. The loss counts only the action: we do not want
# to train the model to write commands. `AnswerCollator` pads on the left, so that the actions line up on the right;
# then the model can skip the scores of all 49,152 tokens for everything before them. `similar_lengths` puts rows of
# similar length into one batch, so that little of it is padding.
# It is [a page of code](../lora_lab/batches.py).

# %%
# NBVAL_CHECK_OUTPUT
train_rows = batches.encode(smart_home.commands("train", n=STEPS * BATCH, seed=SEED), tokenizer)
train_rows = batches.similar_lengths(train_rows, BATCH, seed=SEED)
collate = batches.AnswerCollator(tokenizer)
batch = collate(batches.encode(smart_home.commands("train", n=3, seed=0), tokenizer))  # three commands to look at
for ids, labels in zip(batch["input_ids"], batch["labels"]):
    print(repr(tokenizer.decode(ids)), " trains on:", repr(tokenizer.decode(labels[labels != batches.IGNORED])))
print("tokens per row:", batch["input_ids"].shape[1], " logits computed for the last", batch["logits_to_keep"])

# %%
quiz("first/answer_only")

# %%
quiz("first/skipped_scores")

# %% [markdown]
# ## Train
#
# This is the `Trainer` you will meet at work; nothing in it is special to this course. `LiveLoss` draws the curve, on a
# logarithmic axis. Run the cell twice, and it trains on from where it is.
#
# **Predict.** When will the loss stop falling: after a quarter of the steps, after half, not at all?

# %%
arguments = TrainingArguments(
    output_dir="runs/first", max_steps=STEPS, per_device_train_batch_size=BATCH,
    learning_rate=2e-3, warmup_steps=3,
    train_sampling_strategy="sequential",  # similar_lengths has shuffled the rows
    bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16,
    use_cpu=model.device.type == "cpu",  # asked for bf16, the Trainer otherwise looks for a GPU that has it
    logging_steps=1, save_strategy="no", remove_unused_columns=False, disable_tqdm=True, seed=SEED,
    dataloader_pin_memory=torch.cuda.is_available(),
)
trainer = Trainer(model=model, args=arguments, train_dataset=train_rows, data_collator=collate,
                  callbacks=[plots.LiveLoss()])
trainer.remove_callback(PrinterCallback)  # LiveLoss shows the loss already
result = trainer.train()
print(f"{result.metrics['train_runtime']:.0f} s for {len(train_rows)} commands")

# %% [markdown]
# ## What just happened?
#
# **Look** at the curve first: where does it flatten? The pale line is the loss of each batch, the strong one its
# running mean. With eight commands in a batch the loss is restless to the end: one command that the model still gets
# wrong lifts it by a lot on this axis. That is why nobody judges a model by its last training loss.
#
# Now the scores, on the same held-out commands as before training, none of which the model has seen. The bars are the
# scores, the orange lines their 95 % intervals; before training there may be no bar to see.

# %%
after, answers_after = {}, {}
for kind, commands in test.items():
    answers_after[kind] = scoring.generate(model, tokenizer, [c.prompt for c in commands], progress=kind)
    after[kind] = scoring.score(commands, answers_after[kind])
plots.score_bars({"before": before, "after": after})

# %%
for kind in test:
    print(f"after training, {kind}: {after[kind]}")
wrong = [(c, a) for kind in test for c, a in zip(test[kind], answers_after[kind]) if a != c.answer]
print(f"{len(wrong)} of {sum(map(len, test.values()))} answers differ from the right one; the first few:")
table([{"command": c.text, "right answer": c.answer, "the model says": a} for c, a in wrong[:5]]
            or [{"wrong answers": "none"}])

# %% [markdown]
# The base model did not change: the optimizer only ever saw A and B. All of the new skill is in them.
#
# Look at the mistakes above, if there are any. They tend to be opposites (open and closed, locked and unlocked) in a
# wording that training never showed: the model knows the form of the answer long before it knows every word.
#
# **Your turn.** Type a command of your own and run the cell, as often as you like. Try a sentence that the course's
# author did not think of.

# %%
my_command = "would you mind closing the blinds in the office"
print(scoring.generate(model, tokenizer, [smart_home.prompt(my_command)])[0])

# %% [markdown]
# ## What did it cost? Forgetting
#
# **Predict.** Ask the trained model the three questions from the beginning. What does it say? And how well does it
# still predict prose?

# %%
quiz("first/forgetting")

# %%
answers_adapted = [scoring.chat(model, tokenizer, question) for question in QUESTIONS]
with model.disable_adapter():
    answers_disabled = [scoring.chat(model, tokenizer, question) for question in QUESTIONS]
table([
    {"question": q, "before": b, "with the adapter": w, "adapter switched off": off}
    for q, b, w, off in zip(QUESTIONS, answers_of_base, answers_adapted, answers_disabled)
])

# %%
perplexity_after = scoring.perplexity(model, tokenizer)
print(f"perplexity on ordinary prose: {perplexity_before:.1f} before, {perplexity_after:.1f} with the adapter")
print("adapter off gives the base's answers again:", answers_disabled == answers_of_base)
compare("first/forgetting", perplexity_after / perplexity_before)

# %% [markdown]
# Compare the two measurements. Perplexity says how well the model still predicts prose; the answers say how it behaves
# when asked. They are different questions: a model can still know its English and yet answer "name three animals" as if
# it were a command for the blinds. Which questions break differs from one training to another: ask the ones that matter
# to you.
#
# Nothing is lost, though: the adapter is a part you can switch off, and then the base model answers as it always did.
# In a product you use the adapter for the job and the base for everything else.
#
# ## Save it, and load it into a fresh model

# %%
model.save_pretrained("adapters/first", save_embedding_layers=False)  # we trained no embeddings
files = sorted(Path("adapters/first").iterdir())
table([{"file": f.name, "kB": f"{f.stat().st_size / 1000:,.0f}"} for f in files])

# %%
fresh_base, tokenizer = load_base()
fresh = PeftModel.from_pretrained(fresh_base, adapters.adapter_folder("adapters/first"))
again = scoring.generate(fresh, tokenizer, [c.prompt for c in test["phrasings"][:100]], progress="loaded adapter")
same = sum(a == b for a, b in zip(again, answers_after["phrasings"]))
print(f"{same} of {len(again)} answers are identical to those of the model you trained")

# %% [markdown]
# ## Turn it up: double alpha after training
#
# Your adapter is a file with A and B, and a config that says alpha is 16. What if somebody turns alpha up to 32, now
# that training is over? First on the model in memory, then by way of the file. (One base can carry several adapters;
# the edited one is called `doubled` here.)

# %%
layer = fresh.base_model.model.model.layers[0].self_attn.q_proj
fresh.peft_config["default"].lora_alpha = 32
print("scaling in use after the edit:", layer.scaling["default"])
fresh.save_pretrained("adapters/doubled", selected_adapters=["default"], save_embedding_layers=False)
fresh.peft_config["default"].lora_alpha = 16  # as it was trained
fresh.load_adapter(adapters.adapter_folder("adapters/doubled"), adapter_name="doubled")
print("scaling after saving and loading:", layer.scaling["doubled"])

# %% [markdown]
# On the live model the edit does nothing: each layer worked out its scaling when it was built. But it is saved, and
# whoever loads the file gets layers that add twice as much.

# %%
quiz("first/doubled")

# %%
sample = test["combinations"][:100]
fresh.set_adapter("doubled")
answers = scoring.generate(fresh, tokenizer, [c.prompt for c in sample], progress="alpha doubled")
perplexity_doubled = scoring.perplexity(fresh, tokenizer)
fresh.set_adapter("default")
print("with alpha as trained", scoring.score(sample, answers_after["combinations"][:100]))
print("with alpha doubled   ", scoring.score(sample, answers))
print(f"perplexity on prose: {perplexity_after:,.0f} as trained, {perplexity_doubled:,.0f} with alpha doubled")
compare("first/doubled", scoring.score(sample, answers).exact)

# %% [markdown]
# No error, no warning, and the same A and B. **Look** at both measurements before you say what doubling did: the score
# asks for one narrow job that training pushed hard, perplexity for everything else the model could do. Lesson 4 turns
# this dial slowly and finds out what an adapter bears.
#
# ## Common gotcha: ask it the way you trained it
#
# Every training example began with `> `. Leave those two characters out when you ask.

# %%
quiz("first/no_mark")

# %%
print("with '> '        ", scoring.score(sample, answers_after["combinations"][:100]))
unmarked = {}
for name, mark in {"without": "", "with a space only": " "}.items():
    answers = scoring.generate(fresh, tokenizer, [f"{mark}{c.text}\n" for c in sample], progress=name)
    unmarked[name] = scoring.score(sample, answers)
    print(f"{name:17}", unmarked[name])
compare("first/no_mark", unmarked["without"].exact)

# %% [markdown]
# The skill is tied to the form of the prompt. Why would a single space matter? Look how the first word of a command
# becomes tokens with and without something before it:

# %%
# NBVAL_CHECK_OUTPUT
for text in ("> bedroom lights at 30 percent", "bedroom lights at 30 percent", " bedroom lights at 30 percent"):
    print([tokenizer.decode(i) for i in tokenizer(text)["input_ids"]])

# %% [markdown]
# A word at the very start of a text is another token than the same word after a space. In training every command came
# after `> `, so the adapter never saw the first form: a tempting explanation. The scores above test it. A space gives
# the words their usual tokens back, so what it repairs is the tokens' doing, and what it does not repair is the missing
# mark's. Which is it here?
#
# However big the drop is, at work it shows up as "the model was fine in training and is worse in production", and the
# cause is a prompt that two programs build in two ways. The repair is to build it in one place: in this course that is
# `smart_home.prompt`; for chat models it is the chat template.

# %%
repaired = scoring.generate(fresh, tokenizer, [smart_home.prompt(c.text) for c in sample[:50]], progress="repaired")
print("built by smart_home.prompt:", scoring.score(sample[:50], repaired))

# %%
quiz("first/space_or_mark")

# %% [markdown]
# ## Error recovery
#
# Three errors that everybody meets. Read each message and say what you would do, then look below it.

# %%
for attempt in (
    lambda: get_peft_model(load_base()[0], LoraConfig(r=0)),
    lambda: PeftModel.from_pretrained(base, adapters.adapter_folder("adapters")),
    lambda: load_base(precision="int7"),
):
    try:
        attempt()
    except (ValueError, LabError) as error:
        print(f"{type(error).__name__}: {error}\n")

# %% [markdown]
# - **Rank 0**: a rank counts columns, so 1 is the least. PEFT notices when it builds the layers, not when you write the
#   config.
# - **Not an adapter**: give the folder that `save_pretrained` wrote, not the one around it. Without our check PEFT
#   would go and ask the model hub for it.
# - **Unknown precision**: the message lists what there is.
#
# One mistake gives *no* error: a name in `target_modules` that matches nothing, beside one that does. Part of the
# adapter is then missing and the loss still falls. Lesson 2 shows it and how to catch it.
#
# ## Experienced-dev note
#
# - The adapter's `adapter_config.json` names its base model, and A and B are corrections to that base alone. Even
#   another *rounding* of it is another base: ours is read from a 4-bit file, so it is not to the last digit the model
#   on the hub. Ship the adapter with the exact base it was trained on.
# - Save the adapter, not the model. You can merge the two for speed later (Lesson 5), and one base can serve many
#   adapters; you cannot get the adapter back out of a merged model.
# - One run is one run. The recipe was chosen on validation commands, the score above is from test commands, and
#   [the benchmark](../benchmarks/README.md) repeats it for several seeds.
# - This notebook is an ordinary program: its twin `00_first_adapter.py`, beside it, runs under `python` and under
#   `accelerate launch`. Several processes share the training without a change; the cells around it then run in each.
#
# ## Check your understanding
#
# Each question is about something you measured. A wrong answer gets a reply, hints come one at a time, and the full
# answer after an attempt. What you solved is kept on your machine. (After a restart of the kernel, run a question's
# cell again.)

# %%
quiz("first/two_scores")

# %%
quiz("first/two_measures")

# %%
quiz("first/ship")

# %%
quiz("first/other_base")

# %%
quiz("first/which_error")

# %%
quiz("alpha/doubling")

# %%
progress()

# %% [markdown]
# ## Exercises
#
# **1. Change a number.** Make an adapter whose file is under 3 MB and that still adapts every linear layer. The check
# builds it without weights, so it takes a second.

# %%
my_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
quiz("first/small_adapter", my_config, fresh_base.config, 3)

# %% [markdown]
# **2. Find the weak spot.** Complete the function: the share of exact answers for each device, for instance
# `{"light": 0.9, "door": 1.0}`. The check runs it on data of its own; then use it on your model.

# %%
def exact_by_device(commands, answers):
    shares = {}
    # for command, answer in zip(commands, answers): the device is the second key of json.loads(command.answer)
    return shares

quiz("first/exact_by_device", exact_by_device)

# %% [markdown]
# **3. The one worth doing.** Write ten commands in your own words with their right answers, each as a pair
# `(smart_home.prompt(text), answer)`, score the model on them, and compare with the phrasings above. Your family says
# it differently than a grammar does.
#
# ## Recap
#
# - LoRA freezes the model and trains a low-rank addition, (alpha/r)·B·A, beside the layers you name.
# - A few hundred examples gave a small model a skill that examples in the prompt did not; a file of a few megabytes
#   carries it.
# - Measure on held-out data, with an interval, and measure what was forgotten.
#
# Next: **Lesson 1** shows why a low rank is enough, **2** which layers to name, **3** the same training in 8 bits and
# where the memory goes, **4** what alpha does, **5** how to merge and ship.
#
# LoRA was introduced in Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models* (2021), section 4.1.
#
# *Lessons:* [1 · Low-rank math: why two thin matrices are enough](01_low_rank_math.ipynb) →
