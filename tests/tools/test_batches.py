import pytest
import torch
from lora_lab import batches, smart_home
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
