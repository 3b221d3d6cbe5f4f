import json

import pytest
from lora_lab import LabError, checks
from peft import LoraConfig, get_peft_model


def test_saved_adapter_passes(tmp_path, tiny_model):
    get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "a", save_embedding_layers=False
    )
    assert checks.adapter_folder(tmp_path / "a") == str(tmp_path / "a")


def test_other_folders_are_named_with_what_they_hold(tmp_path):
    with pytest.raises(LabError, match="it is no folder"):
        checks.adapter_folder(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LabError, match="no adapter_model.safetensors .*it holds adapter_config.json"):
        checks.adapter_folder(tmp_path)


def test_small_adapter_exercise(base, capsys):
    config = base[0].config

    def verdict(**options):
        checks.small_adapter(LoraConfig(task_type="CAUSAL_LM", **options), config, megabytes=3)
        return capsys.readouterr().out

    assert verdict(r=2, target_modules="all-linear").startswith("Solved.")
    assert "9.77 MB" in verdict(r=8, target_modules="all-linear")
    assert verdict(r=8, target_modules=["q_proj"]).startswith("Not yet."), "small by leaving layers out"


def test_exact_by_device_exercise(capsys):
    def right(commands, answers):
        hits = {}
        for command, answer in zip(commands, answers):
            hits.setdefault(list(json.loads(command.answer))[1], []).append(answer == command.answer)
        return {device: sum(flags) / len(flags) for device, flags in hits.items()}

    def verdict(function):
        checks.exact_by_device(function)
        return capsys.readouterr().out

    assert verdict(right).startswith("Solved.")
    assert verdict(lambda c, a: {}).startswith("Not yet.")
    assert verdict(lambda c, a: dict.fromkeys(right(c, a))).startswith("Not yet.")
    assert verdict(lambda c, a: None).startswith("Not yet. Expected a dict")
    assert verdict(lambda c, a: {d: s / 2 for d, s in right(c, a).items()}).startswith("Not yet.")
