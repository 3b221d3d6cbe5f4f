"""The learner's progress file: nothing is lost to other notebooks, damage or a full disk."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_lab import LabError
from lora_lab.course import progress_file
from lora_lab.course.progress_file import Record

SAVES = """
import sys
from dataclasses import replace
from lora_lab.course import progress_file
for i in range(125):
    progress_file.change("shared/question", lambda kept: replace(kept, attempts=kept.attempts + 1))
    progress_file.change(f"process{sys.argv[1]}/question{i}", lambda kept: replace(kept, solved=True))
"""


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_PROGRESS", str(tmp_path / "folder" / "progress.json"))
    yield progress_file.file()
    for memory in (progress_file.notices, progress_file._unsaved, progress_file._told):
        memory.clear()


def attempt(kept):
    return replace(kept, attempts=kept.attempts + 1)


def test_four_notebooks_at_once_lose_nothing(file):
    notebooks = [subprocess.Popen([sys.executable, "-c", SAVES, str(i)]) for i in range(4)]
    assert [notebook.wait(300) for notebook in notebooks] == [0, 0, 0, 0]
    records = progress_file.read()
    assert records["shared/question"].attempts == 500
    assert sum(kept.solved for kept in records.values()) == 500
    assert progress_file.notices == [] and sorted(path.name for path in file.parent.iterdir()) == [
        "progress.json", "progress.json.lock",
    ]


DAMAGE = {
    "truncated": b'{"version": 1, "questions": {"a/b": {"attem',
    "empty": b"",
    "no JSON": b"\xff\xfe\x00",
    "another shape": b"[1, 2]",
    "deep": b"[" * 100_000,
    "a huge number": b"9" * 5_000,
    "10 MB": b'{"questions": {"' + b"x" * 10_000_000 + b'": {}}}',
    "wrong types": b'{"questions": {"a/b": {"attempts": "three"}, "c/d": 7, "e/f": {"solved": "<script>"}}}',
    "an endless measurement": b'{"questions": {"a/b": {"answer": 0, "measured": Infinity}}}',
    "markup for an id": b'{"questions": {"' + b"<img src=x onerror=alert(1)>" * 9 + b'": {}}}',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_set_aside_with_a_message(file, content):
    file.parent.mkdir()
    file.write_bytes(content)
    assert progress_file.read() == {}
    [notice] = progress_file.notices
    [kept] = file.parent.glob("progress.damaged-*.json")
    assert str(kept) in notice and kept.read_bytes() == content
    assert progress_file.change("a/b", attempt).attempts == 1
    assert progress_file.read()["a/b"].attempts == 1 and len(progress_file.notices) == 1


def test_good_records_survive_bad_neighbours(file):
    progress_file.change("a/b", attempt)
    content = json.loads(file.read_text())
    content["questions"]["c/d"] = {"attempts": -1}
    file.write_text(json.dumps(content))
    assert progress_file.read() == {"a/b": Record(attempts=1)}
    assert "1 of its records could be read" in progress_file.notices[0]
    assert progress_file.read() == {"a/b": Record(attempts=1)} and len(progress_file.notices) == 1, "mended once"


def test_a_second_damage_does_not_overwrite_the_first(file):
    file.parent.mkdir()
    for content in (b"first", b"second"):
        file.write_bytes(content)
        progress_file.read()
    assert {path.read_bytes() for path in file.parent.glob("progress.damaged-*")} == {b"first", b"second"}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_a_notebook(file, content):
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    progress_file.read()
    assert progress_file.change("a/b", lambda _: Record(attempts=1)).attempts == 1


def test_a_place_that_cannot_be_written_is_named_and_answers_count(file):
    file.parent.write_text("a file where the folder should be")
    assert progress_file.change("a/b", attempt).attempts == 1
    assert progress_file.change("a/b", attempt).attempts == 2
    assert progress_file.read()["a/b"].attempts == 2
    assert "LORA_LAB_PROGRESS" in progress_file.notices[0]
    file.parent.unlink()
    assert progress_file.change("a/b", attempt).attempts == 3, "what could not be saved is saved with the next answer"
    assert json.loads(file.read_text())["questions"]["a/b"]["attempts"] == 3


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_a_kill_in_the_middle_of_saving_leaves_a_whole_file(file):
    progress_file.change("a/b", attempt)
    child = subprocess.Popen([sys.executable, "-c", SAVES, "0"])
    try:
        for _ in range(2000):
            if file.read_text().count("process0") > 20:
                break
    finally:
        child.kill()
        child.wait()
    assert progress_file.read()["a/b"].attempts == 1 and progress_file.notices == []
    assert progress_file.change("a/b", attempt).attempts == 2, "the lock of the dead is free"


def test_export_copies_and_reset_keeps_a_copy(file, tmp_path):
    progress_file.change("first/a", attempt)
    progress_file.change("math/b", attempt)
    exported = json.loads(progress_file.export(tmp_path / "mine.json").read_text())
    assert exported["questions"].keys() == {"first/a", "math/b"}
    kept = progress_file.reset(lambda name: name.startswith("first/"))
    assert progress_file.read().keys() == {"math/b"} and "first/a" in kept.read_text()
    assert progress_file.reset(lambda name: name.startswith("first/")) is None
    with pytest.raises(LabError, match="cannot be written"):
        progress_file.export(tmp_path / "no" / "such" / "folder.json")


def test_fields_of_another_version_are_no_damage(file):
    file.parent.mkdir()
    file.write_text('{"version": 2, "questions": {"a/b": {"attempts": 2, "seconds": 40}}}')
    assert progress_file.read() == {"a/b": Record(attempts=2)} and progress_file.notices == []
