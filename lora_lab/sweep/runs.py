"""What a sweep found: rows, means with their spread or their interval, a table or a heat map."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..display import Page, table
from ..errors import LabError, expect

if TYPE_CHECKING:
    from ..plots import Picture

# 97.5 % points of Student's t with 1, 2, 3, ... degrees of freedom; the last one is taken, with care, for all beyond.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
     2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean of independent values, one a seed, and the half width of its 95 % interval (Student 1908).

    n values leave n - 1 degrees of freedom. Of fewer than two values, or with one that is not finite, the half width
    is NaN. Raises LabError.
    """
    expect(isinstance(values, Iterable), "values", values, "a list of numbers")
    found = list(values)
    expect(found and all(isinstance(value, (int, float)) for value in found), "values", found, "at least one number")
    if not all(map(math.isfinite, found)):
        return math.nan, math.nan
    if len(found) < 2:
        return statistics.fmean(found), math.nan
    return statistics.fmean(found), T[min(len(found) - 1, len(T)) - 1] * statistics.stdev(found) / len(found) ** 0.5


class Runs:
    """What a sweep found: `rows`, one dict a run with its settings, seed, status and figures."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Runs) -> Runs:
        return Runs(self.rows + other.rows)

    @property
    def diverged(self) -> list[dict]:
        """The rows of runs whose figures are no numbers."""
        return [row for row in self.rows if row["status"] == "diverged"]

    def where(self, **settings) -> Runs:
        """Return the runs with these settings."""
        self._check(settings)
        return Runs([row for row in self.rows if all(row.get(name) == value for name, value in settings.items())])

    def values(self, name: str) -> list:
        """Return the different values of a setting, in order."""
        self._check([name])
        found = {row[name] for row in self.rows if name in row}
        return sorted(found, key=lambda value: (value is None, isinstance(value, str), value))

    def mean(self, figure: str, **settings) -> float:
        """Return the mean of `figure` over all runs with these settings; NaN if one diverged or there is none."""
        found = self.where(**settings).figures(figure)
        return statistics.fmean(found) if found else math.nan

    def spread(self, figure: str, **settings) -> tuple[float, float]:
        """Return the smallest and the largest `figure` of the runs with these settings; diverged ones left out."""
        found = [value for value in self.where(**settings).figures(figure) if math.isfinite(value)]
        return (min(found), max(found)) if found else (math.nan, math.nan)

    def table(self, figure: str, *by: str) -> Page:
        """Show mean and spread of `figure` for each combination of the settings `by`, and how many runs diverged."""
        rows = []
        for values in itertools.product(*(self.values(name) for name in by)):
            chosen = dict(zip(by, values))
            if not (runs := self.where(**chosen)).rows:
                continue
            finite = [value for value in runs.figures(figure) if math.isfinite(value)]
            low, high = runs.spread(figure)
            rows.append(chosen | {
                f"mean {figure}": f"{statistics.fmean(finite):.3g}" if finite else "diverged",
                "smallest to largest": f"{low:.3g} to {high:.3g}" if finite else "",
                "runs": len(runs), "diverged": len(runs.diverged),
            })
        return table(rows)

    def heat(self, figure: str, x: str, y: str, title: str | None = None) -> Picture:
        """Draw the mean of `figure` by two settings as a heat map: crosses where runs diverged, gaps where none ran.

        The title is `figure` unless one is given.
        """
        from .. import plots  # here, so that a sweep needs nothing that draws

        xs, ys = self.values(x), self.values(y)
        cells = [[self.where(**{x: a, y: b}) for a in xs] for b in ys]
        means = [[runs.mean(figure) if runs.rows else None for runs in row] for row in cells]
        return plots.heat(means, xs, ys, x, y, title or figure)

    def figures(self, figure: str) -> list[float]:
        """Return `figure` of every run, in order; NaN where a run diverged before it had one."""
        expect(isinstance(figure, str), "figure", figure, "the name of one")
        known = dict.fromkeys(name for row in self.rows for name in row)
        if self.rows and figure not in known and len(self.diverged) < len(self.rows):
            raise LabError(f"These runs have no figure {figure!r}. Use one of: {', '.join(known)}.")
        return [row.get(figure, math.nan) for row in self.rows]

    def apart(self, setting: str) -> Runs:
        """Return a row for each value of `setting` that a run tried at once, with figures named "loss, lr=0.1".

        A row is marked diverged by its own figures alone.
        """
        rows, mark = [], f", {setting}="
        for row in self.rows:
            kept = {name: value for name, value in row.items() if mark not in name}
            tried: dict[float, dict[str, float]] = {}
            for name, value in row.items():
                if mark in name:
                    figure, _, at = name.partition(mark)
                    tried.setdefault(float(at), {})[figure] = value
            rows += [kept | {setting: at} | found | {"status": "ok" if all(map(math.isfinite, found.values()))
                                                     else "diverged"} for at, found in tried.items()]
        return Runs(rows)

    def _check(self, names) -> None:
        known = dict.fromkeys(name for row in self.rows for name in row)
        for name in names:
            expect(isinstance(name, str), "A setting", name, 'names one by one, such as table("loss", "alpha", "lr")')
            if self.rows and name not in known:
                raise LabError(f"These runs have no setting {name!r}. Use one of: {', '.join(known)}.")
