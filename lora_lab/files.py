"""Files: written whole or not at all, locked, never over another; and read with a limit, whoever wrote them."""

import itertools
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

LARGEST = 2_000_000  # bytes that a file of ours has at most, unless its reader says otherwise


def write(path: str | os.PathLike, content: str | bytes, mode: int = 0o644) -> Path:
    """Write `content` (text as UTF-8) to `path`, where a reader or a kill finds the old file or the new one.

    What a symbolic link points to is written, not the link. Returns the path; raises OSError, with nothing changed.
    """
    place = Path(os.path.realpath(path))
    handle, work = tempfile.mkstemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(work, mode)  # mkstemp's 0600 would shut a class or a group out
        os.replace(work, place)
    except BaseException:
        Path(work).unlink(missing_ok=True)
        raise
    return Path(path)


def lock(path: str | os.PathLike, timeout: float = -1) -> FileLock:
    """Return the lock file `path`, acquired; use it in a `with`. Its folder is made.

    Waits up to `timeout` seconds, below 0 without end. Raises OSError, and filelock's Timeout, which is one.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, timeout=timeout)
    held.acquire()
    return held


def free(path: str | os.PathLike, ending: str) -> Path:
    """Return the first name beside `path` that nothing has: `notes.mine-1.txt`, `notes.mine-2.txt` for "mine"."""
    path = Path(path)
    names = (path.with_name(f"{path.stem}.{ending}-{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def read_text(path: str | os.PathLike, largest: int = LARGEST) -> str:
    """Return the text of a regular file of at most `largest` bytes.

    Raises OSError where it cannot be read, and ValueError, with the reason, for one that is larger or no UTF-8.
    """
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise ValueError(f"it has {size:,} bytes, and {largest:,} are the most")
        content = file.read(largest + 1)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not a text file") from None


def read_json(path: str | os.PathLike, kind: type, largest: int = LARGEST) -> Any:
    """Return the JSON in a file, which is a `kind` (dict or list). Raises OSError and ValueError, as `read_text`."""
    return parse_json(read_text(path, largest), kind)


def parse_json(text: str, kind: type) -> Any:
    """Return the JSON in `text`, which is a `kind`. Raises ValueError, with the reason, for everything else."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(found, kind):
        raise ValueError(f"it holds a {type(found).__name__}, expected a {kind.__name__}")
    return found
