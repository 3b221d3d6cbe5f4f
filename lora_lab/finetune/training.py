"""The training by a recipe, in this process and those that it was launched with.

The training of the notebooks, with the same Trainer, collator and order of rows. The recipe fixes the batch of all
processes together, so that one process, two or sixty-four take the same steps; PyTorch's DDP or FSDP, chosen by
accelerate's config, share the work. (lora_dropout above 0 is the exception: each process drops entries of its own.)
"""

import contextlib
import functools
import io
import itertools
import math
import os
from pathlib import Path
from typing import Any

from filelock import Timeout

from .. import files
from ..errors import LabError, expect, reason
from . import checks, recipes

_SECONDS = 600  # a process that waits longer than this for another gives up


def train(recipe: recipes.Recipe, resume: bool = False, callbacks: tuple = ()) -> Any:
    """Train by `recipe` in this process and those it was launched with; returns the Trainer.

    Raises LabError for what the launch cannot do, an output folder in use or with other files in it, a disk that is
    full, and a loss that is no number any more.
    """
    from safetensors import SafetensorError
    from transformers import PrinterCallback, Trainer

    from .. import batches
    from . import run_folder

    expect(isinstance(recipe, recipes.Recipe), "recipe", recipe, "what recipes.read() returned")
    _check_launch(recipe)
    arguments = _arguments(recipe)
    with _alone(recipe.output, arguments):
        rows = recipe.rows
        checkpoint = _prepare(recipe, rows, resume, arguments)
        model, tokenizer = _load(recipe, arguments)
        model = _with_adapter(model, recipe)
        ordered = order(batches.encode(rows, tokenizer), recipe.training)
        collate = batches.AnswerCollator(tokenizer)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        arguments.ddp_find_unused_parameters = any("expert" in name for name in trained)  # a batch may miss some
        held_out = batches.encode(recipe.eval_rows, tokenizer) or None
        told = [run_folder.Metrics(), run_folder.Report(), run_folder.Seal(), *callbacks]
        trainer = Trainer(model=model, args=arguments, train_dataset=ordered, eval_dataset=held_out,
                          data_collator=collate, callbacks=told)
        trainer.remove_callback(PrinterCallback)
        _say_who(trainer)
        if checkpoint:
            _serve_older_peft()
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
            _save_adapter(trainer, recipe)
        except (OSError, SafetensorError) as error:
            raise LabError(f"output: {recipe.output} cannot be written: {reason(error)}. Make room or make it "
                           "writable, and launch with --resume: it goes on from the last whole checkpoint.") from None
    return trainer


def order(rows: list[dict], training: recipes.Training) -> list[dict]:
    """Return exactly the rows of all steps, `batch_size` for each, as `similar_lengths` orders them pass by pass.

    A pass that does not fill its last batch leaves those rows to the next pass.
    """
    from .. import batches

    size, wanted, endless = training.batch_size, training.max_steps * training.batch_size, itertools.cycle(rows)
    whole, ordered = len(rows) // size * size, list[dict]()
    for number in range(math.ceil(wanted / whole)):
        ordered += batches.similar_lengths(list(itertools.islice(endless, whole)), size, training.seed + number)
    return ordered[:wanted]


def _check_launch(recipe) -> None:
    import torch

    if _is_sharded():
        if os.environ.get("FSDP_VERSION") != "2":
            raise LabError("The launch asks for the first version of FSDP. Expected fsdp_version: 2, as in "
                           "launch/fsdp.yaml.")
        if recipe.precision == "int8":
            raise LabError("precision: found int8 under FSDP, which shares out floating-point tensors alone. Expected "
                           "bfloat16 or nf4, or DDP (launch/ddp.yaml), where each process has the whole model.")
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"  # accelerate sends the weights from the first process
    if recipe.precision == "float16" and not torch.cuda.is_available():
        raise LabError("precision: found float16 on a machine without an NVIDIA GPU, which cannot train in it. "
                       "Expected auto, float32 or bfloat16.")


def _is_sharded() -> bool:
    """Whether the launch asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _arguments(recipe):
    """The Trainer's arguments. Making them joins the processes."""
    import torch
    from accelerate.utils import DistributedType
    from transformers import TrainingArguments

    from .. import models

    device = models.pick_device()
    precision = "float32" if recipe.model == recipes.POCKET else recipe.precision
    computes = precision in ("float32", "bfloat16", "float16")  # else `load_base` picks what it computes in
    dtype = getattr(torch, precision) if computes else models.pick_dtype(device)
    settings, launched = dict(vars(recipe.training)), int(os.environ.get("WORLD_SIZE", 1))
    batch = settings.pop("batch_size")
    if settings.pop("gradient_checkpointing"):
        settings |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    arguments = TrainingArguments(
        output_dir=recipe.output, **settings,
        train_sampling_strategy="sequential",  # `order` has shuffled the rows; each process takes its share of a batch
        average_tokens_across_devices=True,  # a mean over all answer tokens, and no mean of the processes' means
        save_strategy="steps", remove_unused_columns=False, disable_tqdm=True, prediction_loss_only=True,
        eval_strategy="steps" if recipe.data.eval_path else "no",
        logging_nan_inf_filter=False,  # a loss that is no number is not hidden
        dataloader_pin_memory=torch.cuda.is_available(), ddp_timeout=_SECONDS,
        bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",  # without it, processes without GPUs would not find one another
    )
    if arguments.world_size != launched:
        raise LabError(f"{launched} processes were launched and {arguments.world_size} found one another. Expected "
                       "processes with a GPU each, or without any: see the files in launch/.")
    if _is_sharded() and device.type == "cpu":  # accelerate shards where it finds GPUs; torch does it on CPUs, too
        arguments.distributed_state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    passes = arguments.gradient_accumulation_steps
    arguments.per_device_train_batch_size = batch // (arguments.world_size * passes)
    arguments.per_device_eval_batch_size = max(1, arguments.per_device_train_batch_size)
    if batch % (arguments.world_size * passes):
        raise LabError(f"training.batch_size: found {batch}, expected a multiple of "
                       f"{checks.shares(arguments.world_size, passes)}.")
    return arguments


@contextlib.contextmanager
def _alone(output: str, arguments):
    """No other training writes to the folder meanwhile, such as one whose launcher alone was killed."""
    arguments.distributed_state.wait_for_everyone()  # all have looked at the folder by now
    if arguments.process_index:
        yield
        return
    try:
        lock = files.lock(files.place(output, "a folder") / ".lock", timeout=0)
    except OSError as error:
        why = "another training still writes to" if isinstance(error, Timeout) else f"{reason(error)}:"
        raise LabError(f"output: {why} {output}. Expected a folder of this training's own.") from None
    with lock:
        yield


def _prepare(recipe, rows: list, resume: bool, arguments) -> str | None:
    """The output folder made ready by the first process; the checkpoint to go on from."""
    from accelerate.utils import broadcast_object_list

    from . import run_folder

    chosen: list[str | None] = [None]
    if arguments.process_index == 0:
        if faults := recipes.output_faults(recipe, resume):  # once more: now nobody else changes it
            raise LabError("\n".join(faults))
        checkpoint = run_folder.last_checkpoint(recipe.output) if resume else None
        step = run_folder.step_of(checkpoint) if checkpoint else 0
        run_folder.keep_rows(recipe.output, rows, resume and step > 0)
        recipes.write(recipe, Path(recipe.output, recipes.COPY))
        for line in [*run_folder.clean(recipe.output, step), *files.recover(_adapter(recipe))]:
            print(line, flush=True)
        if resume:
            print(f"Going on after step {step}." if step else "No complete checkpoint: starting anew.", flush=True)
        chosen = [str(checkpoint) if checkpoint else None]
    if arguments.world_size > 1:
        broadcast_object_list(chosen)
    return chosen[0]


def _serve_older_peft() -> None:
    """Give back the name that PEFT 0.19 asks transformers for wherever several processes load an adapter."""
    from transformers.integrations import tensor_parallel

    if not hasattr(tensor_parallel, "EmbeddingParallel"):
        tensor_parallel.EmbeddingParallel = type("EmbeddingParallel", (), {})  # no layer is one


def _load(recipe, arguments):
    """Model and tokenizer; the first process of a machine builds the packaged model, and alone speaks.

    Under FSDP the first process of all has the weights, and no GPU has all of them at any time.
    """
    from accelerate import init_empty_weights
    from transformers import set_seed

    from .. import cache, models, pocket

    if recipe.model == models.DEFAULT:
        with arguments.main_process_first():
            cache.model_folder()
    set_seed(recipe.training.seed)  # from here on as in the notebooks, and every process makes the same adapter
    first = arguments.process_index == 0
    if recipe.model == recipes.POCKET:
        if first or not _is_sharded():
            return pocket.load()
        with init_empty_weights(include_buffers=False):
            model = pocket.untrained().eval()
        model.tie_weights()  # each parameter was put on the meta device by itself
        return model, pocket.tokenizer()
    with contextlib.nullcontext() if first else contextlib.redirect_stdout(io.StringIO()):
        is_folder = recipe.model != models.DEFAULT and os.path.isdir(recipe.model)
        name = str(Path(recipe.model).absolute()) if is_folder else recipe.model
        precision = None if recipe.precision == "auto" else recipe.precision
        return models.load_to_shard(name, precision, first) if _is_sharded() else models.load_base(name, precision)


def _with_adapter(model, recipe):
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = get_peft_model(model, recipe.lora_config())
    for module in model.modules():  # accelerate finds the optimizer's parameters by where they lie: not all at 0
        if any(p.requires_grad and p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)  # the values come from the first process, too
    # Left to itself, PEFT asks the model hub about the embeddings at each checkpoint.
    trained = isinstance(model.get_input_embeddings(), BaseTunerLayer)
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=trained)
    return model


def _say_who(trainer) -> None:
    """Launchers may start fewer processes than they were asked for, and say nothing."""
    arguments, state = trainer.args, trainer.accelerator.state
    if arguments.process_index == 0:
        shared = "1 process takes" if arguments.world_size == 1 else f"{arguments.world_size} processes share"
        kind = "FSDP" if trainer.is_fsdp_enabled else "DDP"
        how = "" if arguments.world_size == 1 else f" ({kind}, {state.backend})"
        passes = arguments.gradient_accumulation_steps
        each = f" in {passes} passes" if passes > 1 else ""
        print(f"{shared} each batch of {arguments.train_batch_size * arguments.world_size * passes}{each}{how}.",
              flush=True)


def _adapter(recipe) -> Path:
    return Path(os.path.realpath(Path(recipe.output, "adapter")))


def _save_adapter(trainer, recipe) -> None:
    """`output/adapter`, which appears whole; all processes take part, as FSDP needs it."""
    folder, first = _adapter(recipe), trainer.args.process_index == 0
    work = files.begin(folder) if first else files.unfinished(folder)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(work))
    trainer.accelerator.wait_for_everyone()
    if first:
        (work / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to load
        if kept := files.finish(work, folder):  # of a training that was complete before
            print(f"What was put into {folder.name} beside the adapter is kept in {kept}.", flush=True)
        print(f"The adapter is in {recipe.output}/adapter.", flush=True)
    trainer.accelerator.wait_for_everyone()
