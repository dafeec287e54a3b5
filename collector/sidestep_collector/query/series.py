"""Series of many runs at once, by the time that laws of training speak of: epochs done.

A record says which epoch it belongs to, but rarely how far into it; how many steps an epoch has is known once two
epochs were seen. So a step's time is n = (step + 1) / steps of an epoch, whatever the epochs are numbered from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import duckdb
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Steps of an epoch, by run: the median over its epochs; of several the last, which may be cut off, is left out.
_STEPS = """
with epochs_of as (
    select run, floor(epoch) as epoch, max(step) - min(step) + 1 as steps, count(*) over (partition by run) as epochs,
        row_number() over (partition by run order by floor(epoch) desc) as back
    from snapshots where rank = 0 and step >= 0 and epoch is not null and tier = 'step' and list_contains($runs, run)
    group by run, floor(epoch)
)
select run, median(steps) as steps from epochs_of where epochs = 1 or back > 1 group by run"""
_POINTS = """
select run, step, value from points_current
where rank = 0 and step >= 0 and metric = $metric and list_contains($runs, run) order by run, step"""

#: Variance of log n inside of a stretch from which on two cumulants no longer say what the mean of a power law is.
_SPREAD_MAX: Final = 0.1


@dataclass(frozen=True, slots=True)
class Series:
    """A metric of a run.

    Attributes:
        n: epochs done, float64 (points,), rising; steps where the run told of no epochs.
        values: float64 (points,).
        in_epochs: whether n counts epochs.
        cumulants: of means over stretches, variance and third cumulant of log n inside of each, float64 (2, points);
            None of values as they were logged.
    """

    n: Floats
    values: Floats
    in_epochs: bool
    cumulants: Floats | None = None

    def averaged(self, width: float) -> Series:
        """Means over successive stretches of `width` of n; NaN and infinities are left out.

        A mean stands at the geometric mean of its times; how they spread around it goes with it, as the mean of a
        power law is not its value there. A stretch over which log n runs too far for that is left out: the first.
        """
        known = np.isfinite(self.values)
        n, values = self.n[known], self.values[known]
        if len(n) == 0 or width <= 0:
            return Series(n, values, self.in_epochs)
        # a step at exactly the end of a stretch belongs to it
        stretch = np.ceil(n / width - 1e-9)
        starts = np.flatnonzero(np.concatenate([[True], stretch[1:] != stretch[:-1]]))
        counts = np.diff(np.append(starts, len(n)))
        logarithm = np.log(n)
        centre = np.add.reduceat(logarithm, starts) / counts
        off = logarithm - np.repeat(centre, counts)
        cumulants = np.stack([np.add.reduceat(off**power, starts) / counts for power in (2, 3)])
        means = np.add.reduceat(values, starts) / counts
        told = cumulants[0] < _SPREAD_MAX
        return Series(np.exp(centre[told]), means[told], self.in_epochs, cumulants[:, told])


def read_series(
    connection: duckdb.DuckDBPyConnection, runs: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, Series]]:
    """Series of metrics over runs: metric -> run -> series. Of rank 0, the latest attempt of each step."""
    steps = _steps_of_epochs(connection, runs)
    return {metric: dict(_series(connection, runs, metric, steps)) for metric in metrics}


def _steps_of_epochs(connection: duckdb.DuckDBPyConnection, runs: Sequence[str]) -> Mapping[str, float]:
    rows: list[tuple[str, Any]] = connection.execute(_STEPS, {"runs": list(runs)}).fetchall()
    return {run: float(steps) for run, steps in rows}


def _series(
    connection: duckdb.DuckDBPyConnection, runs: Sequence[str], metric: str, steps: Mapping[str, float]
) -> Iterator[tuple[str, Series]]:
    columns = connection.execute(_POINTS, {"runs": list(runs), "metric": metric}).fetchnumpy()
    run, step = np.asarray(columns["run"]), np.asarray(columns["step"], dtype=np.float64)
    values = np.ma.filled(np.ma.asarray(columns["value"], dtype=np.float64), np.nan)
    if len(run) == 0:
        return
    edges = np.concatenate([[0], np.flatnonzero(run[1:] != run[:-1]) + 1, [len(run)]])
    for first, last in pairwise(edges.tolist()):
        name = str(run[first])
        epoch = steps.get(name)
        yield name, Series((step[first:last] + 1) / (epoch or 1.0), values[first:last], epoch is not None)
