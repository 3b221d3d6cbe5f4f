"""The learner's copies: handed out and updated, and nothing of theirs is ever overwritten."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lora_lab import LabError
from lora_lab.course import handout, progress_file, question_files
from lora_lab.course.progress_file import Record

NAMES = [lesson.notebook for lesson in question_files.lessons()]
FIRST, SECOND = NAMES[:2]


def write(root, name, text, title=None):
    top = nbformat.v4.new_markdown_cell(f"# {title or name}", id="title")
    code = nbformat.v4.new_code_cell(text, id="code")
    nbformat.write(nbformat.v4.new_notebook(cells=[top, code]), root / "notebooks" / f"{name}.ipynb")


def course(root, monkeypatch):
    """A course of small notebooks that bear the real lessons' names, and work in it."""
    (root / "notebooks").mkdir(parents=True)
    monkeypatch.setenv("LORA_LAB_PROGRESS", str(root / "progress.json"))
    monkeypatch.chdir(root)
    for name in NAMES:
        write(root, name, "version = 1")


@pytest.fixture
def root(tmp_path, monkeypatch):
    course(tmp_path, monkeypatch)
    return tmp_path


def mine(root, name):
    return root / "my-lessons" / f"{name}.ipynb"


def edit(root, name):
    content = mine(root, name).read_text().replace("version = 1", "my_work = 1")
    mine(root, name).write_text(content)
    return content


def solve(*ids):
    for name in ids:
        progress_file.change(name, lambda kept: Record(attempts=1, solved=True))


def asked(place):
    return [question.id for question in question_files.lessons()[place].questions]


def test_a_missing_lesson_is_handed_out(root):
    assert handout.sync() == []
    mine(root, SECOND).unlink()
    assert handout.sync() == []
    assert [f.read_bytes() for f in sorted((root / "my-lessons").glob("0*"))] == [
        f.read_bytes() for f in sorted((root / "notebooks").iterdir())
    ]


def test_an_update_replaces_what_was_not_touched_and_never_what_was_edited(root):
    handout.sync()
    work = edit(root, FIRST)
    for name in (FIRST, SECOND):
        write(root, name, "version = 2")
    said = handout.sync()
    assert mine(root, FIRST).read_text() == work, "the learner's work"
    assert "version = 2" in mine(root, f"{FIRST}.new").read_text()
    assert "version = 2" in mine(root, SECOND).read_text() and not mine(root, f"{SECOND}.new").exists()
    assert [line.partition(":")[0] for line in said] == [f"{FIRST}.ipynb", f"{SECOND}.ipynb"]
    assert f"{FIRST}.new.ipynb" in said[0]
    mine(root, f"{FIRST}.new").unlink()
    assert handout.sync() == [] and not mine(root, f"{FIRST}.new").exists(), "offered once a version"


def test_work_in_the_new_version_is_kept_too(root):
    handout.sync()
    edit(root, FIRST)
    write(root, FIRST, "version = 2")
    handout.sync()
    mine(root, f"{FIRST}.new").write_text("my notes")
    write(root, FIRST, "version = 3")
    handout.sync()
    assert "version = 3" in mine(root, f"{FIRST}.new").read_text()
    assert mine(root, f"{FIRST}.new.mine-1").read_text() == "my notes"


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": 1}', None])
def test_without_the_list_of_what_was_handed_out_nothing_counts_as_untouched(root, damage):
    handout.sync()
    work = edit(root, FIRST)
    kept = root / "my-lessons/.handed-out.json"
    kept.unlink() if damage is None else kept.write_text(damage)
    write(root, FIRST, "version = 2")
    write(root, SECOND, "version = 2")
    handout.sync()
    assert mine(root, FIRST).read_text() == work and "version = 1" in mine(root, SECOND).read_text()
    assert "version = 2" in mine(root, f"{SECOND}.new").read_text()


DIES_AT_WRITE = """
import os, signal, sys
from lora_lab.course import handout
def sync_to_disk(file, real=os.fsync):
    real(file)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)  # all is written under another name, nothing under its own
left, os.fsync = [0], sync_to_disk
handout.sync()  # imports once for all of those that die
for write_number in sys.argv[1:]:
    os.chdir(f"../{write_number}")
    if not os.fork():
        left = [int(write_number)]
        handout.sync()
        os._exit(0)
    print(os.WTERMSIG(os.wait()[1]))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_a_sync_that_is_killed_loses_nothing_and_goes_on(tmp_path, monkeypatch):
    numbers = [1, 2, 3, 4, 9, 13]
    work = {}
    for number in ["whole", *numbers]:
        root = tmp_path / str(number)
        course(root, monkeypatch)
        handout.sync()
        work[number] = edit(root, FIRST)
        for name in NAMES:
            write(root, name, "version = 2")
    done = subprocess.run([sys.executable, "-c", DIES_AT_WRITE, *map(str, numbers)], cwd=tmp_path / "whole",
                          capture_output=True, text=True)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * len(numbers), done.stderr
    for number in numbers:
        root = tmp_path / str(number)
        monkeypatch.chdir(root)
        updated = [mine(root, f"{FIRST}.new"), *(mine(root, name) for name in NAMES[1:])]
        new = [file.exists() and "version = 2" in file.read_text() for file in updated]
        handed = min(number // 2, len(NAMES))  # each file and then the list of what was handed out
        assert new == [True] * handed + [False] * (len(NAMES) - handed), "each file is the old one or the new one"
        assert mine(root, FIRST).read_text() == work[number]
        assert handout.sync() is not None and all("version = 2" in file.read_text() for file in updated)
        assert mine(root, FIRST).read_text() == work[number]
        assert not list((root / "my-lessons").glob(".*.tmp")) and handout.sync() == []


def test_the_first_unfinished_lesson_comes_next(root):
    assert handout.next_one() == FIRST, "nothing is begun"
    solve(asked(0)[0])
    assert handout.next_one() == FIRST
    solve(*asked(0))
    assert handout.next_one() == SECOND
    solve(*asked(2))
    assert handout.next_one() == SECOND
    solve(*(name for place in range(len(NAMES)) for name in asked(place)))
    assert handout.next_one() == "index", "all finished"


def test_the_index_shows_progress(root):
    solve(*asked(0), asked(1)[0])
    handout.sync()
    notebook = nbformat.read(mine(root, "index"), 4)
    nbformat.validate(notebook)
    shown = notebook.cells[1].outputs[0]["data"]["text/html"]
    assert f"{len(asked(0))} of {len(asked(0))} ✓" in shown and f"1 of {len(asked(1))}" in shown
    assert handout.show().data == shown


def test_the_index_follows_until_the_learner_writes_in_it(root):
    handout.sync()
    before = mine(root, "index").read_text()
    solve(asked(0)[0])
    handout.sync()
    after = mine(root, "index").read_text()
    assert after != before
    mine(root, "index").write_text(after.replace("in order", "in my order"))
    solve(asked(0)[1])
    handout.sync()
    assert mine(root, "index").read_text() == after.replace("in order", "in my order")


def test_reset_keeps_the_edited_copy_and_counts_them(root):
    handout.sync()
    for n in (1, 2):
        work = edit(root, FIRST)
        assert f"{FIRST}.mine-{n}.ipynb" in handout.put_back(FIRST)
        assert mine(root, f"{FIRST}.mine-{n}").read_text() == work
        assert "version = 1" in mine(root, FIRST).read_text()
    assert "kept" not in handout.put_back(FIRST), "nothing was edited"
    with pytest.raises(LabError, match=f"There are: {FIRST}"):
        handout.put_back("../secret")


@pytest.mark.parametrize("answer, done", [("y", True), ("Yes", True), ("", False), ("n", False)])
def test_reset_asks_first(root, monkeypatch, answer, done):
    handout.sync()
    work, asked_for = edit(root, FIRST), []
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda text: asked_for.append(text) or answer)
    handout.main(["reset", FIRST])
    assert len(asked_for) == 1 and FIRST in asked_for[0]
    assert (mine(root, FIRST).read_text() != work) is done


def test_reset_at_the_end_of_input_changes_nothing(root, monkeypatch, capsys):
    def end_of_input(_question):
        raise EOFError

    handout.sync()
    work = edit(root, FIRST)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", end_of_input)
    handout.main(["reset", FIRST])
    assert mine(root, FIRST).read_text() == work and "Nothing was changed" in capsys.readouterr().out


def test_reset_takes_the_offered_copy_of_the_same_version_away(root):
    handout.sync()
    edit(root, FIRST)
    write(root, FIRST, "version = 2")
    handout.sync()
    offered = mine(root, f"{FIRST}.new")
    assert offered.exists()
    handout.put_back(FIRST)
    assert not offered.exists() and "version = 2" in mine(root, FIRST).read_text()


def test_reset_without_a_terminal_needs_a_yes_beforehand(root, monkeypatch):
    handout.sync()
    work = edit(root, FIRST)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    with pytest.raises(SystemExit, match="YES=1"):
        handout.main(["reset"])
    assert mine(root, FIRST).read_text() == work
    handout.main(["reset", "--yes"])
    assert "version = 1" in mine(root, FIRST).read_text() and mine(root, f"{FIRST}.mine-1").read_text() == work


@pytest.mark.parametrize("given, shown, opened", [
    ([], "my-lessons", f"{FIRST}.ipynb"), (["--lesson", SECOND], "my-lessons", f"{SECOND}.ipynb"),
    (["--lesson", f"notebooks/{SECOND}.ipynb"], "", f"notebooks/{SECOND}.ipynb"),
    (["--whole"], "", f"my-lessons/{FIRST}.ipynb"), ([SECOND[:2]], "my-lessons", f"{SECOND}.ipynb"),
    ([f"{SECOND}.ipynb"], "my-lessons", f"{SECOND}.ipynb"), (["index"], "my-lessons", "index.ipynb"),
])
def test_opening_syncs_and_tells_jupyterlab_what_to_show(root, monkeypatch, given, shown, opened):
    from jupyterlab.labapp import LabApp

    calls = []
    monkeypatch.setattr(handout.cache, "model_folder", lambda: calls.append("the model first"))
    monkeypatch.setattr(LabApp, "launch_instance", calls.append)
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "mine")
    handout.main(["open", *given, "--no-browser", "--port=8888"])
    model, asked = calls
    assert f"--LabApp.default_url=/lab/tree/{opened}" in asked and asked[-2:] == ["--no-browser", "--port=8888"]
    assert f"--ServerApp.root_dir={root / shown}" in asked and model == "the model first"
    assert mine(root, FIRST).exists()
    kept, ours = os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert kept == "mine" and list(Path(ours).glob("labconfig/default_setting_overrides.json"))


def test_the_course_is_found_from_its_folders_and_from_elsewhere(root, monkeypatch, tmp_path_factory):
    handout.sync()
    for folder in ("notebooks", "my-lessons"):
        monkeypatch.chdir(root / folder)
        assert handout.course() == root
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert handout.course() == Path(handout.__file__).resolve().parents[2]


def test_progress_is_told_and_copied_to_hand_it_in(root, capsys):
    solve(asked(0)[0])
    handout.main(["progress", "--export", "ann.json"])
    assert f"({FIRST}.ipynb): 1 of {len(asked(0))}" in capsys.readouterr().out
    assert progress_file.load(root / "ann.json")[0][asked(0)[0]].solved


@pytest.mark.parametrize("given", ["99_none", "0"])  # the second could be any of them
def test_a_lesson_that_is_not_there_is_named(root, given):
    with pytest.raises(SystemExit, match=f"no lesson '{given}'. Name one such as {FIRST}"):
        handout.main(["open", "--lesson", given])


def test_with_the_tools_alone_it_is_said_what_to_install(root, monkeypatch):
    monkeypatch.setattr(handout, "_JUPYTER", ("json", "not_installed_here"))
    with pytest.raises(SystemExit, match=r"lessons need not_installed_here too.*pip install \"lora-lab\[lab\]\""):
        handout.main(["open"])
    assert not (root / "my-lessons").exists()


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(root):
    Path(root / "my-lessons").write_text("a file")
    with pytest.raises(LabError, match="nothing of yours was changed"):
        handout.sync()


def test_an_empty_lesson_is_mentioned_and_handed_out_again(root):
    handout.sync()
    for name in (FIRST, SECOND):
        mine(root, name).write_bytes(b"")
    assert handout.sync() == [f"{name}.ipynb: was empty; it is handed out again." for name in (FIRST, SECOND)]
    assert "version = 1" in mine(root, FIRST).read_text() and handout.sync() == []
    mine(root, FIRST).write_bytes(b"")
    assert "kept" not in handout.put_back(FIRST) and "version = 1" in mine(root, FIRST).read_text()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"cells": 3}', b"\xff"])
def test_a_damaged_lesson_of_the_course_replaces_no_copy(root, content):
    handout.sync()
    (root / "notebooks" / f"{FIRST}.ipynb").write_bytes(content)
    write(root, SECOND, "version = 2")
    first, *others = handout.sync()
    assert f"{FIRST}.ipynb is damaged" in first and others == [f"{SECOND}.ipynb: updated."]
    assert "version = 1" in mine(root, FIRST).read_text()
    with pytest.raises(LabError, match="Get the course's file|get the course's file"):
        handout.put_back(FIRST)
    assert "version = 1" in mine(root, FIRST).read_text()


def test_copies_come_without_the_answers_that_outputs_are(root):
    path = root / "notebooks" / f"{FIRST}.ipynb"
    content = nbformat.read(path, 4)
    content.cells[1] |= {"execution_count": 7, "outputs": [nbformat.v4.new_output("stream", text="84 of 100")]}
    nbformat.write(content, path)
    handout.sync()
    copy = nbformat.read(mine(root, FIRST), 4)
    nbformat.validate(copy)
    assert copy.cells[1].outputs == [] and copy.cells[1].execution_count is None
    assert [cell.source for cell in copy.cells] == [cell.source for cell in content.cells]
    content.cells[1].outputs[0]["text"] = "85 of 100"
    nbformat.write(content, path)
    assert handout.sync() == [], "a new run of the same lesson is no update"
    assert len(json.dumps(copy)) < len(json.dumps(content))


def test_a_reset_waits_for_a_sync_and_a_file_of_the_learners_is_no_leftover(root, monkeypatch):
    handout.sync()
    (root / "my-lessons/.mine.tmp").write_text("notes")
    (root / f"my-lessons/.{FIRST}.ipynb.ab12cd34.tmp").write_text("half")
    held, real = [], handout.files.lock

    def lock(path, timeout=-1):
        held.append(Path(path).name)
        return real(path, timeout)

    monkeypatch.setattr(handout.files, "lock", lock)
    handout.put_back(FIRST)
    handout.sync()
    assert held == [".lock", ".lock"]
    assert [file.name for file in (root / "my-lessons").glob("*.tmp")] == [".mine.tmp"]

    def taken(path, timeout=-1):
        raise OSError("another one is at it")

    monkeypatch.setattr(handout.files, "lock", taken)
    work = edit(root, FIRST)
    with pytest.raises(LabError, match="cannot be put back: another one is at it"):
        handout.put_back(FIRST)
    assert mine(root, FIRST).read_text() == work


def link(root, target, name=FIRST):
    path = root / "notebooks" / f"{name}.ipynb"
    content = nbformat.read(path, 4)
    content.cells[0].source += f"\n\nSee [it]({target}) and [the next]({SECOND}.ipynb)."
    content.cells[1].source = f"# [it]({target})"
    nbformat.write(content, path)


def test_links_out_of_the_folder_lead_to_copies_within_it(root):
    (root / "lora_lab").mkdir()
    (root / "lora_lab/batches.py").write_text("first = 1")
    link(root, "../lora_lab/batches.py#L3")
    handout.sync()
    copy = nbformat.read(mine(root, FIRST), 4)
    assert f"[it](course/lora_lab/batches.py#L3) and [the next]({SECOND}.ipynb)" in copy.cells[0].source
    assert copy.cells[1].source == "# [it](../lora_lab/batches.py#L3)", "no text, but code"
    linked = root / "my-lessons/course/lora_lab/batches.py"
    assert linked.read_text() == "first = 1" and handout.sync() == []
    (root / "lora_lab/batches.py").write_text("first = 2")
    assert handout.sync() == [] and linked.read_text() == "first = 2"
    linked.write_text("my notes")
    (root / "lora_lab/batches.py").write_text("first = 3")
    assert handout.sync() == [] and linked.read_text() == "my notes", "the learner's work"
    assert "as handed out" in handout.put_back(FIRST)
    assert "(course/lora_lab" in nbformat.read(mine(root, FIRST), 4).cells[0].source


@pytest.mark.parametrize("target", ["../none.md", "../../outside.md", "../notebooks/../../outside.md", "https://a.org/../b"])
def test_other_links_stay_as_they_are(root, target):
    (root.parent / "outside.md").write_text("not the course's")
    link(root, target)
    handout.sync()
    assert f"]({target})" in nbformat.read(mine(root, FIRST), 4).cells[0].source
    assert not (root / "my-lessons/course").exists()


def test_every_link_of_the_real_lessons_leads_somewhere_in_the_folder(root):
    here = Path(handout.__file__).resolve().parents[2]
    shutil.rmtree(root / "notebooks")
    for folder in ("notebooks", "lora_lab", "benchmarks"):
        shutil.copytree(here / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "adapters", "runs"))
    handout.sync()
    for file in sorted((root / "my-lessons").glob("0*.ipynb")):
        text = "\n".join(cell.source for cell in nbformat.read(file, 4).cells if cell.cell_type == "markdown")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ".." not in target and (file.parent / target).is_file(), f"{file.name}: {target}"
