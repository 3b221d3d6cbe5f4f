"""Odd arguments for every public call: each ends in its result, in LabError, or in the learner's own error.

    python benchmarks/fuzz_public.py [--cases 3000] [--seed 0] [--only shipping]

A call that works has one or two of its arguments replaced by something odd of its kind or of another. Whatever it
raises but LabError is a finding, and so is a call of more than 20 seconds. The model is the pocket model; nothing is
downloaded.
"""

import argparse
import collections
import copy
import json
import linecache
import math
import os
import random
import signal
import tempfile
import time
import warnings
from pathlib import Path

import torch

SECONDS = 20
ODD = {
    "text": ["", " ", "x", "a\0b", "(", "💥", "x" * 5000, "\n", "{text}", "<b>", None, 3, b"x", ["x"], {}],
    "name": ["", "x", "a\0b", "s3://bucket/x", "~nobody-of-that-name/x", "../..", "x/" * 500, "x" * 5000, "💥", "pipe",
             "garbage", "garbage/config.json", "/dev/null", "/dev/zero", Path("garbage"), Path(""), None, 3, b"x",
             ["x"]],
    "number": [0, -1, 1, 1.5, 10**30, 10**400, math.nan, math.inf, -math.inf, True, None, "8", [], 1e300, 2**31],
    "list": [[], [None], [1], ["x"], [[]], [("a",)], [("a", 3)], "x", None, 3, {}, {"a": 1}, [{}], (),
             [{"input_ids": 3}]],
    "dict": [{}, [], None, 3, "x", {"": []}, {None: 1}, {"a": None}, {"a": math.nan}, {"a": []}],
    "model": [None, 3, "x", torch.nn.Linear(2, 2), torch.nn.Module(), object()],
    "tokenizer": [None, 3, "x", object(), torch.nn.Module()],
    "config": [None, 3, "x", {}, object()],
    "call": [None, 3, "x", len],
}


def surface() -> dict:
    """Each public call by its name: the function, and its arguments as (kind, what works)."""
    from lora_lab import (
        adapters,
        batches,
        cache,
        compare,
        data,
        distributed,
        doctor,
        export_progress,
        load_base,
        memory,
        merging,
        models,
        pocket,
        quiz,
        reset_progress,
        scoring,
        shipping,
        smart_home,
        sweep,
        targets,
    )
    from lora_lab.course import classroom, handout, question_files
    from lora_lab.finetune import recipes, training
    from peft import LoraConfig, get_peft_model

    small, words = pocket.load()
    adapted = get_peft_model(copy.deepcopy(small), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    small.save_pretrained("base")
    words.save_pretrained("base")
    adapted.save_pretrained("adapter", save_embedding_layers=False)
    commands = smart_home.commands("train", n=6)
    pairs = [tuple(command) for command in commands]
    encoded = batches.encode(pairs, words)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 8)
    recipe = {"model": "pocket", "output": "out", "data": {"path": "rows.jsonl"},
              "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
              "training": {"max_steps": 1, "batch_size": 2, "learning_rate": 1e-3}}
    recipes.write(recipe, "recipe.yaml")
    lora = ("config", LoraConfig(r=2, target_modules=["q_proj"]))
    m, t, n, lists = ("model", adapted), ("tokenizer", words), ("number", 4), ("list", pairs)
    asked = [question for lesson in question_files.lessons() for question in lesson.questions]
    choice = next(q.id for q in asked if type(q).__name__ == "Choice")
    guess = next(q.id for q in asked if type(q).__name__ == "Predict")
    ask, own = ("list", [commands[0].prompt]), ("list", data.read("rows.jsonl").rows)
    return {
        "load_base": (load_base, {"name": ("name", "base"), "precision": ("text", "float32")}),
        "models.read_config": (models.read_config, {"name": ("name", "base")}),
        "quiz": (quiz, {"question_id": ("text", choice)}),
        "compare": (compare, {"question_id": ("text", guess), "measured": ("number", 3.0)}),
        "export_progress": (export_progress, {"path": ("name", "mine.json")}),
        "reset_progress": (reset_progress, {"name": ("text", "first")}),
        "classroom.collect": (classroom.collect, {"files": ("list", ["mine.json"])}),
        "handout.put_back": (handout.put_back, {"name": ("text", "00_first_adapter"),
                                                "root": ("name", Path("course"))}),
        "handout.sync": (handout.sync, {"root": ("name", Path("course"))}),
        "adapters.positive": (adapters.positive, {"lr": n}),
        "adapters.adapter_folder": (adapters.adapter_folder, {"folder": ("name", "adapter"), "r": ("number", 2)}),
        "adapters.turned": (lambda **k: adapters.turned(**k).__enter__(), {"model": m, "factor": ("number", 1)}),
        "batches.encode": (batches.encode, {"rows": lists, "tokenizer": t}),
        "batches.similar_lengths": (batches.similar_lengths, {"rows": ("list", encoded), "batch_size": n, "pool": n}),
        "batches.AnswerCollator": (lambda tokenizer, rows: batches.AnswerCollator(tokenizer)(rows),
                                   {"tokenizer": t, "rows": ("list", encoded)}),
        "cache.cache_folder": (cache.cache_folder, {}),
        "data.example": (data.example, {"name": ("text", "style")}),
        "data.read": (data.read, {"path": ("name", "rows.jsonl"), "prompt": ("text", "prompt"),
                                  "answer": ("text", "answer")}),
        "data.check": (data.check, {"data": own, "tokenizer": t, "test": own, "max_length": n}),
        "data.split": (data.split, {"data": own, "test": ("number", 0.5), "seed": n}),
        "data.rows_needed": (data.rows_needed, {"before": ("number", 0.8), "after": ("number", 0.9)}),
        "doctor.examine": (doctor.examine, {"adapter": ("name", "adapter"), "base": ("model", small),
                                            "log": ("list", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]),
                                            "data": lists, "prompts": ask, "tokenizer": t}),
        "smart_home.commands": (smart_home.commands, {"split": ("text", "train"), "n": n, "seed": n}),
        "smart_home.prompt": (smart_home.prompt, {"text": ("text", "open it")}),
        "pocket.dialect": (pocket.dialect, {"commands": ("list", commands), "seed": n}),
        "pocket.stream": (lambda **k: next(pocket.stream(**k)), {"commands": ("list", commands), "batch_size": n}),
        "scoring.generate": (scoring.generate, {"model": m, "tokenizer": t, "prompts": ask, "max_new_tokens": n,
                                                "batch_size": n}),
        "scoring.score": (scoring.score, {"rows": lists, "answers": ("list", [answer for _, answer in pairs])}),
        "scoring.quick_score": (scoring.quick_score, {"model": m, "tokenizer": t, "rows": lists}),
        "scoring.perplexity": (scoring.perplexity, {"model": m, "tokenizer": t, "text": ("text", pairs[0][0])}),
        "shipping.ship": (shipping.ship, {"model": m, "tokenizer": t, "folder": ("name", "shipped"),
                                          "card": ("text", "a card"), "base": ("text", "owner/name")}),
        "recipes.read": (recipes.read, {"path": ("name", "recipe.yaml"), "processes": ("number", 1)}),
        "recipes.write": (recipes.write, {"recipe": ("dict", recipe), "path": ("name", "again.yaml")}),
        "finetune.train": (training.train, {"recipe": ("config", None)}),
        "targets.inspect": (targets.inspect, {"model": ("model", small), "config": lora}),
        "targets.check": (targets.check, {"model": ("model", small), "config": lora}),
        "memory.plan": (memory.plan, {"model_or_config_or_hub_id": ("model", small), "lora": lora, "batch_size": n,
                                      "seq_len": ("number", 16), "precision": ("text", "float32"),
                                      "optimizer": ("text", "adamw"), "logits_to_keep": n}),
        "distributed.plan": (distributed.plan, {"model": ("model", small), "lora": lora, "gpus": ("number", 2),
                                                "batch_size": n, "seq_len": ("number", 16), "mode": ("text", "ddp"),
                                                "bytes_per_second": n}),
        "merging.audit": (merging.audit, {"model": m, "prompts": ask, "tokenizer": t, "deployed": ("model", adapted),
                                          "max_new_tokens": ("number", 2)}),
        "sweep": (sweep.sweep, {"run": ("call", lambda lr, seed=0: {"loss": lr}), "grid": ("dict", {"lr": [1.0]}),
                                "seeds": ("list", [0]), "store": ("name", "store"), "progress": ("text", None)}),
    }


FINE = ("result", "LabError", "the learner's own error")


def attempt(function, arguments: dict) -> str:
    """What became of one call: one of FINE, or what else was raised, and where."""
    from lora_lab import LabError

    try:
        function(**arguments)
        return "result"
    except LabError as error:
        return "LabError" if str(error).strip() else "an empty LabError"
    except TimeoutError:
        return "endless"
    except Exception as error:
        frame = error.__traceback__
        while frame.tb_next and "lora_lab" in frame.tb_next.tb_frame.f_code.co_filename:
            frame = frame.tb_next
        if "run(" in linecache.getline(frame.tb_frame.f_code.co_filename, frame.tb_lineno):
            return "the learner's own error"  # of the function that a sweep was given
        place = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
        return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:90]}"


def fuzz(cases: int, seed: int, only: str = "", without: tuple = ()) -> list[dict]:
    """Make `cases` odd calls in the current folder, in turn over the surface; returns what became of each."""
    rng, found = random.Random(seed), []
    os.mkdir("garbage")
    for name in ("config.json", "adapter_config.json", "recipe.yaml"):
        Path("garbage", name).write_bytes(b"[" * 5000)
    os.mkfifo("pipe")
    Path("course/notebooks").mkdir(parents=True)
    lesson = {"cells": [{"cell_type": "markdown", "source": "# 0"}]}
    Path("course/notebooks/00_first_adapter.ipynb").write_text(json.dumps(lesson))
    calls = {name: call for name, call in surface().items() if only in name and name.partition(".")[0] not in without}

    def late(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    for number in range(cases):
        name, (function, arguments) = list(calls.items())[number % len(calls)]
        odd = rng.sample(list(arguments), min(len(arguments), rng.choice((1, 1, 2))))
        given = {key: rng.choice(ODD[rng.choice((kind, kind, kind, *ODD))]) if key in odd else works
                 for key, (kind, works) in arguments.items()}
        started = time.monotonic()
        signal.alarm(SECONDS)
        became = attempt(function, given)
        signal.alarm(0)
        found.append({"call": name, "odd": {key: repr(given[key])[:60] for key in odd}, "became": became,
                      "seconds": round(time.monotonic() - started, 2)})
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LORA_LAB_PROGRESS": f"{folder}/progress.json", "LORA_LAB_CACHE": f"{folder}/cache",
                       "HF_HUB_OFFLINE": "1"}
        here = os.getcwd()
        os.makedirs(f"{folder}/deep/work")
        os.chdir(f"{folder}/deep/work")
        warnings.simplefilter("ignore")
        found = fuzz(given.cases, given.seed, given.only)
        os.chdir(here)
    odd = [case for case in found if case["became"] not in FINE]
    counts = collections.Counter((case["call"], case["became"]) for case in odd)
    for (name, became), count in counts.most_common():
        print(f"{count:4} {name:24} {became}")
    summary = {"cases": len(found), "seed": given.seed, "results": sum(c["became"] == "result" for c in found),
               "LabErrors": sum(c["became"] == "LabError" for c in found),
               "own_errors": sum(c["became"] == FINE[2] for c in found), "others": len(odd),
               "slowest_seconds": max(c["seconds"] for c in found), "findings": odd[:12]}
    print({key: value for key, value in summary.items() if key != "findings"})
    if not given.only:
        Path(__file__).parent.joinpath("results/fuzz_public.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
