"""Markdown with math to HTML that is safe to show, and plain text to HTML."""

from __future__ import annotations

import functools
import html

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

_DOLLAR = '<span class="mathjax_ignore">$</span>'  # one that is money or a shell's, not math


@functools.cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")  # a tag in the text is shown, not obeyed
    parser.use(dollarmath_plugin, renderer=_math, allow_space=False, double_inline=True)
    parser.add_render_rule("text", lambda self, tokens, i, *_: html.escape(tokens[i].content).replace("$", _DOLLAR))
    return parser


def _math(content: str, options: dict) -> str:
    """In the marks that the notebook's own typesetting looks for."""
    return html.escape(rf"\[{content}\]" if options["display_mode"] else rf"\({content}\)")


def markdown(text: str) -> str:
    return _markdown().render(text)


def plain(text: str) -> str:
    """As it is, line breaks included."""
    return f'<p class="mathjax_ignore" style="white-space:pre-wrap">{html.escape(text)}</p>'
