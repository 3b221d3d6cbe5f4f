"""Is dirt in files of rows found, with its lines? Twenty dirty rows of a kind in 300, in files of four forms.

    python benchmarks/data_dirt.py [--seeds 5]

The rows are commands of the house, whose own lines are clean: a finding at one of them is a false alarm. A file is
written as another program would, read by `data.read`, and checked by `data.check`; found is what either names.
"""

import argparse
import collections
import csv
import gzip
import io
import json
import random
import tempfile
from pathlib import Path

import recipe
from lora_lab import data, pocket, smart_home

ROWS, DIRTY, LONGEST = 300, 20, 120


def spoil(kind: str, rng: random.Random, row: tuple[str, str], rows: list) -> tuple[str, str]:
    ask, say = row
    return {
        "no answer": lambda: (ask, rng.choice(("", " ", "\u00a0", "\u200b", "#N/A", "NaN"))),
        "no prompt": lambda: ("", say),
        "lost letters": lambda: (ask.replace("e", "\ufffd", 1) + "\ufffd", say),
        "read in another encoding": lambda: (f"{ask} {rng.choice('äöüéèß–“').encode().decode('cp1252', 'replace')}",
                                             say),
        "control characters": lambda: (f"{ask}{chr(rng.choice((0, 1, 8, 12, 27)))}", say),
        "duplicate": lambda: row,
        "duplicate but for spaces and capitals": lambda: (f" {ask.upper()} ", say),
        "contradiction": lambda: (ask, f"another answer {rng.random():.6f}"),
        "too long": lambda: (ask * 30, say),
        "special tokens": lambda: (f"{ask}<end>", say),
    }[kind]()


KINDS = ("no answer", "no prompt", "lost letters", "read in another encoding", "control characters", "duplicate",
         "duplicate but for spaces and capitals", "contradiction", "too long", "special tokens")
BROKEN = ("a cell too many", "half a line", "no object", "a field missing")


def write(form: str, rows: list, broken: dict[int, str]) -> bytes:
    """A file of that form; `broken` rows are written wrongly."""
    lines = []
    for number, (ask, say) in enumerate(rows):
        how = broken.get(number)
        if form == "chats.jsonl":
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]
            line = json.dumps({"messages": turns[: 1 if how == "a field missing" else 2]}, ensure_ascii=False)
        elif "json" in form:
            answer = {} if how == "a field missing" else {"answer": say}
            line = json.dumps({"prompt": ask} | answer, ensure_ascii=False)
        else:
            text = io.StringIO()
            csv.writer(text, delimiter=";" if "excel" in form else ",").writerow(
                [ask, say, "more"] if how == "a cell too many" else [ask] if how == "a field missing" else [ask, say])
            line = text.getvalue().rstrip("\r\n")
        lines.append(line[: len(line) // 2] if how == "half a line" else "[1]" if how == "no object" else line)
    if form == "excel.csv":
        return ("\ufeffsep=;\r\nprompt;answer\r\n" + "\r\n".join(lines)).encode()
    if form == "plain.csv.gz":
        return gzip.compress(("prompt,answer\n" + "\n".join(lines)).encode())
    return "\n".join(lines).encode()


FORMS = {"excel.csv": 3, "plain.csv.gz": 2, "rows.jsonl": 1, "chats.jsonl": 1}  # the line of the first row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    found, seeded, alarms = collections.Counter(), collections.Counter(), 0
    for form, first in FORMS.items():
        for kind in (*KINDS, *BROKEN):
            only = {"a cell too many": "csv", "no object": "json", "half a line": "json"}.get(kind, "")
            if only not in form:
                continue  # a table has no objects, and half a line of it may be a whole row
            for seed in range(options.seeds):
                rng = random.Random(f"{form}/{kind}/{seed}")
                rows = list(dict.fromkeys((c.prompt.strip(), c.answer) for c in
                                          smart_home.commands("train", n=2 * ROWS, seed=seed)))[:ROWS]
                # Two of the house's own sentences that say the same are no dirt, and no clean rows.
                rows = list({" ".join(ask.lower().split()): (ask, say) for ask, say in rows}.values())
                clean = len(rows)
                picked = rng.sample(rows, DIRTY)
                rows += [spoil(kind, rng, row, rows) for row in picked] if kind in KINDS else picked
                places = {f"line {first + number}" for number in range(clean, len(rows))}
                broken = {number: kind for number in range(clean, len(rows))} if kind in BROKEN else {}
                told = named(write(form, rows, broken), form)
                found[kind] += len(told & places)
                seeded[kind] += DIRTY
                if "contradiction" not in kind:  # there the first of two is named, too
                    alarms += len(told - places)
    for kind in seeded:
        print(f"{kind:40} {found[kind]:5} of {seeded[kind]}")
    total = sum(found.values()) / sum(seeded.values())
    print(f"{total:.1%} of {sum(seeded.values()):,} found with their lines; {alarms} clean lines named")
    recipe.write_results("data_dirt", {"found": dict(found), "seeded": dict(seeded), "clean lines named": alarms})


def named(content: bytes, form: str) -> set[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, form)
        path.write_bytes(content)
        read = data.read(path)
    findings = data.check(read, pocket.tokenizer(), max_length=LONGEST)
    return {place for place, _ in read.odd} | {place for finding in findings for place in finding.places}


if __name__ == "__main__":
    main()
