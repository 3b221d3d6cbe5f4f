"""Progress kept by several kernels that fail, are killed and reset: real processes, real kills, nothing lost.

    python benchmarks/fuzz_files.py [--rounds 300] [--seed 0]

In a round three kernels answer at once, each some twenty times. A disk fails them at random steps, and some are killed
at a random call to the system. What a kernel was told is saved, and no reset took, has to be in the file; what a reset
took, in the copy beside it.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

KERNELS, ANSWERS = 3, 20
STEPS = ("open", "os.rename", "os.remove", "os.chmod", "tempfile.mkstemp")


def kernel(seed: int, told) -> None:
    """Answer, reset, fail and perhaps die; writes to `told` what is saved by now."""
    from lora_lab import LabError
    from lora_lab.course import progress_file

    rng, waiting, real = random.Random(seed), [], os.fsync
    if rng.random() < 0.4:
        left = [rng.randint(1, 250)]

        def die(event, _):
            left[0] -= event in STEPS
            if event in STEPS and not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)

    def full(handle):
        raise OSError(28, "No space left on device")

    for _ in range(ANSWERS):
        os.fsync = full if rng.random() < 0.25 else real
        if rng.random() < 0.05:
            try:
                progress_file.reset(lambda name: name.startswith("r/"))
            except LabError:
                told.write("a reset failed\n")
        name = rng.choice(("a/1", "a/2", "a/3", "r/1", "r/2"))
        waiting.append(name)
        progress_file.change(name, lambda kept: replace(kept, attempts=kept.attempts + 1, solved=True))
        if not progress_file._unsaved:
            told.write("".join(f"{name}\n" for name in waiting))
            waiting.clear()
        told.flush()


def round_of(seed: int, folder: Path) -> dict:
    """Let the kernels run and compare; returns counts."""
    os.environ["LORA_LAB_PROGRESS"] = str(folder / "progress.json")
    children = []
    for number in range(KERNELS):
        reader, writer = os.pipe()
        if not (child := os.fork()):
            os.close(reader)
            kernel(seed * KERNELS + number, os.fdopen(writer, "w"))
            os._exit(0)
        os.close(writer)
        children.append((child, os.fdopen(reader)))
    told = Counter(line.strip() for _, pipe in children for line in pipe)
    ends = [os.waitpid(child, 0)[1] for child, _ in children]
    there: Counter = Counter()
    for file in folder.glob("progress*.json"):  # the file, and what resets set aside
        for name, kept in json.loads(file.read_text())["questions"].items():
            there[name] += kept["attempts"] if file.name == "progress.json" or name.startswith("r/") else 0
    failed = told.pop("a reset failed", 0)
    return {"saved": sum(told.values()), "killed": sum(os.WIFSIGNALED(end) for end in ends), "resets_failed": failed,
            "broken": sum(os.WIFEXITED(end) and os.WEXITSTATUS(end) != 0 for end in ends),
            "resets": len(list(folder.glob("progress.before-reset*"))),
            "lost": sum((told - there).values()), "damaged": len(list(folder.glob("*.damaged*")))}


def fuzz(rounds: int, seed: int) -> dict:
    """Return the counts of all rounds together."""
    from lora_lab.course import progress_file  # noqa: F401  once, before the forks

    total: Counter = Counter()
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            total.update(round_of(seed + number, Path(folder)))
    return dict(total)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given, started = parser.parse_args(), time.monotonic()
    found = {"rounds": given.rounds, "seed": given.seed, "answers": given.rounds * KERNELS * ANSWERS,
             **fuzz(given.rounds, given.seed * 10**6), "seconds": round(time.monotonic() - started)}
    print(found)
    Path(__file__).with_name("results").joinpath("fuzz_files.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
