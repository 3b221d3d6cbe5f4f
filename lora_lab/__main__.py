"""`lora-lab`, or `python -m lora_lab`: the lessons, your progress, a class's, and what is wrong with adapters or rows.

Each part is the `main` of a module; what a part takes, `lora-lab PART --help` lists.
"""

import importlib
import sys
from importlib import metadata

from .errors import LabError

_LESSONS = "course.handout"
_PARTS = {
    "open": (_LESSONS, "a lesson in JupyterLab, in my-lessons/ of this folder: lora-lab open, or lora-lab open 02"),
    "reset": (_LESSONS, "a lesson put back as handed out; what you edited is kept: lora-lab reset 02"),
    "progress": (_LESSONS, "what is solved of each lesson; --export FILE to hand it in"),
    "sync": (_LESSONS, "missing and updated lessons copied to my-lessons/, and nothing opened"),
    "class": ("course.classroom", "learners' exported progress as one table: lora-lab class 'handed-in/*.json'"),
    "doctor": ("doctor.__main__", "what is wrong with an adapter: lora-lab doctor FOLDER"),
    "data": ("data.__main__", "what is odd in rows of your own: lora-lab data FILE"),
}


def main(arguments: list[str] | None = None) -> int | str | None:
    """Run the part that the first argument names; returns the exit status, or what to say instead of success."""
    part, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if part in ("-h", "--help", "help"):
        print("lora-lab PART ...\n\n" + "\n".join(f"  {name:<9} {what}" for name, (_, what) in _PARTS.items()))
        return 0
    if part == "--version":
        print(f"lora-lab {metadata.version('lora-lab')}")
        return 0
    if part not in _PARTS:
        return f"There is no part {part!r}. There are {', '.join(_PARTS)}; lora-lab --help says what they do."
    home = _PARTS[part][0]
    try:
        run = importlib.import_module(f".{home}", __package__).main
        return run([part, *rest] if home == _LESSONS else rest)
    except LabError as error:
        return str(error)
    except BrokenPipeError:  # `lora-lab progress | head` has read enough
        sys.stdout = None  # type: ignore[assignment]  # else Python says so once more at its end
        return 1
    except KeyboardInterrupt:
        return "\nInterrupted. Run it again to go on."


if __name__ == "__main__":
    sys.exit(main())
