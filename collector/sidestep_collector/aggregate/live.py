"""The collector's memory of now: the last records of every stream, for who watches a run as it goes.

Blocks are kept as they are, oldest out first: at most `RECORDS_MAX` records of a stream's key set (so what is
logged each step does not push out what is logged each epoch) and, over all streams, so many bytes; what was
silent longest goes first. Guarded by a lock, because the thread
that answers questions is not the one that decodes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sidestep_collector.blocks import ScalarBlock, Stream

RECORDS_MAX: Final = 512
BYTES_MAX: Final = 64 << 20
#: What a block costs beside its arrays' bytes: headers of five arrays and of the block.
BLOCK_OVERHEAD_BYTES: Final = 800


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest record of a stream and the newest value of each of its metrics that is remembered."""

    stream: Stream
    seq: int
    t_ns: int
    step: int
    epoch: float
    values: Mapping[str, float]


class _Kept:
    """The blocks of one key set of a stream."""

    __slots__ = ("blocks", "nbytes", "records")

    def __init__(self) -> None:
        self.blocks: deque[ScalarBlock] = deque()
        self.records = 0
        self.nbytes = 0

    def append(self, block: ScalarBlock) -> None:
        self.blocks.append(block)
        self.records += len(block.seq)
        self.nbytes += _nbytes(block)
        while self.records - len(self.blocks[0].seq) >= RECORDS_MAX:
            gone = self.blocks.popleft()
            self.records -= len(gone.seq)
            self.nbytes -= _nbytes(gone)


class Live:
    """The last records of all streams."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, int], _Kept] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the kept blocks hold."""
        return self._nbytes

    def add(self, blocks: Sequence[ScalarBlock]) -> None:
        """Remember blocks; each stream's in the order of their seq."""
        with self._lock:
            for block in blocks:
                if len(block.seq):
                    self._append(_tail(block))
            while self._nbytes > self._bytes_max and self._kept:
                _, silent = self._kept.popitem(last=False)
                self._nbytes -= silent.nbytes

    def latest(self, run: str) -> list[Latest]:
        """For each stream of a run what it said last, by rank and attempt."""
        streams: dict[bytes, list[ScalarBlock]] = {}
        for blocks in self._of(run):
            streams.setdefault(blocks[-1].stream.key, []).append(blocks[-1])
        found = [_latest(newest) for newest in streams.values()]
        return sorted(found, key=lambda latest: (latest.stream.rank, latest.stream.attempt))

    def recent(self, run: str) -> list[ScalarBlock]:
        """All blocks of a run that are remembered; those of a stream's key set in the order of arrival."""
        return [block for blocks in self._of(run) for block in blocks]

    def forget(self, run: str) -> None:
        """Drop a run."""
        with self._lock:
            for key in [key for key, kept in self._kept.items() if kept.blocks[-1].stream.run == run]:
                self._nbytes -= self._kept.pop(key).nbytes

    def _append(self, block: ScalarBlock) -> None:
        key = (block.stream.key, block.key_set.id)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept()
        before = kept.nbytes
        kept.append(block)
        self._nbytes += kept.nbytes - before
        self._kept.move_to_end(key)

    def _of(self, run: str) -> list[list[ScalarBlock]]:
        with self._lock:
            return [list(kept.blocks) for kept in self._kept.values() if kept.blocks[-1].stream.run == run]


def _nbytes(block: ScalarBlock) -> int:
    return block.values.nbytes + 4 * block.seq.nbytes + BLOCK_OVERHEAD_BYTES


def _tail(block: ScalarBlock) -> ScalarBlock:
    """The last records of a block: copied where a view would keep far more than it shows."""
    if len(block.seq) <= RECORDS_MAX:
        return block
    last = slice(len(block.seq) - RECORDS_MAX, None)
    return replace(
        block,
        seq=block.seq[last].copy(),
        t_ns=block.t_ns[last].copy(),
        step=block.step[last].copy(),
        epoch=block.epoch[last].copy(),
        values=block.values[last].copy(),
    )


def _latest(newest: Sequence[ScalarBlock]) -> Latest:
    """The newest blocks of the key sets of a stream as one."""
    by_seq = sorted(newest, key=lambda block: int(block.seq[-1]))
    values: dict[str, float] = {}
    for block in by_seq:
        values.update(zip(block.key_set.names, block.values[-1].tolist(), strict=True))
    last = by_seq[-1]
    return Latest(last.stream, int(last.seq[-1]), int(last.t_ns[-1]), int(last.step[-1]), float(last.epoch[-1]), values)
