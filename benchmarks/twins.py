"""Run a lesson's text twin without Jupyter, each error ending its own cell alone; and cap what a lesson computes."""

import contextlib
import dataclasses
import itertools
import linecache
import time
import traceback
from pathlib import Path
from unittest import mock

import torch
from lora_lab import LabError
from torch._subclasses import FakeTensor

STEPS, TOKENS, ROWS, COLUMNS = 2, 4, 2, 24  # what `quick` leaves
LAYERS, LEARNING_LAYERS = 2, 6
FEWER = {  # what `quick` cannot reach: text of single lessons, and what stands there instead
    "02_config_and_targets": {"for seed in SEEDS[:2]:": "for seed in SEEDS[:1]:"},
    "03_train_in_8bit": {"for _ in range(8):": "for _ in range(1):", "for _ in range(5):": "for _ in range(3):"},
    "04_memory": {"length=128": "length=48", "per_device_train_batch_size=3": "per_device_train_batch_size=1",
                  "PEAKS.items()": "list(PEAKS.items())[:2]"},
    "05_alpha_scaling": {"SEED, STEPS = 0, 20": "SEED, STEPS = 0, 4", "FURTHER = (0, 12, 48)": "FURTHER = (0, 6, 12)"},
    "06_merge_and_ship": {'hasattr(module, "lora_A")}': 'hasattr(module, "lora_A") and ".2." in name}',  # layers
                          "ROUNDS = 30": "ROUNDS = 6", "== 11][:36]": "== 11][:8]", "prompts[:6]": "prompts[:2]",
                          "for turn in range(9):": "for turn in range(3):"},
    "09_variants": {"SEED, STEPS = 0, 30": "SEED, STEPS = 0, 6"},
}
LARGE = 10_000  # a vocabulary of this size is none of the pocket model or of a toy
CAP = f"import gc, sys; gc.set_threshold(50_000); sys.path.append({str(Path(__file__).parent)!r}); import twins\n" \
      "_quick = twins.quick(); _quick.__enter__()  # which ends with the kernel\n" \
      "gc.collect(); gc.freeze()  # a million objects of libraries, that each collection would look through\n"


@dataclasses.dataclass
class Cell:
    """A code cell that has run; `number` counts from 1, `error` is what ended it."""

    number: int
    source: str
    seconds: float = 0.0
    error: BaseException | None = None


def cells(twin: Path) -> list[str]:
    """Read the sources of the code cells of a percent-format twin. IPython's magics are comments in a twin."""
    found, code = [], False
    for line in Path(twin).read_text(encoding="utf-8").splitlines():
        if line.startswith("# %%"):
            code = not line.startswith(("# %% [markdown]", "# %% [raw]"))
            found += [[]] if code else []
        elif code:
            found[-1].append(line)
    return ["\n".join(lines).strip("\n") for lines in found]


def execute(twin: Path, folder: Path, on_cell=None, around=contextlib.nullcontext) -> list[Cell]:
    """Run the cells in one fresh namespace, with `folder` as working directory and each inside `around()`.

    An error is kept in its cell, and the next cell runs. `on_cell` gets each cell when it has run.
    """
    namespace, ran = {"__name__": "__main__"}, []
    with contextlib.chdir(folder):
        for number, source in enumerate(cells(twin), 1):
            ran.append(cell := Cell(number, source))
            place = f"<{Path(twin).stem}, cell {number}>"
            linecache.cache[place] = (len(source), None, source.splitlines(True), place)  # for inspect.getsource
            started = time.perf_counter()
            try:
                with around():
                    exec(compile(source, place, "exec"), namespace)
            except (Exception, SystemExit) as error:
                traceback.clear_frames(error.__traceback__)  # or a failed step would keep its tensors
                cell.error = error
            cell.seconds = time.perf_counter() - started
            if on_cell:
                on_cell(cell)
    return ran


@contextlib.contextmanager
def quick():
    """Cap what a lesson computes, to see that its cells run; its figures mean nothing then.

    Lengths of lists stay as they are, so that no cell misses what it counts on: of a training the first steps are
    computed, on the ends of few rows and in the first layers, and the last loss is told again for the others; of many
    commands the first are answered or scored, of a sweep's seeds the first is trained.
    """
    from lora_lab import batches, scoring, sweep
    from transformers import GenerationMixin, LlamaForCausalLM, Trainer

    patches = {
        (Trainer, "training_step"): _first_steps, (GenerationMixin, "generate"): _few_tokens,
        (scoring, "generate"): _first_answers, (scoring, "quick_score"): _first_commands,
        (scoring, "perplexity"): _first_words, (batches.AnswerCollator, "__call__"): _first_rows,
        (LlamaForCausalLM, "forward"): _short, (sweep, "sweep"): _bowls,
    }
    with contextlib.ExitStack() as stack:
        for (owner, name), change in patches.items():
            stack.enter_context(mock.patch.object(owner, name, change(getattr(owner, name))))
        yield


def cap(notebook, name: str) -> None:
    """Let the first code cell of the lesson `name` begin `quick` in its kernel, and change what FEWER names."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, source in zip(code, fewer([cell.source for cell in code], name)):
        cell.source = source
    code[0].source = CAP + code[0].source


def fewer(sources: list[str], name: str) -> list[str]:
    """Return the code cells of the lesson `name` as FEWER has them. Raises LabError for a text that is in none."""
    for text, instead in FEWER.get(name, {}).items():
        if not any(text in source for source in sources):
            raise LabError(f"{text!r} is in no cell of {name}. Write into FEWER in {__file__} what it has now.")
        sources = [source.replace(text, instead) for source in sources]
    return sources


def _large(model) -> bool:
    """Whether it takes time: the pocket model and toys do not, and keep what they do."""
    return model.config.vocab_size >= LARGE


def _first_steps(step):
    def training_step(self, *args, **options):
        done = self.__dict__.setdefault("_losses", [])
        if len(done) < STEPS:
            done.append(step(self, *args, **options))
        return done[-1].clone()
    return training_step


def _few_tokens(generate):
    def few(self, *args, **options):
        if options.get("max_new_tokens"):
            options["max_new_tokens"] = min(TOKENS, options["max_new_tokens"])
        return generate(self, *args, **options)
    return few


def _first_answers(generate):
    def first(model, tokenizer, prompts, *args, **options):
        some = generate(model, tokenizer, prompts[:ROWS] if _large(model) else prompts, *args, **options)
        return list(itertools.islice(itertools.cycle(some), len(prompts)))
    return first


def _first_commands(score):
    def first(model, tokenizer, commands, *args, **options):
        if not _large(model):
            return score(model, tokenizer, commands, *args, **options)
        found = score(model, tokenizer, commands[:ROWS], *args, **options)
        return dataclasses.replace(found, exact=max(found.exact, 0.5))  # some cells divide by it
    return first


def _first_words(perplexity):
    from lora_lab import scoring
    return lambda model, tokenizer, text=scoring.GENERAL_TEXT: perplexity(model, tokenizer, text[:100])


def _first_rows(collate):
    def first(self, rows):
        whole = not self.pad_id  # 0: the pocket model
        return collate(self, rows if whole else [_end(row) for row in rows[:ROWS]])
    return first


def _end(row):
    """The last tokens of a row, the answer among them."""
    short = {name: row[name][-COLUMNS:] for name in ("input_ids", "labels") if name in row}
    return short | {"answer_length": min(row["answer_length"], len(short["input_ids"]) - 1)}


def _short(forward):
    """Of long inputs the last columns, where nobody sees the others; and few layers where none is watched."""
    def short(self, input_ids=None, *, labels=None, attention_mask=None, logits_to_keep=0, **options):
        planned = input_ids is None or isinstance(input_ids, FakeTensor) or input_ids.device.type == "meta"
        small = planned or not _large(self)
        if not small and attention_mask is None and (labels is not None or logits_to_keep):
            input_ids, labels = input_ids[:, -COLUMNS:], None if labels is None else labels[:, -COLUMNS:]
        layers = self.config.num_hidden_layers
        if not small and not any(module._forward_pre_hooks for module in self.modules()):
            self.config.num_hidden_layers = min(layers, LEARNING_LAYERS if torch.is_grad_enabled() else LAYERS)
        try:
            return forward(self, input_ids, labels=labels, attention_mask=attention_mask, logits_to_keep=logits_to_keep,
                           **options)
        finally:
            self.config.num_hidden_layers = layers
    return short


def _bowls(sweep):
    """Of all seeds the first, told for the others again. The loss is made up, smallest at the middle learning rate."""
    from lora_lab.sweep import Runs

    def bowls(run, grid, seeds=(0, 1, 2), *args, **options):
        first, *others = seeds
        found, alike = sweep(run, grid, [first], *args, **options), {}
        runs = Runs([row | {"seed": seed} for row in found.rows for seed in (first, *others)])
        for row in runs.rows:
            if {"lr", "loss"} <= row.keys():
                settings = tuple(value for value in row.values() if not isinstance(value, float))  # figures are floats
                alike.setdefault(settings, []).append(row)
        for rows in alike.values():
            for place, row in enumerate(sorted(rows, key=lambda row: row["lr"])):
                row["loss"] = 1 + abs(place - (len(rows) - 1) / 2)
        return runs
    return bowls
