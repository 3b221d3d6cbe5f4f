"""The doctor: the right cause first for faults made in trainings, no alarm for sound ones, nothing changed or run."""

import copy
import json
import pickle
import re
from pathlib import Path

import doctor_cases
import pytest
import torch
from lora_lab import LabError, adapters, data, doctor, pocket
from lora_lab.doctor import __main__ as command
from lora_lab.doctor import on_disk, trial
from lora_lab.finetune import recipes
from lora_lab.targets import layer_names
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

SHORT = [make for make in doctor_cases.FAULTS if make.__name__ in {
    "never_trained", "partly_trained", "diverged_to_nan", "rank_edited", "merged_twice", "rounded_base", "tokens_lost",
    "end_masked", "end_missing", "nothing_counted", "labels_shifted", "gradient_cut_off", "float16_gradients",
    "cut_short", "dead", "rate_too_low"}]


@pytest.fixture
def short(monkeypatch):
    """Trainings that make these faults as well as whole ones do."""
    monkeypatch.setattr(doctor_cases, "STEPS", (20,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return doctor_cases.Training(tmp_path_factory.mktemp("run"), 0, max_steps=60).noted()


@pytest.fixture
def adapter(run, tmp_path):
    """A copy of a sound adapter, to be spoilt."""
    for file in run.adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(adapter: Path, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("make", SHORT, ids=lambda make: make.__name__)
def test_the_right_cause_comes_first(make, tmp_path, short):
    """All kinds with ten seeds each: benchmarks/doctor_cases.py."""
    found = doctor.examine(**make(tmp_path, 1)).findings
    assert [finding.cause for finding in found][:1] == [doctor_cases.FAULTS[make]], found


@pytest.mark.parametrize("seed", (1, 2, 24))
def test_a_sound_adapter_gets_no_alarm(seed, tmp_path):
    assert not doctor.examine(**doctor_cases.sound(tmp_path, seed)).findings


def test_a_sound_adapter_with_all_its_parts(run):
    parts = dict(adapter=run.adapter, base=run.original, log=run.log, data=run.rows, tokenizer=run.tokenizer,
                 prompts=[pair.prompt for pair in run.pairs[:5]])
    found = doctor.examine(**parts)
    assert not found.findings and not found.untold
    assert "Nothing found" in str(found) and "a log of 60 losses" in str(found)


def test_rows_that_were_read_from_a_file_are_taken(run):
    read = data.read(data.example("support"))
    assert not doctor.examine(data=read, tokenizer=run.tokenizer).findings
    texts = [prompt + answer for prompt, answer in read.pairs]
    found = doctor.examine(data=texts, tokenizer=run.tokenizer)
    assert [finding.cause for finding in found.findings] == ["prompt counted", "end not learned"]


def test_chats_are_examined_as_the_template_writes_them(run, tmp_path):
    able = copy.deepcopy(run.tokenizer)
    able.chat_template = "{% for m in messages %}{{ m.content }}{{ '<end>' if m.role == 'assistant' }}{% endfor %}"
    chat = [dict(role="user", content="the light"), dict(role="assistant", content=" kitchen"),
            dict(role="user", content="on"), dict(role="assistant", content=" bedroom")]
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 9)
    for rows in (data.read(tmp_path / "chats.jsonl"), [chat] * 9, [{"messages": chat}] * 9):
        assert not doctor.examine(data=rows, tokenizer=able).findings
    able.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert [f.cause for f in doctor.examine(data=[chat] * 9, tokenizer=able).findings] == ["end not learned"]


@pytest.mark.parametrize("key", ["completion_mask", "assistant_masks"])
def test_masks_of_trl_are_labels(run, key):
    rows = [{"input_ids": row["input_ids"], key: [label != -100 for label in row["labels"]]}
            for row in doctor_cases.labelled(run.rows[:20])]
    assert not doctor.examine(data=rows, tokenizer=run.tokenizer).findings
    for row in rows:
        row[key] = [True] * len(row[key])
    assert doctor.examine(data=rows, tokenizer=run.tokenizer).findings[0].cause == "prompt counted"


def test_an_adapter_that_adds_nothing_is_not_blamed_on_its_base(run, adapter):
    path = adapter / "adapter_model.safetensors"
    save_file({name: t * 0 if "lora_B" in name else t for name, t in load_file(path).items()}, path)
    (adapter / adapters.BASE).unlink()
    found = doctor.examine(adapter=adapter, base=run.original, log=run.log, data=run.rows)
    assert [finding.cause for finding in found.findings] == ["never trained"]


def test_an_edited_alpha_is_told_by_three_witnesses(run, adapter):
    edit(adapter, lora_alpha=json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] * 4)
    assert "base_model.json" in doctor.examine(adapter=adapter).findings[0].evidence
    both = doctor.examine(adapter=adapter, base=run.original, data=run.rows).findings[0]
    assert both.cause == "config edited" and "base_model.json" in both.evidence and "rows the loss is" in both.evidence
    (adapter / adapters.BASE).unlink()
    assert not doctor.examine(adapter=adapter).findings, "nothing in the folder tells it"
    assert doctor.examine(adapter=adapter, base=run.original, data=run.rows).findings[0].cause == "config edited"
    checkpoint = adapter.parent / "checkpoint-60"
    checkpoint.mkdir()
    (checkpoint / "adapter_config.json").write_text((run.adapter / "adapter_config.json").read_text())
    assert "a checkpoint beside it" in doctor.examine(adapter=adapter).findings[0].evidence


def test_a_log_that_counted_other_tokens_blames_no_base(run, adapter):
    """Programs count the prompts or not: an end of the training between both losses is no evidence."""
    (adapter / adapters.BASE).unlink()
    rows = [row | {"labels": [token if label == -100 else -100 for token, label in zip(*row.values())]}
            for row in doctor_cases.labelled(run.rows[:16])]
    with trial._loaded(on_disk.read(adapter)[0], run.original) as model:
        own, all_tokens = trial._loss(model, rows), trial._loss(model, [r | {"labels": r["input_ids"]} for r in rows])
    end = ((own + all_tokens) / 2 - 0.2) / 2
    log = [dict(step=i, loss=max(end, 4 - i / 5)) for i in range(40)]
    assert own > 2 * end + 0.2 > all_tokens
    found = doctor.examine(adapter=adapter, base=run.original, data=rows, log=log).findings
    assert "other base" not in [finding.cause for finding in found]


def test_the_base_is_left_as_it_was(run):
    base = copy.deepcopy(run.original).train()
    base.model.embed_tokens.weight.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in base.named_parameters()}
    modules = [name for name, _ in base.named_modules()]
    doctor.examine(adapter=run.adapter, base=base, data=run.rows[:4])
    assert [name for name, _ in base.named_modules()] == modules and base.training
    assert all(torch.equal(p, before[name][0]) and p.requires_grad == before[name][1]
               for name, p in base.named_parameters())


@pytest.mark.parametrize("changes", [
    dict(alpha_pattern={r"(\w+\.?)+!": 4}), dict(rank_pattern={r"(\w+\.?)*)(X": 8}),
    dict(target_modules=r"(\w+\.?)+!"), dict(modules_to_save=[r"(\w+\.?)*X"]),
])
def test_a_pattern_that_never_ends_is_told(changes, adapter, run, monkeypatch):
    monkeypatch.setattr(layer_names, "SECONDS", 0.5)
    edit(adapter, **changes)
    (found,) = doctor.examine(adapter=adapter, base=run.original, data=run.rows[:4]).findings
    assert found.cause == "not an adapter" and "patterns" in found.evidence


def rename(adapter, change):
    path = adapter / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)


def test_an_adapters_name_in_the_keys_is_read_as_peft_reads_it(adapter, run):
    rename(adapter, lambda name: name.replace(".weight", ".default.weight"))
    assert not doctor.examine(adapter=adapter, base=run.original, data=run.rows[:4]).findings
    path = adapter / "adapter_model.safetensors"
    save_file({name: t * 0 if "lora_B" in name else t for name, t in load_file(path).items()}, path)
    assert doctor.examine(adapter=adapter).findings[0].cause == "never trained"


@pytest.mark.parametrize("change", [
    lambda name: name.removeprefix("base_model.model."), lambda name: f"module.{name}",
    lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
], ids=["bare", "module", "compiled"])
def test_names_of_which_peft_loads_nothing_are_told(change, adapter, run):
    rename(adapter, change)
    (found,) = doctor.examine(adapter=adapter, base=run.original, data=run.rows[:4]).findings
    assert found.cause == "not an adapter" and "PEFT loads nothing" in found.evidence


def saved(folder, base, steps=3, **config):
    """An adapter of another kind, trained by hand for a few steps."""
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**dict(r=4, lora_alpha=8, task_type="CAUSAL_LM") | config))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(steps):
        model(input_ids=torch.arange(3, 13)[None], labels=torch.arange(3, 13)[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return folder / "adapter"


@pytest.mark.parametrize("config", [
    dict(target_modules=["q_proj", "v_proj"], init_lora_weights="pissa"),
    dict(target_modules=["q_proj", "v_proj"], init_lora_weights="olora"),
    dict(target_modules=["q_proj"], layer_replication=[[0, 2], [1, 4]]),
], ids=["pissa", "olora", "replicated"])
def test_adapters_that_change_their_base_when_they_are_loaded_leave_it_here(config, run, tmp_path):
    base = copy.deepcopy(run.original)
    folder = saved(tmp_path, base, **config)
    assert not doctor.examine(adapter=folder, base=base, data=run.rows[:4]).findings
    assert all(torch.equal(own, p) for own, p in zip(base.parameters(), run.original.parameters()))
    assert len(list(base.modules())) == len(list(run.original.modules()))


def test_an_adapter_of_experts_parameters_fits_its_base(tmp_path):
    base = Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=4, moe_intermediate_size=8))
    folder = saved(tmp_path, base, target_modules=["q_proj"],
                   target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    assert not doctor.examine(adapter=folder, base=base, data=[{"input_ids": [*range(3, 13)]}]).findings[1:]


@pytest.mark.parametrize("changes, shaped, said", [
    (dict(alpha_pattern=["q_proj"]), None, "alpha_pattern in adapter_config.json is a list"),
    (dict(rank_pattern="none"), None, "rank_pattern in adapter_config.json is a str"),
    (dict(alpha_pattern={"(": 4}), None, "'\\(': 4, expected an expression"),
    (dict(alpha_pattern={"q_proj": None}), None, "'q_proj': None"),
    ({}, lambda name, t: t.flatten() if "lora_B" in name else t, "has the shape .*, and a factor has two dimensions"),
    ({}, lambda name, t: t[:0] if "lora_B" in name else t, "has the shape .*0, .*and a factor has two dimensions"),
    ({}, lambda name, t: t.sum() if "layers.0" in name and "lora_A" in name else t, "two dimensions"),
    ({}, lambda name, t: t[:, :1].clone() if "lora_B" in name else t, "they do not multiply"),
])
def test_what_no_program_wrote_is_told(changes, shaped, said, adapter, run):
    edit(adapter, **changes)
    if shaped:
        path = adapter / "adapter_model.safetensors"
        save_file({name: shaped(name, tensor).contiguous() for name, tensor in load_file(path).items()}, path)
    (found,) = doctor.examine(adapter=adapter, base=run.original).findings
    assert found.cause == "not an adapter" and re.search(said, found.evidence)


def test_ranks_of_adalora_are_lists(adapter):
    edit(adapter, peft_type="ADALORA", rank_pattern={"model.layers.0.self_attn.q_proj.lora_E": [True, False]})
    assert [finding.cause for finding in doctor.examine(adapter=adapter).findings] == ["not servable"]


def test_the_folder_of_a_training_stands_for_its_last_checkpoint(adapter, tmp_path):
    for step in (9, 10):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (checkpoint / name).write_bytes((adapter / name).read_bytes())
        history = [dict(step=i, loss=3 - i / 40) for i in range(step)]
        (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert "a log of 10 losses" in str(doctor.examine(adapter=tmp_path / "run"))
    edit(tmp_path / "run" / "checkpoint-10", lora_alpha=999)
    assert "in a checkpoint beside it" in doctor.examine(adapter=tmp_path / "run").findings[0].evidence


def test_another_programs_adapter_is_named(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "pytorch_lora_weights.safetensors")
    (adapter / "adapter_config.json").unlink()
    assert "diffusers" in doctor.examine(adapter=adapter).findings[0].evidence


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was opened')",)


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt"])
def test_no_pickle_is_opened(adapter, name):
    (adapter / name).write_bytes(pickle.dumps(Bomb()))
    assert not doctor.examine(adapter=adapter).findings
    if name == "adapter_model.bin":
        (adapter / "adapter_model.safetensors").unlink()
        assert doctor.examine(adapter=adapter).findings[0].cause == "pickled weights"


def test_code_in_a_tokenizer_is_not_run(adapter):
    (adapter / "tokenizer.json").write_text("{}")
    (adapter / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (adapter / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    assert not doctor.examine(adapter=adapter).findings


@pytest.mark.parametrize("spoil, cause", [
    (lambda name, t: t * 0 if "lora_B" in name and "layers.3" in name else t, "partly trained"),
    (lambda name, t: t * 1e-9 if "lora_B" in name else t, "hardly moved"),
    (lambda name, t: t * 1e4 if "lora_B" in name else t, "exploded"),
    (lambda name, t: t / 0 if "layers.1" in name and "lora_B" in name else t, "not finite"),
])
def test_weights_are_read(adapter, spoil, cause):
    path = adapter / "adapter_model.safetensors"
    save_file({name: spoil(name, tensor) for name, tensor in load_file(path).items()}, path)
    assert doctor.examine(adapter=adapter).findings[0].cause == cause


@pytest.mark.parametrize("text, cause", [
    ('{"loss": 0.0, "grad_norm": NaN}\n' * 9, "loss of zero"),
    ("{'loss': '2.1', 'grad_norm': '0.0', 'learning_rate': '2e-4'}\n" * 9, "gradient cut off"),
    ("".join(f"step {i}: {{'loss': {2 + (i > 9) * 3}, 'learning_rate': 0.02}}\n" for i in range(30)), "rate too high"),
    ("".join(f'{{"current_steps": {i}, "loss": {2 + i % 3 / 9}, "lr": 1e-06}}\n' for i in range(30)), "rate too low"),
    ("".join(f'{{"current_steps": {i}, "loss": {2 + i % 3 / 9}, "lr": 1e-03}}\n' for i in range(30)), "loss is flat"),
    ("RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn", "gradient cut off"),
])
def test_logs_of_several_programs_are_read(text, cause, tmp_path):
    (tmp_path / "train.log").write_text(text)
    assert doctor.examine(log=tmp_path / "train.log").findings[0].cause == cause


@pytest.mark.parametrize("text", [
    "".join(f"{{'loss': '0.0', 'grad_norm': '0.1', 'learning_rate': '1e-6', 'reward': '{i / 30}', 'kl': '0.0'}}\n"
            for i in range(30)),  # TRL's GRPO: the loss is 0 but for what it is kept from
    "".join(f"{{'loss': '{0.69 - i / 900}', 'learning_rate': '5e-6', 'rewards/chosen': '0.1'}}\n" for i in range(30)),
    "".join(json.dumps({"current_steps": i, "loss": 1.0 + (2 - i) * (i < 2) + i % 2 / 20, "lr": 2e-4, "epoch": i / 100,
                        "percentage": 1.0, "elapsed_time": "0:00:01"}) + "\n" for i in range(300)),
], ids=["grpo", "dpo", "learned in three steps"])
def test_sound_logs_of_other_programs_get_no_alarm(text, tmp_path):
    (tmp_path / "trainer_log.jsonl").write_text(text)
    assert not doctor.examine(log=tmp_path).findings


def test_numbers_that_no_float_holds_are_left_out_of_a_log():
    log = [dict(step=i, loss=3 - i / 20, eval_loss=float("inf"), learning_rate=10**400) for i in range(40)]
    assert not doctor.examine(log=log).findings
    log[30]["loss"], log[31]["loss"] = float("inf"), float("-inf")
    assert doctor.examine(log=log).findings[0].cause == "rate too high"


def test_the_log_of_a_run_is_found_beside_its_adapter(adapter, tmp_path):
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run / "adapter" / name).write_bytes((adapter / name).read_bytes())
    (run / "metrics.jsonl").write_text("".join(json.dumps(dict(step=i, loss=3 - i / 40)) + "\n" for i in range(40)))
    assert "a log of 40 losses" in str(doctor.examine(adapter=run))


@pytest.mark.parametrize("arguments, said", [
    (dict(), "nothing to examine"), (dict(adapter=3), "expected the folder"), (dict(log=3), "expected a log"),
    (dict(log="/no/such"), "cannot be read"), (dict(data=[]), "at least one row"), (dict(data="text"), "rows"),
    (dict(data=["text"]), "tokenizer"), (dict(data=[3]), "a row of int"), (dict(log=[3]), "log_history"),
    (dict(data=[{"input_ids": 3}]), "input_ids"), (dict(data=[{"input_ids": [1, "a"]}]), "input_ids"),
    (dict(data=[{"input_ids": [1, 2], "labels": [1, 2, 3]}]), "labels"),
    (dict(data=[{"input_ids": [[1], [2]], "attention_mask": [1]}]), "attention_mask"),
    (dict(data=[{"input_ids": [1, 2], "answer_length": 3}]), "answer_length"),
    (dict(data=[{"input_ids": [1, 2]}], prompts=[3]), "prompts"),
])
def test_odd_arguments_are_refused_with_a_reason(arguments, said):
    with pytest.raises(LabError, match=said):
        doctor.examine(**arguments)


def test_a_base_with_an_adapter_is_refused(run):
    with pytest.raises(LabError, match="an adapter already"):
        doctor.examine(adapter=run.adapter, base=run.model)


def test_the_command_prints_and_returns_what_it_found(adapter, capsys):
    assert command.main([str(adapter), "--base", "pocket"]) == 0
    edit(adapter, lora_alpha=0)
    assert command.main([str(adapter)]) == 1
    assert "lora_alpha is 0" in capsys.readouterr().out
    assert command.main([str(adapter), "--log", str(adapter / "none")]) == 2
    assert command.main([str(adapter), "--base", "pocket", "--data", str(data.example("support"))]) == 1
    assert "300 rows of data" in capsys.readouterr().out
    assert command.main([str(adapter), "--data", str(data.example("support"))]) == 2, "there is no tokenizer"
    assert command.main([str(adapter / "none")]) == 2 and "there is no folder" in capsys.readouterr().err
    (adapter / "rows.csv").write_text("n,ask,say\n" + "1,light on,kitchen\n" * 8)
    columns = ["--base", "pocket", "--data", str(adapter / "rows.csv"), "--prompt", "ask", "--answer"]
    assert command.main([str(adapter), *columns, "say"]) == 1 and "8 rows of data" in capsys.readouterr().out
    recipe = recipes.write({
        "model": "pocket", "output": str(adapter / "none"), "lora": {"r": 4, "target_modules": "all-linear"},
        "training": {"max_steps": 9, "batch_size": 4, "learning_rate": 1e-3},
        "data": {"path": str(adapter / "rows.csv"), "prompt": "{ask}", "answer": "{say}"}}, adapter / "mine.yaml")
    assert command.main([str(adapter), "--base", "pocket", "--data", str(recipe)]) == 1
    assert "8 rows of data" in capsys.readouterr().out


def test_every_cause_names_a_lesson_that_is_there():
    lessons = {path.name[1] for path in (Path(__file__).parents[2] / "notebooks").glob("0*.ipynb")}
    assert {cause.lesson for cause in doctor.CAUSES.values()} <= lessons
    assert set(doctor_cases.FAULTS.values()) <= set(doctor.CAUSES)


def test_pocket_is_known_to_the_command():
    assert type(command._load("pocket")[0]) is type(pocket.load()[0])
