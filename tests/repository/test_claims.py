"""The claims board: each figure is where it is read, each verdict follows from it, and a wrong one is found."""

import re

import claims
import pytest
from lora_lab import LabError

BOARD, SOURCES, THEMES = claims.load()
each_claim = pytest.mark.parametrize("claim", BOARD, ids=lambda claim: claim.id)
TYPED = re.compile(r"(?<![\w.-])\d[\d.,]*(?![\w-])")  # a figure, and not the 4 of nf4 or the 135 of 135M


def planted(claim, figures):
    """Figures and words that the cell could print in place of these: another for one of them, or one for all."""
    rules = f"{claim.holds} {claim.in_part} {claim.fails}"
    words = {name for name, figure in figures.items() if isinstance(claims.value(figure), str)}
    numbers = {name: figure for name, figure in figures.items() if name not in words}
    others = [*re.findall(r"\d[\d.]*(?:e\d+)?", rules), *numbers.values(), "1"]
    for name, figure in numbers.items():
        number = claims.value(figure)
        for other in [*others, *map(str, (-number, number * 1000, number / 1000))]:
            yield from (figures | {name: other}, figures | dict.fromkeys(numbers, other))
    yield from (figures | {name: other} for name in words for other in [*re.findall(r"'(.*?)'", rules), "another word"])


@each_claim
def test_the_verdict_is_the_one_that_follows(claim):
    claims.check(claims.judge(claim))


def test_no_verdict_is_out_of_reach():
    """A wrong figure is found only if another figure would give another verdict: it does, for every claim."""
    sure = []
    for claim in BOARD:
        section, text = claims.lesson(claims.LESSONS / f"{claim.lesson}.ipynb")[claim.cell]
        figures = claims.read(claim, text)
        if not any(is_found(claim, other) for other in planted(claim, figures)):
            sure.append(claim.id)
    assert not sure


def is_found(claim, figures):
    try:
        return claims.follows(claim, figures) != claim.verdict
    except LabError as error:
        return "at once" in str(error)


def test_there_are_many_and_each_is_one():
    assert len(BOARD) >= 60
    for field in ("id", "claim"):
        values = [getattr(claim, field).lower() for claim in BOARD]
        assert not {one for one in values if values.count(one) > 1}, field


@each_claim
def test_a_claim_is_whole_and_no_figure_in_it_is_typed(claim):
    assert claim.theme in THEMES
    assert claim.verdict in claims.VERDICTS.values()
    assert any(claim.source.startswith(name) for name in SOURCES)
    assert claim.claim.endswith(".") and claim.measured.endswith(".")
    assert claim.model and claim.scale and not claim.scale.endswith(".")
    read = set(re.findall(r"\{(\w+)", str(claim.read)))
    used = set(re.findall(r"[a-z_]\w*", f"{claim.holds} {claim.in_part} {claim.fails}"))
    shown = set(re.findall(r"\{(\w+)\}", claim.measured + claim.scale))
    assert shown and shown <= read, "no figure is shown, or one that is not read"
    assert read <= shown | used, "a figure is read for nothing"
    for text in (claim.measured, claim.scale):
        assert not TYPED.search(re.sub(r"\{.*?\}|`[^`]*`", "", text)), "a figure is typed"


def rewritten(folder, name, before, after):
    """Return the claim of a name after its lesson, copied into `folder`, was changed at one place."""
    claim = next(claim for claim in BOARD if claim.id == name)
    file = folder / f"{claim.lesson}.ipynb"
    text = (file if file.exists() else claims.LESSONS / file.name).read_text(encoding="utf-8")
    assert len(re.findall(before, text)) == 1
    file.write_text(re.sub(before, after, text), encoding="utf-8")
    claims.lesson.cache_clear()
    return claim


@pytest.mark.parametrize("name, before, after, words", [
    ("nf4-merge", r"(nf4        merged in place .*?, +)\d+( of )", r"\g<1>14\2",
     ["06_merge_and_ship", "3d17b4b9", "kept 14", "'does not hold here'"]),
    ("forgets-less", r"(averaged seed by seed: )-", r"\1+",
     ["05_alpha_scaling", "05d9713a", "mean +", "'holds'", "'does not hold here'"])])
def test_a_planted_wrong_figure_is_found_and_named(name, before, after, words, tmp_path):
    claim = rewritten(tmp_path, name, before, after)
    with pytest.raises(LabError) as error:
        claims.check(claims.judge(claim, tmp_path))
    assert all(word in str(error.value) for word in [f"'{name}'", *words]), error.value


def test_a_cell_that_is_gone_or_says_it_otherwise_is_named(tmp_path):
    claim = rewritten(tmp_path, "nf4-merge", "nf4        merged in place", "4 bits merged in place")
    with pytest.raises(LabError, match=r"nf4-merge.*06_merge_and_ship.*3d17b4b9.*0 times, expected once"):
        claims.judge(claim, tmp_path)
    rewritten(tmp_path, "nf4-merge", '"id": "3d17b4b9"', '"id": "other"')
    with pytest.raises(LabError, match=r"nf4-merge.*06_merge_and_ship.*3d17b4b9: there is no such cell"):
        claims.judge(claim, tmp_path)


@pytest.mark.parametrize("rule, holds", [
    ("low > 0", False), ("-0.5 < low and said == 'higher'", True), ("low > 0 or high >= 2 * 0.5", True),
    ("max(low, high) - min(low, high) < 1.3", True), ("0 < high - low < 1", False), ("said != 'higher'", False)])
def test_a_rule_compares_what_was_read(rule, holds):
    assert claims.true(rule, {"low": -0.2, "high": 1.0, "said": "higher"}) is holds


@pytest.mark.parametrize("rule", ["low >", "other > 0", "low.real > 0", "__import__('os')", "open('file')", "said > 1",
                                  "[low][0]", "low / 0 > 1"])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(LabError, match="cannot be followed"):
        claims.true(rule, {"low": 1.0, "said": "higher"})


def test_a_number_is_read_as_it_is_printed():
    text = "a | × 2 | −1,234.5 kB\nb (2.5e-03 to +7), lower\n"
    found = {}
    for template in ("a | × {two} | {size} kB", "b ({low} to {high}), {said:lower|higher}", "× … {size} kB b"):
        found |= re.search(claims.pattern(template), text).groupdict()
    assert {name: claims.value(one) for name, one in found.items()} == {
        "two": 2, "size": -1234.5, "low": 0.0025, "high": 7, "said": "lower"}


def test_the_page_has_each_claim_with_its_cell_and_verdict_in_words():
    page = claims.page()
    for claim in BOARD:
        assert page.count(f'<li id="claim-{claim.id}"') == 1
        assert f'href="../notebooks/{claim.lesson}.html#cell-{claim.cell}"' in page
    for kind, verdict in claims.VERDICTS.items():
        count = sum(claim.verdict == verdict for claim in BOARD)
        assert page.count(f'data-verdict="{kind}"') == page.count(f'<p class="verdict">{verdict}<') == count
        assert f'id="show-{kind}"> {verdict} ({count})' in page
    assert claims.HERE in (claims.ROOT / "docs/claims.md").read_text(encoding="utf-8")
