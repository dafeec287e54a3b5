"""The journal: every record of a stream, from the moment it is logged until the collector has stored it.

The training thread appends; the drain thread provides segments, reads ranges to ship, and forgets what is
acknowledged. The append lock is held for a memory copy and nothing else: no I/O happens under it. Touches
files through `segments`, never a socket.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sidestep.segments import (
    RING_BYTES_MAX,
    Segment,
    create_file_segment,
    create_memory_segment,
    segment_size_for,
)
from sidestep_schemas.claims import LOCK_NAME, claim
from sidestep_schemas.wire import (
    RANGE_BYTES,
    RECORD_BYTES_MAX,
    RECORD_PREFIX,
    SCALARS_HEADER,
    SCALARS_VALUES_OFFSET,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SEGMENT_HEADER,
    SegmentHeader,
    aligned,
)

#: A segment that fills faster than this is followed by one four times its size.
_SOON_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose records a journal holds. `run` is 16 bytes, `stream` (this start of this process) and `boot` 8."""

    run: bytes
    rank: int
    attempt: int
    stream: bytes
    boot: bytes


class KeySetLayout:
    """How the values of one key set are laid out in a scalars record: made once, used for every record."""

    __slots__ = ("dtype", "id", "length", "nbytes", "pack_into", "stride")

    def __init__(self, key_set_id: int, count: int, dtype: int) -> None:
        values = struct.Struct(f"<{count}{'fd'[dtype]}")
        self.id = key_set_id
        self.dtype = dtype
        self.nbytes = values.size
        self.pack_into = values.pack_into
        self.length = SCALARS_HEADER.size + values.size
        self.stride = aligned(RECORD_PREFIX.size + self.length)


@dataclass(slots=True)
class Shipment:
    """Consecutive records on their way: bytes `start:stop` of a segment, or a gap where `segment` is None."""

    first_seq: int
    records: int
    segment: Segment | None
    start: int = 0
    stop: int = 0
    reason: str = ""

    @property
    def next_seq(self) -> int:
        """Seq behind its last record."""
        return self.first_seq + self.records


class Journal:
    """Records of one stream.

    Args:
        folder: folder of this stream alone; made here. None keeps the journal in memory.
        identity: written into each segment.

    Attributes:
        seq: records so far, those that were dropped included.
        dropped: records that found no room, by reason.
        degraded: why records are kept in memory instead of on disk; "" while they are not.
        wanted: set when a segment was taken and the drain thread should provide another.
    """

    def __init__(self, folder: Path | None, identity: Identity) -> None:
        self.folder = folder
        self.identity = identity
        self.seq = 0
        self.dropped: dict[str, int] = {}
        self.degraded = ""
        self.wanted = threading.Event()
        self._append_lock = threading.Lock()
        self._segments: deque[Segment] = deque()
        self._spares: deque[Segment] = deque()
        self._recycle: deque[Segment] = deque()
        self._size = SEGMENT_BYTES_MIN
        self._created = 0
        self._provided_at = time.monotonic()
        self._ring_bytes = 0
        self._read_segment = 0  # number of the segment that is read next
        self._read_offset = SEGMENT_HEADER.size
        self._read_seq = 0
        self._claimed: int | None = None
        self._current = self._create_first()
        self._open(self._current)

    # --- training thread ---------------------------------------------------------------------------------

    def append_scalars(self, t_ns: int, step: int, epoch: float, layout: KeySetLayout, values: Iterable[float]) -> bool:
        """Append a record of scalars. False where there was no room and it was counted as dropped.

        Raises:
            struct.error, TypeError, ValueError: a value is no number; nothing was appended.
        """
        with self._append_lock:
            segment = self._current
            start = segment.tail
            stop = start + layout.stride
            if stop > segment.size:
                rolled = self._roll(layout.length)
                if rolled is None:
                    return False
                segment = rolled
                start = segment.tail
                stop = start + layout.stride
            seq = self.seq
            view = segment.view
            SCALARS_HEADER.pack_into(
                *(view, start + 8, 0x98, 0xCD, 1, 0xCF, seq, 0xD3, t_ns, 0xD3, step, 0xCB, epoch),
                *(0xCF, layout.id, 0xCC, layout.dtype, 0xC6, layout.nbytes),
            )
            try:
                layout.pack_into(view, start + SCALARS_VALUES_OFFSET, *values)
            except BaseException:
                view[start:stop] = bytes(stop - start)  # what lies behind the tail must stay zero
                raise
            segment.words[start >> 2] = layout.length  # stored last: from here on the record exists
            segment.tail = stop
            segment.records += 1
            self.seq = seq + 1
            return True

    def append(self, payload_of: Callable[[int], bytes]) -> bool:
        """Append a record whose payload `payload_of(seq)` makes.

        Raises:
            ValueError: the payload is larger than a segment; nothing was appended.
        """
        with self._append_lock:
            payload = payload_of(self.seq)
            length = len(payload)
            if length > RECORD_BYTES_MAX:
                raise ValueError(f"{length} bytes do not fit a record of at most {RECORD_BYTES_MAX}")
            segment: Segment | None = self._current
            if segment.tail + aligned(RECORD_PREFIX.size + length) > segment.size:
                segment = self._roll(length)
                if segment is None:
                    return False
            start = segment.tail
            segment.view[start + RECORD_PREFIX.size : start + RECORD_PREFIX.size + length] = payload
            segment.words[start >> 2] = length
            segment.tail = start + aligned(RECORD_PREFIX.size + length)
            segment.records += 1
            self.seq += 1
            return True

    def _roll(self, length: int) -> Segment | None:
        """Go on to the next segment; without one, count the record as dropped."""
        needed = segment_size_for(length)
        self._size = max(self._size, needed)
        with contextlib.suppress(IndexError):
            while True:
                spare = self._spares.popleft()
                if spare.size >= needed:
                    self._open(spare)
                    self.wanted.set()
                    return spare
                self._recycle.append(spare)
        self.wanted.set()
        if needed > SEGMENT_BYTES_MIN and not self.degraded and self.folder is not None:
            # A rare large payload (an image, a tensor) found only small spares: it pays for its own segment.
            with contextlib.suppress(OSError):
                large = self._create_file(self.folder, needed)
                self._open(large)
                return large
        size = max(SEGMENT_BYTES_MIN, needed)
        if self._ring_bytes + size <= RING_BYTES_MAX:
            self._ring_bytes += size
            self._created += 1
            segment = create_memory_segment(self._created - 1, size)
            self._open(segment)
            return segment
        reason = self.degraded or "records came faster than segments could be made"
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.seq += 1
        return None

    def _open(self, segment: Segment) -> None:
        identity = self.identity
        segment.open(
            SegmentHeader(
                *(identity.rank, identity.attempt, segment.number, self.seq),
                *(identity.run, identity.stream, identity.boot),
            )
        )
        self._segments.append(segment)
        self._current = segment

    # --- drain thread ------------------------------------------------------------------------------------

    def provide(self) -> None:
        """Keep a spare segment ready; on disk where one can be had, else in memory up to a bound."""
        while self._recycle:
            self._retire(self._recycle.popleft())
        self._spill()
        if self.folder is None or len(self._spares) >= (2 if self._size >= SEGMENT_BYTES_MAX else 1):
            return
        now = time.monotonic()
        if self._created > 1 and now - self._provided_at < _SOON_SECONDS:
            self._size = min(self._size * 4, SEGMENT_BYTES_MAX)
        self._provided_at = now
        try:
            self._spares.append(self._create_file(self.folder, self._size))
        except OSError as error:
            self.degraded = f"the journal folder {self.folder} takes no more: {error.strerror or error}"
        else:
            self.degraded = ""

    def shipments(self) -> Iterator[Shipment]:
        """Cut what was appended since the last call into ranges, seal their records, and yield them.

        A generator that is not exhausted goes on from there at the next call.
        """
        for segment in list(self._segments):
            if segment.number < self._read_segment:
                continue
            if segment.number > self._read_segment or segment.first_seq > self._read_seq:
                if segment.first_seq > self._read_seq:
                    lost = segment.first_seq - self._read_seq
                    self._read_seq = segment.first_seq
                    yield Shipment(segment.first_seq - lost, lost, None, reason=self._reason())
                self._read_segment, self._read_offset = segment.number, SEGMENT_HEADER.size
            while self._read_offset < (tail := segment.tail):
                start = self._read_offset
                stop, records = _seal(segment, start, tail)
                first = self._read_seq
                self._read_offset, self._read_seq = stop, first + records
                yield Shipment(first, records, segment, start, stop)

    def release_below(self, watermark: int) -> None:
        """Forget the segments whose records are all below the watermark, and keep one of them for reuse."""
        while len(self._segments) > 1 and self._segments[0].next_seq <= watermark:
            segment = self._segments[0]
            if segment.number >= self._read_segment or segment is self._current:
                break
            self._segments.popleft()
            self._retire(segment)

    def pending_bytes(self) -> int:
        """Bytes of records that are not acknowledged, whole segments counted."""
        return sum(segment.tail for segment in list(self._segments))

    def _spill(self, *, last: bool = False) -> None:
        """Bring records that found only memory to disk; `last` says that nothing will be appended any more."""
        if self.folder is None:
            return
        for segment in list(self._segments):
            if segment.in_memory and segment.path is None and (last or segment is not self._current):
                try:
                    segment.spill(self.folder / _segment_name(segment.number))
                except OSError:
                    return

    def undelivered_in_memory(self) -> int:
        """Records that would be lost if the process ended now, because no disk took them."""
        return sum(segment.records for segment in list(self._segments) if segment.in_memory and segment.path is None)

    def close(self, *, delivered: bool) -> None:
        """Let go of the files: remove them when all is delivered, else leave them for `sidestep sync`."""
        if not delivered:
            self._spill(last=True)
        with self._append_lock:
            for spare in (*self._spares, *self._recycle):
                spare.release()
            self._spares.clear()
            self._recycle.clear()
            if delivered:
                for segment in self._segments:
                    segment.release()
                self._segments.clear()
        if self._claimed is not None:
            if delivered and self.folder is not None:
                remove_stream_folder(self.folder)
            os.close(self._claimed)
            self._claimed = None

    def _reason(self) -> str:
        return ", ".join(sorted(self.dropped)) or "unknown"

    def _retire(self, segment: Segment) -> None:
        if segment.in_memory:
            segment.release()
            with self._append_lock:
                self._ring_bytes -= segment.size
            return
        if segment.size == self._size and not self._spares and self.folder is not None:
            with self._append_lock:
                number = self._created
                self._created += 1
            try:
                segment.reuse(number, self.folder / _segment_name(number))
            except OSError:
                segment.release()
                return
            self._spares.append(segment)
            return
        segment.release()

    def _create_file(self, folder: Path, size: int) -> Segment:
        number = self._created
        self._created += 1
        return create_file_segment(folder / _segment_name(number), number, size)

    def _create_first(self) -> Segment:
        if self.folder is not None:
            try:
                self._claim(self.folder)
                return self._create_file(self.folder, SEGMENT_BYTES_MIN)
            except OSError as error:
                self.degraded = f"the journal folder {self.folder} cannot be written: {error.strerror or error}"
        self._created += 1
        self._ring_bytes += SEGMENT_BYTES_MIN
        return create_memory_segment(self._created - 1, SEGMENT_BYTES_MIN)

    def _claim(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._claimed = claim(folder, patience_seconds=0.5)


def stream_folder(root: Path, identity: Identity) -> Path:
    """Folder of a stream's segments under a journal root."""
    return root / identity.run.hex() / f"r{identity.rank}-a{identity.attempt}-{identity.stream.hex()}"


def remove_stream_folder(folder: Path) -> None:
    """Remove a stream's folder and, when it was the last, its run's; what cannot be removed stays."""
    for entry in (*folder.glob("*.seg"), folder / LOCK_NAME):
        with contextlib.suppress(OSError):
            entry.unlink()
    for empty in (folder, folder.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()


def _segment_name(number: int) -> str:
    return f"{number:08d}.seg"


def _seal(segment: Segment, start: int, tail: int) -> tuple[int, int]:
    """Put the checksum on each record from `start`, up to about `RANGE_BYTES`; returns (stop, records)."""
    view, words, checksum = segment.view, segment.words, zlib.crc32
    position, records, limit = start, 0, start + RANGE_BYTES
    while position < tail:
        length = words[position >> 2]
        following = (position + 15 + length) & ~7
        if records and following > limit:
            break
        words[(position >> 2) + 1] = checksum(view[position + 8 : position + 8 + length]) or 1
        position, records = following, records + 1
    return position, records
