import pytest
from architectures import tiny
from lora_lab import targets
from lora_lab.course import explorers
from peft import LoraConfig


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "qwen3_moe", "falcon", "mamba"])
def test_block_and_table_show_what_is_adapted(model_type):
    model = tiny(model_type)
    names = [g.name for g in targets.groups(model) if "*" in g.where and g.kind != "Parameter"]
    report = targets.check(model, LoraConfig(r=2, target_modules=names[:1]))
    picture = explorers.block(targets.groups(model), report.per_path, r=2)
    assert picture.png.startswith(b"\x89PNG")
    assert f"{names[0]} adapted" in picture.alt and "frozen" in picture.alt
    rows = explorers.group_table(model, report).data
    assert f"{report.trainable:,}" in rows and names[0] in rows


@pytest.mark.parametrize("options", [{}, dict(layers_to_transform=[1])])
def test_block_shows_the_count_of_one_block(options):
    model = tiny("llama")
    report = targets.check(model, LoraConfig(r=2, target_modules=["q_proj"], **options))
    in_one = max(report.per_path.values())
    blocks = len({path.split(".")[2] for path in report.per_path})
    assert in_one * blocks == report.trainable
    assert f"q_proj adapted, {in_one:,} parameters" in explorers.block(targets.groups(model), report.per_path, r=2).alt


def test_counts_of_single_layers_add_up_even_for_experts():
    model = tiny("mixtral")
    report = targets.check(model, LoraConfig(r=2, target_modules="all-linear"))
    assert report.parameters and sum(report.per_path.values()) == report.trainable
    assert set(report.per_path) == set(report.modules + report.parameters)
