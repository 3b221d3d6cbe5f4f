import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_lab import LabError, batches, load_base, scoring, smart_home
from lora_lab.scoring import Score
from transformers import GPT2Config, GPT2LMHeadModel

COMMANDS = smart_home.commands("train", 4)


def test_exact_match_ignores_spacing_and_nothing_else():
    right = COMMANDS[0].answer
    answers = [right.replace(",", ", "), COMMANDS[1].answer + " sure", "{}", COMMANDS[0].answer]
    score = scoring.score(COMMANDS, answers)
    assert (score.exact, score.valid_json, score.n) == (0.25, 0.75, 4)


@pytest.mark.parametrize("wanted, answer, right", [
    ("true", "1", False), ('{"on": false}', '{"on": 0}', False), ("[1]", "[true]", False), ("1", "1.0", True),
    ("NaN", "NaN ", True), ('{"a": NaN}', '{"a": NaN}', True), ("1e400", "1e500", False), ("1e400", "1e400", True),
    ("null", "null", True), ("null", "no JSON", False), ('{"a": [0.5]}', '{ "a":[0.50] }', True),
    ("1e" + "9" * 30, "2", False),
    ("[" * 300 + "]" * 300, "[" * 300 + " " + "]" * 300, True), ("[" * 10**5, "[" * 10**5, True),
])
def test_json_is_compared_with_its_types_and_exactly(wanted, answer, right):
    assert scoring.score([("", wanted)], [answer]).exact == right


def test_nan_is_no_json_and_null_is():
    assert scoring.score([("", "{}")] * 2, ["NaN", "null"]).valid_json == 0.5


def test_an_answer_too_few_is_an_error():
    with pytest.raises(LabError, match="one for each of the rows, of which there are 4"):
        scoring.score(COMMANDS, ["{}"])


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_score_and_stays_between_0_and_1(right_of):
    right, n = right_of
    low, high = Score(right / n, 1.0, n).interval
    assert 0 <= low <= right / n + 1e-9 and right / n - 1e-9 <= high <= 1 and low < high


def test_interval_matches_published_value():
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    low, high = Score(81 / 263, 1.0, 263).interval
    assert low == pytest.approx(0.2553, abs=1e-4) and high == pytest.approx(0.3662, abs=1e-4)


def test_batched_generation_equals_one_by_one():
    model, tokenizer = load_base(precision="float32", quiet=True)  # in 16 bits round-off differs with the batch
    prompts = ["The capital of France is", "Once", "Two plus two equals four, and three plus three equals"]
    batched = scoring.generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=3)
    for prompt, continuation in zip(prompts, batched):
        ids = tokenizer(prompt, return_tensors="pt").to(model.device)
        alone = model.generate(**ids, do_sample=False, max_new_tokens=8, pad_token_id=tokenizer.pad_token_id)
        assert continuation == tokenizer.decode(alone[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_examples_that_all_prompts_begin_with_are_read_once_and_change_no_answer(tiny_model, tokenizer, monkeypatch):
    model = tiny_model
    prompts = ["the sea is wide and the sky is high, and so " * 4 + end for end in ("the", "a ship", "we all go home")]
    read, forward = [], model.forward

    def counted(*args, input_ids=None, **options):
        read.append(input_ids.numel())
        return forward(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", counted)
    shared = scoring.generate(model, tokenizer, prompts, max_new_tokens=5)
    tokens, read[:] = sum(read), []  # in 16 bits round-off would differ
    monkeypatch.setattr(scoring, "_WORTH_SHARING", 10**6)
    assert shared == scoring.generate(model, tokenizer, prompts, max_new_tokens=5)
    assert tokens < sum(read) / 2


def test_generation_leaves_the_model_in_its_mode(tiny_model, tokenizer):
    tiny_model.train()
    scoring.generate(tiny_model, tokenizer, ["a"], max_new_tokens=1)
    assert tiny_model.training


def test_base_model_answers_questions_and_fails_the_task(base):
    model, tokenizer = base
    assert "Paris" in scoring.chat(model, tokenizer, "What is the capital of France?")
    commands = smart_home.commands("test combinations", 40)
    assert scoring.score(commands, scoring.generate(model, tokenizer, [c.prompt for c in commands])).exact < 0.05


def test_a_tokenizer_without_padding_is_used_and_left_as_it_is(tiny_model, tokenizer):
    bare, texts = copy.deepcopy(tokenizer), ["a", "a longer prompt than that"]
    bare.pad_token = None
    with_pad = scoring.generate(tiny_model, tokenizer, texts, 4), scoring.quick_score(tiny_model, tokenizer, COMMANDS)
    assert (scoring.generate(tiny_model, bare, texts, 4), scoring.quick_score(tiny_model, bare, COMMANDS)) == with_pad
    assert bare.pad_token is None
    bare.eos_token = None
    for call in (lambda: scoring.generate(tiny_model, bare, texts, 4),
                 lambda: scoring.quick_score(tiny_model, bare, COMMANDS)):
        with pytest.raises(LabError, match="Set its eos_token"):
            call()


def test_what_has_no_answer_is_refused_with_the_reason(tiny_model, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    for call, words in (
        (lambda: scoring.chat(tiny_model, bare, "Why?"), "no chat template"),
        (lambda: scoring.generate(tiny_model, tokenizer, ["a", ""]), "has no token"),
        (lambda: scoring.quick_score(tiny_model, tokenizer, [("", "b")]), "has no token"),
        (lambda: scoring.perplexity(tiny_model, tokenizer, "a"), "at least two tokens"),
    ):
        with pytest.raises(LabError, match=words):
            call()


def test_texts_beyond_a_table_of_positions_are_refused(tokenizer):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=49152, n_embd=16, n_layer=1, n_head=1, n_positions=8))
    assert len(scoring.generate(gpt2, tokenizer, ["a a a a a a"], max_new_tokens=3)) == 1
    for call, words in (
        (lambda: scoring.generate(gpt2, tokenizer, ["a a a a a a"], max_new_tokens=4), "has 6 tokens and 4 new ones"),
        (lambda: scoring.quick_score(gpt2, tokenizer, [("a a a a a", " a a a")]), "has 9 tokens, and gpt2 has 8"),
        (lambda: scoring.perplexity(gpt2, tokenizer, "a a a a a a a a a"), "has 9 tokens, and gpt2 has 8 positions"),
    ):
        with pytest.raises(LabError, match=words):
            call()


def test_perplexity_of_an_ignorant_model_is_its_vocabulary(tiny_model, tokenizer):
    torch.nn.init.zeros_(tiny_model.lm_head.weight)
    assert scoring.perplexity(tiny_model, tokenizer) == pytest.approx(49152, rel=1e-3)


def test_quick_score_is_the_score_of_greedy_generation(tiny_model, tokenizer):
    known, unknown = smart_home.commands("train", 6), smart_home.commands("test phrasings", 6)
    batch = batches.AnswerCollator(tokenizer)(batches.encode(known, tokenizer))
    optimizer = torch.optim.Adam(tiny_model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = tiny_model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    both = known + unknown
    quick = scoring.quick_score(tiny_model, tokenizer, both)
    slow = scoring.score(both, scoring.generate(tiny_model, tokenizer, [c.prompt for c in both]))
    assert quick.exact == slow.exact > 0.3
    of_known = scoring.quick_score(tiny_model, tokenizer, known).loss
    assert of_known == pytest.approx(tiny_model(**batch).loss.item(), rel=1e-2)
    assert "loss" in str(quick) and "JSON" not in str(quick) and tiny_model.training


def test_a_verdict_needs_more_than_a_difference():
    small, clear, same = Score(0.84, 1, 100), Score(0.975, 1, 200), Score(0.87, 1, 100)
    assert "cannot tell the two apart" in scoring.verdict(small, same, "before", "after")
    assert "after is higher" in scoring.verdict(small, clear, "before", "after")
    assert "before is higher" in scoring.verdict(clear, small, "before", "after")
    with pytest.raises(LabError, match="a Score"):
        scoring.verdict(small, 0.9)


def test_a_verdict_has_newcombes_interval():
    # Newcombe 1998, table II, row (b): 9 of 10 against 3 of 10, method 10: 0.1705 to 0.8090.
    assert scoring.verdict(Score(0.3, 1, 10), Score(0.9, 1, 10)).endswith("by 17 to 81 points (95 % interval).")


@settings(max_examples=60)
@given(st.integers(0, 200), st.integers(0, 200))
def test_a_verdict_does_not_depend_on_the_order(a, b):
    first, second = Score(a / 200, 1, 200), Score(b / 200, 1, 200)
    forth, back = scoring.verdict(first, second, "A", "B"), scoring.verdict(second, first, "B", "A")
    assert ("A is higher" in forth) == ("A is higher" in back) and ("B is higher" in forth) == ("B is higher" in back)
    assert not (a >= b and "B is higher" in forth)


def test_nobody_asks_for_json_where_no_right_answer_is_any():
    score = scoring.score([("a", "billing"), ("b", "returns")], ["billing", '{"team": 1}'])
    assert (score.exact, score.valid_json) == (0.5, None) and "JSON" not in str(score) and str(score).endswith("n=2)")
    assert scoring.score([("a", "billing"), ("b", "{}")], ["billing", "no"]).valid_json == 0
