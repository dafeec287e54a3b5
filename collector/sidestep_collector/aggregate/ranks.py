"""Ranks of a step as one value, for metrics of which an epoch says something else than the mean of what ranks said.

The mean over an epoch of sums, largest values or norms of parts does not follow from the ranks' own means. So their
values are kept until the epoch has ended, and then put together step by step, where every rank that has the metric in
the epoch has a value of the step. Of a sum whose ranks never speak of the same step the mean still follows (it is the
sum of the ranks' means); all else that is not known is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.aggregate.moments import Floats, Integers, moments
from sidestep_collector.blocks import KeySet
from sidestep_schemas import catalog
from sidestep_schemas.reductions import L2, MAX, MEAN, RMS, SUM, Reduction, parsed

#: Values of one stream and epoch that are kept: 32 MB with their steps. Beyond, the epoch's numbers are unknown.
VALUES_MAX: Final = 1 << 21

Statistics = Mapping[str, float | int | None]


class _Series(NamedTuple):
    """Values of a metric on one rank, by rising step."""

    steps: Integers
    values: Floats


class Kept:
    """What is kept of one stream and epoch.

    Attributes:
        is_whole: whether nothing of it is missing.
    """

    __slots__ = ("_parts", "_size", "is_whole", "reductions")

    def __init__(self) -> None:
        self.is_whole = True
        self.reductions: dict[str, Reduction] = {}
        self._parts: dict[str, list[_Series]] = {}
        self._size = 0

    def add(self, key_set: KeySet, steps: Integers, values: NDArray[np.floating[Any]], *, are_several: bool) -> None:
        """Take records in the order of their seq.

        Args:
            key_set: their names.
            steps: shape (records,).
            values: shape (records, names).
            are_several: whether the run is known to have several ranks. While it is not, nothing is kept.
        """
        columns = _columns(key_set.names, key_set.reductions)
        if not columns:
            return
        self.reductions.update((tag, reduction) for _, tag, reduction in columns if reduction is not None)
        self._size += len(steps) * len(columns)
        if not are_several or self._size > VALUES_MAX:
            self.is_whole = False
            self._parts.clear()
        if self.is_whole:
            for column, tag, _ in columns:
                self._parts.setdefault(tag, []).append(_Series(steps, values[:, column].astype(np.float64)))

    def restore(self, tag: str, said: str, steps: Integers, values: Floats) -> None:
        """Take what was stored of a metric."""
        reduction = parsed(said)
        if reduction != Reduction(MEAN):
            self.reductions[tag] = reduction
        self._parts.setdefault(tag, []).append(_Series(steps, values))

    def series(self, tag: str) -> _Series | None:
        """The values of a metric; of several of one step the last."""
        parts = self._parts.get(tag)
        if not parts:
            return None
        steps = np.concatenate([part.steps for part in parts])
        values = np.concatenate([part.values for part in parts])
        known, last = np.unique(steps[::-1], return_index=True)
        return _Series(known, values[::-1][last])


def combined(ranks: Sequence[Kept]) -> dict[str, Statistics]:
    """Statistics of the metrics whose ranks do not combine by their plain mean.

    Args:
        ranks: what is kept of an epoch of each rank, lowest rank first.
    """
    reductions = {tag: reduction for kept in reversed(ranks) for tag, reduction in kept.reductions.items()}
    if not all(kept.is_whole for kept in ranks):
        return dict.fromkeys(reductions, _UNKNOWN)
    return {tag: _statistics(ranks, tag, reduction) for tag, reduction in reductions.items()}


def combine(rule: str, values: Floats, weights: Floats | None = None) -> Floats:
    """One value a step.

    Args:
        rule: of `sidestep_schemas.reductions`.
        values: shape (ranks, steps). What is not finite makes sums and norms so, and is left out of means and maxima.
        weights: of the same shape, for a weighted mean or "rms".

    Returns:
        Shape (steps,).
    """
    with np.errstate(all="ignore"):
        if rule == SUM:
            return values.sum(axis=0)
        if rule == MAX:
            finite = np.where(np.isfinite(values), values, -np.inf).max(axis=0)
            return np.where(np.isfinite(finite), finite, values[0])
        if rule == L2:
            return np.sqrt((values**2).sum(axis=0))
        weighs = np.ones_like(values) if weights is None else weights
        if rule == RMS:
            total = (weighs**2).sum(axis=0)
            whole = ((weighs * values) ** 2).sum(axis=0)
            return np.sqrt(np.where(total == 0, (values**2).max(axis=0), whole / total))
        counts = np.isfinite(values) & np.isfinite(weighs)
        total = np.where(counts, weighs, 0.0).sum(axis=0)
        whole = np.where(counts, weighs * values, 0.0).sum(axis=0)
        return np.where(counts.any(axis=0), whole / np.where(total == 0, 1.0, total), values[0])


_UNKNOWN: Final[Statistics] = {
    **dict.fromkeys(("mean", "std", "min", "max", "last")),
    **dict.fromkeys(("n", "n_nonfinite"), 0),
}


def _statistics(ranks: Sequence[Kept], tag: str, reduction: Reduction) -> Statistics:
    found = [(kept, series) for kept in ranks if (series := kept.series(tag)) is not None]
    common = found[0][1].steps
    for _, series in found[1:]:
        common = np.intersect1d(common, series.steps, assume_unique=True)
    weights = None
    if reduction.weight:
        weighing = [kept.series(reduction.weight) for kept, _ in found]
        if any(series is None or not np.isin(common, series.steps).all() for series in weighing):
            return _UNKNOWN
        weights = np.stack([_at(common, series) for series in weighing if series is not None])
    if not len(common):
        return _sum_of_means([series.values for _, series in found]) if reduction.rule == SUM else _UNKNOWN
    values = combine(reduction.rule, np.stack([_at(common, series) for _, series in found]), weights)
    of_all = moments(values[:, None])
    n, n_nonfinite = int(of_all.n[0]), int(of_all.n_nonfinite[0])
    std = np.sqrt(of_all.m2[0] / (n - 1)) if n > 1 else np.nan
    numbers = (of_all.mean[0], std, of_all.vmin[0], of_all.vmax[0], values[-1])
    mean, deviation, least, greatest, last = (_or_none(number) for number in numbers)
    return {
        "mean": mean,
        "std": deviation,
        "min": least,
        "max": greatest,
        "last": last,
        "n": n,
        "n_nonfinite": n_nonfinite,
    }


def _sum_of_means(ranks: Sequence[Floats]) -> Statistics:
    with np.errstate(all="ignore"):
        mean = _or_none(sum(float(values.mean()) for values in ranks))
    last = _or_none(sum(float(values[-1]) for values in ranks))
    return {**_UNKNOWN, "mean": mean, "last": last, "n": min(len(values) for values in ranks)}


def _at(steps: Integers, series: _Series) -> Floats:
    return series.values[np.searchsorted(series.steps, steps)]


def _or_none(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


@lru_cache(maxsize=4096)
def _columns(names: tuple[str, ...], said: tuple[str, ...]) -> tuple[tuple[int, str, Reduction | None], ...]:
    """Columns that are kept, with how they combine; None of one that is kept because it weighs another alone."""
    reductions = [_reduction(name, said[column] if said else "") for column, name in enumerate(names)]
    special = {name: one for name, one in zip(names, reductions, strict=True) if one != Reduction(MEAN)}
    wanted = special.keys() | {one.weight for one in special.values()}
    return tuple((column, name, special.get(name)) for column, name in enumerate(names) if name in wanted)


def _reduction(name: str, said: str) -> Reduction:
    return parsed(said or catalog.reduction_of(name))


def kept_tags(key_set: KeySet) -> tuple[str, ...]:
    """Metrics of a key set whose values are kept."""
    return tuple(tag for _, tag, _ in _columns(key_set.names, key_set.reductions))
