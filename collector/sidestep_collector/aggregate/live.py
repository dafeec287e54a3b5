"""The collector's memory of now: the last record of every key set of every stream, for who asks how a run stands.

So what is logged each step does not push out what is logged each epoch. At most so many bytes are kept; what was
silent longest goes first. Guarded by a lock, because the thread that answers questions is not the one that decodes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sidestep_collector.blocks import ScalarBlock, Stream

BYTES_MAX: Final = 16 << 20
#: What a record costs beside its values: headers of five arrays and of the block.
RECORD_OVERHEAD_BYTES: Final = 800


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest record of a stream and the newest value of each of its metrics that is remembered."""

    stream: Stream
    seq: int
    t_ns: int
    step: int
    epoch: float
    values: Mapping[str, float]


class Live:
    """The last records of all streams."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, int], ScalarBlock] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the kept records hold."""
        return self._nbytes

    def add(self, blocks: Sequence[ScalarBlock]) -> None:
        """Remember the end of blocks; each stream's in the order of their seq."""
        with self._lock:
            for block in blocks:
                if len(block.seq):
                    key = (block.stream.key, block.key_set.id)
                    self._drop(key)
                    self._kept[key] = _last(block)
                    self._nbytes += _nbytes(block)
            while self._nbytes > self._bytes_max and self._kept:
                self._drop(next(iter(self._kept)))

    def latest(self, run: str) -> list[Latest]:
        """For each stream of a run what it said last, by rank and attempt."""
        streams: dict[bytes, list[ScalarBlock]] = {}
        with self._lock:
            for record in self._kept.values():
                if record.stream.run == run:
                    streams.setdefault(record.stream.key, []).append(record)
        found = [_latest(records) for records in streams.values()]
        return sorted(found, key=lambda latest: (latest.stream.rank, latest.stream.attempt))

    def forget(self, run: str) -> None:
        """Drop a run."""
        with self._lock:
            for key in [key for key, record in self._kept.items() if record.stream.run == run]:
                self._drop(key)

    def _drop(self, key: tuple[bytes, int]) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self._nbytes -= _nbytes(gone)


def _nbytes(block: ScalarBlock) -> int:
    """What the last record of a block costs."""
    return block.values[-1:].nbytes + RECORD_OVERHEAD_BYTES


def _last(block: ScalarBlock) -> ScalarBlock:
    """The last record of a block, copied: a view would keep all of it."""
    return replace(
        block,
        seq=block.seq[-1:].copy(),
        t_ns=block.t_ns[-1:].copy(),
        step=block.step[-1:].copy(),
        epoch=block.epoch[-1:].copy(),
        values=block.values[-1:].copy(),
    )


def _latest(records: Sequence[ScalarBlock]) -> Latest:
    """The last records of the key sets of a stream as one."""
    by_seq = sorted(records, key=lambda record: int(record.seq[-1]))
    values: dict[str, float] = {}
    for record in by_seq:
        values.update(zip(record.key_set.names, record.values[-1].tolist(), strict=True))
    last = by_seq[-1]
    return Latest(last.stream, int(last.seq[-1]), int(last.t_ns[-1]), int(last.step[-1]), float(last.epoch[-1]), values)
