"""Plans for many GPUs against brute force: bytes simulated message by message, operations counted by torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_lab import LabError, distributed, memory, pocket
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(hidden_size=64, intermediate_size=160, num_hidden_layers=12, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=300, tie_word_embeddings=False)
LORA = LoraConfig(r=4, target_modules="all-linear")


def ring(sizes):
    """What each GPU sends to average one list of chunk sizes around a ring, counted message by message."""
    n, sent = len(sizes), [0] * len(sizes)
    for step in range(2 * (n - 1)):  # n - 1 steps that add up, n - 1 that pass the sums on
        for gpu in range(n):
            sent[gpu] += sizes[(gpu - step) % n]
    return sent


@pytest.mark.nightly
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_ddp_sends_what_a_ring_sends(n):
    trained = sum(p.nbytes for p in get_peft_model(LlamaForCausalLM(CONFIG), LORA).parameters() if p.requires_grad)
    assert trained % n == 0
    (share,) = distributed.plan(CONFIG, LORA, gpus=n, batch_size=8, seq_len=16)
    assert ring([trained // n] * n) == [share.sent_bytes] * n
    assert share.memory == memory.plan(CONFIG, LORA, batch_size=8 // n, seq_len=16)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_fsdp_gathers_everything_twice_and_reduces_what_trains(n):
    model = get_peft_model(LlamaForCausalLM(CONFIG), LORA)
    sent = 0
    for parameter in model.parameters():
        shard = parameter.nbytes / n
        sent += 2 * (n - 1) * shard + (n - 1) * shard * parameter.requires_grad
    (share,) = distributed.plan(CONFIG, LORA, gpus=[n], batch_size=8, seq_len=16, mode="fsdp")
    assert share.sent_bytes == pytest.approx(sent, rel=1e-3)  # the plan's weights have the buffers in them


def test_fsdp_holds_shares_and_what_is_gathered():
    whole = memory.plan(CONFIG, LORA, batch_size=2, seq_len=16)
    (share,) = distributed.plan(CONFIG, LORA, gpus=4, batch_size=8, seq_len=16, mode="fsdp")
    model = LlamaForCausalLM(CONFIG)
    everything = sum(p.nbytes for p in model.parameters())
    blocks = sum(p.nbytes for p in model.model.layers.parameters())
    gathered = everything - blocks + sum(p.nbytes for p in model.model.layers[0].parameters())
    assert share.memory.weights_bytes == pytest.approx(everything / 4 + gathered, rel=1e-2)
    assert share.memory.optimizer_bytes == -(-whole.optimizer_bytes // 4)
    assert share.memory.activation_bytes == whole.activation_bytes


def test_a_base_that_is_quantised_already_is_not_shared_out():
    quantised = LlamaConfig(**{**CONFIG.to_dict(), "quantization_config": {"quant_method": "bitsandbytes",
                                                                           "load_in_8bit": True}})
    with pytest.raises(LabError, match="int8 weights cannot be shared out"):
        distributed.plan(quantised, LORA, gpus=1, batch_size=8, seq_len=16, mode="fsdp")


def test_four_bits_are_shared_out_and_their_scales_are_not():
    whole = memory.plan(CONFIG, LORA, "nf4", batch_size=2, seq_len=16)
    (share,) = distributed.plan(CONFIG, LORA, "nf4", gpus=4, batch_size=8, seq_len=16, mode="fsdp")
    layer = LlamaForCausalLM(CONFIG).model.layers[0]
    block = sum(p.numel() for p in layer.parameters()) / 2  # bytes; its norms are few
    unpacked = whole.weights_bytes - 12 * block
    assert share.memory.weights_bytes == pytest.approx(whole.weights_bytes / 4 + unpacked + block, rel=0.05)
    assert share.memory.quantization_bytes == whole.quantization_bytes


def test_a_loss_without_full_logits_is_planned_on_many_gpus():
    full, chunked = (distributed.plan(CONFIG, LORA, gpus=2, batch_size=2, seq_len=16, cross_entropy=loss)[0]
                     for loss in ("full", "fused"))
    assert chunked.memory.logits_bytes < full.memory.logits_bytes and chunked.sent_bytes == full.sent_bytes


@pytest.mark.parametrize(("keep", "checkpointing"), [(0, False), (5, False), (0, True)])
def test_operations_are_those_that_torch_counts(keep, checkpointing):
    model, tokens = get_peft_model(LlamaForCausalLM(CONFIG), LORA), torch.ones((4, 32), dtype=torch.long)
    if checkpointing:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        kept = slice(-keep, None) if keep else slice(None)
        model(input_ids=tokens, labels=tokens[:, kept], logits_to_keep=keep).loss.backward()
    counted = sum(count for operation, count in counter.get_flop_counts()["Global"].items()
                  if "attention" not in str(operation))
    (share,) = distributed.plan(CONFIG, LORA, gpus=1, batch_size=4, seq_len=32, logits_to_keep=keep,
                                checkpointing=checkpointing)
    assert share.flops == pytest.approx(counted, rel=0.03)  # the first block's inputs need no gradients


def test_speeds_say_what_a_step_waits_for():
    slow, fast = (distributed.plan(CONFIG, LORA, gpus=8, batch_size=8, seq_len=16, mode="fsdp", bytes_per_second=speed,
                             flop_per_second=1e9)[0] for speed in (1e3, 1e15))
    assert slow.send_seconds == slow.sent_bytes / 1e3 and slow.compute_seconds == slow.flops / 1e9
    assert (slow.bound_by, fast.bound_by) == ("sending", "computing")
    assert distributed.plan(CONFIG, LORA, gpus=8, batch_size=8, seq_len=16)[0].bound_by is None


@given(st.integers(1, 16), st.sampled_from(distributed.MODES), st.sampled_from([1, 2, 4]))
@settings(max_examples=4)
def test_more_gpus_never_need_more_memory_each(r, mode, rows):
    lora = LoraConfig(r=r, target_modules="all-linear")
    totals = [share.memory.total_bytes
              for share in distributed.plan(pocket.untrained().config, lora, gpus=(1, 2, 8), batch_size=8 * rows,
                                            seq_len=8, mode=mode)]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(("options", "words"), [
    ({"gpus": 3}, "divide batch_size"), ({"gpus": 0}, "gpus has 0"), ({"gpus": [True]}, "gpus has True"),
    ({"mode": "dp"}, "mode is 'dp'"), ({"mode": "fsdp", "precision": "int8"}, "cannot be shared out"),
    ({"bytes_per_second": 0}, "bytes_per_second is 0"), ({"flop_per_second": "fast"}, "flop_per_second is 'fast'"),
    ({"batch_size": 0}, "batch_size is 0"), ({"gpus": None}, "gpus has None"),
    ({"batch_size": "8"}, "batch_size is '8'"),
])
def test_what_cannot_be_planned_is_refused(options, words):
    with pytest.raises(LabError, match=words):
        distributed.plan(CONFIG, LORA, **{"gpus": 1, "batch_size": 8, "seq_len": 16} | options)
