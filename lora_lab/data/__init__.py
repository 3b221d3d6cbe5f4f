"""Rows of one's own, before any training: read from a file in whichever form it has, and checked.

`read` understands a file or says why not; `check` names rows that a training would stumble over. Neither knows a task.
"""

from .checks import Finding, check, rows_needed, split
from .reading import Data, Row, read

__all__ = ["Data", "Finding", "Row", "check", "read", "rows_needed", "split"]
