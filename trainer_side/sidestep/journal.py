"""The journal: every record of a stream, from the moment it is logged until the collector has stored it.

The training thread appends; the drain thread provides segments, reads ranges to ship, and forgets what is
acknowledged. The append lock is held for a memory copy and nothing else: no I/O happens under it. Touches
files through `segments`, never a socket.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

from sidestep.keeping import SHARED_BYTES_MAX, Keeper, remove_shared_folder, shared_folder
from sidestep.reading import Reader
from sidestep.records import Fate, Identity, KeySetLayout, Shipment, seal_all
from sidestep.segments import (
    RING_BYTES_MAX,
    Segment,
    create_file_segment,
    create_memory_segment,
    segment_size_for,
)
from sidestep_schemas.claims import LOCK_NAME, claim
from sidestep_schemas.layout import guard_runtime
from sidestep_schemas.wire import (
    RECORD_BYTES_MAX,
    RECORD_PREFIX,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SegmentHeader,
    aligned,
)

logger = logging.getLogger("sidestep")

#: A segment that fills faster than this is followed by one four times its size.
_SOON_SECONDS = 1.0
#: A folder that took nothing is asked again after this.
_RETRY_SECONDS = 1.0
#: A mapped file holds a descriptor: when this many wait for a collector, what follows goes into larger ones.
_SMALL_SEGMENTS_MAX = 8
#: The same where segments lie in shared memory, of which there is less.
_SHARED_SIZE_MAX = 4 << 20
#: Files that wait for a collector and are mapped.
_MAPPED_BYTES_MAX = 32 << 20
#: What a stream may leave on disk.
JOURNAL_BYTES_MAX = 2 << 30
_REENTERED = "a signal handler cannot log in the middle of another call that does; log after it"


class Journal:
    """Records of one stream.

    Args:
        folder: folder of this stream alone; made here. None keeps the journal in memory.
        identity: written into each segment.
        in_shared_memory: segments in use lie in shared memory where the system has it, and go to `folder` when they
            wait; else they lie in `folder` from the first.
        bytes_max: what may lie on disk; beyond it, what is new is dropped.

    Attributes:
        seq: records so far, those that were dropped included.
        dropped: records that found no room, by reason.
        degraded: why records are kept in memory instead of on disk; "" while they are not.
        wanted: set when a segment was taken and the drain thread should provide another.
        is_growing: this process writes it; what a dead one left is not.
    """

    is_growing = True

    def __init__(
        self,
        folder: Path | None,
        identity: Identity,
        *,
        in_shared_memory: bool = False,
        bytes_max: int = JOURNAL_BYTES_MAX,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.seq = 0
        self.dropped: dict[str, int] = {}
        self.degraded = ""
        self.wanted = threading.Event()
        self._append_lock = threading.Lock()
        self._ended = False
        self._segments: deque[Segment] = deque()
        self._spares: deque[Segment] = deque()
        self._recycle: deque[Segment] = deque()
        self._size = SEGMENT_BYTES_MIN
        self._opened = 0
        self._file_numbers = count()
        self._gaps: deque[tuple[int, int]] = deque()  # first seq and seq behind, of what was dropped
        self._retry_at = 0.0
        self._provided_at = time.monotonic()
        self._ring_bytes = 0
        self._reader = Reader()
        self._claimed: int | None = None
        self._bytes_max = bytes_max
        self._keeper: Keeper | None = None
        self._said = ""
        self._shared_claim: int | None = None
        self._place = folder  # where new segments are made
        if in_shared_memory and folder is not None:
            self._share(folder)
        self._current = self._create_first()
        self._open(self._current)

    # --- training thread ---------------------------------------------------------------------------------

    def append_scalars(self, t_ns: int, step: int, epoch: float, layout: KeySetLayout, values: Iterable[float]) -> bool:
        """Append a record of scalars. False where there was no room and it was counted as dropped.

        Raises:
            struct.error, TypeError, ValueError: a value is no number; nothing was appended.
            RuntimeError: called by a signal handler in the middle of an append; nothing was appended.
        """
        lock = self._append_lock
        if not lock.acquire(False):  # one call where the lock is free, as nearly always
            if self._is_entered():
                raise RuntimeError(_REENTERED)
            lock.acquire()
        try:
            segment = self._current
            start = segment.tail
            stop = start + layout.stride
            if stop > segment.limit:
                rolled = self._roll(layout.length)
                if rolled is None:
                    return False
                segment = rolled
                start = segment.tail
                stop = start + layout.stride
            seq = self.seq
            try:
                layout.pack_into(
                    segment.view,
                    start + RECORD_PREFIX.size,
                    layout.lead,
                    seq,
                    t_ns,
                    step,
                    epoch,
                    layout.id,
                    layout.dtype,
                    *values,
                )
            except BaseException:
                segment.view[start:stop] = bytes(stop - start)  # what lies behind the tail must stay zero
                raise
            segment.words[start >> 2] = layout.length  # stored last: from here on the record exists
            segment.tail = stop
            segment.records += 1
            self.seq = seq + 1
            return True
        finally:
            lock.release()

    def append(self, payload_of: Callable[[int], bytes]) -> bool:
        """Append a record whose payload `payload_of(seq)` makes.

        Raises:
            ValueError: the payload is larger than a segment; nothing was appended.
            RuntimeError: called by a signal handler in the middle of an append; nothing was appended.
        """
        if not self._append_lock.acquire(blocking=False):
            if self._is_entered():
                raise RuntimeError(_REENTERED)
            self._append_lock.acquire()
        try:
            return self._append_payload(payload_of(self.seq))
        finally:
            self._append_lock.release()

    def end(self) -> int:
        """Take no more records; returns how many there are."""
        with contextlib.nullcontext() if self._is_entered() else self._append_lock:
            self._ended = True
            self._current.limit = 0
            return self.seq

    def _is_entered(self) -> bool:
        # A signal handler, or a finaliser, runs in the middle of whatever its thread does. A lock of another thread
        # is waited for, however long: a bound on waiting would lose records on a machine that is busy.
        frame = inspect.currentframe()
        frame = frame.f_back.f_back if frame and frame.f_back else None
        while frame is not None:
            if frame.f_code.co_filename == __file__ and frame.f_locals.get("self") is self:
                return self._append_lock.locked()
            frame = frame.f_back
        return False

    def _append_payload(self, payload: bytes) -> bool:
        length = len(payload)
        if length > RECORD_BYTES_MAX:
            raise ValueError(f"{length} bytes do not fit a record of at most {RECORD_BYTES_MAX}")
        stride = aligned(RECORD_PREFIX.size + length)
        segment: Segment | None = self._current
        if segment.tail + stride > segment.limit:
            segment = self._roll(length)
            if segment is None:
                return False
        start = segment.tail
        segment.view[start + RECORD_PREFIX.size : start + RECORD_PREFIX.size + length] = payload
        segment.words[start >> 2] = length
        segment.tail = start + stride
        segment.records += 1
        self.seq += 1
        return True

    def _roll(self, length: int) -> Segment | None:
        """Go on to the next segment; without one, count the record as dropped."""
        if self._ended:
            return None
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
        if (
            needed > SEGMENT_BYTES_MIN
            and not self.degraded
            and self._place is not None
            and self._has_room(needed, is_shared=self._keeper is not None)
        ):
            # A rare large payload (an image, a tensor) found only small spares: it pays for its own segment.
            with contextlib.suppress(OSError):
                large = self._create_file(needed)
                self._open(large)
                return large
        size = max(SEGMENT_BYTES_MIN, needed)
        if self._ring_bytes + size <= RING_BYTES_MAX:
            self._ring_bytes += size
            segment = create_memory_segment(size)
            self._open(segment)
            return segment
        self._drop(self.degraded or "records came faster than segments could be made")
        return None

    def _drop(self, reason: str) -> None:
        """Count a record as lost. What follows goes into another segment: the records of one have no gap."""
        self._current.limit = 0
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if self._gaps and self._gaps[-1][1] == self.seq:
            self._gaps[-1] = (self._gaps[-1][0], self.seq + 1)
        else:
            self._gaps.append((self.seq, self.seq + 1))
        self.seq += 1

    def _open(self, segment: Segment) -> None:
        identity = self.identity
        segment.open(
            SegmentHeader(
                *(identity.rank, identity.attempt, self._opened, self.seq),
                *(identity.run, identity.stream, identity.boot),
            )
        )
        self._opened += 1
        self._segments.append(segment)
        self._current = segment

    # --- drain thread ------------------------------------------------------------------------------------

    def provide(self) -> None:
        """Keep a spare segment ready: a file where one can be had, else in memory up to a bound."""
        while self._recycle:
            self._retire(self._recycle.popleft())
        self._park()
        problem = self._disk_problem()
        now = time.monotonic()
        if self._place is None or now < self._retry_at:
            return
        self._spill(self._place)
        size_max = SEGMENT_BYTES_MAX if self._keeper is None else _SHARED_SIZE_MAX
        if len(self._spares) >= (2 if self._size >= size_max else 1):
            return
        is_busy = self._opened > 1 and now - self._provided_at < _SOON_SECONDS
        if is_busy or len(self._segments) >= _SMALL_SEGMENTS_MAX:
            self._size = max(self._size, min(self._size * 4, size_max))
        self._provided_at = now
        try:
            self._claim(self._place)
            self._spares.append(self._create_spare(problem))
        except OSError as error:
            self._degrade(f"the journal folder {self.folder} takes no more: {error.strerror or error}")
        else:
            self.degraded = ""

    def shipments(self) -> Iterator[Shipment]:
        """Cut what was appended since the last call into ranges, seal their records, and yield them.

        A generator that is not exhausted goes on from there at the next call.
        """
        yield from self._reader.shipments(list(self._segments), self._reason)
        lost = self._take_last_gap()
        if lost:
            yield Shipment(self._reader.seq - lost, lost, None, reason=self._reason())

    def _take_last_gap(self) -> int:
        """Records dropped since the last one that was read: said once all that was kept is stored, for then there is
        room again, and no more of them will follow."""
        with self._append_lock:
            reader = self._reader
            if reader.seq == self.seq or len(self._segments) > 1 or not reader.is_behind(self._current):
                return 0
            lost, reader.seq = self.seq - reader.seq, self.seq
            return lost

    def release_below(self, watermark: int) -> None:
        """Forget the segments whose records are all below the watermark, and keep one of them for reuse."""
        if self._keeper is not None:
            self._keeper.committed = watermark
        while len(self._segments) > 1 and self._segments[0].next_seq <= watermark:
            segment = self._segments[0]
            if segment.number >= self._reader.number or segment is self._current:
                break
            self._segments.popleft()
            self._retire(segment)
        with self._append_lock:
            while self._gaps and self._gaps[0][1] <= watermark:
                self._gaps.popleft()

    def pending_bytes(self) -> int:
        """Bytes of records that are not acknowledged, whole segments counted."""
        return sum(segment.tail for segment in list(self._segments))

    def _park(self) -> None:
        """Give back the memory of segments that wait: one that is on disk needs none until it is shipped."""
        waiting = [segment for segment in list(self._segments) if not (segment.is_parked or segment.in_memory)]
        waiting = [segment for segment in waiting if segment not in (self._current, self._segments[-1])]
        if self._keeper is not None:
            for segment in waiting:
                if segment.kept == segment.tail:
                    self._keeper.let_go(segment, segment.park)
            return
        mapped = sum(segment.size for segment in waiting)
        for segment in waiting:
            if mapped <= _MAPPED_BYTES_MAX:
                return
            seal_all(segment)
            segment.park()
            mapped -= segment.size

    def _has_room(self, size: int, *, is_shared: bool) -> bool:
        """Whether another segment may be made, in shared memory or on the disk."""
        segments = (*self._segments, *self._spares)
        if self._keeper is None:
            return sum(segment.size for segment in segments if not segment.in_memory) + size <= self._bytes_max
        if not is_shared:
            return self._keeper.nbytes + size <= self._bytes_max
        shared = sum(segment.size for segment in segments if segment.is_shared)
        if shared + size > SHARED_BYTES_MAX // 2:
            self._keeper.hurry()
        return shared + size <= SHARED_BYTES_MAX

    def _spill(self, place: Path | None, *, last: bool = False) -> None:
        """Bring records that found only memory to a file; `last` says that nothing will be appended any more."""
        if place is None:
            return
        is_shared = place != self.folder
        for segment in list(self._segments):
            if segment.in_memory and (last or segment is not self._current):
                nbytes = segment.size
                try:
                    self._claim(place)
                    if not self._has_room(segment.tail, is_shared=is_shared):
                        return
                    segment.spill(self._new_path(place), is_shared=is_shared)
                except OSError:
                    return
                with self._append_lock:
                    self._ring_bytes -= nbytes

    def fate(self, watermark: int) -> Fate:
        """What becomes of the records when the process ends now, and those below `watermark` are stored."""
        dropped = sum(self.dropped.values())
        dropped_later = sum(stop - max(first, watermark) for first, stop in list(self._gaps) if stop > watermark)
        held = [segment for segment in list(self._segments) if segment.in_memory and segment.next_seq > watermark]
        homeless = sum(segment.next_seq - max(segment.first_seq, watermark) for segment in held)
        lost = {**self.dropped, **({"neither the collector nor a disk took them": homeless} if homeless else {})}
        committed = watermark - (dropped - dropped_later)
        return Fate(self.seq, committed, self.seq - committed - dropped - homeless, lost)

    def close(self, *, delivered: bool, timeout: float = 2.0) -> None:
        """Let go of memory and files: remove these when all is delivered, else leave them for `sidestep sync`.

        Args:
            delivered: nobody needs the records any more.
            timeout: seconds to wait for a disk that stands still, where segments lie in shared memory.
        """
        self.end()
        if not delivered and self._keeper is None:
            self._spill(self.folder, last=True)
        for unused in (*self._spares, *self._recycle):
            unused.release()
        self._spares.clear()
        self._recycle.clear()
        if self._keeper is None:
            self._let_go(delivered=delivered)
        else:
            self._keeper.close(lambda: self._let_go(delivered=delivered), timeout, keep=not delivered)

    def _let_go(self, *, delivered: bool) -> None:
        if not delivered and self._keeper is not None:
            self._spill(self.folder, last=True)
        for segment in self._segments:
            if delivered:
                segment.release()
            elif segment.is_shared and segment.kept == segment.tail:
                segment.park()
            else:
                segment.close()
        if self._claimed is not None:
            if self.folder is not None and delivered:
                remove_stream_folder(self.folder)
            elif self.folder is not None and not any(segment.is_shared for segment in self._segments):
                remove_shared_folder(self.folder)
            for claimed in (self._claimed, self._shared_claim):
                if claimed is not None:
                    os.close(claimed)
            self._claimed = self._shared_claim = None

    def _reason(self) -> str:
        return ", ".join(sorted(self.dropped)) or "unknown"

    def _retire(self, segment: Segment) -> None:
        if segment.in_memory:
            segment.release()
            with self._append_lock:
                self._ring_bytes -= segment.size
            return
        if segment.is_parked and self._keeper is not None and segment.path is not None:
            self._keeper.discard(segment.path, segment.tail)  # a disk is asked by that thread alone
        elif self._keeper is not None:
            self._keeper.let_go(segment, lambda: self._reuse(segment))
        else:
            self._reuse(segment)

    def _reuse(self, segment: Segment) -> None:
        is_fit = segment.size == self._size and not segment.is_parked and not self._spares
        if is_fit and self._place is not None:
            try:
                segment.reuse(self._new_path(self._place))
            except OSError:
                segment.release()
                return
            self._spares.append(segment)
            self.degraded = ""
            return
        segment.release()

    def _create_spare(self, problem: str) -> Segment:
        if not self._has_room(self._size, is_shared=self._keeper is not None):
            raise OSError(problem or f"it holds the {self._bytes_max >> 20} MB that it may")
        return self._create_file(self._size)

    def _create_file(self, size: int) -> Segment:
        assert self._place is not None
        return create_file_segment(self._new_path(self._place), size, is_shared=self._keeper is not None)

    def _new_path(self, folder: Path) -> Path:
        # Named as they are made, by either thread; the order of their records is in their headers.
        return folder / f"{next(self._file_numbers):08d}.seg"

    def _create_first(self) -> Segment:
        if self._place is not None:
            try:
                self._claim(self._place)
                return self._create_file(SEGMENT_BYTES_MIN)
            except OSError as error:
                self._degrade(f"the journal folder {self.folder} cannot be written: {error.strerror or error}")
        self._ring_bytes += SEGMENT_BYTES_MIN
        return create_memory_segment(SEGMENT_BYTES_MIN)

    def _degrade(self, reason: str) -> None:
        if not self.degraded:
            logger.warning("%s; records are kept in memory, up to %d MB", reason, RING_BYTES_MAX >> 20)
        self.degraded = reason
        self._size = SEGMENT_BYTES_MIN
        self._retry_at = time.monotonic() + _RETRY_SECONDS

    def _share(self, folder: Path) -> None:
        """Have segments made in shared memory, where the system has enough of it and the disk takes a link to it."""
        with contextlib.suppress(OSError):
            self._claim(folder)
            found = shared_folder(folder)
            if found is not None:
                self._place, self._shared_claim = found
                self._keeper = Keeper(folder, lambda: self._segments, self._bytes_max)
                self._keeper.start()

    def _disk_problem(self) -> str:
        """Why the disk behind shared memory takes nothing; said once for as long as it lasts."""
        problem = "" if self._keeper is None else self._keeper.problem
        if problem and not self._said:
            logger.warning("%s; what waits is kept in shared memory, up to %d MB", problem, SHARED_BYTES_MAX >> 20)
        self._said = problem
        return problem

    @property
    def notes_folder(self) -> Path | None:
        """Where small files about the process may lie, to be found by whoever ships the journal."""
        return self._place

    def _claim(self, folder: Path) -> None:
        if self._claimed is not None:
            return
        guard_runtime(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._claimed = claim(folder, patience_seconds=0.5)


def stream_folder(root: Path, identity: Identity) -> Path:
    """Folder of a stream's segments under a journal root."""
    return root / identity.run.hex() / f"r{identity.rank}-a{identity.attempt}-{identity.stream.hex()}"


def remove_stream_folder(folder: Path) -> None:
    """Remove a stream's folder and, when it was the last, its run's; what cannot be removed stays."""
    remove_shared_folder(folder)
    for entry in (*folder.glob("*.seg"), *folder.glob("*.tmp"), folder / LOCK_NAME):
        with contextlib.suppress(OSError):
            entry.unlink()
    for empty in (folder, folder.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()
