"""Memory and speed of LoRA training steps on one NVIDIA GPU: float32, bfloat16, int8, nf4, beside what was planned.

    python -m lora_lab.cache                                   # prints where the bundled model is
    python benchmarks/gpu_8bit.py --model FOLDER [--wheels FOLDER] [--out FILE] [--fresh]
    python benchmarks/gpu_8bit.py --show FILE                  # the table of an earlier run

Needs torch, transformers, PEFT and accelerate, and no network. Whatever else it can use (bitsandbytes; platformdirs
and psutil for the planner; gguf; unsloth) may lie as wheels in a folder. FOLDER may also hold the model as a GGUF
file, whole or in parts (NAME.gguf.part0, NAME.gguf.part1, ...). Beside the bundled model it measures one of the shape
of Llama-2-7B, whose random weights need no file.

Every configuration has a process of its own; where there are cores enough, the next one imports meanwhile. The JSON
is written after each. A run that was broken off goes on where it stopped; what failed is tried again.
`--device cpu --quick` shows in a minute that all of it runs, and measures nothing.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "gguf", "unsloth", "psutil", "platformdirs")
SHAPE = "Llama-2-7B's shape"
RANDOM = "random, for memory and speed only"
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=256)
LORA = dict(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # Unsloth has no "all-linear"
SECONDS = 120  # for one configuration
FORMULAS = {
    "flops_per_token": "4 P without checkpointing: forward and input gradient, 2 each for every one of the P weights "
    "in linear layers, as the frozen base needs no weight gradients. Checkpointing adds 2 for every weight outside "
    "the output head. Attention scores and the adapter are left out.",
    "share_of_peak": "tokens_per_second x flops_per_token / matmul_flops of float32 for float32, of bfloat16 for the "
    "others",
    "activation_and_logits_bytes": "peak_allocated_bytes less all other parts. It holds other_bytes too.",
    "other_bytes": "what is allocated between two steps, less weights, quantisation, adapter and optimizer: "
    "workspaces of CUDA's libraries and rounding",
    "planned_over_measured": "the plan's total / peak_allocated_bytes of the steps",
}


# What is measured


def case(model, precision, batch, seq, checkpointing=False, targets="all-linear", prepared=False, **more) -> dict:
    """One configuration. `checkpointing`: False, True (transformers' default), "reentrant", or, where
    `prepare_model_for_kbit_training` chooses (`prepared`), "default"."""
    return dict(kind="train", model=model, precision=precision, batch=batch, seq=seq, checkpointing=checkpointing,
                targets=targets, prepared=prepared, warmup=2, timed=5) | more


def grid(bundled: str, quick: bool) -> list[dict]:
    """All configurations, the most telling first."""
    if quick:
        few = dict(batch=2, seq=16, warmup=1, timed=2)
        return [
            case(bundled, "float32", **few),
            case(SHAPE, "int8", checkpointing="reentrant", targets=["q_proj", "v_proj"], tiny=True, **few),
            case(bundled, "nf4", checkpointing="default", prepared=True, **few),
            case(bundled, "bfloat16", 2, 16, kind="out of memory", small=[1, 8]),
        ]
    three, four, q_and_v = ("bfloat16", "int8", "nf4"), ("float32", "bfloat16", "int8", "nf4"), ["q_proj", "v_proj"]
    return [
        *[case(SHAPE, p, 4, 1024) for p in three],
        *[case(SHAPE, p, 4, 1024, True) for p in three],
        case(SHAPE, "int8", 4, 1024, "reentrant"),
        case(bundled, "bfloat16", 32, 1024, kind="out of memory", small=[1, 128]),
        *[case(bundled, p, 8, 128) for p in four],
        *[case(SHAPE, p, 4, 1024, how, prepared=True) for p in ("int8", "nf4") for how in ("default", "reentrant")],
        *[case(SHAPE, p, 1, 512) for p in four],
        *[case(SHAPE, p, 4, 1024, targets=q_and_v) for p in three],
        *[case(bundled, p, 4, 1024, how) for how in (False, True) for p in four],
        *[case(bundled, p, 8, 128, True) for p in four],
        *[case(SHAPE, p, 1, 2048) for p in three],
        case(SHAPE, "float32", 1, 2048, True),
    ]


def with_unsloth() -> list[dict]:
    """The same work as in `grid`, done by Unsloth."""
    return [case(SHAPE, p, 4, 1024, how, LINEAR, kind="unsloth") for how in (True, False) for p in ("bfloat16", "nf4")]


# The process that runs the others


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/gpu_8bit.json")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--show", type=Path, metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        return child(json.loads(args.child))
    if args.show:
        return print(table(json.loads(args.show.read_text())))
    if args.model is None:
        parser.error("--model is needed")
    with tempfile.TemporaryDirectory() as scratch:
        print(table(measure_all(args, Path(scratch))))


def measure_all(args, scratch: Path) -> dict:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    wheels = install(args.wheels, scratch / "site") if args.wheels else {}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(scratch / "site"), env.get("PYTHONPATH")]))
    places = {"device": args.device, "model": str(args.model), "shape": str(scratch / "shape")}

    def begin(job):
        return start(job | {"places": places}, scratch, env)

    machine = finish(begin({"kind": "machine", "quick": args.quick}))
    if machine["status"] != "ok":
        sys.exit(f"Cannot use {args.device}: {machine['error']}")
    source = model_source(args.model, scratch)
    places["model"] = str(source)
    if source.suffix == ".gguf":
        places["model"] = str(scratch / "converted")
        converted = finish(begin({"kind": "convert", "gguf": str(source)}))
        if converted["status"] != "ok":
            print(f"The GGUF file cannot be read: {converted['error']}")
    cases = grid(source.name.partition(".")[0], args.quick)
    results = open_results(args, machine, wheels)
    if machine["unsloth"] is None:
        written = finish(begin({"kind": "write shape"}))
        works = written["status"] == "ok"
        results["unsloth"] = "measured" if works else f"its model could not be written: {written['error']}"
        cases += with_unsloth() * works
    done = {name(r) for r in results["configurations"] if r["status"] in ("ok", "out of memory", "skipped")}
    cases = [c for c in cases if name(c) not in done]
    ahead = (os.cpu_count() or 1) >= 8
    waiting = None
    try:
        for number, job in enumerate(cases):
            current = waiting or begin(job)
            waiting = begin(cases[number + 1]) if ahead and number + 1 < len(cases) else None
            add(results, job, finish(current))
            save(results, args.out)
            print(f"{number + 1}/{len(cases)} {name(job)}: {outcome(results['configurations'][-1])}", flush=True)
    finally:
        if waiting:
            waiting[0].kill()
    save(results, args.out)
    return results


def open_results(args, machine: dict, wheels: dict) -> dict:
    """What the file has of an earlier run on the same machine and versions, or a new start."""
    command = "python benchmarks/gpu_8bit.py --model FOLDER" + " --wheels FOLDER" * bool(args.wheels)
    command += f" --device {args.device}" * (args.device != "cuda") + " --quick" * args.quick
    new = {
        "date": date.today().isoformat(), "command": command, "device": args.device, "quick": args.quick,
        "hardware": machine["hardware"], "versions": machine["versions"], "matmul_flops": machine["matmul_flops"],
        "wheels": wheels, "planner": None, "planner_reason": "no configuration was measured",
        "unsloth": f"not installed here: {machine['unsloth']}", "lora": LORA, "formulas": FORMULAS,
        "configurations": [],
    }
    if args.fresh or not args.out.exists():
        return new
    old = json.loads(args.out.read_text())
    if any(old.get(key) != new[key] for key in ("device", "quick", "hardware", "versions")):
        sys.exit(f"{args.out.name} is from another machine or other versions. Give another --out, or --fresh.")
    return new | {key: old[key] for key in ("matmul_flops", "planner", "planner_reason", "configurations")}


def install(folder: Path, target: Path) -> dict:
    """Unpack the wheels of `folder` for the processes to come, and say of each what became of it."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
           "--find-links", str(folder), "--no-deps", "--upgrade", "--target", str(target)]
    found = {}
    for wheel in sorted(folder.glob("*.whl")):
        run = subprocess.run([*pip, str(wheel)], capture_output=True, text=True)
        found[wheel.name] = "installed" if run.returncode == 0 else clean(last_line(run.stderr))
    names = {wheel.partition("-")[0].lower() for wheel in found}
    return found | {p: "no wheel" for p in PACKAGES[4:] if p not in names}


def model_source(path: Path, scratch: Path) -> Path:
    """A folder with a safetensors model, or a GGUF file, put together from its parts where it is in parts."""
    if (path / "config.json").exists():
        return path
    around = [path] if path.is_file() else sorted(path.glob("*.gguf")) if path.is_dir() else []
    if around and around[0].suffix == ".gguf":
        return around[0]
    parts = path.glob("*.gguf.part*") if path.is_dir() else path.parent.glob(f"{path.name}.part*")
    parts = sorted(parts, key=lambda part: int(part.suffix.removeprefix(".part")))
    if not parts:
        sys.exit("--model is neither a folder with a config.json, nor a GGUF file, nor a folder with one.")
    joined = scratch / parts[0].stem
    with joined.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    return joined


def start(job: dict, scratch: Path, env: dict):
    """A process that prepares for `job` and waits for a line; its result and its output are files."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    job = job | {"result": str(folder / "result.json")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, __file__, "--child", json.dumps(job)], env=env,
                                   stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)
    return process, folder


def finish(started) -> dict:
    """Let a process begin, and return its result, or what became of it."""
    process, folder = started
    try:
        process.communicate("go\n", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "error": f"not finished after {SECONDS} s"}
    finally:
        process.kill()
        process.wait()
    try:
        return json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        reason = clean(last_line((folder / "log").read_text(errors="replace")))
        return {"status": "failed", "error": f"the process ended with {process.returncode}: {reason}"}


def add(results: dict, job: dict, record: dict) -> None:
    """Put a record in the place of an earlier one of the same configuration, and what follows from it."""
    if record.get("planned"):
        results["planner"], results["planner_reason"] = "lora_lab.memory.plan", None
    elif results["planner"] is None and "planned_reason" in record:
        results["planner_reason"] = record["planned_reason"]
    if "tokens_per_second" in record:
        peak = results["matmul_flops"]["float32" if job["precision"] == "float32" else "bfloat16"]
        record["share_of_peak"] = record["tokens_per_second"] * record["flops_per_token"] / peak
    if record.get("planned") and record.get("steps", {}).get("peak_allocated_bytes"):
        record["planned_over_measured"] = record["planned"]["total_bytes"] / record["steps"]["peak_allocated_bytes"]
    weights = RANDOM if job["model"] == SHAPE else "the model's own"
    kept = [r for r in results["configurations"] if name(r) != name(job)]
    results["configurations"] = [*kept, job | {"date": date.today().isoformat(), "weights": weights} | record]


def save(results: dict, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(fresh, file)


def clean(text: str) -> str:
    """One line, without this machine's name and folders."""
    text = " ".join(text.split())
    if host := platform.node():
        text = re.sub(rf"\b{re.escape(host)}\b", "HOST", text)
    return re.sub(r"(?<![\w.:/])~?(?:/[\w.@+~-]+)*/(?=[\w.])", "", text)[:300]


def last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or ["no output"])[-1]


# One configuration, in a process of its own


def child(job: dict) -> None:
    work = {"train": train, "out of memory": run_out, "unsloth": train_with_unsloth, "machine": describe_machine,
            "convert": convert, "write shape": write_shape}[job["kind"]]
    record = {"status": "ok"}
    try:
        work(job, record)
    except Exception as error:
        out = type(error).__name__ == "OutOfMemoryError"
        record["status"] = "out of memory" if out else "failed"
        record["error"] = clean(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}")
    Path(job["result"]).write_text(json.dumps(record))


def wait() -> None:
    """Until it is this process's turn on the GPU, or until there is nobody left to say so."""
    if not sys.stdin.readline():
        sys.exit()


def device_of(job):
    return torch.device("cuda", 0) if job["places"]["device"] == "cuda" else torch.device("cpu")


def train(job: dict, record: dict) -> None:
    """A model with stock PEFT LoRA, a few steps, and where the memory went."""
    from peft import LoraConfig, get_peft_model

    device, lora = device_of(job), LoraConfig(target_modules=job["targets"], **LORA)
    plan(job, lora, record)
    load = loader(job)
    wait()
    reset_peak(device)
    model = load()
    record["load"] = memory(device)
    model = prepare(model, job)
    record["use_reentrant"] = used_reentrant(model)
    linear = {n: m.in_features * m.out_features for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    head = sum(size for n, size in linear.items() if n.endswith("lm_head"))
    record["flops_per_token"] = flops(sum(linear.values()), head, job["checkpointing"])
    parts = {"weights_bytes": model.get_memory_footprint(), "quantization_bytes": quantization_bytes(model)}
    torch.manual_seed(0)
    steps(get_peft_model(model, lora), job, record, parts)


def flops(weights: int, head: int, checkpointing) -> int:
    return 4 * weights + (2 * (weights - head) if checkpointing else 0)


def plan(job: dict, lora, record: dict) -> None:
    """What `memory.plan` says of the same configuration; the reason where it cannot say."""
    sys.path.insert(0, str(REPOSITORY))
    record["planned"] = None
    try:
        from lora_lab import memory

        config = config_of(job)
        config.dtype = torch.float32 if job["precision"] == "float32" else torch.bfloat16
        # torch's own default, which "default" comes to, is the older kind
        how = "reentrant" if job["checkpointing"] == "default" else job["checkpointing"]
        planned = memory.plan(config, lora, job["precision"], job["batch"], job["seq"], "adamw", how,
                              prepared=job["prepared"])
        record["planned"] = planned.parts() | {"total_bytes": planned.total_bytes}
    except Exception as error:  # a missing package, or whatever these versions cannot rehearse
        record["planned_reason"] = clean(f"{type(error).__name__}: {error}")


def config_of(job: dict):
    from transformers import AutoConfig, LlamaConfig

    if job["model"] == SHAPE:
        return LlamaConfig(**(TINY if job.get("tiny") else {}))
    return AutoConfig.from_pretrained(job["places"]["model"])


def loader(job: dict):
    """A function that loads the model onto the device, with all that can be done before it done."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

    precision, device = job["precision"], device_of(job)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    options = {"dtype": dtype, "device_map": {"": device}}
    if precision == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    if precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    if job["model"] != SHAPE:
        return lambda: AutoModelForCausalLM.from_pretrained(job["places"]["model"], **options)
    config = config_of(job)
    weights = random_weights(config)
    return lambda: LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, **options)


def random_weights(config) -> dict:
    """Weights of every size out of one block of random numbers: 7 billion take no memory and no time to draw.

    They go to the GPU one by one, and are quantised there, as weights from a file do and are.
    """
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        wanted = LlamaForCausalLM(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(max(w.numel() for w in wanted.values()), generator=generator).mul_(0.02).to(torch.bfloat16)
    one = torch.ones(config.hidden_size, dtype=torch.bfloat16)
    return {n: one if w.dim() == 1 else block[: w.numel()].view(w.shape) for n, w in wanted.items()}


def prepare(model, job: dict):
    """Checkpointing, as the course turns it on or as `prepare_model_for_kbit_training` does."""
    from peft import prepare_model_for_kbit_training

    if job["prepared"] and job["checkpointing"] == "default":
        return prepare_model_for_kbit_training(model)
    if job["prepared"]:
        kwargs = {"use_reentrant": job["checkpointing"] == "reentrant"}
        return prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=kwargs)
    if job["checkpointing"]:
        # The second is the first one's name before transformers 5.2x.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": job["checkpointing"] == "reentrant"})
        model.enable_input_require_grads()
    return model


def used_reentrant(model):
    """What torch's checkpoint was told: True, False, "not given", or None without checkpointing."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            return module._gradient_checkpointing_func.keywords.get("use_reentrant", "not given")
    return None


def quantization_bytes(model) -> int:
    """Bytes of what bitsandbytes keeps beside its weights: scales (SCB, absmax) and 4 bits' code."""
    tensors = []
    for module in model.modules():
        weight = getattr(module, "weight", None)
        tensors += [getattr(weight, "SCB", None), getattr(getattr(module, "state", None), "SCB", None)]
        if state := getattr(weight, "quant_state", None):
            tensors += [state.absmax, state.code, state.offset, *(vars(state.state2).values() if state.nested else ())]
    return sum({t.data_ptr(): t.nbytes for t in tensors if hasattr(t, "data_ptr")}.values())


def steps(model, job: dict, record: dict, parts: dict) -> None:
    """Warm-up and timed steps of AdamW on full rows; fills in memory by part and speed."""
    device, tokens = device_of(job), job["batch"] * job["seq"]
    trained = [p for p in model.parameters() if p.requires_grad]
    record["trained_parameters"] = sum(p.numel() for p in trained)
    record["trained_dtype"] = sorted({str(p.dtype).removeprefix("torch.") for p in trained})
    record["parts"] = parts
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
    ids = torch.randint(0, model.config.vocab_size, (job["batch"], job["seq"]), device=device)
    model.train()
    gc.collect()
    reset_peak(device)
    seconds, losses = [], []
    for number in range(job["warmup"] + job["timed"]):
        started = now(device)
        losses.append(backward(model, ids, job["precision"]))
        if number == 0:
            parts["adapter_bytes"] = sum(p.nbytes for p in trained)
            parts["gradient_bytes"] = sum(p.grad.nbytes for p in trained if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(now(device) - started)
    parts["optimizer_bytes"] = sum(
        t.nbytes for state in optimizer.state.values() for t in state.values() if t.device.type == device.type
    )
    record["steps"] = memory(device)
    peak, resting = record["steps"]["peak_allocated_bytes"], record["steps"]["allocated_bytes"]
    if peak is not None:
        record["other_bytes"] = resting - sum(parts.values()) + parts["gradient_bytes"]
        parts["activation_and_logits_bytes"] = peak - sum(parts.values())
    record["losses"] = [loss.item() for loss in losses]
    record["loss_is_finite"] = all(math.isfinite(loss) for loss in record["losses"])
    record["losses"] = [loss if math.isfinite(loss) else None for loss in record["losses"]]
    record["step_seconds"] = seconds
    record["tokens_per_second"] = tokens / statistics.median(seconds[job["warmup"] :])


def backward(model, ids, precision: str):
    plain = precision == "float32"
    with contextlib.nullcontext() if plain else torch.autocast(ids.device.type, torch.bfloat16):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach()


def now(device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device) -> None:
    if device.type == "cuda":
        torch.cuda.init()  # without it, resetting fails in a process that has not used the GPU yet
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(device) -> dict:
    """torch's allocations on the GPU; None on a CPU, where torch does not count."""
    if device.type != "cuda":
        return dict.fromkeys(("allocated_bytes", "peak_allocated_bytes", "peak_reserved_bytes"))
    torch.cuda.synchronize()
    return {
        "allocated_bytes": torch.cuda.memory_allocated(), "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def run_out(job: dict, record: dict) -> None:
    """A step that has to run out of memory, and a smaller one in the same process after it."""
    device = device_of(job)
    if device.type != "cuda":
        record |= {"status": "skipped", "error": "needs a GPU"}
        return
    from peft import LoraConfig, get_peft_model

    load = loader(job)
    wait()
    model = get_peft_model(load(), LoraConfig(target_modules=job["targets"], **LORA)).train()
    before = torch.cuda.memory_allocated()
    record["limit_bytes"] = before + 2 * 10**9
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(record["limit_bytes"] / torch.cuda.mem_get_info()[1])

    def step(batch, seq):
        ids = torch.randint(0, model.config.vocab_size, (batch, seq), device=device)
        return backward(model, ids, job["precision"]).item()

    try:
        step(job["batch"], job["seq"])
        raise RuntimeError("the large step was meant to run out of memory, and did not")
    except torch.OutOfMemoryError as error:
        record["large_step"] = {"failed": True, "allocated_before_bytes": before,
                                "message": clean(str(error).splitlines()[0])}
    model.zero_grad(set_to_none=True)  # the error, which holds the step's tensors, is gone by now
    gc.collect()
    reset_peak(device)
    after = torch.cuda.memory_allocated()
    loss = step(*job["small"])
    record["small_step"] = {"failed": False, "loss_is_finite": math.isfinite(loss), "allocated_before_bytes": after}
    record["small_step"] |= memory(device)


def train_with_unsloth(job: dict, record: dict) -> None:
    """The same steps through Unsloth's FastLanguageModel. Has not been run by anyone yet."""
    wait()
    from unsloth import FastLanguageModel  # before transformers and PEFT, as it changes them

    device = device_of(job)
    reset_peak(device)
    model, _ = FastLanguageModel.from_pretrained(
        job["places"]["shape"], max_seq_length=job["seq"], dtype=torch.bfloat16, load_in_4bit=job["precision"] == "nf4",
        use_gradient_checkpointing=job["checkpointing"],
    )
    record["load"] = memory(device)
    linear = [m.in_features * m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear)]
    head = model.get_output_embeddings().weight.numel()
    record["flops_per_token"] = flops(sum(linear), head, job["checkpointing"])
    parts = {"weights_bytes": model.get_memory_footprint(), "quantization_bytes": quantization_bytes(model)}
    options = {key: LORA[key] for key in ("r", "lora_alpha", "lora_dropout", "bias")}
    model = FastLanguageModel.get_peft_model(
        model, target_modules=job["targets"], use_gradient_checkpointing=job["checkpointing"], **options
    )
    steps(model, job, record, parts)


def write_shape(job: dict, record: dict) -> None:
    """The random model as a folder, with the bundled model's tokenizer: Unsloth only takes folders."""
    wait()
    folder = Path(job["places"]["shape"])
    loader(job | {"model": SHAPE, "precision": "bfloat16"})().save_pretrained(folder)
    for file in Path(job["places"]["model"]).glob("*token*"):
        shutil.copy(file, folder)


def convert(job: dict, record: dict) -> None:
    """Weights and tokenizer of a GGUF file as safetensors, as `lora_lab.cache` writes them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wait()
    gguf, folder = Path(job["gguf"]), job["places"]["model"]
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 by now; without this, save_pretrained refuses them as quantised.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def describe_machine(job: dict, record: dict) -> None:
    """This machine and its versions, and why Unsloth cannot be used, or None."""
    wait()
    device = device_of(job)
    size = 512 if job["quick"] else 8192
    record["matmul_flops"] = {str(t).removeprefix("torch."): matmul_peak(size, t, device)
                              for t in (torch.bfloat16, torch.float32)}
    record["matmul_flops"]["size"] = size
    record["versions"] = {"python": platform.python_version()} | {package: version_of(package) for package in PACKAGES}
    if device.type == "cpu":
        cpu = getattr(torch.cpu, "get_capabilities", dict)()
        record["hardware"] = {"cpu": cpu.get("cpu_name") or platform.processor() or platform.machine(), "gpu": None}
        record["unsloth"] = "it needs a GPU"
        return
    found = torch.cuda.get_device_properties(device)
    record["hardware"] = {
        "gpu": found.name, "memory_bytes": found.total_memory, "capability": f"{found.major}.{found.minor}",
        "driver": driver(), "cuda": torch.version.cuda, "float32_matmul": torch.get_float32_matmul_precision(),
    }
    record["unsloth"] = "there is no such package"
    if find_spec("unsloth"):
        try:
            from unsloth import FastLanguageModel  # noqa: F401

            record["unsloth"] = None
        except Exception as error:
            record["unsloth"] = clean(f"{type(error).__name__}: {error}")


def matmul_peak(size: int, dtype, device, repeats: int = 50) -> float:
    """The fastest matrix product of random numbers that the device does, in FLOP/s."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    best = float("inf")
    for _ in range(repeats):
        started = now(device)
        a @ b
        best = min(best, now(device) - started)
    return 2 * size**3 / best


def version_of(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


# The table


def name(record: dict) -> str:
    """What tells one configuration from the others."""
    targets = record["targets"] if isinstance(record["targets"], str) else ", ".join(record["targets"])
    how = {False: "none", True: "checkpointing", "default": "default checkpointing"}
    words = ["tiny" * record.get("tiny", False), record["model"], record["precision"],
             f"{record['batch']}x{record['seq']}", targets,
             how.get(record["checkpointing"], record["checkpointing"]), "prepared" * record["prepared"],
             record["kind"] * (record["kind"] != "train")]
    return " | ".join(word for word in words if word)


def outcome(record: dict) -> str:
    if record["status"] != "ok":
        return f"{record['status']}: {record['error'][:120]}"
    if record["kind"] == "out of memory":
        return "the large step ran out of memory, the small one after it did not"
    peak = gigabytes(record["steps"]["peak_allocated_bytes"])
    return f"peak {peak} GB, {record['tokens_per_second']:,.0f} tokens/s"


def gigabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.2f}"


def table(results: dict) -> str:
    """All configurations, one a line; sizes in GB (10^9 bytes)."""
    hardware, peaks = results["hardware"], results["matmul_flops"]
    lines = [
        f"{results['date']}, {hardware['gpu'] or 'no GPU: ' + hardware['cpu']}, matrix products of {peaks['size']}: "
        f"{peaks['bfloat16'] / 1e12:.1f} TFLOP/s in bfloat16, {peaks['float32'] / 1e12:.1f} in float32",
        ", ".join(f"{package} {number}" for package, number in results["versions"].items() if number),
        f"planner: {results['planner'] or 'none: ' + results['planner_reason']}; unsloth: {results['unsloth']}", "",
        f"{'load':>7} {'peak':>7} {'planned':>7} {'ratio':>5} {'weights':>7} {'scales':>6} {'trained':>7} "
        f"{'activ.':>7} {'tok/s':>9} {'of peak':>7}  configuration",
    ]
    for record in results["configurations"]:
        parts = record.get("parts")
        if record["status"] != "ok" or not parts:
            lines.append(f"{name(record)}: {outcome(record)}")
            continue
        trained = sum(parts[key] for key in ("adapter_bytes", "gradient_bytes", "optimizer_bytes"))
        planned, ratio = record.get("planned") or {}, record.get("planned_over_measured")
        lines.append(
            f"{gigabytes(record['load']['peak_allocated_bytes']):>7} "
            f"{gigabytes(record['steps']['peak_allocated_bytes']):>7} {gigabytes(planned.get('total_bytes')):>7} "
            f"{f'{ratio:.2f}' if ratio else '-':>5} {gigabytes(parts['weights_bytes']):>7} "
            f"{gigabytes(parts['quantization_bytes']):>6} {gigabytes(trained):>7} "
            f"{gigabytes(parts.get('activation_and_logits_bytes')):>7} {record['tokens_per_second']:>9,.0f} "
            f"{record['share_of_peak']:>7.1%}  {name(record)}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
