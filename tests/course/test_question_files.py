"""The question bank: every mistake in a file is named, and every question keeps what the course promises of it."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lora_lab import LabError
from lora_lab.course import question_files
from lora_lab.course.question_kinds import Choice, Code, Multiple, Number, Predict

FOLDER = Path(__file__).parents[2] / "notebooks"
GOOD = (Path(__file__).parents[1] / "questions/every.toml").read_text()
QUESTIONS = [pytest.param(q, id=q.id) for lesson in question_files.lessons() for q in lesson.questions]
each_question = pytest.mark.parametrize("question", QUESTIONS)

MISTAKES = {
    "no right answer": ('says = "It is $x^2$."\nright = true', 'says = "No."', "'choice': 0 options are right"),
    "two right answers": ('says = "The third is too far."', 'says = "x"\nright = true', "'choice': 2 options are"),
    "a duplicate id": ('id = "multiple"', 'id = "choice"', "'choice': the id 'choice' is there twice"),
    "an unknown kind": ('kind = "order"', 'kind = "rank"', "'order': unknown kind; there are choice, multiple"),
    "no feedback": ('says = "is odd."', "", "'multiple': option 2: 'says' is missing"),
    "empty feedback": ('says = "is odd."', 'says = " "', "'multiple': 'option 2: says' is empty"),
    "no feedback on a near miss": ('says = "You forgot the square."', "", "'number': near 1: 'says' is missing"),
    "no feedback on other numbers": ('otherwise = "Multiply."', "", "'number': 'otherwise' is missing"),
    "a near miss that is right": ("value = 2048", "value = 4096.0", "'number': the near miss 4096 counts as right"),
    "no hints": ('hints = ["b is small."]', "hints = []", "'order': 'hints' must be a list with something in it"),
    "no answer": ('answer = "2 and 4."\n', "", "'multiple': 'answer' is missing"),
    "no proof": ('answer = "2 and 4."\nmissing = "Count on."\nproof = { section = "S", cell = "c" }',
                 'answer = "2 and 4."\nmissing = "Count on."', "'multiple': 'proof' is missing"),
    "half a proof": ('answer = "4 × 1024."\nproof = { section = "S", cell = "c" }',
                     'answer = "4 × 1024."\nproof = { section = "S" }', "'number': proof: 'cell' is missing"),
    "an unknown field": ('missing = "Count on."', 'missing = "Go on."\nhint = "x"', "'multiple': unknown field 'hint'"),
    "a wrong type": ("value = 4096", 'value = "4096"', "'number': 'value' must be of type float, found '4096'"),
    "math in a control": ('text = "third"', 'text = "$x$"', "'choice': 'option 3: text' is shown as it is"),
    "the same option twice": ('text = "third"', 'text = "second & last"', "'choice': 'second & last' is there twice"),
    "an order that gives itself away": ('text = "b: small"', 'text = "A: small"', "'order': the right order is the"),
    "bands that do not rise": ("below = 50\n", "", "'predict': the bands do not rise"),
    "a broken format": ('format = "{:.0f} %"', 'format = "{:.0q}"', "'predict': format '{:.0q}' does not work"),
    "an exercise without a check": ('check = "first.exact_by_device"', 'check = "none"', "'code': there is no check"),
    "no title": ('title = "T · Every kind"', "", "every.toml: 'title' is missing"),
    "no TOML": ('kind = "choice"', "kind = choice", "every.toml is not a TOML file"),
}


@pytest.mark.parametrize("old, new, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_with_file_and_question(old, new, words, tmp_path):
    assert GOOD.count(old) == 1
    file = tmp_path / "every.toml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(LabError) as refused:
        question_files.read(file)
    assert "every.toml" in str(refused.value) and words in str(refused.value)


def test_all_mistakes_are_named_at_once(tmp_path):
    file = tmp_path / "every.toml"
    file.write_text(GOOD.replace('says = "is odd."', "").replace('kind = "order"', 'kind = "rank"'))
    with pytest.raises(LabError) as refused:
        question_files.read(file)
    assert len(str(refused.value).splitlines()) == 2


def test_an_unknown_id_is_answered_with_those_there_are():
    with pytest.raises(LabError, match="no question 'math/rnk'.*math/rank_one"):
        question_files.find("math/rnk")


def cells(stem):
    """(heading above, source, printed output) of each code cell."""
    heading = ""
    for cell in nbformat.read(FOLDER / f"{stem}.ipynb", 4).cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^## (.*)$", cell.source, re.MULTILINE) or [heading])[-1]
        else:
            texts = [str(o.get("text", "")) + str(o.get("data", {}).get("text/html", "")) for o in cell.outputs]
            yield heading, cell.source, "".join(texts)


FEW = ("00_first_adapter", "01_low_rank_math", "02_config_and_targets", "03_train_in_8bit", "04_memory",
       "05_alpha_scaling", "06_merge_and_ship", "07_past_one_gpu",
       "08_your_own_data", "09_variants")  # questions, most of them settled by a cell


def test_every_lesson_has_its_questions():
    lessons = {lesson.notebook: lesson for lesson in question_files.lessons()}
    for path in FOLDER.glob("*.ipynb"):
        if path.stem in FEW:
            every = lessons[path.stem].questions
            assert 8 <= len(every) <= 12, path.stem
            assert sum(isinstance(q, (Predict, Code)) for q in every) >= len(every) / 2, path.stem
            continue
        asked = [q for q in lessons[path.stem].questions if not isinstance(q, (Predict, Code))]
        kinds = {type(q) for q in asked}
        assert len(asked) >= 6, path.stem
        assert Number in kinds and Multiple in kinds and len(kinds) >= 4
        assert any(isinstance(q, Predict) for q in lessons[path.stem].questions)


def test_every_question_is_asked_and_every_prediction_compared():
    text = "\n".join(source for path in FOLDER.glob("*.ipynb") for _, source, _ in cells(path.stem))
    asked = re.findall(r'quiz\("([\w/]+)"', text)
    assert sorted(asked) == sorted(param.id for param in QUESTIONS)
    predicted = [param.id for param in QUESTIONS if isinstance(param.values[0], Predict)]
    assert sorted(re.findall(r'compare\("([\w/]+)"', text)) == sorted(predicted)
    assert all(text.index(f'quiz("{name}"') < text.index(f'compare("{name}"') for name in predicted)


@each_question
def test_the_cell_that_proves_the_answer_exists(question):
    lesson = next(lesson for lesson in question_files.lessons() if question in lesson.questions)
    stem = question.proof.lesson or lesson.notebook
    places = [heading for heading, source, printed in cells(stem)
              if question.proof.cell in source + printed and (isinstance(question, Code) or "quiz(" not in source)]
    assert question.proof.section in places, f"no cell with {question.proof.cell!r} there, but under {places}"


def test_the_right_option_is_not_given_away_by_its_place_or_length():
    choices = [param.values[0] for param in QUESTIONS if isinstance(param.values[0], Choice)]
    right = [next(i for i, option in enumerate(q.option) if option.right) for q in choices]
    longest = [max(range(len(q.option)), key=lambda i: len(q.option[i].text)) for q in choices]
    assert sum(a == b for a, b in zip(right, longest)) / len(choices) < 0.4
    assert all(right.count(place) / len(choices) < 0.45 for place in range(4))


def test_right_and_wrong_options_do_not_alternate():
    for question in (param.values[0] for param in QUESTIONS if isinstance(param.values[0], Multiple)):
        keys = [option.right for option in question.option]
        assert any(a == b for a, b in zip(keys, keys[1:])), question.id


@each_question
def test_a_question_says_where_to_look_by_name(question):
    """Questions stand at the end of a lesson as well as beside their cells."""
    text = repr(question)
    assert not re.search(r"this section|next cell|cell above|just before|the section makes", text, re.IGNORECASE)


def test_questions_are_read_at_once():
    """A learner waits seconds for torch, and a check needs it only when there is an answer."""
    code = ("import sys; from lora_lab.course import question_files; question_files.lessons()\n"
            "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))")
    subprocess.run([sys.executable, "-c", code], check=True)
