"""A run by its epochs: aggregates over ranks, the latest attempt of each; by parts where it told of no epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Parts that a run without epochs is cut into.
_PARTS: Final = 20
_EPOCHS: Final = """
with latest as (
    select *, row_number() over (partition by metric, rank, epoch order by attempt desc) as back
    from epochs where run = $run
)
select metric, epoch, sum(n)::DOUBLE as n, sum(n_nonfinite)::DOUBLE as n_nonfinite,
    sum(mean * n) / nullif(sum(n), 0) as mean,
    min(vmin) as vmin, max(vmax) as vmax, arg_min(vfirst, rank) as vfirst, arg_min(vlast, rank) as vlast
from latest where back = 1 group by metric, epoch order by metric, epoch"""
_STEPS: Final = """
with reached as (select greatest(max(step) + 1, 1) as steps from points_current where run = $run)
select metric, floor($parts * step / steps) as epoch, count(*) filter (isfinite(value))::DOUBLE as n,
    count(*) filter (not isfinite(value))::DOUBLE as n_nonfinite, avg(value) filter (isfinite(value)) as mean,
    min(value) filter (isfinite(value)) as vmin, max(value) filter (isfinite(value)) as vmax,
    arg_min(value, step) as vfirst, arg_max(value, step) as vlast
from points_current, reached where run = $run and rank = 0 and step >= 0 group by all order by metric, epoch"""
_COLUMNS: Final = ("epoch", "n", "n_nonfinite", "mean", "vmin", "vmax", "vfirst", "vlast")


@dataclass(frozen=True, slots=True)
class ByEpoch:
    """A metric by epoch; all arrays float64 of shape (epochs,), NaN where an epoch has no finite value.

    Attributes:
        epoch: numbers of the epochs, as the run counts, rising.
        n: finite values in each; n_nonfinite: the others.
        mean, least, greatest, first, last: of the epoch's values.
    """

    epoch: Floats
    n: Floats
    n_nonfinite: Floats
    mean: Floats
    least: Floats
    greatest: Floats
    first: Floats
    last: Floats

    def __len__(self) -> int:
        return len(self.epoch)


@dataclass(frozen=True, slots=True)
class Epochs:
    """All metrics of a run by epoch. `is_by_parts` says that the run told of no epochs: it was cut into parts."""

    metrics: Mapping[str, ByEpoch]
    is_by_parts: bool

    def first_of(self, tags: Sequence[str]) -> tuple[str, ByEpoch] | None:
        """The first of some tags that the run has, with its values."""
        return next(((tag, self.metrics[tag]) for tag in tags if tag in self.metrics), None)


def read_epochs(connection: duckdb.DuckDBPyConnection, run: str) -> Epochs:
    """A run by its epochs, running or ended."""
    metrics = _grouped(connection.execute(_EPOCHS, {"run": run}).fetchnumpy())
    if metrics:
        return Epochs(metrics, is_by_parts=False)
    cut = connection.execute(_STEPS, {"run": run, "parts": _PARTS}).fetchnumpy()
    return Epochs(_grouped(cut), is_by_parts=True)


def _grouped(columns: Mapping[str, Any]) -> dict[str, ByEpoch]:
    names = np.asarray(columns["metric"])
    if len(names) == 0:
        return {}
    values = [np.ma.filled(np.ma.asarray(columns[name], dtype=np.float64), np.nan) for name in _COLUMNS]
    starts = np.concatenate([[0], np.flatnonzero(names[1:] != names[:-1]) + 1])
    ends = np.append(starts[1:], len(names))
    return {
        str(names[start]): ByEpoch(*(column[start:end] for column in values))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    }
