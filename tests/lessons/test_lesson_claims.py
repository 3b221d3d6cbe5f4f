"""What the lessons claim about their own code, on a model small enough to check in seconds."""

import copy
import tomllib
from pathlib import Path

import jupytext
import pytest
import torch
from lora_lab import memory, scoring
from lora_lab.scoring import Score
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, Qwen2Config, set_seed

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


@pytest.mark.parametrize("rounds, said", [
    ([1.0, 2.0, 2.1, 2.2], "slower in every round"), ([9.0, 0.5, 0.5, 0.5], "faster in every round"),
    ([1.0, 1.0, 1.1, 1.3], "rounds overlap with those"),
])
def test_the_race_of_bits_says_what_its_rounds_allow(rounds, said, capsys):
    taken = {"bfloat16": [5.0, 1.0, 1.1, 1.2], "int8": rounds, "nf4": rounds}
    names = dict(taken=taken, rates={kind: 1.0 for kind in taken}, OWN="bfloat16", compare=lambda *_: None)
    exec(cell("03_train_in_8bit", "slowest, fastest"), names)
    assert capsys.readouterr().out.count(said) == 2


@pytest.mark.parametrize("loss, said", [(0.5, "0.100: further away"), (0.21, "no further away than")])
def test_rounded_bases_are_measured_by_the_seed(loss, said, capsys):
    scores = {kind: Score(0.9, None, 100, value) for kind, value in
              {"float32": 0.2, "bfloat16": 0.2, "bfloat16, other seed": 0.3, "int8": loss, "nf4": loss}.items()}
    names = dict(scores=scores, OWN="bfloat16", compare=lambda *_: None, scoring=scoring)
    exec(cell("03_train_in_8bit", "for kind in scores:"), names)
    printed = capsys.readouterr().out
    assert printed.count(said) == 2 and printed.count("cannot tell the two apart") == 4


def test_published_peaks_of_the_lesson_are_the_benchmarks():
    """Figures and settings as they stand in benchmarks/published_peaks.toml."""
    table = tomllib.loads((FOLDER.parent / "benchmarks/published_peaks.toml").read_text())
    def lora(r, targets=None, **more):
        return dict(r=r, **({"targets": targets} if targets else {}), **more)

    names = dict(LlamaConfig=LlamaConfig, Qwen2Config=Qwen2Config, llama=LlamaConfig(), lora=lora)
    exec(cell("04_memory", "wide = dict"), names)
    for gb, config, adapter, options in names["PEAKS"].values():
        [peak] = [peak for peak in table["peaks"] if peak["plan"] == adapter | options]
        assert peak["gb"] == gb
        sizes = table["models"][peak["model"]]["config"]
        assert all(getattr(config, key) == value for key, value in sizes.items() if "tie" not in key
                   and key != "max_position_embeddings")


@pytest.mark.parametrize("gaps, said", [((0.1, -0.3), ["1 of 2 plans are short", "second, -30%"]),
                                        ((0.2, 0.1), ["0 of 2 plans are short", "first, +20%"])])
def test_the_gap_of_the_plans_is_computed(gaps, said, capsys):
    plan = memory.Plan(*range(7), reserve=0.15)
    names = dict(gaps=dict(zip(("first", "second"), gaps)), found={"first": plan}, compare=lambda *_: None,
                 PEAKS={"first": (9, None, None, {"precision": "nf4"})})
    exec(cell("04_memory", "worst = max(gaps"), names)
    printed = capsys.readouterr().out
    assert all(words in printed for words in [*said, "15% for a base in nf4"])
