"""The clock of a stream: which of its epochs have ended, told once each.

An epoch ends by the event that says so, by the begin of another, by a record of a later one, or with the stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.analyse.protocol import EpochEnd
from sidestep_collector.blocks import Event, Moment, Stream

#: Beyond it, float64 does not hold every integer: no epoch of anybody.
EPOCH_LIMIT: Final = 2.0**53
#: Events that a clock goes by.
SIGNALS: Final = frozenset({"epoch_begin", "epoch_end", "end"})

Records = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


class EpochClock:
    """Tells the ends of a stream's epochs; what it says does not depend on how the stream was cut."""

    __slots__ = ("_current", "_done", "_last", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._current: int | None = None
        self._done: int | None = None
        self._last: Moment | None = None

    def add(self, parts: list[Records], events: Iterable[Event]) -> list[EpochEnd]:
        """Take new records (seq, t_ns, step, epoch, each of shape (n,)) and events; the epochs that ended."""
        records = _known(parts)
        ended: list[EpochEnd] = []
        start = 0
        for event in sorted(events, key=lambda event: event.at.seq):
            stop = int(np.searchsorted(records[0], event.at.seq))
            ended += self._records(*(column[start:stop] for column in records))
            start = stop
            ended += self._event(event)
        return [*ended, *self._records(*(column[start:] for column in records))]

    def _records(self, *columns: NDArray[Any]) -> list[EpochEnd]:
        seq, t_ns, step, epoch = columns
        if not len(seq):
            return []
        whole = np.floor(epoch)
        reached = np.maximum.accumulate(whole)
        if self._current is not None:
            reached = np.maximum(reached, self._current)
        turns = np.flatnonzero(np.diff(reached)) + 1
        ended: list[EpochEnd] = []
        for start, stop in zip([0, *turns], [*turns, len(seq)], strict=True):
            number = int(reached[start])
            if number != self._current:
                ended += self._finish()
                self._current = number
            of_it = start + np.flatnonzero(whole[start:stop] == number)
            if len(of_it):
                row = int(of_it[-1])
                at = (int(seq[row]), int(t_ns[row]), int(step[row]), float(epoch[row]))
                self._last = Moment(self._stream, *at)
        return ended

    def _event(self, event: Event) -> Iterator[EpochEnd]:
        if event.event == "end":
            yield from self._finish()
            return
        said: Any = event.details.get("epoch")
        epoch = said if isinstance(said, (int, float)) else event.at.epoch
        if not abs(epoch) < EPOCH_LIMIT:
            return
        number = math.floor(epoch)
        if event.event == "epoch_begin":
            if number != self._current:
                yield from self._finish()
            self._current, self._done = number, None if self._done is None or number <= self._done else self._done
        elif self._done is None or number > self._done:
            self._current = self._done = number
            self._last = None
            yield EpochEnd(number, event.at)

    def _finish(self) -> Iterator[EpochEnd]:
        """The current epoch ends where its last record was, unless it ended already."""
        current, last = self._current, self._last
        self._current = self._last = None
        if current is not None and last is not None and (self._done is None or current > self._done):
            self._done = current
            yield EpochEnd(current, last)


def _known(parts: list[Records]) -> Records:
    """Records of epochs, in the order of their seq."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    if len(parts) == 1:
        seq, t_ns, step, epoch = parts[0]
        order: Any = slice(None)
    else:
        seq, t_ns, step, epoch = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(seq, kind="stable")
    known = np.abs(epoch[order]) < EPOCH_LIMIT  # false for NaN
    return seq[order][known], t_ns[order][known], step[order][known], epoch[order][known]
