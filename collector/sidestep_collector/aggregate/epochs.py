"""The aggregator of epochs: blocks and events in, rows to store and summaries to publish out.

A record belongs to the epoch floor(its epoch); one without an epoch belongs to none. Each stream keeps its own
clock of epochs; a summary of a run puts its ranks together, for each rank the latest attempt that has data of
the epoch, and is made when all of them have ended it. A rank that is two epochs behind, or that is silent while
another has ended the run, is not waited for. What comes after that makes the summary anew.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.aggregate.clock import Clock, EpochState
from sidestep_collector.aggregate.columns import Columns, Tally
from sidestep_collector.aggregate.moments import Moments
from sidestep_collector.aggregate.summary import summarise
from sidestep_collector.blocks import EpochRows, EpochSummary, Event, Item, ScalarBlock, StoredValues, Stream

#: A number that is no epoch of anybody: floor() of it would leave the integers that float64 holds exactly.
EPOCH_LIMIT: Final = 2.0**53
#: How many epochs a rank may be behind one that has ended an epoch before it is no longer waited for.
STRAGGLE_EPOCHS: Final = 2
#: Starts of one rank whose epochs are kept; those of earlier ones count no more.
ATTEMPTS_KEPT: Final = 3


@dataclass(frozen=True, slots=True)
class RunHistory:
    """What a store knows of a run that goes on.

    Attributes:
        started_t_ns: time of its first start event, else of its first record; 0 for unknown.
        reached: for an epoch, its greatest step and the time of its last record.
        has_values: whether its stored values are handed over too.
    """

    run: str
    project: str
    started_t_ns: int
    reached: Mapping[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    has_values: bool = False


@dataclass(slots=True)
class _Run:
    project: str
    clocks: dict[bytes, Clock] = field(default_factory=dict[bytes, Clock])
    started_t_ns: int = 0
    first_t_ns: int = 0
    ranks: int = 1

    def has_later(self, stream: Stream) -> bool:
        """Whether the rank of a stream has started again since."""
        return any(
            clock.stream.rank == stream.rank and clock.stream.attempt > stream.attempt for clock in self.clocks.values()
        )

    def finish(self, over: Collection[Stream]) -> None:
        """End what is open of streams that are over, and of attempts whose rank has started again since."""
        for clock in self.clocks.values():
            if clock.stream in over or self.has_later(clock.stream):
                clock.finish()

    def settle(self) -> None:
        """Take all as told."""
        self.trim()
        for clock in self.clocks.values():
            for state in clock.epochs.values():
                state.dirty = False

    def trim(self) -> None:
        """Forget all but each rank's last attempts, and of these all but the last epochs; call when all was told."""
        attempts: dict[int, list[Clock]] = {}
        for clock in sorted(self.clocks.values(), key=lambda clock: clock.stream.attempt):
            attempts.setdefault(clock.stream.rank, []).append(clock)
            clock.trim()
        for clocks in attempts.values():
            for clock in clocks[:-ATTEMPTS_KEPT]:
                del self.clocks[clock.stream.key]


class _Part(NamedTuple):
    """Records of a block that are of one epoch; `rows` picks them."""

    epoch: int
    block: ScalarBlock
    rows: slice | NDArray[np.int64]


class EpochAggregator:
    """Aggregates of all streams by epoch."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._touched: dict[tuple[bytes, int], tuple[Stream, EpochState]] = {}
        self._news: dict[str, None] = {}

    def restore(
        self,
        rows: Iterable[EpochRows],
        runs: Iterable[RunHistory],
        events: Iterable[Event] = (),
        values: Iterable[StoredValues] = (),
        over: Collection[Stream] = (),
    ) -> list[EpochSummary]:
        """Resume after a restart, before anything is added.

        Args:
            rows: stored rows of the runs, in any order. The last epoch of a stream is taken to be open, so
                its summary is made again when it ends.
            runs: what is known of the runs.
            events: stored events of the runs in the order of their seq: with them, the time that the open
                epoch took is known, and which epochs have ended.
            values: of runs of several ranks, all that is stored of metrics that ranks combine otherwise than by their
                mean. Of a run whose history has none, such metrics of the restored epochs are unknown.
            over: streams that have ended, or were found dead: none of their epochs is open.

        Returns:
            Summaries of the epochs that had ended: they were told before.
        """
        histories = {history.run: history for history in runs}
        for history in histories.values():
            self._runs[history.run] = _Run(history.project, started_t_ns=history.started_t_ns)
        for row in sorted(rows, key=lambda row: row.epoch):
            state = self._clock(row.stream).record(row.epoch)
            history = histories.get(row.stream.run)
            state.global_step, state.last_t_ns = (history.reached if history else {}).get(row.epoch, (-1, 0))
            state.kept.is_whole = history is not None and history.has_values
            tally = state.tallies[-1 - len(state.tallies)] = Tally(row.names)
            found = Moments(row.n, row.n_nonfinite, row.vmin, row.vmax, row.mean, row.m2)
            tally.restore(Columns(found, row.vfirst, row.vlast, row.first_seq, row.last_seq))
        for stored in values:
            self._restore_values(stored)
        for event in events:
            self._event(event)
        for run in self._runs.values():
            run.finish(over)
        told = [summary for name, run in self._runs.items() for summary in _summaries(name, run)]
        for run in self._runs.values():
            run.settle()
        self._touched.clear()
        self._news.clear()
        return told

    def add(self, blocks: Sequence[ScalarBlock], items: Sequence[Item]) -> None:
        """Take what was decoded; blocks and items of a stream are put in the order of their seq."""
        signals: list[tuple[int, _Part | Event]] = []
        for block in blocks:
            if len(block.seq):
                self._note_start(block.stream, int(block.t_ns[0]))
                signals += [(_first_seq(part), part) for part in _parts(block)]
        signals += [(item.at.seq, item) for item in items if isinstance(item, Event)]
        signals.sort(key=itemgetter(0))
        for _, signal in signals:
            if isinstance(signal, _Part):
                self._part(signal)
            else:
                self._event(signal)

    def _restore_values(self, stored: StoredValues) -> None:
        run = self._runs.get(stored.run)
        for clock in run.clocks.values() if run is not None else ():
            state = clock.epochs.get(stored.epoch)
            if (clock.stream.rank, clock.stream.attempt) == (stored.rank, stored.attempt) and state is not None:
                state.kept.restore(stored.metric, stored.reduction, stored.steps, stored.values)

    def end(self, stream: Stream) -> None:
        """A stream is over without having said so (its process is gone): its open epoch ends."""
        self._clock(stream).finish()
        self._news[stream.run] = None

    def take(self) -> tuple[list[EpochRows], list[EpochSummary]]:
        """Rows of what was added since the last take, and summaries of the epochs that ended or changed since."""
        rows = [
            _rows(stream, state.epoch, tally.names, delta)
            for stream, state in self._touched.values()
            for tally in state.tallies.values()
            if (delta := tally.take()) is not None
        ]
        summaries = [summary for name in self._news for summary in _summaries(name, self._runs[name])]
        for name in self._news:
            self._runs[name].trim()
        self._touched.clear()
        self._news.clear()
        return rows, summaries

    def forget(self, run: str) -> None:
        """Drop a run that has ended; take first."""
        self._runs.pop(run, None)
        self._news.pop(run, None)
        self._touched = {key: value for key, value in self._touched.items() if value[0].run != run}

    def _clock(self, stream: Stream) -> Clock:
        run = self._runs.get(stream.run)
        if run is None:
            run = self._runs[stream.run] = _Run(stream.project)
        clock = run.clocks.get(stream.key)
        if clock is None:
            for other in run.clocks.values():
                if other.stream.rank == stream.rank and other.stream.attempt < stream.attempt:
                    other.finish()
            clock = run.clocks[stream.key] = Clock(stream)
            run.ranks = max(run.ranks, stream.rank + 1)
        return clock

    def _note_start(self, stream: Stream, t_ns: int) -> None:
        self._clock(stream)
        run = self._runs[stream.run]
        run.first_t_ns = min(run.first_t_ns or t_ns, t_ns)

    def _touch(self, stream: Stream, state: EpochState) -> None:
        self._touched[stream.key, state.epoch] = (stream, state)
        self._news[stream.run] = None

    def _part(self, part: _Part) -> None:
        block, rows = part.block, part.rows
        state = self._clock(block.stream).record(part.epoch)
        seq = block.seq[rows]
        tally = state.tallies.get(block.key_set.id)
        if tally is None:
            tally = state.tallies[block.key_set.id] = Tally(block.key_set.names)
        tally.add(block.values[rows], int(seq[0]), int(seq[-1]))
        are_several = self._runs[block.stream.run].ranks > 1
        state.kept.add(block.key_set, block.step[rows], block.values[rows], are_several=are_several)
        state.saw(int(block.step[rows].max()), int(block.t_ns[rows].max()))
        self._touch(block.stream, state)

    def _event(self, event: Event) -> None:
        at = event.at
        self._note_start(at.stream, at.t_ns)
        clock = self._clock(at.stream)
        if event.event == "start":
            run = self._runs[at.stream.run]
            run.started_t_ns = min(run.started_t_ns or at.t_ns, at.t_ns)
            said: Any = event.details.get("world_size")
            run.ranks = max(run.ranks, said if isinstance(said, int) else 1)
        elif event.event == "end":
            clock.finish()
            self._news[at.stream.run] = None
        elif event.event in {"epoch_begin", "epoch_end"}:
            epoch = _epoch_of(event)
            if epoch is not None:
                state = (clock.begin if event.event == "epoch_begin" else clock.end)(epoch, at.t_ns)
                state.saw(at.step, at.t_ns)
                self._touch(at.stream, state)


def _epoch_of(event: Event) -> int | None:
    said: Any = event.details.get("epoch")
    epoch = said if isinstance(said, (int, float)) else event.at.epoch
    return math.floor(epoch) if abs(epoch) < EPOCH_LIMIT else None


def _first_seq(part: _Part) -> int:
    return int(part.block.seq[part.rows][0])


def _parts(block: ScalarBlock) -> Iterator[_Part]:
    """The records of a block by epoch; those without an epoch are left out."""
    epoch = np.floor(block.epoch)
    if (epoch == epoch[0]).all() and abs(epoch[0]) < EPOCH_LIMIT:
        yield _Part(int(epoch[0]), block, slice(None))
        return
    known = np.flatnonzero(np.abs(epoch) < EPOCH_LIMIT)  # false for NaN
    order = known[np.argsort(epoch[known], kind="stable")]
    if len(order) == 0:
        return
    for rows in np.split(order, np.flatnonzero(np.diff(epoch[order])) + 1):
        first, last = int(rows[0]), int(rows[-1])
        # ascending without holes: a view instead of a copy
        yield _Part(int(epoch[first]), block, slice(first, last + 1) if last - first < len(rows) else rows)


def _rows(stream: Stream, epoch: int, names: tuple[str, ...], columns: Columns) -> EpochRows:
    return EpochRows(stream, epoch, names, *columns.moments, *columns[1:])


def _summaries(name: str, run: _Run) -> Iterator[EpochSummary]:
    news = {
        epoch
        for clock in run.clocks.values()
        for epoch, state in clock.epochs.items()
        if state.dirty and state.ended and not state.stray
    }
    for epoch in sorted(news):
        clocks = _contributors(run, epoch)
        if clocks is None or not _complete(clocks, epoch):
            continue
        states = [clock.epochs[epoch] for clock in clocks]
        last_t_ns = max(state.last_t_ns for state in states)
        started = run.started_t_ns or run.first_t_ns
        statistics = summarise(states)
        logged = {tag for state in states for tally in state.tallies.values() for tag in tally.names}
        yield EpochSummary(
            name,
            run.project,
            epoch,
            global_step=max(state.global_step for state in states),
            wall_time_sec=max(0, last_t_ns - started) / 1e9 if last_t_ns else 0.0,
            ranks=len(states),
            statistics=statistics,
            last_t_ns=last_t_ns,
            derived=frozenset(statistics) - logged,
        )
        for clock in run.clocks.values():
            if epoch in clock.epochs:
                clock.epochs[epoch].dirty = False


def _contributors(run: _Run, epoch: int) -> list[Clock] | None:
    """For each rank the latest attempt with data of the epoch; None where one of them has forgotten it."""
    chosen: dict[int, Clock] = {}
    for clock in sorted(run.clocks.values(), key=lambda clock: (clock.stream.rank, -clock.stream.attempt)):
        rank = clock.stream.rank
        state = clock.epochs.get(epoch)
        if rank in chosen and (chosen[rank].epochs[epoch].tallies or state is None or not state.tallies):
            continue
        if (state is not None and state.stray) or clock.forgot(epoch):
            return None
        if state is not None:
            chosen[rank] = clock
    return [chosen[rank] for rank in sorted(chosen)]


def _complete(clocks: Sequence[Clock], epoch: int) -> bool:
    """Whether no rank is waited for any more."""
    ended = [clock for clock in clocks if clock.epochs[epoch].ended]
    if len(ended) == len(clocks):
        return True
    return any(
        clock.finished or (clock.current is not None and clock.current >= epoch + STRAGGLE_EPOCHS) for clock in ended
    )
