"""Tables and bars, as a notebook and as a plain program show them."""

import pytest
from lora_lab import display
from transformers.utils import logging


def test_cells_are_escaped_and_a_plain_program_sees_text():
    shown = display.table([{"name": "<b>&", "n": 1}, {"name": "two", "n": 2}])
    assert "&lt;b&gt;&amp;" in shown.data and "<b>" not in shown.data
    assert repr(shown) == "name | n\n<b>& | 1\ntwo | 2"


def test_tokens_that_count_are_told_apart_with_and_without_colour():
    shown = display.tokens(["<b>", "\n", " no", "!"], [False, False, True, True])
    assert repr(shown) == "<b>↵\n[␣no][!]"
    assert "&lt;b&gt;" in shown.data and "<b>" not in shown.data
    assert shown.data.count("background") == 2 and shown.data.count("<br>") == 1
    with pytest.raises(ValueError):
        display.tokens(["a"], [])


def test_a_bar_has_its_words_beside_it_for_those_who_see_none():
    shown = display.bar("<i>", 3, 7, "3 of 7").data
    assert 'aria-label="&lt;i&gt;"' in shown and 'value="3" max="7"' in shown and "3 of 7" in shown


def test_progress_is_silent_outside_a_notebook_and_goes_when_done(capsys, monkeypatch):
    with display.Progress("work", total=2) as bar:
        bar.update(1)
    assert not capsys.readouterr().out
    drawn = []

    class Handle:
        def update(self, shown):
            drawn.append(shown.data)

    monkeypatch.setattr(display, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", lambda shown, display_id: drawn.append(shown.data) or Handle())
    with pytest.raises(KeyboardInterrupt), display.Progress("work", total=2) as bar:
        bar.update(1)
        raise KeyboardInterrupt
    assert "0 of 2" in drawn[0] and "1 of 2" in drawn[1] and drawn[2] == ""


@pytest.mark.parametrize("shown", [True, False])
def test_transformers_bars_are_as_they_were_after_the_block(shown):
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        with pytest.raises(ZeroDivisionError), display.no_progress_bars():
            assert not logging.is_progress_bar_enabled()
            raise ZeroDivisionError
        assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
