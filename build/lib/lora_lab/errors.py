"""The one error this package raises on purpose: a short message that says what to do next."""


class LabError(Exception):
    """What was wrong, what was expected, what to do next. Notebooks show the message alone."""

    def _render_traceback_(self, *_):
        return [f"{type(self).__name__}: {self}"]
