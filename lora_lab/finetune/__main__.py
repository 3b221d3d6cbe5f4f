"""`python -m lora_lab.finetune recipe.yaml [--resume]`, by itself or launched by accelerate on many processes."""

import argparse
import os
import sys
import time

from ..errors import LabError
from . import recipes, training


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lora_lab.finetune", description="Train an adapter by a recipe.")
    parser.add_argument("recipe", help="the recipe's YAML file, such as launch/home_commands.yaml")
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    options = parser.parse_args(arguments)
    _choose_devices()
    try:
        recipe = recipes.read(options.recipe, int(os.environ.get("WORLD_SIZE", 1)), options.resume)
        trainer = training.train(recipe, resume=options.resume)
        # Left to the interpreter's end, gloo's threads sometimes abort a process whose work is done.
        trainer.accelerator.state.destroy_process_group()
    except KeyboardInterrupt:
        print("Interrupted. Launch again with --resume: it goes on from the last complete checkpoint.",
              file=sys.stderr, flush=True)
        sys.exit(130)
    except LabError as error:
        if int(os.environ.get("LOCAL_RANK", 0)):
            time.sleep(10)  # most faults are found by all: the first process says it, and the launcher ends the others
        print(f"LabError: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def _choose_devices() -> None:
    """Before torch looks: no GPU if accelerate was told so, and one GPU for one process, not a share on each."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif "LOCAL_RANK" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


if __name__ == "__main__":
    main()
