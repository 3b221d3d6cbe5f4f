"""Builds dist/lora-lab-learners-VERSION.zip and dist/lora-lab-teachers-VERSION.zip from the files that git tracks.

The teachers' zip has everything; the learners' leaves out the solutions, the tests and the teaching page. The same
files give the same bytes, on any day: times are fixed and names are sorted.
"""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from lora_lab import LabError

ROOT = Path(__file__).parents[1]
FOR_TEACHERS = ("teacher/", "tests/", "docs/teaching.md", ".ci/")


def build(folder: Path, root: Path = ROOT) -> tuple[Path, Path]:
    """Writes both zips into `folder`; returns the learners' and the teachers'. Raises LabError."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    files = tracked(root)
    learners = {name: mode for name, mode in files.items() if not name.startswith(FOR_TEACHERS)}
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(
        _zip(folder / f"lora-lab-{who}-{version}.zip", root, chosen)
        for who, chosen in (("learners", learners), ("teachers", files))
    )


def tracked(root: Path = ROOT) -> dict[str, int]:
    """Permissions of each file by its name, sorted; links and submodules are refused."""
    listed = _git(root, "ls-files", "--stage", "-z").split("\0")
    modes = {name: fields[:6] for fields, _, name in (line.partition("\t") for line in listed if line)}
    for name, mode in modes.items():
        if mode not in ("100644", "100755"):
            raise LabError(f"{name} is no plain file (git mode {mode}). A zip cannot carry it everywhere: replace it.")
    return {name: int(modes[name][-3:], 8) for name in sorted(modes)}


def changed(root: Path = ROOT) -> list[str]:
    """Tracked files that differ from the last commit."""
    return [line[3:] for line in _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()]


def _zip(file: Path, root: Path, files: dict[str, int]) -> Path:
    scratch = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, mode in files.items():
                info = zipfile.ZipInfo(f"{file.stem}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
                info.create_system, info.external_attr = 3, (0o100000 | mode) << 16  # Unix, wherever it is built
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, (root / name).read_bytes())
        os.replace(scratch, file)
    except FileNotFoundError as error:
        missing = f"{error.filename} is tracked by git but missing"
        raise LabError(f"{missing}. Restore it, or commit that it is gone.") from None
    finally:
        scratch.unlink(missing_ok=True)
    return file


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, encoding="utf-8")
    except FileNotFoundError:
        raise LabError("git is not installed. A release is built from a git clone of the course.") from None
    if done.returncode:
        raise LabError(f"git says: {done.stderr.strip()}. A release is built from a git clone of the course.")
    return done.stdout


if __name__ == "__main__":
    try:
        if names := changed():
            raise LabError(f"Commit these first, or a release would hold what no commit does: {', '.join(names)}")
        for path in build(ROOT / "dist"):
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB")
    except LabError as error:
        sys.exit(str(error))
