"""lm-eval itself on Lesson 6's beginnings and endings, without the hub: base, adapter and merged model.

    python benchmarks/lm_eval_task.py ADAPTER_FOLDER MERGED_FOLDER

The lesson computes the same measure, `acc`, in six lines. lm-eval wants a task as YAML and rows as JSON lines: both are
written here from the lesson's cell, and show how to bring rows of your own.
"""

import importlib.util
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import recipe
import twins
from lora_lab import cache

LESSON = Path(__file__).parents[1] / "notebooks/06_merge_and_ship.py"
TASK = """\
task: own_general
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{beginning}}}}"
doc_to_choice: endings
doc_to_target: 0
metric_list:
  - metric: acc
"""


def items() -> list[list[str]]:
    """The lesson's beginnings, each with its endings, the true one first."""
    names: dict = {}
    exec(next(cell for cell in twins.cells(LESSON) if cell.startswith("ITEMS = ")), names)
    return names["ITEMS"]


def write_task(folder: Path) -> None:
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"beginning": beginning, "endings": endings}) for beginning, *endings in items()]
    rows.write_text("\n".join(lines) + "\n")
    (folder / "own_general.yaml").write_text(TASK.format(rows=rows))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if importlib.util.find_spec("lm_eval") is None:
        sys.exit('No lm_eval in this Python. Install it: pip install "lm-eval[hf]"')
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    adapter, merged = map(os.path.abspath, sys.argv[1:])
    base, found = str(cache.model_folder()), {}
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder))
        import lm_eval
        from lm_eval.tasks import TaskManager

        for name, options in {"base": dict(pretrained=base), "base and adapter": dict(pretrained=base, peft=adapter),
                              "merged": dict(pretrained=merged)}.items():
            said = lm_eval.simple_evaluate(
                model="hf", model_args=options | dict(dtype="float32"), tasks=["own_general"], device="cpu",
                batch_size=16, task_manager=TaskManager(include_path=folder))
            found[name] = {key: value for key, value in said["results"]["own_general"].items() if key.startswith("acc")}
            print(name, found[name])
    recipe.write_results("lm_eval_task", {"items": len(items()), "lm-eval": version("lm-eval"), "results": found})


if __name__ == "__main__":
    main()
