"""A class's table: every learner's file counts, a bad one is named, and a spreadsheet runs nothing from it."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_lab import compare, export_progress
from lora_lab.course import classroom, progress_file, question_files
from lora_lab.course.progress_file import Record
from lora_lab.course.question_kinds import Predict

LESSON = question_files.lessons()[0]
ASKED = [question.id for question in LESSON.questions]
GRADED = [question.id for question in LESSON.questions if not isinstance(question, Predict)]


@pytest.fixture
def hand_in(tmp_path, monkeypatch):
    """Exports progress as a learner does: the file of that name, holding `records`."""
    def write(name, records):
        monkeypatch.setenv("LORA_LAB_PROGRESS", str(tmp_path / "own" / "progress.json"))
        progress_file.file().unlink(missing_ok=True)
        for question, kept in records.items():
            progress_file.change(question, lambda _, kept=kept: kept)
        return export_progress(tmp_path / f"{name}.json")
    return write


SOLVED, MISSED = Record(attempts=1, solved=True), Record(attempts=3)
PEEKED = Record(attempts=2, solved=True, shown=True)


def test_a_row_a_learner_and_a_column_a_lesson(hand_in):
    summary = classroom.collect([hand_in("Ann", dict.fromkeys(ASKED[:3], SOLVED)), hand_in("Bo", {})])
    total = len(ASKED)
    assert summary.header == ["learner", *(lesson.title for lesson in question_files.lessons())]
    assert [row[:2] for row in summary.rows] == [["Ann", f"3 of {total}"], ["Bo", f"0 of {total}"]]
    assert summary.notes == []
    assert list(csv.reader(io.StringIO(classroom.as_csv(summary))))[1][:2] == ["Ann", f"3 of {total}"]


def test_the_most_missed_question_comes_first(hand_in):
    first, second, third = GRADED[:3]
    summary = classroom.collect([
        hand_in("Ann", {first: SOLVED, second: MISSED, third: PEEKED}),
        hand_in("Bo", {first: SOLVED, second: PEEKED, third: SOLVED}),
    ])
    assert summary.missed == [[second, "2", "1", "1"], [third, "2", "0", "1"]]
    assert classroom.as_text(summary).index(second) < classroom.as_text(summary).index(third)


def test_a_prediction_is_never_missed(hand_in):
    guess = next(question.id for question in LESSON.questions if isinstance(question, Predict))
    assert classroom.collect([hand_in("Ann", {guess: MISSED})]).missed == []


def test_a_file_from_before_questions_moved_counts_what_is_still_asked(hand_in):
    """Lesson 3's questions on memory are Lesson 4's now, under other ids."""
    old = dict.fromkeys(("eight/lower_rank", "eight/ready", "eight/resume", "eight/absmax"), SOLVED)
    summary = classroom.collect([hand_in("Ann", old)])
    [row] = summary.rows
    by_lesson = dict(zip(summary.header, row))
    assert by_lesson["3 · Training in 8 bits"].startswith("1 of") and summary.notes == []
    assert by_lesson["4 · Where the memory goes"].startswith("0 of")


@pytest.mark.parametrize("content, why", [
    (b"{", "it is not JSON"), (b"\xff\xfe", "it is not a text file"),
    (b"[" * 100_000, "nested too deeply"), (b"[]", "holds no questions"),
    (b'{"questions": {"other/course": {"attempts": 1}}}', "of this course"),
    (b'{"questions": {"first/told": {"attempts": "three"}}}', "make no sense"), (None, "no such file"),
])
def test_a_damaged_or_foreign_file_is_named_and_the_others_count(hand_in, tmp_path, content, why):
    good, bad = hand_in("Ann", {ASKED[0]: SOLVED}), tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content)
    summary = classroom.collect([bad, good, tmp_path])
    assert [row[0] for row in summary.rows] == ["Ann"]
    assert any("bad.json is left out" in note and why in note for note in summary.notes)
    assert len(summary.notes) == 2, "the folder is named too"


def test_the_good_part_of_a_damaged_file_counts(tmp_path):
    file = tmp_path / "Cy.json"
    file.write_text(json.dumps({"questions": {ASKED[0]: {"attempts": 1, "solved": True}, ASKED[1]: 7}}))
    summary = classroom.collect([file])
    assert summary.rows[0][1].startswith("1 of") and "1 records make no sense" in summary.notes[0]


def test_the_same_answers_twice_and_the_same_name_twice_are_noted(hand_in, tmp_path):
    one = hand_in("Ann", {ASKED[0]: SOLVED})
    (tmp_path / "late").mkdir()
    summary = classroom.collect([one, one, hand_in("late/Ann", {ASKED[0]: SOLVED})])
    assert [row[0] for row in summary.rows] == ["Ann", "Ann (2)"]
    assert "same answers as Ann" in summary.notes[0]


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_no_name_is_a_formula_in_a_spreadsheet(name):
    summary = classroom.Summary(["learner"], [[classroom._visible(name)]], [], [])
    cell = list(csv.reader(io.StringIO(classroom.as_csv(summary))))[1]
    assert not cell or not cell[0].strip() or cell[0].strip()[0] not in "=+-@"


def test_the_command_writes_the_table_and_prints_it(hand_in, tmp_path, capsys):
    hand_in("=cmd()", {ASKED[0]: SOLVED})
    hand_in("line\nbreak", {})
    classroom.main([str(tmp_path / "*.json"), "--out", str(tmp_path / "class.csv")])
    text = (tmp_path / "class.csv").read_bytes().decode("utf-8-sig")
    assert "'=cmd()," in text and "line?break" in text
    assert "2 learners" in capsys.readouterr().out


def test_no_files_is_an_error_that_says_how(tmp_path, hand_in):
    with pytest.raises(SystemExit, match="FILES="):
        classroom.main([])
    with pytest.raises(SystemExit, match="OUT="):
        classroom.main([str(hand_in("Ann", {})), "--out", str(tmp_path / "missing" / "class.csv")])


def test_no_learner_writes_no_table(tmp_path):
    (table := tmp_path / "class.csv").write_text("last week's")
    with pytest.raises(SystemExit, match="none.json(.|\n)*nothing was written"):
        classroom.main([str(tmp_path / "none.json"), "--out", str(table)])
    assert table.read_text() == "last week's"


def test_every_learner_has_a_name_of_their_own(tmp_path, hand_in):
    files = [hand_in("ann", {ASKED[0]: SOLVED}), hand_in("ann (2)", {ASKED[1]: SOLVED})]
    (tmp_path / "b").mkdir()
    files.append(hand_in("b/ann", {ASKED[2]: SOLVED}))
    assert sorted(row[0] for row in classroom.collect(files).rows) == ["ann", "ann (2)", "ann (3)"]


def test_solved_without_an_attempt_is_said(hand_in):
    notes = classroom.collect([hand_in("ann", {GRADED[0]: Record(attempts=0, solved=True)})]).notes
    assert len(notes) == 1 and "without an attempt" in notes[0]


def test_a_prediction_needs_no_attempt(hand_in):
    question = next(q for q in LESSON.questions if isinstance(q, Predict))
    hand_in("ann", {question.id: Record(answer=0)})
    compare(question.id, 1.0)
    assert progress_file.read()[question.id].solved
    assert classroom.collect([export_progress(progress_file.file().parent / "ann.json")]).notes == []


@pytest.mark.parametrize("name", ["a;=1+1", "a,+1", "a|-1", "\uff1d1+1", "a; \uff0b1", "@x", "\u22121", ";=x"])
def test_no_part_of_a_name_is_a_formula_wherever_cells_are_parted(name, hand_in):
    text = classroom.as_csv(classroom.collect([hand_in(name, {ASKED[0]: SOLVED})]))
    for separator in ",;|\t":
        cells = [cell.strip().strip('"') for line in text.splitlines() for cell in line.split(separator)]
        assert not [cell for cell in cells if cell[:1] in tuple("=+-@\u2212\uff1d\uff0b\uff0d\uff20")]


def test_a_name_that_looks_like_a_pattern_is_a_file(hand_in, tmp_path, capsys):
    files = [str(hand_in(name, {ASKED[0]: SOLVED})) for name in ("[ab]", "a")]
    classroom.main([files[0], "--out", str(tmp_path / "class.csv")])
    assert "2 learners" in capsys.readouterr().out, "the file, and those it stands for as a pattern"
    classroom.main([*files, "--out", str(tmp_path / "class.csv")])
    assert "2 learners" in capsys.readouterr().out


def test_a_table_with_marks_in_it_is_kept(hand_in, tmp_path, capsys):
    (table := tmp_path / "class.csv").write_text("learner,mark\nAnn,A")
    for _ in range(2):  # the second time nothing changes
        classroom.main([str(hand_in("Ann", {ASKED[0]: SOLVED})), "--out", str(table)])
    assert "What was there is in" in capsys.readouterr().out
    assert [file.read_text() for file in tmp_path.glob("class.before-*")] == ["learner,mark\nAnn,A"]


def test_a_measurement_of_400_digits_costs_one_record_and_no_table(hand_in, tmp_path):
    (odd := tmp_path / "odd.json").write_text(
        json.dumps({"questions": {ASKED[0]: {"solved": True, "measured": 10**400}, ASKED[1]: {"solved": True}}}))
    summary = classroom.collect([odd, hand_in("Ann", {ASKED[0]: SOLVED})])
    assert [row[1].partition(" ")[0] for row in summary.rows] == ["1", "1"] and "damaged" in summary.notes[0]
