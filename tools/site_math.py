"""Formulas of the site as MathML, which browsers draw without a script: those of texts and of notebooks' outputs."""

import html
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

# What docutils leaves to the browser, set as TeX sets it: 1/k has no gaps, and ln 2 has one.
AS_TEX = ((r"<mo[^>]*>/</mo>", '<mo lspace="0" rspace="0">/</mo>'),
          (r"(<mo>&ApplyFunction;</mo>)(?=<m[in]>)", r'\1<mspace width="0.1667em"></mspace>'))
LARGE = re.compile(r"\d+(?:\{,\}\d+)+")  # 49{,}152 is one number
LONG = 40  # signs of TeX in a line of text, above which it may break before its signs: browsers break no MathML
# Of a page's HTML what is no text, as a whole; and formulas between the marks that `lora_lab.course.cards` writes.
IN_HTML = re.compile(r"<(script|style|pre|code)\b.*?</\1>|<[^>]*>|"
                     r"\\\((?P<line>.+?)\\\)|\\\[(?P<block>.+?)\\\]", re.DOTALL)


def mathml(formula: str, block: bool = False) -> str:
    """Return a TeX formula as MathML on one line; a `block` stands in a box of its own. Raises docutils' MathError."""
    breaks = not block and len(formula) > LONG and "{" not in formula
    parts = [_mathml(part, block) for part in (re.split(r"(?<=\S)(?=\s[=+]\s)", formula) if breaks else [formula])]
    text = "<wbr>".join(parts[:1] + [re.sub(r"^(<math[^>]*><mo)>", r'\1 form="infix">', part) for part in parts[1:]])
    return f'<div class="math">{text}</div>' if block else text


def _mathml(formula: str, block: bool) -> str:
    formula = LARGE.sub(lambda found: rf"\mathrm{{{found[0].replace('{,}', ',')}}}", formula)
    text = re.sub(r">\s+<", "><", tex2mathml(formula, as_block=block))
    for pattern, by in AS_TEX:
        text = re.sub(pattern, by, text)
    return text


def in_html(text: str) -> str:
    r"""Return HTML with the formulas between \( and \), or \[ and \], as MathML; those in code and in tags stay."""
    def drawn(found: re.Match) -> str:
        line, block = found["line"], found["block"]
        return mathml(html.unescape(line or block), bool(block)) if line or block else found[0]

    return IN_HTML.sub(drawn, text)


def draw(translator, node: nodes.math | nodes.math_block) -> None:
    """Write the formula of a node, as a renderer of Sphinx."""
    translator.body.append(mathml(node.astext(), isinstance(node, nodes.math_block)))
    raise nodes.SkipNode
