"""The benchmarks measure the lesson's recipe, not a relative of it."""

import ast
from pathlib import Path

import recipe

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
