"""Many trainings in one call: a grid of settings by seeds, every finished run kept on disk, none trained twice.

`sweep` runs the learner's own training function and knows nothing of models. `Runs` holds what came out, as rows, means
with their spread, a table or a heat map.
"""

import contextlib
import inspect
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import Timeout

from .. import files
from ..display import Progress
from ..errors import LabError, reason
from . import keys
from .copies import copies
from .runs import Runs, interval

__all__ = ["Runs", "interval", "sweep"]

Setting = int | float | str | bool | None


def sweep(
    run: Callable,
    grid: dict[str, Iterable[Setting]] | list[dict[str, Setting]],
    seeds: Iterable[int] = (0, 1, 2),
    store: str | Path | None = None,
    progress: str | None = "sweep",
    measure: Callable[..., dict[str, float]] | None = None,
    processes: int = 1,
) -> Runs:
    """Call `run(seed=..., **settings)` for every combination of `grid` and every seed; returns all `Runs`.

    `run` trains once and returns its figures, such as `{"loss": 0.02}`; or it returns what `measure`, if given, makes
    figures of, such as a model. A figure that is not finite, or a FloatingPointError or OverflowError, makes the run
    diverged: kept, and marked so. `grid` has a list of values for each setting, or is a list of settings.

    With `store`, a folder, every finished run is written there at once: a sweep that was killed goes on where it
    stopped, and two sweeps may share a folder and the work. A run is known by its settings, its seed and all that `run`
    and `measure` use: their code and that of the helpers they call in the same notebook or module, defaults, closures,
    bound arguments and objects, the globals that they name, and the versions of Python, torch, PEFT and the other
    packages. Edit one, and the runs are made anew. What cannot be read, such as an open file, or a list that `run` both
    fills and reads, is refused. Not known to a store: files, environment variables, the machine, and what
    changes inside of a package.

    With `processes` above 1, copies of this process (forked, so on Linux alone, and not once CUDA is in use) train as
    well, each with its share of torch's threads: models too small to use two cores train nearly twice as fast.

    An error in `run` stops the sweep, with a note of its settings and seed; what was finished stays in the store.
    Raises LabError for settings that `run` does not take, and for functions that a store cannot tell apart, before any
    training.
    """
    jobs = [settings | {"seed": seed} for settings in _combinations(grid) for seed in _checked_seeds(seeds)]
    _check_settings(run, jobs)
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise LabError(f"processes is {processes!r}. Give a whole number, 1 or more, such as os.cpu_count().")
    if measure is not None and not callable(measure):
        raise LabError(f"measure is {measure!r}. Give a function that makes figures of what {_name(run)} returns.")
    base = "" if store is None else keys.digest(run, measure)
    with contextlib.ExitStack() as stack:
        if store is None and processes > 1:  # where the copies leave what they found
            store = stack.enter_context(tempfile.TemporaryDirectory())
        return _runs(run, measure, {keys.key(base, job): job for job in jobs}, _folder(store), progress, processes)


def _runs(run, measure, keyed: dict[str, dict], folder: Path | None, progress: str | None, processes: int) -> Runs:
    rows: dict[str, dict] = {}

    def work(bar, end_copies=lambda: None):
        longest = waited = 0.0
        while waiting := [key for key in keyed if key not in rows]:
            for key in waiting:
                started = time.monotonic()
                if row := _one(run, measure, keyed[key], folder, key, bar):
                    rows[key], longest, waited = row, max(longest, time.monotonic() - started), 0.0
            if rows.keys().isdisjoint(waiting):  # all that is left is being trained by another sweep, or by a copy
                time.sleep(0.2)
                waited += 0.2
            if waited > 10 + 3 * longest:  # a fork can hang on what another thread of the kernel held
                end_copies()

    with Progress(progress, total=len(keyed)) as bar, copies(work, min(processes, len(keyed))) as end_copies:
        work(bar, end_copies)
    return Runs([rows[key] for key in keyed])


def _combinations(grid) -> list[dict]:
    if isinstance(grid, list) and all(isinstance(settings, dict) for settings in grid) and grid:
        return [{name: _plain(value) for name, value in settings.items()} for settings in grid]
    if not isinstance(grid, dict):
        raise LabError(
            f'A grid is a dict such as {{"alpha": [8, 16], "lr": [0.01]}}, or a list of dicts; found {grid!r}.'
        )
    for name, values in grid.items():
        if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
            raise LabError(f"The grid gives {name} as {values!r}. Give a list of values: {{{name!r}: [{values!r}]}}.")
    lists = {name: [_plain(value) for value in values] for name, values in grid.items()}
    if taken := {"seed", "status"} & lists.keys():
        raise LabError(f"A grid cannot hold {min(taken)!r}: seeds are an argument of their own, status is a column.")
    if empty := [name for name, values in lists.items() if not values]:
        raise LabError(f"The grid has no value for {empty[0]}. Give at least one, or leave {empty[0]} out.")
    return [dict(zip(lists, values)) for values in itertools.product(*lists.values())]


def _plain(value):
    """numpy's numbers as Python's, and 1.0 as 1: the same setting has to look the same."""
    if hasattr(value, "item"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # an array of several: refused as no setting
            value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _checked_seeds(seeds) -> list[int]:
    seeds = [_plain(seed) for seed in seeds] if isinstance(seeds, Iterable) and not isinstance(seeds, str) else [seeds]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise LabError(f"Seeds are whole numbers, at least one, such as (0, 1, 2); found {seeds!r}.")
    return list(dict.fromkeys(seeds))


def _check_settings(run, jobs: list[dict]) -> None:
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):
        raise LabError(f"A sweep calls a function of yours that trains once; found {run!r}.") from None
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    needed = {name for name, p in parameters.items() if p.default is p.empty and p.kind in (
        p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known = ", ".join(parameters)
    for job in jobs:
        if (unknown := [name for name in job if name not in parameters]) and not anything:
            raise LabError(f"Unknown setting {unknown[0]!r}: {_name(run)} takes {known}. Rename it in the grid.")
        if missing := sorted(needed - job.keys()):
            raise LabError(f"{_name(run)} needs {missing[0]!r}: add it to the grid, or give it a default.")
        for name, value in job.items():
            if not isinstance(value, Setting):
                raise LabError(
                    f"{name}={value!r} cannot be stored: settings are numbers, text, True, False or None. Pass a name, "
                    f"and let {_name(run)} build the object."
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise LabError(f"{name} is {value!r} in the grid. Give a finite number.")


def _name(run) -> str:
    return getattr(run, "__name__", "your function")


def _folder(store) -> Path | None:
    if store is None:
        return None
    folder = files.place(store, "a folder for the runs")
    try:
        (folder / "locks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"Cannot keep runs in {store}: {reason(error)}. Give a folder that you may write to.") from None
    return folder


def _one(run, measure, job: dict, folder: Path | None, key: str, bar: Progress) -> dict | None:
    """The row of one run, from the store or trained now; None while another sweep is at it."""
    row: dict | None = None
    if folder is None:
        row = _train(run, measure, job)
    elif not (row := _read(folder / f"{key}.json", job)):
        try:
            held = files.lock(folder / "locks" / key, timeout=0)
        except Timeout:
            return None
        except OSError as error:
            raise LabError(f"Cannot lock a run in {folder / 'locks'}: {reason(error)}. That folder is for empty files "
                           f"of the sweep's own: remove {key} there, or give another store.") from None
        with held:
            if not (row := _read(folder / f"{key}.json", job)):  # finished by another between the two looks
                row = _train(run, measure, job)
                _write(folder / f"{key}.json", row)
    bar.update(1)
    return row


def _train(run, measure, job: dict) -> dict:
    try:
        figures = run(**job) if measure is None else measure(run(**job))
    except (FloatingPointError, OverflowError):
        return job | {"status": "diverged"}
    except Exception as error:
        error.add_note(f"In the run of {', '.join(f'{name}={value!r}' for name, value in job.items())}.")
        raise
    if not isinstance(figures, dict) or not figures:
        name = _name(measure or run)
        raise LabError(f'{name} has to return figures, such as {{"loss": 0.02}}; it returned {str(figures)[:80]!r}.')
    for name, value in figures.items():
        if name in job or name == "status":
            raise LabError(f"{_name(run)} returns {name!r}, which is a setting as well. Give the figure another name.")
        try:
            figures[name] = float(value)
        except (TypeError, ValueError):
            raise LabError(f"{_name(run)} returns {name}={value!r}. Figures are numbers.") from None
    finite = all(map(math.isfinite, figures.values()))
    return job | {"status": "ok" if finite else "diverged"} | figures


def _read(file: Path, job: dict) -> dict | None:
    """The stored row of `job`; None where there is none, or what is there cannot be one."""
    try:
        row = files.read_json(file, dict)
    except (OSError, ValueError):
        return None
    figures = [value for name, value in row.items() if name not in job and name != "status"]
    settings = {name: row.get(name) for name in job}
    if repr(settings) != repr(job) or any(type(value) is not float for value in figures):
        return None
    finite = bool(figures) and all(map(math.isfinite, figures))
    return row if row.get("status") == ("ok" if finite else "diverged") else None


def _write(file: Path, row: dict) -> None:
    try:
        files.write(file, json.dumps(row))
    except OSError as error:
        raise LabError(f"Cannot keep a run in {file.parent}: {reason(error)}. Free space, then sweep again.") from None
