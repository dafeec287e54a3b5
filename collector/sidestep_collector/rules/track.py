"""How long something lasts: the last observations of what a rule reads of one stream, column by column.

A column fires when so many of its last observations were hits, and clears when so many were safe. All columns of a
track are seen together, so one that stays quiet costs its share of a few array operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.rules.judge import HIT, SAFE, Codes, Floats, Judged

#: Observations that are shown as evidence, at least.
KEPT_MIN: Final = 16


class Observed(NamedTuple):
    """The last observations of a column, oldest first."""

    steps: NDArray[np.int64]
    times: NDArray[np.int64]
    values: Floats
    codes: Codes


class Turn(NamedTuple):
    """Something that a column did: `row` counts observations of the call, `hits` those since it fired, or was called.

    `last` is the row of the last of these hits, -1 where there was none; `worse` whether one was worse.
    """

    what: Literal["fire", "clear", "go on"]
    row: int
    hits: int
    last: int
    worse: bool


class Track:
    """The last observations of some columns.

    Args:
        columns: how many.
        held: so many of the last so many.
    """

    def __init__(self, columns: int, held: tuple[int, int]) -> None:
        self._count, self._window = held
        self._kept = max(KEPT_MIN, self._window)
        self.firing = np.zeros(columns, dtype=bool)
        self.last = Observed(
            np.empty(0, dtype=np.int64),
            np.empty(0, dtype=np.int64),
            np.empty((0, columns)),
            np.empty((0, columns), dtype=np.int8),
        )
        self.seen = self.last
        self.is_quiet = True
        self._added = 0

    @property
    def kept(self) -> int:
        """How many observations it remembers."""
        return self._kept

    def restore(self, column: int, observed: Observed, *, firing: bool) -> None:
        """Set what was stored of a column; before the first call."""
        missing = len(observed.steps) - len(self.last.steps)
        if missing > 0:
            columns = len(self.firing)
            values = np.concatenate([np.full((missing, columns), np.nan), self.last.values])
            codes = np.concatenate([np.zeros((missing, columns), dtype=np.int8), self.last.codes])
            self.last = Observed(observed.steps, observed.times, values, codes)
        if len(observed.steps):
            self.last.values[-len(observed.steps) :, column] = observed.values
            self.last.codes[-len(observed.steps) :, column] = observed.codes
        self.firing[column] = firing
        self.is_quiet = False

    def replace(self, steps: NDArray[np.int64], times: NDArray[np.int64], judged: Judged) -> None:
        """Take observations that are as many as are remembered, with no hit in them, of a track that is quiet."""
        self.last = Observed(steps, times.copy(), judged.values, judged.codes)  # a view would keep its whole block

    def advance(
        self, steps: NDArray[np.int64], times: NDArray[np.int64], judged: Judged
    ) -> Iterator[tuple[int, list[Turn]]]:
        """Take observations; gives each column that is or was busy with what it did.

        Args:
            steps: steps of the records, shape (records,).
            times: when they were taken, in nanoseconds, of the same shape.
            judged: shape (records, columns).
        """
        before, self._added = len(self.last.steps), len(steps)
        self.seen = Observed(
            np.concatenate([self.last.steps, steps]),
            np.concatenate([self.last.times, times]),
            np.concatenate([self.last.values, judged.values]),
            np.concatenate([self.last.codes, judged.codes]),
        )
        recent = self.seen.codes[max(0, before - self._window) :]
        busy = np.flatnonzero(self.firing | (recent == HIT).any(axis=0))
        steps, times, values, codes = self.seen
        kept = slice(-self._kept, None)
        self.last = Observed(steps[kept].copy(), times[kept].copy(), values[kept].copy(), codes[kept].copy())
        self.is_quiet = not len(busy)
        for column in busy.tolist():
            yield column, list(self._turns(column, before, judged.worse[:, column]))

    def is_pending(self, column: int) -> bool:
        """Whether hits of a column may yet make it fire."""
        return bool((self.last.codes[max(0, len(self.last.codes) - self._window + 1) :, column] == HIT).any())

    def column(self, column: int, end: int | None = None) -> Observed:
        """The last observations of a column, up to a row of the last call (default its end)."""
        if end is None:
            return Observed(self.last.steps, self.last.times, self.last.values[:, column], self.last.codes[:, column])
        stop = len(self.seen.steps) - self._added + end + 1
        rows = slice(max(0, stop - self._kept), stop)
        return Observed(
            self.seen.steps[rows], self.seen.times[rows], self.seen.values[rows, column], self.seen.codes[rows, column]
        )

    def _turns(self, column: int, before: int, worse: NDArray[np.bool_]) -> Iterator[Turn]:
        codes = self.seen.codes[:, column]
        is_fire = _rolling(codes == HIT, self._window)[before:] >= self._count
        is_clear = (_rolling(codes == SAFE, self._window)[before:] >= self._count) & ~is_fire
        fires, clears = np.flatnonzero(is_fire), np.flatnonzero(is_clear)
        hits = np.flatnonzero(codes[before:] == HIT)
        at, end = 0, len(codes) - before
        while at < end:
            if not self.firing[column]:
                at = _next(fires, at, end)
                if at == end:
                    return
                self.firing[column] = True
                yield Turn("fire", at, 0, at, bool(worse[at]))
            until = _next(clears, at, end)
            during = hits[np.searchsorted(hits, at) : np.searchsorted(hits, until)]
            if len(during):
                yield Turn("go on", at, len(during), int(during[-1]), bool(worse[at:until].any()))
            at = until
            if until < end:
                self.firing[column] = False
                yield Turn("clear", until, 0, -1, worse=False)


def _next(rows: NDArray[np.intp], at: int, end: int) -> int:
    """The first of ascending rows from `at` on, else `end`."""
    index = int(np.searchsorted(rows, at))
    return int(rows[index]) if index < len(rows) else end


def _rolling(flags: NDArray[np.bool_], window: int) -> NDArray[np.int64]:
    """How many of the last `window` flags are set, at each."""
    total = np.concatenate([[0], np.cumsum(flags)])
    rows = np.arange(1, len(total))
    return total[rows] - total[np.maximum(rows - window, 0)]
