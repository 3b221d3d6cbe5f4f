"""The benchmarks measure the lesson's recipe, not a relative of it."""

import ast
import json
from pathlib import Path

import gguf_template
import lm_eval_task
import outlier_columns
import pytest
import recipe
import torch
import yaml
from lora_lab import smart_home
from transformers import LlamaConfig, LlamaForCausalLM

REPOSITORY = Path(__file__).parents[2]


def keywords(function):
    """Literal keyword arguments of the lesson's first call of `function`."""
    lesson = ast.parse((REPOSITORY / "notebooks/00_first_adapter.py").read_text())
    call = next(
        node for node in ast.walk(lesson)
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == function
        and any(k.arg in ("lora_alpha", "learning_rate") for k in node.keywords)
    )
    return {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}


def test_recipe_is_the_lessons():
    assert keywords("LoraConfig") == recipe.LORA
    lesson = keywords("TrainingArguments")
    ours = recipe.SCHEDULE | recipe.SAMPLING
    assert {name: lesson[name] for name in ("learning_rate", "warmup_steps", "train_sampling_strategy")} == {
        name: ours[name] for name in ("learning_rate", "warmup_steps", "train_sampling_strategy")
    }
    text = (REPOSITORY / "notebooks/00_first_adapter.py").read_text()
    assert f"SEED, STEPS, BATCH = 0, {recipe.STEPS}, {recipe.BATCH}" in text


def test_the_task_for_lm_eval_has_the_lessons_rows(tmp_path):
    lm_eval_task.write_task(tmp_path)
    task = yaml.safe_load((tmp_path / "own_general.yaml").read_text())
    rows = [json.loads(line) for line in Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()]
    assert task["doc_to_text"] == "{{beginning}}" and len(rows) == len(lm_eval_task.items()) >= 28
    assert all(row.keys() == {"beginning", "endings"} and len(set(row["endings"])) == 3 for row in rows)


def test_the_template_of_the_gguf_benchmark_makes_the_trainings_prompt():
    tokenizer, command = recipe.tokenizer(), smart_home.commands("train", 1, 0)[0]
    made = {name: tokenizer.apply_chat_template([{"role": "user", "content": command.text}], tokenize=False,
                                                add_generation_prompt=True, chat_template=template or None)
            for name, template in gguf_template.TEMPLATES.items()}
    assert made["the training's"] == command.prompt == made["the training's, new line lost"] + "\n"
    assert made["the base's"] == made["none"] != command.prompt


def test_columns_with_a_large_value_are_counted_once():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                                         num_attention_heads=2, vocab_size=64))
    ids = torch.arange(8)[None]
    assert set(outlier_columns.shares(model, ids).values()) == {0.0}
    with torch.no_grad():  # the norm writes 1 on average, so these columns reach any size
        model.model.layers[0].input_layernorm.weight[:4] = 1e6
    found = outlier_columns.shares(model, ids)
    assert found["q_proj"] == found["k_proj"] == pytest.approx(4 / 16 / 2) and found["gate_proj"] == 0.0
