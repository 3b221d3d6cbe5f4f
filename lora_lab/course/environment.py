"""What this machine lacks and what it is, in one line, for a learner who was just set up."""

import subprocess
import sys
import tempfile
from importlib import invalidate_caches, metadata
from pathlib import Path

from packaging.requirements import Requirement

from .. import _pip
from ..errors import LabError

SHOWN = ("torch", "transformers", "peft")


def complete() -> None:
    """Install the packages that the course needs and that are missing. No package that is there changes.

    Only these go to pip: given the whole course, it also checks what the packages that are there ask of each other,
    and searches for minutes where they disagree. Raises LabError, with what pip said, if it cannot.
    """
    missing = [str(needed) for needed, there in requirements() if there is None]
    if not missing:
        return
    # Reversed, so that of two versions on the path the one that is imported is kept.
    there = {d.name: d.version for d in reversed(list(metadata.distributions())) if d.name}
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "installed.txt"
        keep.write_text("".join(f"{name}=={version}\n" for name, version in there.items()), encoding="utf-8")
        command = [*_pip.installing(), "-c", str(keep), *missing]
        pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if pip.returncode:
        said = "\n".join((pip.stdout + pip.stderr).splitlines()[-10:])
        raise LabError(f"pip could not add {', '.join(missing)} beside the packages that are there. It said:\n{said}\n"
                       "Without a connection, connect and run this cell again; otherwise use a fresh environment.")
    invalidate_caches()


def report() -> None:
    """Print what will run where. Raises LabError if an installed package does not fit the course."""
    if unfit := misfits():
        raise LabError(
            f"The course needs other versions: {'; '.join(unfit)}. Run `pip install --upgrade` for these packages, "
            "restart the kernel and run this cell again."
        )
    import torch

    from .. import models

    device = models.pick_device()
    precision = str(models.pick_dtype(device)).removeprefix("torch.")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        where = f"on {properties.name} with {properties.total_memory / 1e9:.0f} GB, in {precision}"
    elif device.type == "mps":
        where = f"on Apple's GPU, in {precision}"
    else:
        hint = " (a GPU: menu Runtime, Change runtime type, T4 GPU)" if "google.colab" in sys.modules else ""
        where = f"on the CPU with {torch.get_num_threads()} threads, in {precision}{hint}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
    print(f"Ready: Python {'.'.join(map(str, sys.version_info[:2]))}, {versions}; models run {where}.")


def misfits() -> list[str]:
    """Return the packages that the course needs in another version, each with what is there and what is needed."""
    return [f"{needed.name} is {there or 'missing'}, expected {needed.specifier}"
            for needed, there in requirements()
            if there is None or not needed.specifier.contains(there, prereleases=True)]


def requirements() -> list[tuple[Requirement, str | None]]:
    """Return what the course needs, each with the version that is there; None where it is missing."""
    found: list[tuple[Requirement, str | None]] = []
    for line in metadata.requires("lora-lab") or ():
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": "course"}):  # JupyterLab is not: Colab has another
            continue
        needed.marker = None  # it holds here; pip, which knows of no extra, would leave the package out
        try:
            found.append((needed, metadata.version(needed.name)))
        except metadata.PackageNotFoundError:
            found.append((needed, None))
    return found
