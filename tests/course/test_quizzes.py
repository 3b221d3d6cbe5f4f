"""The quiz without a browser: what it shows, records and unlocks. Also run with ipywidgets 7.7.1."""

import json
import re
from pathlib import Path

import pytest
from lora_lab import LabError, compare, export_progress, import_progress, progress, quiz, reset_progress
from lora_lab.course import progress_file, question_files, quizzes
from lora_lab.course.cards import Card, Static

EVERY = Path(__file__).parents[1] / "questions"
ANSWERS = {  # wrong, right
    "choice": (2, 1), "multiple": ([0, 1], [0, 2]), "number": ("2,048", "4096"), "match": ([0, 1], [2, 1]),
    "order": ([0, 1, 2], [1, 0, 2]),
}


@pytest.fixture(autouse=True)
def every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(question_files, "FOLDER", EVERY)
    monkeypatch.setattr(quizzes, "in_notebook", lambda: True)
    question_files.lessons.cache_clear()
    yield
    question_files.lessons.cache_clear()
    progress_file.notices.clear()


@pytest.fixture
def shown(monkeypatch):
    outputs = []
    monkeypatch.setattr(quizzes, "display", outputs.append)
    monkeypatch.setattr(quizzes, "show", outputs.append)
    return outputs


def card(kind):
    return Card(question_files.find(f"every/{kind}"))


@pytest.mark.parametrize("kind", ANSWERS)
def test_wrong_then_right(kind):
    wrong, right = ANSWERS[kind]
    question = card(kind)
    question.check.click()
    assert "first." in question.feedback.value and question.show.disabled, "nothing chosen is no attempt"
    question.control.set(wrong)
    question.check.click()
    assert "Not yet" in question.feedback.value and 'role="alert"' in question.feedback.value
    assert not question.show.disabled and question.answer.value == ""
    question.control.set(right)
    question.check.click()
    assert "Right" in question.feedback.value and "Answer." in question.answer.value
    kept = progress_file.read()[f"every/{kind}"]
    assert (kept.attempts, kept.solved, kept.shown) == (2, True, False)
    again = card(kind)
    assert again.control.get() == right and "Solved." in again.feedback.value and "2 attempts" in again.feedback.value
    assert 'role="alert"' not in again.feedback.value, "what is restored is not announced"


def test_hints_come_one_at_a_time_and_stay():
    question = card("choice")
    assert question.hint.description == "Hint 1 of 2"
    question.hint.click()
    assert "Look &lt;i&gt;up" in question.hints.value and "second" not in question.hints.value
    question.hint.click()
    assert question.hints.value.count('role="alert"') == 1, "only the new hint is announced"
    assert question.hint.disabled and card("choice").hints.value.count("<b>Hint") == 2


def test_an_answer_that_was_looked_up_is_told_apart():
    question = card("choice")
    question.control.set(2)
    question.check.click()
    question.show.click()
    assert "See it in this lesson" in question.answer.value
    question.control.set(1)
    question.check.click()
    kept = progress_file.read()["every/choice"]
    assert kept.solved and kept.shown


def test_markup_is_escaped_everywhere():
    question = card("choice")
    question.control.set(1)
    question.check.click()
    page = "".join(part.value for part in (question.box.children[0], question.feedback, question.answer))
    assert "<script>" not in page and "&lt;script&gt;" in page and "<u>" not in page and "&lt;u&gt;" in page
    assert r"\(\frac{\alpha}{r} &lt; 2\)" in page
    static = Static(question_files.find("every/choice"))._repr_html_()
    assert "<img" not in static and "&lt;img" in static


def test_prediction_before_and_after_the_experiment(shown):
    compare("every/predict", 70)
    assert "no prediction was committed" in shown[0].data and "70 %" in shown[0].data
    assert progress_file.read() == {}, "a run without a prediction leaves no trace"
    quiz("every/predict")
    question = shown[-1]
    live = quizzes._cards["every/predict"]
    live.control.set(0)
    live.check.click()
    assert live.check.disabled and all(widget.disabled for widget in live.control.widgets), "a prediction is final"
    compare("every/predict", 70)
    assert "under 50 %" in shown[-1].data and "70 %" in shown[-1].data and "Too low." in shown[-1].data
    assert "Too low." in live.feedback.value, "the card of the prediction shows the outcome too"
    assert progress_file.read()["every/predict"].solved
    assert question is live.box
    assert "Too low." in card("predict").feedback.value
    with pytest.raises(LabError, match="no prediction"):
        compare("every/choice", 1)


def test_an_exercise_is_checked_when_its_cell_runs(shown, monkeypatch):
    monkeypatch.setattr(quizzes, "_tried", set())

    def shares(commands, answers):
        flags = {}
        for command, answer in zip(commands, answers):
            flags.setdefault(list(json.loads(command.answer))[1], []).append(answer == command.answer)
        return {device: sum(hits) / len(hits) for device, hits in flags.items()}

    quiz("every/code", lambda commands, answers: {})
    assert "is missing; your function returned" in quizzes._cards["every/code"].feedback.value
    assert progress_file.read()["every/code"].attempts == 0, "the first run shows the exercise as it stands"
    quiz("every/code", lambda commands, answers: {})
    assert progress_file.read()["every/code"].attempts == 1
    quiz("every/code", shares)
    assert progress_file.read()["every/code"].solved
    with pytest.raises(LabError, match="hands in the learner's answer"):
        quiz("every/code")
    with pytest.raises(LabError, match="Hand in what the lesson's cell hands in"):
        quiz("every/code", shares, 1)
    with pytest.raises(LabError, match="takes the question's id alone"):
        quiz("every/choice", 1)


def test_static_text_has_the_question_and_not_the_answer():
    for question in question_files.lessons()[0].questions:
        page, text = Static(question)._repr_html_(), repr(Static(question))
        assert all(line in text for line in question.lines)
        assert question.answer.strip() not in page + text and "Option(" not in page + text


def test_progress_by_lesson(shown, tmp_path):
    question = card("choice")
    question.control.set(1)
    question.check.click()
    table = re.sub(r"<[^>]+>", " ", progress().data)
    assert "T · Every kind" in table and "1 of 7" in table and "multiple, number, match" in table
    kept = json.loads(Path(export_progress(tmp_path / "out.json")).read_text())
    assert kept["questions"]["every/choice"]["solved"] is True
    with pytest.raises(LabError, match="no lesson 'evry'"):
        reset_progress("evry")
    assert "What was there before is in" in reset_progress("every")
    assert "0 of 7" in progress().data and "nothing to forget" in reset_progress()


HOSTILE = [
    {"answer": 99}, {"answer": "<img src=x onerror=alert(1)>"}, {"answer": [7, 8, 9]}, {"answer": -1},
    {"hints": 999_999}, {"attempts": 999_999, "solved": True}, {"measured": 1e308, "answer": 0},
]


@pytest.mark.parametrize("fields", HOSTILE, ids=str)
@pytest.mark.parametrize("kind", [*ANSWERS, "predict", "code"])
def test_a_hostile_record_breaks_no_question(kind, fields, shown):
    progress_file.file().write_text(json.dumps({"questions": {f"every/{kind}": fields}}))
    quiz(f"every/{kind}", *([lambda *_: None] if kind == "code" else []))
    live = quizzes._cards[f"every/{kind}"]
    (live.hint if kind == "code" else live.check).click()
    parts = (live.feedback, live.hints, live.answer)
    assert "<img" not in "".join(part.value for part in parts)
    assert "<img" not in progress().data


def test_damage_is_told_on_the_page():
    progress_file.file().write_text("{")
    assert "damaged" in card("choice").feedback.value


def test_exported_answers_come_back_and_other_files_do_not(tmp_path):
    question = card("choice")
    question.control.set(ANSWERS["choice"][1])
    question.check.click()
    kept = json.loads(Path(export_progress(tmp_path / "mine.json")).read_text())
    reset_progress()
    (tmp_path / "mine.json").write_text(json.dumps({"questions": kept["questions"] | {"every/match": 7}}))
    assert import_progress(tmp_path / "mine.json") == ("Added: 1 questions, 1 of them solved. "
                                                       "Left out: 1 records make no sense.")
    assert "Solved" in card("choice").feedback.value
    (tmp_path / "other.json").write_text("[]")
    for name in ("other.json", "none.json"):
        with pytest.raises(LabError, match="has no answers to add"):
            import_progress(tmp_path / name)


def test_what_solved_a_question_stays():
    question = card("choice")
    for place in (1, 2):
        question.control.set(place)
        question.check.click()
    assert "Not yet" in question.feedback.value and "attempt" not in question.feedback.value
    kept = progress_file.read()["every/choice"]
    assert (kept.solved, kept.attempts, kept.answer) == (True, 1, 1)


def test_a_prediction_is_final_in_every_notebook():
    first, second = card("predict"), card("predict")
    for notebook, place in ((first, 0), (second, 1)):
        notebook.control.set(place)
        notebook.check.click()
    assert progress_file.read()["every/predict"].answer == 0
    assert second.control.get() == 0 and "under 50 %" in second.feedback.value
    assert progress_file.read()["every/predict"].attempts == 0, "a prediction is no attempt"
    reset_progress("every/predict")
    assert card("predict").control.get() is None


@pytest.mark.parametrize("measured", [float("inf"), float("nan"), "much", None, [1]], ids=str)
def test_what_is_no_figure_is_not_compared(measured, shown):
    question = card("predict")
    question.control.set(0)
    question.check.click()
    with pytest.raises(LabError, match="every/predict"):
        compare("every/predict", measured)
    assert progress_file.read()["every/predict"].measured is None and card("predict").check.disabled


def test_the_band_agrees_with_the_figure_that_is_shown():
    predict = question_files.find("every/predict")
    assert [predict.right(value) for value in (49.4, 49.6)] == [0, 1]  # shown as 49 % and 50 %


def test_what_the_page_holds_is_what_is_judged():
    for kind, held in {"choice": [False, True, False], "multiple": [True, False, True], "number": ["4096"],
                       "match": [3, 2], "order": [2, 1, 3]}.items():
        question = card(kind)
        question._check_held(held)
        assert "Right" in question.feedback.value, kind


def test_ids_that_are_none_are_answered_with_the_nearest():
    for wrong in ("every/chioce", ["every/choice"], {}, None):
        with pytest.raises(LabError, match="There is no question"):
            quiz(wrong)
    with pytest.raises(LabError, match="Did you mean every/choice"):
        quiz("every/chioce")


def test_outside_a_notebook_everything_is_text(shown, monkeypatch):
    monkeypatch.setattr(quizzes, "in_notebook", lambda: False)
    quiz("every/choice")
    quiz("every/code", lambda commands, answers: {})
    compare("every/predict", 70)
    assert len(shown) == 3, "no widgets"
    texts = list(map(repr, [*shown, progress()]))
    assert "second & last" in texts[0] and "measured 70 %" in texts[2] and "0 of 7" in texts[3]
    assert not any("object" in text or "<" in text.replace("<b>", "").replace("<img", "") for text in texts[1:])
