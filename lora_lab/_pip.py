"""Find what can fetch packages for this Python: a pip, also where the environment has none, else uv."""

import shutil
import sys
from importlib import util
from pathlib import Path

from .errors import LabError


def installing() -> list[str]:
    """Return the beginning of a command that installs into this Python. Raises LabError."""
    if pip := _pip():
        return [*pip, "install", "--disable-pip-version-check"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise _nothing()


def fetching(requirements: Path, folder: Path) -> list[str]:
    """Return the command that puts the one wheel of `requirements` into `folder`; uv unpacks it. Raises LabError."""
    wheel = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", f"--requirement={requirements}"]
    uv, elsewhere = shutil.which("uv"), shutil.which("pip") or shutil.which("pip3")
    pip = _pip()
    if uv and not pip:
        return [uv, "pip", "install", "--python", sys.executable, f"--target={folder}", *wheel]
    if pip := pip or ([elsewhere] if elsewhere else None):
        return [*pip, "download", "--disable-pip-version-check", "--retries=2", f"--dest={folder}", *wheel]
    raise _nothing()


def _pip() -> list[str] | None:
    """A pip that acts for this Python: its own, else the wheel of pip that Python brings for new environments."""
    if util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    ensurepip = util.find_spec("ensurepip")
    folders = [Path(ensurepip.origin).parent / "_bundled"] if ensurepip and ensurepip.origin else []
    folders.append(Path("/usr/share/python-wheels"))  # where Debian and Fedora keep it instead
    wheels = [wheel for folder in folders for wheel in folder.glob("pip-*.whl")]
    return [sys.executable, str(wheels[0] / "pip")] if wheels else None


def _nothing() -> LabError:
    return LabError(f"{sys.executable} has no pip, and there is no uv on the PATH. One of them is needed to fetch "
                    "packages: try `python -m ensurepip`, on Debian `apt install python3-pip`, and run again.")
