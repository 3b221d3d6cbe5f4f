"""The whole course on one NVIDIA GPU, then gpu_8bit.py: how long each lesson takes, what it scores, and what fails.

    python benchmarks/gpu_course.py --model FOLDER [--wheels FOLDER] [--out FILE] [--only 00 06 8bit]

It needs torch, transformers, peft and accelerate, and neither a network nor Jupyter: what lessons show is dropped where
there is nothing to show it with. FOLDER and --wheels are as in gpu_8bit.py. Every lesson has a process, a folder and a
time limit of its own, an error ends only its cell, and the JSON is written after each lesson. The same command does
what is missing, failed or has changed since; on other hardware or versions it starts anew and keeps the old file as
FILE.old. `--device cpu --quick` shows that it runs, and measures nothing.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from datetime import date
from pathlib import Path

import gpu_8bit
import stand_ins
import torch
import twins

REPOSITORY = Path(__file__).resolve().parents[1]
LESSONS = REPOSITORY / "notebooks"
MODEL = "SmolLM2-135M-Instruct"  # the cache's name for it
SECONDS = 900  # for one lesson
EIGHT = "8bit"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/gpu_course.json")
    parser.add_argument("--only", nargs="+", help="how lessons begin, such as 00; 8bit is gpu_8bit.py")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU found. `--device cpu --quick` shows that the rest runs.")
    with tempfile.TemporaryDirectory() as scratch:
        measure_all(args, Path(scratch))


def measure_all(args, scratch: Path) -> dict:
    env, folder = prepare(args, scratch)
    here = gpu_8bit.run({"kind": "machine", "quick": args.quick}, env)
    if here.pop("status") != "ok":
        sys.exit(f"Cannot measure here: {here['error']}")
    results = gpu_8bit.earlier(args.out, here | {"quick": args.quick, "lessons": {}})
    for twin in sorted(LESSONS.glob("[0-9]*.py")):
        text = hashlib.sha256(twin.read_bytes()).hexdigest()
        before = results["lessons"].get(twin.stem, {})
        if wanted(args, twin.stem) and (before.get("status"), before.get("text")) != ("ok", text):
            results["lessons"][twin.stem] = lesson(twin, scratch / twin.stem, env, args.quick) | {"text": text}
            write(args.out, results)
            print(line(twin.stem, results["lessons"][twin.stem]), flush=True)
    if wanted(args, EIGHT):
        results["gpu_8bit"] = eight_bits(args, folder, env)
        write(args.out, results)
    return results


def wanted(args, name: str) -> bool:
    return not args.only or name.startswith(tuple(args.only))


def prepare(args, scratch: Path) -> tuple[dict, Path]:
    """The environment of every process, and the model's folder: packages, stand-ins and the course's cache."""
    for wheel in args.wheels.glob("*.whl") if args.wheels else ():
        zipfile.ZipFile(wheel).extractall(scratch / "site")
    if missing := stand_ins.write(scratch / "stand-ins", scratch / "site"):
        print("shown nowhere, for want of:", *missing)
    paths = [scratch / "site", scratch / "stand-ins", REPOSITORY, REPOSITORY / "benchmarks"]
    env = os.environ | {
        "HF_HUB_OFFLINE": "1", "LORA_LAB_CACHE": str(scratch / "cache"), "PYTHONPATH": os.pathsep.join(
            [*map(str, paths), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    if args.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    folder = gpu_8bit.model_folder(args.model, scratch, env)
    fill_cache(folder, scratch / "cache" / MODEL)
    (scratch / "benchmarks").symlink_to(REPOSITORY / "benchmarks")  # lessons look into ../benchmarks/results
    return env, folder


def fill_cache(folder: Path, cache: Path) -> None:
    """The model's files as the course's cache has them, with their checksums."""
    cache.mkdir(parents=True)
    checksums = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name != "checksums.json":
            (cache / file.name).symlink_to(file)
            checksums[file.name] = zlib.crc32(file.read_bytes())
    (cache / "checksums.json").write_text(json.dumps(checksums))


def lesson(twin: Path, folder: Path, env: dict, quick: bool) -> dict:
    """Run a lesson in a process of its own; what its cells found, and what became of it."""
    folder.mkdir()
    log, problem = folder.with_suffix(".log"), None
    command = [sys.executable, "-c", "import sys, gpu_course; gpu_course.child(*sys.argv[1:])", twin, folder,
               "quick" * quick]
    env = env | {"LORA_LAB_PROGRESS": str(folder / "progress.json"),
                 **({"LORA_LAB_MEMORY_GB": "2"} if quick else {})}  # lesson 1 has a smaller path then
    started = time.perf_counter()
    with log.open("w") as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if code := process.wait(SECONDS):
                problem = f"exit {code}: "
        except subprocess.TimeoutExpired:
            problem = f"not finished after {SECONDS} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what the lesson started ends with it
            process.wait()
    text = log.read_text(errors="replace")
    if problem and problem.startswith("exit"):
        problem += text.strip().rpartition("\n")[2]
    return summary([json.loads(found) for found in re.findall("^RECORD (.+)$", text, re.MULTILINE)],
                   time.perf_counter() - started, problem)


def summary(cells: list[dict], seconds: float, problem: str | None) -> dict:
    """A lesson's record from those of its cells."""
    host = [cell.pop("host_bytes") for cell in cells]
    gpu = [cell["peak_gpu_bytes"] for cell in cells if cell["peak_gpu_bytes"] is not None]
    failed = [{"cell": cell["cell"], "error": cell["error"]} for cell in cells if "error" in cell]
    if problem:
        failed.append({"cell": len(cells) + 1, "error": gpu_8bit.clean(problem)})
    return {"status": "failed" if failed else "ok", "date": date.today().isoformat(), "seconds": round(seconds, 1),
            "peak_gpu_bytes": max(gpu, default=None), "peak_host_bytes": max(host, default=None), "failed": failed,
            "cells": cells}


def child(twin: str, folder: str, quick: str) -> None:
    """Run a lesson, and print a record after each cell."""
    noted, peaks = {}, []
    with twins.quick() if quick else contextlib.nullcontext():
        watch(noted)
        keep_peaks(peaks)

        @contextlib.contextmanager
        def around():
            noted.clear()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            peaks.clear()
            yield

        def tell(cell):
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()  # which notes the peak first
            resident = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            record = {"cell": cell.number, "seconds": round(cell.seconds, 3),
                      "peak_gpu_bytes": max(peaks, default=None), "host_bytes": 1024 * max(resident)} | noted
            if cell.error is not None:
                last = str(cell.error).strip().rpartition("\n")[2]
                record["error"] = gpu_8bit.clean(f"{type(cell.error).__name__}: {last}")
            print("\nRECORD", json.dumps(record), flush=True)

        twins.execute(Path(twin), Path(folder), tell, around)


def watch(noted: dict) -> None:
    """Note in `noted` the scores that are computed and the figures that predictions are compared with."""
    from lora_lab import scoring
    from lora_lab.course import quizzes

    def scored(function):
        def call(*args, **options):
            score = function(*args, **options)
            noted.setdefault("scores", []).append({name: finite(value) for name, value in vars(score).items()})
            return score
        return call

    def compared(function):
        def call(question, measured):
            noted.setdefault("compared", {})[question] = finite(measured)
            return function(question, measured)
        return call

    scoring.score, scoring.quick_score = scored(scoring.score), scored(scoring.quick_score)
    quizzes.compare = compared(quizzes.compare)


def finite(value):
    """As JSON has it: None for what is no finite number."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def keep_peaks(peaks: list) -> None:
    """Note each peak before it is reset: a cell may count for itself in between."""
    reset = torch.cuda.reset_peak_memory_stats

    def note_and_reset(*args):
        peaks.append(torch.cuda.max_memory_allocated(*args))
        reset(*args)

    torch.cuda.reset_peak_memory_stats = note_and_reset


def eight_bits(args, folder: Path, env: dict) -> dict:
    """gpu_8bit.py, which has a file of its own and goes on where it was broken off."""
    command = [sys.executable, gpu_8bit.__file__, "--model", folder, "--out", args.out.with_name("gpu_8bit.json"),
               "--device", args.device, *["--quick"] * args.quick, *(["--wheels", args.wheels] if args.wheels else [])]
    started = time.perf_counter()
    code = subprocess.run(command, env=env).returncode
    return {"status": "failed" if code else "ok", "date": date.today().isoformat(),
            "seconds": round(time.perf_counter() - started, 1)}


def write(file: Path, results: dict) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(fresh, file)


def line(name: str, record: dict) -> str:
    peak = "" if record["peak_gpu_bytes"] is None else f", {record['peak_gpu_bytes'] / 1e9:.1f} GB at most"
    failed = "".join(f"\n    cell {found['cell']}: {found['error']}" for found in record["failed"])
    return f"{name}: {record['seconds']:.0f} s{peak}{failed}"


if __name__ == "__main__":
    main()
