"""The pocket model, its trainings side by side, and two laws of alpha that have to hold exactly on it."""

import copy
import itertools
import json
import math

import make_pocket
import pytest
import torch
from lora_lab import LabError, pocket, scoring, smart_home
from peft import LoraConfig, get_peft_model


@pytest.fixture(scope="module")
def small():
    return pocket.load()


def adapted(small, **options):
    torch.manual_seed(0)
    config = LoraConfig(**dict(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False) | options)
    return get_peft_model(copy.deepcopy(small[0]), config)


def test_pocket_model_answers_held_out_commands(small):
    commands = smart_home.commands("test combinations", n=300, seed=3)
    assert scoring.quick_score(*small, commands).exact >= 0.98
    assert scoring.score(commands[:50], scoring.generate(*small, [c.prompt for c in commands[:50]])).exact >= 0.96
    assert small[0].num_parameters() < 250_000 and pocket.WEIGHTS.stat().st_size < 1_000_000


def test_every_sentence_of_the_grammar_survives_the_tokenizer(small):
    for split in smart_home.SPLITS:
        for command in smart_home.commands(split, n=150, seed=1):
            text = command.prompt + command.answer
            ids = small[1](text, add_special_tokens=False)["input_ids"]
            assert small[1].pad_token_id not in ids and small[1].decode(ids) == text


def test_a_dialect_renames_everything_but_numbers():
    commands = smart_home.commands("train", n=300, seed=0)
    for old, new in zip(commands, pocket.dialect(commands, seed=1), strict=True):
        (_, room), (device, state) = json.loads(old.answer).items()
        (_, new_room), (new_device, new_state) = json.loads(new.answer).items()
        assert old.text == new.text and room != new_room and device != new_device
        assert (state == new_state) == isinstance(state, int)
    assert pocket.dialect(commands, 1) == pocket.dialect(commands, 1) != pocket.dialect(commands, 2)


def test_pretraining_learns_and_is_seeded():
    losses = []
    for _ in range(2):
        model = make_pocket.pretrain(steps=12)
        commands = smart_home.commands("train", n=60, seed=0)
        losses.append(scoring.quick_score(model, pocket.tokenizer(), commands).loss)
    assert losses[0] == losses[1] < 4.5 < math.log(len(pocket.tokenizer()))


def trained_loss(small, alpha, lr, optimizer, divide_a=1.0, freeze_a=False):
    model = adapted(small, lora_alpha=alpha, init_lora_weights=True)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data /= divide_a
            parameter.requires_grad_(not freeze_a)
    parameters = [p for p in model.parameters() if p.requires_grad]
    chosen = getattr(torch.optim, optimizer)(parameters, lr=lr, weight_decay=0)
    commands = pocket.dialect(smart_home.commands("train", n=100, seed=0))
    for batch in itertools.islice(pocket.stream(commands, 16), 10):
        loss = model(**batch).loss
        loss.backward()
        chosen.step()
        chosen.zero_grad()
    return loss.item()


@pytest.mark.parametrize("optimizer, lr, power, tolerance", [("SGD", 0.2, 2, 1e-6), ("AdamW", 0.01, 1, 1e-3)])
def test_with_a_frozen_the_learning_rate_moves_by_a_power_of_alpha(small, optimizer, lr, power, tolerance):
    one, other = (trained_loss(small, 16 * k, lr / k**power, optimizer, freeze_a=True) for k in (1, 16))
    assert other == pytest.approx(one, rel=tolerance)
    assert trained_loss(small, 256, lr, optimizer, freeze_a=True) != pytest.approx(one, rel=0.05)


@pytest.mark.parametrize("optimizer, lr, power, tolerance", [("SGD", 0.2, 1, 1e-6), ("AdamW", 0.01, 0.5, 2e-3)])
def test_with_a_scaled_at_the_start_it_moves_by_half_the_power(small, optimizer, lr, power, tolerance):
    one, other = (
        trained_loss(small, 16 * k, lr / k**power, optimizer, divide_a=k**0.5) for k in (1, 16)
    )
    assert other == pytest.approx(one, rel=tolerance)


@pytest.mark.parametrize("optimizer, rates", [("AdamW", [0.02, 0.005]), ("SGD", [0.3, 0.05])])
def test_copies_side_by_side_are_trained_as_peft_and_torch_train_them(small, optimizer, rates):
    commands = pocket.dialect(smart_home.commands("train", n=100, seed=0))
    data, held_out = list(itertools.islice(pocket.stream(commands, 4), 6)), next(pocket.stream(commands, 20, seed=1))
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear")
    copies = pocket.side_by_side(small[0], config, [*rates, 1e30], data, held_out, optimizer, seed=0)
    assert math.isnan(copies[2]["loss"]) and math.isnan(copies[2]["moved"])
    for rate, copied in zip(rates, copies):
        model = adapted(small, r=4, lora_alpha=8, use_rslora=True, init_lora_weights=True)
        starts = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name}
        trained = [p for p in model.parameters() if p.requires_grad]
        chosen = getattr(torch.optim, optimizer)(trained, lr=rate, weight_decay=0)
        for number, batch in enumerate(data):
            chosen.param_groups[0]["lr"] = rate * (1 - number / len(data))
            model(**batch).loss.backward()
            chosen.step()
            chosen.zero_grad()
        ends = dict(model.named_parameters())
        moved, size = (sum((ends[name.replace("lora_A", "lora_B")] @ (part(ends[name], start))).square().sum()
                           for name, start in starts.items()) for part in (lambda A, A0: A - A0, lambda A, A0: A0))
        with torch.no_grad():
            assert copied["loss"] == pytest.approx(model(**held_out).loss.item(), rel=1e-4)
            assert copied["moved"] == pytest.approx((moved / size).sqrt().item(), rel=1e-3)


@pytest.mark.parametrize("odd, words", [(dict(optimizer="Adam"), "optimizer is"), (dict(rates=[0.1, 0]), "rate is"),
                                        (dict(data=[]), "one batch"), (dict(rates=[]), "one rate")])
def test_side_by_side_refuses_what_trains_nothing(small, odd, words):
    batch = next(pocket.stream(smart_home.commands("train", n=4), 4))
    given = dict(rates=[0.1], data=[batch], held_out=batch, config=LoraConfig(target_modules=["q_proj"])) | odd
    with pytest.raises(LabError, match=words):
        pocket.side_by_side(small[0], **given)
