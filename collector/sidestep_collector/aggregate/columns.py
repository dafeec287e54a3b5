"""Columns: moments of a set of metrics with their first and last values, of one stream and epoch.

A `Tally` gathers the columns of one key set. Blocks wait in it as references until there is work enough for
numpy, since a stream may bring a hundred blocks of one record between two flushes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.aggregate.moments import (
    Floats,
    Integers,
    Moments,
    concatenate_moments,
    merge_moments,
    moments,
    pick_moments,
)

#: Elements that wait in a tally before they are counted without being asked.
WAITING_ELEMENTS_MAX: Final = 1 << 18
#: Parts of a total that wait to be merged at once.
PARTS_MAX: Final = 32


class Columns(NamedTuple):
    """Aggregates of k metrics over some records; every array has shape (k,).

    `vfirst` and `vlast` are the first and last value, finite or not, of the records `first_seq`, `last_seq`.
    """

    moments: Moments
    vfirst: Floats
    vlast: Floats
    first_seq: Integers
    last_seq: Integers


def pick(columns: Columns, index: slice) -> Columns:
    """Some of the metrics."""
    return Columns(
        pick_moments(columns.moments, index),
        columns.vfirst[index],
        columns.vlast[index],
        columns.first_seq[index],
        columns.last_seq[index],
    )


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Metrics side by side; one part at least."""
    return Columns(
        concatenate_moments([part.moments for part in parts]),
        np.concatenate([part.vfirst for part in parts]),
        np.concatenate([part.vlast for part in parts]),
        np.concatenate([part.first_seq for part in parts]),
        np.concatenate([part.last_seq for part in parts]),
    )


def merge_columns(parts: Sequence[Columns], *, by_seq: bool = True) -> Columns:
    """The union of parts that have the same metrics.

    Args:
        parts: one at least.
        by_seq: whether the seqs of the parts compare, because they are of one stream. Else the first and
            last values are those of the first part.
    """
    if len(parts) == 1:
        return parts[0]
    merged = merge_moments([part.moments for part in parts])
    if not by_seq:
        return parts[0]._replace(moments=merged)
    across = np.arange(len(parts[0].vfirst))
    first_seq = np.stack([part.first_seq for part in parts])
    last_seq = np.stack([part.last_seq for part in parts])
    first, last = first_seq.argmin(axis=0), last_seq.argmax(axis=0)
    return Columns(
        merged,
        np.stack([part.vfirst for part in parts])[first, across],
        np.stack([part.vlast for part in parts])[last, across],
        first_seq[first, across],
        last_seq[last, across],
    )


class Tally:
    """Columns of one key set, of one stream and epoch: what is new since the last take, and all of it."""

    __slots__ = ("_delta", "_elements", "_first_seq", "_last_seq", "_total", "_waiting", "names")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._waiting: list[NDArray[np.floating[Any]]] = []
        self._elements = 0
        self._first_seq = self._last_seq = 0
        self._delta: list[Columns] = []
        self._total: list[Columns] = []

    def add(self, values: NDArray[np.floating[Any]], first_seq: int, last_seq: int) -> None:
        """Take records in the order of their seq.

        Args:
            values: shape (records, k), one record at least.
            first_seq: seq of the first of them.
            last_seq: seq of the last of them.
        """
        if not self._waiting:
            self._first_seq = first_seq
        self._last_seq = last_seq
        self._waiting.append(values)
        self._elements += values.size
        if self._elements >= WAITING_ELEMENTS_MAX:
            self._count()

    def restore(self, columns: Columns) -> None:
        """Take what was counted and stored before."""
        self._total.append(columns)

    def take(self) -> Columns | None:
        """What was added since the last take, None where that is nothing; it is part of the total then."""
        self._count()
        if not self._delta:
            return None
        delta = merge_columns(self._delta)
        self._delta = []
        self._total.append(delta)
        if len(self._total) > PARTS_MAX:
            self._total = [merge_columns(self._total)]
        return delta

    def total(self) -> Columns | None:
        """All that was taken or restored."""
        if not self._total:
            return None
        if len(self._total) > 1:
            self._total = [merge_columns(self._total)]
        return self._total[0]

    def _count(self) -> None:
        if not self._waiting:
            return
        first, last = self._waiting[0][0], self._waiting[-1][-1]
        small = len(self._waiting) > 1 and self._elements < 2 * WAITING_ELEMENTS_MAX
        parts = [np.concatenate(self._waiting)] if small else self._waiting
        width = len(self.names)
        self._delta.append(
            Columns(
                merge_moments([moments(part) for part in parts]),
                first.astype(np.float64),
                last.astype(np.float64),
                np.full(width, self._first_seq, np.int64),
                np.full(width, self._last_seq, np.int64),
            )
        )
        self._waiting = []
        self._elements = 0
