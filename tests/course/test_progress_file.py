"""The learner's progress file: nothing is lost to other notebooks, damage or a full disk."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_lab import LabError, files
from lora_lab.course import cards, progress_file, question_files
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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize("mine, theirs, joined", [
    (Record(), Record(2, True, True, 1, 3), Record(2, True, True, 1, 3)),
    (Record(3, False, False, 2, 0), Record(1, True, False, 0, 1), Record(3, True, False, 2, 1)),
    (Record(1, True, False, 0, 1), Record(4, False, True, 2, 0), Record(4, True, False, 2, 1)),
    (Record(answer=0), Record(solved=True, answer=1, measured=70), Record(answer=0)),  # my prediction
    (Record(), Record(solved=True, answer=1, measured=70), Record(solved=True, answer=1, measured=70)),
    (Record(2), Record(1, True), Record(2, True)),  # an exercise
])
def test_answers_from_elsewhere_are_added_and_replace_none_but_a_wrong_one(file, mine, theirs, joined):
    progress_file.change("first/a", lambda _: mine)
    progress_file.take_in({"first/a": theirs, "math/b": theirs})
    assert progress_file.read() == {"first/a": joined, "math/b": theirs} and progress_file._unsaved == []
    progress_file.take_in({"first/a": theirs})
    assert progress_file.read()["first/a"] == joined, "twice is once"


def test_fields_of_another_version_are_no_damage(file):
    file.parent.mkdir()
    file.write_text('{"version": 2, "questions": {"a/b": {"attempts": 2, "seconds": 40}}}')
    assert progress_file.read() == {"a/b": Record(attempts=2)} and progress_file.notices == []
    progress_file.change("a/b", attempt)
    kept = json.loads(file.read_text())["questions"]["a/b"]
    assert (kept["attempts"], kept["seconds"]) == (3, 40), "a kernel of an older version takes nothing away"


def kernel():
    """The module once more: what another kernel has in its memory, on the same file."""
    spec = importlib.util.find_spec("lora_lab.course.progress_file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = progress_file
    return module


def on_disk(file):
    content = json.loads(file.read_text())["questions"] if file.exists() else {}
    return {name: (kept["attempts"], kept["solved"]) for name, kept in content.items()}


def failing(*_, **__):
    raise OSError("No space left on device")


def solve(kept):
    return replace(kept, attempts=kept.attempts + 1, solved=True)


def test_a_failed_save_never_lowers_what_the_file_has(file, monkeypatch):
    progress_file.change("a/b", solve)
    progress_file.change("c/d", solve)
    with monkeypatch.context() as broken:
        broken.setattr(files, "lock", failing)
        broken.setattr(files, "read_json", failing)  # as on a disk that is gone for a while
        assert progress_file.change("a/b", attempt).attempts == 1, "all that this kernel knows by itself"
    assert on_disk(file) == {"a/b": (1, True), "c/d": (1, True)}
    progress_file.change("e/f", attempt)
    assert on_disk(file) == {"a/b": (2, True), "c/d": (1, True), "e/f": (1, False)}


def test_what_waits_here_is_added_to_what_another_kernel_saved_meanwhile(file, monkeypatch):
    other = kernel()
    with monkeypatch.context() as broken:
        broken.setattr(files, "write", failing)
        progress_file.change("a/b", attempt)
    other.change("a/b", solve)
    assert progress_file.read()["a/b"] == Record(attempts=2, solved=True)
    progress_file.change("c/d", attempt)
    assert on_disk(file) == {"a/b": (2, True), "c/d": (1, False)}


def test_after_a_reset_only_what_came_later_comes_back(file, monkeypatch):
    other = kernel()
    progress_file.change("a/b", solve)
    with monkeypatch.context() as broken:
        broken.setattr(files, "write", failing)
        progress_file.change("a/b", attempt)
        progress_file.change("c/d", attempt)
        other.change("a/b", attempt)
    kept = progress_file.reset(lambda name: name == "a/b")
    assert on_disk(kept) == {"a/b": (2, True), "c/d": (1, False)}, "what waited is kept too"
    assert on_disk(file) == {"c/d": (1, False)}
    assert other.change("c/d", attempt).attempts == 2
    assert on_disk(file) == {"a/b": (1, False), "c/d": (2, False)}, "an attempt of the other kernel, not what was reset"


def test_a_prediction_that_is_saved_outlives_one_made_while_the_file_was_away(file, monkeypatch):
    [question] = [q for q in question_files.lessons()[0].questions if type(q).__name__ == "Predict"][:1]
    cards.keep(question, answer=1)
    cards.keep(question, hints=2)
    with monkeypatch.context() as broken:
        broken.setattr(files, "lock", failing)
        broken.setattr(files, "read_json", failing)
        cards.keep(question, answer=0)
        cards.keep(question, hints=1)
    progress_file.change("a/b", attempt)
    assert cards.read(question) == Record(answer=1, hints=2)


class Killed(BaseException):
    """A kernel's end: nothing of it is run any more."""


FAULTS = ["lock", "mkstemp", "fsync", "chmod", "replace"]
operation = st.tuples(
    st.integers(0, 2), st.sampled_from(["attempt", "attempt", "solve", "reset"]),
    st.sampled_from(["a/1", "a/2", "b/1"]), st.sampled_from([None, *FAULTS]), st.integers(1, 2), st.booleans(),
)


def figures(records):
    return {name: (kept.attempts, kept.solved) for name, kept in records.items()}


def with_all(records, updates):
    result = dict(records)
    for name, update in updates:
        result[name] = update(result.get(name, Record()))
    return result


def striking(patch, fault, at, error):
    """Lets the call number `at` of one step of a save end in `error`."""
    left = [at]
    home = {"lock": files, "mkstemp": files.tempfile}.get(fault, os)
    real = getattr(home, fault)

    def strike(*arguments, **named):
        left[0] -= 1
        if not left[0]:
            raise error
        return real(*arguments, **named)

    patch.setattr(home, fault, strike)
    if isinstance(error, Killed):
        patch.setattr(os, "unlink", lambda *_: None)  # the dead clear nothing away


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operation, max_size=14))
def test_whatever_fails_in_whatever_kernel_nothing_is_lost_but_by_a_reset(file, operations):
    """After each operation the file holds what the list of all operations says, to the attempt."""
    for old in file.parent.glob("*"):
        old.unlink()
    kernels, waiting, saved = [kernel() for _ in range(3)], [[] for _ in range(3)], {}
    for which, what, name, fault, at, dies in operations:
        update = solve if what == "solve" else attempt
        updates = waiting[which] + [(name, update)] * (what != "reset")
        all_there = with_all(saved, updates)
        after = {n: kept for n, kept in all_there.items() if what != "reset" or n[0] != name[0]}
        with pytest.MonkeyPatch.context() as patch:
            if fault:
                striking(patch, fault, at, Killed() if dies else OSError("gone"))
            try:
                if what == "reset":
                    kept = kernels[which].reset(lambda known, first=name[0]: known[0] == first)
                    assert (kept is None) == (after == all_there)
                    assert kept is None or on_disk(kept) == figures(all_there), "a copy of all stays"
                    done = kept is not None
                else:
                    returned = kernels[which].change(name, update)
                    assert figures({name: returned}) == figures({name: all_there[name]}), "even where it is not saved"
                    done = on_disk(file) == figures(after)
            except LabError:
                done = False
            except Killed:
                kernels[which], updates, done = kernel(), [], on_disk(file) == figures(after)
        saved, waiting[which] = (after, []) if done else (saved, updates)
        assert on_disk(file) == figures(saved)
    for one, updates in zip(kernels, waiting):  # once all is well, all that waited is saved
        one.change("c/1", attempt)
        saved = with_all(saved, [*updates, ("c/1", attempt)])
    assert on_disk(file) == figures(saved)
    assert not list(file.parent.glob(".progress.json.*.tmp")), "what the dead left is cleared away"


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a right there")
def test_a_link_stays_a_link_and_locks_the_file_it_means(file, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    file.parent.mkdir()
    file.symlink_to(tmp_path / "real" / "mine.json")
    monkeypatch.setenv("LORA_LAB_PROGRESS", str(file))
    progress_file.change("a/b", attempt)
    (tmp_path / "real" / "mine.json").write_text("damaged")
    progress_file.change("a/b", attempt)
    assert file.is_symlink() and on_disk(tmp_path / "real" / "mine.json") == {"a/b": (1, False)}
    assert progress_file.file() == tmp_path / "real" / "mine.json"


def test_what_older_versions_and_kills_left_goes_and_nothing_else(file):
    progress_file.change("a/b", attempt)
    for name in ("progress.json.4711.tmp", ".progress.json.ab12_xyz.tmp", "progress.json.old.tmp", "mine.tmp"):
        (file.parent / name).write_text("{}")
    progress_file.change("a/b", attempt)
    assert {place.name for place in file.parent.iterdir()} == {
        "progress.json", "progress.json.lock", "progress.json.old.tmp", "mine.tmp"}


@pytest.fixture
def homeless(monkeypatch):
    """As in a container that runs under a number that no user has."""
    for name in ("HOME", "XDG_DATA_HOME", "LORA_LAB_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)


@pytest.mark.skipif(os.name != "posix", reason="homes of Unix")
def test_without_a_home_the_message_says_what_to_set(homeless):
    assert progress_file.change("a/b", attempt).attempts == progress_file.read()["a/b"].attempts == 1
    assert len(progress_file.notices) == 1 and "LORA_LAB_PROGRESS" in progress_file.notices[0]
    with pytest.raises(LabError, match="LORA_LAB_PROGRESS"):
        progress_file.reset(lambda _: True)
    with pytest.raises(LabError, match="Give the whole path"):
        progress_file.export("~/mine.json")


@pytest.mark.parametrize("there", ["a thesis", '{"questions": {}', '{"questions": {"z/z": {"attempts": 2}}}',
                                   '{"questions": {"a/b": {"solved": true}}}'])
def test_an_export_replaces_nothing_but_an_older_copy(file, tmp_path, there):
    (tmp_path / "copy.json").write_text(there)
    progress_file.change("a/b", attempt)
    with pytest.raises(LabError, match="stays as it is"):
        progress_file.export(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_text() == there
    progress_file.export(tmp_path / "mine.json")
    progress_file.change("a/b", solve)
    assert on_disk(progress_file.export(tmp_path / "mine.json")) == {"a/b": (2, True)}, "an older copy is brought up"


def test_an_empty_or_unreadable_progress_never_replaces_a_good_copy(file, tmp_path):
    progress_file.change("a/b", solve)
    copy = progress_file.export(tmp_path / "copy.json")
    good = copy.read_bytes()
    progress_file.reset(lambda _: True)
    with pytest.raises(LabError, match="a/b"):
        progress_file.export(copy)
    with pytest.raises(LabError, match="is your progress file itself"):
        progress_file.export(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(LabError, match="no regular file"):
        progress_file.export(tmp_path / "new.json")
    assert copy.read_bytes() == good and not (tmp_path / "new.json").exists()
    progress_file.change("a/b", attempt)
    assert on_disk(progress_file.export(tmp_path / "rescued.json")) == {"a/b": (1, False)}


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="a device of Unix")
def test_a_device_is_neither_moved_nor_replaced(monkeypatch, tmp_path):
    for device in ("/dev/null", "/dev/zero"):
        monkeypatch.setenv("LORA_LAB_PROGRESS", device)
        monkeypatch.setattr(os, "replace", failing)  # nothing gets so far
        monkeypatch.setattr(progress_file, "_lock", lambda: open(tmp_path / "lock", "w"))
        assert progress_file.change("a/b", attempt).attempts > 0 and progress_file._unsaved
    with pytest.raises(LabError):
        progress_file.export("/dev/null")
    assert not re.search("damaged", " ".join(progress_file.notices)) and Path("/dev/null").is_char_device()


def test_a_number_beyond_all_floats_costs_its_record_alone(file):
    file.parent.mkdir()
    file.write_text('{"questions": {"a/b": {"attempts": 1}, "c/d": {"answer": 0, "measured": ' + "9" * 400 + "}}}")
    assert progress_file.read() == {"a/b": Record(attempts=1)} and "1 of its records" in progress_file.notices[0]


def test_what_could_not_be_read_again_is_not_written(file):
    assert progress_file.change("a/b", lambda kept: replace(attempt(kept), answer="x" * 500)) == Record(attempts=1)
    assert progress_file.change("a/b", lambda kept: replace(kept, attempts=-5)) == Record(attempts=1)
    with pytest.raises(ZeroDivisionError):
        progress_file.change("a/b", lambda kept: 1 / 0)
    assert progress_file.read() == {"a/b": Record(attempts=1)} and progress_file.notices == []
