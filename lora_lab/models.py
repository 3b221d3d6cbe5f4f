"""Loading a base model and its tokenizer, on whatever device and precision suits this machine.

Where the default model's files come from is in `cache`.
"""

import contextlib
import ctypes
import gc
import os
import reprlib
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import init_empty_weights
from huggingface_hub import file_exists, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.utils import get_session
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.models.llama import modeling_llama  # noqa: F401  seconds of imports, before load_base and not in it

from . import cache, display
from .errors import LabError, reason

DEFAULT = cache.SMOLLM2.name
HUB_NAME = f"HuggingFaceTB/{DEFAULT}"  # what a saved adapter names as its base: no machine's path
LITTLE_MEMORY, M_MMAP_THRESHOLD = 4e9, -3  # bytes; glibc's name for one of its settings
TRAINED = ("float32", "bfloat16", "float16")  # what a model can train in
PRECISIONS = (*TRAINED, "int8", "nf4")
FORCED = "LORA_LAB_PRECISION"


def load_base(name: str = DEFAULT, precision: str | None = None, quiet: bool = False) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer; returns `(model, tokenizer)`.

    `name` is the default model, a hub id ("owner/name") or a local folder. `precision` is one of
    "float32", "bfloat16", "float16", "int8" (LLM.int8(), Dettmers et al. 2022) or "nf4" (QLoRA,
    Dettmers et al. 2023); without it the device decides (see `pick_dtype`). The model comes back in eval mode on the
    device that was picked, and one printed line says what that was, unless `quiet`. Raises LabError.

    On a CPU, float32 weights are read from their file where they lie: loading the model again costs no memory until
    they are changed, a copy.deepcopy of it costs all of it.
    """
    if precision is not None and precision not in PRECISIONS:
        raise LabError(f"Unknown precision {precision!r}. Use one of: {', '.join(PRECISIONS)}, or leave it out.")
    _give_memory_back()
    device = pick_device()
    quantised = precision in ("int8", "nf4")
    if precision and quantised:
        _require_bitsandbytes(precision)
        device = torch.device("cpu") if device.type == "mps" else device
    dtype = pick_dtype(device) if precision is None or quantised else getattr(torch, precision)
    options = {"device_map": {"": device}} | _options(device, dtype, precision)
    source = cache.model_folder() if name == DEFAULT else _check_folder(name)
    with display.no_progress_bars() if name == DEFAULT else contextlib.nullcontext():
        tokenizer, model = _from_pretrained(source, options, AutoTokenizer, AutoModelForCausalLM)
    _finish(name, model, tokenizer)
    if quiet:
        return model.eval(), tokenizer
    where = f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device).upper()
    print(
        f"{name}: {model.num_parameters():,} parameters in {_stored(model) or str(dtype).removeprefix('torch.')}, "
        f"{model.get_memory_footprint() / 1e6:.0f} MB, on {where}"
    )
    if name == DEFAULT and not quantised:
        print(f"  (a copy whose weights were stored in 4 bits: {_distance_from_hub(model)})")
    return model.eval(), tokenizer


def load_to_shard(name: str, precision: str | None, first: bool) -> tuple[PreTrainedModel, Any]:
    """Load a model that FSDP is going to share out, and its tokenizer: to no GPU, since one may be too small for it.

    `first` is whether this is the first process. It alone reads the weights, into the memory of the CPU; the others get
    the model on the meta device, with its buffers, and their shares of the weights from the first. nf4 weights are kept
    in the dtype that is computed in (bitsandbytes' `bnb_4bit_quant_storage`), since FSDP shares out floating-point
    tensors alone; every process reads those, as accelerate sends no packed weights. Raises LabError.
    """
    device = pick_device()
    dtype = pick_dtype(device) if precision in (None, "nf4") else getattr(torch, precision)
    options = {"device_map": {"": "cpu"}} | _options(device, dtype, precision)
    source = cache.model_folder() if name == DEFAULT else _check_folder(name)
    if precision == "nf4":
        _require_bitsandbytes(precision)
        options["quantization_config"].bnb_4bit_quant_storage = dtype
    with display.no_progress_bars():
        config, tokenizer = _from_pretrained(source, {}, AutoConfig, AutoTokenizer)
        if first or precision == "nf4" or hasattr(config, "quantization_config"):
            (model,) = _from_pretrained(source, options, AutoModelForCausalLM)
        else:
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False, **{
                    name: value for name, value in options.items() if name == "attn_implementation"})
            model.tie_weights()  # each parameter was put on the meta device by itself
    _finish(name, model, tokenizer)
    return model.eval(), tokenizer


def _options(device: torch.device, dtype: torch.dtype, precision: str | None) -> dict[str, Any]:
    """What `from_pretrained` is told for a model that computes in `dtype` on `device`."""
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if precision == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    elif device.type == "cpu" and dtype == torch.bfloat16:
        options["attn_implementation"] = "eager"  # torch's fused attention takes 15 % of a training step there
    return options


def _finish(name: str, model: PreTrainedModel, tokenizer: Any) -> None:
    """What every loaded model gets: the hub's name, a quick output head, a tokenizer that can pad."""
    if name == DEFAULT:
        model.name_or_path = model.config._name_or_path = HUB_NAME
    if head := model.get_output_embeddings():
        head.register_forward_pre_hook(_contiguous)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _distance_from_hub(model) -> str:
    """Say how far the packaged weights are from the hub's: measured where those are at hand, else the format's step.

    Q4_1 keeps 16 levels between the smallest and the largest of 32 weights; rounding to a step makes an error of
    step/sqrt(12), root mean square.
    """
    hub = try_to_load_from_cache(HUB_NAME, "model.safetensors")
    off = size = 0.0
    with safe_open(hub, "pt") if isinstance(hub, str) else contextlib.nullcontext() as file:
        weights = {name: weight for name, weight in model.named_parameters() if name.endswith("mlp.down_proj.weight")}
        for key in list(weights)[::15]:  # of every 15th block
            weight = weights[key].detach().float().cpu()
            blocks = weight.reshape(-1, 32)
            step = (blocks.amax(1) - blocks.amin(1)) / 15
            off += float((weight - file.get_tensor(key).float()).square().mean() if file else step.square().mean() / 12)
            size += float(weight.square().mean())
    share = f"{(off / size) ** 0.5:.1%}"
    return f"{share} off the hub's" if file else f"about {share} off the hub's, by the size of the 4-bit steps"


def _contiguous(head, inputs: tuple) -> tuple:
    """Copy the few columns that `logits_to_keep` leaves: torch multiplies a slice row by row, with a weight expanded
    to the batch, and a whole training step takes up to twice as long (benchmarks/cpu_dtype.py).
    """
    return inputs[0].contiguous(), *inputs[1:]


def _give_memory_back() -> None:
    """What earlier cells no longer use goes to the system now: trained models refer to themselves and wait for gc."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone keeps freed memory, and has these calls
        glibc = ctypes.CDLL("libc.so.6")
        if memory_limit() < LITTLE_MEMORY:
            glibc.mallopt(M_MMAP_THRESHOLD, 2**20)  # large tensors leave no holes in the heap then
        glibc.malloc_trim(0)


def pick_device() -> torch.device:
    """Return this process's NVIDIA GPU, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # `accelerate launch`: one GPU a process
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that a model trains in on `device`; raises LabError for a LORA_LAB_PRECISION it cannot be.

    CPU: what took less time for all of lesson 0, at an equal score, on a CPU of its kind (benchmarks/cpu_dtype.py):
    bfloat16 with AVX512_BF16, as CPUs with AMX have it too, float32 elsewhere.
    With less than 4 GB it is float32, whose weights stay in their file and cost no memory.
    CUDA: bfloat16 where the GPU computes in it, else float16 (a T4 only emulates bfloat16). Apple: float32.
    The environment variable LORA_LAB_PRECISION stands for all of these.
    """
    if forced := os.environ.get(FORCED):
        trained = TRAINED[:2] if device.type == "cpu" else TRAINED  # the Trainer refuses float16 on a CPU
        if forced not in trained:
            raise LabError(f"{FORCED} is {forced!r}. Models train on {device.type} in: {', '.join(trained)}. "
                           "Set one of these and restart the kernel, or leave it unset.")
        return getattr(torch, forced)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    able: dict = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return torch.bfloat16 if able.get("avx512_bf16") and memory_limit() >= LITTLE_MEMORY else torch.float32


def has_memory(gb: float, otherwise: str) -> bool:
    """Return whether this process may hold `gb` GB (10⁹ bytes); if not, prints that the lesson does something else."""
    there = memory_limit() / 1e9
    if there < gb:
        print(f"This part takes up to {gb:g} GB of memory and there is {there:.1f} GB. The smaller path: {otherwise}.")
    return there >= gb


def memory_limit() -> int:
    """Return the bytes this process may hold: the machine's memory, or what a container, JupyterHub or ulimit says.

    The environment variable LORA_LAB_MEMORY_GB stands for all of them.
    """
    if said := os.environ.get("LORA_LAB_MEMORY_GB"):
        with contextlib.suppress(ValueError, OverflowError):
            return int(float(said) * 1e9)
        raise LabError(f"LORA_LAB_MEMORY_GB is {said!r}. Set it to a number of GB, or leave it unset.")
    limits = [psutil.virtual_memory().total]
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no such container; "max" for no limit
            limits.append(int(file.read_text()))
    with contextlib.suppress(KeyError, ValueError):
        limits.append(int(float(os.environ["MEM_LIMIT"])))  # JupyterHub, and so Binder
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            limit = resource.getrlimit(kind)[0]
            limits += [limit] if limit != resource.RLIM_INFINITY else []
    return min(limits)


def clock() -> float:
    """Return seconds on a clock, read once the GPU, if there is one in use, has done what it was given so far."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter()


def _stored(model) -> str | None:
    """How bitsandbytes stores the weights, if it does: a folder may hold a quantised model."""
    if getattr(model, "is_loaded_in_8bit", False):
        return "int8"
    return "nf4" if getattr(model, "is_loaded_in_4bit", False) else None


def _require_bitsandbytes(precision: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise LabError(
            f'precision="{precision}" needs the bitsandbytes package, which is not installed here. Run '
            "`pip install bitsandbytes`, restart the kernel and try again, or leave precision out."
        ) from None


def _check_folder(name: str) -> str:
    if not isinstance(name, (str, os.PathLike)) or "\0" in str(name) or len(str(name)) > 1000:
        raise LabError(f"Found {reprlib.repr(name)} for a model. Give its folder, a hub id, or {DEFAULT!r}.")
    name = str(name)
    folder = Path(os.path.expanduser(name))
    if not name or not os.path.isdir(folder):  # Path.is_dir raises for very long names
        if not name or name.startswith((".", "~", "/")) or name.count("/") > 1:
            raise LabError(f"There is no folder {name!r}. Give a model's folder, a hub id, or {DEFAULT!r}.")
        return name
    if (folder / "config.json").exists():
        return str(folder)
    if (folder / "adapter_config.json").exists():
        raise LabError(
            f"{name} is an adapter, not a base model. Load its base with load_base(), then attach it with "
            f'PeftModel.from_pretrained(model, "{name}").'
        )
    raise LabError(
        f"{name} is a folder without a config.json, so not a model. Give a folder that save_pretrained wrote."
    )


def read_config(name: str) -> Any:
    """Return the config of a model alone: `name` as in `load_base`. Raises LabError."""
    return _from_pretrained(cache.model_folder() if name == DEFAULT else _check_folder(name), {}, AutoConfig)[0]


def read_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model alone: `name` as in `load_base`. Raises LabError."""
    return _from_pretrained(cache.model_folder() if name == DEFAULT else _check_folder(name), {}, AutoTokenizer)[0]


def has_safetensors(name: str) -> bool | None:
    """Return whether a model of the hub has its weights as safetensors; None where nobody can be asked."""
    weights = "model.safetensors", "model.safetensors.index.json"
    if any(isinstance(try_to_load_from_cache(name, file), str) for file in weights):
        return True
    try:
        return any(file_exists(name, file) for file in weights) if hub_answers() else None
    except Exception:  # it is gated, or not there, which reading its config says better
        return None


def _from_pretrained(source, options: dict, *kinds) -> list:
    """What `from_pretrained` of each of `kinds` gives; `options` are for the last."""
    offline = not Path(source).is_dir() and not hub_answers()
    try:
        return [
            kind.from_pretrained(
                source, trust_remote_code=False, local_files_only=offline, **(options if kind is kinds[-1] else {})
            )
            for kind in kinds
        ]
    except Exception as error:  # a folder or a repository may be broken in any way
        why = "it is not on this machine, and the model hub cannot be reached." if offline else reason(error)
        raise LabError(
            f"Cannot load {str(source)!r}: {why} Give {DEFAULT!r} (needs no network), a folder with a model saved "
            f"as safetensors, or a hub id such as {HUB_NAME!r} (needs the network, and your access if it is gated)."
        ) from None


def hub_answers() -> bool:
    """Return whether the model hub can be reached: its client retries for most of a minute where it cannot."""
    try:
        get_session().head(ENDPOINT, timeout=10)
        return True
    except Exception:  # whichever way a network can fail
        return False


def positions(model: torch.nn.Module) -> int | None:
    """Return how many tokens a model with a table of learned positions takes; None without one, as of rotary ones."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    known = isinstance(most, int) and any(most <= size <= most + 2 for size in tables)  # some keep two for padding
    return most if known else None
