"""Answers of a merged model before and after its export to GGUF: transformers against llama.cpp, 100 unseen commands.

    python benchmarks/gguf_export.py MERGED_FOLDER LLAMA_CPP_FOLDER [ADAPTER_FOLDER]

MERGED_FOLDER holds the merged model and its tokenizer, LLAMA_CPP_FOLDER llama.cpp's convert_hf_to_gguf.py. With
ADAPTER_FOLDER, the course's base and that adapter are exported as two files, and merged by nobody.
"""

import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import recipe
import torch
from lora_lab import cache, scoring, smart_home
from transformers import AutoModelForCausalLM, AutoTokenizer

COMMANDS, TOKENS, THREADS = 100, 24, 2


def convert(script: Path, folder, to: Path, kind: str, *more: str) -> Path:
    command = [sys.executable, script, folder, "--outtype", kind, "--outfile", to, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script.name} failed on {folder}:\n{done.stderr[-2000:]}")
    return to


def run(file: Path, prompts: list[str], adapter: Path | None = None) -> tuple[list[list[int]], list[str]]:
    """Token ids of the prompts as llama.cpp reads them, and its greedy answers."""
    from llama_cpp import Llama

    llama = Llama(str(file), lora_path=adapter and str(adapter), n_threads=THREADS, seed=0, verbose=False)
    ids = [llama.tokenize(prompt.encode(), special=True) for prompt in prompts]  # as a call with text does
    answers = [llama(prompt, temperature=0, max_tokens=TOKENS)["choices"][0]["text"] for prompt in prompts]
    llama.close()
    return ids, answers


def main():
    if importlib.util.find_spec("llama_cpp") is None:
        sys.exit("No llama_cpp in this Python. Install it: pip install llama-cpp-python (needs a C++ compiler).")
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    merged, llama_cpp = Path(sys.argv[1]), Path(sys.argv[2])
    if not (llama_cpp / "convert_hf_to_gguf.py").exists():
        sys.exit(f"No convert_hf_to_gguf.py in {llama_cpp}. It comes with llama.cpp's sources: see README.md here.")

    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    commands = smart_home.commands("test combinations", n=COMMANDS, seed=0)
    prompts = [c.prompt for c in commands]
    reference_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    reference = scoring.generate(model, tokenizer, prompts, max_new_tokens=TOKENS)

    def judge(ids, answers, *files: Path) -> dict:
        score = scoring.score(commands, answers)
        found = {
            "same_tokens": sum(map(list.__eq__, ids, reference_ids)) / COMMANDS,
            "same_answers": sum(map(str.__eq__, answers, reference)) / COMMANDS,
            "exact": score.exact, "interval": score.interval, "valid_json": score.valid_json,
            "megabytes": [round(file.stat().st_size / 1e6, 2) for file in files],
            "differing": [[c.text, a, b] for c, a, b in zip(commands, reference, answers) if a != b],
        }
        print({name: found[name] for name in ("same_tokens", "same_answers", "exact", "megabytes")})
        return found

    results = {"transformers, float32": judge(reference_ids, reference, *merged.glob("*.safetensors"))}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("f16", "q8_0"):
            script = llama_cpp / "convert_hf_to_gguf.py"
            file = convert(script, merged, Path(folder, f"merged-{kind}.gguf"), kind)
            results[f"merged, {kind}"] = judge(*run(file, prompts), file)
            if len(sys.argv) == 4:
                base = convert(script, cache.model_folder(), Path(folder, f"base-{kind}.gguf"), kind)
                adapter = convert(llama_cpp / "convert_lora_to_gguf.py", sys.argv[3], Path(folder, "adapter.gguf"),
                                  "f32", "--base", str(cache.model_folder()))
                results[f"base {kind} and adapter f32"] = judge(*run(base, prompts, adapter), base, adapter)
    versions = {name: version(name) for name in ("llama-cpp-python", "tokenizers")}
    recipe.write_results("gguf_export", {"commands": COMMANDS, "versions": versions, "results": results})


if __name__ == "__main__":
    main()
