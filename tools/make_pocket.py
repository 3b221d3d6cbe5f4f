"""Make the pocket model's weights anew: `python tools/make_pocket.py`. Half precision keeps the file under 0.5 MB."""

import itertools

import torch
from lora_lab import pocket, scoring, smart_home
from safetensors.torch import save_file


def pretrain(steps: int = 1000, seed: int = 0):
    """Train the model from scratch on the grammar, answers alone counting; under a minute on two cores."""
    torch.manual_seed(seed)
    model = pocket.untrained().train()
    # A strong weight decay makes it read rooms and devices apart, so that it answers held-out combinations.
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.98), weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps, pct_start=0.1, cycle_momentum=False)
    rows = pocket.stream(smart_home.commands("train", n=4000, seed=seed), 64, seed)
    for batch in itertools.islice(rows, steps):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def main() -> None:
    torch.set_num_threads(2)
    model = pretrain()
    weights = {name: weight.half() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, pocket.WEIGHTS)
    model, tokenizer = pocket.load()
    for split in ("test combinations", "test phrasings"):
        print(split, scoring.quick_score(model, tokenizer, smart_home.commands(split, n=500, seed=1)))
    print(f"{model.num_parameters():,} parameters, {pocket.WEIGHTS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
