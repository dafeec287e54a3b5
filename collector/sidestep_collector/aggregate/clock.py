"""The clock of a stream: which epochs it has open, which have ended, which are forgotten.

An epoch ends by the event that says so, by the begin of another, by a record of a later one, or with the
stream. A record of an epoch that has ended (a validation pass is often logged after the end) still belongs to
it and makes it news again. Only the last few ended epochs are remembered, so memory does not grow with them.
"""

from __future__ import annotations

from typing import Final

from sidestep_collector.aggregate.columns import Tally
from sidestep_collector.aggregate.ranks import Kept
from sidestep_collector.blocks import Stream

#: Ended epochs of a stream that are kept for late records.
ENDED_EPOCHS_KEPT: Final = 3


class EpochState:
    """One epoch of one stream.

    Attributes:
        tallies: by id of the key set; of restored rows by a negative number.
        kept: values that are put together with those of other ranks when the epoch has ended.
        dirty: whether something is to be told about it since its last summary.
        stray: whether it is late data of a forgotten epoch: stored, but never summarised.
        begin_t_ns, end_t_ns: when the events said it began and ended; 0 for never.
    """

    __slots__ = (
        *("begin_t_ns", "dirty", "end_t_ns", "ended", "epoch", "global_step", "kept", "last_t_ns", "stray", "tallies"),
    )

    def __init__(self, epoch: int, *, stray: bool = False) -> None:
        self.epoch = epoch
        self.stray = stray
        self.ended = stray
        self.dirty = False
        self.tallies: dict[int, Tally] = {}
        self.kept = Kept()
        self.global_step = -1
        self.last_t_ns = 0
        self.begin_t_ns = 0
        self.end_t_ns = 0

    def saw(self, step: int, t_ns: int) -> None:
        """Note a record of the epoch."""
        self.dirty = True
        self.global_step = max(self.global_step, step)
        self.last_t_ns = max(self.last_t_ns, t_ns)


class Clock:
    """The epochs of one stream. Signals must come in the order of their seq."""

    __slots__ = ("_forgotten_below", "_latest", "current", "epochs", "finished", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.epochs: dict[int, EpochState] = {}
        self.current: int | None = None
        self.finished = False
        self._latest: int | None = None
        self._forgotten_below: int | None = None

    def record(self, epoch: int) -> EpochState:
        """The state for a record of `epoch`; a later epoch than the current ends that one."""
        state = self.epochs.get(epoch)
        late = self._latest is not None and epoch < self._latest
        if state is None:
            state = self.epochs[epoch] = EpochState(epoch, stray=self.forgot(epoch))
            state.ended = late or state.stray
        if not late and epoch != self.current and not state.ended:
            self._end_current()
            self.current = self._latest = epoch
        return state

    def begin(self, epoch: int, t_ns: int) -> EpochState:
        """`epoch` begins, and any other ends. A number that comes again is opened again."""
        if epoch != self.current:
            self._end_current()
        if self.forgot(epoch) and epoch not in self.epochs:
            self._forgotten_below = epoch
        state = self.epochs.setdefault(epoch, EpochState(epoch))
        state.ended = state.stray = False
        state.begin_t_ns, state.end_t_ns = t_ns, 0
        self.current = self._latest = epoch
        return state

    def end(self, epoch: int, t_ns: int) -> EpochState:
        """`epoch` ends."""
        state = self.record(epoch)
        state.end_t_ns = t_ns
        self._end(state)
        if self.current == epoch:
            self.current = None
        return state

    def finish(self) -> None:
        """The stream ends, and with it what is open."""
        self._end_current()
        self.finished = True

    def forgot(self, epoch: int) -> bool:
        """Whether `epoch` was once known and is no more."""
        return self._forgotten_below is not None and epoch < self._forgotten_below and epoch not in self.epochs

    def trim(self) -> None:
        """Forget what is not among the last ended epochs; call when all of it was told."""
        ended = [epoch for epoch, state in self.epochs.items() if state.ended and not state.stray]
        strays = [epoch for epoch, state in self.epochs.items() if state.stray]
        for epoch in ended[:-ENDED_EPOCHS_KEPT]:
            self._forgotten_below = max(epoch + 1, self._forgotten_below or epoch + 1)
        for epoch in (*ended[:-ENDED_EPOCHS_KEPT], *strays):
            del self.epochs[epoch]

    def _end_current(self) -> None:
        if self.current is not None:
            self._end(self.epochs[self.current])
            self.current = None

    def _end(self, state: EpochState) -> None:
        if not state.ended:
            state.ended = True
            state.dirty = True
            # the order of the table is the order of ending, by which the oldest are forgotten
            self.epochs[state.epoch] = self.epochs.pop(state.epoch)
