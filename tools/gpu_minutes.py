"""Tell README and lessons what the course took on a GPU: `python tools/gpu_minutes.py`, after benchmarks/gpu_course.py.

Writes the last column of the README's table of lessons, and the words "(on a GPU: ...)" in the first Markdown cell of
every twin and its notebook, from benchmarks/results/gpu_course.json; "not recorded" for what is not in it.
"""

import json
import re
from pathlib import Path

from publish import save

ROOT = Path(__file__).parents[1]
RESULT = "benchmarks/results/gpu_course.json"


def recorded(root: Path = ROOT) -> dict:
    """What there is of a measured run; nothing of a quick one."""
    file = root / RESULT
    results = json.loads(file.read_text()) if file.exists() else {"quick": True}
    return {} if results["quick"] or not results["hardware"]["gpu"] else results


def words(name: str, results: dict) -> str:
    """Of one lesson: "2 min, NVIDIA H100, peak 3.1 GB", how many cells failed, and how many a stand-in let down."""
    if name not in results.get("lessons", ()):
        return "not recorded"
    lesson = results["lessons"][name]
    seconds, peak = lesson["seconds"], lesson["peak_gpu_bytes"] or 0
    time = f"{seconds:.0f} s" if seconds < 90 else f"{round(seconds / 30) / 2:g} min"
    told = [("'Nothing'" in found["error"]) for found in lesson["failed"]]
    fails = "".join(f", {count} cell{'s' * (count > 1)} {what}" for count, what in
                    ((told.count(False), "failed"), (told.count(True), "not shown there")) if count)
    return f"{time}, {results['hardware']['gpu']}, peak {peak / 1e9:.1f} GB{fails}"


def write(root: Path = ROOT) -> None:
    results = recorded(root)
    replace(root / "README.md", r"(?m)^(\| \d \| \[[^\n]*?\(notebooks/(\w+)\.ipynb\).*\| )[^|\n]*( \|)$",
            lambda row: f"{row[1]}{words(row[2], results)}{row[3]}")
    for twin in sorted((root / "notebooks").glob("[0-9]*.py")):
        told = f"(on a GPU: {words(twin.stem, results)})"
        replace(twin, r"(?m)^# \(on a GPU: [^)\n]*\)", lambda _: f"# {told}")  # a line's beginning: it has to fit in
        replace(twin.with_suffix(".ipynb"), r'(?m)^( +")\(on a GPU: [^)\n]*\)', lambda found: found[1] + told)


def replace(file: Path, pattern: str, by) -> None:
    """In the file as it is now: nothing else in it is read or written anew."""
    before = file.read_text(encoding="utf-8")
    after = re.sub(pattern, by, before, count=0 if file.suffix == ".md" else 1)
    if after != before:
        save(file, after)


if __name__ == "__main__":
    write()
