"""Count the columns of a layer's input that LLM.int8() multiplies in 16 bits, and bitsandbytes keeps once more.

`python benchmarks/outlier_columns.py` prints, for each kind of linear layer, which share of the columns holds a value
of 6 or more (Dettmers et al. 2022, section 3.2) in 512 tokens: in a model of Llama-2-7B's shape with random weights,
as gpu_8bit.py measures it, cut to two blocks, and in the course's model, on prose. On any CPU, in about a minute.
"""

import argparse
import json
from pathlib import Path

import torch
from lora_lab import load_base, scoring
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS, THRESHOLD, BLOCKS = 512, 6.0, 2


def random_model() -> tuple[LlamaForCausalLM, torch.Tensor]:
    """A model of Llama-2-7B's shape with two blocks, its matrices views of one block of random numbers, and tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=BLOCKS, dtype="float32")  # the rest by default: Llama-2-7B's
    with torch.device("meta"):
        wanted = LlamaForCausalLM(config).state_dict()
    block = torch.randn(max(w.numel() for w in wanted.values())).mul_(0.02)
    weights = {name: torch.ones(w.shape) if w.dim() == 1 else block[: w.numel()].view(w.shape)
               for name, w in wanted.items()}
    return LlamaForCausalLM.from_pretrained(None, state_dict=weights, config=config), \
        torch.randint(0, config.vocab_size, (1, TOKENS))


def trained_model() -> tuple[torch.nn.Module, torch.Tensor]:
    """The course's model, and tokens of prose."""
    model, tokenizer = load_base(precision="float32", quiet=True)
    text = scoring.GENERAL_TEXT
    while len(ids := tokenizer(text)["input_ids"]) < TOKENS:
        text += "\n" + scoring.GENERAL_TEXT
    return model, torch.tensor([ids[:TOKENS]], device=model.device)


@torch.no_grad()
def shares(model, ids: torch.Tensor) -> dict[str, float]:
    """Return the mean share of columns with a value of THRESHOLD or more, by kind of linear layer in the blocks."""
    seen: dict[str, list[float]] = {}

    def look(kind):
        def hook(module, inputs):
            seen.setdefault(kind, []).append((inputs[0].abs() >= THRESHOLD).flatten(0, -2).any(0).float().mean().item())
        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "layers." in name:
            module.register_forward_pre_hook(look(name.rpartition(".")[2]))
    model.eval()(input_ids=ids, use_cache=False, logits_to_keep=1)
    return {kind: sum(found) / len(found) for kind, found in seen.items()}


def main() -> None:
    """Print the shares; `--out` writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = {"random weights, Llama-2-7B's shape": shares(*random_model()),
             "SmolLM2-135M-Instruct": shares(*trained_model())}
    for model, kinds in found.items():
        print(f"{model}: " + ", ".join(f"{kind} {share:.4f}" for kind, share in kinds.items()))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
