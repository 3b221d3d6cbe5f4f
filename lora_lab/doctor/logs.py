"""What the record of a training says: did the loss fall, diverge, stay, vanish or overfit; which error ended it."""

import math
import os
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from .. import files
from ..errors import LabError, expect, reason
from ..finetune import run_folder
from .causes import Finding

_LARGEST = 200_000_000  # bytes of a log
_LINE = re.compile(r"\{[^{}]*'?\"?loss\b[^{}]*\}")  # as the Trainer prints it
_PAIR = re.compile(r"['\"]([\w/]+)['\"]\s*:\s*['\"]?(-?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))['\"]?", re.IGNORECASE)
NAMES = run_folder.METRICS, "trainer_state.json", "trainer_log.jsonl"  # ours, the Trainer's, LLaMA-Factory's
_ERRORS = {  # what torch and the Trainer say: the cause
    "Attempting to unscale FP16 gradients": "float16 gradients",
    "does not require grad and does not have a grad_fn": "gradient cut off",
    "None of the inputs have requires_grad=True": "gradient cut off",
}
_NAMES = {"lr": "learning_rate", "current_steps": "step", "train/loss": "loss", "eval/loss": "eval_loss",
          "train/learning_rate": "learning_rate", "train/grad_norm": "grad_norm"}  # of other programs
_FAST = 1e-2  # one above which a loss that rises first was pushed away, not noisy
_SLOW = 2e-5  # a learning rate below which adapters hardly move: full training's, not theirs (Lesson 5)


@dataclass
class History:
    """Losses of training and of held-out rows, with their steps; rates and gradient norms where they were logged.

    `rewarded`: rewards were logged, too, and such a loss (of GRPO, PPO or DPO) need not fall.
    """

    losses: list[tuple[float, float]] = field(default_factory=list)
    held_out: list[tuple[float, float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    rewarded: bool = False
    said: str = ""


def read(log: str | os.PathLike | list[dict]) -> History:
    """Return what a log holds, in whichever form it comes. Raises LabError for what cannot be read."""
    if isinstance(log, list):
        expect(all(isinstance(line, dict) for line in log), "log", log, "a Trainer's log_history, a list of dicts")
        return _history(log)
    place = files.place(log, "a log: a file, or the folder of a training")
    if place.is_dir():
        found = in_folder(place)
        if found is None:
            raise LabError(f"log: {place} holds none of {', '.join(NAMES)}. Give the file.")
        place = found
    try:
        text = files.read_text(place, _LARGEST)
    except (OSError, ValueError) as error:
        raise LabError(f"log: {place} cannot be read: {reason(error)}. Give trainer_state.json, metrics.jsonl, or what "
                       "the training printed.") from None
    try:
        state = files.parse_json(text, dict)
    except ValueError:
        state = {}
    if isinstance(state.get("log_history"), list):
        return _history([line for line in state["log_history"] if isinstance(line, dict)])
    return _history(list(_lines(text)), text)


def in_folder(folder: Path) -> Path | None:
    """Return the log in the folder of a training, or in its last checkpoint that has one."""
    for place in (folder, *reversed(checkpoints(folder))):
        for name in NAMES:
            if (place / name).is_file():
                return place / name
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in the folder of a training, by their steps."""
    return sorted((f for f in folder.glob("checkpoint-*") if f.name.partition("-")[2].isdecimal()),
                  key=run_folder.step_of)


def _lines(text: str):
    """The lines of a JSON-lines file, or the dicts that the Trainer prints between other words."""
    for line in text.splitlines():
        try:
            yield files.parse_json(line, dict)
        except ValueError:
            for found in _LINE.findall(line):
                yield {key: float(value) for key, value in _PAIR.findall(found)}


def _history(lines: list[dict], said: str = "") -> History:
    history = History(said=said)
    for number, line in enumerate(lines):
        values = {_NAMES.get(key, key): float(value) for key, value in line.items()
                  if isinstance(value, (int, float)) and not isinstance(value, bool)}
        step = values.get("step", float(number))
        history.rewarded |= any(key.startswith("reward") for key in values)
        if "loss" in values:
            history.losses.append((step, values["loss"]))
            history.gradients += [values["grad_norm"]] if "grad_norm" in values else []
            history.rates += [values["learning_rate"]] if "learning_rate" in values else []
        if "eval_loss" in values:
            history.held_out.append((step, values["eval_loss"]))
    return history


def faults(history: History) -> list[Finding]:
    """Return what the record says went wrong, with the numbers that say it."""
    found = [Finding(cause, f"the log says {words!r}") for words, cause in _ERRORS.items() if words in history.said]
    losses = [loss for _, loss in history.losses]
    if not losses:
        return found
    silent = [norm for norm in history.gradients if norm == 0]
    spoilt = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    if losses.count(0) > len(losses) / 2 and losses[0] == 0 and not history.rewarded:
        norms = f", gradients of norm {history.gradients[0]}" if history.gradients else ""
        found.append(Finding("loss of zero", f"{losses.count(0)} of {len(losses)} losses are 0{norms}"))
    elif spoilt:
        before = f", after {losses[spoilt[0] - 1]:.3g}" if spoilt[0] else ""
        found.append(Finding("rate too high", f"the loss is {losses[spoilt[0]]} at step "
                                              f"{history.losses[spoilt[0]][0]:.0f}{before}{_rate(history)}"))
    elif len(silent) > len(losses) / 2:
        found.append(Finding("gradient cut off", f"the gradient's norm is 0 in {len(silent)} of {len(losses)} steps"))
    elif len(losses) >= 6 and not history.rewarded:
        found += _course(history, losses)
    return found + _held_out(history, losses)


def _course(history: History, losses: list[float]) -> list[Finding]:
    """First and last third against each other, with the noise around their own lines."""
    third = max(2, len(losses) // 3)
    first, last = losses[:third], losses[-third:]
    start, end = statistics.fmean(first), statistics.fmean(last)
    error = math.hypot(*(_noise(part) / math.sqrt(third) for part in (first, last)))
    best = min(statistics.fmean(losses[i : i + third]) for i in range(len(losses) - third + 1))
    told = f"the loss went from {start:.3g} (first third) to {end:.3g} (last), ± {error:.2g}{_rate(history)}"
    rate = max(history.rates, default=math.nan)
    peak = max(statistics.fmean(losses[i : i + 3]) for i in range(len(losses) // 2))
    if rate > _FAST and peak > 1.25 * statistics.fmean(losses[:2]):
        return [Finding("rate too high", f"{told}; before it fell it rose to {peak:.3g} from {losses[0]:.3g}")]
    if end - start > max(3 * error, 0.02 * start) or end - best > max(5 * error, 0.3 * best + 0.05):
        return [Finding("rate too high", f"{told}, at its lowest {best:.3g}")]
    early = statistics.fmean(losses[:3]) - end  # a good model learns a task's form in a few of many steps
    fell = early > max(3 * _noise(losses), 0.1 * end)
    if start - end < 0.02 * start and start - end < 3 * error and not fell:
        return [Finding("rate too low" if rate < _SLOW else "loss is flat", told)]
    if rate < _SLOW and end > 0.9 * start:
        return [Finding("rate too low", told)]
    return []


def _noise(part: list[float]) -> float:
    """The standard deviation of a step's loss around its neighbours, whatever the trend."""
    apart = [(b - a) ** 2 / 2 for a, b in zip(part, part[1:])]
    return math.sqrt(statistics.fmean(apart)) if apart else 0.0


def _rate(history: History) -> str:
    return f", the highest rate is {max(history.rates):.2g}" if history.rates else ""


def _held_out(history: History, losses: list[float]) -> list[Finding]:
    if len(history.held_out) < 3:
        return []
    step, best = min(history.held_out, key=lambda pair: (pair[1], pair[0]))
    last_step, last = history.held_out[-1]
    before = [loss for at, loss in history.losses if at <= step] or losses[:1]
    rose, learned = last - best, statistics.fmean(losses[-max(1, len(losses) // 5):])
    told = (f"held-out rows: {best:.3g} at step {step:.0f}, {last:.3g} at {last_step:.0f}; training: {learned:.3g} at "
            "the end")
    early = step <= (history.held_out[0][0] + last_step) / 2
    apart = early and last > 4 * learned and last - learned > 0.1  # by heart, and no better for half of the training
    fell = learned <= statistics.fmean(before[-max(1, len(before) // 5):]) * 1.05
    return [Finding("overfitting", told)] if apart or (fell and rose > max(0.1 * best, 0.02)) else []
