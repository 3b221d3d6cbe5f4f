"""The output folder of a training: its metrics line by line, and checkpoints that are known to be complete.

Says what is in the folder and writes to it as the Trainer goes on; the training itself is in `training`.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from .. import files
from ..errors import LabError

METRICS, ROWS = "metrics.jsonl", "rows.sha256"
_COMPLETE = "complete.json"  # written last into a checkpoint: its files and their sizes


def read_metrics(output: str | os.PathLike) -> list[dict]:
    """Return the lines of `metrics.jsonl` in an output folder; a line that a killed process left unfinished is none."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (Path(output) / METRICS).read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(files.parse_json(line, dict))
    return found


def last_checkpoint(output: str | os.PathLike) -> Path | None:
    """Return the newest checkpoint in an output folder whose files are all there with their sizes."""
    return max(filter(_is_complete, _checkpoints(output)), key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the step after which the folder `checkpoint` was saved."""
    return int(checkpoint.name.partition("-")[2])


def clean(output: str | os.PathLike, step: int) -> list[str]:
    """Remove what a killed training left unfinished, and the metrics after `step`; returns the removed folders."""
    output = Path(output)
    broken = [folder for folder in _checkpoints(output) if not _is_complete(folder) or step_of(folder) > step]
    for folder in [*broken, *output.glob(".adapter.*")]:
        shutil.rmtree(folder)
    lines = [json.dumps(line) + "\n" for line in read_metrics(output) if line["step"] <= step]
    files.write(output / METRICS, "".join(lines))
    return [folder.name for folder in broken]


def keep_rows(output: str | os.PathLike, rows: list[tuple[str, str]], compare: bool) -> None:
    """Note what is trained on, or compare with what was. Raises LabError if that was something else."""
    found = hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()
    noted = Path(output, ROWS)
    if compare and noted.exists() and noted.read_text() != found:
        raise LabError(f"data: found other rows than those that the run in {output} began with. Expected the same rows "
                       "to resume, or another output folder.")
    files.write(noted, found)


def _checkpoints(output) -> list[Path]:
    return [folder for folder in Path(output).glob("checkpoint-*") if folder.name.partition("-")[2].isdecimal()]


def _is_complete(folder: Path) -> bool:
    try:
        sizes = files.read_json(folder / _COMPLETE, dict)
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


class Metrics(TrainerCallback):
    """Appends each logged step to `metrics.jsonl`; stops a training whose loss is no number any more."""

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in (logs or {}):
            return
        if not math.isfinite(logs["loss"]):
            raise LabError(f"The loss is {logs['loss']} at step {state.global_step}: the training diverged. Lower "
                           "training.learning_rate or lora.lora_alpha, and give a new output folder.")
        if state.is_world_process_zero:
            with open(Path(args.output_dir, METRICS), "a") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")


class Report(TrainerCallback):
    """Prints the loss about ten times in a training."""

    def on_log(self, args, state, control, logs=None, **_):
        due = max(1, state.max_steps // 10)
        if "loss" in (logs or {}) and state.is_world_process_zero and state.global_step // due > self.printed:
            self.printed = state.global_step // due
            print(f"Step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4f}", flush=True)

    printed = 0


class Seal(TrainerCallback):
    """Marks a checkpoint as complete once every process has written its part."""

    def on_save(self, args, state, control, **_):
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*")
                 if file.is_file() and file.name != _COMPLETE}
        files.write(folder / _COMPLETE, json.dumps(sizes))
