"""Files: written whole or not at all, locked, never over another; and read with a limit, whoever wrote them.

What is ours is what a folder's manifest names with its SHA-256, whatever it is called; nothing else is ever removed.
"""

import contextlib
import ctypes
import errno
import glob
import hashlib
import itertools
import json
import os
import re
import reprlib
import stat
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from .errors import LabError

LARGEST = 2_000_000  # bytes that a file of ours has at most, unless its reader says otherwise
DEEPEST = 50  # levels of lists and keys in a file
MANIFEST = ".lora-lab.json"  # in a folder that was written here: its files with their SHA-256
_EMPTY = "an empty folder"
_ADDRESS = re.compile(r"[\w.+@-]{2,}:/")  # s3://, hdfs:///, dbfs:/, host:/; no drive of Windows, which is one letter


def place(path: str | os.PathLike, wanted: str = "the name of a file or folder") -> Path:
    """Return where a user's `path` lies on this machine: absolute, with "~" filled in.

    Raises LabError for what is no such name: an address like "s3://bucket", another type, a "~" of nobody.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    fits = isinstance(text, str) and text.strip() and "\0" not in text and len(text) < 1000
    if not fits or max(map(len, Path(text).parts), default=0) > 200:  # no disk takes longer names
        raise LabError(f"Found {reprlib.repr(path)}, expected {wanted}.")
    if _ADDRESS.match(text):
        raise LabError(f"{text!r} is an address, expected {wanted} on this machine. Write it here, and copy it there "
                       "afterwards with the tool of that storage; to read it, copy it here first.")
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, OSError):  # nobody of that name, no home; a working directory that was deleted
        raise LabError(f"{text!r} leads nowhere: there is no such home or working folder. Give the whole path, from "
                       "the root on.") from None


def write(path: str | os.PathLike, content: str | bytes, mode: int = 0o644) -> Path:
    """Write `content` (text as UTF-8) to `path`, where a reader or a kill finds the old file or the new one.

    What a symbolic link points to is written, not the link. Returns the path; raises OSError, with nothing changed,
    also where there is a folder or a device.
    """
    real = Path(os.path.realpath(path))
    if os.path.lexists(real) and not real.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    handle, work = tempfile.mkstemp(prefix=f".{real.name}.", suffix=".tmp", dir=real.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(work, mode)  # mkstemp's 0600 would shut a class or a group out
        os.replace(work, real)
    except BaseException:
        Path(work).unlink(missing_ok=True)
        raise
    return Path(path)


def remove_leftovers(path: str | os.PathLike) -> None:
    """Remove what killed calls of `write` left beside `path`. Call it under the lock that guards `path`."""
    real = Path(os.path.realpath(path))
    for work in real.parent.glob(f".{glob.escape(real.name)}.????????.tmp"):  # as `mkstemp` names them
        with contextlib.suppress(OSError):
            work.unlink()


def lock(path: str | os.PathLike, timeout: float = -1) -> FileLock:
    """Return the lock file `path`, acquired; use it in a `with`. Its folder is made.

    Waits up to `timeout` seconds, below 0 without end. Raises OSError, and filelock's Timeout, which is one. A file
    with something in it is none of ours, and locking would empty it. The file stays after the release: on a disk that
    several machines share, one that waits for a removed file and one that makes it anew could both get the lock.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):  # where no file can be made, as in /proc, filelock may wait for one without end
        tempfile.TemporaryFile(dir=Path(path).parent).close()
    if os.path.lexists(path) and not _is_lock(Path(path)):
        raise OSError(errno.EEXIST, f"{Path(path).name} is no lock, and its name is needed for one", str(path))
    held = FileLock(path, timeout=timeout)
    held.acquire()
    return held


def _is_lock(path: Path) -> bool:
    """Empty, or with the number of a process in it, as filelock has it on disks that know no locks."""
    if not path.is_file() or not path.stat().st_size:
        return path.is_file()  # unread, which Windows refuses while another holds it
    with path.open("rb") as file:
        return bool(re.match(rb"\d+\n", file.read(20)))


def free(path: str | os.PathLike, ending: str) -> Path:
    """Return the first name beside `path` that nothing has: `notes.mine-1.txt`, `notes.mine-2.txt` for "mine"."""
    path = Path(path)
    names = (path.with_name(f"{path.stem}.{ending}-{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def read_text(path: str | os.PathLike, largest: int = LARGEST) -> str:
    """Return the text of a regular file, as `read_bytes` does. Raises ValueError for one that is no UTF-8, too."""
    try:
        return read_bytes(path, largest).decode()
    except UnicodeDecodeError:
        raise ValueError("it is not a text file") from None


def read_bytes(path: str | os.PathLike, largest: int = LARGEST) -> bytes:
    """Return what is in a regular file of at most `largest` bytes.

    Raises OSError where it cannot be read, and ValueError, with the reason, for one that is larger.
    """
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise ValueError(f"it has {size:,} bytes, and {largest:,} are the most")
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    return content


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer


def read_json(path: str | os.PathLike, kind: type, largest: int = LARGEST) -> Any:
    """Return the JSON in a file, which is a `kind` (dict or list). Raises OSError and ValueError, as `read_text`."""
    return parse_json(read_text(path, largest), kind)


def parse_json(text: str, kind: type) -> Any:
    """Return the JSON in `text`, which is a `kind`. Raises ValueError, with the reason, for everything else.

    A whole number of 19 digits or more comes back as a float, one beyond all floats as infinity.
    """
    try:
        found = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))
        _check_depth(found, DEEPEST)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(found, kind):
        raise ValueError(f"it holds a {type(found).__name__}, expected a {kind.__name__}")
    return found


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise RecursionError
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inner, (dict, list)):
            _check_depth(inner, left - 1)


# Folders that are replaced whole.


def begin(folder: Path) -> Path:
    """Return a new folder beside `folder`, to be filled, and given to `finish` or `discard`. Call it under a lock.

    It says that it is unfinished: what a kill leaves of it goes at the next `recover`. Raises OSError.
    """
    work = unfinished(folder)
    if os.path.lexists(work):
        raise OSError(errno.EEXIST, f"{work.name}, which was not written here, is in the way", str(work))
    work.mkdir()
    mark(work)
    return work


def unfinished(folder: Path) -> Path:
    """Return what `begin` returned in another process of the same training."""
    return _beside(folder, "incomplete")


def mark(folder: Path) -> None:
    """Note in `folder`, which is new, that all in it is written here and not complete yet. Raises OSError."""
    write(folder / MANIFEST, json.dumps({"unfinished": folder.name}))


def seal(folder: Path) -> None:
    """Note every file in `folder`, with its SHA-256, as written here and complete. Raises OSError."""
    write(folder / MANIFEST, json.dumps({"files": _contents(folder)}, indent=1))


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds what it was sealed with, byte for byte, and nothing else."""
    try:
        return bool(_sealed(folder)) and _contents(folder) == _sealed(folder)
    except OSError:
        return False


def strangers(folder: Path) -> list[str]:
    """Return what lies in `folder` and is not, byte for byte, what it was sealed with. Raises OSError."""
    ours = _sealed(folder)
    return [name for name, digest in _contents(folder).items() if ours.get(name) != digest]


def finish(work: Path, folder: Path) -> Path | None:
    """Let `work` take the place of `folder`, in which there is the old or the new one at every moment; seal it first.

    What is the old folder's own goes. Returns where anything else of it is kept, such as a file that came meanwhile.
    Where the system cannot exchange two names, a kill between two renames leaves the old one to `recover`. Raises
    OSError, with nothing changed.
    """
    seal(work)
    if not os.path.lexists(folder):
        os.rename(work, folder)
        return None
    if not _exchange(work, folder):
        previous = _beside(folder, "previous")
        if os.path.lexists(previous):
            raise OSError(errno.EEXIST, f"{previous.name} is in the way", str(previous))
        os.rename(folder, previous)
        try:
            os.rename(work, folder)
        except BaseException:
            os.rename(previous, folder)
            raise
        os.rename(previous, work)
    return None if discard(work) else _kept(work, folder)


def recover(folder: Path) -> list[str]:
    """Clear away what a killed replacement of `folder` left; returns sentences on it. Call it under a lock."""
    said, previous, work = [], _beside(folder, "previous"), unfinished(folder)
    if _sealed(previous) and not os.path.lexists(folder):
        os.rename(previous, folder)
        said.append(f"An earlier save of {folder.name} was killed at its last step; the previous files are back.")
    for left in (place for place in (previous, work) if place.is_dir()):
        was_ours = bool(_sealed(left))
        if discard(left):
            said.append(f"An earlier save of {folder.name} was killed; what it left beside it is removed.")
        elif was_ours:
            said.append(f"An earlier save of {folder.name} was killed; what is not its own is in "
                        f"{_kept(left, folder).name}.")
    return said


def discard(folder: Path) -> bool:
    """Remove what `folder` was sealed with, or all of one that is marked as unfinished; returns whether it is gone."""
    if folder.is_symlink():
        return False
    remove_leftovers(folder / MANIFEST)
    with contextlib.suppress(OSError):
        found, ours = _contents(folder), _sealed(folder)
        if _manifest(folder).get("unfinished") == folder.name:
            ours = found
        for name in (name for name, digest in ours.items() if found.get(name) == digest):
            (folder / name).rmdir() if found[name] == _EMPTY else (folder / name).unlink()
        parents = {parent for name in ours for parent in Path(name).parents if parent != Path()}
        for parent in sorted(parents, key=lambda parent: -len(parent.parts)):  # the deepest first
            with contextlib.suppress(OSError):  # something else is in it
                (folder / parent).rmdir()
        if list(folder.iterdir()) == [folder / MANIFEST]:  # last, since it says that the rest is ours
            (folder / MANIFEST).unlink()
        folder.rmdir()
    return not os.path.lexists(folder)


def _kept(work: Path, folder: Path) -> Path:
    kept = free(folder, "kept")
    os.rename(work, kept)
    return kept


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _contents(folder: Path) -> dict[str, str]:
    """Each file below `folder` with its SHA-256, and what else there is with a word for it."""
    found = {}
    for inner in sorted(folder.rglob("*")):
        name = inner.relative_to(folder).as_posix()
        if inner.is_symlink() or not (inner.is_file() or inner.is_dir()):
            found[name] = "no file"
        elif inner.is_dir():
            found |= {} if any(inner.iterdir()) else {name: _EMPTY}
        elif name != MANIFEST:
            with inner.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _manifest(folder: Path) -> dict:
    try:
        return read_json(folder / MANIFEST, dict)
    except (OSError, ValueError):
        return {}


def _sealed(folder: Path) -> dict[str, str]:
    noted = _manifest(folder).get("files")
    return {name: digest for name, digest in noted.items() if ".." not in name} if isinstance(noted, dict) else {}


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, where the system (Linux, macOS) and the disk can; else False, and nothing is changed.

    renameat2(2) with RENAME_EXCHANGE, and renamex_np(2) with RENAME_SWAP, which are both 2.
    """
    names = os.fsencode(one), os.fsencode(other)
    try:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "renameat2"):
            return libc.renameat2(-100, names[0], -100, names[1], 2) == 0  # -100: names as they are (AT_FDCWD)
        return libc.renamex_np(*names, 2) == 0
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no such library
        return False
