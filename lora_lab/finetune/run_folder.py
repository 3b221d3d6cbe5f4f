"""The output folder of a training: its metrics line by line, and checkpoints that are known to be complete.

Says what is in the folder and writes to it as the Trainer goes on; the training itself is in `training`. Checkpoints
and the adapter are ours where their manifest says so (`files.seal`); nothing else is ever removed or written over.
"""

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from .. import files
from ..errors import LabError

METRICS, ROWS = "metrics.jsonl", "rows.sha256"
_LARGEST = 1_000_000_000  # bytes of metrics


def read_metrics(output: str | os.PathLike) -> list[dict]:
    """Return the lines of `metrics.jsonl` in an output folder; a line that a killed process left unfinished is none."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in files.read_text(Path(output) / METRICS, _LARGEST).splitlines():
            with contextlib.suppress(ValueError):
                found.append(files.parse_json(line, dict))
    return [line for line in found if isinstance(line.get("step"), int)]


def last_checkpoint(output: str | os.PathLike) -> Path | None:
    """Return the newest checkpoint in an output folder whose files are, byte for byte, those that were saved."""
    return next(filter(files.is_whole, sorted(_checkpoints(output), key=step_of, reverse=True)), None)


def step_of(checkpoint: Path) -> int:
    """Return the step after which the folder `checkpoint` was saved."""
    return int(checkpoint.name.partition("-")[2])


def clean(output: str | os.PathLike, step: int) -> list[str]:
    """Remove what a killed training left unfinished, and its metrics after `step`; returns sentences on it.

    A checkpoint that is not, byte for byte, one of ours is not removed: it is kept under another name, where this
    training cannot write over it.
    """
    output, said = Path(output), []
    for folder in _checkpoints(output):
        if step_of(folder) <= step and files.is_whole(folder):
            continue
        if files.discard(folder):
            said.append(f"{folder.name} was not complete, or is after step {step}; it is removed.")
        else:
            kept = files.free(output / "kept", folder.name)
            os.rename(folder, kept)
            said.append(f"{folder.name} was not complete, or another training's; it is kept as {kept.name}.")
    lines = [json.dumps(line) + "\n" for line in read_metrics(output) if line["step"] <= step]
    files.write(output / METRICS, "".join(lines))
    return said


def keep_rows(output: str | os.PathLike, rows: list[tuple[str, str]], compare: bool) -> None:
    """Note what is trained on, or compare with what was. Raises LabError if that was something else."""
    found = hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()
    noted = Path(output, ROWS)
    try:
        same = not compare or not noted.exists() or files.read_text(noted) == found
    except ValueError:
        same = False
    if not same:
        raise LabError(f"data: found other rows than those that the run in {output} began with. Expected the same rows "
                       "to resume, or another output folder.")
    files.write(noted, found)


def _checkpoints(output) -> list[Path]:
    return [folder for folder in Path(output).glob("checkpoint-*") if folder.name.partition("-")[2].isdecimal()]


class Metrics(TrainerCallback):
    """Appends each logged step to `metrics.jsonl`; stops a training whose loss is no number any more."""

    def on_log(self, args, state, control, logs=None, **_):
        if "eval_loss" in (logs or {}):
            return self._write(args, state)
        if "loss" not in (logs or {}):
            return
        if not math.isfinite(logs["loss"]):
            raise LabError(f"The loss is {logs['loss']} at step {state.global_step}: the training diverged. Lower "
                           "training.learning_rate or lora.lora_alpha, and give a new output folder.")
        self._write(args, state)

    def _write(self, args, state):
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
    """Marks a checkpoint as ours before it is written, and as complete once every process has written its part."""

    def on_step_end(self, args, state, control, **_):
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if control.should_save and state.is_world_process_zero:
            folder.mkdir(exist_ok=True)  # another process may have been quicker; `clean` left none there before
            files.mark(folder)

    def on_save(self, args, state, control, **_):
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
        files.seal(folder)
