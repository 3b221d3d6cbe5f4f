"""Write locked.txt: what each extra installs, in the versions of constraints.txt, with the SHA-256 of every file of it.

One text for Linux, Windows, macOS and every Python of pyproject.toml; hashes are those of the public index. torch, and
what only its CUDA build needs, is left out: which build a machine gets, tools/set_up.py decides, by its version.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("bench", "hub", "lab", "site", "test")
BY_VERSION = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEAD = """\
# Written by `make lock` from pyproject.toml and constraints.txt: do not edit.
"""


def closure(extra: str) -> dict[str, str]:
    """Return what an extra installs: "name==version ; marker" with its lines of hashes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = re.search(r">=(3\.\d+)", project["requires-python"])
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", extra, "--universal",
               "--python-version", lowest[1], "-c", "constraints.txt", "--generate-hashes", "--no-header",
               "--no-annotate", "--no-config", "--quiet"]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    said = subprocess.run(command, cwd=ROOT, env=own, check=True, capture_output=True, text=True).stdout
    blocks = [block for block in re.split(r"(?m)^(?=\S)", said) if block.strip()]
    return {block.partition("\n")[0]: block for block in blocks if not BY_VERSION.match(block)}


def text(closures: dict[str, dict[str, str]]) -> str:
    """Return the file: a block for each package, under a line that names its extras."""
    blocks = {head: block for found in closures.values() for head, block in found.items()}
    needing = {head: [extra for extra in EXTRAS if head in closures[extra]] for head in blocks}
    return HEAD + "".join(f"# for {' '.join(needing[head])}\n{blocks[head]}" for head in sorted(blocks))


def changes(before: str, after: str) -> list[str]:
    """Return a line for each package with another version: "transformers 5.23.0 -> 5.24.0"; new and gone are named."""
    old, new = (dict(re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", whole)) for whole in (before, after))
    return [f"{name} {old.get(name, 'not there')} -> {new.get(name, 'gone')}" for name in sorted(old | new)
            if old.get(name) != new.get(name)]


def main() -> None:
    """Write the file, and say what is other in it than before: what constraints.txt does not name is the newest."""
    file = ROOT / "locked.txt"
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    try:
        after = text({extra: closure(extra) for extra in EXTRAS})
    except subprocess.CalledProcessError as error:
        sys.exit(f"locked.txt stays as it was. uv says: {error.stderr.strip()}")
    file.write_text(after, encoding="utf-8")
    other = "hashes or extras, but no version" if after != before else "nothing"
    print("locked.txt is written. Changed:", "; ".join(changes(before, after)) or other)


if __name__ == "__main__":
    main()
