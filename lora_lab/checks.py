"""Checks before a library fails with a message about something else."""

from __future__ import annotations

from pathlib import Path

from .errors import LabError


def adapter_folder(folder) -> str:
    """`folder` as a string, if it holds a saved adapter.

    PEFT asks the model hub for a folder it cannot find an adapter in, and then reports what the hub
    said. This says what is wrong with the folder. Raises LabError.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if not missing:
        return str(folder)
    found = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else None
    state = f"it holds {', '.join(found) or 'nothing'}" if found is not None else "it is no folder"
    raise LabError(
        f"{folder} is not a saved adapter: no {' and no '.join(missing)} there ({state}). "
        "Give the folder that model.save_pretrained(folder) wrote."
    )
