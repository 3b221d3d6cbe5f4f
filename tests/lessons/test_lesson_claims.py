"""What the lessons claim about their own code, on a model small enough to check in seconds."""

import copy
import math
import statistics
from pathlib import Path

import jupytext
import pytest
import torch
from lora_lab.scoring import Score
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import set_seed

FOLDER = Path(__file__).parents[2] / "notebooks"


def cell(lesson, text):
    return next(c.source for c in jupytext.read(FOLDER / f"{lesson}.py").cells if c.source.startswith(text))


@pytest.mark.parametrize("losses, said", [
    ({"a": (1, 1, 1), "b": (2, 2, 2), "c": (3, 3, 3)}, ["leads under every seed", "no seed of one reaches any"]),
    ({"a": (1, 2, 3), "b": (2, 1, 3.1), "c": (3, 3, 2)}, ["changes with the seed", "their seeds overlap"]),
])
def test_the_race_says_what_its_seeds_allow(losses, said, capsys):
    found = {kind: [Score(0.5, None, 84, loss) for loss in row] for kind, row in losses.items()}
    race = {(kind, seed): score for kind, row in found.items() for seed, score in enumerate(row)}
    names = dict(CHOICES=losses, SEEDS=(0, 1, 2), found=found, race=race, compare=lambda *_: None)
    exec(cell("02_config_and_targets", "winners = "), names)
    printed = capsys.readouterr().out
    assert all(words in printed for words in said)


@pytest.mark.parametrize("lower, said", [((0.5, 0.9), "both seeds lower"), ((2, 1.1), "both seeds higher"),
                                         ((0.5, 1.5), "lower under one seed, higher under the other")])
def test_rank_and_alpha_say_whether_the_seeds_agree(lower, said, capsys):
    tried = {"r 8, alpha 16": [1, 1], "r 32, alpha 16": lower, "r 32, alpha 64": [1, 1]}
    exec(cell("02_config_and_targets", "def effect"), dict(tried=tried, compare=lambda *_: None))
    assert said in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("ratios, said", [([1.2] * 38 + [0.9, 1.0], "slower"), ([0.8] * 39 + [1.1], "quicker"),
                                          ([0.9] * 20 + [1.1] * 20, "not to be told from the base")])
def test_a_ratio_is_slower_only_where_its_interval_leaves_out_one(ratios, said, capsys):
    names = dict(torch=torch, math=math, statistics=statistics, token={"merged": ratios}, racers={}, prompt=None,
                 ratios=lambda *_: {"merged": ratios[-12:]})
    exec(cell("06_merge_and_ship", "@torch.no_grad()\ndef whole_prompt"), names)
    assert capsys.readouterr().out.splitlines()[0].endswith(said)


@pytest.mark.parametrize("above, said", [(14, "further off"), (0, "closer"), (7, "not to be told apart")])
def test_a_merge_is_compared_with_its_control_command_by_command(above, said, capsys):
    ways = ("rounded base, unmerged", "merged in place", "merged first, then rounded")
    kl = {("nf4", way): ([1.0] * 14, 0.1) for way in ways} | {
        ("nf4", "merged in place"): ([2.0] * above + [0.5] * (14 - above), 0.2)}
    exec(cell("06_merge_and_ship", "for name in list(GRIDS)"), dict(GRIDS={"float32": 0, "nf4": 0}, kl=kl,
                                                                   statistics=statistics))
    lines = capsys.readouterr().out.splitlines()
    assert said in lines[0] and f"on {above} of 14" in lines[0] and "20.0% of next tokens" in lines[0]
    assert lines[2].startswith("For nf4, merged in place" if above < 5 else "For nf4, merged first, then rounded")


@pytest.mark.parametrize("exact, said", [(0.9, "kept by: cat"), (0.1, "none of them")])
def test_a_combination_keeps_both_skills_only_within_the_intervals(exact, said, capsys):
    both = {f"skill {s}": Score(exact, None, 100) for s in ("one", "two")}
    combined = {f"adapter {s}, alone": {f"skill {s}": Score(0.92, None, 100)} for s in ("one", "two")} | {"cat": both}
    exec(cell("06_merge_and_ship", "alone = "), dict(combined=combined, DEVICES=("one", "two")))
    assert said in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("both, times", [(False, 1), (True, 2)])
def test_an_adapter_on_both_sides_of_a_tied_matrix_is_merged_twice(both, times, tiny_model):
    tiny_model.lm_head.weight = tiny_model.model.embed_tokens.weight
    tiny_model.config.tie_word_embeddings = True
    before = tiny_model.lm_head.weight.detach().clone()
    config = LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=both, init_lora_weights=False)
    model = get_peft_model(tiny_model, config)
    update = model.get_input_embeddings().get_delta_weight("default").detach().clone()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.get_output_embeddings().weight - before, times * update)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_lora_by_hand_is_pefts(tiny_model, dropout):
    names = {"nn": nn}
    exec(cell("01_low_rank_math", "class LoRALinear"), names)
    assert len(cell("01_low_rank_math", "class LoRALinear").split("\n\nprint")[0].splitlines()) < 20

    theirs = copy.deepcopy(tiny_model)
    set_seed(1)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")
    theirs = get_peft_model(theirs, config)
    ours = tiny_model.requires_grad_(False)
    set_seed(1)
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(ours.get_submodule(parent), child, names["LoRALinear"](layer, r=4, alpha=12, dropout=dropout))
    pairs = []
    for name in layers:
        a, b = ours.get_submodule(name), theirs.base_model.model.get_submodule(name)
        pairs += [(a.A.weight, b.lora_A["default"].weight), (a.B.weight, b.lora_B["default"].weight)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == theirs.get_nb_trainable_parameters()[0]

    batches = torch.randint(0, 49152, (20, 4, 12), generator=torch.Generator().manual_seed(0))
    curves = [train(model, batches) for model in (ours, theirs)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5) and curves[0][-1] != curves[0][0]
    for a, b in pairs:
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a.grad, b.grad)


def train(model, batches):
    set_seed(2)  # the same dropout masks for both
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-3), []
    for ids in batches:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
