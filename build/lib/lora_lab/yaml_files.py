"""A recipe's YAML file: read without running anything in it, written whole or not at all.

What it may say is in `recipes`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import yaml

from .errors import LabError


def read(path, faults: list[str]):
    """What the file says. Keys written twice, which YAML readers let pass, are added to `faults`. Raises LabError."""
    path = Path(path)
    try:
        if path.stat().st_size > 100_000:
            raise LabError(f"{path} has {path.stat().st_size:,} bytes, a recipe a few hundred. Give the recipe's file.")
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _find_twice(node, "", faults, set())
        return None if node is None else loader.construct_document(node)
    except OSError as error:
        raise LabError(f"Cannot read the recipe {str(path)!r}: {error.strerror}. Give a YAML file's path.") from None
    except LabError:
        raise
    except Exception as error:  # PyYAML lets other errors than its own through, such as those of impossible dates
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise LabError(f"{path} is not YAML that can be read: {reason}") from None


def _find_twice(node, prefix: str, faults: list[str], seen: set) -> None:
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{getattr(key, 'value', key)}", key.start_mark.line + 1
        if name in lines:
            faults.append(f"{name}: found twice, in lines {lines[name]} and {line}. Expected once.")
        lines[name] = line
        _find_twice(value, f"{name}.", faults, seen)


def write(content: dict, path) -> Path:
    """Write `content` to `path`, in its own order; its folder is made. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    handle, work = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(work, 0o644)
        os.replace(work, path)
    except BaseException:
        Path(work).unlink(missing_ok=True)
        raise
    return path
