"""Windows: the last records of one key set of a stream, as far as anybody reads them.

A window is a buffer that grows to twice what is remembered and is shifted then, so a record is copied twice at
most, however small the batches are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.analyse.protocol import Series
from sidestep_collector.blocks import ScalarBlock

Array = NDArray[Any]

#: Records that a window makes room for at once, where it remembers few.
_ROOM: Final = 1024


class Window:
    """Records of the columns that are read: past ones, then new ones from `fresh` on.

    Args:
        names: tags of the columns.
        columns: where they stand in a block.
        memory: how many past records are kept.
        count: how many records the stream had of them before.
    """

    __slots__ = ("_arrays", "_columns", "_memory", "_size", "count", "fresh", "names")

    def __init__(self, names: tuple[str, ...], columns: Sequence[int], memory: int, count: int = 0) -> None:
        self.names = names
        self.fresh = 0
        self.count = count
        self._columns = list(columns)
        self._memory = memory
        self._size = 0
        self._arrays: tuple[Array, ...] = ()

    def append(self, block: ScalarBlock) -> None:
        """Take new records; they follow those before."""
        values = block.values[:, self._columns].astype(np.float64)
        found = (block.seq, block.t_ns, block.step, block.epoch, values)
        rows = len(block.seq)
        self.count += rows
        if self._size == 0 and self._memory == 0:
            self._arrays, self._size = found, rows
            return
        if self._room() < self._size + rows:
            self._grow(found, self._size + rows)
        for array, more in zip(self._arrays, found, strict=True):
            array[self._size : self._size + rows] = more
        self._size += rows

    def settle(self) -> None:
        """What was new is past now; what nobody needs is forgotten."""
        if self._memory == 0:
            self._arrays, self._size = (), 0
        elif self._size > 2 * self._memory:
            kept = slice(self._size - self._memory, self._size)
            self._arrays = tuple(array[kept].copy() for array in self._arrays)
            self._size = self._memory
        self.fresh = self._size

    def records(self) -> tuple[Array, Array, Array, Array]:
        """seq, t_ns, step and epoch of the new records."""
        seq, t_ns, step, epoch, _ = self._part(self.fresh)
        return seq, t_ns, step, epoch

    def series(self, tag: str, memory: int) -> Series:
        """The values of a tag: at most `memory` past ones, and the new ones."""
        start = max(0, self.fresh - memory)
        seq, t_ns, step, epoch, values = self._part(start)
        column = values[:, self.names.index(tag)]
        return Series(tag, self.count - self._size + start, self.fresh - start, seq, t_ns, step, epoch, column)

    def _part(self, start: int) -> tuple[Array, ...]:
        if not self._arrays:
            return (*(np.empty(0, np.int64),) * 3, np.empty(0), np.empty((0, len(self.names))))
        views = tuple(array[start : self._size] for array in self._arrays)
        for view in views:
            view.flags.writeable = False
        return views

    def _room(self) -> int:
        return len(self._arrays[0]) if self._arrays else 0

    def _grow(self, like: tuple[Array, ...], needed: int) -> None:
        room = min(2 * needed, needed + self._memory + _ROOM) if self._size else needed
        grown = tuple(np.empty((room, *array.shape[1:]), array.dtype) for array in like)
        for new, old in zip(grown, self._arrays, strict=False):
            new[: self._size] = old[: self._size]
        self._arrays = grown


def merged(parts: Sequence[Series], memory: int) -> Series:
    """One series of a tag that stands in several windows of its stream."""
    if len(parts) == 1:
        return parts[0]
    past = sum(part.fresh for part in parts)
    first = sum(part.first for part in parts)
    seq = np.concatenate([part.seq for part in parts])
    drop = max(0, past - memory)
    order = np.argsort(seq, kind="stable")[drop:]  # all past records come before all new ones
    t_ns, step, epoch, values = (
        np.concatenate([getattr(part, name) for part in parts])[order] for name in ("t_ns", "step", "epoch", "values")
    )
    return Series(parts[0].tag, first + drop, past - drop, seq[order], t_ns, step, epoch, values)
