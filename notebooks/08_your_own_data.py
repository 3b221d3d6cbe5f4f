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
# # 8 · Your own data, your own model
#
# *Lessons:* ← [7 · Past one GPU](07_past_one_gpu.ipynb) ·
# [9 · Does the new variant win? Put a claim to the test](09_variants.ipynb) →
#
# So far the data was this course's. At work you have a table, an export of chats, a folder of tickets. Here you take
# such a file from its first line to an adapter that is shipped, or to the advice not to ship one. On the way every
# step has a verdict: are the rows fit to train on, would a prompt do, did the training help, what did it cost.
#
# **You will be able to** read and check rows of your own, say which tokens a training counts, choose a learning rate
# and stop in time, decide between a prompt and an adapter by measurement, and find what is wrong with an adapter that
# "does nothing".
#
# **You need** [Lesson 0](00_first_adapter.ipynb). [Lesson 5](05_alpha_scaling.ipynb) for learning rates and
# [Lesson 6](06_merge_and_ship.ipynb) for shipping help.
#
# **It takes** about one minute of computing on two CPU cores
# (on a GPU: not recorded).
# Those cores have AMX; older ones take longer.

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
import json
import random
import statistics
import textwrap
from collections import Counter
from pathlib import Path

import torch
import transformers
from lora_lab import LabError, adapters, batches, compare, data, doctor, load_base, plots, progress, quiz, scoring
from lora_lab.display import table, tokens
from lora_lab.models import clock
from peft import LoraConfig, PeftModel, get_peft_model

# %% [markdown]
# ## Read the file
#
# One line names the model, one the file. Run the lesson with the course's own set first. Then remove the `# ` before
# the fourth `FILE` line, drag your file into JupyterLab's list of files, put its name there and what the model is to
# do, and run all cells again: the last such line counts. Where it cannot guess which column is which, it says what
# columns there are: name the prompt's and the answer's in `COLUMNS`. Answers in several columns are joined in the file
# before. Where all answers are one of a few, name them in `TASK`. `NEEDED` is the share of right answers below which
# you would not use the model. What the lesson writes lies in `runs/own` and `adapters`. (Rows that are longer than the
# course's take longer.)
#
# The course brings these sets, written for it and licensed as the rest of it: messages to a shop, each with the team
# that it is for (`support`, a CSV); orders in words and what they say as JSON (`orders`, JSON lines); blunt sentences
# and how one would put them politely (`style`, chats).

# %%
MODEL = "SmolLM2-135M-Instruct"  # or a hub id, or a folder
FILE, TASK = data.example("support"), "Name its team: account, billing, delivery, returns or technical."
# FILE, TASK = data.example("orders"), "Write this order as JSON."
# FILE, TASK = data.example("style"), "Say this politely."
# FILE, TASK = "my_rows.csv", "What the model is to do."
COLUMNS = {}  # names that it cannot guess, such as {"prompt": "ask", "answer": "reply"}
NEEDED = 0.5
SEED, MOST = 0, 2_000  # of more rows than that, so many are drawn
base, tokenizer = load_base(MODEL)
TOKENS = 6_000 if base.device.type == "cpu" else 500_000  # for each long part: more take time, and tell more

# %% [markdown]
# `data.read` takes CSV and other tables, JSON, JSON lines, chats in OpenAI's form (`role` and `content`) and in
# ShareGPT's (`from` and `value`), and a folder that the `datasets` library wrote. Here is one row in four of these:

# %% tags=["nbval-check-output"]
Path("runs/own").mkdir(parents=True, exist_ok=True)
ask, say = "My parcel is late; can you help?", "delivery"
chat = {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}
shared = [{"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": say}]}]
FORMS = {"table.csv": f'id;text;label\n1;"{ask}";{say}\n', "shared.json": json.dumps(shared), "chats.jsonl":
         json.dumps(chat), "lines.jsonl": json.dumps({"instruction": "Name the team.", "input": ask, "output": say})}
for name, content in FORMS.items():
    Path("runs/own", name).write_text(content, encoding="utf-8")
    found = data.read(f"runs/own/{name}")
    print(f"{found.form}: {found.rows[0].prompt!r} → {found.rows[0].answer!r}")

# %% [markdown]
# It says how it understood a file, and shows the first rows, and what it could not read. Read that before you trust it:
# is this the prompt, is that the answer?

# %%
read = data.read(FILE, **COLUMNS)
print(read)
read.show()

# %% [markdown]
# (A subject and a body belong together? `{"prompt": ["subject", "body"]}` puts them under each other.)
#
# Split before you look any further. There are three parts, and each has one use. **Training** rows move the weights.
# **Held-out** rows decide between rates and say when to stop. **Test** rows are asked at the end, and decide nothing
# before that. Rows whose prompts are equal or nearly so stay on one side.

# %%
drawn = random.Random(SEED).sample(read.rows, min(len(read.rows), MOST))
if len(drawn) < 30:
    raise LabError(f"{FILE} has {len(drawn)} rows. For three parts that say anything, give a hundred or more.")
rest, test = data.split(drawn, 0.2, SEED)
train, held_out = data.split(rest, 0.15, SEED)
table([{"part": name, "rows": len(rows), "such as": rows[0].prompt[:90], "answer": rows[0].answer[:60]}
       for name, rows in {"training": train, "held out": held_out, "test": test}.items()])

# %% [markdown]
# ### Error recovery: what cannot be read
#
# A reader that guesses wrong in silence costs a day. This one refuses, with a reason and what to do. Read each message
# and say what you would change.

# %%
BROKEN = {"three.csv": "n,ask,say\n1,Hello,Hi\n", "asked.jsonl": '{"messages": [{"role": "user", "content": "Hi"}]}\n',
          "notes.txt": "a line of prose\nand another\n", "rows.json": "[1, 2, 3]"}
for name, content in BROKEN.items():
    Path("runs/own", name).write_text(content, encoding="utf-8")
    try:
        data.read(f"runs/own/{name}")
    except LabError as error:
        print(f"{name}: {error}\n")

# %% [markdown]
# ## Look before you train
#
# A training takes whatever it gets. An empty answer teaches to say nothing, and a test row that is in the training
# makes the score a measurement of memory. So first the rows are checked. To see that the check works, make a copy of
# the training rows and spoil it: one row of each kind of dirt, and a line that is cut off. (The lines named are those
# of this copy, that of a leak is your file's. What was wrong in your own rows turns up, too.)

# %%
other = next((row.answer for row in train if row.answer != train[3].answer), "another answer")
DIRT = {"empty": (train[1].prompt, ""), "duplicate": (train[2].prompt, train[2].answer),
        "contradiction": (train[3].prompt, other),
        "spoilt letters": ("From the cafÃ©: " + train[4].prompt, train[4].answer),
        "special tokens": ("New: " + train[5].prompt, train[5].answer + tokenizer.eos_token),
        "too long": (200 * (train[6].prompt + " "), train[6].answer),
        "split badly": (8 * "ሰላም ለዓለም ሁሉ ", train[7].answer), "leak": (test[0].prompt, test[0].answer)}
rows = [(row.prompt, row.answer) for row in train] + list(DIRT.values())
lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in rows]
Path("runs/own/dirty.jsonl").write_text("\n".join([*lines, lines[0][:20]]), encoding="utf-8")
dirty = data.read("runs/own/dirty.jsonl")
print(f"Lines {len(train) + 1} to {len(rows) + 1} of runs/own/dirty.jsonl are dirt. What was read:")
dirty.show(2)

# %%
WINDOW = 512  # tokens that a row may have
found = data.check(dirty, tokenizer, test, WINDOW)
for finding in found:
    print(f"- {finding}\n")
kinds = {finding.what for finding in found}
print(f"{len(DIRT.keys() & kinds)} of {len(DIRT)} kinds of dirt were found; not found:",
      ", ".join(DIRT.keys() - kinds) or "none")

# %% [markdown]
# Each finding names its rows by their place in the file, and a remedy. Where two rows contradict each other, both are
# named, and a leak is named by the *test* row. The check cannot know which answer is right.

# %%
quiz("own/leak")

# %% [markdown]
# Now your own rows. What is named is left out here, so that the lesson goes on (of two rows that contradict each other,
# both). At work you would mend it in the file, and run from the top: all places of a finding are in its `places`.

# %%
chosen = {row.place for row in drawn}
found = data.check([row for row in read.rows if row.place in chosen], tokenizer, max_length=WINDOW)
found += [finding for finding in data.check(train, test=[*held_out, *test]) if finding.what == "leak"]
print("\n".join(f"- {finding}" for finding in found) or "Nothing was found in these rows.")
out = {place for finding in found if finding.what not in ("split badly", "spelling") for place in finding.places}
before = len(train), len(held_out), len(test)
train, held_out, test = ([row for row in part if row.place not in out] for part in (train, held_out, test))
print(f"training, held out, test: {before} rows before, {(len(train), len(held_out), len(test))} after")
if len(train) < 20 or len(held_out) < 4 or len(test) < 10:
    raise LabError("Too few rows are left. Mend in the file what was found. If rows are too long, raise WINDOW; if "
                   "they are leaks, your file has few forms, and needs rows of others.")

# %%
named = [(finding.what, row) for finding in found for row in read.rows if row.place in finding.places]
table([{"found": what, "place": row.place, "prompt": textwrap.shorten(row.prompt, 100, placeholder=" …"),
        "answer": textwrap.shorten(row.answer, 60, placeholder=" …")} for what, row in named[:12]]
      or [{"found": "nothing"}])

# %% [markdown]
# Do answers repeat? Then look at each with its count. A rare one may be another's misspelling, or another's name: no
# check can know that, and you can.

# %%
counts = Counter(row.answer for row in [*train, *held_out, *test])
print(f"{len(counts)} different answers.", *(f"{n} × {text[:60]!r}" for text, n in counts.most_common(12)), sep="\n")
repeated = len(counts) < len(train) / 4
rare = ", ".join(repr(answer) for answer, n in counts.items() if n < 3)
print(f"Of fewer than three rows each: {rare or 'none'}" if repeated else
      "Most answers are of one row, so a misspelt one does not stand out by its count: look for yourself.")

# %% [markdown]
# A row of the same *kind* is no leak, and a test row says how good the model is at rows of the same kind. If one form
# fills your whole file, the score vouches for that form alone.
#
# How many test rows do you need? That depends on the difference that you want to see. **Predict** before you run on.

# %%
quiz("own/rows_needed")

# %%
for before, after in ((0.5, 0.9), (0.8, 0.9), (0.88, 0.9)):
    print(f"{before:.0%} against {after:.0%}: {data.rows_needed(before, after):,} test rows")
compare("own/rows_needed", data.rows_needed(0.8, 0.9))
seen = [points for points in range(1, 21) if data.rows_needed(0.8, 0.8 + points / 100) <= len(test)]
print(f"Your {len(test)} test rows, all asked both ways, tell 80 % from",
      f"{80 + seen[0]} % and more." if seen else "no higher share.")

# %% [markdown]
# ## What the loss counts
#
# An instruct model knows turns, not rows. Its **chat template** writes a chat as one text, with tokens around each
# turn that it has seen in its own training. Here is what it makes of a bare question, and of your first row with the
# task before it.

# %%
def turns_before(row):
    """The chat up to the answer: the row's own messages, or its prompt, with the task before them."""
    turns = list(row.messages) or [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": ""}]
    while turns.pop()["role"] != "assistant":  # the answer, and whatever comes after it
        pass
    has_task = turns and turns[0]["role"] == "system"
    return turns if has_task else [{"role": "system", "content": TASK}, *turns]

def answered(row):
    return [*turns_before(row), {"role": "assistant", "content": row.answer}]

def pair(row, shown=()):
    """The text that the model gets, with turns that are `shown` before the row's own; and the answer."""
    task, *turns = turns_before(row)
    return tokenizer.apply_chat_template([task, *shown, *turns], tokenize=False, add_generation_prompt=True), row.answer

print(repr(tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)))
print(repr(pair(train[0])[0]))

# %% [markdown]
# Look at the first text. Did anybody here write its system turn? A template may add words of its own, and another
# model's template adds others. So let one function, here `pair`, build the text for training *and* for use. (Of a
# chat with several turns it gives the last answer, with all that came before it as the prompt.)
#
# Which tokens of it does the loss count? **Predict** the share.

# %%
quiz("own/counted")

# %%
encoded = batches.encode([pair(row) for row in train], tokenizer)
length = statistics.mean(len(row["input_ids"]) for row in encoded)
BATCH = max(1, min(4, int(512 / length)))  # rows a step: of long rows, fewer
ids, answer = encoded[0]["input_ids"], encoded[0]["answer_length"]
counted = sum(row["answer_length"] for row in encoded) / sum(len(row["input_ids"]) for row in encoded)
print(f"Of all rows' tokens the loss counts {counted:.0%}. The first row, with what counts in colour:")
compare("own/counted", counted)
tokens([tokenizer.decode(token) for token in ids], [place >= len(ids) - answer for place in range(len(ids))])

# %% [markdown]
# The last token in colour ends the turn. If the prompt is in colour too, the model learns to write your users'
# messages. Two mistakes are harder to see. Where padding has the same token as the end of a turn and is masked by its
# number, the end is masked as well, and the model is not taught to stop. And in use the template may be left out.
# The doctor, whom you meet again below, looks at encoded rows before any training:

# %%
def without(row, masked):
    """The row with labels, where the answer counts but for `masked`, a token."""
    ids, start = row["input_ids"], len(row["input_ids"]) - row["answer_length"]
    return {"input_ids": ids, "labels": [-100] * start + [-100 if token == masked else token for token in ids[start:]]}

PADDED = [without(row, tokenizer.pad_token_id) for row in encoded]
for name, rows, prompts in (("as they are", encoded, [pair(row)[0] for row in test]),
                            ("padding masked by its number", PADDED, [pair(row)[0] for row in test]),
                            ("asked without the template", encoded, [row.prompt for row in test])):
    found = doctor.examine(data=rows, prompts=prompts, tokenizer=tokenizer).findings
    print(f"{name}: {found[0] if found else 'nothing found.'}\n")

# %% [markdown]
# **Several turns.** A chat of your own may hold several answers. Here are two of your rows as one chat, cut into what
# the system, the user and the assistant wrote, and what the template adds.

# %%
def turns_of(chat):
    """(who wrote it, token ids) of each part of a chat, in order."""
    parts, seen = [], ""
    for n, turn in enumerate(chat):
        whole = tokenizer.apply_chat_template(chat[:n + 1], tokenize=False)
        if turn["role"] == "assistant":
            asked = tokenizer.apply_chat_template(chat[:n], tokenize=False, add_generation_prompt=True)
            text, end, after = whole[len(asked):].partition(tokenizer.eos_token)
            parts += [("template", asked[len(seen):]), ("assistant", text + end), ("template", after)]
        else:
            parts.append((turn["role"], whole[len(seen):]))
        seen = whole
    return [(who, tokenizer(text, add_special_tokens=False)["input_ids"]) for who, text in parts]

turns = turns_of([*answered(train[0]), *answered(train[1])[1:]])
print([f"{who}: {len(own)} tokens" for who, own in turns])

# %% [markdown]
# **Puzzle 1: labels of a chat.** `turns` is such a list. This function counts the last part alone, whoever wrote it.
# Count every answer, and nothing else.

# %%
def my_labels(turns):
    ids = [token for _, own in turns for token in own]
    return [-100] * (len(ids) - len(turns[-1][1])) + turns[-1][1]  # the last part alone

quiz("own/turn_labels", my_labels)

# %% [markdown]
# Here is what your function counts in the chat above. Run this again when you have solved it.

# %%
tokens([tokenizer.decode(token) for _, own in turns for token in own], [label != -100 for label in my_labels(turns)])

# %% [markdown]
# (Some templates write earlier turns otherwise than the last one: those of models that think aloud drop the thoughts.
# Then a chat is no longer the start of the chat that follows it, and each answer has to be a row of its own.)
#
# ## Common gotcha: packing
#
# Rows in a batch have different lengths, and the short ones are padded. To waste nothing, programs put several rows
# into one sequence: **packing**. Unless something keeps them apart, the second row sees the first. In use nobody
# stands before it. **Predict** what that does to the loss of the second row's answer.

# %%
quiz("own/packed")

# %%
@torch.no_grad()
def answer_loss(first, second, apart):
    """The loss of the second row's answer, behind the first row in one sequence."""
    whole = torch.tensor(first + second["input_ids"], device=base.device)
    own = torch.tensor([0] * len(first) + [1] * len(second["input_ids"]), device=base.device)
    sees = (own[:, None] == own if apart else own[:, None] >= own).tril()
    mask = torch.zeros(sees.shape, device=base.device, dtype=base.dtype).masked_fill(~sees, torch.finfo(base.dtype).min)
    places = torch.tensor([*range(len(first)), *range(len(second["input_ids"]))], device=base.device)
    logits = base(input_ids=whole[None], attention_mask=mask[None, None], position_ids=places[None]).logits[0]
    n = second["answer_length"]
    return torch.nn.functional.cross_entropy(logits[-n - 1:-1].float(), whole[-n:]).item()

COUPLES = [random.Random(SEED + n).sample(encoded, 2) for n in range(6)]
alone = [answer_loss([], second, False) for _, second in COUPLES]
print("the second rows alone:", ", ".join(f"{loss:.2f}" for loss in alone), "nats a token")

# %%
losses = {"alone": alone} | {
    name: [answer_loss(first["input_ids"], second, apart) for first, second in COUPLES]
    for name, apart in {"packed": False, "packed, kept apart": True}.items()}
compare("own/packed", statistics.mean(losses["packed"]) / statistics.mean(alone))
plots.dots(losses, "loss of the second row's answer (nats a token)", "What does the second row see?", each="pair")

# %%
lower = sum(a < b for a, b in zip(losses["packed"], alone))
off = max(abs(a - b) for a, b in zip(losses["packed, kept apart"], alone))
said = "It is an example to them, and in use there is none." if lower == len(alone) else \
    "It disturbs them." if lower == 0 else "It is a help to some and disturbs others."
print(f"Behind another row, {lower} of {len(alone)} answers have a lower loss than alone. {said}")
print(f"Kept apart by a mask, no loss is further from its own alone than {off:.2g} nats.")

# %% [markdown]
# The mask is a block for each row, and the positions begin anew: then packing changes nothing but the time and some
# rounding. Trainers have a setting for it, which needs an attention that knows of blocks. Where yours has none, pad,
# and put rows of similar length into a batch (`batches.similar_lengths`).
#
# ## Would a prompt do?
#
# Before any training, the fair trial of Lesson 0: the base gets the task and a few solved examples in every request.
# It is fair if the prompt is as good as you can make it. Where answers repeat, the examples are of the commonest ones;
# where they do not, they are drawn. **Predict** its score on your test rows.

# %%
quiz("own/told")

# %%
ANSWER = min(WINDOW // 4, max(row["answer_length"] for row in encoded))  # tokens; longer answers are cut off
often = Counter(row.answer for row in train)
by_count = sorted(train, key=lambda row: -often[row.answer]) if repeated else train
examples = list({row.answer: row for row in by_count}.values())[:max(1, min(8, int(TOKENS / 12 / length)))]
shown = [turn for row in examples for turn in answered(row)[1:]]
asked = {"with examples": [pair(row, shown)[0] for row in test], "adapter": [pair(row)[0] for row in test]}
read_by = {way: statistics.mean(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
           for way, texts in asked.items()}
asked = {way: texts[:max(20, int(2 * TOKENS / (read_by[way] + ANSWER)))] for way, texts in asked.items()}
print(f"{len(examples)} examples{', of the commonest answers' * repeated}. A request has "
      f"{read_by['with examples']:.0f} tokens with them, {read_by['adapter']:.0f} without.\n"
      f"Up to {ANSWER} tokens are written. Test rows asked, for time: {len(asked['with examples'])} of {len(test)}.")

# %%
answers = {"with examples": scoring.generate(base, tokenizer, asked["with examples"], ANSWER, 20,
                                             progress="the base, with examples")}
wanted = [pair(row) for row in test]
told = scoring.score(wanted[:len(answers["with examples"])], answers["with examples"])
print(told)
((common, _),) = often.most_common(1)
blind = sum(row.answer == common for row in test) / len(test)
if repeated:
    print(f"Who always says {common[:40]!r}, and reads no row, is right in {blind:.0%} of your test rows.")
compare("own/told", told.exact)
table([{"asked": row.prompt, "right answer": row.answer, "with examples": answer[:120]}
       for row, answer in zip(test[:6], answers["with examples"])])

# %% [markdown]
# Exact match is strict: for a sentence it asks for every word. It will be as strict to the adapter. Look at the answers
# before you believe the score: is it the form that fails, or the content? And where one answer is common, a model that
# reads nothing scores well.
#
# ## The recipe: which rate?
#
# In which order does one try things? First a run that learns at all, with what the field takes to begin with: rank 8,
# alpha 16, every linear layer, AdamW. Then the learning rate, as no other setting decides so much. Then when to stop.
# Rank and targets come last: [Lesson 2](02_config_and_targets.ipynb) and [Lesson 5](05_alpha_scaling.ipynb) measure
# them.
#
# This is the whole training. What is new beside Lesson 0: with `every`, the held-out rows are asked for their loss each
# so many steps (`eval_strategy`). The adapter is saved each time, and at the end the one with the lowest loss is loaded
# back (`load_best_model_at_end`).

# %%
def trainer_for(name, rows, lr, steps, every=None, callbacks=()):
    transformers.set_seed(SEED)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_base(MODEL, quiet=True)[0], config)
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)  # else asks the hub
    when = "steps" if every else "no"
    trainer = transformers.Trainer(model, transformers.TrainingArguments(
        f"runs/own/{name}", max_steps=steps, learning_rate=lr, warmup_steps=2, per_device_train_batch_size=BATCH,
        eval_strategy=when, eval_steps=every, save_strategy=when, save_steps=every, load_best_model_at_end=bool(every),
        save_total_limit=1, save_only_model=True, logging_steps=1, seed=SEED, per_device_eval_batch_size=12,
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=model.device.type == "cpu", bf16=model.dtype == torch.bfloat16, fp16=model.dtype == torch.float16),
        batches.AnswerCollator(tokenizer), rows, batches.encode(checked, tokenizer), callbacks=list(callbacks))
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer

# %% [markdown]
# Now a small sweep, by the course's own tool: few steps, few rows, rates far apart. It need not find the best rate, it
# has to find the right power of ten. **Predict** which one it picks.

# %%
quiz("own/rate")

# %%
from lora_lab.sweep import interval, sweep

RATES, SHORT_STEPS, curves = [3e-5, 3e-4, 3e-3, 3e-2], 5, {}
checked = [pair(row) for row in held_out[:max(4, min(12, int(1000 / length)))]]
start = {"step": 0, "eval_loss": scoring.quick_score(base, tokenizer, checked).loss}
print(f"Held-out rows asked, for time, here and for every loss below: {len(checked)} of {len(held_out)}.")

def short_run(lr, seed):
    trainer = trainer_for("short", encoded, lr, SHORT_STEPS)
    trainer.train()
    loss = scoring.quick_score(trainer.model, tokenizer, checked).loss
    curves[lr] = [start, *trainer.state.log_history, {"step": SHORT_STEPS, "eval_loss": loss}]
    return {"loss": loss}

rates = sweep(short_run, {"lr": RATES}, seeds=[SEED], progress="four rates")
rates.table("loss", "lr")

# %%
ended = {row["lr"]: row["loss"] for row in rates.rows if row["status"] == "ok"}
best = min(ended, key=ended.get)
near = [lr for lr in ended if ended[lr] < 1.25 * ended[best]]
rate, long_rate = min(near), min(near) / 2
said = f"The loss is nearly alike at {near}." if len(near) > 1 else "No other is near."
edge = " That is the edge of the grid: try one beyond it." if rate in (RATES[0], RATES[-1]) else ""
print(f"The lowest held-out loss is at a rate of {best:g}. {said} Taken: {rate:g}.{edge}")
print(f"For the long training, half of it: {long_rate:g}.")
compare("own/rate", best)
after, name = (list(ended), list(ended.values())), f"after {SHORT_STEPS} steps"
plots.lines({name: after, "before": (RATES, [start["eval_loss"]] * len(RATES))}, "learning rate",
            "held-out loss (nats an answer token)", title="Which rate learns in a few steps?", seeds={name: after},
            xscale="log", yscale="log")

# %% [markdown]
# One seed and few steps can tell powers of ten apart, and no neighbours. Short runs flatter high rates: a training that
# goes on needs less, and pushes the rest of the model about less. So of rates that are nearly alike, take the lowest,
# and half of that for the long training. (At work, sweep with the steps that you are going to train.)
#
# ## Too little, too much
#
# Two failures, made on purpose. **Too little**: the lowest rate of your sweep. **Too much**: four rows alone, read
# again and again. A training loss near zero does not say whether the task was learned, or the rows by heart.
# **Predict** where the held-out loss of *too much* ends, compared with its own lowest point.

# %%
quiz("own/overfit")

# %%
few = trainer_for("few", encoded[:4], rate, steps=10, every=2)
few.train()
curves["too much"], curves["too little"] = [start, *few.state.log_history], curves[RATES[0]]
del few  # the memory of its model

def course_of(history, key):
    """Steps and losses of a training's log; a logarithmic axis shows no zero."""
    told = [(line["step"], max(line[key], 1e-4)) for line in history if key in line]
    return [step for step, _ in told], [loss for _, loss in told]

drawn = {f"{name}: {what}": course_of(curves[name], key) for name in ("too little", "too much")
         for what, key in (("training", "loss"), ("held out", "eval_loss"))}
compare("own/overfit", drawn["too much: held out"][1][-1] / min(drawn["too much: held out"][1]))
plots.lines(drawn, "step", "nats an answer token", title="Two failures, told apart by the held-out rows",
            yscale="log")

# %%
def diagnosis(name):
    """What the two curves of a training call for."""
    (steps, checks), (_, losses) = (course_of(curves[name], key) for key in ("eval_loss", "loss"))
    low, end, learned = min(checks), checks[-1], statistics.mean(losses[-3:])
    told = f"{name}: held out {checks[0]:.2f} to {end:.2f}, lowest {low:.2f}; training ends at {learned:.2f}. "
    if end > 1.1 * low and end - low > 0.05 and learned < low:
        return told + f"It learns its rows by heart: stop at step {steps[checks.index(low)]}, or bring more rows."
    if end > 0.9 * checks[0]:
        return told + "It has hardly begun: a higher rate, or more steps."
    if end == low:
        return told + ("Hardly anything is left to learn." if low < 0.02 else "It is at its lowest: more may help.")
    if learned < 0.5 * end and end - learned > 0.05:
        return told + "Its own rows are far ahead of the others: more steps will not help those."
    return told + "It has stopped falling: enough."

print(diagnosis("too little"), diagnosis("too much"), sep="\n")

# %%
quiz("own/curves")

# %% [markdown]
# ## The verdict
#
# Now the training that counts: half the rate of the sweep, as many rows as `TOKENS` leaves time for, and **early
# stopping**. When the held-out loss has not been lower for some checks, the training ends, and the best adapter is
# loaded back.
#
# The rule, fixed before any test row is asked: the adapter is shipped if the interval of its difference to the prompt
# is above zero, and if it is right in at least `NEEDED` of the rows. Otherwise there is advice. Which score on the test
# rows do you expect?

# %%
quiz("own/adapter")

# %%
steps = max(8, min(3 * len(encoded) // BATCH, int(TOKENS / BATCH / length)))
EVERY = max(2, steps // 4)
STEPS = steps // EVERY * EVERY
stop = transformers.EarlyStoppingCallback(early_stopping_patience=2)
trainer = trainer_for("whole", encoded, long_rate, STEPS, EVERY, [plots.LiveLoss(), stop])
started = clock()
trainer.train()
model, spent, curves["whole"] = trainer.model.eval(), clock() - started, [start, *trainer.state.log_history]
print(f"{trainer.state.global_step} of {STEPS} steps in {spent:.0f} s; the adapter is that of step "
      f"{trainer.state.best_global_step}, with a held-out loss of {trainer.state.best_metric:.3f}")
read_rows = trainer.state.global_step * BATCH
print(f"It has read {read_rows} rows, {read_rows / len(train):.1f} times the {len(train)} that there are.",
      "With a larger TOKENS it would read them all." * (read_rows < len(train)))
print("Held-out rows, before the test:", scoring.quick_score(model, tokenizer, checked))

# %%
print(diagnosis("whole"))
plots.lines({what: course_of(curves["whole"], key) for what, key in (("training", "loss"), ("held out", "eval_loss"))},
            "step", "nats an answer token", mark=trainer.state.best_global_step, yscale="log",
            title="When to stop? (Upright line: the adapter that was kept)")

# %% [markdown]
# (If more may help: raise `TOKENS` at the top, and run again from there. The rate falls to zero at the last step, so
# a longer training is another one.)
#
# And now, for the first time, the test rows.

# %%
answers["adapter"] = scoring.generate(model, tokenizer, asked["adapter"], ANSWER, progress="with the adapter")
judged = scoring.score(wanted[:len(answers["adapter"])], answers["adapter"])
scores = {"examples in the prompt": told, "adapter": judged}
said = scoring.verdict(told, scores["adapter"], "examples in the prompt", "adapter")
print(said)
compare("own/adapter", scores["adapter"].exact)
plots.score_bars(scores, "Prompt or adapter? Exact answers, with 95 % intervals", "test rows")

# %%
wrong = [(row, answer) for row, answer, (_, right) in zip(test, answers["adapter"], wanted)
         if answer.strip() != right.strip()]
print(f"{len(wrong)} of {len(answers['adapter'])} answers of the adapter are not the right one, letter for letter:")
table([{"asked": row.prompt, "right answer": row.answer, "the adapter says": answer[:120]}
       for row, answer in wrong[:6]] or [{"wrong": "none"}])

# %% [markdown]
# Read the wrong ones. Some may be right in another spelling, and then the score is too strict. Some may be rows whose
# given answer you would dispute: then mend the file, and bring new rows to test on. Those that you have read can judge
# nothing any more.
#
# Where answers are whole sentences, exact match may find none on either side. A second measure is how likely each way
# finds the right answers: their loss, row by row. It is asked for where exact match cannot tell.

# %%
gain = (0.0, 0.0)  # nats a token, and half of its interval
if "cannot tell" in said:
    rows = list(zip(test, asked["with examples"][:12], asked["adapter"]))
    gain = interval([scoring.quick_score(base, tokenizer, [(longer, row.answer)]).loss
                     - scoring.quick_score(model, tokenizer, [(bare, row.answer)]).loss for row, longer, bare in rows])
    print(f"On {len(rows)} rows the right answers' loss is lower with the adapter, by {gain[0]:.2f} ± {gain[1]:.2f}",
          "nats a token (95 % interval).", "They are likelier with the adapter." if gain[0] > gain[1] else
          "They are likelier with examples." if -gain[0] > gain[1] else "That cannot tell either.")
else:
    print("Exact match can tell: no second measure is needed.")

# %% [markdown]
# ## What it costs
#
# **Forgetting.** The adapter is part of every answer, until you switch it off. **Predict** how the perplexity of
# ordinary prose compares with the base's.

# %%
quiz("own/forgot")

# %%
prose = {"base": scoring.perplexity(base, tokenizer), "adapter": scoring.perplexity(model, tokenizer)}
times = prose["adapter"] / prose["base"]
print(f"Perplexity of a page of prose: base {prose['base']:.1f}, adapter {prose['adapter']:.1f}.",
      "It is less sure of ordinary text." if times > 1.1 else "On one page that is hardly a change.")
compare("own/forgot", times)
question = "What is the capital of France?"
table([{"asked": question, "base": scoring.chat(base, tokenizer, question, 20),
        "with the adapter": scoring.chat(model, tokenizer, question, 20)}])

# %% [markdown]
# **Time.** Examples in a prompt are read again with every request. An adapter is paid for once. From how many requests
# on has the training paid for itself? (Above, `generate` had all requests at once, and read once what they have in
# common. Here they come one by one.)

# %%
seconds = {"with examples": [], "adapter": []}
for n in range(6):  # the same rows both ways, in turns
    for way, answering in {"with examples": base, "adapter": model}.items():
        started = clock()
        scoring.generate(answering, tokenizer, [asked[way][n]], ANSWER)
        seconds[way] += [clock() - started] * (n > 0)  # the first warms up
saved, sure = interval([longer - bare for longer, bare in zip(*seconds.values())])
table([{"way": way, "tokens read a request": f"{read_by[way]:.0f}",
        "seconds a request, here": ", ".join(f"{taken:.3f}" for taken in seconds[way])} for way in read_by])

# %%
print(f"A request with the adapter is {'quicker' if saved > 0 else 'slower'} by {abs(saved):.3f} ± {sure:.3f} s (95 %",
      "interval of five).",
      "So few tell nothing about the time." if abs(saved) <= sure else
      "On this machine it is the slower way." if saved < 0 else f"The last training alone took {spent:.0f} s: in "
      f"time it has paid for itself after {spent / (saved + sure):,.0f} to {spent / (saved - sure):,.0f} requests.")
print(f"By tokens, a request with examples reads {read_by['with examples'] / read_by['adapter']:.1f} times as many.")

# %% [markdown]
# (Servers can keep the beginning of a prompt that all requests share, and then read it once. So measure on yours.)
#
# ## Ship it, or not
#
# By the rule that was fixed above:

# %%
higher, right = "adapter is higher" in said, scores["adapter"].exact
better = higher and right >= NEEDED
if better:
    print(f"Ship the adapter. {said}")
elif read_rows < len(train):
    print(f"Do not ship yet: {right:.0%} right answers, after {read_rows} rows of {len(train)}. {said} With TOKENS =",
          f"{TOKENS * len(train) / read_rows:,.0f} it reads each once, in {len(train) / read_rows:.1f} times the time.")
elif higher:
    print(f"Do not ship yet: {right:.0%} right answers are less than the {NEEDED:.0%} needed. {said}")
elif gain[0] > gain[1]:  # asked for where exact match cannot tell
    print(f"Do not ship yet. {said} The right answers are likelier with the adapter: have people compare pairs.")
elif "cannot tell" in said and right != told.exact:
    print(f"Do not ship yet. {said} {data.rows_needed(told.exact, right):,} test rows would show such a difference.")
else:
    print(f"Do not ship it: take the prompt, or more rows. {said}")

# %%
if better and times > 1.5:
    print("It has forgotten much else: keep it apart from the base, and switch it on for this task alone.")

# %%
from lora_lab import shipping

CARD = f"""---
base_model: {getattr(base.config, "_name_or_path", MODEL)}
---
# {Path(FILE).stem}: {TASK}
- Data: {Path(FILE).name}, split by seed {SEED}. {read_rows} rows read in training, of {len(train)}; {len(checked)} held
  out; asked: {len(answers["adapter"])} test rows with the adapter, {len(answers["with examples"])} with examples.
- LoRA: rank 8, alpha 16, all linear layers, rate {long_rate:g}, step {trainer.state.best_global_step}. Ask through the
  chat template, with the task as the system turn, greedily, up to {ANSWER} tokens.
- {said}
- Perplexity of a page of prose: base {prose["base"]:.1f}, adapter {prose["adapter"]:.1f}."""
ADAPTER = f"adapters/own-{Path(FILE).stem}"
if better:
    shipping.ship(model, tokenizer, ADAPTER, CARD)
print(CARD if better else f"Not shipped. The card would have said:\n{CARD}")

# %% [markdown]
# What is shipped has to answer as what you measured. Load it into a fresh base and ask again:

# %%
if better:
    fresh = load_base(MODEL, quiet=True)[0]
    loaded = PeftModel.from_pretrained(fresh, adapters.adapter_folder(ADAPTER, r=8, base=fresh)).eval()
    again = scoring.generate(loaded, tokenizer, asked["adapter"][:10], ANSWER)
    print(sum(a == b for a, b in zip(again, answers["adapter"])), "of", len(again), "answers are as measured")
    message = test[0].prompt  # or a new one, of yours: this is all that using it takes
    turns = [{"role": "system", "content": TASK}, {"role": "user", "content": message}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    print(message, "→", scoring.generate(loaded, tokenizer, [text], ANSWER)[0])
    del fresh, loaded
else:
    print("Nothing was shipped.")

# %% [markdown]
# ## Another model, and a training without a notebook
#
# **Another model is one line**: `MODEL` at the top takes a hub id or a folder. On Colab's GPU, for instance
# (**not run here**):
#
#     MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"
#     MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
#     base, tokenizer = load_base(MODEL, "nf4")   # QLoRA, where the base is too large; in trainer_for, too
#
# Take an *instruct* model, whose template was in its training. A template may refuse a system turn: then put the task
# into the user's. And measure again: rate, steps and verdict are those of one model. Does it fit? The planner of
# [Lesson 4](04_memory.ipynb) says so from the config alone:

# %%
from lora_lab import memory

longest = max(len(row["input_ids"]) for row in encoded)
planned = memory.plan(base.config, model.peft_config["default"], batch_size=BATCH, seq_len=longest)
print(f"{MODEL}, batches of {BATCH} rows of up to {longest} tokens: {memory.human(planned.total_bytes)}")

# %% [markdown]
# **The same training as a recipe**, for a machine without a notebook or for many GPUs ([Lesson
# 7](07_past_one_gpu.ipynb)). The rows go to files as `pair` writes them, so that the texts stay those you measured. It
# trains all steps and keeps the last adapter; its log tells the held-out losses, and whether to stop earlier.

# %%
from lora_lab.finetune import recipes

for name, part in {"train": train, "held_out": held_out}.items():
    lines = [json.dumps(dict(zip(("prompt", "answer"), pair(row)))) + "\n" for row in part]
    Path(f"runs/own/{name}.jsonl").write_text("".join(lines), encoding="utf-8")
recipes.write({
    "model": MODEL, "output": "runs/own/finetuned", "lora": model.peft_config["default"],
    "data": {"path": "runs/own/train.jsonl", "eval_path": "runs/own/held_out.jsonl"},
    "training": {"max_steps": STEPS, "batch_size": BATCH, "learning_rate": long_rate, "warmup_steps": 2,
                 "eval_steps": EVERY}}, "runs/own/recipe.yaml")
print(Path("runs/own/recipe.yaml").read_text())

# %%
recipe = recipes.read("runs/own/recipe.yaml", resume=True)  # what the command checks before it loads a model
print(f"{len(recipe.rows)} rows to train on and {len(recipe.eval_rows)} held out: the recipe is fit to train by.")

# %% [markdown]
# In a terminal, from this folder (**not run here**):
#
#     python -m lora_lab.finetune runs/own/recipe.yaml
#     python -m lora_lab.doctor runs/own/finetuned --base SmolLM2-135M-Instruct --data runs/own/train.jsonl
#
# `training.report_to` in the recipe tells TensorBoard, Trackio or Weights & Biases of the losses as well.
#
# ## Drills: five sick adapters
#
# "I trained, and it does nothing." Five people bring you an adapter, each with the base that they load it on, the log
# of the training, and the rows as they were trained on. All are trainings of the pocket model, a quarter of a million
# weights. In each case another thing went wrong, and not always in the training: some of the logs are alike.

# %%
from lora_lab.course.exercises import own

DRILLS = "runs/own/drills"
own.make(DRILLS)
patients = {name: own.patient(DRILLS, name) for name in own.PATIENTS}
table([{"patient": name, "rows": len(parts["data"]), "losses in the log": len(parts["log"])}
       for name, parts in patients.items()])

# %% [markdown]
# Examine them by hand first. The signs: the first, the highest and the last loss of the log, which share of the tokens
# is counted, the largest entry of any B, and the loss on its own rows without the adapter, with an eighth of it, and as
# it is.

# %%
@torch.no_grad()
def loss_on(model, rows, factor):
    with adapters.turned(model, factor):
        return statistics.mean(model(**{key: torch.tensor([row[key]], device=model.device) for key in
                                        ("input_ids", "labels")}).loss.item() for row in rows)

signs = []
for patient, parts in patients.items():
    sick = PeftModel.from_pretrained(copy.deepcopy(parts["base"]), parts["adapter"]).eval()
    largest = max(p.abs().max().item() for name, p in sick.named_parameters() if "lora_B" in name)
    losses = [line["loss"] for line in parts["log"]]
    labels = [label != -100 for row in parts["data"] for label in row["labels"]]
    signs.append({"patient": patient, "log": f"{losses[0]:.2g}, up to {max(losses):.2g}, {losses[-1]:.2g}",
                  "counted": f"{statistics.mean(labels):.0%}", "largest in B": f"{largest:.2g}"} | {
        f"loss, adapter × {factor:g}": f"{loss_on(sick, parts['data'][:16], factor):.2g}" for factor in (0, 0.125, 1)})
table(signs)

# %% [markdown]
# **Puzzle 2: the diagnosis.** One of each: *never trained*, *rate too high*, *prompt counted*, *config edited* (alpha
# was raised on disk), *merged twice* (the base has the update already). What does each do to the signs?

# %%
causes = {"a": "?", "b": "?", "c": "?", "d": "?", "e": "?"}
quiz("own/causes", causes, DRILLS)

# %% [markdown]
# Now the doctor. It reads the same parts, executes nothing that a folder holds, and names the likeliest cause first,
# with its evidence, a remedy, and the lesson that shows it.

# %%
examined = {name: doctor.examine(**parts) for name, parts in patients.items()}
for name, found in examined.items():
    print(f"{name}. {found.findings[0] if found.findings else 'Nothing found.'}\n")
alike = sum(bool(found.findings) and found.findings[0].cause == causes[name] for name, found in examined.items())
answered_all = "?" not in causes.values()
print(f"You and the doctor name the same cause for {alike} of {len(causes)}." if answered_all else
      "Your own diagnosis is not complete yet.")

# %% [markdown]
# A finding is a cause with its evidence, not a proof. The doctor tells you too what it could not see:

# %%
print(doctor.examine(adapter=patients["a"]["adapter"]))

# %% [markdown]
# ## Experienced-dev note
#
# - Fix the rule for shipping before you ask the test rows, and ask them once. A test that helped to choose is a
#   held-out part.
# - Real messages come in time order, and from the same people. If yours do, split by time or by person, not by chance:
#   a random split leaks what a text check cannot see.
# - Keep the file, its split and the seed with the adapter. A score without its rows cannot be repeated.
# - What works as a prompt for a large model may be copied into rows for a small one. Read that model's licence first.
#
# ## Exercise
#
# Bring a file of your own: a table or chats, a few hundred rows. Put it into the line at the top, name the task, and
# run all. Set `NEEDED` before you run, and say which of the two failures you expect.

# %%
progress()

# %% [markdown]
# ## Recap
#
# - Rows first: read what was understood, check, split, and let no test row into the training. The loss counts what is
#   in colour, and one function writes the texts for training and for use.
# - Try a prompt, then a rate, then when to stop. The held-out rows choose, the test rows judge, with an interval.
# - When an adapter "does nothing", look at signs: its B, its log, its labels, its base. The doctor reads the same.
#
# **The exercise worth doing.** The one above. And if somebody brings you a sick adapter, say your diagnosis before you
# ask the doctor.
#
# Next: **Lesson 9** puts the claims of LoRA's variants to the test.
#
# Sources: Hu et al., *LoRA* (2021); Kaufman et al., *Leakage in Data Mining* (2012); Prechelt, *Early Stopping: But
# When?* (1998); Krell et al., *Efficient Sequence Packing without Cross-contamination* (2021); Newcombe, *Interval
# estimation for the difference between independent proportions* (1998), method 10; Fleiss, *Statistical Methods for
# Rates and Proportions* (1981).
#
# *Lessons:* ← [7 · Past one GPU](07_past_one_gpu.ipynb) ·
# [9 · Does the new variant win? Put a claim to the test](09_variants.ipynb) →
