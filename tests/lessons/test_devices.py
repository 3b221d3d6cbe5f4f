"""The course on a GPU, without one: what mixes devices is found in lessons and package by a pretend GPU."""

import contextlib
import copy
import functools
import gc
import itertools
import re
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
import transformers
import twins
from lora_lab import batches, cache, compare, load_base, memory, merging, meta_model, models, pocket
from lora_lab.course.exercises import alpha, eight, fleet, math, own
from lora_lab.doctor import trial
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from pretend_gpu import GPU, on_gpu, pretend_gpu, put

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.py"))
RAISED = (RuntimeError, TypeError)
BROKEN = (TypeError, AttributeError, ImportError)  # no cell raises these because a model is small


@pytest.fixture
def gpu():
    with pretend_gpu() as mistakes:
        yield mistakes


@pytest.mark.parametrize("mixed", [
    lambda here, there, at: here + there, lambda here, there, at: here.add_(there),
    lambda here, there, at: there * here[0],
    lambda here, there, at: torch.equal(here, there), lambda here, there, at: torch.allclose(here, there),
    lambda here, there, at: torch.cat([here, there]), lambda here, there, at: torch.stack([here[0], there[0]]),
    lambda here, there, at: torch.where(there > 0, here, here), lambda here, there, at: there[at.to(GPU)],
    lambda here, there, at: here.index_put_((at,), there[:2]), lambda here, there, at: here.numpy(),
    lambda here, there, at: torch.nn.Linear(3, 3, device=GPU)(there),
    lambda here, there, at: torch.nn.Linear(3, 3)(there.to(GPU)),
])
def test_what_mixes_devices_raises(gpu, mixed):
    with pytest.raises(RAISED):
        mixed(torch.ones(3, device=GPU), torch.ones(3), torch.tensor([0, 1]))
    assert len(gpu) == 1 and gpu[0].line_in(__file__)


def test_what_cuda_allows_is_no_mistake(gpu):
    here, there = torch.ones(3, device=GPU), torch.ones(3, requires_grad=True)
    here[:2] = there.detach()[:2]
    here[torch.tensor([0, 1])] = 0.5
    here.copy_(there.detach())
    assert (here * torch.tensor(2.0))[torch.tensor([True, False, True])].cpu().numpy().tolist() == [2.0, 2.0]
    (there.to(GPU) * here).sum().backward()
    assert there.grad.device.type == "cpu" and not on_gpu(there.grad) and not gpu


def test_the_mark_stays(gpu):
    here = torch.ones(3, 3, device=GPU)
    layer = torch.nn.Linear(3, 3).to(GPU)
    kept = [here.T, here[0], here.data, here.double(), here.new_zeros(2), torch.zeros_like(here), here.new_tensor([1]),
            torch.nn.Parameter(here), copy.deepcopy(layer).weight, layer.half().weight, here.to(here)]
    assert {tensor.device for tensor in kept} == {GPU}
    assert torch.ones(3).device == here.cpu().device == here.to("cpu").device == torch.device("cpu")


@pytest.mark.parametrize("precision", ["float32", "int8", "nf4"])
def test_models_of_all_precisions_are_loaded_trained_and_merged_there(gpu, small, precision):
    model, tokenizer = load_base(str(small), precision, quiet=True)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    ids = tokenizer("The ferry", return_tensors="pt")["input_ids"]
    with pytest.raises(RuntimeError):
        model(input_ids=ids)
    found = len(gpu)
    model.train()(input_ids=ids.to(model.device), labels=ids.to(model.device)).loss.backward()
    with warnings.catch_warnings(action="ignore"):
        merged = copy.deepcopy(model).merge_and_unload()
    assert merged.device == model.device == GPU and len(gpu) == found


def test_trainer_trains_there(gpu, tiny_model, tmp_path):
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 2
    arguments = transformers.TrainingArguments(str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True)
    transformers.Trainer(tiny_model, arguments, train_dataset=rows).train()
    assert tiny_model.device == GPU and not gpu


@pytest.mark.parametrize("where", ["model", "deployed"])
def test_audit_compares_models_on_two_devices(gpu, tiny_model, where):
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model, config).eval()
    deployed = copy.deepcopy(model).merge_and_unload()
    expected = merging.audit(model, [[5, 6, 7]], deployed=deployed, max_new_tokens=2)
    put(model if where == "model" else deployed)
    assert str(merging.audit(model, [[5, 6, 7]], deployed=deployed, max_new_tokens=2)) == str(expected)
    assert expected.safe and not gpu


def test_audit_finds_another_base_on_another_device(gpu, tiny_model):
    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    deployed = copy.deepcopy(model)
    put(model)
    with torch.no_grad():
        deployed.get_base_model().model.norm.weight.mul_(2)
    assert "Another base" in str(merging.audit(model, [[5, 6, 7]], deployed=deployed, max_new_tokens=1)) and not gpu


def test_numbers_on_any_device_are_compared(gpu):
    compare("math/thin_weight", torch.tensor(3.0, device=GPU))


def test_memory_of_a_model_on_the_cpu_is_counted_where_there_is_a_gpu(tiny_model, monkeypatch):
    for name in ("is_available", "synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: name == "is_available")
    ids = torch.ones(1, 4, dtype=torch.long)
    with memory.measure(tiny_model) as used:
        tiny_model(input_ids=ids, labels=ids).loss.backward()
    assert used.peak_tensor_bytes > 1000 and used.peak_cuda_bytes == 0


def test_clock_waits_for_the_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    assert models.clock() <= models.clock() and len(waited) == 2


def test_exercises_take_what_is_on_the_gpu(gpu):
    def merged(W, A, B, alpha, r):
        return (W + alpha / r * B @ A).to(GPU)

    def absmax(weights, block):
        blocks = weights.to(GPU).reshape(len(weights), -1, block)
        scales = blocks.abs().amax(-1, keepdim=True) / 127
        return (blocks / scales).round().to(torch.int8).reshape(weights.shape), scales.squeeze(-1)

    assert math.merged_weight(merged).solved and eight.absmax(absmax).solved and not gpu


@pytest.mark.parametrize("twin", LESSONS, ids=lambda twin: twin.stem)
def test_timers_wait_for_the_gpu(twin):
    """Other processes wait for their own GPU."""
    timed = [cell for cell in twins.cells(twin) if re.search(r"perf_counter|time\.time\(|monotonic", cell)]
    assert not [cell for cell in timed if "process.wait()" not in cell], "models.clock() does"


@pytest.mark.parametrize("twin", LESSONS, ids=lambda twin: twin.stem)
def test_tensors_say_where_they_are_made(twin):
    lines = [line for cell in twins.cells(twin) for line in cell.splitlines()
             if re.search(r"torch\.(randn?|randint|zeros|ones|empty|arange|tensor|full|eye|linspace)\(", line)]
    assert not [line for line in lines if "device=" not in line]


PLANTS = {  # what puts a tensor on the model's device, and what is left of it
    "00_first_adapter": [(".to(fresh.device)", "")],
    "01_low_rank_math": [(".to(base.device)", ""), (", device=base.device", "")],
    "02_config_and_targets": [(".to(base.device)", "")],
    "03_train_in_8bit": [(", device=layer.weight.device", "")],
    "04_memory": [(", device=model.device)\n    labels", ")\n    labels"), ("256, device=base.device", "256"),
                  ("128), device=base.device", "128)")],
    "05_alpha_scaling": [("with adapters.", "with trained(torch.ones(1, 4, dtype=torch.long)) and adapters.")],
    "06_merge_and_ship": [(", device=W.device", ""), (".to(model.device)", ""), (", device=base.device", "")],
    "07_past_one_gpu": [("    trainer.train(), trainer.save_model()\n",
                         "    trainer.train(); model(torch.ones(1, 4, dtype=torch.long))\n")],
    "08_your_own_data": [("first + second[\"input_ids\"], device=base.device", "first + second[\"input_ids\"]")],
    "09_variants": [("seconds = trainer.train()",
                     "model(torch.ones(1, 4, dtype=torch.long)); seconds = trainer.train()")],
}


def planted(twin: Path, folder: Path) -> tuple[Path, dict[int, int]]:
    """Write the twin with copies of some cells before them, a mistake in each; return the copies' numbers and lines."""
    sources, places = twins.fewer(twins.cells(twin), twin.stem), {}
    for old, new in PLANTS[twin.stem]:
        at = next(i for i, source in enumerate(sources) if old in source)
        places = {number + (number > at): line for number, line in places.items()}
        places[at + 1] = sources[at][: sources[at].index(old)].count("\n") + 1
        sources.insert(at, sources[at].replace(old, new, 1))
    written = folder / twin.name
    written.write_text("".join(f"# %%\n{source}\n" for source in sources), encoding="utf-8")
    return written, places


@contextlib.contextmanager
def cheap(small, monkeypatch):
    """What meets no device is left out: plans on paper, and other processes, which are not seen.

    So some cells end early, by errors of their own; what is asked is where their tensors were.
    """
    def unseen(*_, **__):
        raise OSError("other processes are not seen")

    tokenizer = functools.cache(transformers.AutoTokenizer.from_pretrained)
    bare = meta_model.without_weights(transformers.AutoConfig.from_pretrained(small))

    with twins.quick(), monkeypatch.context() as patch:  # undone before what `quick` patched
        for name, size in dict(STEPS=1, TOKENS=2, ROWS=1, COLUMNS=8, LAYERS=1, LEARNING_LAYERS=2).items():
            patch.setattr(twins, name, size)
        patch.setenv("LORA_LAB_MEMORY_GB", "16")  # Lesson 1 takes its other path in test_notebooks
        patch.setattr(cache, "model_folder", lambda: small)
        patch.setattr(Figure, "savefig", lambda *_, **__: None)  # what it draws was on the CPU before
        patch.setattr(gc, "collect", lambda *_: 0)  # small models give nothing back, and it takes half a second
        stream, collate = pocket.stream, batches.AnswerCollator.__call__
        patch.setattr(pocket, "stream", lambda *args, **options: itertools.islice(stream(*args, **options), 1))
        patch.setattr(batches.AnswerCollator, "__call__", lambda self, rows: collate(self, rows[:twins.ROWS]))
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda source, **_: tokenizer(str(source)))
        planned = memory.Plan(**dict.fromkeys(memory.Plan.__dataclass_fields__, 1))
        patch.setattr(memory, "plan", lambda *_, **__: planned)
        patch.setattr(meta_model, "without_weights", lambda _: bare)  # for lora_lab.distributed
        patch.setattr(subprocess, "Popen", unseen)
        patch.setattr(trial, "ROWS", 2)
        patch.setattr(own, "_STEPS", 1)  # the drills' trainings, of the pocket model
        yield
    for known in (alpha._loss, alpha._losses, fleet._fleet_memory):
        known.cache_clear()  # of models that hardly trained, and of plans left out


LONG = ("02", "03", "05", "06", "08", "09")  # half a minute each, and more
EACH = [pytest.param(twin, marks=[pytest.mark.nightly] * twin.stem.startswith(LONG), id=twin.stem) for twin in LESSONS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("twin", EACH)
def test_only_planted_tensors_are_left_on_the_cpu(twin, small, tmp_path, monkeypatch):
    """A lesson runs with copies of some cells in which a tensor is left on the CPU: these are reported, no others."""
    written, places = planted(twin, tmp_path)
    with cheap(small, monkeypatch), pretend_gpu() as mistakes:
        ran = twins.execute(written, tmp_path)
    broken = [f"code cell {cell.number} (plants counted): {cell.error!r}" for cell in ran
              if isinstance(cell.error, BROKEN)]
    assert not broken, "what these cells call is there no longer, or takes other arguments"
    found = set()
    for mistake in mistakes:
        lines = [(int(frame.filename.split()[-1].rstrip(">")), frame.lineno)
                 for frame in mistake.stack if frame.filename.startswith(f"<{twin.stem}, cell")]
        number, line = lines[-1]
        assert number in places, f"{twin.stem}, code cell {number} (plants counted), line {line}: {mistake.text}"
        found |= {number for number, line in lines if line >= places.get(number, line + 1)}
    assert found == places.keys()
