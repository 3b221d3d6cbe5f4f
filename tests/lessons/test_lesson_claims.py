"""What the lessons claim about their own code, on a model small enough to check in seconds."""

import copy
import json
import re
from pathlib import Path

import jupytext
import pytest
import torch
import yaml
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


@pytest.mark.parametrize("off, said", [(1e-7, "The same steps"), (-0.2, "These are other steps")])
def test_a_launched_run_says_whether_it_took_the_notebooks_steps(off, said, tmp_path, capsys):
    (tmp_path / "torchrun").mkdir()
    history = [{"loss": 3.0}, {"loss": 2.0 + off}, {"train_runtime": 1}]
    (tmp_path / "torchrun/trainer_state.json").write_text(json.dumps({"log_history": history}))
    names = dict(FLEET=tmp_path, STEPS=2, json=json, losses={"notebook": [3.0, 2.0]}, compare=lambda *_: None)
    exec(cell("07_past_one_gpu", "def losses_in"), names)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("times, said", [(1.51, "The formula holds"), (1.8, "It does not hold")])
def test_measured_bytes_say_whether_the_formula_holds(times, said, capsys):
    names = dict(measured={("all-reduce", 4): [times]}, formula={"all-reduce": 2}, compare=lambda *_: None)
    exec(cell("07_past_one_gpu", "for (name, n), found"), names)
    assert said in capsys.readouterr().out


def test_the_lessons_launch_configs_are_the_repositorys(tmp_path):
    names = dict(FLEET=tmp_path, yaml=yaml, write=lambda *_, **__: None, start=lambda *_: None, losses={"notebook": []},
                 follow=lambda *_: ("", 0), losses_in=lambda *_: [0.0], LAUNCH="", distances=lambda _: [0.0])
    exec(cell("07_past_one_gpu", "CPU2 = "), names)
    exec(cell("07_past_one_gpu", "FSDP = "), names)
    for name in ("cpu2", "cpu2_fsdp"):
        theirs, ours = (yaml.safe_load((folder / f"{name}.yaml").read_text())
                        for folder in (FOLDER.parent / "launch", tmp_path))
        theirs.get("fsdp_config", {}).pop("fsdp_offload_params", None)  # false, as without it
        assert ours == theirs


def test_the_configs_for_other_engines_are_yaml_and_agree():
    text = "".join(c.source for c in jupytext.read(FOLDER / "07_past_one_gpu.py").cells if c.cell_type == "markdown")
    axolotl, factory = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert (axolotl["lora_r"], axolotl["lora_alpha"]) == (factory["lora_rank"], factory["lora_alpha"])
    assert axolotl["micro_batch_size"] == factory["per_device_train_batch_size"] == 2
    assert axolotl["gradient_accumulation_steps"] == factory["gradient_accumulation_steps"] == 4
    assert axolotl["learning_rate"] == float(factory["learning_rate"])


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
