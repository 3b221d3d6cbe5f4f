"""The page of all lessons: titles are shown and not obeyed, links lead to the notebooks beside it."""

import nbformat
from lora_lab.course import index

ENTRIES = [index.Entry("00_first", "0 · <img src=x onerror=alert(1)> & [link](javascript:x)", 3, 3),
           index.Entry("01 math", "1 · Math", 1, 4), index.Entry("02_text", "2 · Text", 0, 0)]


def test_titles_are_escaped_in_the_page():
    page = index.page(ENTRIES).data
    assert "<img" not in page and "&lt;img" in page
    assert 'href="00_first.ipynb"' in page and 'href="01%20math.ipynb"' in page
    assert "3 of 3 ✓" in page and "1 of 4" in page and "no questions" in page


def test_the_page_reads_as_text_too():
    assert "1 · Math (01 math.ipynb): 1 of 4" in repr(index.page(ENTRIES))


def test_the_notebook_is_valid_and_has_links_without_a_kernel():
    content = index.notebook(ENTRIES, "print(1)")
    nbformat.validate(nbformat.from_dict(content))
    words = content["cells"][0]["source"]
    assert "<img" not in words.replace("\\<", "") and "\\[link\\](" in words and "(01%20math.ipynb)" in words
    assert index.sources(content).endswith("print(1)")


def test_a_lesson_is_finished_when_all_is_solved():
    assert [entry.finished for entry in ENTRIES] == [True, False, True]
