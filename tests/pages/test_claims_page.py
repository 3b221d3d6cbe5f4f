"""The claims board in a browser: a verdict is picked without a script, and nothing is wider than a phone."""

import re
from pathlib import Path

import claims
import pytest

STYLES = Path(__file__).parents[2] / "docs/styles"


@pytest.fixture
def board(new_page):
    """The board with its own style alone, as narrow as a phone."""
    body = re.sub("^## (.*)", r"<h2>\1</h2>", claims.page(), flags=re.MULTILINE)
    new_page.set_viewport_size({"width": 360, "height": 800})
    style = (STYLES / "claims.css").read_text(encoding="utf-8")
    new_page.set_content(f"<style>{style}</style><article class='bd-content'>{body}</article>")
    return new_page


def visible(board):
    return board.evaluate("""[...document.querySelectorAll("ul.claims > li")].filter(one => one.checkVisibility())
                          .map(one => one.dataset.verdict)""")


def test_a_button_leaves_the_claims_of_its_verdict(board):
    everything = visible(board)
    for kind, verdict in claims.VERDICTS.items():
        board.get_by_role("radio", name=re.compile(rf"^{verdict} \(\d+\)$")).check()
        assert visible(board) == [one for one in everything if one == kind] != []
    board.get_by_role("radio", name="all").check()
    assert visible(board) == everything
    board.keyboard.press("ArrowDown")
    assert set(visible(board)) == {"holds"}, "by the keyboard, too"


def test_nothing_is_wider_than_a_phone(board):
    assert board.evaluate("document.documentElement.scrollWidth") <= 360
