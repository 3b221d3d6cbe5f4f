"""Checks before a library fails with a message about something else."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .errors import LabError


def positive(**settings) -> None:
    """Every setting is a finite number above 0, as alpha and the learning rate have to be. Raises LabError.

    PEFT takes 0, negative numbers and NaN without a word, and trains nothing or nonsense.
    """
    for name, value in settings.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise LabError(f"{name} is {value!r}. Give a finite number above 0.")


def adapter_folder(folder, r: int | None = None) -> str:
    """`folder` as a string, if it holds a saved adapter (of rank `r`, if given).

    PEFT asks the model hub for a folder it cannot find an adapter in, and then reports what the hub
    said. This says what is wrong with the folder. Raises LabError.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if not missing:
        rank = json.loads((folder / "adapter_config.json").read_text()).get("r")
        if r not in (None, rank):
            raise LabError(
                f"The adapter in {folder} has rank {rank}, and rank {r} is needed here. Train it with r={r}, or give "
                "another folder."
            )
        return str(folder)
    found = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else None
    state = f"it holds {', '.join(found) or 'nothing'}" if found is not None else "it is no folder"
    raise LabError(
        f"{folder} is not a saved adapter: no {' and no '.join(missing)} there ({state}). "
        "Give the folder that model.save_pretrained(folder) wrote."
    )
