"""Cards: what is shown is escaped, and what is kept of a question is what its control can hold."""

from pathlib import Path

import pytest
from lora_lab.course import cards, progress_file, question_files
from lora_lab.course.question_kinds import Verdict

FILE = Path(__file__).parents[1] / "questions/every.toml"
EVERY = {q.id.partition("/")[2]: q for q in question_files.read(FILE).questions}


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_PROGRESS", str(tmp_path / "progress.json"))


def test_markdown_shows_tags_and_keeps_money_apart_from_math():
    shown = cards.markdown("<script>x</script> costs 5$ and $a<b$")
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert r"\(a&lt;b\)" in shown and '<span class="mathjax_ignore">$</span>' in shown
    assert "<b>" not in cards.plain("<b>\nline")


@pytest.mark.parametrize("name", EVERY)
def test_a_page_without_a_kernel_shows_question_and_lines(name):
    static = cards.Static(EVERY[name], Verdict(False, "**Not** this."))
    shown = static._repr_html_()
    assert f'data-question="{EVERY[name].id}"' in shown and "<strong>Not</strong> this." in shown
    assert all(line in repr(static) for line in EVERY[name].lines) and "Not yet. **Not** this." in repr(static)


def test_the_answer_of_an_order_begins_with_the_order():
    right = [cards.escape(item.text) for item in EVERY["order"].item]
    assert right != sorted(right), "another order than the shown one"
    shown = cards.answer_text(EVERY["order"])
    assert shown.startswith("<b>Answer.</b> <ol>") and cards.markdown(EVERY["order"].answer).strip() in shown
    assert [shown.index(f"<li>{cards.markdown(text)[3:-5]}") for text in right] == sorted(
        shown.index(f"<li>{cards.markdown(text)[3:-5]}") for text in right)


def test_the_answer_of_a_match_says_what_belongs_to_what():
    shown, pairs = cards.answer_text(EVERY["match"]), EVERY["match"].pair
    lines = [cards.markdown(f"{cards.escape(pair.item)}: **{cards.escape(pair.choice)}**")[3:-5] for pair in pairs]
    assert lines and all(f"<li>{line}" in shown for line in lines)


def test_an_order_that_is_wrong_in_several_places_names_the_first_as_the_first():
    assert "the first that you have elsewhere" in EVERY["order"].grade([0, 1, 2]).text


def test_a_verdict_is_read_out_only_when_it_appears():
    assert 'role="alert"' in cards.says(Verdict(True, ""), announce=True)
    assert "role" not in cards.says(Verdict(True, "")) and "(attempt 3)" in cards.says(Verdict(False, ""), attempt=3)


def test_what_solved_a_question_stays():
    question = EVERY["choice"]
    cards.keep(question, Verdict(True, ""), answer=0)
    kept = cards.keep(question, Verdict(False, ""), answer=1)
    assert (kept.solved, kept.answer, kept.attempts) == (True, 0, 1)


def test_an_answer_that_no_control_holds_is_left_out():
    progress_file.change(EVERY["choice"].id, lambda kept: progress_file.Record(attempts=2, answer=99))
    assert cards.read(EVERY["choice"]) == progress_file.Record(attempts=2)
