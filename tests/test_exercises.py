"""Every exercise: its cell says "Not yet." as the learner finds it, and "Solved." with the solution in its place."""

import re
from pathlib import Path

import jupytext
import pytest
import torch
from lora_lab import checks, targets, tasks
from peft import LoraConfig
from torch import nn

FOLDER = Path(__file__).parents[1] / "notebooks"

# For each check of a lesson: what the solution replaces in the exercise's cell, and what by.
SOLUTIONS = {
    "small_adapter": [("r=8, lora_alpha=16", "r=2, lora_alpha=4")],
    "exact_by_device": [("    return shares", """\
    import json
    for command, answer in zip(commands, answers):
        shares.setdefault(list(json.loads(command.answer))[1], []).append(answer == command.answer)
    return {device: sum(flags) / len(flags) for device, flags in shares.items()}""")],
    "lora_forward": [
        ("return self.base(x)", "return self.base(x) + self.scaling * self.dropout(x) @ self.A.T @ self.B.T"),
    ],
    "count_for_new_model": [(
        "my_count = 0",
        "my_count = 16 * 24 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))",
    )],
    "smallest_rank": [("return len(singular_values)", """\
squares = singular_values**2
    missing = (squares.sum() - squares.cumsum(0)).clamp(min=0).sqrt() / squares.sum().sqrt()
    return int((missing > bound).sum()) + 1""")],
    "merged_weight": [("return W", "return W + alpha / r * B @ A")],
    "config_for_budget": [(
        'r=8, lora_alpha=8, target_modules=["up_proj"]',
        'r=10, lora_alpha=20, target_modules=["gate_proj", "up_proj", "down_proj"], '
        "layers_to_transform=list(range(15, 30))",
    )],
    "repaired_configs": [
        ('"out_proj"', '"o_proj"'), ("[1, 30]", "[0, 29]"), ("(gate|up|down)", "(gate|up|down)_proj"),
        ('["norm"]', '["model.norm"]'),
    ],
    "predicted_count": [("my_prediction = 0", "my_prediction = 10 * (4 * (576 + 576) + 16 * (1536 + 576))")],
}


def exercises():
    for twin in sorted(FOLDER.glob("*.py")):
        for cell in jupytext.read(twin).cells:
            call = re.search(r"^checks\.(\w+)\(", cell.source, re.MULTILINE)
            if cell.cell_type == "code" and call:
                yield pytest.param(cell.source, call[1], id=f"{twin.stem[:2]}-{call[1]}")


def run(source, base, capsys):
    names = {"checks": checks, "targets": targets, "tasks": tasks, "torch": torch, "nn": nn, "LoraConfig": LoraConfig,
             "base": base, "fresh_base": base}
    exec(source, names)
    return capsys.readouterr().out


@pytest.mark.parametrize("source, check", list(exercises()))
def test_exercise_fails_before_and_passes_after_its_solution(source, check, base, capsys):
    model = base[0]
    assert run(source, model, capsys).startswith("Not yet.")
    solved = source
    for old, new in SOLUTIONS[check]:
        assert old in solved
        solved = solved.replace(old, new)
    for _ in range(5):  # the checks draw their inputs at random
        assert run(solved, model, capsys).startswith("Solved.")


@pytest.mark.parametrize("check, wrong", [
    ("lora_forward", "return self.base(x) + self.dropout(x) @ self.A.T @ self.B.T"),  # the card's formula
    ("lora_forward", "return self.scaling * x @ self.A.T @ self.B.T + self.base(x)"),  # no dropout
    ("lora_forward", "return None"),
])
def test_likely_mistakes_in_the_layer_are_found(check, wrong, base, capsys):
    source = next(p.values[0] for p in exercises() if p.values[1] == check)
    for _ in range(5):
        assert run(source.replace("return self.base(x)", wrong), base[0], capsys).startswith("Not yet.")


def test_likely_mistakes_in_numbers_are_found(base, capsys):
    checks.count_for_new_model(16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192)))
    assert "24 times more" in capsys.readouterr().out
    checks.merged_weight(lambda W, A, B, alpha, r: W + B @ A)
    assert capsys.readouterr().out.startswith("Not yet.")
    checks.merged_weight(lambda W, A, B, alpha, r: W.add_(alpha / r * B @ A))
    assert "changed W itself" in capsys.readouterr().out
    checks.smallest_rank(lambda W, bound: 1)
    assert capsys.readouterr().out.startswith("Not yet.")


@pytest.mark.parametrize("options, words", [
    (dict(r=10, lora_alpha=10), "the scaling is 1"),
    (dict(r=1, lora_alpha=2, rank_pattern={"mlp.*": 10}), "no patterns"),
    (dict(r=5, lora_alpha=10), "Not yet. 475,200 of 1,000,000 parameters, at rank 5. There is room"),
    (dict(r=11, lora_alpha=22), "Not yet. 1,045,440 of 1,000,000 parameters, at rank 11. That is over"),
    (dict(r=10, lora_alpha=20, layers_to_transform=list(range(14, 30))), "and 3 others"),
    (dict(r=10, lora_alpha=20, layers_to_transform=list(range(15, 31))), "there is no layer 30"),
])
def test_near_misses_of_the_budget_are_told_apart(options, words, base, capsys):
    given = dict(target_modules=["gate_proj", "up_proj", "down_proj"], layers_to_transform=list(range(15, 30)))
    checks.config_for_budget(LoraConfig(**given | options), base[0])
    assert words in capsys.readouterr().out
