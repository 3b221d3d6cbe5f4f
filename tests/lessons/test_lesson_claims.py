"""What the lessons claim about their own code, on a model small enough to check in seconds."""

import copy
import itertools
import math
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch
from lora_lab import scoring
from lora_lab.scoring import Score
from lora_lab.sweep import interval
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


ALPHA = "05_alpha_scaling"


def printed(starts, names, capsys):
    names = dict(math=math, np=np, itertools=itertools, interval=interval, scoring=scoring,
                 compare=lambda *_: None, table=lambda rows: rows) | names
    for start in [starts] if isinstance(starts, str) else starts:
        exec(cell(ALPHA, start), names)
    return capsys.readouterr().out


@pytest.mark.parametrize("exact, prose, said", [
    ((1, 1, 0.9, 0.2), (10, 10, 30, 90), ["left from factor 2 on", "doubled from factor 1.5 on", "Prose breaks first"]),
    ((1, 1, 0.2, 0.2), (10, 10, 12, 14), ["left from factor 1.5 on", "at none of these", "The answers break first"]),
    ((1, 1, 1, 1), (10, 10, 10, 10), ["left at none of these", "both break at the same", "cannot tell the two apart"]),
])
def test_the_dial_is_told_from_its_own_curve(exact, prose, said, capsys):
    factors = (0, 1, 1.5, 2)
    names = dict(FACTORS=factors, prose=dict(zip(factors, prose)),
                 dial={factor: Score(share, None, 42, 1.0) for factor, share in zip(factors, exact)})
    out = printed("def first(broken)", names, capsys)
    assert all(words in out for words in said)


@pytest.mark.parametrize("ends, said", [((-0.5, -1), "bends downwards"), ((-1, -0.5), "bends upwards"),
                                        ((-0.8, -0.8), "show no bend")])
def test_a_ridge_bends_only_if_the_seeds_say_so(ends, said, capsys):
    noise = (0.01, -0.02, 0.0, 0.02, -0.01)
    best = {1: [1.0] * 5, 10: [10 ** (ends[0] + off) for off in noise]}
    best[100] = [rate * 10 ** (ends[1] - off) for rate, off in zip(best[10], noise)]
    names = dict(SEEDS=range(5), LAWS={"AdamW": {"a": -0.5, "b": -1}}, adam=best, ridge=lambda runs, setting: runs,
                 plus_minus=lambda slopes: f"{np.mean(slopes):.2f}", known=list,
                 distance=lambda runs, alpha, best: 1 / alpha)
    out = printed(["def segments", "def bend("], names, capsys)
    assert said in out and "it stands still where alpha is large" in out


@pytest.mark.parametrize("lora, full, said", [
    ((50, 60, 50, 60, 50), (10, 20, 10, 10, 20), "LoRA forgets less here"),
    ((10, 20, 10, 10, 20), (50, 60, 50, 60, 50), "LoRA forgets more here"),
    ((10, 50, 10, 50, 20), (40, 20, 30, 20, 10), "cannot tell them apart"), (None, (1, 2, 3, 4, 5), "never learned"),
])
def test_what_is_forgotten_is_told_either_way(lora, full, said, capsys):
    kept = {("LoRA", 1): lora, ("LoRA", 2): (0,) * 5} if lora else {}
    out = printed("def best_of", dict(kept=kept | {("full", 3): full, ("full", 4): (0,) * 5}), capsys)
    assert said in out and "full 3" in out


@pytest.mark.parametrize("doubled, said", [((0.1, 0.2, 0.1, 0.2, 0.1), "behind"), ((1, 1, 1, 1, 0.9), "ahead"),
                                           ((0.4, 0.6, 0.5, 0.5, 0.6), "not told apart")])
def test_the_doubled_adapter_is_compared_with_its_control(doubled, said, capsys):
    runs = {"doubled": [doubled], "control": [(0.5, 0.5, 0.6, 0.5, 0.5)]}
    assert said in printed("for more, doubled, control", dict(MORE=(8,), runs=runs), capsys)


@pytest.mark.parametrize("moved, curve, said", [(0.1, 1.01, "stands still is the nearer"),
                                                (3, 1.8, "forgot its start is the nearer")])
def test_the_nearer_law_is_told_from_the_curves(moved, curve, said, capsys):
    followed = {"alpha 16": [4, 2], "256, rate / 16": [4, 2 * curve], "256, rate / 4": [4, 2 * 1.3]}
    assert said in printed("def off(name)", dict(followed=followed, travelled={"alpha 16": moved}), capsys)
