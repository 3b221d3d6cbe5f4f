"""Formulas of the site: the course's draw, as TeX would set them, and what is no formula stays as it is."""

import re
from pathlib import Path

import nbformat
import pytest
import site_math
from docutils.utils.math import MathError
from lora_lab.course import question_files
from lora_lab.course.cards import markdown

ROOT = Path(__file__).parents[2]
FORMULA = re.compile(r"(?<![\\$`\w])\$(?!\s)([^$\n`]+?)(?<!\s)\$(?![\d`])|\$\$(.+?)\$\$", re.DOTALL)


def test_every_formula_of_the_lessons_draws():
    cells = [cell.source for file in ROOT.glob("notebooks/0*.ipynb") for cell in nbformat.read(file, 4).cells
             if cell.cell_type == "markdown"]
    found = {line or block: bool(block) for cell in cells for line, block in FORMULA.findall(cell)}
    assert len(found) > 50
    for formula, block in found.items():
        drawn = site_math.mathml(formula, block)
        assert "\\" not in drawn and "<merror" not in drawn and ('display="block"' in drawn) == block, formula


def test_questions_keep_none_as_tex():
    texts = [text for lesson in question_files.lessons() for question in lesson.questions
             for text in (question.ask, question.answer, *question.hints)]
    pages = list(map(markdown, texts))
    drawn = list(map(site_math.in_html, pages))
    formulas = sum(page.count("<math") - page.count("<wbr><math") for page in drawn)
    assert sum(page.count(r"\(") for page in pages) == formulas > 20
    assert not [page for page in drawn if re.search(r"\\[()[\]]", page)]


@pytest.mark.parametrize("formula, part", [
    ("49{,}152", "<mn>49,152</mn>"), ("f(1, 100)", "<mn>1</mn><mo>,</mo>"),
    ("1/k", '<mo lspace="0" rspace="0">/</mo>'),
    (r"\ln 2", '<mo>&ApplyFunction;</mo><mspace width="0.1667em"></mspace><mn>2'), ("W'", "<mi>W</mi><mo>'</mo>"),
])
def test_signs_stand_as_tex_sets_them(formula, part):
    assert part in site_math.mathml(formula)


def test_a_long_formula_may_break_before_its_signs():
    drawn = site_math.mathml("(B_1+B_2)(A_1+A_2) = B_1A_1 + B_2A_2 + B_1A_2 + B_2A_1")
    assert drawn.count("<wbr><math") == drawn.count('<mo form="infix">') == 4
    assert "<wbr>" not in site_math.mathml("a + b") + site_math.mathml("a" * 50)
    assert "<wbr>" not in site_math.mathml("a = b + c + d + e + f + g + h + i + j + k + l + m", block=True)


@pytest.mark.parametrize("page", [
    r"<code>\(x\)</code>", r"<script>let a = '\(x\)'</script>", r'<a title="\(x\)">y</a>', r"<style>\(x\)</style>",
    r"<pre class='a'>\[x\] <b>\(y\)</b></pre>", "no formula, $5"])
def test_what_is_no_formula_stays(page):
    assert site_math.in_html(page) == page


def test_marks_in_text_become_formulas_even_beside_code():
    drawn = site_math.in_html(r"<p><code>\(x\)</code> is \(a &lt; b\), and \[c\]</p>")
    assert r"<code>\(x\)</code> is <math" in drawn and "<mo>&lt;</mo>" in drawn
    assert drawn.count("<math") == 2 and '<div class="math"><math' in drawn and drawn.endswith("</math></div></p>")


def test_a_formula_that_is_none_stops_the_build():
    with pytest.raises(MathError):
        site_math.mathml(r"\nosuchname x")
