"""Checks the learner runs: on a folder before PEFT opens it, and on the answers to exercises."""

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
    state = "does not exist" if found is None else f"holds {', '.join(found) or 'nothing'}"
    raise LabError(
        f"{folder} is not a saved adapter: no {' and no '.join(missing)} there (the folder {state}). "
        "Give the folder that model.save_pretrained(folder) wrote."
    )
