"""`python -m lora_lab.doctor FOLDER [--base NAME] [--log FILE] [--data FILE]`: what is wrong with an adapter."""

import argparse
import sys
from pathlib import Path

from .. import data
from ..errors import LabError
from . import examine, on_disk


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; return 1 if there are any, 2 for what cannot be examined, else 0."""
    parser = argparse.ArgumentParser(prog="lora_lab.doctor", description="Look for what is wrong with an adapter.")
    parser.add_argument("folder", help="the folder of a saved adapter, or of the training that made it")
    parser.add_argument("--base", help="the model it is loaded on: a folder, a hub id, SmolLM2-135M-Instruct or pocket")
    parser.add_argument("--log", help="trainer_state.json, metrics.jsonl, or what the training printed")
    parser.add_argument("--data", help="the rows that it was trained on: whatever `python -m lora_lab.data` reads")
    options = parser.parse_args(arguments)
    try:
        base, tokenizer = _load(options.base) if options.base else (None, None)
        rows = data.read(options.data) if options.data else None
        kept = on_disk.tokenizer_of(Path(options.folder))  # who has the adapter's own uses that, not the base's
        found = examine(adapter=options.folder, base=base, log=options.log, data=rows,
                        tokenizer=tokenizer if kept is None else None)
    except LabError as error:
        print(f"LabError: {error}", file=sys.stderr)
        return 2
    print(found)
    return bool(found.findings)


def _load(name: str):
    from .. import models, pocket

    return pocket.load() if name == "pocket" else models.load_base(name, quiet=True)


if __name__ == "__main__":
    sys.exit(main())
