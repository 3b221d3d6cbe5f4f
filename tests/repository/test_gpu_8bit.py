"""The GPU benchmark runs through on a CPU, with a tiny model: what it writes, and what it does when something fails."""

import contextlib
import importlib
import io
import json
import platform
import re
import shutil
from pathlib import Path

import jupytext
import pytest
from lora_lab import memory

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = {"weights_bytes", "quantization_bytes", "adapter_bytes", "gradient_bytes", "optimizer_bytes"}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield patch


@pytest.fixture(scope="module")
def benchmark(patch):
    import gpu_8bit

    return gpu_8bit


@pytest.fixture(scope="module")
def command(benchmark, tmp_path_factory):
    """The arguments of a quick run: a tiny model's folder and a result file."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("gpu_8bit") / "tiny"
    LlamaForCausalLM(LlamaConfig(**benchmark.TINY)).save_pretrained(folder)
    return ["--model", str(folder), "--device", "cpu", "--quick", "--out", str(folder.parent / "out.json")]


@pytest.fixture(scope="module")
def results(benchmark, command, patch):
    """A quick run with one configuration among its own that has to fail. The first job of a kind has its process."""
    quick, elsewhere, seen = benchmark.grid("tiny", quick=True), benchmark.run, set()

    def run(job, env):
        if job["kind"] not in seen:
            seen.add(job["kind"])
            return elsewhere(job, env)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            benchmark.child(json.dumps(job))
        return json.loads(said.getvalue().rpartition("RECORD ")[2]) | {"status": "ok"}

    dying = benchmark.case("tiny", "float32", 2, 16, kind="no such kind")
    patch.setattr(benchmark, "grid", lambda name, quick_run: [dying, *quick])
    with patch.context() as inner:
        inner.setattr(benchmark, "run", run)
        inner.setattr(benchmark, "DEVICE", "cpu")  # as a process finds it that is to see no GPU
        benchmark.main(command)
    return json.loads(Path(command[-1]).read_text())


def test_says_where_it_ran(results):
    assert results["hardware"]["gpu"] is None and results["quick"]
    assert {"python", "torch", "transformers", "peft", "bitsandbytes", "accelerate"} <= results["versions"].keys()


def test_one_record_for_each_configuration(benchmark, results):
    records = results["configurations"]
    assert len(records) == 4 and all(name == benchmark.name(record) for name, record in records.items())
    for record in list(records.values())[1:]:
        assert record["status"] == "ok", record
        assert record["last_loss_is_finite"] and len(record["step_seconds"]) == record["warmup"] + record["timed"]
        assert record["parts"].keys() == PARTS - {"quantization_bytes"}  # known on a GPU only
        assert record["steps"]["peak_allocated_bytes"] is None  # no made-up figure where there is no GPU
        for part in PARTS - {"optimizer_bytes", "quantization_bytes"}:
            assert record["planned"][part] == record["parts"][part]


def test_a_failure_is_recorded_and_the_rest_goes_on(results):
    dying, *rest = results["configurations"].values()
    assert dying["status"] == "failed" and dying["error"] == "exit 1: KeyError: 'no such kind'"
    assert {record["status"] for record in rest} == {"ok"}


def test_file_names_no_machine(results, command):
    text = Path(command[-1]).read_text()
    assert not re.search(r"[\s\"'(=]~?/\w", text)
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)


def test_a_second_run_does_only_what_is_missing(benchmark, results, command, patch):
    started, versions = [], results["versions"]

    def fake(job, env):
        started.append(job["kind"])
        if job["kind"] != "machine":
            return {"status": "failed", "error": "again"}
        return {"status": "ok", "hardware": results["hardware"], "versions": versions, "bfloat16_matmul_flops": 1.0}

    with patch.context() as inner:
        inner.setattr(benchmark, "run", fake)
        benchmark.main(command)
        assert started == ["machine", "no such kind"]
        assert json.loads(Path(command[-1]).read_text())["configurations"].keys() == results["configurations"].keys()
        versions = versions | {"torch": "1.0"}
        benchmark.main([*command[:-1], str(shutil.copy(command[-1], Path(command[-1]).with_name("other.json")))])
        assert started[2:] == ["machine", "no such kind", "train", "train", "train"]
        assert Path(command[-1]).with_name("other.json.old").exists()


def test_a_gpu_is_needed_where_figures_are_measured(benchmark, command):
    if benchmark.DEVICE == "cpu":
        with pytest.raises(SystemExit):
            benchmark.main(command[:2])


@pytest.mark.parametrize("lesson, said", [
    ("03_train_in_8bit", ["float32 on Some GPU", "here 200", "nf4 on Some GPU", "here 170"]),
    ("04_memory", ["float32: the plan is off by -20.0% at most", "8.00 GB 10.00 GB -20.0%"]),
])
@pytest.mark.parametrize("there", [True, False])
def test_lessons_show_a_recorded_run_beside_this_machine(lesson, said, there, results, tmp_path, capsys):
    """The lesson's own cell, with a record in the file's format and without one."""
    cells = jupytext.read(BENCHMARKS.parent / f"notebooks/{lesson}.py").cells
    [cell] = [cell.source for cell in cells if "gpu_8bit.json" in cell.source and cell.cell_type == "code"]
    run = json.loads(json.dumps(results))
    run["hardware"]["gpu"] = "Some GPU"
    for record in run["configurations"].values():
        record["seq"], record["checkpointing"], record["prepared"] = 128, False, False
        record["planned"] = {"total_bytes": 8e9}
        record.setdefault("steps", {})["peak_allocated_bytes"] = 10e9
    folder = tmp_path / "benchmarks/results"
    folder.mkdir(parents=True)
    if there:
        (folder / "gpu_8bit.json").write_text(json.dumps(run))
    (tmp_path / "notebooks").mkdir()
    with contextlib.chdir(tmp_path / "notebooks"):
        exec(cell, {"Path": Path, "json": json, "memory": memory,
                    "table": lambda rows: print(*(" ".join(map(str, row.values())) for row in rows), sep="\n"),
                    "rates": {"float32": 200.0, "int8": 180.0, "nf4": 170.0}})
    printed = capsys.readouterr().out
    assert all(words in printed for words in said) == there and ("Not recorded." in printed) != there


def test_table_has_a_line_for_each_configuration(benchmark, results, command, capsys):
    benchmark.main(["--show", command[-1]])
    shown = capsys.readouterr().out
    assert all(name in shown for name in results["configurations"])
    assert "no GPU" in shown


def test_gpu_grid_has_no_configuration_twice(benchmark):
    cases = importlib.reload(benchmark).grid("model", quick=False)
    assert len({benchmark.name(c) for c in cases}) == len(cases)


def test_parts_of_a_gguf_file_are_joined_in_order(benchmark, tmp_path, monkeypatch):
    for number in range(11):
        (tmp_path / f"model.Q4.gguf.part{number}").write_bytes(bytes([number]))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *args, **options: None)
    folder = benchmark.model_folder(tmp_path, tmp_path / "scratch", {})
    assert folder.with_suffix(".gguf").read_bytes() == bytes(range(11))


@pytest.mark.parametrize("text, cleaned", [
    ("No file '/home/someone/model/a.bin'", "No file 'a.bin'"),
    ("in ~/x/y.py, line 3", "in y.py, line 3"),
    ("see https://example.org/a/b, and/or 3 / 4", "see https://example.org/a/b, and/or 3 / 4"),
])
def test_errors_lose_their_folders(benchmark, text, cleaned):
    assert benchmark.clean(text) == cleaned
