"""Files: whole or not at all, never over another, and read with a limit."""

import json
import os
import stat
import sys
import threading

import pytest
from filelock import Timeout
from lora_lab import files


def test_what_is_written_is_there_whole_and_readable_by_others(tmp_path):
    assert files.write(tmp_path / "notes.txt", "Grüße\n") == tmp_path / "notes.txt"
    assert files.write(tmp_path / "raw", b"\x00\xff").read_bytes() == b"\x00\xff"
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "Grüße\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.txt", "raw"]
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "raw").stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("No space left"), KeyboardInterrupt()])
def test_a_fault_on_the_way_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step, error):
    files.write(tmp_path / "kept", "old")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        files.write(tmp_path / "kept", "new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a right there")
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/real").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/real")
    files.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere/real").read_text() == "new"


def test_a_lock_keeps_others_out_and_makes_its_folder(tmp_path):
    found = []

    def other():
        try:
            files.lock(tmp_path / "a/b/.lock", timeout=0)
        except Timeout as error:
            found.append(error)

    with files.lock(tmp_path / "a/b/.lock"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1 and isinstance(found[0], OSError)
    files.lock(tmp_path / "a/b/.lock", timeout=0).release()


def test_a_free_name_is_one_that_nothing_has(tmp_path):
    assert files.free(tmp_path / "a.txt", "mine") == tmp_path / "a.mine-1.txt"
    (tmp_path / "a.mine-1.txt").touch()
    if sys.platform != "win32":
        (tmp_path / "a.mine-2.txt").symlink_to("nowhere")
        assert files.free(tmp_path / "a.txt", "mine") == tmp_path / "a.mine-3.txt"


@pytest.mark.parametrize("content, reason", [
    (b"{", "it is not JSON"), (b"", "it is not JSON"), (b"\xff", "it is not a text file"), (b"[]", "expected a dict"),
    (b"[" * 200_000, "nested too deeply"), (b" " * 2_000_001, "2,000,001 bytes, and 2,000,000 are the most"),
])
def test_a_file_that_anybody_may_have_written_has_no_other_fault(tmp_path, content, reason):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        files.read_json(tmp_path / "file.json", dict)


def test_what_is_no_file_ends_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read_text(tmp_path / "none")
    if os.path.exists("/dev/zero"):
        with pytest.raises(ValueError, match="no regular file"):
            files.read_text("/dev/zero")


def test_json_comes_back(tmp_path):
    content = {"a": [1, None, "é"]}
    assert files.read_json(files.write(tmp_path / "f", json.dumps(content)), dict) == content
