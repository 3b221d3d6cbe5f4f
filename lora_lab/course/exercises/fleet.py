"""Checks of the exercises of lesson 7: each runs the learner's answer on fresh inputs and says what it found."""

import contextlib
import functools
import io
import random
import shlex
import tempfile
from pathlib import Path

import yaml
from peft import LoraConfig
from transformers import LlamaConfig

from ... import distributed, files, memory
from ...errors import LabError
from ...finetune import recipes
from ..question_kinds import Verdict
from . import say


def repaired_recipe(recipe: dict) -> Verdict:
    """Check: can two processes train the pocket model by `recipe`, for the steps and layers that were asked for?"""
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder, "run"))  # the learner's own may have a run in it by now
        try:
            rows = files.write(Path(folder, "rows.jsonl"), '{"prompt": "ask", "completion": "say"}\n' * 200)
            data = recipe.get("data")
            own = {"output": output} | ({"data": data | {"path": str(rows)}} if isinstance(data, dict) else {})
            path = files.write(Path(folder, "recipe.yaml"), yaml.safe_dump(recipe | own))
            read = recipes.read(path, processes=2)
        except (LabError, yaml.YAMLError) as error:
            return say(False, str(error).replace(f"{folder}/", ""))
    found = (read.model, read.training.max_steps, set(read.lora.get("target_modules") or ()))
    if found != ("pocket", 20, {"q_proj", "o_proj"}):
        return say(False, "Two processes could train by it, but the pocket model, 20 steps, q_proj and o_proj were "
                          f"asked for. Found {found[0]}, {found[1]} steps, {', '.join(sorted(found[2]))}.")
    return say(True, f"Two processes can train by it, with {read.training.batch_size // 2} rows each in a step.")


def smallest_fleet(chosen: dict) -> Verdict:
    """Check: do `gpus` GPUs of 12 GB in `mode` fit a step on the 7B shape, and would fewer not do?"""
    gpus, mode = chosen.get("gpus"), chosen.get("mode")
    if gpus not in (1, 2, 4, 8, 16, 32, 64) or mode not in distributed.MODES:
        return say(False, f"Expected gpus of 1, 2, 4, ... 64 and mode ddp or fsdp, found {gpus!r} and {mode!r}.")
    planned = _fleet_memory(gpus, mode)
    needs = f"{gpus} GPUs, {mode}: {memory.human(planned.total_bytes)} on each"
    if not planned.fits(12):
        return say(False, f"{needs}; 12 GB allow 10.8.")
    if gpus > 1 and any(_fleet_memory(gpus // 2, other).fits(12) for other in distributed.MODES):
        return say(False, f"{needs}. It fits, and half as many do, too.")
    return say(True, f"{needs}, and half as many do not fit.")


@functools.cache
def _fleet_memory(gpus: int, mode: str):
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    (share,) = distributed.plan(LlamaConfig(dtype="bfloat16"), lora, gpus=gpus, mode=mode, checkpointing=True)
    return share.memory


def per_process(function) -> Verdict:
    """Check: does `function(batch_size, processes, most_rows)` give equal steps in as few passes as possible?"""
    for _ in range(30):
        processes, own, most = random.choice((1, 2, 4, 8)), random.randint(1, 48), random.randint(1, 16)
        passes = next(n for n in range(1, own + 1) if own % n == 0 and own // n <= most)
        asked = f"For a batch of {own * processes}, {processes} processes and at most {most} rows"
        found = function(own * processes, processes, most)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            return say(False, f"Expected two numbers, rows and passes, found {found!r}.")
        rows, times = found
        if rows * times * processes != own * processes:
            return say(False, f"{asked}: {rows} rows, {times} times, makes {rows * times * processes} rows a step.")
        if rows > most:
            return say(False, f"{asked}: {rows} rows are too many.")
        if times != passes:
            return say(False, f"{asked}: {passes} passes are enough, and yours are {times}.")
    return say(True, "Thirty batches are shared out rightly.")


_TORCHRUN = (["torchrun"], ["python", "-m", "torch.distributed.run"], ["python3", "-m", "torch.distributed.run"])


def second_machine(command: str) -> Verdict:
    """Check: does `command` start the second of two machines with eight GPUs, as torchrun itself reads it?"""
    from torch.distributed.run import get_args_parser

    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError as error:
        return say(False, f"A shell does not take it: {error}.")
    starts = [start for start in _TORCHRUN if words[:len(start)] == start]
    if not starts:
        return say(False, f"Expected a command that begins with torchrun, found {command!r}.")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            given = get_args_parser().parse_args(words[len(starts[0]):])
    except SystemExit:
        return say(False, "torchrun does not take it: " + (said.getvalue().strip().splitlines() or [""])[-1])
    host, _, port = given.rdzv_endpoint.partition(":")
    static = given.rdzv_backend == "static"  # the only way that reads --master-addr
    meeting = (host, port or "29400") if host else (given.master_addr, str(given.master_port or 29500))  # defaults
    asked = [
        (not given.standalone, "--standalone is for one machine: it meets at this machine's own address."),
        (static or host, f"With --rdzv-backend {given.rdzv_backend}, torchrun reads --rdzv-endpoint and no "
                         "--master-addr."),
        (given.nnodes in ("2", "2:2"), f"--nnodes is {given.nnodes}: there are two machines."),
        (given.nproc_per_node != "16", "--nproc-per-node is 16: it counts the processes of one machine."),
        (given.nproc_per_node in ("8", "gpu", "auto"), f"--nproc-per-node is {given.nproc_per_node}, for 8 GPUs."),
        (meeting[0] != "127.0.0.1", "It meets at 127.0.0.1, which is every machine's name for itself."),
        (meeting == ("10.0.0.1", "29400"), f"It meets at {':'.join(meeting)}, and the first machine waits at "
                                           "10.0.0.1:29400."),
        # With a rendezvous backend of its own, torchrun numbers the machines itself.
        (given.node_rank == 1 or given.rdzv_backend == "c10d", f"--node-rank is {given.node_rank}: the machines are "
                                                               "counted from 0, and this is the second."),
    ]
    faults = [fault for right, fault in asked if not right]
    return say(not faults, faults[0] if faults else "The second machine joins the first, with 8 of 16 processes.")
