"""The one error this package raises on purpose, and the words that its messages share."""

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """What was wrong, what was expected, what to do next. Notebooks show the message alone."""

    def _render_traceback_(self, *_) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def reason(error: object, most: int = 300) -> str:
    """Return what `error` says in one line of about `most` characters at most; of an OSError, the system's words."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " ..."


def nearest(found: object, known: Iterable[object], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to `most` of the `known` names that resemble `found`, the closest first."""
    return difflib.get_close_matches(str(found), [str(name) for name in known], most, cutoff)
