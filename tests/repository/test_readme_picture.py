"""README's moving picture is of Lesson 0 as it stands, and says when it is not; it stays small, and comes to rest."""

import nbformat
import pytest
import readme_picture
from lora_lab import LabError
from PIL import Image, ImageSequence

README = readme_picture.ROOT / "README.md"


@pytest.fixture
def lesson():
    return nbformat.read(readme_picture.LESSON, 4)


def cell(notebook, wanted):
    return next(one for one in notebook.cells if one.id == wanted)


def printed(notebook, wanted):
    return next(one for one in cell(notebook, wanted).outputs if one.output_type == "stream")


def test_picture_and_its_text_are_of_the_lesson_as_it_stands(lesson):
    assert readme_picture.made_from() == readme_picture.digest(lesson), "Lesson 0 shows something else: make picture"
    assert readme_picture.readme(lesson) in README.read_text("utf-8"), "Lesson 0 says something else: make picture"


def test_what_is_seen_counts_and_what_is_not_does_not(lesson):
    before = readme_picture.digest(lesson)
    for one in lesson.cells:
        one.metadata["execution"] = {"shell.execute_reply": "later"}
    lesson.cells[0].source += " A word."
    lesson.cells[-1].source += " A word."
    took = printed(lesson, readme_picture.TRAINED)
    took.text = took.text.replace(" s for", "9.5 s for")
    assert readme_picture.digest(lesson) == before, "times, and cells that are not shown"
    took.text += "and a word"
    after = readme_picture.digest(lesson)
    cell(lesson, readme_picture.YOURS).source += "  # a word"
    assert len({before, after, readme_picture.digest(lesson)}) == 3


def test_the_text_is_read_from_the_outputs(lesson):
    printed(lesson, readme_picture.ASKED_AGAIN).text = "1 of 8 right before, 7 after\n"
    printed(lesson, readme_picture.YOURS).text = "[no] `answer`\n"
    words = " ".join(readme_picture.readme(lesson).split())
    assert "1 of 8" in words and "7 of 8" in words and r"\[no\] \`answer\`](docs/" in words


def test_cells_that_are_gone_are_named(lesson):
    lesson.cells = [one for one in lesson.cells if one.id != readme_picture.YOURS]
    with pytest.raises(LabError, match=readme_picture.YOURS):
        readme_picture.digest(lesson)


def test_a_picture_is_small_moves_a_while_and_comes_to_rest(lesson, chromium, tmp_path):
    picture = tmp_path / "picture.webp"
    assert readme_picture.made_from(picture) == ""
    readme_picture.draw(lesson, chromium, picture)
    assert readme_picture.made_from(picture) == readme_picture.digest(lesson)
    for file in (picture, readme_picture.PICTURE):
        with Image.open(file) as frames:
            assert frames.size == (readme_picture.WIDTH, readme_picture.HEIGHT) and frames.info["loop"] > 0
            taken = [frame.copy().info["duration"] for frame in ImageSequence.Iterator(frames)]
        assert file.stat().st_size < 200_000 and sum(taken) <= 12_000
        assert sum(one >= 2_000 for one in taken) == len(readme_picture.RESTS), "long enough to read"
