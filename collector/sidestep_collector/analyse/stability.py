"""Stability of the loss over its last 100 values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.analyse.protocol import Analyser, Floats, Integers, Span, Values

LOSSES: Final = ("train/loss_total", "train/loss", "train/loss/total")
WINDOW: Final = 100
#: One value for so many records, beginning with this one.
EVERY: Final = 10
#: Blocks of a window whose means a trend is fitted to.
BLOCKS: Final = 20
#: Windows that are computed at once: 64 of 100 values or 190 slopes stay in a cache.
_AT_ONCE: Final = 64


class Found(NamedTuple):
    """Shape (windows,) each."""

    smoothness: Floats
    slope: Floats
    spike_ratio: Floats


def smoothness(values: Floats) -> float:
    """Standard deviation of the differences over that of the values, both of the population: √2 for white noise, near
    0 for a smooth curve; 0 where all values are equal.

    Args:
        values: shape (n,), n >= 2, finite.
    """
    deviation = float(np.std(values))
    return float(np.std(np.diff(values))) / deviation if deviation > 0 else 0.0


def trend_slope(values: Floats, steps: Floats) -> float:
    """Slope per step over block means: the median of the slopes of all pairs (Theil 1950, Sen 1968) of the means of at
    most 20 blocks of neighbours. So 100 values have 190 pairs instead of 4950: a backlog of a million values took 0.5 s
    with those, and takes 0.01 s. NaN where all steps are equal.

    Args:
        values: shape (n,), finite, n >= 2.
        steps: shape (n,).
    """
    parts = min(BLOCKS, len(values))
    starts = np.arange(parts) * len(values) // parts
    counts = np.diff(starts, append=len(values))
    y, x = np.add.reduceat(values, starts) / counts, np.add.reduceat(steps, starts) / counts
    left, right = np.triu_indices(parts, 1)
    run = x[right] - x[left]
    moved = run != 0
    slopes = (y[right] - y[left])[moved] / run[moved]
    return float(np.median(slopes)) if len(slopes) else np.nan


def spike_ratio(values: Floats, last: float) -> float:
    """`last` over the median of the values; NaN where that is 0."""
    median = float(np.median(values))
    return last / median if median else np.nan


def stability(values: Floats, steps: Floats, ends: Integers) -> Found:
    """All three for windows of the last 100 values up to each of `ends`; values that are not finite are left out.

    Args:
        values: shape (n,).
        steps: shape (n,), finite.
        ends: positions in them, shape (windows,).
    """
    plain = _plain(values, ends)
    result = np.empty((3, len(ends)))
    for column in np.flatnonzero(~plain):
        result[:, column] = _window(values, steps, int(ends[column]))
    full = np.flatnonzero(plain)
    for at in range(0, len(full), _AT_ONCE):
        columns = full[at : at + _AT_ONCE]
        result[:, columns] = _windows(values, steps, ends[columns])
    return Found(*result)


def _plain(values: Floats, ends: Integers) -> NDArray[np.bool_]:
    """Which windows are full and all finite: those that are computed together."""
    bad = np.concatenate([[0], np.cumsum(~np.isfinite(values))])
    return (ends >= WINDOW - 1) & (bad[ends + 1] == bad[np.maximum(ends + 1 - WINDOW, 0)])


def _window(values: Floats, steps: Floats, end: int) -> tuple[float, float, float]:
    window, at = values[max(0, end - WINDOW + 1) : end + 1], steps[max(0, end - WINDOW + 1) : end + 1]
    finite = np.isfinite(window)
    if finite.sum() < 2:
        return np.nan, np.nan, np.nan
    window, at, last = window[finite], at[finite], float(window[-1])
    return smoothness(window), trend_slope(window, at), spike_ratio(window, last)


def _windows(values: Floats, steps: Floats, ends: Integers) -> Floats:
    """`_window` for full, finite windows at once; shape (3, windows)."""
    rows = ends[:, None] + np.arange(1 - WINDOW, 1)
    window, at = values[rows], steps[rows]
    with np.errstate(all="ignore"):
        deviation = window.std(axis=1)
        smooth = np.where(deviation > 0, np.diff(window, axis=1).std(axis=1) / deviation, 0.0)
        median = np.median(window, axis=1)
        spike = np.where(median != 0, window[:, -1] / median, np.nan)
        y, x = (part.reshape(len(ends), BLOCKS, -1).mean(axis=2) for part in (window, at))
        run = x[:, _RIGHT] - x[:, _LEFT]
        slopes = (y[:, _RIGHT] - y[:, _LEFT]) / run
    if (run != 0).all():
        slope = np.median(slopes, axis=1, overwrite_input=True)
    else:
        slope = np.array([trend_slope(*pair) for pair in zip(window, at, strict=True)])
    return np.stack([smooth, slope, spike])


_LEFT, _RIGHT = np.triu_indices(BLOCKS, 1)


class Stability(Analyser):
    """`train/stability/...` at each tenth value of the first loss that the run logs."""

    name = "stability"
    reads = LOSSES
    gives = tuple(f"train/stability/{what}" for what in ("loss_smoothness", "loss_trend_slope", "loss_spike_ratio"))
    memory = WINDOW

    def add(self, span: Span) -> Iterator[Values]:
        """See `Analyser`."""
        series = next(iter(span.series.values()))
        number = series.first + np.arange(series.fresh, len(series.seq)) + 1
        ends = series.fresh + np.flatnonzero(number % EVERY == 0)
        if len(ends):
            found = stability(series.values, series.step.astype(np.float64), ends)
            yield Values.along(series, ends, dict(zip(self.gives, found, strict=True)))
