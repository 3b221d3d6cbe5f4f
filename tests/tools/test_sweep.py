"""Sweeps: what is trained, what is kept, and what becomes of a killed one."""

import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import sweep_fuzz
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_lab import LabError
from lora_lab.sweep import Runs, interval, sweep

first_process = os.getpid()

SCRIPT = '''
import sys, time
from pathlib import Path
from lora_lab.sweep import sweep

def run(alpha, lr=0.1, seed=0):
    with open(sys.argv[2], "a") as log:
        log.write(f"{alpha} {lr} {seed}\\n")
    time.sleep(float(sys.argv[3]))
    return {"loss": alpha * lr + seed}

runs = sweep(run, {"alpha": [1, 2, 4], "lr": [0.1, 0.2]}, (0, 1), sys.argv[1], progress=None)
print(runs.table("loss", "alpha", "lr"))
'''


def square(x=1.0, y=0.0, seed=0):
    return {"loss": x * x + y + seed}


@pytest.fixture
def program(tmp_path):
    (tmp_path / "job.py").write_text(SCRIPT)

    def start(store, seconds):
        command = [sys.executable, "job.py", store, f"{store}.log", str(seconds)]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    return start


def calls(tmp_path, store):
    log = tmp_path / f"{store}.log"
    return log.read_text().splitlines() if log.exists() else []


def test_every_combination_with_every_seed():
    runs = sweep(square, {"x": [1, 2], "y": [0, 10]}, (0, 1, 2), progress=None)
    found = {(row["x"], row["y"], row["seed"]): row["loss"] for row in runs.rows}
    assert found == {(x, y, s): x * x + y + s for x, y, s in itertools.product((1, 2), (0, 10), (0, 1, 2))}
    assert runs.mean("loss", x=2, y=10) == 15 and runs.spread("loss", x=2, y=10) == (14, 16)
    assert runs.values("x") == [1, 2] and len(runs.where(x=1)) == 6


@pytest.mark.parametrize("values, point", [
    ([0.0, 2.0], math.tan(math.pi * 0.475)),  # 1 degree of freedom: Cauchy's distribution
    ([0.0, 1.0, 2.0], 0.95 * math.sqrt(2 / (1 - 0.95**2))),  # 2
    ([1.0, 2.0, 3.0, 4.0, 5.0], 2.7764), ([float(x) for x in range(101)], 2.042),
])
def test_an_interval_has_one_degree_of_freedom_less_than_values(values, point):
    mean, half = interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert half == pytest.approx(point * np.std(values, ddof=1) / math.sqrt(len(values)), rel=1e-3)


def test_what_has_no_interval_says_nan():
    assert interval([3.0])[0] == 3 and math.isnan(interval([3.0])[1])
    assert all(map(math.isnan, interval([1.0, math.nan])))
    with pytest.raises(LabError, match="at least one number"):
        interval([])


def test_a_list_of_settings_is_a_grid():
    assert [row["loss"] for row in sweep(square, [{"x": 3}, {"x": 1, "y": 1}], [0], progress=None).rows] == [9, 2]


def test_a_model_is_trained_and_then_measured():
    runs = sweep(lambda seed: seed + 1, [{}], (0, 1), measure=lambda model: {"size": model}, progress=None)
    assert [row["size"] for row in runs.rows] == [1, 2]


def test_killed_half_way_it_resumes_and_gives_the_same_table(tmp_path, program):
    whole, _ = program("whole", 0).communicate(timeout=60)
    killed = program("killed", 0.2)
    while len(calls(tmp_path, "killed")) < 6:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(calls(tmp_path, "killed")) < 12
    resumed, _ = program("killed", 0).communicate(timeout=60)
    assert resumed == whole and "| 1.3 |" in whole
    trained = calls(tmp_path, "killed")
    assert len(set(trained)) == 12 and len(trained) <= 13  # the one that was being trained, again


def test_two_sweeps_on_one_store_lose_nothing_and_train_nothing_twice(tmp_path, program):
    both = [program("shared", 0.05) for _ in range(2)]
    tables = [process.communicate(timeout=60)[0] for process in both]
    assert tables[0] == tables[1] and tables[0].count("\n") == 7
    assert sorted(set(calls(tmp_path, "shared"))) == sorted(calls(tmp_path, "shared"))
    assert len(calls(tmp_path, "shared")) == 12


def test_the_same_settings_are_never_trained_twice(tmp_path):
    trained = []

    def run(lr, seed=0):
        trained.append(lr)
        return {"loss": lr}

    first = sweep(run, {"lr": [1, 1.0, np.float64(1), np.int64(1), 0.5]}, [0], tmp_path, progress=None)
    assert len(first) == 2 and trained == [1, 0.5]
    again = sweep(run, {"lr": [0.5, 1, 2]}, [0], tmp_path, progress=None)
    assert trained == [1, 0.5, 2] and again.rows[:2] == first.rows[::-1]


def test_an_edited_function_is_trained_anew(tmp_path):
    def run(seed=0):
        return {"loss": 1.0}

    assert sweep(run, [{}], [0], tmp_path, progress=None).mean("loss") == 1

    def run(seed=0):
        return {"loss": 2.0}

    assert sweep(run, [{}], [0], tmp_path, progress=None).mean("loss") == 2


def test_a_diverged_run_is_kept_and_marked(tmp_path):
    trained = []

    def run(lr, seed=0):
        trained.append(lr)
        if lr > 2:
            raise OverflowError
        return {"loss": math.nan if lr > 1 else lr}

    for _ in range(2):
        runs = sweep(run, {"lr": [0.5, 1.5, 3]}, [0], tmp_path, progress=None)
        assert [row["status"] for row in runs.rows] == ["ok", "diverged", "diverged"]
        assert len(runs) == 3 and len(runs.diverged) == 2
        assert math.isnan(runs.mean("loss", lr=3)) and math.isnan(runs.mean("loss", lr=1.5))
        assert str(runs.table("loss", "lr")).count("diverged") == 3  # the column's name and two cells
    assert trained == [0.5, 1.5, 3]


def test_an_interrupted_run_is_made_again_and_the_finished_are_kept(tmp_path):
    trained = []

    def run(lr, seed=0):
        trained.append(lr)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return {"loss": lr}

    with pytest.raises(KeyboardInterrupt):
        sweep(run, {"lr": [1, 2, 3]}, [0], tmp_path, progress=None)
    assert len(sweep(run, {"lr": [1, 2, 3]}, [0], tmp_path, progress=None)) == 3
    assert trained == [1, 2, 2, 3]


@given(st.binary(max_size=60))
def test_a_damaged_file_is_trained_again(tmp_path_factory, damage):
    store = tmp_path_factory.mktemp("store")
    sweep(square, [{"x": 2}], [0], store, progress=None)
    [file] = store.glob("*.json")
    file.write_bytes(damage)
    assert sweep(square, [{"x": 2}], [0], store, progress=None).mean("loss") == 4
    assert json.loads(file.read_text())["loss"] == 4


@pytest.mark.parametrize("grid, seeds, words", [
    ({"z": [1]}, [0], "Unknown setting 'z': square takes x, y, seed"),
    ({"x": 3}, [0], "Give a list of values"),
    ({"x": "abc"}, [0], "Give a list of values"),
    ({"x": []}, [0], "no value for x"),
    ({"x": [math.nan]}, [0], "finite number"),
    ({"x": [object()]}, [0], "cannot be stored"),
    ({"seed": [1]}, [0], "argument of their own"),
    ({"x": [1]}, [], "at least one"),
    ({"x": [1]}, [0.5], "whole numbers"),
    (3, [0], "A grid is a dict"),
    ([], [0], "A grid is a dict"),
    ([3], [0], "A grid is a dict"),
])
def test_bad_grids_are_refused_before_anything_is_trained(grid, seeds, words):
    with pytest.raises(LabError, match=words):
        sweep(square, grid, seeds, progress=None)


def test_unfit_functions_are_refused():
    with pytest.raises(LabError, match="needs 'lr'"):
        sweep(lambda lr, seed: {"loss": lr}, [{}], [0], progress=None)
    with pytest.raises(LabError, match="a function of yours"):
        sweep(3, [{}], [0], progress=None)
    with pytest.raises(LabError, match="has to return figures"):
        sweep(lambda seed: 3.0, [{}], [0], progress=None)
    with pytest.raises(LabError, match="Figures are numbers"):
        sweep(lambda seed: {"loss": "low"}, [{}], [0], progress=None)
    with pytest.raises(LabError, match="a setting as well"):
        sweep(lambda seed: {"seed": 1}, [{}], [0], progress=None)


def test_an_error_in_a_run_is_the_learners_to_see(tmp_path):
    with pytest.raises(ZeroDivisionError):
        sweep(lambda seed: {"loss": 1 / 0}, [{}], [0], tmp_path, progress=None)


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="Cannot keep runs in"):
        sweep(square, [{}], [0], tmp_path / "file", progress=None)


def test_a_full_disk_loses_no_finished_run(tmp_path, monkeypatch):
    sweep(square, [{"x": 1}], [0], tmp_path, progress=None)
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(LabError, match="No space left"):
        sweep(square, [{"x": 1}, {"x": 2}], [0], tmp_path, progress=None)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.json"))) == 1 and not list(tmp_path.glob("*.tmp"))


def test_unknown_figures_and_settings_are_named():
    runs = sweep(square, {"x": [1]}, [0], progress=None)
    with pytest.raises(LabError, match="no figure 'los'"):
        runs.mean("los")
    with pytest.raises(LabError, match="no setting 'z'"):
        runs.where(z=1)


def test_heat_map_says_where_the_smallest_is():
    runs = sweep(square, {"x": [1, 2, 3], "y": [0, 1]}, [1], progress=None)
    assert [row["loss"] for row in sweep(square, [{"x": 3}, {"y": 1}], [0], progress=None).where(y=1).rows] == [2]
    picture = runs.heat("loss", "x", "y")
    assert picture.png.startswith(b"\x89PNG") and "y 0: x 1" in picture.alt
    assert (runs + Runs([])).rows == runs.rows


def slow(x, seed=0):
    time.sleep(0.3)
    return {"loss": x + seed, "process": os.getpid()}


@pytest.mark.skipif(sys.platform != "linux", reason="copies of a process are made on Linux alone")
@pytest.mark.parametrize("kept", [True, False])
def test_copies_of_the_process_share_the_work_and_change_no_figure(tmp_path, kept):
    store, threads = tmp_path if kept else None, torch.get_num_threads()
    runs = sweep(slow, {"x": range(6)}, [0], store, progress=None, processes=3)
    assert [row["loss"] for row in runs.rows] == list(range(6))
    assert len({row["process"] for row in runs.rows}) == 3
    assert torch.get_num_threads() == threads and not multiprocessing.active_children()


def fails_at_three(x, seed=0):
    time.sleep(0.1)
    return {"loss": 1 / (x - 3)}


@pytest.mark.parametrize("processes", [1, 3])
def test_an_error_in_a_copy_is_the_learners_to_see(tmp_path, processes):
    with pytest.raises(ZeroDivisionError):
        sweep(fails_at_three, {"x": range(6)}, [0], tmp_path, progress=None, processes=processes)
    assert not multiprocessing.active_children()


def hangs_in_a_copy(x, seed=0):
    time.sleep(0.1 if os.getpid() == first_process else 3600)
    return {"loss": x}


@pytest.mark.skipif(sys.platform != "linux", reason="copies of a process are made on Linux alone")
def test_a_copy_that_hangs_is_ended_and_its_run_made_here():
    assert len(sweep(hangs_in_a_copy, {"x": range(4)}, [0], progress=None, processes=2)) == 4


def test_where_no_copy_can_be_forked_this_process_keeps_to_its_share_of_the_threads(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        runs = sweep(lambda x, seed: {"threads": torch.get_num_threads()}, {"x": range(3)}, [0], None, None,
                     processes=3)
        assert runs.figures("threads") == [1, 1, 1] and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("processes", [0, 1.5, True, "2"])
def test_a_number_of_processes_that_is_none_is_refused(processes):
    with pytest.raises(LabError, match="processes is .*whole number"):
        sweep(square, [{}], [0], progress=None, processes=processes)


@pytest.mark.parametrize("form", sweep_fuzz.FORMS)
def test_a_store_returns_no_other_functions_results_and_knows_its_own_again(tmp_path, monkeypatch, form):
    monkeypatch.syspath_prepend(tmp_path)
    for number, value in enumerate(("'a'", "[2, 3]", "'a'")):
        name = random.getrandbits(64)  # modules beside the notebook are imported once in a process
        run, _ = sweep_fuzz.define(form, value, tmp_path, name)
        again, calls = sweep_fuzz.define(form, value, tmp_path, name)
        [row] = sweep(run, [{}], [0], tmp_path, progress=None).rows
        assert row == sweep(again, [{}], [0], tmp_path, progress=None).rows[0] and calls == []
        assert row["loss"] == run(seed=0)["loss"], number


def test_a_sample_of_the_fuzz_finds_nothing():
    found = sweep_fuzz.functions(60, random.Random(1)) + sweep_fuzz.rows(40, random.Random(1))
    assert (found["functions"], found["wrong"], found["trained_again"], found["refused"]) == (60, 0, 0, 0)
    assert found["rows"] > 60 and found["believed"] == 0


def test_measure_and_its_helpers_are_in_the_key_too(tmp_path):
    def measure_with(factor):
        return lambda trained: {"loss": factor * trained}

    found = [sweep(lambda seed: 3, [{}], [0], tmp_path, progress=None, measure=measure_with(factor)).rows[0]["loss"]
             for factor in (1, 10, 1)]
    assert found == [3, 30, 3]


seen, counted = [], {"runs": 0}


def remembers(seed=0):
    seen.append(seed)
    return {"loss": sum(seen)}


def counts(seed=0):
    counted["runs"] += 1
    return {"loss": counted["runs"]}


ROWS = (n for n in range(9))


def reads_a_generator(seed=0):
    return {"loss": next(ROWS)}


@pytest.mark.parametrize("run, words", [
    (remembers, "seen in remembers is changed there and read as well"), (counts, "counted in counts is changed there"),
    (reads_a_generator, "ROWS in reads_a_generator is a generator, whose content cannot be read"),
])
def test_a_function_that_a_store_cannot_tell_from_others_is_refused_with_the_remedy(tmp_path, run, words):
    with pytest.raises(LabError, match=words) as refused:
        sweep(run, [{}], [0], tmp_path, progress=None)
    assert "inside the function" in str(refused.value) and not list(tmp_path.glob("*.json"))
    assert sweep(run, [{}], [0], progress=None).rows  # without a store there is nothing to tell apart


def test_a_logged_run_is_the_same_run(tmp_path):
    log, times, state = [], {}, types.SimpleNamespace(runs=0)

    def run(lr, seed=0):
        log.append(lr)
        times[lr] = time.monotonic()
        state.runs = lr
        return {"loss": lr}

    for _ in range(2):
        sweep(run, {"lr": [1, 2]}, [0], tmp_path, progress=None)
    assert log == [1, 2]


def test_another_version_of_a_library_is_trained_anew(tmp_path, monkeypatch):
    trained = []

    def run(seed=0):
        trained.append(seed)
        return {"loss": 1}

    sweep(run, [{}], [0], tmp_path, progress=None)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    sweep(run, [{}], [0], tmp_path, progress=None)
    assert len(trained) == 2


def test_another_process_finds_the_rows_until_a_package_is_edited(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/__init__.py").write_text("def helper(): return 1\n")
    (tmp_path / "beside.py").write_text("LR = {'a', 'b', 'c'}\n\ndef step(x): return x * len(LR)\n")
    (tmp_path / "job.py").write_text("""
import ours, beside
from lora_lab.sweep import sweep

WORDS, log = {"one", "two", "three", "four"}, []

def run(x, seed=0):
    log.append(x)
    return {"loss": beside.step(x) + ours.helper() + len(WORDS)}

print(sweep(run, {"x": [1, 2]}, [0], "store", None).mean("loss"), len(log))
""")

    def runs(hash_seed):
        # Bytecode of a file is kept by its size and second, both of which an edit here may leave as they were.
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([sys.executable, "job.py"], cwd=tmp_path, env=env, capture_output=True, text=True,
                              check=True, timeout=60).stdout.split()

    assert [runs("1"), runs("2")] == [["9.5", "2"], ["9.5", "0"]]
    (tmp_path / "ours/__init__.py").write_text("def helper(): return 2\n")
    assert runs("2") == ["10.5", "2"]
    (tmp_path / "beside.py").write_text("LR = {'a', 'b', 'c'}\n\ndef step(x): return -x * len(LR)\n")
    assert runs("2") == ["1.5", "2"]
    (tmp_path / "beside.py").write_text("import deep\n\ndef step(x): return x * deep.FACTOR\n")
    (tmp_path / "deep.py").write_text("FACTOR = 1\n")
    assert [runs("1"), runs("2")] == [["7.5", "2"], ["7.5", "0"]]
    (tmp_path / "deep.py").write_text("FACTOR = 2\n")
    assert runs("1") == ["9.0", "2"]


@pytest.mark.parametrize("change", [
    {"x": 3}, {"x": "2"}, {"x": 2.0}, {"seed": 1}, {"seed": False},
    {"status": "fine"}, {"status": "diverged"}, {"status": None},
    {"loss": "4.0"}, {"loss": 4}, {"loss": True}, {"loss": None}, {"loss": math.nan}, {"loss": [4.0]}, {"note": "good"},
])
def test_a_stored_row_is_believed_only_if_it_is_one(tmp_path, change):
    sweep(square, [{"x": 2}], [0], tmp_path, progress=None)
    [file] = tmp_path.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    wanted = {"x": 2, "seed": 0, "status": "ok", "loss": 4.0}
    assert repr(sweep(square, [{"x": 2}], [0], tmp_path, progress=None).rows) == repr([wanted])
    assert json.loads(file.read_text()) == wanted


def test_measure_that_is_no_function_is_refused():
    with pytest.raises(LabError, match="measure is 3"):
        sweep(square, [{}], [0], progress=None, measure=3)


def test_a_list_of_settings_for_a_table_is_refused():
    runs = sweep(lambda lr, seed: {"loss": lr}, {"lr": [0.1, 0.2]}, [0], progress=None)
    for wrong in (lambda: runs.table("loss", ["lr"]), lambda: runs.table(["loss"], "lr")):
        with pytest.raises(LabError, match=r"is \['l.*Give"):
            wrong()


def test_an_error_in_a_run_says_in_which():
    def train(lr, seed):
        raise KeyError("a column")

    with pytest.raises(KeyError) as caught:
        sweep(train, {"lr": [0.1]}, [7], progress=None)
    assert caught.value.__notes__ == ["In the run of lr=0.1, seed=7."]


def test_a_lock_that_was_written_over_is_named(tmp_path):
    def train(lr, seed):
        return {"loss": lr}

    sweep(train, {"lr": [0.1]}, [0], tmp_path, None)
    for file in (tmp_path / "locks").iterdir():
        file.write_text("mine")
    for file in tmp_path.glob("*.json"):
        file.unlink()
    with pytest.raises(LabError, match="is no lock.*remove [0-9a-f]+ there, or give another store"):
        sweep(train, {"lr": [0.1]}, [0], tmp_path, None)


def test_settings_that_a_run_tried_at_once_are_set_apart():
    runs = Runs([{"alpha": 1, "seed": 0, "status": "diverged", "loss, lr=0.1": 2.0, "moved, lr=0.1": 0.5,
                  "loss, lr=3.0": math.nan, "moved, lr=3.0": math.nan}])
    one, other = runs.apart("lr").rows
    assert one == {"alpha": 1, "seed": 0, "status": "ok", "lr": 0.1, "loss": 2.0, "moved": 0.5}
    assert other["status"] == "diverged" and other["lr"] == 3.0 and math.isnan(other["loss"])
    assert Runs([]).apart("lr").rows == []
