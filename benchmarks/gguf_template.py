"""What a chat interface makes of a GGUF file with the right template, another one and none: llama.cpp, 100 commands.

    python benchmarks/gguf_template.py MERGED_FOLDER LLAMA_CPP_FOLDER ADAPTER_FOLDER

The folders are those of gguf_export.py, which asks with whole prompts. Here each command is a message of a user, as in
Ollama or llama.cpp's server: what the model reads is made by the template that the file carries.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import gguf_export
import recipe
from gguf import GGUFReader
from lora_lab import cache, scoring, smart_home
from transformers import AutoTokenizer

COMMANDS, TOKENS, THREADS = 100, 24, 1
TEMPLATES = {  # what the folder that is exported carries
    "the base's": None,
    "the training's": "> {{ messages[-1].content + '\\n' }}",
    "the training's, new line lost": "> {{ messages[-1].content }}\n",
    "none": "",
}


def folder_with(template: str | None, merged: Path, to: Path) -> Path:
    """The merged model's folder with this template: "" is none, None the base's own."""
    to.mkdir()
    (to / "model.safetensors").symlink_to(next(merged.glob("*.safetensors")).resolve())
    (to / "config.json").write_text((merged / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(cache.model_folder())
    if template is not None:
        tokenizer.chat_template = template or None
    tokenizer.save_pretrained(to)
    return to


def carried(file: Path) -> str | None:
    """The template in a GGUF file."""
    field = GGUFReader(file).get_field("tokenizer.chat_template")
    return None if field is None else field.contents()


def ask(file: Path, messages: list[str], adapter: Path | None = None, template: str | None = None) -> list[str]:
    """Greedy answers through the chat interface; with `template`, in place of the file's own."""
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    llama = Llama(str(file), lora_path=adapter and str(adapter), n_threads=THREADS, seed=0, verbose=False)
    if template:
        end = llama._model.token_get_text(llama.token_eos())
        llama.chat_handler = Jinja2ChatFormatter(template, eos_token=end, bos_token="").to_chat_handler()
    said = [llama.create_chat_completion([{"role": "user", "content": text}], temperature=0, max_tokens=TOKENS)
            for text in messages]
    llama.close()
    return [one["choices"][0]["message"]["content"] or "" for one in said]


def main():
    gguf_export.THREADS = THREADS
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    merged, llama_cpp, adapter = map(Path, sys.argv[1:])
    commands = smart_home.commands("test combinations", n=COMMANDS, seed=0)
    texts, results = [c.text for c in commands], {}

    def judge(name: str, file: Path, answers: list[str], by: str = "the file's"):
        score = scoring.score(commands, answers)
        results[name] = {"in_the_file": carried(file), "template": by, "exact": score.exact,
                         "interval": score.interval, "valid_json": score.valid_json,
                         "first": [[text, answer] for text, answer in zip(texts[:3], answers)]}
        print(f"{name}: {score}; {answers[0]!r}")

    with tempfile.TemporaryDirectory() as scratch:
        script = llama_cpp / "convert_hf_to_gguf.py"
        for name, template in TEMPLATES.items():
            place = folder_with(template, merged, Path(scratch, name.replace("'", "").replace(" ", "-")))
            file = gguf_export.convert(script, place, place.with_suffix(".gguf"), "f16")
            judge(f"merged, template {name}", file, ask(file, texts))
        _, answers = gguf_export.run(file, [c.prompt for c in commands])
        judge("merged, whole prompts", file, answers, "not used")
        file.unlink()
        base = gguf_export.convert(script, cache.model_folder(), Path(scratch, "base.gguf"), "f16")
        small = gguf_export.convert(llama_cpp / "convert_lora_to_gguf.py", adapter, Path(scratch, "adapter.gguf"),
                                    "f32", "--base", str(cache.model_folder()))
        print("an adapter's file carries a template:", carried(small) is not None)
        judge("base and adapter, template the base's", base, ask(base, texts, small))
        judge("base and adapter, the training's given", base, ask(base, texts, small, TEMPLATES["the training's"]),
              "given to the engine")
    recipe.write_results("gguf_template", {"commands": COMMANDS, "llama-cpp-python": version("llama-cpp-python"),
                                           "results": results})


if __name__ == "__main__":
    main()
