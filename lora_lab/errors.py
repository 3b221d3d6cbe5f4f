"""The one error this package raises on purpose, and the words that its messages share."""

import difflib
import numbers
import reprlib
from collections.abc import Iterable


class LabError(Exception):
    """What was wrong, what was expected, what to do next. Notebooks show the message alone."""

    def _render_traceback_(self, *_) -> list[str]:
        return [f"{type(self).__name__}: {self}", *getattr(self, "__notes__", ())]


def expect(fits: object, name: str, value: object, wanted: str) -> None:
    """Check that an argument `fits`. Raises LabError with its name, what was found and what was wanted."""
    if not fits:
        raise LabError(f"{name} is {reprlib.repr(value)}. Give {wanted}.")


def whole(low: int = 1, **settings: object) -> None:
    """Check that each setting is a whole number of at least `low`, and none that no machine takes. Raises LabError."""
    for name, value in settings.items():
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        expect(is_whole and low <= value < 2**31, name, value, f"a whole number of at least {low}")  # type: ignore


def reason(error: object, most: int = 300) -> str:
    """Return what `error` says in one line of about `most` characters at most; of an OSError, the system's words."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " ..."


def nearest(found: object, known: Iterable[object], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to `most` of the `known` names that resemble `found`, the closest first."""
    return difflib.get_close_matches(str(found), [str(name) for name in known], most, cutoff)
