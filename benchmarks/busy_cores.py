"""A training step on all cores, alone and beside other programs: how long OpenMP's threads may wait for each other.

    python benchmarks/busy_cores.py [--steps 6] [--seconds 90]

A thread that is done with its part of a product turns in a circle until the others are, and takes a core from them if
another program has it. `GOMP_SPINCOUNT` says how many turns it makes before it sleeps. The settings take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys

SETTINGS = {"as it is": {}} | {
    f"{name}={value}": {name: value} for name, value in
    (("GOMP_SPINCOUNT", "3000"), ("GOMP_SPINCOUNT", "30000"), ("OMP_WAIT_POLICY", "PASSIVE"))}
STEP = """
import sys, time
import recipe, torch
from lora_lab import batches
model, tokenizer = recipe.adapted_base(0)
collate, rows = batches.AnswerCollator(tokenizer), recipe.training_rows(tokenizer, seed=0)
for turn in range(int(sys.argv[1]) + 1):
    batch = collate(rows[turn * recipe.BATCH : (turn + 1) * recipe.BATCH])
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    if turn:  # the first one warms up
        print(time.perf_counter() - started, flush=True)
"""


def steps(count: int, limit: float, setting: dict, beside: int) -> list[float]:
    """Seconds of each step that was done within the limit, beside so many processes that compute all the time."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))} | setting
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
    try:
        said = subprocess.run([sys.executable, "-c", STEP, str(count)], env=environment, capture_output=True, text=True,
                              timeout=limit, cwd=os.path.dirname(os.path.abspath(__file__))).stdout
    except subprocess.TimeoutExpired as ended:
        said = (ended.stdout or b"").decode()
    finally:
        for other in others:
            other.kill()
    return [float(line) for line in said.split()]


def main(arguments: list[str] | None = None) -> dict:
    import recipe

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=90, help="limit for each setting")
    options = parser.parse_args(arguments)
    found: dict = {}
    for beside in (0, 1):
        for name, setting in SETTINGS.items():
            taken = steps(options.steps, options.seconds, setting, beside)
            median = statistics.median(taken) if taken else None  # none within the limit
            found[f"{name}, beside {beside}"] = {"steps": len(taken), "median_seconds": median}
            print(f"beside {beside} busy processes: {name:24} {len(taken)} steps, median {median} s", flush=True)
    usual = found["as it is, beside 0"]["median_seconds"]
    for one in found.values():
        one["of_alone_as_it_is"] = one["median_seconds"] and one["median_seconds"] / usual
    recipe.write_results("busy_cores", found)
    return found


if __name__ == "__main__":
    main()
