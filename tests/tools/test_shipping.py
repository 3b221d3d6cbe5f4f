"""Saving all or nothing: what is written loads elsewhere, and a fault leaves the previous files."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lora_lab import LabError, files, pocket, shipping
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

IDS = torch.arange(5, 25)[None]


@pytest.fixture
def model():
    torch.manual_seed(0)
    small, _ = pocket.load()
    model = get_peft_model(small, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def test_adapter_and_merged_model_load_and_answer_alike(model, tmp_path):
    words = pocket.tokenizer()
    shipping.ship(model, words, tmp_path / "adapter", "# A card", base="somebody/pocket")
    merged = copy.deepcopy(model).merge_and_unload()
    shipping.ship(merged, words, tmp_path / "merged", "# A card")
    adapter = PeftModel.from_pretrained(pocket.load()[0], tmp_path / "adapter")
    assert torch.equal(logits(adapter), logits(model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(merged))
    for folder in ("adapter", "merged"):
        assert AutoTokenizer.from_pretrained(tmp_path / folder)("> open")["input_ids"] == words("> open")["input_ids"]
        files = contents(tmp_path / folder)
        assert files["README.md"] == b"# A card"
        assert {Path(name).suffix for name in files} <= {".json", ".md", ".safetensors", ".jinja"}
        assert not any(str(place).encode() in text for text in files.values() for place in (tmp_path, Path.home()))
    assert json.loads(files.get("adapter_config.json", b"{}")) == {}
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "somebody/pocket"
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["adapter", "merged"]


def test_a_base_from_a_local_folder_must_be_named(model, tmp_path):
    pocket.load()[0].save_pretrained(tmp_path / "base")
    local = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    local = get_peft_model(local, LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(LabError, match="only this machine knows"):
        shipping.ship(local, pocket.tokenizer(), tmp_path / "adapter", "card")
    assert not (tmp_path / "adapter").exists()


class Stopped:
    def save_pretrained(self, folder):
        raise KeyboardInterrupt


def test_an_interrupted_save_leaves_the_previous_files(model, tmp_path, capsys):
    shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "first", base="a/b")
    before = contents(tmp_path / "it")
    with pytest.raises(KeyboardInterrupt):
        shipping.ship(model, Stopped(), tmp_path / "it", "second", base="a/b")
    assert contents(tmp_path / "it") == before
    assert "previous files are as they were" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.name != ".it.lock"] == ["it"]


PROGRAM = """
import resource, signal, sys
from lora_lab import LabError, pocket, shipping
model, words = pocket.load()
shipping.ship(model, words, "it", "first")
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        shipping.ship(model, words, "it", "second")
    except LabError as error:
        print(error)
else:
    class Slow:
        def save_pretrained(self, folder):
            print("now", flush=True)
            import time
            time.sleep(60)
    shipping.ship(model, Slow(), "it", "second")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of Unix")
def test_a_full_disk_leaves_the_previous_files(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, "full"], cwd=tmp_path, capture_output=True, text=True)
    assert "Could not save" in done.stdout and "previous files are as they were" in done.stdout, done.stderr
    assert (tmp_path / "it" / "README.md").read_text() == "first"
    AutoModelForCausalLM.from_pretrained(tmp_path / "it")


@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of Unix")
def test_a_killed_save_leaves_the_previous_files_and_the_next_one_says_so(tmp_path, capsys):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "kill"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline().strip() != "now":
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "it" / "README.md").read_text() == "first"
    assert any("incomplete" in p.name for p in tmp_path.iterdir())
    shipping.ship(*pocket.load(), tmp_path / "it", "third")
    assert "was killed" in capsys.readouterr().out
    assert (tmp_path / "it" / "README.md").read_text() == "third"
    assert not any("incomplete" in p.name for p in tmp_path.iterdir())


def test_killed_at_the_last_step_the_previous_files_come_back(tmp_path, capsys):
    model, words = pocket.load()
    shipping.ship(model, words, tmp_path / "it", "first")
    os.replace(tmp_path / "it", tmp_path / ".it.previous")
    with pytest.raises(KeyboardInterrupt):
        shipping.ship(model, Stopped(), tmp_path / "it", "second")
    assert "previous files are back" in capsys.readouterr().out
    assert (tmp_path / "it" / "README.md").read_text() == "first"


def _with_nan(model):
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    return model


@pytest.mark.parametrize("wrong, words", [
    (lambda m, t, f: shipping.ship(m.get_base_model(), t, f, "card"), "adapter layers"),
    (lambda m, t, f: shipping.ship(copy.deepcopy(m).unload() and m, None, f, "card"), "tokenizer"),
    (lambda m, t, f: shipping.ship(m, t, f, " "), "model card is empty"),
    (lambda m, t, f: shipping.ship(m.unload(), t, f, f"trained in {Path.home()}/secret"), "path of this machine"),
    (lambda m, t, f: shipping.ship(m.unload(), t, f.parent, "card"), "other files"),
    (lambda m, t, f: (m.merge_and_unload(), shipping.ship(m, t, f, "card")), "taken out"),
    (lambda m, t, f: shipping.ship(t, m, f, "card"), "ship\\(model, tokenizer"),
    (lambda m, t, f: shipping.ship(m, t, None, "card"), "name of a folder"),
    (lambda m, t, f: shipping.ship(m, t, f, Path("card.md")), "Give its text"),
    (lambda m, t, f: shipping.ship(m, t, f.parent / "notes.txt" / "it", "card"), "may write to"),
    (lambda m, t, f: shipping.ship(m, t, f, "card", base=5), "owner/name"),
    (lambda m, t, f: shipping.ship(m, t, f, "card", base="my base"), "owner/name"),
    (lambda m, t, f: shipping.ship(_with_nan(m.unload()), t, f, "card"), "1 of the weights hold NaN"),
])
def test_ship_refuses(model, tmp_path, wrong, words):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LabError, match=words):
        wrong(model, pocket.tokenizer(), tmp_path / "it")
    assert not (tmp_path / "it").exists() and (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("stranger", [".git/HEAD", "checkpoint-9/optimizer.pt", "train.py", "adapter/notes.txt"])
def test_a_folder_with_other_files_beside_a_model_is_refused(model, tmp_path, stranger):
    shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "first", base="a/b")
    file = tmp_path / "it" / stranger
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(LabError, match=stranger.split("/")[0]):
        shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "second", base="a/b")
    assert file.read_text() == "mine" and (tmp_path / "it" / "README.md").read_text() == "first"


def test_a_named_adapter_names_its_base_and_ships_twice(tmp_path):
    named = get_peft_model(pocket.load()[0], LoraConfig(r=2, target_modules="all-linear"), adapter_name="mine")
    named.peft_config["mine"].base_model_name_or_path = "/secret/llama"
    for _ in range(2):
        shipping.ship(named, pocket.tokenizer(), tmp_path / "it", "card", base="owner/name")
    config = json.loads((tmp_path / "it" / "mine" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/name"


def test_a_link_to_a_folder_stays_a_link(model, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for _ in range(2):
        shipping.ship(model, pocket.tokenizer(), tmp_path / "link", "card", base="a/b")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "adapter_model.safetensors").exists()
    assert not (tmp_path / ".link.previous").exists()


@pytest.mark.parametrize("added", [0, 8])
def test_a_resized_embedding_travels_with_the_adapter(tmp_path, added):
    pocket.load()[0].save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(base.config.vocab_size + added)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "card", base="a/b")
    saved = load_file(tmp_path / "it" / "adapter_model.safetensors")
    assert any("embed_tokens" in name for name in saved) is bool(added)


def test_a_card_in_any_script_and_an_address_that_looks_like_a_path(model, tmp_path, monkeypatch):
    monkeypatch.chdir("/usr" if sys.platform != "win32" else tmp_path)
    card = "naïve 模型, see https://example.org/usr/model"
    shipping.ship(model, pocket.tokenizer(), tmp_path / "it", card, base="a/b")
    assert (tmp_path / "it" / "README.md").read_bytes() == card.encode()


@pytest.mark.parametrize("names", [["README.md"], ["vocab.csv", "tsconfig.json"], ["my_embeddings.safetensors"],
                                   ["sub/README.md"], ["adapter_config.json", "adapter_model.safetensors"], ["sub/"]])
def test_what_was_not_shipped_is_not_ours_whatever_its_name(model, tmp_path, names):
    for name in names:
        (tmp_path / "it" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "it" / name).mkdir() if name.endswith("/") else (tmp_path / "it" / name).write_text("mine")
    with pytest.raises(LabError, match=f"holds other files.*{names[0].rstrip('/')}"):
        shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "card", base="a/b")
    assert sorted(str(p.relative_to(tmp_path / "it")) for p in (tmp_path / "it").rglob("*") if not any(
        q.is_relative_to(p) and q != p for q in (tmp_path / "it").rglob("*"))) == sorted(n.rstrip("/") for n in names)


def test_an_edited_file_is_no_longer_ours(model, tmp_path):
    shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "first", base="a/b")
    weights = tmp_path / "it" / "adapter_model.safetensors"
    changed = weights.read_bytes()[:-1] + b"\x07"  # of the same size, as another training's are
    weights.write_bytes(changed)
    with pytest.raises(LabError, match="holds other files.*adapter_model.safetensors"):
        shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "second", base="a/b")
    assert weights.read_bytes() == changed


class OtherFiles:
    """A tokenizer with a model of sentencepiece and code of its own, and something that comes in meanwhile."""

    def __init__(self, beside=None):
        self.beside = beside

    def save_pretrained(self, folder):
        for name in ("sentencepiece.bpe.model", "tokenization_own.py", "deep/er/vocab.csv"):
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_text(name)
        if self.beside:
            (self.beside / "notes.txt").write_text("mine")


def test_whatever_a_tokenizer_writes_is_shipped_again(model, tmp_path, capsys):
    for card in ("first", "second"):
        shipping.ship(model, OtherFiles(), tmp_path / "it", card, base="a/b")
    assert (tmp_path / "it" / "README.md").read_text() == "second" and "kept" not in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.name != ".it.lock"] == ["it"]


def test_a_file_that_comes_in_while_saving_is_kept(model, tmp_path, capsys):
    shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "first", base="a/b")
    shipping.ship(model, OtherFiles(tmp_path / "it"), tmp_path / "it", "second", base="a/b")
    assert (tmp_path / "it.kept-1" / "notes.txt").read_text() == "mine" and "it.kept-1" in capsys.readouterr().out
    assert (tmp_path / "it" / "README.md").read_text() == "second" and not (tmp_path / "it" / "notes.txt").exists()


def test_what_lies_beside_under_a_name_of_ours_is_left_alone(model, tmp_path):
    (tmp_path / ".it.incomplete-mine").mkdir()
    (tmp_path / ".it.incomplete-mine" / "thesis.txt").write_text("years")
    (tmp_path / ".it.previous").mkdir()
    (tmp_path / ".it.previous" / "thesis.txt").write_text("years")
    shipping.ship(model, pocket.tokenizer(), tmp_path / "it", "card", base="a/b")
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2
    (tmp_path / ".it.previous").rename(tmp_path / ".that.incomplete")
    (tmp_path / ".other.lock").write_text("mine")
    for name, message in (("that", "is in the way"), ("other", "is no lock")):
        with pytest.raises(LabError, match=message):
            shipping.ship(model, pocket.tokenizer(), tmp_path / name, "card", base="a/b")
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2 and (tmp_path / ".other.lock").read_text() == "mine"


@pytest.mark.parametrize("folder", ["s3://bucket/it", "gs://a/b", "hdfs:///a", "dbfs:/mnt/it", "me@host:/it",
                                    "hf://a/b", Path("s3://bucket/it"), "https://huggingface.co/a/b", "file:///tmp/it"])
def test_an_address_is_refused_with_what_to_do(model, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="is an address.*copy it there"):
        shipping.ship(model, pocket.tokenizer(), folder, "card", base="a/b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [".", "..", "inner/..", "inner/../../work"])
def test_the_folder_that_one_works_in_is_never_replaced(model, tmp_path, monkeypatch, folder):
    (tmp_path / "work" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(LabError, match="in which you work"):
        shipping.ship(model, pocket.tokenizer(), folder, "card", base="a/b")
    assert Path.cwd().exists()


def test_a_base_of_the_name_of_a_folder_here_can_be_given(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta" / "tiny").mkdir(parents=True)
    shipping.ship(model, pocket.tokenizer(), "it", "card", base="meta/tiny")
    assert json.loads(Path("it/adapter_config.json").read_text())["base_model_name_or_path"] == "meta/tiny"
    model.peft_config["default"].base_model_name_or_path = "meta/tiny"  # which is the folder, as far as one can see
    with pytest.raises(LabError, match="only this machine knows"):
        shipping.ship(model, pocket.tokenizer(), "it", "card")


@pytest.mark.parametrize("named, known", [("", False), ("owner/unknown", False), ("SmolLM2-135M-Instruct", True)])
def test_an_embedding_of_unknown_origin_travels_with_the_adapter(tmp_path, monkeypatch, capsys, named, known):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pocket.load()[0].config.save_pretrained(tmp_path / "cache" / "SmolLM2-135M-Instruct")
    for added in (0, 8):
        base = pocket.load()[0]
        base.config._name_or_path = f"HuggingFaceTB/{named}" if known else named
        base.resize_token_embeddings(base.config.vocab_size + added)
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
        shipping.ship(adapted, pocket.tokenizer(), tmp_path / "it", "card", base="a/b")
        saved = load_file(tmp_path / "it" / "adapter_model.safetensors")
        assert any("embed_tokens" in name for name in saved) is (bool(added) or not known)
        assert ("nobody can tell" in capsys.readouterr().out) is not known


def test_a_token_that_reads_like_a_folder_is_no_path(model, tmp_path, monkeypatch):
    words = pocket.tokenizer()
    words.add_tokens([str(tmp_path), f"{tmp_path}/x"])
    words.add_special_tokens({"pad_token": str(tmp_path)})
    monkeypatch.chdir(tmp_path)
    shipping.ship(model, words, "it", "card", base="a/b")
    with pytest.raises(LabError, match="README.md would hold a path"):
        shipping.ship(model, words, "it", f"trained in {tmp_path}", base="a/b")
    words.init_kwargs["trained_by"] = f"{tmp_path}/train.py"
    with pytest.raises(LabError, match="tokenizer_config.json would hold a path"):
        shipping.ship(model, words, "it", "card", base="a/b")


DIES = """
import os
from pathlib import Path
import torch
from killed import killed_at
from lora_lab import shipping
class Model(torch.nn.Linear):
    def save_pretrained(self, folder):
        Path(folder, "model.safetensors").write_text(text)
class Words:
    def save_pretrained(self, folder):
        Path(folder, "deep").mkdir()
        Path(folder, "deep", "tokenizer.model").write_text(text)
def there():
    return {p.name: p.read_text() for p in Path("it").rglob("*") if p.is_file() and p.name[0] != "."}
def whole():
    return there() in [dict.fromkeys(("README.md", "model.safetensors", "tokenizer.model"), t) for t in ("one", "two")]
model, text, step, killed = Model(2, 2), "one", 0, True
shipping.ship(model, Words(), "it", text)
while killed:
    step, text = step + 1, "two"
    killed = killed_at(step, lambda: shipping.ship(model, Words(), "it", text))
    assert whole(), (step, there())
    text = "one"
    shipping.ship(model, Words(), "it", text)
    assert there()["README.md"] == "one" and sorted(os.listdir()) == [".it.lock", "it"], (step, os.listdir())
print("steps", step)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="exchanges names as Linux does")
def test_killed_at_any_step_a_shipped_folder_is_there_whole(tmp_path):
    done = subprocess.run([sys.executable, "-c", DIES], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 40, "steps that it was killed at"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that takes no file, whoever asks")
def test_a_place_where_no_lock_can_be_made_is_refused_at_once(model):
    with pytest.raises(LabError, match="Could not save to /proc/x: .*Give a folder that you may write to"):
        shipping.ship(model, pocket.tokenizer(), "/proc/x", "card", base="a/b")


def test_another_that_saves_there_is_waited_for_and_said(model, tmp_path, capsys):
    said, until = "", time.monotonic() + 60
    with files.lock(tmp_path / ".it.lock"):
        arguments = model, pocket.tokenizer(), tmp_path / "it", "card", "a/b"
        thread = threading.Thread(target=shipping.ship, args=arguments, daemon=True)
        thread.start()
        while "waiting for it" not in said and time.monotonic() < until:
            said += capsys.readouterr().out
            time.sleep(0.05)
        assert "waiting for it" in said and not (tmp_path / "it").exists()
    thread.join(60)
    assert (tmp_path / "it" / "README.md").read_text() == "card"
