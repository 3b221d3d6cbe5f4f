"""Does the doctor name the right cause first? Faults made in real small trainings, and sound adapters beside them.

    python benchmarks/doctor_cases.py [--seeds 10] [--sound 100]

Each fault is made as it happens at work: in the training, in the file afterwards, or in what the adapter is loaded on.
The doctor is given what would be at hand. A sound case has another rank, other targets, another length and another
family of models each time; any finding about it is a false alarm.
"""

import argparse
import collections
import copy
import json
import random
import tempfile
import time
import warnings
from pathlib import Path

import recipe
import torch
import transformers
from lora_lab import adapters, batches, doctor, pocket, smart_home
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, set_seed

TARGETS = ("all-linear", ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "down_proj"])
TOKENS, STEPS = 96, (40, 60, 90)


class Training:
    """One training of the pocket model on a dialect; what a case needs of it is kept."""

    def __init__(self, folder: Path, seed: int, base=None, config=None, rows=None, held_out=None, before=None,
                 save=None, **arguments):
        rng = random.Random(f"training/{seed}")
        set_seed(seed)
        self.folder, self.rate = folder, rng.choice((2e-3, 4e-3, 8e-3))
        self.tokenizer = pocket.tokenizer()
        self.base = copy.deepcopy(base) if base is not None else pocket.load()[0]
        self.original = copy.deepcopy(self.base)
        rank = rng.choice((2, 4, 8, 16))
        given = dict(r=rank, lora_alpha=2 * rank, target_modules=rng.choice(TARGETS), task_type="CAUSAL_LM")
        self.pairs = pocket.dialect(smart_home.commands("train", n=256, seed=seed), seed=seed)
        self.rows = batches.encode(self.pairs, self.tokenizer)
        with warnings.catch_warnings(action="ignore"):
            self.model = get_peft_model(self.base, LoraConfig(**given | (config or {})))
        if before:
            before(self.model)
        settings = dict(max_steps=rng.choice(STEPS), per_device_train_batch_size=16, learning_rate=self.rate,
                        warmup_steps=3, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
                        use_cpu=True, remove_unused_columns=False, output_dir=str(folder / "run"), seed=seed,
                        dataloader_pin_memory=False)
        trainer = Trainer(self.model, TrainingArguments(**settings | arguments),
                          data_collator=batches.AnswerCollator(self.tokenizer),
                          train_dataset=rows or self.rows, eval_dataset=held_out)
        trainer.remove_callback(transformers.PrinterCallback)
        with warnings.catch_warnings(action="ignore"):
            trainer.train()
        self.log = trainer.state.log_history
        self.adapter = folder / "adapter"
        self.model.save_pretrained(self.adapter, **dict(save_embedding_layers=False) | (save or {}))

    def noted(self):
        adapters.note_base(self.adapter, self.model)
        return self

    def config(self, **changes) -> None:
        path = self.adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def freeze_some(model):
    for name, parameter in model.named_parameters():
        if ".layers.2." in name or ".layers.3." in name:
            parameter.requires_grad_(False)


def never_trained(folder, seed):
    rng = random.Random(seed)
    model = get_peft_model(pocket.load()[0], LoraConfig(r=rng.choice((4, 8)), target_modules="all-linear",
                                                        task_type="CAUSAL_LM"))
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return dict(adapter=folder / "adapter")


def partly_trained(folder, seed):
    return dict(adapter=Training(folder, seed, before=freeze_some).adapter)


def diverged_to_nan(folder, seed):
    run = Training(folder, seed, learning_rate=1e30, max_grad_norm=0, max_steps=10, optim="sgd",
                   logging_nan_inf_filter=False)
    return dict(adapter=run.adapter)


def exploded(folder, seed):
    return dict(adapter=Training(folder, seed, learning_rate=1.0, max_steps=40, logging_nan_inf_filter=False).adapter)


def alpha_edited(folder, seed):
    run = Training(folder, seed, max_steps=90)
    alpha = json.loads((run.adapter / "adapter_config.json").read_text())["lora_alpha"]
    run.config(lora_alpha=alpha * random.Random(seed).choice((0.125, 0.25, 4, 8)))
    return dict(adapter=run.adapter, base=run.original, data=run.rows)


def rank_stabilised_afterwards(folder, seed):
    run = Training(folder, seed, config=dict(r=16, lora_alpha=32, target_modules="all-linear"), max_steps=90)
    run.config(use_rslora=True)
    return dict(adapter=run.adapter, base=run.original, data=run.rows)


def rank_edited(folder, seed):
    run = Training(folder, seed, max_steps=10)
    run.config(r=3)
    return dict(adapter=run.adapter)


def other_base(folder, seed):
    run = Training(folder, seed).noted()
    other = copy.deepcopy(run.original)
    torch.manual_seed(seed)
    for parameter in other.parameters():
        parameter.data += 0.05 * parameter.std() * torch.randn_like(parameter)
    return dict(adapter=run.adapter, base=other, data=run.rows)


def rounded_base(folder, seed):
    run = Training(folder, seed).noted()
    other = copy.deepcopy(run.original)
    for parameter in other.parameters():
        if parameter.ndim == 2:
            step = parameter.abs().amax(1, keepdim=True) / 7
            parameter.data = (parameter / step).round() * step
    return dict(adapter=run.adapter, base=other)


def other_base_unnoted(folder, seed):
    run = Training(folder, seed, max_steps=90)
    other = copy.deepcopy(run.original)
    torch.manual_seed(seed)
    for parameter in other.parameters():
        if parameter.ndim == 2:
            parameter.data += parameter.std() * torch.randn_like(parameter)
    return dict(adapter=run.adapter, base=other, data=run.rows, log=run.log)


def other_shapes(folder, seed):
    run = Training(folder, seed)
    config = copy.deepcopy(run.original.config)
    config.hidden_size, config.intermediate_size = 96, 128
    return dict(adapter=run.adapter, base=transformers.LlamaForCausalLM(config), log=run.log)


def merged_twice(folder, seed):
    run = Training(folder, seed)
    merged = PeftModel.from_pretrained(copy.deepcopy(run.original), run.adapter).merge_and_unload()
    more = dict(data=run.rows) if seed % 2 else {}
    return dict(adapter=run.adapter, base=merged, **more)


def embeddings_copied(folder, seed):
    run = Training(folder, seed, save=dict(save_embedding_layers=True))
    return dict(adapter=run.adapter, base=run.original)


def tokens_lost(folder, seed):
    run = Training(folder, seed)
    run.tokenizer.add_tokens([f"<device {number}>" for number in range(1 + seed)])
    run.tokenizer.save_pretrained(run.adapter)
    return dict(adapter=run.adapter, base=run.original)


def other_tokenizer(folder, seed):
    run = Training(folder, seed)
    run.tokenizer.save_pretrained(run.adapter)
    saved = run.adapter / "tokenizer.json"
    found = json.loads(saved.read_text())
    words = list(found["model"]["vocab"])
    shuffled = [*words[:2], *random.Random(seed).sample(words[2:], len(words) - 2)]
    found["model"]["vocab"] = {word: number for number, word in enumerate(shuffled)}
    saved.write_text(json.dumps(found))
    return dict(adapter=run.adapter, tokenizer=pocket.tokenizer())


def prompt_counted(folder, seed):
    run = Training(folder, seed)
    return dict(adapter=run.adapter, log=run.log, data=[dict(input_ids=row["input_ids"], labels=row["input_ids"])
                                                        for row in run.rows], tokenizer=run.tokenizer)


def end_masked(folder, seed):
    rows = labelled(batches.encode(smart_home.commands("train", n=64, seed=seed), pocket.tokenizer()))
    for row in rows:
        row["labels"] = [-100 if token == 1 else label for token, label in zip(row["input_ids"], row["labels"])]
    return dict(data=rows, tokenizer=pocket.tokenizer())


def end_missing(folder, seed):
    rows = labelled(batches.encode(smart_home.commands("train", n=64, seed=seed), pocket.tokenizer()))
    return dict(data=[{key: values[:-1] for key, values in row.items()} for row in rows],
                tokenizer=pocket.tokenizer())


def labelled(rows):
    return [dict(input_ids=row["input_ids"],
                 labels=[-100] * (len(row["input_ids"]) - row["answer_length"])
                 + row["input_ids"][-row["answer_length"]:]) for row in rows]


def nothing_counted(folder, seed):
    rows = [row | dict(labels=[-100] * len(row["labels"])) for row in labelled(
        batches.encode(smart_home.commands("train", n=64, seed=seed), pocket.tokenizer()))]
    return dict(data=rows, log=[dict(step=i, loss=0.0, grad_norm=0.0) for i in range(20)])


def labels_shifted(folder, seed):
    rows = labelled(batches.encode(smart_home.commands("train", n=64, seed=seed), pocket.tokenizer()))
    return dict(data=[row | dict(labels=row["labels"][1:] + [-100]) for row in rows])


def prompts_differ(folder, seed):
    run = Training(folder, seed)
    asked = [c.text for c in smart_home.commands("test phrasings", n=10, seed=seed)]
    return dict(adapter=run.adapter, data=run.rows, prompts=asked, tokenizer=run.tokenizer)


def rate_too_high(folder, seed):
    run = Training(folder, seed, learning_rate=random.Random(seed).choice((0.3, 1.0, 3.0)), max_steps=60)
    return dict(adapter=run.adapter, log=run.log)


def rate_too_low(folder, seed):
    run = Training(folder, seed, learning_rate=random.Random(seed).choice((1e-7, 1e-6, 5e-6)))
    return dict(adapter=run.adapter, log=run.log)


def gradient_cut_off(folder, seed):
    run = Training(folder, seed, learning_rate=1e-3,
                   before=lambda model: [p.register_hook(torch.zeros_like) for p in model.parameters()
                                         if p.requires_grad])
    return dict(adapter=run.adapter, log=run.log)


def overfitting(folder, seed):
    pairs = pocket.dialect(smart_home.commands("train", n=64, seed=seed), seed=seed)
    rows = batches.encode(pairs, pocket.tokenizer())
    run = Training(folder, seed, rows=rows[:16], held_out=rows[16:], max_steps=200, eval_strategy="steps",
                   eval_steps=10, learning_rate=1e-2, lr_scheduler_type="constant")
    return dict(adapter=run.adapter, log=run.log)


def float16_gradients(folder, seed):
    path = folder / "train.log"
    path.write_text("{'loss': 2.1}\nTraceback (most recent call last):\n  File \"train.py\", line 3\n"
                    "ValueError: Attempting to unscale FP16 gradients.\n")
    return dict(log=path)


def pickled(folder, seed):
    run = Training(folder, seed, max_steps=5)
    torch.save(load_file(run.adapter / "adapter_model.safetensors"), run.adapter / "adapter_model.bin")
    (run.adapter / "adapter_model.safetensors").unlink()
    return dict(adapter=run.adapter)


def cut_short(folder, seed):
    run = Training(folder, seed, max_steps=5)
    path = run.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[: -random.Random(seed).randrange(1, 4000)])
    return dict(adapter=run.adapter)


def not_servable(folder, seed):
    more = random.Random(seed).choice((dict(use_dora=True), dict(modules_to_save=["lm_head"]), dict(bias="all"),
                                       dict(rank_pattern={"layers.0": 2})))
    return dict(adapter=Training(folder, seed, config=more).adapter)


def dead(folder, seed):
    run = Training(folder, seed, before=lambda model: [p.data.zero_() for n, p in model.named_parameters()
                                                       if "lora_" in n])
    return dict(adapter=run.adapter)


def targets_missing(folder, seed):
    misspelt = random.Random(seed).choice(("value", "c_attn", "q-proj"))
    run = Training(folder, seed, config=dict(target_modules=["q_proj", misspelt]))
    return dict(adapter=run.adapter, log=run.log)


FAULTS = {  # what was done: the cause that must come first
    never_trained: "never trained", partly_trained: "partly trained", diverged_to_nan: "not finite",
    exploded: "exploded", alpha_edited: "config edited", rank_stabilised_afterwards: "config edited",
    rank_edited: "config edited", other_base: "other base", rounded_base: "other base",
    other_base_unnoted: "other base", other_shapes: "other shapes", merged_twice: "merged twice",
    embeddings_copied: "embeddings copied", tokens_lost: "tokens lost", other_tokenizer: "other tokenizer",
    prompt_counted: "prompt counted", end_masked: "end not learned", end_missing: "end not learned",
    nothing_counted: "nothing counted", labels_shifted: "labels shifted", prompts_differ: "prompts differ",
    rate_too_high: "rate too high", rate_too_low: "rate too low", gradient_cut_off: "gradient cut off",
    overfitting: "overfitting", float16_gradients: "float16 gradients", pickled: "pickled weights",
    cut_short: "not an adapter", not_servable: "not servable", dead: "dead", targets_missing: "targets missing",
}


def family(rng: random.Random):
    """A small model of another family with random weights, and the modules to choose from."""
    sizes = dict(vocab_size=TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    kind = rng.choice(("Llama", "Qwen2", "Gemma", "Mistral", "GPT2", "GPTNeoX"))
    if kind == "GPT2":
        config = transformers.GPT2Config(vocab_size=TOKENS, n_positions=64, n_embd=32, n_layer=2, n_head=4,
                                         bos_token_id=1, eos_token_id=2)
        return transformers.GPT2LMHeadModel(config), ["c_attn", "c_proj", "c_fc"]
    if kind == "GPTNeoX":
        config = transformers.GPTNeoXConfig(vocab_size=TOKENS, hidden_size=32, intermediate_size=48, eos_token_id=2,
                                            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
        return transformers.GPTNeoXForCausalLM(config), ["query_key_value", "dense_h_to_4h"]
    more = dict(head_dim=8) if kind == "Gemma" else {}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes | more))
    return model, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def sound(folder: Path, seed: int) -> dict:
    rng = random.Random(f"sound/{seed}")
    if rng.random() < 0.5:
        rank = rng.choice((1, 2, 4, 8, 16, 32))
        config = dict(r=rank, lora_alpha=rank * rng.choice((1, 2, 2, 4)), target_modules=rng.choice(TARGETS),
                      use_rslora=rng.random() < 0.2, lora_dropout=rng.choice((0, 0, 0.05)))
        run = Training(folder, seed, config=config, max_steps=rng.choice((30, 60, 120)),
                       learning_rate=rng.choice((1e-3, 2e-3, 4e-3)),
                       lr_scheduler_type=rng.choice(("linear", "cosine", "constant")))
        if rng.random() < 0.5:
            run.noted()
        tokenizer = run.tokenizer
        data, asked = run.rows, [p.prompt for p in run.pairs[:8]]
        base, log, adapter = run.original, run.log, run.adapter
    else:
        torch.manual_seed(seed)
        base, names = family(rng)
        original = copy.deepcopy(base)
        rank = rng.choice((1, 4, 8, 16))
        config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM",
                            target_modules=rng.sample(names, rng.randint(1, len(names))))
        with warnings.catch_warnings(action="ignore"):
            model = get_peft_model(base, config)
        log, data = taught_to_count(model, rng)
        adapter = folder / "adapter"
        with warnings.catch_warnings(action="ignore"):
            model.save_pretrained(adapter, save_embedding_layers=False)
        base, tokenizer, asked = original, None, None
    parts = dict(adapter=adapter, base=base, log=log, data=data, prompts=asked)
    left = {key: value for key, value in parts.items() if key == "adapter" or rng.random() < 0.7}
    return left | (dict(tokenizer=tokenizer) if tokenizer else {})


def taught_to_count(model, rng: random.Random) -> tuple[list[dict], list[dict]]:
    """Rows that count upwards, the second half to be said; trained by hand."""
    rows = []
    for _ in range(64):
        start, length = rng.randrange(3, TOKENS - 20), rng.randrange(6, 16)
        ids = [*range(start, start + length), 2]
        rows.append(dict(input_ids=ids, labels=[-100] * (length // 2) + ids[length // 2:]))
    rate, log = rng.choice((2e-3, 5e-3)), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(1, rng.choice((40, 80, 160)) + 1):
        losses = [model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
                  for row in rng.sample(rows, 4)]
        loss = sum(losses) / len(losses)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        log.append(dict(step=step, loss=loss.item(), grad_norm=norm, learning_rate=rate))
    return log, rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sound", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    started, result, wrong = time.perf_counter(), {}, []
    for make, cause in FAULTS.items():
        if options.only and make.__name__ not in options.only:
            continue
        firsts = collections.Counter()
        for seed in range(options.seeds):
            found = examined(make, seed).findings
            firsts[found[0].cause if found else "nothing"] += 1
        result[make.__name__] = {"cause": cause, "first": firsts[cause], "of": options.seeds,
                                 "otherwise": {k: n for k, n in firsts.items() if k != cause}}
        print(f"{make.__name__:28} {firsts[cause]:3} of {options.seeds}", result[make.__name__]["otherwise"] or "",
              flush=True)
    for seed in range(options.sound):
        for finding in examined(sound, seed).findings:
            wrong.append({"seed": seed, "cause": finding.cause, "evidence": finding.evidence})
            print("false alarm:", wrong[-1], flush=True)
    alarmed = len({case["seed"] for case in wrong})
    print(f"{alarmed} of {options.sound} sound cases have a finding; {time.perf_counter() - started:.0f} s")
    if not options.only:
        recipe.write_results("doctor_cases", {"faults": result, "sound": options.sound, "alarmed": alarmed,
                                              "false alarms": wrong})


def examined(make, seed: int) -> doctor.Examination:
    with tempfile.TemporaryDirectory() as folder:
        return doctor.examine(**make(Path(folder), seed))


if __name__ == "__main__":
    main()
