"""Sweeps: what is trained, what is kept, and what becomes of a killed one."""

import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_lab import LabError
from lora_lab.sweep import Runs, sweep

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


@pytest.mark.parametrize("processes", [0, 1.5, True, "2"])
def test_a_number_of_processes_that_is_none_is_refused(processes):
    with pytest.raises(LabError, match="processes is .*whole number"):
        sweep(square, [{}], [0], progress=None, processes=processes)
