"""The GPU benchmark runs through on a CPU, with a tiny model: what it writes, and what it does when something fails."""

import json
import platform
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
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
    """A quick run with two configurations among its own that have to fail."""
    quick = benchmark.grid("tiny", quick=True)
    wrong = benchmark.case("tiny", "float32", 2, 16, kind="unsloth")
    dying = benchmark.case("tiny", "float32", 2, 16, kind="no such kind")
    patch.setattr(benchmark, "grid", lambda name, quick_run: [dying, quick[0], wrong, *quick[1:]])
    benchmark.main(command)
    return json.loads(Path(command[-1]).read_text())


def test_says_where_it_ran(results):
    assert results["device"] == "cpu" and results["hardware"]["gpu"] is None
    assert {"python", "torch", "transformers", "peft", "bitsandbytes", "accelerate"} <= results["versions"].keys()
    assert results["planner"] == "lora_lab.memory.plan"
    assert results["unsloth"].startswith("not installed here: ")


def test_one_record_for_each_configuration(benchmark, results):
    records = results["configurations"]
    assert len({benchmark.name(r) for r in records}) == len(records) == 6
    for record in records:
        if record["precision"] in ("int8", "nf4") and not find_spec("bitsandbytes"):
            continue
        if record["kind"] != "train":
            continue
        assert record["status"] == "ok", record
        assert record["loss_is_finite"] and len(record["step_seconds"]) == record["warmup"] + record["timed"]
        assert record["parts"].keys() == PARTS
        assert record["steps"]["peak_allocated_bytes"] is None  # no made-up figure where there is no GPU
        for part in PARTS - {"optimizer_bytes", "quantization_bytes"}:
            assert record["planned"][part] == record["parts"][part]


def test_a_failure_is_recorded_and_the_rest_goes_on(results):
    dying, _, wrong, *rest = results["configurations"]
    assert dying["status"] == "failed" and "the process ended with 1: KeyError: 'no such kind'" == dying["error"]
    assert wrong["status"] == "failed" and "Error: " in wrong["error"]  # no Unsloth here, or no GPU for it
    assert len(rest) == 3 and rest[-1]["status"] == "skipped" and rest[-1]["error"] == "needs a GPU"


def test_file_names_no_machine(results, command):
    text = Path(command[-1]).read_text()
    assert not re.search(r"[\s\"'(=]~?/\w", text)
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)


def test_a_second_run_does_only_what_is_missing(benchmark, results, command, patch):
    started = []

    def note(job, *rest):
        started.append(job["kind"])
        return job

    machine = {key: results[key] for key in ("hardware", "versions", "matmul_flops")} | {"unsloth": "none"}
    with patch.context() as inner:
        inner.setattr(benchmark, "start", note)
        inner.setattr(benchmark, "finish", lambda job: {"status": "ok"} | machine if job["kind"] == "machine" else
                      {"status": "failed", "error": "again"})
        benchmark.main(command)
        assert sorted(started) == ["machine", "no such kind", "unsloth"]
        again = json.loads(Path(command[-1]).read_text())["configurations"]
        assert [r for r in again if r["status"] != "failed"] == [
            r for r in results["configurations"] if r["status"] != "failed"
        ]
        machine["versions"] = machine["versions"] | {"torch": "1.0"}
        with pytest.raises(SystemExit, match="other versions"):
            benchmark.main(command)


def test_table_has_a_line_for_each_configuration(benchmark, results, command, capsys):
    benchmark.main(["--show", command[-1]])
    shown = capsys.readouterr().out
    assert all(benchmark.name(record) in shown for record in results["configurations"])
    assert "no GPU" in shown


def test_gpu_grid_has_no_configuration_twice(benchmark):
    import importlib

    cases = importlib.reload(benchmark).grid("model", quick=False) + benchmark.with_unsloth()
    assert len({benchmark.name(c) for c in cases}) == len(cases)


def test_parts_of_a_gguf_file_are_joined_in_order(benchmark, tmp_path):
    for number in range(11):
        (tmp_path / f"model.Q4.gguf.part{number}").write_bytes(bytes([number]))
    (tmp_path / "scratch").mkdir()
    joined = benchmark.model_source(tmp_path, tmp_path / "scratch")
    assert joined.name == "model.Q4.gguf" and joined.read_bytes() == bytes(range(11))


@pytest.mark.parametrize("text, cleaned", [
    ("No file '/home/someone/model/a.bin'", "No file 'a.bin'"),
    ("in ~/x/y.py, line 3", "in y.py, line 3"),
    ("see https://example.org/a/b, and/or 3 / 4", "see https://example.org/a/b, and/or 3 / 4"),
])
def test_errors_lose_their_folders(benchmark, text, cleaned):
    assert benchmark.clean(text) == cleaned
