import copy

import pytest
import torch
from lora_lab import LabError, batches, smart_home
from lora_lab.batches import IGNORED, AnswerCollator


@pytest.fixture(scope="module")
def rows(tokenizer):
    return batches.encode(smart_home.commands("train", 8), tokenizer)


def test_loss_and_gradient_equal_those_of_full_logits(tiny_model, tokenizer, rows):
    def gradient(batch):
        tiny_model.zero_grad()
        loss = tiny_model(**batch).loss
        loss.backward()
        return loss.detach(), tiny_model.model.layers[0].mlp.up_proj.weight.grad.clone()

    batch = AnswerCollator(tokenizer)(rows)
    full = dict(batch)
    keep = full.pop("logits_to_keep")
    full["labels"] = torch.full_like(batch["input_ids"], IGNORED)
    full["labels"][:, -keep:] = batch["labels"]
    loss, grad = gradient(batch)
    loss_full, grad_full = gradient(full)
    torch.testing.assert_close(loss, loss_full)
    torch.testing.assert_close(grad, grad_full)


def test_padding_does_not_change_a_row(tiny_model, tokenizer, rows):
    collate = AnswerCollator(tokenizer)
    together = collate(rows)
    logits = tiny_model(**together).logits
    for i, row in enumerate(rows):
        alone = tiny_model(**collate([row])).logits[0]
        torch.testing.assert_close(logits[i, -row["answer_length"] - 1 :], alone, atol=1e-4, rtol=1e-4)


def test_labels_are_the_answer_and_its_end(tokenizer, rows):
    batch = AnswerCollator(tokenizer)(rows)
    for command, labels in zip(smart_home.commands("train", 8), batch["labels"]):
        wanted = labels[labels != IGNORED]
        assert tokenizer.decode(wanted[:-1]) == command.answer
        assert wanted[-1] == tokenizer.eos_token_id


def test_similar_lengths_keep_every_row_and_pad_less(tokenizer):
    rows = batches.encode(smart_home.commands("train", 200), tokenizer)
    ordered = batches.similar_lengths(rows, batch_size=8, seed=1)
    assert sorted(map(str, ordered)) == sorted(map(str, rows)) and ordered != rows
    assert ordered == batches.similar_lengths(rows, 8, seed=1) != batches.similar_lengths(rows, 8, seed=2)

    def padded(rows):
        cut = [rows[i : i + 8] for i in range(0, len(rows), 8)]
        return sum(len(batch) * max(len(row["input_ids"]) for row in batch) for batch in cut)

    assert padded(ordered) < 0.95 * padded(rows)


def test_only_answer_columns_get_logits(tiny_model, tokenizer, rows):
    batch = AnswerCollator(tokenizer)(rows)
    longest = max(row["answer_length"] for row in rows)
    assert batch["labels"].shape == (len(rows), longest + 1)
    assert tiny_model(**batch).logits.shape[1] == longest + 1 < batch["input_ids"].shape[1]


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "Bye"}]


def test_the_assistants_turns_of_a_chat_count_and_nothing_else(tokenizer):
    (row,) = batches.encode([CHAT], tokenizer)
    text = tokenizer.apply_chat_template(CHAT[:5], tokenize=False).removesuffix("\n")
    assert row["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    counted = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(counted) == "Hello<|im_end|> 4 <|im_end|>"
    batch = AnswerCollator(tokenizer)([row, *batches.encode([("Hi", " you")], tokenizer)])
    assert [label for label in batch["labels"][0].tolist() if label != IGNORED] == counted
    assert batch["labels"][1].tolist()[-2:] == batches.encode([("Hi", " you")], tokenizer)[0]["input_ids"][-2:]


def test_a_chat_of_one_answer_is_its_pair(tokenizer):
    asked = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert batches.encode([CHAT[:3]], tokenizer) == batches.encode([(asked, "Hello")], tokenizer)


def templated(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_a_template_that_rewrites_the_past_makes_a_row_of_each_answer(tokenizer):
    rewriting = templated(tokenizer, "{% for m in messages %}<|im_start|>{{ m.role }}{% if loop.last and m.role == "
                          "'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
                          "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}")
    rows = batches.encode([CHAT], rewriting)
    assert [tokenizer.decode(row["input_ids"][-row["answer_length"]:]) for row in rows] == [
        "<think></think>Hello<|im_end|>", "<think></think> 4 <|im_end|>"]


@pytest.mark.parametrize("template, chat, said", [
    (None, CHAT, "no chat template"), ("{{ raise_exception('no system') }}", CHAT, "no system"),
    ("{{ messages | length }}", CHAT, "otherwise than it asks"), ("x", CHAT[:2], "no turn of the assistant"),
])
def test_chats_that_cannot_be_written_are_refused_with_a_reason(template, chat, said, tokenizer):
    with pytest.raises(LabError, match=said):
        batches.encode([chat], templated(tokenizer, template))
