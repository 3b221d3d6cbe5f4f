"""Files: whole or not at all, never over another, and read with a limit."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import Timeout
from lora_lab import LabError, files


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


@pytest.mark.parametrize("content, found", [("[" * 60 + "]" * 60, "nested too deeply"), ('{"a": 1} x', "not JSON")])
def test_no_json_is_deeper_than_what_reads_it_can_bear(content, found):
    with pytest.raises(ValueError, match=found):
        files.parse_json(content, list)


def test_a_number_beyond_all_measure_is_a_float():
    assert files.parse_json("[12345678901234567890, " + "9" * 5000 + ", 123456789012345678]", list) == [
        12345678901234567890.0, float("inf"), 123456789012345678]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_a_pipe_is_neither_waited_for_nor_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        files.read_text(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, "/dev/null"):
        with pytest.raises(OSError, match="no regular file"):
            files.write(place, "x")
    assert Path("/dev/null").is_char_device()


def test_a_file_with_something_in_it_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with pytest.raises(OSError, match="is no lock"):
        files.lock(tmp_path / ".lock")
    assert (tmp_path / ".lock").read_text() == "mine"
    (tmp_path / ".lock").write_text("4711\nmachine\n")  # of a kernel that was killed, on a disk without locks
    files.lock(tmp_path / ".lock").release()


@pytest.mark.parametrize("path", ["s3://bucket/x", "gs://b", "hdfs:///x", "dbfs:/mnt", "you@host:/x", Path("s3://b/x")])
def test_an_address_is_no_place(path):
    with pytest.raises(LabError, match="is an address"):
        files.place(path)


@pytest.mark.parametrize("path", ["", "  ", "a\0b", None, 3, b"x", ["x"], "~nobody-of-that-name/x"])
def test_what_is_no_name_is_no_place(path):
    with pytest.raises(LabError, match="expected the name|leads nowhere"):
        files.place(path)


def test_a_place_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.place("a/b") == tmp_path / "a/b" and files.place("./s3:/b") == tmp_path / "s3:/b"
    assert files.place("~/x") == Path.home() / "x" and files.place(Path(tmp_path, "x")) == tmp_path / "x"


# Folders that are replaced whole.


def fill(folder, text, *names):
    work = files.begin(folder)
    for name in names or ("one", "deep/er/two"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    return work


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*")
            if path.is_file() and path.name != files.MANIFEST}


def test_a_folder_is_replaced_and_only_what_is_its_own_goes(tmp_path):
    it = tmp_path / "it"
    assert files.finish(fill(it, "first"), it) is None
    assert files.is_whole(it) and files.strangers(it) == [] and texts(it) == {"one": "first", "deep/er/two": "first"}
    assert files.finish(fill(it, "second", "other"), it) is None
    assert texts(it) == {"other": "second"} and [p.name for p in tmp_path.iterdir()] == ["it"]
    (it / "mine").write_text("mine")
    (it / "empty").mkdir()
    assert files.strangers(it) == ["empty", "mine"] and not files.is_whole(it)
    kept = files.finish(fill(it, "third"), it)
    assert texts(kept) == {"mine": "mine"} and (kept / "empty").is_dir()
    assert texts(it) == {"one": "third", "deep/er/two": "third"}
    assert not files.discard(kept) and texts(kept) == {"mine": "mine"}


def test_names_that_lead_out_of_a_folder_are_not_believed(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "out" / "empty").mkdir(parents=True)
    (tmp_path / "out" / "mine").write_text("mine")
    digest = files._contents(tmp_path / "out")["mine"]
    noted = {"../out/mine": digest, "../out/empty/x": "0", str(tmp_path / "out/mine"): digest}
    (tmp_path / "it" / files.MANIFEST).write_text(json.dumps({"files": noted}))
    files.discard(tmp_path / "it")
    assert (tmp_path / "out" / "mine").exists() and (tmp_path / "out" / "empty").exists()


@pytest.mark.parametrize("noted", ["", "[]", '{"files": 3}', '{"files": {"mine": 3}}', "[" * 99,
                                   '{"unfinished": "other"}'])
def test_a_damaged_manifest_owns_nothing(tmp_path, noted):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "mine").write_text("mine")
    (tmp_path / "it" / files.MANIFEST).write_text(noted)
    assert not files.discard(tmp_path / "it") and (tmp_path / "it" / "mine").exists()
    assert not files.is_whole(tmp_path / "it") and files.strangers(tmp_path / "it") == ["mine"]


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a right there")
def test_a_link_in_a_folder_is_a_stranger_and_a_linked_folder_is_not_emptied(tmp_path):
    it = tmp_path / "it"
    files.finish(fill(it, "first"), it)
    (it / "link").symlink_to(it / "one")
    assert files.strangers(it) == ["link"]
    (tmp_path / "linked").symlink_to(it)
    assert not files.discard(tmp_path / "linked") and texts(it)["one"] == "first"


DIES = """
import os, sys
from pathlib import Path
from killed import killed_at
from lora_lab import files
folder = Path("it")
exchange = sys.argv[1] == "True"
def save(text, *names):
    for line in files.recover(folder):
        pass
    assert not (folder.exists() and files.strangers(folder))
    work = files.begin(folder)
    for name in names:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    files.finish(work, folder)
def whole():
    there = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
    there.pop(files.MANIFEST)
    return there in ({"a": "first", "sub/b": "first"}, {"a": "second", "c/d/e": "second"})
if not exchange:
    files._exchange = lambda *_: False
save("first", "a", "sub/b")
step, killed = 0, True
while killed:
    step += 1
    killed = killed_at(step, lambda: save("second", "a", "c/d/e"))
    there = folder.exists() and whole()
    if exchange:
        assert there, step
    save("first", "a", "sub/b")
    assert whole() and sorted(os.listdir()) == ["it"], (step, os.listdir())
print(step)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_any_step_there_is_the_old_folder_or_the_new_one(tmp_path, exchange):
    """Without an exchange of names there is a moment between two renames: then the next save brings the old back."""
    done = subprocess.run([sys.executable, "-c", DIES, str(exchange)], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30, "steps that it was killed at"
