"""Make the pocket model's weights anew: `python tools/make_pocket.py`. Half precision keeps the file under 0.5 MB."""

import torch
from lora_lab import pocket, scoring, smart_home
from safetensors.torch import save_file


def main() -> None:
    torch.set_num_threads(2)
    model = pocket.pretrain()
    weights = {name: weight.half() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, pocket.WEIGHTS)
    model, tokenizer = pocket.load()
    for split in ("test combinations", "test phrasings"):
        print(split, scoring.quick_score(model, tokenizer, smart_home.commands(split, n=500, seed=1)))
    print(f"{model.num_parameters():,} parameters, {pocket.WEIGHTS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
