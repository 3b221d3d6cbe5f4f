import os
import re
import subprocess
import sys

import psutil
import pytest
import torch
from lesson_memory import anonymous
from lora_lab import LabError, load_base, models
from safetensors.torch import save_file


def test_default_base_is_the_real_model_in_eval_mode(base):
    model, tokenizer = base
    assert model.num_parameters() == 134_515_008
    assert not model.training and tokenizer.chat_template
    assert model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct", "a saved adapter must not name a local path"


def test_one_line_says_what_was_picked(capsys):
    load_base()
    line, _ = capsys.readouterr().out.splitlines()
    assert "134,515,008" in line and "MB" in line


def test_loaded_again_quietly_and_for_no_memory(base, capsys):
    if sys.platform != "linux" or models.pick_device().type != "cpu":
        pytest.skip("anonymous memory of a CPU's models is told by Linux alone")
    kept, before = [], anonymous(os.getpid())
    for _ in range(4):
        kept.append(load_base(precision="float32", quiet=True)[0])
    assert anonymous(os.getpid()) - before < 100e6 < kept[0].get_memory_footprint()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("computes", ["float32", "bfloat16"])
@pytest.mark.parametrize(("precision", "megabytes"), [("bfloat16", 269), ("int8", 220), ("nf4", 167)])
def test_precisions_shrink_the_weights(monkeypatch, precision, megabytes, computes):
    monkeypatch.setenv(models.FORCED, computes)
    if computes == "bfloat16":  # the embeddings of a quantised model are in what it computes in
        megabytes -= {"int8": 57, "nf4": 57}.get(precision, 0)
    model, _ = load_base(precision=precision, quiet=True)
    assert model.get_memory_footprint() / 1e6 == pytest.approx(megabytes, abs=3)
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    assert model(ids).logits.isfinite().all()


@pytest.mark.parametrize(("able", "dtype"), [
    ({"avx2": True}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16),
    ({"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16)])
def test_a_cpu_gets_what_a_whole_lesson_was_faster_in(monkeypatch, able, dtype):
    monkeypatch.delenv(models.FORCED, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert models.pick_dtype(torch.device("cpu")) == dtype


def test_little_memory_gets_the_weights_that_stay_in_their_file(monkeypatch):
    monkeypatch.delenv(models.FORCED, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setenv("LORA_LAB_MEMORY_GB", "2")
    assert models.pick_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("forced", ["float32", "bfloat16"])
def test_one_variable_forces_the_other_precision(monkeypatch, capsys, forced):
    monkeypatch.setenv(models.FORCED, forced)
    assert load_base()[0].dtype == getattr(torch, forced) and f" in {forced}, " in capsys.readouterr().out
    assert load_base(precision="float32", quiet=True)[0].dtype == torch.float32, "a cell that names one gets it"


@pytest.mark.parametrize("forced", ["float16", "int8", "bf16"])
def test_a_precision_that_a_cpu_cannot_train_in_is_refused(monkeypatch, forced):
    monkeypatch.setenv(models.FORCED, forced)
    with pytest.raises(LabError, match=f"LORA_LAB_PRECISION is '{forced}'.*on cpu in: float32, bfloat16"):
        models.pick_dtype(torch.device("cpu"))


def test_a_slice_before_the_head_is_one_product(base):
    """torch multiplies a slice batch by batch with an expanded weight, where the weight is frozen."""
    model, _ = base
    ids = torch.arange(60, device=model.device).reshape(3, 20)
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as told:
        kept = model(ids, logits_to_keep=5).logits
    events = told.key_averages(group_by_input_shape=True)
    products = [event for event in events if event.key in ("aten::bmm", "aten::mm")]
    of_head = [event.key for event in products if model.config.vocab_size in sum(map(list, event.input_shapes), [])]
    assert of_head == ["aten::mm"]
    with torch.no_grad():
        assert torch.allclose(kept.float(), model(ids).logits[:, -5:].float(), atol=1e-3 if kept.dtype ==
                              torch.float32 else 0.5)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_a_t4_gets_float16_and_newer_gpus_bfloat16(monkeypatch, capability, dtype):
    monkeypatch.delenv(models.FORCED, raising=False)
    properties = type("properties", (), {"major": capability[0], "minor": capability[1]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert models.pick_dtype(torch.device("cuda")) == dtype


def test_each_process_of_a_launch_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models.pick_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert models.pick_device() == torch.device("cuda", 3)


def test_local_folder_loads(tmp_path, tiny_model, tokenizer):
    tiny_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_base(str(tmp_path))
    assert model.num_parameters() == tiny_model.num_parameters()


@pytest.mark.parametrize("precision", ["int4", "", "fp32"])
def test_unknown_precision_lists_the_known(precision):
    with pytest.raises(LabError, match="float32, bfloat16"):
        load_base(precision=precision)


def test_int8_without_bitsandbytes_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(LabError, match="pip install bitsandbytes"):
        load_base(precision="int8")


def test_unknown_hub_name_is_a_short_error_without_a_network(monkeypatch):
    monkeypatch.setattr(models, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LabError, match="Cannot load 'nobody/no-such-model'.*SmolLM2-135M-Instruct") as caught:
        load_base("nobody/no-such-model")
    assert caught.value.__suppress_context__, "the library's inside must not show"


def test_whether_a_model_of_the_hub_has_safetensors_is_asked_of_this_machine_first(monkeypatch):
    asked = []
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda name, file: f"/{file}" if name == "here/it" else None)
    monkeypatch.setattr(models, "file_exists", lambda name, file: asked.append(name) or file.endswith("index.json"))
    monkeypatch.setattr(models, "hub_answers", lambda: True)
    assert models.has_safetensors("here/it") and not asked
    assert models.has_safetensors("there/it") and asked == ["there/it"] * 2
    monkeypatch.setattr(models, "file_exists", lambda name, file: False)
    assert models.has_safetensors("there/pickled") is False
    monkeypatch.setattr(models, "hub_answers", lambda: False)
    assert models.has_safetensors("there/it") is None, "nobody can be asked"


def test_folders_that_are_no_model_say_what_they_are(tmp_path):
    with pytest.raises(LabError, match="not a model"):
        load_base(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LabError, match="is an adapter.*PeftModel.from_pretrained"):
        load_base(str(tmp_path))


@pytest.mark.parametrize("name", ["", "/nonexistent/model", "./nothing", "~/nothing", "a/b/c"])
def test_a_path_that_leads_nowhere_is_said_to_be_one(name):
    with pytest.raises(LabError, match="There is no folder"):
        load_base(name)


def test_damaged_weights_of_a_local_model_are_a_short_error(tmp_path, tiny_model, tokenizer):
    tiny_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LabError, match="Cannot load"):
        load_base(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path, tiny_model, tokenizer):
    tiny_model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(tiny_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(LabError, match="safetensors"):
        load_base(str(tmp_path))


def test_the_least_of_all_limits_counts(monkeypatch):
    monkeypatch.delenv("LORA_LAB_MEMORY_GB", raising=False)
    monkeypatch.delenv("MEM_LIMIT", raising=False)
    whole = models.memory_limit()
    assert 0 < whole <= psutil.virtual_memory().total
    monkeypatch.setenv("MEM_LIMIT", str(2 * 2**30))  # as JupyterHub says it
    assert models.memory_limit() == min(whole, 2 * 2**30)
    monkeypatch.setenv("LORA_LAB_MEMORY_GB", "1.5")
    assert models.memory_limit() == 1_500_000_000


def test_a_limit_set_by_ulimit_counts():
    resource = pytest.importorskip("resource")
    code = "from lora_lab import models; print(models.memory_limit())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=lambda:
                          resource.setrlimit(resource.RLIMIT_DATA, (3 * 10**9, resource.RLIM_INFINITY)))
    assert int(done.stdout) == 3 * 10**9


def test_the_smaller_path_is_said(monkeypatch, capsys):
    monkeypatch.setenv("LORA_LAB_MEMORY_GB", "2")
    assert models.has_memory(1.5, "nothing") and not capsys.readouterr().out
    assert not models.has_memory(5, "it trains less")
    assert "up to 5 GB of memory and there is 2.0 GB. The smaller path: it trains less." in capsys.readouterr().out


def test_the_packaged_weights_say_how_far_they_are_from_the_hubs(base, monkeypatch, tmp_path, capsys):
    load_base()
    said = capsys.readouterr().out
    assert re.search(r"stored in 4 bits: about [78]\.\d% off the hub's, by the size of the 4-bit steps", said)
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 15)]
    weights = {name: 1.25 * base[0].state_dict()[name].detach().float().cpu() for name in names}
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    load_base()
    assert "(a copy whose weights were stored in 4 bits: 25.0% off the hub's)" in capsys.readouterr().out
