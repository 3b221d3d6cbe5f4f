"""Rows of one's own, before any training: read from a file in whichever form it has, and checked.

`read` understands a file or says why not; `check` names rows that a training would stumble over. Neither knows a task.
"""

from pathlib import Path

from ..errors import LabError, expect, nearest
from .checks import Finding, check, rows_needed, split
from .reading import Data, Row, read

__all__ = ["Data", "Finding", "Row", "check", "example", "read", "rows_needed", "split"]

_SETS = Path(__file__).parent / "sets"


def example(name: str) -> Path:
    """Return the file of a set that comes with the course: "support" (CSV), "orders" (JSON lines) or "style" (chats).

    Three hundred rows each, written for it by tools/make_own_data.py. Raises LabError for another name.
    """
    known = {path.stem: path for path in sorted(_SETS.iterdir())}
    expect(isinstance(name, str), "name", name, f"one of {', '.join(known)}")
    if name not in known:
        close = nearest(name, known)
        raise LabError(f"There is no set {name!r}. Take one of: {', '.join(known)}."
                       + (f" Did you mean {close[0]!r}?" if close else ""))
    return known[name]
