"""Write what the page's planner adds up: `python tools/make_planner.py [--check N]`, some minutes.

`memory.plan` rehearses a step on tensors without contents. Here the model's sizes are different primes, so that each of
those tensors says, by its size's factors, what it is the product of: 2 bytes x B x S x d x g. What is alive at a moment
is then a sum of products, and the fullest moment of any setting the largest of a few sums. They go into
lora_lab/course/live/planner.json. With --check N, as many random settings (500 are committed) are planned by
`memory.plan` too, into benchmarks/results/planner_settings.json, with which a test compares the page.
"""

import argparse
import collections
import itertools
import json
import random
import tomllib
import weakref
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
from lora_lab import memory
from lora_lab.course import explorers
from lora_lab.memory import rehearsal
from peft import LoraConfig
from transformers import PretrainedConfig

ROOT = Path(__file__).parents[1]
FORMS = ROOT / "lora_lab/course/live/planner.json"
MODELS = ROOT / "lora_lab/course/live/models.json"
CHECKS = ROOT / "benchmarks/results/planner_settings.json"
TARGETS = {"q_proj v_proj": ["q_proj", "v_proj"], "all-linear": "all-linear"}
PRECISIONS = ("float32", "bfloat16", "int8", "nf4")
CHECKPOINTING = {"off": False, "on": True, "reentrant": "reentrant"}
# B rows of S tokens, rank r, g key and value heads, p query heads for each, d the width of a head, m that of the MLP,
# V the vocabulary, s = S + 1.
PRIMES = {"B": 7, "S": 61, "r": 13, "g": 3, "p": 5, "d": 34, "m": 19, "V": 23}
MARKED = {"llama-2-7b": "Llama-2-7B", "llama-3_1-8b": "Llama-3.1-8B", "llama-3_2-3b": "Llama-3.2-3B"}
LAYERS = 4  # the first two are rehearsed, and one more


def sizes(**given: int) -> dict[str, int]:
    """Sizes by letter, those that are not given from PRIMES."""
    return {**PRIMES, **given, "s": given.get("S", PRIMES["S"]) + 1}


def plan(model: PretrainedConfig, setting: dict) -> memory.Plan:
    lora = LoraConfig(r=setting["r"], lora_alpha=16, target_modules=TARGETS[setting["targets"]], task_type="CAUSAL_LM")
    return memory.plan(model, lora, setting["precision"], setting["B"], setting["S"],
                       checkpointing=CHECKPOINTING[setting["checkpointing"]])


class Products(rehearsal.Ledger):
    """A ledger in products: `moments` are sums above what rests, each with whether the output head was at work."""

    known: dict[str, int] = PRIMES

    def __init__(self):
        super().__init__()
        self.sum, self.rests, self.held, self.moments, self.alive = collections.Counter(), {}, {}, [], {}
        Products.made.append(self)

    def add_model(self, model):
        super().add_model(model)
        self.rests = collections.Counter(self.sum)
        self.moments = []

    def watch_head(self, head):
        def enter(*_):
            self.held = above(self.sum, self.rests)
            self.moments.append((self.held, True))

        head.register_forward_pre_hook(enter)
        super().watch_head(head)

    def add(self, tensor):
        storage = tensor.untyped_storage()
        key = id(storage)
        new = key not in self._seen
        super().add(tensor)
        if new:
            product = self.product(storage.nbytes(), tensor.dtype.itemsize)
            self.sum.update(product)
            self.alive[key] = weakref.ref(storage, lambda _: self.sum.subtract(product))
            self.moments.append((above(self.sum, self.rests), self._in_head))

    def product(self, size: int, item: int) -> dict[str, Fraction]:
        """The bytes of a tensor as a factor and the letters whose product it is."""
        letters, left = "", size // item
        for letter, prime in self.known.items():
            odd = prime // 2 if letter in "ds" else prime  # d and S + 1 are twice a prime
            while odd > 1 and left % odd == 0 and left:
                letters, left = letters + letter, left // odd
        factor = Fraction(size)
        for letter in letters:
            factor /= self.known[letter]
        return {letters: factor}


def above(total: dict, rests: dict) -> dict:
    """A sum less what rests."""
    found = {key: total.get(key, 0) - rests.get(key, 0) for key in {*total, *rests}}
    return {key: value for key, value in sorted(found.items()) if value}


def written(form: dict) -> str:
    """A sum as text: 8BSgd+12rm."""
    return "".join(f"{'+' if factor > 0 else ''}{int(factor) if factor == int(factor) else float(factor)}{letters}"
                   for letters, factor in form.items()).removeprefix("+")


def samples(one_row: bool, alike: bool, many: int = 4000) -> dict[str, np.ndarray]:
    """Settings far apart, on which a moment that is never the fullest may be left out."""
    rng = np.random.default_rng(0)
    ranges = {"B": (2, 64), "S": (8, 32768), "r": (1, 512), "g": (1, 32), "p": (2, 8), "d": (32, 256),
              "m": (256, 32768), "V": (1000, 256000)}
    found = {letter: np.rint(low * (high / low) ** rng.random(many)) for letter, (low, high) in ranges.items()}
    found |= ({"B": np.ones(many)} if one_row else {}) | ({"p": np.ones(many)} if alike else {})
    return {**found, "s": found["S"] + 1}


def fullest(forms: list[dict], some: dict[str, np.ndarray]) -> list[dict]:
    """Those of `forms` that are the largest somewhere."""
    unlike = list({written(form): form for form in forms}.values())
    totals = np.array([sum(float(factor) * np.prod([some[letter] for letter in letters] or [np.ones(1)], axis=0)
                           * np.ones(len(some["S"])) for letters, factor in form.items()) for form in unlike])
    return [unlike[place] for place in sorted(set(totals.argmax(axis=0).tolist()))]


def derive(targets: str, precision: str, checkpointing: str, one_row: bool, alike: bool) -> list[dict]:
    """What two layers hold, and what three: `held` when the head begins, `head` and `peak` as the largest of sums."""
    known = sizes(B=1 if one_row else PRIMES["B"], p=1 if alike else PRIMES["p"])
    Products.known, Products.made = known, []
    with mock.patch.object(rehearsal, "Ledger", Products):
        plan(explorers.llama(**known, layers=LAYERS),
             dict(known, targets=targets, precision=precision, checkpointing=checkpointing))
    some = samples(one_row, alike)
    return [{"held": run.held, "head": fullest([form for form, in_head in run.moments if in_head], some),
             "peak": fullest([form for form, _ in run.moments], some)} for run in Products.made]


def name(targets: str, precision: str, checkpointing: str, one_row: bool, alike: bool) -> str:
    kind = ["one row" if one_row else "rows", "alike" if alike else "grouped"]  # heads of queries, and of keys
    return "|".join([targets, precision, checkpointing, *kind])


def write_forms() -> None:
    """Each sum once; of a run, what it holds when the head begins, and the fullest moments above that."""
    sums: dict[str, int] = {}
    found = {}
    for key in itertools.product(TARGETS, PRECISIONS, CHECKPOINTING, (True, False), (True, False)):
        runs = derive(*key)
        found[name(*key)] = [
            [sums.setdefault(written(run["held"]), len(sums)),
             *([sums.setdefault(written(above(form, run["held"])), len(sums)) for form in run[part]]
               for part in ("head", "peak"))] for run in runs]
        print(*key, flush=True)
    FORMS.write_text(json.dumps({"sums": list(sums), "runs": found, "marks": marks()}, separators=(",", ":")) + "\n")


def marks() -> list[dict]:
    """The peaks in benchmarks/ of models that the page has: published ones, and those recorded on a CPU and a GPU."""
    folder = ROOT / "benchmarks"
    table = tomllib.loads((folder / "published_peaks.toml").read_text())
    rows = json.loads((folder / "results/published_peaks.json").read_text())["rows"]
    planned = {row["id"]: row["planned_gb"] for row in rows}
    found = []
    for peak in table["peaks"]:
        model, its = MARKED.get(peak["model"]), peak["plan"]
        if model:
            rows, length, precision = its.get("batch_size", 1), its["seq_len"], its["precision"]
            found.append(dict(model=model, tokens=rows * length, gb=peak["gb"], precision=precision,
                              what=table["sources"][peak["source"]]["what"].split(",")[0],
                              said=f"{precision}, rank {its['r']}, {rows} x {length:,} tokens",
                              planned=planned[peak["id"]]))
    for run in json.loads((folder / "results/planner_cpu.json").read_text())["runs"]:
        parts, rows, length = run["planned"], run["batch_size"], run["seq_len"]
        if " " in run["base"]:
            continue  # the same from a folder
        rests = parts["total_bytes"] - parts["activation_bytes"] - parts["logits_bytes"]
        targets = run["targets"] if isinstance(run["targets"], str) else " ".join(run["targets"])
        checkpointing = {False: "off", True: "on"}.get(run["checkpointing"], run["checkpointing"])
        found.append(dict(model="SmolLM2-135M", tokens=rows * length, gb=round((rests + run["step_bytes"]) / 1e9, 3),
                          precision=run["base"], what="A real step on a CPU, its tensors counted",
                          said=f"{run['base']}, {targets}, {rows} x {length:,} tokens, checkpointing {checkpointing}",
                          planned=round(parts["total_bytes"] / 1e9, 3)))
    recorded = folder / "results/gpu_8bit.json"
    runs = json.loads(recorded.read_text()) if recorded.exists() else {"configurations": {}}
    for run in runs["configurations"].values():
        if run["status"] == "ok" and "Llama-2-7B" in run["model"] and not run["prepared"]:  # the page prepares none
            checkpointing = {False: "off", True: "on"}.get(run["checkpointing"], run["checkpointing"])
            found.append(dict(model="Llama-2-7B", tokens=run["batch"] * run["seq"], precision=run["precision"],
                              gb=round(run["steps"]["peak_allocated_bytes"] / 1e9, 2),
                              what=f"Recorded on an {runs['hardware']['gpu']}, with random weights",
                              said=f"{run['precision']}, rank 8, {run['batch']} x {run['seq']:,} tokens, checkpointing "
                                   f"{checkpointing}", planned=round(run["planned"]["total_bytes"] / 1e9, 2)))
    return found


def draw(rng: random.Random, models: dict[str, dict]) -> dict:
    """A random setting, as often at the ends as between."""
    model = rng.choice(sorted(models))
    return dict(model=model, targets=rng.choice(list(TARGETS)), precision=rng.choice(PRECISIONS),
                checkpointing=rng.choice(list(CHECKPOINTING)), r=rng.choice((1, 2, 8, 256, rng.randint(1, 256))),
                B=rng.choice((1, rng.randint(2, 32))), S=rng.randint(8, min(8192, models[model]["positions"])))


def write_checks(many: int) -> None:
    """Plan random settings of the page's models."""
    rng, rows = random.Random(2026), []
    models = json.loads(MODELS.read_text())["models"]
    for _ in range(many):
        setting = draw(rng, models)
        planned = plan(explorers.llama(**models[setting["model"]]), setting)
        rows.append(setting | {"parts": list(planned.parts().values())})
        print(len(rows), flush=True)
        if len(rows) % 20 == 0 or len(rows) == many:
            CHECKS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--check", type=int)
    many = options.parse_args().check
    write_forms()
    if many:
        write_checks(many)
