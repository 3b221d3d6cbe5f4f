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
