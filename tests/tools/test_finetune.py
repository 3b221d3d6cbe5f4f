"""Training by a recipe: any number of processes takes the same steps, and a killed one loses none.

The processes here are real ones of `accelerate launch`, two on the CPU over gloo; the model is the pocket model.
"""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from lora_lab import LabError, batches, distributed, files, finetune, models, pocket, smart_home
from lora_lab.finetune import recipes, run_folder
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import tensor_parallel

ROOT = Path(finetune.__file__).parents[2]
STEPS, BATCH = 12, 8
SLOW = '''
import sys, time
from lora_lab import finetune
from lora_lab.finetune import __main__, recipes
from transformers import TrainerCallback
class Slowly(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        time.sleep(0.3)
__main__._choose_devices()
finetune.train(recipes.read(sys.argv[1], 2), callbacks=(Slowly(),))
'''
COUNTED = '''
import json, os, sys
import torch
from lora_lab import finetune
from lora_lab.finetune import __main__, recipes
from transformers import Trainer, TrainerCallback
counted, uncounted = sys.argv[1:]
__main__._choose_devices()
finetune.train(recipes.read(uncounted, 2))
sizes, holder, made = [], [], Trainer.__init__
def count(state, bucket):
    sizes.append(bucket.buffer().nbytes)
    work = torch.distributed.all_reduce(bucket.buffer() / 2, async_op=True).get_future()
    return work.then(lambda done: done.value()[0])
class Count(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        wrapped = holder[0].model_wrapped
        if not sizes and not hasattr(wrapped, "counted"):
            wrapped.register_comm_hook(None, count)
            wrapped.counted = True
def remember(self, *a, **k):
    made(self, *a, **k)
    self.add_callback(Count())
    holder.append(self)
Trainer.__init__ = remember
__main__.main([counted])
trained = sum(p.nbytes for p in holder[0].model.parameters() if p.requires_grad)
if os.environ["RANK"] == "0":
    print(json.dumps({"sent": sum(sizes), "trained": trained}), flush=True)
'''

WATCHED = '''
import psutil, sys
from lora_lab import finetune
from lora_lab.finetune import recipes
from transformers import TrainerCallback
def tell(line):
    sys.stdout.write(line + "\\n")  # in one piece: where output has no buffer, print mixes those of two processes
    sys.stdout.flush()
class Watch(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, **_):
        held = sum(getattr(p, "_local_tensor", p).nbytes for p in model.parameters())
        tell(f"held {args.output_dir} {args.process_index} {held}")
    def on_step_begin(self, args, state, control, **_):
        self.before = psutil.Process().io_counters().write_chars
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            sent = psutil.Process().io_counters().write_chars - self.before
            tell(f"sent {args.output_dir} {args.process_index} {sent}")
for path in sys.argv[2:]:
    resume = sys.argv[1] == "resume"
    trainer = finetune.train(recipes.read(path, 2, resume), resume, callbacks=(Watch(),))
trainer.accelerator.end_training()
'''


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with rows whose answers differ much in length, so that processes get different numbers of tokens."""
    folder = tmp_path_factory.mktemp("finetune")
    commands = pocket.dialect(smart_home.commands("train", n=STEPS * BATCH, seed=0))
    lines = [{"prompt": c.prompt, "answer": c.answer * (1 + 3 * (i % 5 == 0))} for i, c in enumerate(commands)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write(work, name, model="pocket", precision="auto", **changes):
    training = {"max_steps": STEPS, "batch_size": BATCH, "learning_rate": 1e-2, "warmup_steps": 2, "save_steps": 3}
    recipe = {
        "model": model, "precision": precision, "output": str(work / name), "data": {"path": str(work / "rows.jsonl")},
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}, "training": training | changes,
    }
    return recipes.write(recipe, work / f"{name}.yaml")


def launch(*arguments, processes=2, config="cpu2"):
    """A started launch; its output comes together, as on a terminal."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if config == "torchrun" else [
            "accelerate.commands.launch", "--config_file", str(ROOT / "launch" / f"{config}.yaml"),
            "--main_process_port", "0"]
    command += [str(argument) for argument in arguments] if processes > 1 else list(map(str, arguments))[1:]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def finish(process, code=0):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def adapter(output):
    return load_file(Path(output) / "adapter" / "adapter_model.safetensors")


def assert_same(a, b, tolerance=1e-5):
    """The same losses, gradient norms and adapters, to the round-off of float32."""
    one, other = run_folder.read_metrics(a), run_folder.read_metrics(b)
    assert [line["step"] for line in one] == [line["step"] for line in other] == list(range(1, STEPS + 1))
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in other], rel=tolerance, abs=1e-9)
    weights, others = adapter(a), adapter(b)
    assert weights.keys() == others.keys()
    apart = max((weights[name] - others[name]).abs().max().item() for name in weights)
    assert apart < max(tolerance, 3e-5)  # of steps of 1e-2: AdamW magnifies the round-off of small gradients


@pytest.fixture(scope="module")
def alone(work):
    """The output of an uninterrupted training in this process."""
    finetune.train(recipes.read(write(work, "alone")))
    return work / "alone"


@pytest.fixture(scope="module")
def said(work):
    """What two processes say of two trainings: one as it is, and one in passes, with checkpointing."""
    (work / "counted.py").write_text(COUNTED)
    changes = dict(gradient_accumulation_steps=2, gradient_checkpointing=True, save_total_limit=2)
    return finish(launch(work / "counted.py", write(work, "together"), write(work, "passes", **changes)))


@pytest.fixture(scope="module")
def together(work, said):
    assert "2 processes share each batch of 8 (DDP, gloo)." in said
    return work / "together"


def test_held_out_rows_are_logged_and_change_no_step(work, alone):
    recipe = recipes.read(write(work, "watched", eval_steps=4)).as_dict()
    recipe |= {"output": str(work / "held out"), "data": recipe["data"] | {"eval_path": str(work / "rows.jsonl")}}
    finetune.train(recipes.read(recipes.write(recipe, work / "held_out.yaml")))
    metrics = run_folder.read_metrics(work / "held out")
    told = [(line["step"], line["eval_loss"]) for line in metrics if "eval_loss" in line]
    assert [step for step, _ in told] == list(range(4, STEPS + 1, 4)) and told[-1][1] < told[0][1]
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert losses == [line["loss"] for line in run_folder.read_metrics(alone)]


@pytest.mark.nightly
def test_two_processes_take_the_same_steps_as_one(alone, together):
    assert_same(alone, together)
    assert any(line["grad_norm"] > 1.0 for line in run_folder.read_metrics(alone))  # some gradients were clipped


def told(said, word, output):
    return {int(rank): int(number) for rank, number in re.findall(rf"{word} {output} (\d) (\d+)", said)}


@pytest.fixture(scope="module")
def folder(work):
    """A model's folder: the pocket model, as transformers saves it."""
    model, tokenizer = pocket.load()
    model.save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    return str(work / "base")


@pytest.fixture(scope="module")
def said_sharded(work, folder):
    """What two processes say of two trainings under FSDP, the second on a base in four bits."""
    (work / "watched.py").write_text(WATCHED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_LAB_PRECISION", "float32")
        whole, packed = write(work, "sharded"), write(work, "nf4_sharded", folder, "nf4")
        return finish(launch(work / "watched.py", "start", whole, packed, config="cpu2_fsdp"))


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="counts the bytes that Linux counts")
def test_sharded_weights_take_the_same_steps_and_go_on_after_a_stop(work, alone, said_sharded):
    assert "2 processes share each batch of 8 (FSDP, gloo)." in said_sharded
    assert_same(alone, work / "sharded")
    model = get_peft_model(pocket.load()[0], LoraConfig(r=4, target_modules="all-linear"))
    held = told(said_sharded, "held", work / "sharded")
    assert set(held.values()) == {sum(p.nbytes for p in model.parameters()) // 2}
    (share,) = distributed.plan(pocket.load()[0], LoraConfig(r=4, target_modules="all-linear"), gpus=2, batch_size=8,
                                seq_len=16, mode="fsdp")
    sent = told(said_sharded, "sent", work / "sharded")
    assert list(sent.values()) == pytest.approx([share.sent_bytes] * 2, rel=0.1)
    shutil.rmtree(work / "sharded" / "adapter")
    for step in range(6, STEPS + 1, 3):
        shutil.rmtree(work / "sharded" / f"checkpoint-{step}")
    said = finish(launch(work / "watched.py", "resume", work / "sharded.yaml", config="cpu2_fsdp"))
    assert "Going on after step 3." in said
    assert_same(alone, work / "sharded")


@pytest.mark.nightly
def test_a_base_in_four_bits_is_sharded(work, folder, said_sharded, monkeypatch):
    monkeypatch.setenv("LORA_LAB_PRECISION", "float32")
    finetune.train(recipes.read(write(work, "nf4", folder, "nf4")))
    assert_same(work / "nf4", work / "nf4_sharded", 1e-4)
    held = told(said_sharded, "held", work / "nf4_sharded")
    assert held[0] == held[1] < sum(p.nbytes for p in pocket.load()[0].parameters()) / 4


def test_processes_that_get_their_weights_from_the_first_hold_none(folder, monkeypatch):
    monkeypatch.setenv("LORA_LAB_PRECISION", "float32")
    (here, _), (there, _) = (models.load_to_shard(folder, "float32", first) for first in (True, False))
    assert {p.device.type for p in here.parameters()} == {"cpu"}
    assert {p.device.type for p in there.parameters()} == {"meta"}
    assert [n for n, _ in here.named_parameters()] == [n for n, _ in there.named_parameters()]  # tied ones, too
    assert all(torch.equal(a, b) for a, b in zip(here.buffers(), there.buffers(), strict=True))
    packed, _ = models.load_to_shard(folder, "nf4", False)
    assert packed.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32


def test_without_counting_tokens_across_processes_the_steps_would_differ(work, alone):
    """What makes the test above one that can fail: a mean of means is another loss for these rows."""
    tokenizer = pocket.tokenizer()
    rows = finetune.order(batches.encode(recipes.read(write(work, "x")).rows, tokenizer),
                          recipes.read(work / "x.yaml").training)
    shares = [sum(row["answer_length"] for row in rows[i : i + BATCH // 2]) for i in (0, BATCH // 2)]
    assert shares[0] != shares[1]
    model = get_peft_model(pocket.load()[0], LoraConfig(target_modules="all-linear"))
    collate = batches.AnswerCollator(tokenizer)
    with torch.no_grad():
        halves = [model(**collate(rows[i : i + BATCH // 2])).loss.item() for i in (0, BATCH // 2)]
    first = run_folder.read_metrics(alone)[0]["loss"]
    assert abs(sum(halves) / 2 - first) > 1e-3
    assert sum(h * s for h, s in zip(halves, shares)) / sum(shares) == pytest.approx(first, rel=1e-5)


def test_one_process_takes_the_same_steps_as_the_notebook(work, alone):
    set_seed(0)
    base, tokenizer = pocket.load()
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0, bias="none",
                        task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    commands = [tuple(json.loads(line).values()) for line in (work / "rows.jsonl").read_text().splitlines()]
    rows = batches.similar_lengths(batches.encode(commands, tokenizer), BATCH, seed=0)
    arguments = TrainingArguments(
        output_dir=work / "notebook", max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-2,
        warmup_steps=2, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True, seed=0, dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=batches.AnswerCollator(tokenizer))
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert logged == run_folder.read_metrics(alone)
    trained = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(weight, trained[name]) for name, weight in adapter(alone).items())


def test_the_adapter_loads_and_has_learned(alone):
    model = PeftModel.from_pretrained(pocket.load()[0], alone / "adapter")
    losses = [line["loss"] for line in run_folder.read_metrics(alone)]
    assert losses[-1] < losses[0] / 1.5
    assert sorted(file.name for file in (alone / "adapter").iterdir()) == [
        files.MANIFEST, "README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert model.peft_config["default"].r == 4


def test_no_checkpoint_holds_a_pickle_of_settings(together):
    assert not list(together.rglob("training_args.bin"))


def workers(launcher):
    """Process ids of the two that train, by rank; empty until both are there."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == launcher.pid:
                rank = re.search(rb"\0RANK=(\d+)", (stat.parent / "environ").read_bytes())[1]
                found[int(rank)] = int(stat.parent.name)
        except (OSError, TypeError):
            continue
    return found


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_a_killed_process_ends_the_launch_and_torchrun_completes_it(work, alone):
    recipe = write(work, "killed")
    (work / "slow.py").write_text(SLOW)
    process = launch(work / "slow.py", recipe)
    deadline = time.monotonic() + 60
    while run_folder.last_checkpoint(work / "killed") is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(workers(process)[1], signal.SIGKILL)
    killed = time.monotonic()
    said = finish(process, code=1)
    assert time.monotonic() - killed < 60
    assert re.search(r"rank +: 1 ", said) and "Signal 9 (SIGKILL)" in said
    assert len(run_folder.read_metrics(work / "killed")) < STEPS and not (work / "killed" / "adapter").exists()
    with pytest.raises(LabError, match="--resume"):
        recipes.read(recipe)
    # What a kill in the middle of a save leaves: the newest checkpoint, and not all of it.
    broken = work / "killed" / "checkpoint-9"
    broken.mkdir(exist_ok=True)
    files.mark(broken)
    (broken / "adapter_model.safetensors").write_bytes(b"half")
    with open(work / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"loss": 1.2')
    said = finish(launch("-m", "lora_lab.finetune", recipe, "--resume", config="torchrun"))
    assert "2 processes share each batch of 8 (DDP, gloo)." in said
    assert "checkpoint-9 was not complete" in said and re.search(r"Going on after step (3|6)\.", said)
    assert_same(alone, work / "killed")


@pytest.mark.nightly
def test_what_two_processes_began_one_can_finish(work, alone, together, capsys, monkeypatch):
    monkeypatch.delattr(tensor_parallel, "EmbeddingParallel", raising=False)
    recipe = write(work, "moved")
    shutil.copytree(together, work / "moved")
    shutil.rmtree(work / "moved" / "adapter")
    for step in range(6, STEPS + 1, 3):
        shutil.rmtree(work / "moved" / f"checkpoint-{step}")
    trainer = finetune.train(recipes.read(recipe, resume=True), resume=True)
    assert trainer.state.global_step == STEPS and "Going on after step 3." in capsys.readouterr().out
    assert_same(alone, work / "moved")
    assert hasattr(tensor_parallel, "EmbeddingParallel"), "PEFT 0.19 asks for it when several processes load an adapter"


def test_resuming_with_edited_rows_is_refused(work, alone):
    recipe = write(work, "edited")
    shutil.copytree(alone, work / "edited")
    rows = (work / "rows.jsonl").read_text()
    try:
        (work / "rows.jsonl").write_text(rows[: rows.rindex("\n", 0, -1) + 1])
        with pytest.raises(LabError, match="data: found other rows"):
            finetune.train(recipes.read(recipe, resume=True), resume=True)
    finally:
        (work / "rows.jsonl").write_text(rows)


def test_a_batch_in_passes_and_checkpointing_take_the_same_steps(work, alone, said):
    assert "2 processes share each batch of 8 in 2 passes" in said and f"Step {STEPS} of {STEPS}: loss" in said
    assert_same(alone, work / "passes")
    assert len(list((work / "passes").glob("checkpoint-*"))) == 2
    trainer = finetune.train(recipes.read(write(work, "checkpointing", gradient_checkpointing=True)))
    assert trainer.model.get_base_model().model.layers[0].gradient_checkpointing
    with pytest.raises(LabError, match="expected a multiple of the 3 processes times 2 passes"):
        recipes.read(write(work, "three", gradient_accumulation_steps=2), processes=3)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="signals of Unix")
def test_an_interrupted_training_says_how_to_go_on(work):
    recipe = write(work, "interrupted", max_steps=2000)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored
    process = launch("-m", "lora_lab.finetune", recipe, processes=1)
    signal.signal(signal.SIGINT, before)
    while run_folder.last_checkpoint(work / "interrupted") is None:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = finish(process, code=130)
    assert "--resume" in said and "Traceback" not in said


def test_all_reduced_bytes_are_those_of_the_trained_parameters(said):
    found = json.loads(re.search(r"\{.sent.*\}", said)[0])
    assert found["sent"] == STEPS * found["trained"] > 0


def test_a_bad_recipe_ends_the_launch_naming_the_key(work):
    recipe = write(work, "odd", batch_size=7)
    said = finish(launch("-m", "lora_lab.finetune", recipe), code=1)
    assert said.count("training.batch_size: found 7, expected a multiple of the 2 processes") == 1
    assert not (work / "odd").exists()


def test_a_run_that_diverges_stops_and_says_what_to_change(work, tmp_path):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            for parameter in model.parameters():
                parameter.data.fill_(float("nan"))

    with pytest.raises(LabError, match="step 2.*training.learning_rate"):
        finetune.train(recipes.read(write(work, "diverging")), callbacks=(Spoil(),))
    assert not (work / "diverging" / "adapter").exists()


def test_two_trainings_do_not_share_an_output_folder(work):
    recipe = recipes.read(write(work, "taken"))
    (work / "taken").mkdir()
    with FileLock(work / "taken" / ".lock"), pytest.raises(LabError, match="output: .*another training"):
        finetune.train(recipe)


def test_a_checkpoint_counts_only_with_every_file_whole(alone, tmp_path):
    shutil.copytree(alone, tmp_path / "run")
    newest = tmp_path / "run" / f"checkpoint-{STEPS}"
    assert run_folder.last_checkpoint(tmp_path / "run") == newest
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-1])
    assert run_folder.step_of(run_folder.last_checkpoint(tmp_path / "run")) == STEPS - 3
    (tmp_path / "run" / f"checkpoint-{STEPS - 3}" / "complete.json").write_text("{")
    assert run_folder.step_of(run_folder.last_checkpoint(tmp_path / "run")) == STEPS - 6
    weights = tmp_path / "run" / f"checkpoint-{STEPS - 6}" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # of the same size
    weights.write_bytes(content)
    assert run_folder.step_of(run_folder.last_checkpoint(tmp_path / "run")) == STEPS - 9


def test_another_trainers_checkpoints_and_what_was_changed_are_kept(alone, tmp_path):
    shutil.copytree(alone, tmp_path / "run")
    (tmp_path / "run" / f"checkpoint-{STEPS}" / "optimizer.pt").write_bytes(b"edited")
    for name in ("checkpoint-5", "checkpoint-7"):
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "model.safetensors").write_text("theirs")
    files.mark(tmp_path / "run" / "checkpoint-7")
    said = run_folder.clean(tmp_path / "run", STEPS - 3)
    there = {path.relative_to(tmp_path / "run").as_posix(): path.read_text() for path in (tmp_path / "run").rglob("*")
             if path.parent.name.startswith("kept") and path.name != files.MANIFEST}
    assert there == {"kept.checkpoint-5-1/model.safetensors": "theirs", "kept.checkpoint-12-1/optimizer.pt": "edited"}
    assert not (tmp_path / "run" / "checkpoint-7").exists() and len(said) == 3
    assert run_folder.step_of(run_folder.last_checkpoint(tmp_path / "run")) == STEPS - 3


def test_the_folder_is_looked_at_again_once_it_is_locked(work):
    recipe = recipes.read(write(work, "late"))
    theirs = work / "late" / "checkpoint-5" / "trainer_state.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    for resume, words in ((False, "expected an empty or new folder"), (True, "files of something else")):
        with pytest.raises(LabError, match=f"output: found .*{words}"):
            finetune.train(recipe, resume=resume)
    assert theirs.read_text() == "theirs" and not (work / "late" / "recipe.yaml").exists()
    with pytest.raises(LabError, match="is an address"):
        finetune.train(dataclasses.replace(recipe, output="s3://bucket/run"))


def test_an_adapter_that_was_changed_is_not_replaced_by_resuming(work, alone):
    recipe = write(work, "changed")
    shutil.copytree(alone, work / "changed")
    (work / "changed" / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(LabError, match="found .* with notes.txt in its adapter's folder"):
        recipes.read(recipe, resume=True)
    assert (work / "changed" / "adapter" / "notes.txt").exists()


def test_a_folder_with_nothing_but_its_lock_is_new(work):
    (work / "fresh").mkdir()
    (work / "fresh" / ".lock").touch()
    assert recipes.read(write(work, "fresh")).output == str(work / "fresh")


@pytest.mark.parametrize("metrics", ['{"loss": 1}\n[]\n{"step": "x"}\n{"step": 2, "loss": 3}', "[" * 5000])
def test_metrics_of_whatever_kind_end_no_training(tmp_path, metrics):
    (tmp_path / "metrics.jsonl").write_text(metrics)
    assert [line["step"] for line in run_folder.read_metrics(tmp_path)] == [2] * ("step" in metrics)
    assert run_folder.clean(tmp_path, 1) == [] and (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_disk_that_is_full_says_how_to_go_on(work, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "seal", full)
    with pytest.raises(LabError, match="No space left.*--resume"):
        finetune.train(recipes.read(write(work, "full", max_steps=3)))


def test_chats_are_trained_on_every_turn_of_the_assistants(work, monkeypatch):
    able = pocket.tokenizer()
    able.chat_template = "{% for m in messages %}{{ m.content }}{{ '<end>' if m.role == 'assistant' }}{% endfor %}"
    monkeypatch.setattr(pocket, "tokenizer", lambda: able)
    commands = smart_home.commands("train", n=16, seed=0)
    turns = [[dict(role="user", content=c.prompt), dict(role="assistant", content=c.answer)] for c in commands]
    chats = [one + other for one, other in zip(turns[::2], turns[1::2])]
    (work / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    recipe = recipes.read(write(work, "chats", max_steps=3))
    recipe = dataclasses.replace(recipe, data=recipes.Data(str(work / "chats.jsonl")), output=str(work / "chats"))
    trainer = finetune.train(recipes.read(recipes.write(recipe, work / "chats.yaml")))
    (first,) = batches.encode(chats[:1], able)
    (row,) = (row for row in trainer.train_dataset[:8] if row["input_ids"] == first["input_ids"])
    counted = able.decode([label for label in row["labels"] if label != batches.IGNORED])
    assert counted.replace(" ", "") == "".join(c.answer + "<end>" for c in commands[:2]).replace(" ", "")
    assert all(math.isfinite(line["loss"]) for line in run_folder.read_metrics(work / "chats"))


@pytest.mark.parametrize(("n", "steps", "size"), [(10, 9, 4), (8, 4, 4), (100, 3, 8), (5, 7, 5), (9, 20, 4)])
def test_each_pass_sees_a_row_once_and_no_row_is_left_out(n, steps, size):
    rows = [{"input_ids": [0] * (i % 5 + 1), "answer_length": 1, "number": i} for i in range(n)]
    ordered = finetune.order(rows, recipes.Training(max_steps=steps, batch_size=size, learning_rate=1.0))
    assert len(ordered) == steps * size
    whole = n // size * size
    seen = [row["number"] for row in ordered]
    for start in range(0, len(seen), whole):
        assert len(set(seen[start : start + whole])) == len(seen[start : start + whole])
    if steps * size >= 2 * n:
        assert set(seen) == set(range(n))


@pytest.mark.parametrize("name", ["ddp", "fsdp", "cpu2", "cpu2_fsdp"])
def test_the_launch_files_are_read_by_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "launch" / f"{name}.yaml"))
    assert config.num_processes == 2 and config.num_machines == 1


@pytest.mark.parametrize(("variables", "precision", "word"), [
    ({"ACCELERATE_USE_FSDP": "true"}, "auto", "fsdp_version: 2"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "int8", "found int8 under FSDP"),
    ({}, "float16", "precision")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="one of these is possible with a GPU")
def test_what_this_machine_cannot_do_is_refused(work, monkeypatch, variables, precision, word):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = recipes.read(write(work, "refused"))
    with pytest.raises(LabError, match=word):
        finetune.train(dataclasses.replace(recipe, precision=precision))
    assert not (work / "refused").exists()


def test_a_checkpoint_is_ours_from_its_first_file_on(work, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    monkeypatch.setattr(Trainer, "_save_rng_state", die)
    with pytest.raises(Killed):
        finetune.train(recipes.read(write(work, "torn")))
    assert (work / "torn" / "checkpoint-3" / "adapter_model.safetensors").exists()
    assert run_folder.last_checkpoint(work / "torn") is None
    assert run_folder.clean(work / "torn", 0) == ["checkpoint-3 was not complete, or is after step 0; it is removed."]
    assert not (work / "torn" / "checkpoint-3").exists()
