import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_lab.targets.layer_names import alternatives, matches, nearest, with_stars

LAYER = "model.layers.0.self_attn"
PATHS = [f"{LAYER}.q_proj", f"{LAYER}.v_proj", "model.layers.11.mlp.down_proj", "lm_head"]


def test_matching_is_by_the_end_after_a_dot():
    assert matches("q_proj", PATHS[0]) and matches("self_attn.q_proj", PATHS[0]) and matches("lm_head", "lm_head")
    assert not matches("proj", PATHS[0]) and not matches("q_pro", PATHS[0])


def test_numbers_become_stars():
    assert with_stars("h.3.experts.12.w1") == "h.*.experts.*.w1"
    assert with_stars("fc1.conv2d.7") == "fc1.conv2d.*"


@pytest.mark.parametrize("entry, expected", [
    ("query", ["q_proj"]), ("wv", ["v_proj"]), ("fc2", ["down_proj"]), ("v_prj", ["v_proj"]), ("zzz", []),
])
def test_nearest_is_by_role_then_by_spelling(entry, expected):
    assert nearest(entry, PATHS)[: len(expected)] == expected
    assert bool(nearest(entry, PATHS)) == bool(expected)


def test_fused_layers_are_near_what_they_hold():
    assert nearest("v_proj", ["h.0.attn.c_attn", "h.0.mlp.c_fc"])[0] == "c_attn"
    assert nearest("query", ["h.0.attention.query_key_value", "h.0.mlp.dense_h_to_4h"])[0] == "query_key_value"


@pytest.mark.parametrize("pattern, options", [
    (r".*\.(q|v)_proj", ["q", "v"]),
    (r".*\.(?:q|v(?:alue|x))_proj", ["alue", "x", "q", "v(?:alue|x)"]),
    (r"a|b\|c|d[|]e", ["a", r"b\|c", "d[|]e"]),
    (r".*[qv]_proj", ["q", "v"]),
    (r".*[q-v][^ab][qv]+", []),
    (r"(?!.*(x|y)).*q", []),
    (r"\(a\|b\)", []),
])
def test_alternatives_of_an_expression(pattern, options):
    assert [option for option, _ in alternatives(pattern)] == options


def test_an_alternative_is_insisted_on_even_where_it_may_repeat():
    strict = dict(alternatives(r"m\.(a|b)*c"))
    assert re.fullmatch(strict["a"], "m.bac") and not re.fullmatch(strict["a"], "m.bbc")


words = st.text("abq_.0", min_size=1, max_size=6)


@given(st.lists(words, min_size=2, max_size=4), st.sampled_from(["", "?", "*", "+"]))
def test_what_an_alternative_insists_on_also_fits_the_expression(options, repeat):
    pattern = f"x({'|'.join(map(re.escape, options))}){repeat}y"
    found = list(alternatives(pattern))
    assert len(found) == len(options)
    for option, strict in found:
        text = "x" + re.sub(r"\\(.)", r"\1", option) + "y"
        assert re.fullmatch(strict, text) and re.fullmatch(pattern, text)
