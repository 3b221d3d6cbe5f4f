"""Do the lessons still run under other versions? `python tools/drift.py [00 01 ...] [--in colab ...] [--save]`.

Makes a throwaway environment for each set of versions, executes the lessons in it and prints a table of lesson by
environment, with the first cell that breaks and why:

pinned   constraints.txt, what the tests run with
newest   the newest releases that pyproject.toml allows
colab    Colab's versions of what the course shares with it, from tools/colab.txt
oldest   the oldest releases that pyproject.toml allows

torch stays the pinned one, because another build of it may be several GB; --torch lets it follow the set.
--short runs lessons as the tests do, with what they compute capped (benchmarks/twins.py).
--save writes each lesson when it has run, beside those that ran before with the same versions, and prints all of them.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import nbformat
import perturb
import set_up
from lone_run import execute
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import twins  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "drift.json"
SHOWN = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "ipywidgets", "ipykernel", "matplotlib")


def pins(file: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if line)


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["course"]]


def constraints(name: str, free_torch: bool) -> dict[str, str]:
    """The versions that pip must keep to, by package, for the set of this name."""
    pinned = pins(ROOT / "constraints.txt")
    found = {
        "pinned": lambda: pinned, "newest": dict, "colab": lambda: pins(ROOT / "tools" / "colab.txt"),
        "oldest": lambda: {needed.name: next(s.version for s in needed.specifier if s.operator == ">=")
                           for needed in requirements()},
    }[name]()
    found = {canonicalize_name(package): version for package, version in found.items()}
    return found if free_torch else {**found, "torch": pinned["torch"]}


class DoesNotInstall(Exception):
    """What uv said."""


def make_environment(folder: Path, keep_to: dict[str, str]) -> Path:
    """A virtual environment with the course in it; returns its Python. Raises DoesNotInstall."""
    uv = [sys.executable, "-m", "uv"]  # of the extra `test`
    subprocess.run([*uv, "venv", "--quiet", "--seed", "--python", sys.executable, folder], check=True)
    python = set_up.python_of(folder)
    file = folder / "keep_to.txt"
    file.write_text("".join(f"{package}=={version}\n" for package, version in keep_to.items()), encoding="utf-8")
    course = folder / "course"  # a copy: setuptools would leave a build folder in the checkout, and use it again
    course.mkdir()
    for name in ("lora_lab", "notebooks", "setup.py", "pyproject.toml", "README.md", "LICENSE", "LICENSES", "NOTICE"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, course / name)
    install = [*uv, "pip", "install", "--quiet", "--python", python, "--index-strategy", "unsafe-best-match",
               *set_up.places()]
    steps = [[f"{course}[course]", "ipykernel"]]
    if "torch" in keep_to:  # first, in the build for this machine: with it there, no other is looked at
        index = set_up.torch_index()
        steps.insert(0, ["torch", *(("--extra-index-url", index) if index else ())])
    for step in steps:
        done = subprocess.run([*install, "-c", file, *step], capture_output=True, text=True)
        if done.returncode:
            raise DoesNotInstall(" ".join(done.stderr.split()) or "uv failed without a word")
    return python


def installed(python: Path) -> dict[str, str]:
    ask = "from importlib import metadata; import json; print(json.dumps({d.name: d.version for d in " \
          "reversed(list(metadata.distributions()))}, sort_keys=True))"
    return json.loads(subprocess.run([python, "-I", "-c", ask], check=True, capture_output=True, text=True).stdout)


def attempt(python: Path, lesson: Path, folder: Path, short: bool) -> dict:
    """Runs one lesson; returns `minutes` and, where it broke, `cell` (counting code cells from 1) and `why`."""
    notebook = nbformat.read(lesson, 4)
    if short:
        twins.cap(notebook, lesson.stem)
    trained = folder.parent / perturb.FIRST / perturb.TRAINED
    if lesson.stem in perturb.GO_ON and trained.is_dir():
        shutil.copytree(trained, folder / perturb.TRAINED)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    started, why = time.perf_counter(), None
    try:
        execute(python, notebook, folder, {"LORA_LAB_PROGRESS": str(folder.parent / "progress.json")})
    except CellExecutionError as error:
        why = f"{error.ename}: {error.evalue.strip().splitlines()[0] if error.evalue.strip() else ''}".strip(": ")
    except (CellTimeoutError, DeadKernelError) as error:
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    except RuntimeError as error:  # the kernel did not start
        why = f"no kernel: {str(error).strip().splitlines()[0]}"
    result = {"minutes": round((time.perf_counter() - started) / 60, 1)}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if why:
        ran = [place for place, cell in enumerate(code, 1) if cell.execution_count or cell.outputs]
        result |= {"cell": max(ran, default=1), "why": why}
    elif said := [output.text.strip() for cell in code for output in cell.outputs if output.get("name") == "stderr"]:
        result["warns"] = re.sub(r"\S*[\\/]site-packages[\\/]", "", said[0].splitlines()[0])  # of this machine
    return result


def shown(result: dict | None) -> str:
    """One place of the table."""
    if result is None:
        return "not run"
    if "why" in result:
        return f"cell {result['cell']}: {result['why']}" if "cell" in result else result["why"]
    return f"runs ({result['minutes']} min)" + (f", but warns: {result['warns']}" if "warns" in result else "")


def table(columns: dict) -> str:
    """Markdown: a row for each lesson, a column for each environment, then what the environments had."""
    lessons = sorted({lesson for column in columns.values() for lesson in column["lessons"]})
    rows = [["lesson", *columns], ["---"] * (len(columns) + 1)]
    for lesson in lessons:
        rows.append([lesson, *(shown(column["lessons"].get(lesson)) for column in columns.values())])
    rows.append(["last run", *(column["date"] for column in columns.values())])
    rows.append(["trainings", *(column["trainings"] for column in columns.values())])
    for package in SHOWN:
        rows.append([package, *(column["versions"].get(package, "") for column in columns.values())])
    return "\n".join("| " + " | ".join(place.replace("|", "\\|") for place in row) + " |" for row in rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("lessons", nargs="*", help="beginnings of their names, as 00 or 01_low; all if none")
    parser.add_argument("--in", dest="names", nargs="+", choices=("pinned", "newest", "colab", "oldest"),
                        default=["pinned", "newest", "colab", "oldest"])
    parser.add_argument("--torch", action="store_true", help="torch too follows the set of versions")
    parser.add_argument("--short", action="store_true", help="few steps, as in the tests")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    asked = parser.parse_args(argv)
    every = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    lessons = [file for file in every if not asked.lessons or file.name.startswith(tuple(asked.lessons))]
    if not lessons:
        parser.error(f"no lesson begins with {', '.join(asked.lessons)}; there are {', '.join(f.stem for f in every)}")

    columns = {}
    for name in asked.names:
        with tempfile.TemporaryDirectory(prefix="lora-lab-drift-") as folder:
            for found in column(Path(folder), name, lessons, asked):
                columns[name] = found
                if asked.save:
                    save(name, found)
    print(table(saved() if asked.save else columns))
    return 1 if any("why" in place for one in columns.values() for place in one["lessons"].values()) else 0


def saved() -> dict:
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}


def save(name: str, found: dict) -> None:
    """Into RESULT, beside the other columns, and beside other lessons that ran with the same versions."""
    columns = saved()
    before = columns.get(name, {})
    if all(before.get(key) == found[key] for key in ("python", "trainings", "versions")):
        found = found | {"lessons": dict(sorted((before["lessons"] | found["lessons"]).items()))}
    temporary = RESULT.with_suffix(".tmp")
    temporary.write_text(json.dumps(columns | {name: found}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, RESULT)


def column(folder: Path, name: str, lessons: list[Path], asked: argparse.Namespace) -> Iterator[dict]:
    """One environment, after each lesson: its versions, and what became of the lessons so far."""
    print(f"{name}: installing ...", file=sys.stderr, flush=True)
    found = {"date": date.today().isoformat(), "python": sys.version.split()[0], "versions": {}, "lessons": {},
             "trainings": "few steps" if asked.short else "all steps"}
    try:
        python = make_environment(folder / "env", constraints(name, asked.torch))
    except DoesNotInstall as error:
        yield found | {"lessons": {lesson.stem: {"why": f"does not install: {error}"} for lesson in lessons}}
        return
    found["versions"] = installed(python)
    for lesson in lessons:
        print(f"{name}: {lesson.stem} ...", file=sys.stderr, flush=True)
        # The environment has the course: the notebook is alone, as a learner's copy is.
        found["lessons"][lesson.stem] = attempt(python, lesson, folder / lesson.stem, asked.short)
        print(f"{name}: {lesson.stem} {shown(found['lessons'][lesson.stem])}", file=sys.stderr, flush=True)
        if lesson.stem != perturb.FIRST:
            shutil.rmtree(folder / lesson.stem, ignore_errors=True)
        yield found


if __name__ == "__main__":
    sys.exit(main())
