"""Run lessons on other terms, write copies to read: `python tools/perturb.py [00 01_low_rank_math ...] [--only seed]`.

Each lesson starts in an empty folder, once for each of these:

seed        with the next seed: every number that the lesson gives to a `seed` or a `SEED`, plus one
precision   in the other precision (LORA_LAB_PRECISION); what a cell names itself stays
steps       with half the steps: of every number that the lesson gives to `steps`, `max_steps` or a `..._STEPS`

A cell that fails is named, and the next one runs. Beside each executed notebook in _build/perturb/ lies a text with
everything that a reader meets, the replies to right and wrong answers included: no sentence in it should be false.
"""

import argparse
import ast
import dataclasses
import html
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import build_notebooks
import jupytext
import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from lora_lab import LabError
from lora_lab.course import question_files
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

ROOT = Path(__file__).parents[1]
WAYS = ("seed", "precision", "steps")
FIRST, TRAINED = "00_first_adapter", Path("adapters/first")
GO_ON = ("05_alpha_scaling",)  # goes on with what FIRST trained and, where that is missing, trains it itself
NAMED = {"seed": r"seed|.*SEED", "steps": r"steps|max_steps|.*STEPS|TOKENS"}
CHANGED = {"seed": lambda seed: seed + 1, "steps": lambda steps: steps // 2}
OWN_PRECISION = re.compile(r"""precision=["']|torch\.(?:float32|float16|bfloat16)\b""")
LAST = """\
import dataclasses, json
from lora_lab.course import quizzes
print(json.dumps({name: dataclasses.asdict(card.question) for name, card in quizzes._cards.items()}, default=str))"""


def change(source: str, way: str) -> tuple[str, list[str]]:
    """Return a cell's `source` with other numbers, and what was changed, such as "SEED 0 to 1"."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # one with magics
        return source, []
    lines, changes = source.splitlines(keepends=True), []
    for name, node in sorted(given(tree), key=lambda pair: (pair[1].lineno, pair[1].col_offset), reverse=True):
        if re.fullmatch(NAMED[way], name) and (new := CHANGED[way](node.value)) not in (0, node.value):
            line = lines[node.lineno - 1].encode()  # columns count bytes
            lines[node.lineno - 1] = (line[:node.col_offset] + str(new).encode() + line[node.end_col_offset:]).decode()
            changes.append(f"{name} {node.value} to {new}")
    return "".join(lines), changes[::-1]


def given(tree: ast.AST) -> list[tuple[str, ast.Constant]]:
    """Return each whole number that code gives to a name: by assignment, as an argument or as a default."""
    pairs: list[tuple] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                either = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
                pairs += zip(target.elts, node.value.elts) if both else [(target, value) for value in either]
        elif isinstance(node, ast.keyword):
            pairs.append((node.arg, node.value))
        elif isinstance(node, ast.arguments):
            plain = [*node.posonlyargs, *node.args]
            pairs += zip(plain[len(plain) - len(node.defaults):], node.defaults)
            pairs += zip(node.kwonlyargs, node.kw_defaults)
    named = [(name if isinstance(name, str) else getattr(name, "id", getattr(name, "arg", "")), value)
             for name, value in pairs]
    return [(name, value) for name, value in named
            if name and isinstance(value, ast.Constant) and type(value.value) is int]


def other_precision() -> str:
    """Return the precision that this machine does not take by itself."""
    from lora_lab import models

    return "bfloat16" if str(models.pick_dtype(models.pick_device())) == "torch.float32" else "float32"


def perturbed(twin: Path, way: str):
    """Return the lesson as a notebook on other terms, the variables that it runs with, and what is said of it."""
    notebook, variables, said = jupytext.read(twin), {}, []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if way == "precision":
        variables = {"LORA_LAB_PRECISION": other_precision()}
        own = [str(place) for place, cell in enumerate(code, 1) if OWN_PRECISION.search(cell.source)]
        said = [f"LORA_LAB_PRECISION={other_precision()}"]
        said += [f"code cells that name a precision themselves keep it: {', '.join(own)}"] if own else []
    else:
        for place, cell in enumerate(code, 1):
            cell.source, changes = change(cell.source, way)
            said += [f"code cell {place}: {', '.join(changes)}"] if changes else []
    return notebook, variables, said or [f"nothing to change: the lesson gives no number to {NAMED[way]}"]


def run(notebook, variables: dict[str, str]) -> tuple[dict, list[str]]:
    """Run all cells from an empty folder; returns the questions as the lesson computed them, and what failed."""
    last, stopped = nbformat.v4.new_code_cell(LAST), []
    notebook.cells.append(last)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "empty")
        work.mkdir()
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", store_widget_state=False,
                                allow_errors=True, resources={"metadata": {"path": str(work)}})
        try:
            client.execute(env={**os.environ, "LORA_LAB_PROGRESS": f"{folder}/progress.json", **variables})
        except (DeadKernelError, CellTimeoutError) as error:
            stopped = [f"stopped for good: {type(error).__name__}, {str(error).strip().splitlines()[0]}"]
    del notebook.cells[-1]
    text = "".join(output.get("text", "") for output in last.get("outputs", []))
    return json.loads(text) if text.startswith("{") else {}, failures(notebook) + stopped


def failures(notebook) -> list[str]:
    """Return a line for each cell that raised: which, at what, and its first line."""
    lines = []
    for place, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        for output in cell.outputs:
            if output.output_type == "error":
                why = (output.evalue.strip().splitlines() or [""])[0]
                lines.append(f"code cell {place} failed: {output.ename}: {why}   [{cell.source.splitlines()[0]}]")
    return lines


def reading_copy(notebook, questions: dict) -> str:
    """Return all that a reader meets as one Markdown text; `questions` are those that the run computed."""
    parts, place = [], 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        place += 1
        parts.append(f"Code cell {place}:\n\n```python\n{cell.source}\n```")
        parts += [text for output in cell.outputs if (text := told(output, questions))]
    return "\n\n".join(parts) + "\n"


def told(output, questions: dict) -> str:
    """Return an output as text: what was printed, a picture's alt text, a table, or a question with its replies."""
    if output.output_type == "error":
        return f"**This cell failed.** {output.ename}: {output.evalue}"
    data = output.get("data", {})
    if asked := re.search(r'data-question="([^"]+)"', data.get("text/html", "")):
        return question(html.unescape(asked[1]), questions)
    text = build_notebooks.words(output).rstrip()
    if "image/png" in data:
        return f"[Picture: {text}]"
    return f"```\n{text}\n```" if text.strip() else ""


def question(name: str, questions: dict) -> str:
    """Return a question with everything that can be said of an answer to it."""
    known = questions.get(name) or dataclasses.asdict(question_files.find(name))
    lines = [f"**Question {name}.** {known.pop('ask').strip()}"]
    for field, value in known.items():
        if isinstance(value, (list, tuple)):
            for entry in value:
                words = [f"{key}: {one}" for key, one in entry.items()] if isinstance(entry, dict) else [str(entry)]
                lines.append(f"- {field} | " + " | ".join(word.strip() for word in words))
        elif field not in ("id", "proof", "check"):
            lines.append(f"- {field} | {str(value).strip()}")
    return "\n".join(lines)


def main(arguments: list[str], folder: Path = ROOT / "notebooks", out: Path = ROOT / "_build" / "perturb") -> int:
    parser = argparse.ArgumentParser(prog="tools/perturb.py", description="Run lessons on other terms, to be read.")
    parser.add_argument("lesson", nargs="*", help="a name, or how it begins, such as 02; none means all")
    parser.add_argument("--only", choices=WAYS, action="append", help="one way of the three; may be repeated")
    given_ = parser.parse_args(arguments)
    twins = sorted(folder.glob("[0-9]*.py"))
    for name in given_.lesson:
        if not any(twin.stem.startswith(name) for twin in twins):
            raise LabError(f"There is no lesson {name!r}. There are: {', '.join(twin.stem for twin in twins)}.")
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for twin in (twin for twin in twins if not given_.lesson or twin.stem.startswith(tuple(given_.lesson))):
        for way in given_.only or WAYS:
            notebook, variables, said = perturbed(twin, way)
            print(f"{twin.stem}, {way}\n  " + "\n  ".join(said), flush=True)
            started = time.monotonic()
            questions, faults = run(notebook, variables)
            note = f"*{twin.stem} with another {way}: {'; '.join(said)}. Failed: {len(faults)}.*"
            target = out / f"{twin.stem}.{way}.md"
            target.write_text(f"{note}\n\n{reading_copy(notebook, questions)}", encoding="utf-8")
            nbformat.write(build_notebooks.compact(notebook), target.with_suffix(".ipynb"))
            print("\n".join(f"  {fault}" for fault in faults) or "  every cell ran", flush=True)
            print(f"  {(time.monotonic() - started) / 60:.1f} minutes; to read: {target}", flush=True)
            failed += len(faults)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NoSuchKernel:
        sys.exit("There is no Jupyter kernel python3 here. `make perturb` sets one up.")
    except LabError as error:
        sys.exit(str(error))
