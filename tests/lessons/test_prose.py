"""No sentence of a lesson states what only a run can tell: every number and every comparison was looked at."""

from pathlib import Path

import prose
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
# Lessons whose every number and comparison is reviewed.
CHECKED = ["00_first_adapter", "01_low_rank_math", "02_config_and_targets", "03_train_in_8bit", "04_memory",
           "05_alpha_scaling", "06_merge_and_ship", "07_past_one_gpu", "08_your_own_data",
           "09_variants"]


@pytest.fixture
def lesson(tmp_path):
    def write(markdown):
        lines = "\n".join(f"# {line}".rstrip() for line in markdown.splitlines())
        (tmp_path / "09_planted.py").write_text(f"# %% [markdown]\n{lines}\n\n# %%\nx = 84 > 3  # better\n")
        return tmp_path / "09_planted.py"
    return write


@pytest.mark.parametrize("name", CHECKED)
def test_every_number_and_comparison_of_the_lesson_was_reviewed(name):
    new, old = prose.check(FOLDER / f"{name}.py", prose.reviewed().get(name, {}))
    assert not new and not old, f"python tools/prose.py {name}"


def test_reviewed_sentences_are_of_lessons():
    assert prose.reviewed().keys() <= {twin.stem for twin in FOLDER.glob("*.py")}


@pytest.mark.parametrize("planted, words", [
    ("The trained model is twice as good.", ("twice",)),
    ("84 against 87.", ("84", "87")),
    ("Loss falls to 0.02.", ("falls", "0.02")),
    ("LoRA trains 1,474,560 of them, a share of 1.1 %.", ("1,474,560", "1.1", "%")),
    ("It is hardly slower, and three of four score the same.", ("hardly", "slower", "three", "four")),
    ("**Look.** The *best* one **wins**.", ("best", "wins")),
    ("- a list:\n- the loss is -3.5", ("-3.5",)),
    ("| a | 12 ms |", ("12",)),
    ("In 2021 it took longer.", ("2021", "longer")),
])
def test_a_planted_result_is_found(lesson, planted, words):
    new, _ = prose.check(lesson(f"# Title of 3\n\nNothing is said here. {planted}\n\nNor here."
                                if not planted.startswith(("-", "|")) else f"Some words.\n\n{planted}"), {})
    assert sum((sentence.words for sentence in new), ()) == words


@pytest.mark.parametrize("plain", [
    "Run `train(steps=60)` with $r = 8$, as int8 or as SmolLM2 has it.",
    "$$y = 2x$$",
    "## 3 things, twice",
    "```\nx = 3\n```",
    "[Lesson 3](03_train_in_8bit.ipynb), lessons 0 to 2, section 4.1 and table 5 tell it.",
    "The paper (Hu et al., 2021) has it.",
    "Is it twice as good, or 3 times?",
    "**Predict.** Take one of these: 0.2, 2 or 20 percent. Then run more.",
    "**Exercise 2.** Make it better than 0.5.",
    "**3. The half.** Train half of the layers.",
    "## Exercises\n\nMake it twice as fast.",
    "1. The first.\n2. The second.",
    "*Lessons:* [1 · Twice](01_x.ipynb) →",
    "**It takes** about two minutes.",
    "[the table](https://example.org/2.0/more)",
])
def test_what_states_no_result_is_let_through(lesson, plain):
    assert prose.check(lesson(plain), {}) == ([], [])


def test_sentences_are_kept_as_they_stand_and_reviewed_one_by_one(lesson):
    twin = lesson("A byte has\n8 bits (e.g. `01`). It is *small*: 2 nibbles. What is more?\nThat is less.")
    new, old = prose.check(twin, {"A byte has 8 bits (e.g. `01`).": "definition"})
    assert [sentence.text for sentence in new] == ["It is *small*: 2 nibbles.", "That is less."] and old == []


def test_a_sentence_ends_before_code_and_references_too(lesson):
    new, _ = prose.check(lesson("It is better. `r` is told. So is 3. Lesson 4 shows it. It is worse! $x$ is not."), {})
    assert [sentence.text for sentence in new] == ["It is better.", "So is 3.", "It is worse!"]


def test_an_entry_without_its_sentence_is_an_error(lesson):
    assert prose.check(lesson("All is well."), {"It is better.": "mechanism", "All is well.": "mechanism"}) == (
        [], ["It is better.", "All is well."])


@pytest.mark.parametrize("entry", ['kind = "result"\nsentence = "x"', 'sentence = "x"', 'kind = "citation"'])
def test_an_entry_needs_a_sentence_and_a_kind(tmp_path, entry):
    (tmp_path / "reviewed.toml").write_text(f"[[00_first_adapter]]\n{entry}\n")
    with pytest.raises(ValueError, match="definition, citation, mechanism"):
        prose.reviewed(tmp_path / "reviewed.toml")


def test_the_tool_lists_what_is_to_review(capsys, monkeypatch, lesson):
    monkeypatch.setattr(prose, "FOLDER", lesson("# T\n\n## Part\n\nLoss falls to 0.02.").parent)
    monkeypatch.setattr(prose, "reviewed", lambda: {})
    assert prose.main(["09_planted"]) == 1
    said = capsys.readouterr().out
    assert "09_planted · Part\n  Loss falls to 0.02.\n  (falls, 0.02)" in said and "1 to review" in said
