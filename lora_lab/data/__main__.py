"""`python -m lora_lab.data FILE [--prompt NAME --answer NAME] [--model NAME]`: what was understood, and what is odd."""

import argparse
import sys

from ..errors import LabError
from . import check, read


def main(arguments: list[str] | None = None) -> int:
    """Print the first rows and the findings; return 1 if there are any, 2 for what cannot be read, else 0."""
    parser = argparse.ArgumentParser(prog="lora_lab.data", description="Read rows, and check them before a training.")
    parser.add_argument("file", help="CSV, JSON, JSON lines, chats, a folder of the datasets library, or a hub id")
    parser.add_argument("--prompt", help="the column that is asked, where it cannot be guessed")
    parser.add_argument("--answer", help="the column that is answered")
    parser.add_argument("--model", help="whose tokenizer counts lengths: SmolLM2-135M-Instruct, a folder or a hub id")
    options = parser.parse_args(arguments)
    try:
        found = read(options.file, options.prompt, options.answer)
        tokenizer = _tokenizer(options.model) if options.model else None
        findings = check(found, tokenizer)
    except LabError as error:
        print(f"LabError: {error}", file=sys.stderr)
        return 2
    print(f"{options.file}: {found}.")
    for row in found.rows[:3]:
        print(f"{row.place}: {row.prompt[-200:]!r} → {row.answer[:200]!r}")
    for place, what in found.odd[:10]:
        print(f"Odd, {place}: {what}")
    for number, finding in enumerate(findings, 1):
        print(f"{number}. {finding}")
    if not findings:
        print("Nothing found." if tokenizer else "Nothing found. Not told without --model: lengths, letters it splits.")
    return bool(findings or found.odd)


def _tokenizer(name: str):
    from .. import models

    return models.read_tokenizer(name)


if __name__ == "__main__":
    sys.exit(main())
