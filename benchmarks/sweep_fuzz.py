"""The store of `lora_lab.sweep`: does it ever return another function's results, or believe what is no row?

    python benchmarks/sweep_fuzz.py [cases] [seed]

Functions are written as a learner writes them, in every form below, with a value somewhere in them. Each is swept with
one store for all: what comes back must be the function's own figure, and the same function, defined again, must train
nothing. Then stored rows are damaged, and must be trained again.
"""

import importlib
import json
import random
import sys
import tempfile
import time
import types
from collections import Counter
from pathlib import Path

from lora_lab.errors import LabError
from lora_lab.sweep import sweep

# A notebook's first cell: what a run returns is a number that no two values share, and every run is counted.
START = """
import dataclasses, functools, hashlib, math
import numpy as np, torch
calls = []
def figure(value):
    calls.append(1)
    return {"loss": float(int(hashlib.sha256(repr(value).encode()).hexdigest()[:12], 16))}
"""
# A function of each form, under its name.
FORMS = dict(form.strip().split("\n", 1) for form in r"""
## partial, by name
def f(value, seed=0): return figure(value)
run = functools.partial(f, value=VALUE)
## partial, by place
def f(value, seed=0): return figure(value)
run = functools.partial(f, VALUE)
## partial of a partial
def f(a, value, seed=0): return figure((a, value))
run = functools.partial(functools.partial(f, 1), VALUE)
## closure
def make(value):
    def run(seed=0): return figure(value)
    return run
run = make(VALUE)
## closure of a closure
def make(value):
    def inner(): return value
    def run(seed=0): return figure(inner())
    return run
run = make(VALUE)
## default
def run(seed=0, value=VALUE): return figure(value)
## default by name
def run(*, seed=0, value=VALUE): return figure(value)
## bound method
class Box:
    def __init__(self, value): self.value = value
    def go(self, seed=0): return figure(self.value)
run = Box(VALUE).go
## callable object
class Box:
    def __init__(self, value): self.value = value
    def __call__(self, seed=0): return figure(self.value)
run = Box(VALUE)
## object with slots
class Box:
    __slots__ = ('value',)
    def __call__(self, seed=0): return figure(self.value)
run = Box()
run.value = VALUE
## data class
@dataclasses.dataclass
class Box:
    value: object
    def __call__(self, seed=0): return figure(self.value)
run = Box(VALUE)
## class attribute
class Box:
    value = VALUE
    def __call__(self, seed=0): return figure(self.value)
run = Box()
## class method
class Box:
    value = VALUE
    @classmethod
    def go(cls, seed=0): return figure(cls.value)
run = Box.go
## inherited
class A:
    value = VALUE
class B(A):
    def __call__(self, seed=0): return figure(self.value)
run = B()
## property
class Box:
    @property
    def value(self): return VALUE
    def __call__(self, seed=0): return figure(self.value)
run = Box()
## two lambdas on a line
run, other = lambda seed=0: figure(VALUE), lambda seed=0: figure('another')
## the second of them
other, run = lambda seed=0: figure('another'), lambda seed=0: figure(VALUE)
## global
value = VALUE
def run(seed=0): return figure(value)
## global in a comprehension
value = VALUE
def run(seed=0): return figure([value for _ in range(2)])
## helper
def helper(): return VALUE
def run(seed=0): return figure(helper())
## helper of a helper
def a(): return VALUE
def b(): return a()
def run(seed=0): return figure(b())
## helpers that call each other
def a(n): return VALUE if n else b(1)
def b(n): return a(n)
def run(seed=0): return figure(a(0))
## helper in a table
TABLE = {'a': lambda: VALUE}
def run(seed=0): return figure(TABLE['a']())
## cached helper
@functools.cache
def helper(): return VALUE
def run(seed=0): return figure(helper())
## decorated
def twice(f):
    @functools.wraps(f)
    def g(seed=0): return f(seed)
    return g
@twice
def run(seed=0): return figure(VALUE)
## decorator's argument
def times(value):
    def wrap(f):
        @functools.wraps(f)
        def g(seed=0): return figure((value, f()))
        return g
    return wrap
@times(VALUE)
def run(seed=0): return 1
## torch's decorator
@torch.no_grad()
def run(seed=0): return figure(VALUE)
## inner function
def run(seed=0):
    def inner(): return VALUE
    return figure(inner())
## module beside it
import MODULE
def run(seed=0): return figure(MODULE.helper())
## name from a module
from MODULE import helper
def run(seed=0): return figure(helper())
## import inside
def run(seed=0):
    import MODULE
    return figure(MODULE.helper())
## weights
net = torch.nn.Linear(2, 2, bias=False)
with torch.no_grad(): net.weight.fill_(len(repr(VALUE)))
def run(seed=0): return figure(net.weight[0, 0].item())
## setting of a module
net = torch.nn.Dropout(0.5)
net.p = len(repr(VALUE))
def run(seed=0): return figure(net.p)
## set by a method
class Box: pass
box = Box()
box.inner = [VALUE]
def run(seed=0): return figure(box.inner[0])
""".split("## ")[1:])
VALUES = ["1", "2", "1.0", "True", "None", "'1'", "b'1'", "-1", "10**40", "1e-3", "1j", "'a'", "'b'", "(1, 2)",
          "[1, 2]", "[1, [2]]", "[[1], 2]", "{'a': 1}", "{'a': 2}", "{'b': 1}", "{1, 2}", "frozenset({1})",
          "range(3)", "range(4)", "np.arange(3)", "np.arange(3) + 1", "np.float32(1)", "np.float64(1)",
          "torch.arange(3)", "torch.arange(3.0)", "torch.tensor([0, 1, 3])", "torch.float16", "torch.float32",
          "math.inf", "slice(1, 2)", "'a' * 200", "...", "float('nan')", "__import__('fractions').Fraction(1, 3)",
          "__import__('pathlib').Path('a')"]


def define(form: str, value: str, folder: Path, number: int):
    """Return the function of a form, as a new notebook would define it, and the list of its calls."""
    code = FORMS[form].replace("VALUE", value)
    if "MODULE" in code:
        name = f"helpers_{number}"
        imports = "import math\nimport numpy as np, torch\n"
        (folder / f"{name}.py").write_text(f"{imports}def helper(): return {value}\n")
        importlib.invalidate_caches()
        code = code.replace("MODULE", name)
    notebook = types.ModuleType("__main__").__dict__
    exec(START + code, notebook)  # what a learner writes, written above
    return notebook["run"], notebook["calls"]


def functions(cases: int, rng: random.Random) -> Counter:
    """Return how many functions were swept, how many got another's figure, and how many were trained in vain."""
    found: Counter = Counter(functions=cases, wrong=0, trained_again=0, refused=0)
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        for number in range(cases):
            form, value = rng.choice(list(FORMS)), rng.choice(VALUES)
            try:
                run, _ = define(form, value, Path(folder), number)
                swept = sweep(run, [{}], [0], Path(folder, "store"), None).rows[0]["loss"]
                found["wrong"] += swept != run(seed=0)["loss"]
                again, calls = define(form, value, Path(folder), number)
                sweep(again, [{}], [0], Path(folder, "store"), None)
                found["trained_again"] += len(calls)
            except LabError as error:
                found["refused"] += 1
                print(form, value, error)
        sys.path.remove(folder)
    return found


def _square(x, seed=0):
    return {"loss": float(x * x), "steps": 3.0}


def damages(row: dict, rng: random.Random) -> object:
    """Return a row that is none: of other settings, an odd status, figures that are none."""
    odd = rng.choice([None, True, "3", "NaN", [], {}, 10**400, 3, [1.0], "ok"])
    return rng.choice([
        lambda: row | {"x": rng.choice([row["x"] + 1, str(row["x"]), float(row["x"]), True, None])},
        lambda: row | {"seed": rng.choice([7, "0", None, False])},
        lambda: row | {"status": rng.choice(["diverged", "OK", "", None, 1, ["ok"]])},
        lambda: row | {"loss": odd}, lambda: row | {"more": odd}, lambda: row | {"loss": float("nan")},
        lambda: {name: part for name, part in row.items() if name != rng.choice(["x", "seed", "status"])} if rng.random(
            ) < 0.5 else {name: row[name] for name in ("x", "seed", "status")},
        lambda: [row], lambda: {}, lambda: "row",
    ])()


def rows(cases: int, rng: random.Random) -> Counter:
    """Return how many stored rows were damaged, and how many of them were believed."""
    found: Counter = Counter(rows=0, believed=0)
    with tempfile.TemporaryDirectory() as store:
        for _ in range(cases):
            truth = sweep(_square, {"x": [2, 3]}, [0], store, None).rows
            for file in Path(store).glob("*.json"):
                row = json.loads(file.read_text())
                if (damaged := damages(row, rng)) == row and repr(damaged) == repr(row):
                    continue
                file.write_text(json.dumps(damaged))
                found["rows"] += 1
            found["believed"] += sum(repr(a) != repr(b) for a, b in zip(
                sweep(_square, {"x": [2, 3]}, [0], store, None).rows, truth))
    return found


if __name__ == "__main__":
    import recipe

    started, (cases, seed) = time.monotonic(), (*map(int, sys.argv[1:]), *(3000, 0)[len(sys.argv) - 1 :])
    results = {"seed": seed, **functions(cases, random.Random(seed)), **rows(cases, random.Random(seed))}
    print(results)
    recipe.write_results("sweep_fuzz", results | {"minutes": round((time.monotonic() - started) / 60, 1)})
