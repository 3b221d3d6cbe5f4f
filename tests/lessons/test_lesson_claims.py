"""What the lessons claim about their own code, on a model small enough to check in seconds."""

import copy
import functools
import itertools
import json
import math
import re
import statistics
import tomllib
import types
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch
import yaml
from lora_lab import data, memory, scoring, smart_home
from lora_lab.scoring import Score
from lora_lab.sweep import interval
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, Qwen2Config, set_seed

FOLDER = Path(__file__).parents[2] / "notebooks"


@functools.cache  # jupytext takes a second for a lesson
def cells(lesson):
    return jupytext.read(FOLDER / f"{lesson}.py").cells


def cell(lesson, text):
    return next(c.source for c in cells(lesson) if c.source.startswith(text))


@pytest.mark.parametrize("losses, said", [
    ({"a": (1, 1, 1), "b": (2, 2, 2), "c": (3, 3, 3), "d": (3.5, 2.9, 3)},
     ["leads under every seed", "Every run of a ends lower than", "of b and of"]),
    ({"a": (1, 2, 3), "b": (2, 1, 3.1), "c": (3, 3, 2), "d": (2, 2, 2.5)},
     ["changes with the seed", "seeds of all choices overlap"]),
])
def test_the_race_says_what_its_seeds_allow(losses, said, capsys):
    found = {kind: [Score(0.5, None, 84, loss) for loss in row] for kind, row in losses.items()}
    race = {(kind, seed): score for kind, row in found.items() for seed, score in enumerate(row)}
    names = dict(CHOICES=losses, SEEDS=(0, 1, 2), found=found, race=race, compare=lambda *_: None)
    exec(cell("02_config_and_targets", "winners = "), names)
    printed = capsys.readouterr().out
    assert all(words in printed for words in said)


@pytest.mark.parametrize("lower, said", [((0.5, 0.9), ", lower"), ((2, 1.1), ", higher"), ((0.5, 1.5), "no clear"),
                                         ((0.98, 0.97), "no clear difference")])
def test_rank_and_alpha_say_whether_the_seeds_agree(lower, said, capsys):
    tried = {"r 8, alpha 16": [1, 1], "r 32, alpha 16": lower, "r 8, alpha 64": [1, 1], "r 32, alpha 64": [1, 1]}
    exec(cell("02_config_and_targets", "def effect"), dict(tried=tried, compare=lambda *_: None))
    assert said in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("values, noise, said", [
    ([1.2] * 28 + [0.9, 1.0], [0.98, 1.02], "slower"), ([0.8] * 29 + [1.1], [0.98, 1.02], "quicker"),
    ([0.9, 1.1] * 15, [0.98, 1.02], "not to be told from the base"),
    ([1.02] * 30, [1.03], "not to be told from the base"),  # the base, a second time, is as far off
])
def test_a_ratio_is_slower_only_where_it_is_beyond_the_clocks_noise(values, noise, said, capsys):
    ratios = {"base again": (noise * 30)[:30], "all linear unmerged": values}
    exec(cell("06_merge_and_ship", "def median_interval"), dict(math=math, statistics=statistics, ratios=ratios,
                                                                compare=lambda *_: None))
    assert capsys.readouterr().out.splitlines()[1].endswith(said)


@pytest.mark.parametrize("above, said", [(14, "further off than the control"), (0, "closer than the control"),
                                         (7, "not to be told from the control")])
def test_a_merge_is_compared_with_its_control_command_by_command(above, said, capsys):
    judged = {("no adapter", ""): ([5.0] * 14, 0), ("nf4", "rounded base, unmerged"): ([1.0] * 14, 14),
              ("nf4", "merged in place"): ([2.0] * above + [0.5] * (14 - above), 3)}
    exec(cell("06_merge_and_ship", "for (name, way), (kl, kept)"), dict(judged=judged, statistics=statistics))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith(said) and " 3 of 14 answers kept" in lines[2]
    assert all(line.endswith("answers kept") for line in lines[:2])


@pytest.mark.parametrize("slower, said", [(3, "1.0 times no switch: not to be"), (9, "2.0 times no switch: longer")])
def test_a_switch_is_longer_only_where_the_intervals_are_apart(slower, said, capsys):
    names = {"math": math, "statistics": statistics, "ratios": {"base again": [1.0], "all linear unmerged": [1.0]},
             "compare": lambda *_: None}
    exec(cell("06_merge_and_ship", "def median_interval"), names)
    taken = {"no switch": [99.0] + [10.0] * 8, "set_adapter": [20.0] * slower + [10.0] * (9 - slower)}
    exec(cell("06_merge_and_ship", "idle = "), names | {"taken": taken})
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("trained, said", [(40, "less sure"), (20, "surer"), (30.5, "hardly a change")])
def test_perplexity_says_what_a_page_can_tell(trained, said, capsys):
    found = iter((30.0, trained))
    score = types.SimpleNamespace(perplexity=lambda *_: next(found), generate=lambda *_: ['{"room"', "no"])
    exec(cell("06_merge_and_ship", "prose = "), dict(
        scoring=score, base=None, merged=None, tokenizer=None, smart_home=smart_home, ITEMS=[],
        known=dict.fromkeys(("base", "trained"), Score(1, None, 9))))
    assert said in (printed := capsys.readouterr().out) and "answers 1 times with what begins like an action" in printed


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


@pytest.mark.parametrize("off, said", [(1e-5, "the same training"), (0.2, "another training")])
def test_two_trainings_are_the_same_if_their_adapters_are(off, said, tmp_path, capsys):
    for folder in ("notebook", "torchrun", "eight_each", "mean_of_means/adapter"):
        (tmp_path / folder).mkdir(parents=True)
        moved = 1 if folder == "notebook" else 1 + off
        save_file({"a": moved * torch.ones(3, 2), "b": moved * torch.ones(4)},
                  tmp_path / folder / "adapter_model.safetensors")
    exec(cell("07_past_one_gpu", "def adapter_in"), dict(FLEET=tmp_path, load_file=load_file, torch=torch))
    assert [line.endswith(said) for line in capsys.readouterr().out.splitlines()] == [True] * 3


@pytest.mark.parametrize("full, said", [(1010, "the ledger holds"), (1500, "the ledger does not hold")])
def test_bytes_under_fsdp_are_compared_with_their_ledger(full, said, capsys):
    names = dict(found={"LoRA": 600, "full": full}, weights=667, trained=67, compare=lambda *_: None,
                 ledger={"LoRA": {"forward": 300, "backward": 300}, "full": {"forward": 500, "gradients": 500}})
    exec(cell("07_past_one_gpu", 'ratio = found["LoRA"]'), names)
    assert said in capsys.readouterr().out.splitlines()[-1]


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
    text = "".join(c.source for c in cells("07_past_one_gpu") if c.cell_type == "markdown")
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


@pytest.mark.parametrize("rounds, said", [
    ([1.0, 2.0, 2.1, 2.2], "slower than the other's slowest"),
    ([9.0, 0.5, 0.5, 0.5], "quicker than the other's quickest"),
    ([1.0, 1.0, 1.1, 1.3], "does not settle it"),
])
def test_the_race_of_bits_says_what_its_rounds_allow(rounds, said, capsys):
    taken = {"bfloat16": [5.0, 1.0, 1.1, 1.2], "int8": rounds, "int8 (prepared)": rounds, "nf4": rounds}
    names = dict(taken=taken, rates={kind: 1.0 for kind in taken}, OWN="bfloat16", compare=lambda *_: None)
    exec(cell("03_train_in_8bit", "for one, other in"), names)
    assert [said in line for line in capsys.readouterr().out.splitlines()[:2]] == [True, True]


@pytest.mark.parametrize("loss, said", [(0.5, "further away than the seed by loss."), (0.21, "no further away than")])
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
ALPHA = "05_alpha_scaling"


def printed(starts, names, capsys):
    names = dict(math=math, np=np, itertools=itertools, interval=interval, scoring=scoring,
                 compare=lambda *_: None, table=lambda rows: rows) | names
    for start in [starts] if isinstance(starts, str) else starts:
        exec(cell(ALPHA, start), names)
    return capsys.readouterr().out


@pytest.mark.parametrize("exact, prose, said", [
    ((1, 1, 0.9, 0.2), (10, 15, 30, 90), ["left from factor 2 on", "perplexity from factor 1.5 on",
                                          "prose breaks first", "1.50 times the base's"]),
    ((1, 1, 0.9, 0.2), (10, 25, 30, 90), ["perplexity from factor 1 on", "prose breaks first"]),
    ((1, 1, 0.2, 0.2), (10, 10, 12, 14), ["left from factor 1.5 on", "at none of these", "the answers break first"]),
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
    names = dict(adam=best, known=list, ridge=lambda runs, setting: runs)
    source = "\n".join([cell(ALPHA, "def segments").partition("def judged")[0], cell(ALPHA, "def bend(")])
    exec(source, dict(math=math, np=np, itertools=itertools, interval=interval, compare=lambda *_: None) | names)
    assert said in capsys.readouterr().out


class Stopped:
    """What a sweep of `until_learned` found: old answers of each seed by method and rate, in as many steps."""

    def __init__(self, old):
        self.old = old

    def where(self, method, lr):
        return Stopped(self.old[method, lr])

    def figures(self, _):
        return self.old

    def mean(self, _):
        return 12


@pytest.mark.parametrize("lora, full, said", [
    ((50, 60, 50, 60, 50), (10, 20, 10, 10, 20), "LoRA forgets less here"),
    ((10, 20, 10, 10, 20), (50, 60, 50, 60, 50), "LoRA forgets more here"),
    ((10, 50, 10, 50, 20), (40, 20, 30, 20, 10), "not told apart"), ((math.nan,) * 5, (1, 2, 3, 4, 5), "no comparison"),
])
def test_what_is_forgotten_is_told_either_way(lora, full, said, capsys):
    stopped = Stopped({("LoRA", 1): lora, ("LoRA", 2): lora, ("full", 3): full, ("full", 4): full})
    names = dict(stopped=stopped, RATES={"LoRA": (1, 2), "full": (3, 4)}, ARMS={}, FURTHER=(), later=None)
    out = printed(["def known", "gaps = []\nfor lora"], names, capsys)
    assert said in out.splitlines()[2] and "full, rate 3" in out


@pytest.mark.parametrize("doubled, said, kept", [
    ((0.1, 0.2, 0.1, 0.2, 0.1), "behind", lambda far: -50 < far < -20),
    ((1, 1, 1, 1, 0.9), "ahead", lambda far: 20 < far < 50),
    ((0.4, 0.6, 0.5, 0.5, 0.6), "not told apart", lambda far: far == 0)])
def test_the_doubled_adapter_is_compared_with_its_control(doubled, said, kept, capsys):
    rows = [{"control 8": one, "doubled 8": other} for one, other in zip((0.5, 0.5, 0.6, 0.5, 0.5), doubled)]
    names = dict(ARMS=["control", "doubled"], FURTHER=(8,), later=Stopped(None), math=math, interval=interval,
                 table=lambda rows: print(rows))
    names["later"].rows = rows
    exec(cell(ALPHA, "def known"), names)
    assert said in capsys.readouterr().out and kept(names["sure"](names["gaps"]["doubled", 8]))


@pytest.mark.parametrize("by, said", [(-0.1, "rsLoRA ends lower"), (0.1, "rsLoRA ends higher"), (0, "not told apart")])
def test_rslora_is_judged_by_its_paired_losses(by, said, capsys):
    plain = [0.8, 0.9, 0.7, 0.8, 0.8]
    losses = {"alpha 16, alpha/r": {8: plain}, "alpha 16, alpha/√r": {8: [loss + by + off for loss, off in zip(
        plain, (0.01, -0.01, 0.02, -0.02, 0))]}}
    names = dict(losses=losses, RANKS=(1, 8), slopes={"a": [0.1], "b": [-0.6]}, ARMS={}, FURTHER=(), later=None)
    out = printed(["def known", "plain, rslora"], names, capsys)
    assert said in out and 'nearest to 0: "a"' in out


@pytest.mark.parametrize("held_out, training, said", [
    ([2.0, 1.0, 1.6], 0.1, "by heart: stop at step 1,"), ([2.0, 2.0, 1.9], 1.9, "hardly begun"),
    ([2.0, 0.9, 0.93], 0.1, "far ahead"), ([2.0, 1.0, 0.9], 0.8, "more may help"),
    ([2.0, 1.0, 0.9], 0.1, "more may help"),
    ([2.0, 0.9, 0.91], 0.8, "stopped falling"), ([2.0, 0.017, 0.021], 0.01, "stopped falling"),
    ([2.0, 0.02, 0.001], 0.001, "Hardly anything"),
])
def test_two_curves_are_told_apart(held_out, training, said, capsys):
    curves = dict.fromkeys(("too little", "too much"), {"eval_loss": held_out, "loss": [2.0, *[training] * 3]})
    names = dict(statistics=statistics, curves=curves, course_of=lambda log, key: (range(len(log[key])), log[key]))
    exec(cell("08_your_own_data", "def diagnosis"), names)
    assert said in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("packed, said", [(0.5, "an example"), (1.5, "disturbs them"), (None, "a help to some")])
def test_packing_says_what_the_first_row_was_to_the_second(packed, said, capsys):
    alone = [1.0] * 8
    losses = {"packed": [packed] * 8 if packed else [0.5, 1.5] * 4, "packed, kept apart": [1.0] * 8}
    exec(cell("08_your_own_data", "lower = "), dict(alone=alone, losses=losses))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("told, trained, gain, said", [
    (0.4, 0.9, 0.0, "Ship the adapter"), (0.5, 0.6, 0.0, "Do not ship yet"), (0.9, 0.4, 0.0, "Do not ship it"),
    (0.5, 0.5, 0.0, "Do not ship it"), (0.0, 0.0, 0.5, "Do not ship yet"),
    (0.0, 0.4, 0.0, "Do not ship yet: 40% right answers are less than the 50% needed"),
])
def test_an_adapter_is_shipped_only_where_the_interval_says_so(told, trained, gain, said, capsys):
    scores = {"adapter": Score(trained, None, 60)}
    names = dict(told=Score(told, None, 60), scores=scores, data=data, gain=(gain, 0.1), times=2.0, NEEDED=0.5,
                 TOKENS=6_000, read_rows=160, train=range(160))
    names["said"] = scoring.verdict(names["told"], scores["adapter"], "examples in the prompt", "adapter")
    exec(cell("08_your_own_data", "higher, right = "), names)
    exec(cell("08_your_own_data", "if better and times > "), names)
    printed = capsys.readouterr().out
    assert printed.startswith(said) and names["better"] is (said == "Ship the adapter")
    assert ("test rows would show such a difference" in printed) is (said == "Do not ship yet" and not gain)
    assert ("compare pairs" in printed) is bool(gain) and ("forgotten" in printed) is names["better"]


@pytest.mark.parametrize("trained, said", [(0.9, "Ship the adapter"), (0.1, "With TOKENS = 15,000 it reads each once")])
def test_rows_that_were_not_read_come_before_other_advice(trained, said, capsys):
    scores = {"adapter": Score(trained, None, 60)}
    names = dict(told=Score(0.1, None, 60), scores=scores, data=data, gain=(0.5, 0.1), NEEDED=0.5, TOKENS=6_000,
                 read_rows=64, train=range(160))
    names["said"] = scoring.verdict(names["told"], scores["adapter"], "examples in the prompt", "adapter")
    exec(cell("08_your_own_data", "higher, right = "), names)
    printed = capsys.readouterr().out
    assert said in printed and "compare pairs" not in printed


@pytest.mark.parametrize("saved, sure, said", [
    (1.0, 0.5, "after 4 to 12 requests"), (0.3, 0.5, "tell nothing about the time"), (-1.0, 0.5, "the slower way")])
def test_what_five_requests_tell_of_time_has_its_interval(saved, sure, said, capsys):
    names = dict(saved=saved, sure=sure, spent=6.0, read_by={"with examples": 200, "adapter": 100})
    exec(cell("08_your_own_data", 'print(f"A request with'), names)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("losses, taken, said", [
    ((9, 5, 2, 7), 3, "No other is near. Taken: 3."), ((9, 5, 2.2, 2), 3, "alike at [3, 4]. Taken: 3."),
    ((2, 5, 6, 7), 1, "Taken: 1. That is the edge"), ((9, 5, 3, None), 3, "No other is near. Taken: 3."),
])
def test_of_rates_that_are_nearly_alike_the_lowest_is_taken(losses, taken, said, capsys):
    rows = [{"lr": lr, "status": "ok" if loss else "diverged", "loss": loss} for lr, loss in enumerate(losses, 1)]
    names = dict(rates=types.SimpleNamespace(rows=rows), RATES=[1, 2, 3, 4], SHORT_STEPS=8, start={"eval_loss": 9.0},
                 compare=print, plots=types.SimpleNamespace(lines=lambda *_, **__: None))
    exec(cell("08_your_own_data", "ended = "), names)
    assert names["rate"] == taken and said in capsys.readouterr().out


@pytest.mark.parametrize("by, said", [(0.5, "likelier with the adapter"), (-0.5, "likelier with examples"),
                                      (0.0, "cannot tell either"), (None, "no second measure")])
def test_likelier_answers_are_asked_for_where_exact_match_cannot_tell(by, said, capsys):
    def quick_score(model, tokenizer, rows):
        ((text, answer),) = rows
        return Score(0.0, None, 1, loss=2.0 + 0.01 * len(answer) - (by if model == "trained" else 0))

    names = dict(said="these scores cannot tell" if by is not None else "adapter is higher", base="base",
                 model="trained", tokenizer=None, interval=interval,
                 scoring=types.SimpleNamespace(quick_score=quick_score),
                 test=[types.SimpleNamespace(answer="x" * n) for n in range(12)],
                 asked={"with examples": ["long"] * 12, "adapter": ["bare"] * 12})
    exec(cell("08_your_own_data", "gain = (0.0"), names)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("by, said", [
    ((-0.2, -0.21, -0.19, -0.2, -0.2), "−0.200 (−0.209 to −0.191) nats held-out loss, 5 seeds: the variant ends lower"),
    ((0.2, 0.21, 0.19, 0.2, 0.2), "+0.200 (+0.191 to +0.209) nats held-out loss, 5 seeds: the variant ends higher"),
    ((0.1, -0.1, 0.05, -0.05, 0), "cannot be told apart"), ((0, 0, 0, 0, 0), "cannot be told apart"),
    ((0.1, math.nan, 0, 0, 0), "no verdict, a training diverged"),
])
def test_a_variant_is_judged_by_the_interval_of_its_pairs(by, said, capsys):
    plain = [0.5, 0.7, 0.6, 0.9, 0.8]
    found = {"at the recipe's rate": {"LoRA": plain, "DoRA": [a + b for a, b in zip(plain, by)]}}
    names = dict(math=math, interval=interval, found=found, VARIANTS=["DoRA"], compare=lambda *given: print(*given))
    exec(cell("09_variants", "def signed"), names)
    line, compared = capsys.readouterr().out.splitlines()
    assert line.startswith("DoRA against LoRA, at the recipe's rate: ") and line.endswith(said)
    assert compared == f"variants/borrowed {int('lower' in said)}"
