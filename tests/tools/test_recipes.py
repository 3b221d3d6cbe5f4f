"""Recipes: what is refused, by which words, and that nothing is loaded for it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_lab import LabError, models, pocket, smart_home
from lora_lab.finetune import checks, recipes
from lora_lab.targets import layer_names
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

GOOD = {
    "model": "pocket", "output": "out",
    "lora": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"]},
    "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-3},
    "data": {"path": "rows.jsonl"},
}
ROWS = [(f"ask {i}", f"say {i}") for i in range(16)]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "ENDPOINT", "http://127.0.0.1:9")  # nobody is asked
    write_rows(*({"prompt": prompt, "answer": answer} for prompt, answer in ROWS))


@pytest.fixture
def no_weights(monkeypatch):
    """Whoever loads weights, or runs a model, fails."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pocket, "load", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr("lora_lab.cache._build", refuse)


def write_rows(*rows):
    Path("rows.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))


def changed(key, value):
    """GOOD with one value changed."""
    recipe = json.loads(json.dumps(GOOD))
    *sections, name = key.split(".")
    place = recipe
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value
    return recipe


def read(recipe, **options):
    with open("recipe.yaml", "w") as file:
        file.write(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False))
    return recipes.read("recipe.yaml", **options)


def fault(recipe, **options):
    with pytest.raises(LabError) as caught:
        read(recipe, **options)
    return str(caught.value)


def test_a_good_recipe_comes_back_with_its_defaults(no_weights):
    recipe = read(GOOD)
    assert (recipe.model, recipe.precision, recipe.training.max_grad_norm) == ("pocket", "auto", 1.0)
    assert recipe.lora_config().target_modules == {"q_proj", "up_proj"}
    assert recipe.rows == ROWS and recipe.data == recipes.Data("rows.jsonl")


@pytest.mark.parametrize(("key", "value", "words"), [
    ("modle", "pocket", "modle: found an unknown key. Nearest: model."),
    ("lora.rank", 8, "lora.rank: found an unknown key."),
    ("lora.target_module", ["q_proj"], "lora.target_module: found an unknown key. Nearest: target_modules."),
    ("training.learning_rat", 1, "training.learning_rat: found an unknown key. Nearest: learning_rate."),
    ("training.per_device_train_batch_size", 1, "Nearest: batch_size."),
    ("data.paths", "rows", "data.paths: found an unknown key. Nearest: path."),
    ("lora.r", "eight", "lora.r: found 'eight' (a text), expected a whole number of at least 1."),
    ("lora.r", 8.5, "lora.r: found 8.5"),
    ("lora.r", True, "lora.r: found True (true or false), expected a whole number"),
    ("lora.r", 0, "lora.r: found 0 (a number), expected a whole number of at least 1."),
    ("lora.r", -1, "lora.r: found -1"),
    ("lora.r", 65, "lora.r: found 65 for q_proj, expected at most 64"),
    ("lora.lora_alpha", 0, "lora.lora_alpha: found 0 (a number), expected a whole number above 0."),
    ("lora.lora_dropout", 1, "lora.lora_dropout: found 1 (a number), expected a number of at least 0 below 1."),
    ("lora.lora_dropout", float("nan"), "lora.lora_dropout: found nan"),
    ("lora.target_modules", ["q_proj", "w_proj"], "lora.target_modules: 'w_proj' matches nothing"),
    ("lora.target_modules", "nothing", "lora.target_modules"),
    ("lora.target_modules", "(", "lora.target_modules"),
    ("lora.target_modules", 3, "lora.target_modules: found 3 (a number), expected a list or a text."),
    ("lora.rank_pattern", {"q_proj": 65}, "lora.r: found 65 for q_proj, expected at most 64"),
    ("lora.rank_pattern", {"q_proj": 0}, "lora.rank_pattern.q_proj: found 0"),
    ("lora.rank_pattern", {"z_proj": 3}, "lora.rank_pattern"),
    ("lora.task_type", "SEQ_CLS", "lora.task_type: found 'SEQ_CLS', expected CAUSAL_LM."),
    ("lora.init_lora_weights", "pissa", "lora.init_lora_weights: found 'pissa', expected one of True, False"),
    ("lora.eva_config", {"rho": 2}, "lora.eva_config: found"),
    ("lora.bias", "some", "lora.bias: found 'some' (a text), expected one of none, all, lora_only."),
    ("lora", None, "lora: found nothing, expected fields of LoraConfig"),
    ("lora", [1], "lora: found a list"),
    ("training", 3, "training: found a number, expected keys with values"),
    ("training.max_steps", 0, "training.max_steps: found 0"),
    ("training.max_steps", None, "training.max_steps: found None (nothing), expected a whole number of at least 1."),
    ("training.max_steps", 10**400, "training.max_steps: found 1000"),
    ("training.batch_size", False, "training.batch_size: found False"),
    ("training.learning_rate", "fast", "training.learning_rate: found 'fast' (a text), expected a number above 0."),
    ("training.learning_rate", 0.0, "training.learning_rate: found 0.0"),
    ("training.learning_rate", float("inf"), "training.learning_rate: found inf"),
    ("training.learning_rate", float("nan"), "training.learning_rate: found nan"),
    ("training.learning_rate", True, "training.learning_rate: found True"),
    ("training.warmup_steps", 4, "training.warmup_steps: found 4, expected less than max_steps (4)."),
    ("training.seed", -1, "training.seed: found -1"),
    ("training.seed", 2**32, "training.seed: found 4294967296"),
    ("training.lr_scheduler_type", "cosin", "training.lr_scheduler_type: found 'cosin'"),
    ("data", {}, "data.path: found nothing, expected a text."),
    ("data.eval_path", "nowhere.jsonl", "data.eval_path: found 'nowhere.jsonl', which cannot be read: No such file"),
    ("data.eval_path", 3, "data.eval_path: found 3"),
    ("training.report_to", "tensorbord", "training.report_to: found 'tensorbord'"),
    ("training.report_to", "trackio", "training.report_to: found trackio, which is not installed"),
    ("training.eval_steps", 0, "training.eval_steps: found 0"),
    ("data.prompt", "no field", "data.prompt: found 'no field', expected a text with the fields of a row in braces"),
    ("data.prompt", "{prompt", "data.prompt: found '{prompt'"),
    ("data.prompt", "{0}", "data.prompt: found '{0}'"),
    ("data.prompt", "{prompt.__class__}", "data.prompt: found '{prompt.__class__}'"),
    ("data.prompt", "{prompt!r:>9}", "data.prompt: found '{prompt!r:>9}'"),
    ("data.answer", "{reply}", 'lines that are no rows, the first line 1. Expected {"prompt": "...", "reply": "..."}'),
    ("data.n", 3, "data.n: found 3 rows, expected at least one batch (4)."),
    ("data.n", 10**9, "data.n: found 1000000000, and rows.jsonl has 16 rows."),
    ("data.path", "/dev/zero", "data.path: found '/dev/zero': zero cannot be read: it is no regular file"),
    ("data.path", "nowhere.jsonl", "data.path: found 'nowhere.jsonl', which cannot be read: No such file"),
    ("precision", "int7", "precision: found 'int7', expected one of auto, float32"),
    ("precision", "int8", "precision: found 'int8', and the pocket model is float32."),
    ("model", "no/such", "model: found 'no/such', which is no folder here. Cannot load 'no/such': it is not on this "
                         "machine, and the model hub cannot be reached. Give 'SmolLM2-135M-Instruct'"),
    ("model", "nosuch", "model: found 'nosuch', which is no folder here. Expected SmolLM2-135M-Instruct, pocket, a"),
    ("model", "x" * 5000, "model: found 'xxx"),
    ("model", "", "model: found '' (a text), expected a name."),
    ("model", 3, "model: found 3 (a number), expected a name."),
    ("output", 3, "output: found 3 (a number), expected a folder."),
])
def test_a_bad_value_is_refused_by_its_key(key, value, words, no_weights):
    assert words in fault(changed(key, value))


@pytest.mark.parametrize(("text", "words"), [
    ("", "Found nothing, expected keys with values: model"),
    ("- a\n- b", "Found a list, expected keys"),
    ("just a text", "Found a text, expected keys"),
    ("model: [", "is not YAML that can be read"),
    ("model: !!python/object/apply:os.getcwd []", "is not YAML that can be read"),
    ("date: 2026-99-99", "is not YAML that can be read"),
    ("model: pocket\nmodel: pocket", "model: found twice, in lines 1 and 2. Expected once."),
    ("lora:\n  r: 1\n  r: 2", "lora.r: found twice, in lines 2 and 3. Expected once."),
    ("[" * 5000, "is not YAML that can be read"),
    ("a: &a [*a]\nlora: *a", "a: found an unknown key."),
    ("#" + "x" * 200_000, "it has 200,001 bytes, and 100,000 are the most"),
])
def test_a_file_that_is_no_recipe_is_refused(text, words, no_weights):
    assert words in fault(text)


def test_an_exponent_that_yaml_reads_as_a_text_is_a_number(no_weights):
    text = yaml.safe_dump(GOOD).replace("0.001", "1e-3")
    assert "1e-3" in text and read(text).training.learning_rate == 1e-3


def test_all_faults_are_told_at_once(no_weights):
    recipe = changed("lora.rr", 1)
    recipe["training"] |= {"batch_size": 3, "seed": "x"}
    recipe["model"] = "nowhere"
    text = fault(recipe, processes=2)
    keys = ("lora.rr:", "training.batch_size: found 3, expected a multiple of the 2", "training.seed:", "model:")
    assert "4 faults" in text and all(f"- {key}" in text for key in keys)


def test_a_missing_file_is_refused():
    with pytest.raises(LabError, match="Cannot read the recipe 'none.yaml': No such file"):
        recipes.read("none.yaml")


def test_an_output_folder_with_files_is_kept(tmp_path, no_weights):
    (tmp_path / "out").mkdir()
    assert read(GOOD)
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "output: found files in out, expected an empty or new folder." in fault(GOOD)
    assert "files of something else" in fault(GOOD, resume=True)


def test_only_the_same_recipe_resumes(tmp_path, no_weights):
    recipes.write(GOOD, "out/recipe.yaml")
    assert "--resume" in fault(GOOD)
    assert read(GOOD, resume=True).output == "out"
    assert "(other: training.max_steps)" in fault(changed("training.max_steps", 5), resume=True)
    assert "lora.r: found 'x'" in fault(changed("lora.r", "x"), resume=True)


@pytest.mark.parametrize(("lines", "words"), [
    ('{"prompt": "a", "answer": "b"}\nno', "data.path: found rows.jsonl with 1 lines that are no rows, the first"),
    ('{"prompt": "a"}', "the first line 1."),
    ('{"prompt": "a", "answer": 3}', 'the first line 1, where "answer": 3 (a number) is no text: values must be'),
    ('{"prompt": "a", "answer": null}', 'line 1, where "answer": None (nothing) is no text: values must be texts.'),
    ("[" * 100_000, "the first line 1."),
    ('{"prompt": "a", "answer": "b"}', "data.path: found 1 rows, expected at least one batch (4)."),
])
def test_a_data_file_with_other_lines_is_refused(lines, words, tmp_path, no_weights):
    (tmp_path / "rows.jsonl").write_text(lines)
    assert words in fault(changed("data.path", "rows.jsonl"))


def test_a_line_ends_at_its_end_alone(no_weights):
    """Texts may hold what str.splitlines splits at."""
    Path("rows.jsonl").write_text('{"prompt": "a\u2028b", "answer": "c\x85"}\n' * 4, encoding="utf-8")
    assert read(GOOD).rows == [("a\u2028b", "c\x85")] * 4


def test_a_byte_order_mark_is_no_part_of_the_first_row(no_weights):
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text(), encoding="utf-8-sig")
    assert read(GOOD).rows == ROWS


def test_rows_have_the_format_that_the_recipe_gives_them(no_weights):
    write_rows(*({"question": f"why {i}?", "reply": "so {it} is", "id": i} for i in range(6)))
    recipe = changed("data", {"path": "rows.jsonl", "prompt": "### {question}\n", "answer": " {reply}", "n": 5})
    assert read(recipe).rows == [(f"### why {i}?\n", " so {it} is") for i in range(5)]
    written = recipes.read(recipes.write(recipe, "again.yaml"))
    assert written.data == recipes.Data("rows.jsonl", "### {question}\n", " {reply}", 5)


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]} for turn in CHAT]


@pytest.mark.parametrize("row", [{"messages": CHAT}, {"conversations": SHAREGPT, "id": 1}])
def test_chats_are_taken_whole_where_the_model_has_a_template(row, no_weights, monkeypatch):
    write_rows(*[row] * 5)
    assert "pocket cannot be trained on them: The rows are chats, and the tokenizer has no chat template" in fault(GOOD)
    able = pocket.tokenizer()
    able.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} <end>{% endfor %}assistant "
    monkeypatch.setattr(pocket, "tokenizer", lambda: able)
    assert read(GOOD).rows == [tuple(CHAT)] * 5
    assert "data.prompt: found '> {prompt}', and rows.jsonl has chats" in fault(changed("data.prompt", "> {prompt}"))


@pytest.mark.parametrize("name, text", [
    ("rows.csv", "question,answer\r\n" + "why?,so\r\n" * 6),
    ("rows.json", json.dumps([{"question": "why?", "answer": "so"}] * 6)),
    ("rows.tsv", "id\tquestion\tanswer\n" + "1\twhy?\tso\n" * 6),
])
def test_tables_and_json_are_read_as_lora_lab_data_reads_them(name, text, no_weights):
    Path(name).write_text(text)
    assert read(changed("data.path", name)).rows == [("why?", "so")] * 6
    data = {"path": name, "prompt": "> {question}\n", "answer": " {answer}", "n": 4}
    assert read(changed("data", data)).rows == [("> why?\n", " so")] * 4
    data["prompt"] = "{queston}"
    assert "Did you mean 'question'?" in fault(changed("data", data))


@pytest.mark.parametrize("name, text, words", [
    ("rows.csv", "prompt,answer\na,b\na,b,c\n", "with 1 rows that cannot be used, the first line 3: 3 cells where"),
    ("rows.csv", "prompt,why,answer\na,b,c\n" * 9, None),
    ("rows.xml", "<rows/>", "data.path: found 'rows.xml': rows.xml: its first line"),
    ("none.csv", None, "data.path: found 'none.csv': none.csv cannot be read: No such file"),
    ("nobody/nothing", None, "data.path: found 'nobody/nothing': nobody/nothing"),
])
def test_what_that_reader_refuses_is_refused_by_its_key(name, text, words, no_weights):
    if text is not None:
        Path(name).write_text(text)
    if words:
        assert words in fault(changed("data.path", name))
    else:
        assert "templates of several fields" in fault(changed("data", {"path": name, "prompt": "{prompt} {why}"}))


def test_a_model_of_the_hub_is_judged_by_its_config_and_its_files(tmp_path, monkeypatch, no_weights):
    LlamaConfig(hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
                architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "small")
    monkeypatch.setattr(models, "read_config", lambda name: LlamaConfig.from_pretrained(tmp_path / "small"))
    monkeypatch.setattr(models, "has_safetensors", lambda name: False)
    assert "model: found 'owner/name' without weights in safetensors" in fault(changed("model", "owner/name"))
    monkeypatch.setattr(models, "has_safetensors", lambda name: True)
    assert read(changed("model", "owner/name")).model == "owner/name"
    lora = {"r": 13, "target_modules": ["q_proj"]}
    assert "expected at most 12" in fault(changed("model", "owner/name") | {"lora": lora})


def test_rows_are_read_once_on_the_way_to_the_training(monkeypatch, no_weights):
    recipe = read(GOOD)
    Path("rows.jsonl").unlink()
    assert recipe.rows == ROWS


def test_a_model_folder_is_judged_by_its_config_alone(tmp_path, no_weights):
    LlamaConfig(hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
                architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "small")
    recipe = changed("model", "small")
    assert "model: found 'small' without weights." in fault(recipe)
    save_file({"none": torch.zeros(1)}, tmp_path / "small" / "model.safetensors")
    assert read(recipe).model == "small"
    recipe["lora"]["r"] = 13
    assert "expected at most 12: its weight has" in fault(recipe)
    (tmp_path / "small" / "config.json").write_text('{"model_type": "nonsense"}')
    assert "model: found 'small', of which transformers says" in fault(recipe)


def test_the_packaged_model_is_not_built_for_a_bad_recipe(tmp_path, monkeypatch, no_weights):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    recipe = changed("model", "SmolLM2-135M-Instruct") | {"precision": "int7"}
    assert "precision" in fault(recipe) and not (tmp_path / "cache").exists()


def test_what_was_tuned_in_a_notebook_is_written_and_read_back(no_weights):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "q_proj"], use_rslora=True, task_type="CAUSAL_LM")
    written = recipes.read(recipes.write(GOOD | {"lora": config}, "mine/recipe.yaml"))
    assert written.lora == {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    assert recipes.read(recipes.write(written, "again.yaml")) == written
    assert [file.name for file in Path("mine").iterdir()] == ["recipe.yaml"]


def test_a_bad_recipe_is_not_written(tmp_path):
    (tmp_path / "recipe.yaml").write_text("kept")
    with pytest.raises(LabError, match="lora.r: found 0"):
        recipes.write(changed("lora.r", 0), "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "kept"


def test_the_shipped_recipe_is_the_first_lesson(no_weights, monkeypatch):
    file = Path(recipes.__file__).parents[2] / "launch" / "home_commands.yaml"
    monkeypatch.chdir(file.parents[1])
    recipe = recipes.read(file)
    assert (recipe.lora["r"], recipe.training.max_steps, recipe.training.batch_size) == (8, 60, 8)
    assert recipe.rows == smart_home.commands("train", n=480, seed=recipe.training.seed)
    assert recipe.training.learning_rate == 2e-3


def test_the_shipped_recipe_for_chats_is_fit_to_train_by(no_weights, monkeypatch):
    file = Path(recipes.__file__).parents[2] / "launch" / "own_chats.yaml"
    monkeypatch.chdir(file.parents[1])
    rows = recipes.read(file).rows
    assert len(rows) == 300 and [turn["role"] for turn in rows[0]] == ["user", "assistant"]


def test_reading_keys_needs_no_torch():
    code = "import sys, lora_lab.finetune.recipes; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    ["pocket", "out", "train", "all-linear", "q_proj", "1e-3", "nf4", "(", ".*"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
                      max_leaves=6)
keys = {
    "lora": st.sampled_from([f.name for f in LoraConfig.__dataclass_fields__.values()]),
    "training": st.sampled_from(list(recipes.Training.__dataclass_fields__)),
    "data": st.sampled_from(list(recipes.Data.__dataclass_fields__)),
}


@st.composite
def nearly_good(draw):
    """A recipe with a few values, keys or sections changed to anything."""
    recipe = json.loads(json.dumps(GOOD))
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from([None, *keys]))
        if section is None:
            recipe[draw(st.sampled_from([*GOOD, "precision", "data"]) | st.text(max_size=5))] = draw(values)
        elif isinstance(recipe.setdefault(section, {}), dict):
            recipe[section][draw(keys[section] | scalars)] = draw(values)
    return recipe


def survives(text):
    try:
        read(text)
    except LabError as error:
        assert str(error).strip()


@given(values | nearly_good())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_yaml_ends_in_another_error(recipe):
    survives(yaml.safe_dump(recipe))


@given(st.text(alphabet="{}[]:,-&*!|>#%@ \n\tab0.~'\"", max_size=40) | st.text(max_size=30))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_ends_in_another_error(text):
    survives(text)


BOMB = "a0: &a0 {x1: 1, x2: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(("text", "words"), [
    (BOMB, "stands for more than 10,000 values"), (BOMB.replace("<<: [", "k: ["), "stands for more than"),
    ("a: " + "[" * 60 + "]" * 60, "levels of them"), ("a: [" + "1, " * 20_000 + "1]", "stands for more than"),
    ("a: &a {<<: *a}", "a: found an unknown key"),
])
def test_what_a_file_stands_for_is_bounded(text, words, no_weights):
    started = time.monotonic()
    assert words in fault(text)
    assert time.monotonic() - started < 5


def test_a_file_of_nothing_but_mistakes_is_told_in_short(no_weights):
    found = fault("".join(f"k{i}: 1\n" for i in range(4000)))
    assert "3,990 unknown keys more" in found and len(found) < 5000


@pytest.mark.parametrize("pattern", [r"(\w+)*X", r"(.*)*(.*)*(.*)*(.*)*X", r"(a|[a-z_.0-9]+)+\d!"])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_pattern_that_never_ends_is_refused(field, pattern, no_weights, monkeypatch):
    monkeypatch.setattr(layer_names, "SECONDS", 0.7)
    value = {pattern: 4} if field == "rank_pattern" else pattern
    assert "lora: its patterns were not matched" in fault(changed(f"lora.{field}", value))


@pytest.mark.parametrize("field, value", [("rank_pattern", {r"(\w+)*)(X": 4}), ("modules_to_save", [r"(\w+)*X"])])
def test_a_pattern_that_never_ends_where_peft_puts_it_is_refused(field, value, no_weights, monkeypatch):
    monkeypatch.setattr(layer_names, "SECONDS", 0.7)
    assert "lora: its patterns were not matched" in fault(changed(f"lora.{field}", value))


def test_patterns_that_people_write_are_taken(no_weights):
    for pattern in (r".*\.(self_attn|mlp)\.(q|up)_proj", r"model\.layers\.\d+\..*_proj",
                    r".*?(?:attn|mlp).*?(?:q_proj|up_proj).*?"):
        assert read(changed("lora.target_modules", pattern)).lora["target_modules"] == pattern


@pytest.mark.parametrize("name", [field for field in LoraConfig.__dataclass_fields__ if field not in checks.FIELDS])
def test_only_what_is_listed_may_be_set(name, no_weights):
    assert f"lora.{name}: found an unknown key." in fault(changed(f"lora.{name}", "os"))


def test_every_listed_field_is_one_of_peft():
    assert set(checks.FIELDS) <= set(LoraConfig.__dataclass_fields__)


@pytest.mark.parametrize(("key", "value", "words"), [
    ("lora.layer_replication", [[0, 30]] * 2000, "lora.layer_replication: found ranges of more than"),
    ("data.prompt", "{prompt}" * 50, "data.prompt: found"),
    ("output", "s3://bucket/run", "output: found s3://bucket/run, which cannot be used: 's3://bucket/run' is an"),
    ("output", "~nobody-of-that-name/x", "output: found ~nobody"),
])
def test_what_would_not_end_or_lies_elsewhere_is_refused(key, value, words, no_weights):
    assert words in fault(changed(key, value))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_rows_that_never_come_are_refused(tmp_path, no_weights):
    os.mkfifo("pipe")
    assert "data.path: found 'pipe': pipe cannot be read: it is no regular file" in fault(changed("data.path", "pipe"))
    with pytest.raises(LabError, match="no regular file"):
        recipes.read("pipe")


def test_a_recipe_replaces_nothing_but_a_recipe(tmp_path, no_weights):
    Path("thesis.md").write_text("years of work")
    with pytest.raises(LabError, match="holds something else than a recipe"):
        recipes.write(GOOD, "thesis.md")
    Path("notes.yaml").write_text("a: 1")
    with pytest.raises(LabError, match="holds something else than a recipe"):
        recipes.write(GOOD, "notes.yaml")
    assert Path("thesis.md").read_text() == "years of work" and Path("notes.yaml").read_text() == "a: 1"
    recipes.write(GOOD, "mine.yaml")
    recipes.write(changed("training.max_steps", 7), "mine.yaml")
    assert recipes.read("mine.yaml").training.max_steps == 7
    with pytest.raises(LabError, match="is an address"):
        recipes.write(GOOD, "s3://bucket/recipe.yaml")
