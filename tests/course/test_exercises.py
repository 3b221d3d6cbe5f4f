"""Every exercise: its cell is judged unsolved as the learner finds it, and solved with the solution in its place."""

import functools
import re
import shutil
import time
import tomllib
from pathlib import Path

import pytest
import torch
import transformers
import twins
from lora_lab import adapters, doctor, merging, pocket, smart_home, targets
from lora_lab.course import exercises, question_files
from lora_lab.course.exercises import alpha, eight, first, fleet, math, merge, own, variants
from lora_lab.course.exercises import memory as memory_check
from lora_lab.course.exercises import targets as targets_check
from lora_lab.sweep import interval
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn

FOLDER = Path(__file__).parents[2] / "notebooks"

# For each check of a lesson: what the solution replaces in the exercise's cell, and what by.
SOLUTIONS = {
    check: [(part["replace"], part["by"]) for part in parts]
    for check, parts in tomllib.loads((FOLDER.parent / "teacher/solutions.toml").read_text(encoding="utf-8")).items()
}


def pocket_adapter():
    """A pocket model with an adapter that changes its answers."""
    torch.manual_seed(0)
    model = get_peft_model(pocket.load()[0], LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


@pytest.fixture(scope="module")
def drills(tmp_path_factory):
    """Five trainings for all tests that need the drills."""
    folder = tmp_path_factory.mktemp("drills")
    own.make(folder)
    return folder


# The cell that prepares an exercise, by its first words, where that is not the exercise's own.
PREPARED_BY = {"faults": "from lora_lab.course.exercises import deployments",
               "causes": "from lora_lab.course.exercises import own"}


def exercise_cells():
    for twin in sorted(FOLDER.glob("*.py")):
        code = twins.cells(twin)
        for source in code:
            if call := re.search(r'^quiz\("\w+/(\w+)", ', source, re.MULTILINE):
                if words := PREPARED_BY.get(call[1]):
                    source = next(other for other in code if other.startswith(words)) + "\n" + source
                yield pytest.param(source, call[1], id=f"{twin.stem[:2]}-{call[1]}")


def run(source, base):
    verdicts = []
    names = {"quiz": lambda question_id, *answer: verdicts.append(
                 exercises.grade(question_files.find(question_id), answer)),
             "targets": targets, "smart_home": smart_home, "torch": torch, "nn": nn, "LoraConfig": LoraConfig,
             "get_peft_model": get_peft_model, "prepare_model_for_kbit_training": prepare_model_for_kbit_training,
             "base": base, "fresh_base": base, "merging": merging, "words": pocket.tokenizer(),
             "transformers": transformers, "interval": interval,
             "PeftModel": PeftModel, "fresh": pocket_adapter, "adapters": adapters, "table": lambda rows: None,
             "tests": {"one": smart_home.commands("test combinations", n=28)}}
    exec(source, names)
    return verdicts[0]


@pytest.mark.parametrize("source, check", list(exercise_cells()))
def test_exercise_fails_before_and_passes_after_its_solution(source, check, base, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)  # where an exercise writes files
    if check == "causes":
        monkeypatch.setattr(own, "make", functools.partial(shutil.copytree, request.getfixturevalue("drills"),
                                                           dirs_exist_ok=True))
    model = base[0]
    assert run(source, model).solved is False
    solved = source
    assert check in SOLUTIONS, f"teacher/solutions.toml has no [[{check}]]; an exercise's check bears its id's name"
    for old, new in SOLUTIONS[check]:
        assert old in solved
        solved = solved.replace(old, new)
    started = time.monotonic()
    for again in range(5):  # quick checks draw their inputs at random; slow ones train or plan, on what never changes
        if not again or time.monotonic() - started < 1:
            assert run(solved, model).solved is True


def test_every_code_question_has_its_exercise():
    asked = {question.check for lesson in question_files.lessons() for question in lesson.questions
             if hasattr(question, "check")}
    assert asked == {cell.values[1] for cell in exercise_cells()} == SOLUTIONS.keys()


@pytest.mark.parametrize("check, wrong, words", [
    ("lora_forward", "return self.base(x) + self.dropout(x) @ self.A.T @ self.B.T", "The scaling alpha/r is missing"),
    ("lora_forward", "return self.base(x) + self.scaling * x @ self.A.T @ self.B.T", "Dropout acts on what goes into"),
    ("lora_forward", "return None", "an output of shape"),
    ("lora_forward", "return self.bass(x)", "AttributeError"),
])
def test_likely_mistakes_in_the_layer_are_told_apart(check, wrong, words, base):
    source = next(p.values[0] for p in exercise_cells() if p.values[1] == check)
    for _ in range(5):
        verdict = run(source.replace("return self.base(x)", wrong), base[0])
        assert verdict.solved is False and words in verdict.text


def test_an_error_in_the_learners_code_is_a_verdict(base):
    verdict = exercises.grade(question_files.find("math/merged_weight"), (lambda W, A, B, alpha, r: W @ "<b>",))
    assert verdict.solved is False and verdict.plain and "Your code raised TypeError" in verdict.text
    assert "W @ \"<b>\"" in verdict.text, "with the line of the learner's own code"


@pytest.mark.parametrize("answer", [None, "r=2", {"r": 2}])
def test_what_is_no_config_is_named_and_not_called_the_learners_error(answer, base):
    verdict = exercises.grade(question_files.find("targets/config_for_budget"), (answer, base[0]))
    assert verdict.solved is False and "LoraConfig" in verdict.text and "raised" not in verdict.text


def test_likely_mistakes_in_numbers_are_found(base):
    count = math.count_for_new_model(16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192)))
    assert "24 times more" in count.text
    assert math.merged_weight(lambda W, A, B, alpha, r: W + B @ A).solved is False
    assert "changed W itself" in math.merged_weight(lambda W, A, B, alpha, r: W.add_(alpha / r * B @ A)).text
    assert math.count_for_new_model(16_908_288.0).solved and not math.count_for_new_model(0.5).solved
    assert math.smallest_rank(lambda W, bound: 1).solved is False

    def by_energy(W, bound):
        squares = torch.linalg.svdvals(W) ** 2
        return int((squares.cumsum(0) / squares.sum() < 1 - bound).sum()) + 1

    assert "the root of what is missing" in math.smallest_rank(by_energy).text
    assert "Which of them" in first.labels(lambda ids, length: ids).text


def pairs(matrix, r, strengths=True):
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return Vh[:r], U[:, :r] * (S[:r] if strengths else 1)


@pytest.mark.parametrize("answer, words", [
    (lambda W, merged, r: (merged - W, torch.eye(len(W))), "A of shape (2, 9), then B of shape (12, 2), found"),
    (lambda W, merged, r: None, "found 'NoneType'"),
    (lambda W, merged, r: torch.linalg.svd(merged - W)[2][:r].new_zeros(2), "expected A of shape"),
    (lambda W, merged, r: pairs(merged - W, r, strengths=False), "is off from the update by"),
    (lambda W, merged, r: pairs(merged - W, r, strengths=False), "S is missing"),
    (lambda W, merged, r: pairs(merged, r), "subtract W first"),
])
def test_likely_mistakes_in_recovering_an_adapter_are_told_apart(answer, words, monkeypatch):
    drawn = []
    monkeypatch.setattr(math, "display", lambda picture: drawn.append(picture.alt))
    verdict = math.recovered(answer)
    assert verdict.solved is False and words in verdict.text
    assert bool(drawn) == ("is off" in verdict.text)
    assert all("A counterexample: a 12 × 9 weight" in alt for alt in drawn)


@pytest.mark.parametrize("options, words", [
    (dict(r=10, lora_alpha=10), "the scaling is 1"),
    (dict(r=1, lora_alpha=2, rank_pattern={"mlp.*": 10}), "no patterns"),
    (dict(r=5, lora_alpha=10), "475,200 of 1,000,000 parameters, at rank 5. There is room"),
    (dict(r=11, lora_alpha=22), "1,045,440 of 1,000,000 parameters, at rank 11. That is over"),
    (dict(r=10, lora_alpha=20, layers_to_transform=list(range(14, 30))), "and 3 others"),
    (dict(r=10, lora_alpha=20, layers_to_transform=list(range(15, 31))), "there is no layer 30"),
])
def test_near_misses_of_the_budget_are_told_apart(options, words, base):
    given = dict(target_modules=["gate_proj", "up_proj", "down_proj"], layers_to_transform=list(range(15, 30)))
    verdict = targets_check.config_for_budget(LoraConfig(**given | options), base[0])
    assert words in verdict.text and verdict.solved is False


def test_small_adapter_is_not_had_by_leaving_layers_out(base):
    def verdict(**options):
        return first.small_adapter(LoraConfig(task_type="CAUSAL_LM", **options), base[0].config, 3)

    assert verdict(r=2, target_modules="all-linear").solved
    assert "9.77 MB" in verdict(r=8, target_modules="all-linear").text
    assert not verdict(r=8, target_modules=["q_proj"]).solved


def turn_config(model, folder, factor, pattern=False, back=False):
    config = model.peft_config["default"]
    before = config.lora_alpha, config.alpha_pattern
    config.lora_alpha *= factor
    if pattern:
        config.alpha_pattern = {name: factor * value for name, value in config.alpha_pattern.items()}
    model.save_pretrained(folder)
    if back:
        config.lora_alpha, config.alpha_pattern = before


def turn_layers(model, folder, factor):
    for layer in model.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(factor)
    model.save_pretrained(folder)


@pytest.mark.parametrize("save, words", [
    (lambda model, folder, factor: None, "Nothing is saved"), (turn_layers, "at 1 times what it added"),
    (lambda *given: turn_config(*given, back=True), "alpha_pattern"),
    (lambda *given: turn_config(*given, pattern=True), "the live model is not as it was: the config's lora_alpha"),
    (lambda model, folder, factor: turn_config(model, folder, factor**2, True, True), "v_proj loads at"),
])
def test_likely_mistakes_in_saving_a_turned_adapter_are_told_apart(save, words):
    verdict = alpha.save_turned(save)
    assert verdict.solved is False and words in verdict.text


@pytest.mark.parametrize("rate_for, words", [
    (lambda lr, k, optimizer: lr / k, "AdamW, k = "), (lambda lr, k, optimizer: lr / k**0.5, "SGD, k = "),
    (lambda lr, k, optimizer: lr / (k**2 if optimizer == "SGD" else k), "SGD, k = "),
    (lambda lr, k, optimizer: None, "found None"), (lambda lr, k, optimizer: -lr, "found -0.2"),
])
def test_likely_mistakes_in_the_other_law_are_told_apart(rate_for, words):
    verdict = alpha.stretched(rate_for)
    assert verdict.solved is False and words in verdict.text


@pytest.mark.parametrize("times, words", [(1, "too large"), (4, "too large"), (1 / 4, "too small"), (0, "found 0"),
                                          (float("nan"), "found nan"), (None, "found None"), (1000.0, "too large")])
def test_likely_mistakes_in_a_rate_for_another_alpha_are_told_apart(times, words):
    verdict = alpha.new_rate(times)
    assert verdict.solved is False and words in verdict.text


@pytest.mark.parametrize("options, words", [
    (dict(r=16, lora_alpha=32, use_rslora=True), "have 8 with rsLoRA"), (dict(r=16, lora_alpha=32), "use_rslora=True"),
    (dict(r=16, lora_alpha=2, use_rslora=True), "have 0.5"), (dict(r=64, lora_alpha=16, use_rslora=True), "to stay"),
    (dict(r=16, lora_alpha=8, use_rslora=True, alpha_pattern={"q_proj": 16}), "have 2, 4"),
    (None, "Expected a LoraConfig"),
])
def test_likely_mistakes_in_a_config_with_rslora_are_told_apart(options, words):
    tuned = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    given = None if options is None else LoraConfig(target_modules="all-linear", **options)
    verdict = alpha.same_scaling(tuned, given)
    assert verdict.solved is False and words in verdict.text


@pytest.mark.parametrize("answer, words", [
    (lambda W, A, B, scaling, grid: grid(grid(W) + scaling * B @ A), "arrives."),
    (lambda W, A, B, scaling, grid: grid(W) + grid(scaling * B @ A), "arrives."),
    (lambda W, A, B, scaling, grid: grid(W + B @ A), "scaling times B A is the update"),
    (lambda W, A, B, scaling, grid: W + scaling * B @ A, "not on the grid"),
    (lambda W, A, B, scaling, grid: grid(W.add_(scaling * B @ A)), "changed W itself"),
    (lambda W, A, B, scaling, grid: None, "found NoneType"),
])
def test_likely_mistakes_in_merging_onto_a_grid_are_told_apart(answer, words):
    for seed in range(5):
        torch.manual_seed(seed)
        verdict = merge.onto_grid(answer)
        assert verdict.solved is False and words in verdict.text


@pytest.mark.parametrize("template, words", [
    ("> {{ messages[-1].content }}\n", "The new line at the end is lost"),
    ("> {{ messages[-1].content + '\\n' }}\n\n", "There is a new line too many"),
    ("{% for m in messages %}> {{ m.content + '\\n' }}{% endfor %}", "Right for one message"),
    ("{{ messages[-1].content + '\\n' }}", "and training showed"), (None, "found NoneType"),
])
def test_likely_mistakes_in_a_template_are_told_apart(template, words, base):
    verdict = merge.my_template(template)
    assert verdict.solved is False and words in verdict.text


@pytest.mark.parametrize("answer, words", [
    (lambda c, a: {}, "is missing"), (lambda c, a: None, "Expected a dict"),
    (lambda c, a: dict.fromkeys(["light", "door", "blinds"], "all"), "should be"),
])
def test_wrong_shares_by_device_are_named(answer, words):
    verdict = first.exact_by_device(answer)
    assert not verdict.solved and words in verdict.text


def test_near_misses_of_lesson_2_are_told_apart(base):
    good = [LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
            LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[1, 29])]
    said = targets_check.repaired_configs([*good, LoraConfig(target_modules=["q_proj"])], base[0]).text
    assert "model.layers.0.self_attn.q_proj is not adapted, which was meant" in said
    assert "model.layers.1.self_attn.q_proj is adapted, which was not meant" in said
    surprise = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 16},
                          layers_to_transform=list(range(10)))
    for count, words in ((130_560, "left out `rank_pattern`"), (1_152_000, "all blocks"), (268_800, "swapped"),
                         (38_400, "one block")):
        assert words in targets_check.predicted_count(count, surprise, base[0]).text


@pytest.mark.parametrize("options", [dict(target_modules="all-linear"),
                                     dict(target_modules=["q_proj"], layers_to_transform=1)])
def test_a_count_of_any_config_is_judged(options, tiny_model):
    said = targets_check.predicted_count(5, LoraConfig(r=4, **options), tiny_model).text
    assert said.startswith("It is not 5. For each layer")
def _pieces(head, hidden, labels, size, reduction="sum"):
    return [nn.functional.cross_entropy(head(some), right, reduction=reduction)
            for some, right in zip(hidden.split(size), labels.split(size))]


@pytest.mark.parametrize("answer, words", [
    (lambda *given: torch.stack(_pieces(*given, reduction="mean")).mean(), "labels count, in pieces of"),
    (lambda head, hidden, labels, size: sum(_pieces(head, hidden, labels, size)) / len(labels), "labels count"),
    (lambda head, hidden, labels, size: nn.functional.cross_entropy(head(hidden), labels), "the head got"),
    (lambda *given: sum(_pieces(*given)).detach(), "lost its gradient"), (lambda *given: None, "found NoneType"),
])
def test_likely_mistakes_in_a_loss_in_pieces_are_told_apart(answer, words):
    verdict = memory_check.mean_loss(answer)
    assert verdict.solved is False and words in verdict.text


@pytest.mark.parametrize("settings, words", [
    (dict(precision="bfloat16", batch_size=4, seq_len=2048, checkpointing="reentrant"), "It needs"),
    (dict(precision="int8", batch_size=2, seq_len=2048, checkpointing=True), "It needs"),
    (dict(precision="nf4", batch_size=2, seq_len=2048, checkpointing="reentrant"), "int8 can be made to fit"),
    (dict(precision="nf4", batch_size=4, seq_len=1024, checkpointing="reentrant"), "in rows of 1,024"),
    (dict(precision="nf4", batch_size=2, seq_len=2048, prepared=False), "Leave out prepared"),
])
def test_near_misses_of_the_settings_that_fit_are_told_apart(settings, words):
    verdict = memory_check.fits_gpu(settings, 16)
    assert verdict.solved is False and words in verdict.text


def _prepared(model, config, **options):
    return get_peft_model(prepare_model_for_kbit_training(model, **options), config)


@pytest.mark.parametrize("answer, words", [
    (lambda model, config: prepare_model_for_kbit_training(get_peft_model(model, config)), "Nothing trains"),
    (lambda *given: _prepared(*given, use_gradient_checkpointing=False), "no block is checkpointed"),
    (lambda *given: _prepared(*given, gradient_checkpointing_kwargs={"use_reentrant": False}), "inputs of 8-bit"),
])
def test_likely_mistakes_in_preparing_are_told_apart(answer, words):
    verdict = memory_check.ready(answer)
    assert verdict.solved is False and words in verdict.text


def _absmax(weights, block, marks=127, dtype=torch.int8):
    blocks = weights.reshape(-1, block)
    scales = blocks.abs().amax(1) / marks
    return (blocks / scales[:, None]).round().to(dtype).reshape(weights.shape), scales


@pytest.mark.parametrize("answer, words", [
    (lambda weights, block: _absmax(weights, weights.shape[1]), "scales; yours are"),
    (lambda weights, block: _absmax(weights, block, marks=128), "steps away"),
    (lambda weights, block: _absmax(weights, block, dtype=torch.float32), "Expected int8 codes"),
    (lambda weights, block: (_absmax(weights, block)[0].reshape(-1, block), _absmax(weights, block)[1]), "of shape"),
    (lambda weights, block: _absmax(weights, block)[0], "Expected codes and scales"),
])
def test_likely_mistakes_in_absmax_are_told_apart(answer, words):
    verdict = eight.absmax(answer)
    assert verdict.solved is False and words in verdict.text


@pytest.mark.parametrize("command, words", [
    ("torchrun --nnodes 2 --node-rank 1 --nproc-per-node 16 --master-addr 10.0.0.1 --master-port 29400 t.py", "is 16"),
    ("torchrun --nnodes 2 --node-rank 0 --nproc-per-node 8 --master-addr 10.0.0.1 --master-port 29400 t.py", "is 0"),
    ("torchrun --nnodes 2 --node-rank 2 --nproc-per-node 8 --master-addr 10.0.0.1 --master-port 29400 t.py", "is 2"),
    ("torchrun --nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr 10.0.0.1 t.py", "10.0.0.1:29500"),
    ("torchrun --nnodes 2 --node-rank 1 --nproc-per-node 8 --master-port 29400 t.py", "name for itself"),
    ("torchrun --node-rank 1 --nproc-per-node 8 --master-addr 10.0.0.1 --master-port 29400 t.py", "two machines"),
    ("torchrun --nodes 2 t.py", "unrecognized arguments: --nodes"),
    ("torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --master-addr 10.0.0.1 --master-port 29400 t.py",
     "no --master-addr"),
    ("torchrun --standalone --nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr 10.0.0.1 t.py", "one machine"),
    ('torchrun "t.py', "A shell does not take it"),
    ("accelerate launch --num_machines 2 t.py", "begins with torchrun"), (None, "begins with torchrun"),
])
def test_likely_mistakes_in_the_second_machines_command_are_named(command, words):
    verdict = fleet.second_machine(command)
    assert not verdict.solved and words in verdict.text


def test_machines_may_also_meet_at_an_endpoint():
    meeting = "--rdzv-backend c10d --rdzv-endpoint 10.0.0.1:29400"
    assert fleet.second_machine(f"torchrun --nnodes=2 --nproc_per_node=gpu {meeting} train.py").solved
    module = "python -m torch.distributed.run"
    assert fleet.second_machine(f"{module} --nnodes=2 --nproc_per_node=8 {meeting} train.py").solved
    assert not fleet.second_machine(f"torchrun --nnodes=2 --nproc_per_node=4 {meeting} train.py").solved


@pytest.mark.parametrize("answer, words", [
    (lambda batch, processes, most: (batch // processes, 1), "are too many"),
    (lambda batch, processes, most: (1, batch // processes), "passes are enough"),
    (lambda batch, processes, most: (batch, 1), "rows a step"), (lambda *_: 3, "Expected two numbers"),
])
def test_likely_mistakes_in_equal_steps_are_named(answer, words):
    found = {fleet.per_process(answer).text for _ in range(20)}
    assert any(words in text for text in found)


@pytest.mark.parametrize("wrong, words", [
    (lambda turns: [token for _, ids in turns for token in ids], "Every token counts"),
    (lambda turns: [-100] * sum(len(ids) for _, ids in turns), "the assistant's, counts"),
    (lambda turns: [t if who != "system" else -100 for who, ids in turns for t in ids], "the user's, does not count"),
    (lambda turns: [t if who == "assistant" and n < len(ids) - 1 else -100 for who, ids in turns
                    for n, t in enumerate(ids)], "last token does not count"),
    (lambda turns: [t if who == "assistant" else -100 for who, ids in turns for t in ids][1:] + [-100], "shifted"),
    (lambda turns: [], "a list of"),
])
def test_likely_mistakes_in_the_labels_of_a_chat_are_told_apart(wrong, words):
    verdict = own.turn_labels(wrong)
    assert not verdict.solved and words in verdict.text


@pytest.mark.nightly
def test_the_doctor_names_the_cause_of_every_drill_first(drills):
    examined = {name: doctor.examine(**own.patient(drills, name)) for name in own.PATIENTS}
    found = {name: one.findings[0].cause for name, one in examined.items()}
    assert own.causes(found, drills).solved, examined
    assert "0 of 5" in own.causes(dict.fromkeys("abcde", "?"), drills).text
    assert "'flu' is none" in own.causes(found | {"a": "flu"}, drills).text


@pytest.mark.parametrize("answer, words", [
    (lambda differences, worth: "lower" if sum(differences) < 0 else "higher", "expected"),
    (lambda differences, worth: _verdict(differences, 0), "expected 'alike'"),
    (lambda differences, worth: _verdict([-value for value in differences], worth), "expected '"),
    (lambda differences, worth: None, "found 'None'"),
])
def test_likely_mistakes_in_a_verdict_are_told_apart(answer, words):
    assert variants.four_verdicts(_verdict).solved
    found = {variants.four_verdicts(answer).text for _ in range(9)}
    assert any(words in text for text in found) and not any("Right" in text for text in found)


def _verdict(differences, worth):
    mean, half = interval(differences)
    if abs(mean) - half > worth:
        return "lower" if mean < 0 else "higher"
    return "alike" if abs(mean) + half <= worth else "open"


def ship_by_hand(model, start, folder):
    """Mark it as plain LoRA and leave A and B: the strongest directions are then there twice."""
    model.save_pretrained(folder)
    written = Path(folder, "adapter_config.json")
    written.write_text(written.read_text().replace('"pissa"', "true"))


@pytest.mark.parametrize("ship, words", [
    (lambda model, start, folder: None, "Nothing is saved"),
    (lambda model, start, folder: model.save_pretrained(folder), "takes the base apart again"),
    (ship_by_hand, "Loaded on the plain base, a logit is"),
    (lambda model, _, folder: model.save_pretrained(folder, path_initial_model_for_weight_conversion=f"{folder}/no"),
     "Your code raised"),
])
def test_likely_mistakes_in_shipping_pissa_are_told_apart(ship, words):
    verdict = exercises.grade(question_files.find("variants/ship_pissa"), (ship,))
    assert verdict.solved is False and words in verdict.text
