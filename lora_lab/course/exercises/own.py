"""Checks of the exercises of lesson 8, and its drills: five sick adapters of the pocket model, to be diagnosed."""

import copy
import functools
import json
import random
import reprlib
import warnings
from pathlib import Path

from ...errors import LabError, reason
from ..question_kinds import Verdict
from . import say

SICK = ("never trained", "rate too high", "prompt counted", "config edited", "merged twice")
PATIENTS = "abcde"
_STEPS, _BATCH, _RATE, _HIGH = 60, 16, 1.5e-2, 0.3


def turn_labels(function) -> Verdict:
    """Check: does `function(turns)` give the labels of a chat, whose answers count and nothing else does?"""
    rng = random.Random()
    for roles in (("system", "user", "assistant", "user", "assistant"), ("user", "assistant"),
                  ("user", "assistant", "user", "assistant", "user")):
        turns = [(role, [rng.randrange(2, 49152) for _ in range(rng.randint(2, 5))]) for role in roles]
        ids = [token for _, own in turns for token in own]
        right = [token if role == "assistant" else -100 for role, own in turns for token in own]
        found = function([(role, list(own)) for role, own in turns])
        if not isinstance(found, (list, tuple)) or len(found) != len(ids):
            return say(False, f"Expected a list of {len(ids)} labels, one a token; found {reprlib.repr(found)}.")
        found = list(found)
        if found[:-1] == right[1:] and found != right:
            return say(False, "Your labels are shifted by one. They line up with the inputs: the model shifts them.")
        if found == ids:
            return say(False, "Every token counts here. Which turns does the model have to write?")
        place = 0
        for number, (role, own) in enumerate(turns, 1):
            here, wanted = found[place : place + len(own)], right[place : place + len(own)]
            place += len(own)
            if here == wanted:
                continue
            if role == "assistant" and here[:-1] == wanted[:-1]:
                return say(False, f"Turn {number}, the assistant's: its last token does not count. It ends the turn, "
                                  "and the model has to write it.")
            counts = "counts" if role == "assistant" else "does not count"
            return say(False, f"In a chat of {', '.join(roles)}: turn {number}, the {role}'s, {counts}. Its labels "
                              f"should be {wanted}, yours are {reprlib.repr(here)}.")
    return say(True, "The loss counts every answer of a chat with its end, and nothing else.")


def causes(found: dict, folder) -> Verdict:
    """Check: does `found` name the cause of each patient in `folder`?"""
    from ...doctor import CAUSES

    right = dict(zip(PATIENTS, _order(_seed(folder))))
    if not isinstance(found, dict) or set(found) != set(right):
        return say(False, f"Expected a dict with the keys {', '.join(right)}.")
    named = {name: cause for name, cause in found.items() if cause != "?"}
    if unknown := sorted({str(cause) for cause in named.values()} - set(CAUSES)):
        return say(False, f"{unknown[0]!r} is none of the causes that the doctor knows, such as {', '.join(SICK)}.")
    count = sum(named.get(name) == cause for name, cause in right.items())
    return say(count == len(right), f"{count} of {len(right)} are right.")


def make(folder, seed: int = 0) -> None:
    """Write five patients, `a` to `e`, to `folder`: each a `base`, an `adapter`, a `log.json` and its `rows.json`.

    Each has been trained on a dialect of the course's commands, and something went wrong, one of `SICK`, in an order
    that `seed` decides; three of them have the same training, which was sound. Files of an earlier call are replaced.
    Raises LabError.
    """
    trained = functools.cache(_trained)
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, cause in zip(PATIENTS, _order(seed)):
            _write(folder / name, cause, seed, trained)
        (folder / "seed.json").write_text(json.dumps(seed), encoding="utf-8")
    except OSError as error:
        raise LabError(f"Could not write the drills to {folder}: {reason(error)}. Make room, and make them again: "
                       "what is there is replaced.") from error


def patient(folder, name: str) -> dict:
    """Return all that is at hand of a patient, as `doctor.examine` takes it: adapter, base, log, data, tokenizer."""
    from transformers import AutoModelForCausalLM

    from ... import pocket
    from ...display import no_progress_bars

    place = Path(folder) / name
    with no_progress_bars():
        base = AutoModelForCausalLM.from_pretrained(place / "base").eval()
    log, rows = (json.loads((place / f"{part}.json").read_text(encoding="utf-8")) for part in ("log", "rows"))
    return dict(adapter=str(place / "adapter"), base=base, log=log, data=rows, tokenizer=pocket.tokenizer())


def _order(seed: int) -> list[str]:
    return random.Random(f"drills/{seed}").sample(SICK, len(SICK))


def _seed(folder) -> int:
    try:
        return json.loads(Path(folder, "seed.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise LabError(f"There are no drills in {folder}. Run the cell that makes them.") from None


def _write(place: Path, cause: str, seed: int, trained) -> None:
    from ... import pocket
    from ...display import no_progress_bars

    model, log = trained(_HIGH if cause == "rate too high" else _RATE, cause == "prompt counted", seed)
    saved = _fresh(seed) if cause == "never trained" else model
    with no_progress_bars():
        saved.save_pretrained(place / "adapter", save_embedding_layers=False)
        base = copy.deepcopy(model).merge_and_unload() if cause == "merged twice" else pocket.load()[0]
        base.save_pretrained(place / "base")
    if cause == "config edited":
        path = place / "adapter" / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"lora_alpha": 8 * config["lora_alpha"]}, indent=2), encoding="utf-8")
    (place / "log.json").write_text(json.dumps(log), encoding="utf-8")
    (place / "rows.json").write_text(json.dumps(_rows(seed, cause == "prompt counted")), encoding="utf-8")


def _rows(seed: int, prompt_counts: bool) -> list[dict]:
    from ... import batches, pocket, smart_home

    pairs = pocket.dialect(smart_home.commands("train", n=256, seed=seed), seed=seed)
    rows = []
    for row in batches.encode(pairs, pocket.tokenizer()):
        ids, answer = row["input_ids"], row["answer_length"]
        masked = 0 if prompt_counts else len(ids) - answer
        rows.append({"input_ids": ids, "labels": [batches.IGNORED] * masked + ids[masked:]})
    return rows


def _fresh(seed: int):
    """The pocket model with an adapter that has not been trained."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from ... import pocket

    set_seed(seed)
    with warnings.catch_warnings(action="ignore"):
        return get_peft_model(pocket.load()[0], LoraConfig(r=8, lora_alpha=16, target_modules="all-linear",
                                                           task_type="CAUSAL_LM"))


def _trained(rate: float, prompt_counts: bool, seed: int):
    """The model with its adapter after a training, and the log of it."""
    import torch

    model, rows = _fresh(seed), _rows(seed, prompt_counts)
    weights, rng, log = [p for p in model.parameters() if p.requires_grad], random.Random(seed), []
    optimizer = torch.optim.AdamW(weights, lr=rate)
    model.train()
    for step in range(1, _STEPS + 1):
        optimizer.param_groups[0]["lr"] = rate * min(step / 10, (_STEPS + 1 - step) / _STEPS)
        loss = model(**_padded(rng.sample(rows, _BATCH))).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        log.append({"step": step, "loss": loss.item(), "grad_norm": norm,
                    "learning_rate": optimizer.param_groups[0]["lr"]})
    return model.eval(), log


def _padded(rows: list[dict]) -> dict:
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    pads = {"input_ids": 0, "labels": -100}
    batch = {key: torch.tensor([row[key] + [pad] * (width - len(row[key])) for row in rows])
             for key, pad in pads.items()}
    batch["attention_mask"] = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"]))
                                            for row in rows])
    return batch
