"""Journals that a process left behind: found by their free lock, read back, shipped by the same pusher.

A process that was killed leaves whole records in the page cache; one that ended while the collector was away
leaves them on purpose. Both look alike here. Touches files, never a socket.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack

from sidestep.encode import packed
from sidestep.ending import read_signal, remove_signal_files
from sidestep.journal import remove_stream_folder
from sidestep.records import Identity, Shipment
from sidestep.segments import Segment, create_memory_segment, segment_size_for
from sidestep_schemas.claims import claim
from sidestep_schemas.errors import SegmentError
from sidestep_schemas.layout import SHARED_LINK, segment_files
from sidestep_schemas.segment import iter_ranges
from sidestep_schemas.wire import KIND_LIFECYCLE, NO_EPOCH, RECORD_PREFIX, SEGMENT_HEADER, SegmentHeader, aligned


class LeftoverJournal:
    """A stream on disk whose process is gone. Holds the stream's lock until it is closed.

    Args:
        folder: folder of the stream.
        boot: first 8 bytes of this machine's boot id: segments of another boot count only as far as sealed.

    Attributes:
        seq: records it holds, counted from the stream's first; one more than is on disk where the process did
            not say its end: that end ("killed") is said here.

    Raises:
        BlockingIOError: the process lives, or another reader has it.
        SegmentError: nothing in the folder can be read. Where nothing was left in it either, it is removed.
        VersionError: written by a newer version.
    """

    def __init__(self, folder: Path, boot: bytes) -> None:
        self.folder = folder
        self.is_growing = False
        self.wanted = threading.Event()
        self.damaged: list[Path] = []
        self._lock = claim(folder)
        try:
            self._segments = self._load(boot)
        except BaseException:
            os.close(self._lock)
            raise
        if not self._segments:
            if not self.damaged:
                remove_signal_files(folder)
                remove_stream_folder(folder)
            os.close(self._lock)
            raise SegmentError(f"{folder}: no segment in it can be read")
        header = SegmentHeader.unpack(self._segments[0][0].view)
        self.identity = Identity(header.run, header.rank, header.attempt, header.stream, header.boot)
        self.first_seq = header.first_seq
        self._add_missing_end()
        self._pending = self._shipments()

    @property
    def seq(self) -> int:
        """Records it holds, counted from the stream's first."""
        return self._segments[-1][0].next_seq

    @property
    def nbytes(self) -> int:
        """Bytes of records."""
        return sum(segment.tail for segment, _ in self._segments)

    def provide(self) -> None:
        """Nothing to provide: nothing is appended."""

    def shipments(self) -> Iterator[Shipment]:
        """Everything, once; a generator that is not exhausted goes on from there at the next call."""
        return self._pending

    def release_below(self, watermark: int) -> None:
        """Nothing before the end: files go when all of them are stored."""

    def close(self, *, delivered: bool) -> None:
        """Let go of the stream, and remove its folder when all of it is stored; what cannot be read stays."""
        for segment, _ in self._segments:
            if delivered:
                segment.release()
            else:
                segment.close()
        if delivered and not self.damaged:
            remove_signal_files(self.folder)
            remove_stream_folder(self.folder)
        os.close(self._lock)

    def _load(self, boot: bytes) -> list[tuple[Segment, list[Shipment]]]:
        loaded: list[tuple[Segment, list[Shipment]]] = []
        for path in segment_files(self.folder):
            try:
                segment = _read_segment(path)
                header = SegmentHeader.unpack(segment.view)
            except (SegmentError, OSError):
                if not _is_unused(path):
                    self.damaged.append(path)
                continue
            segment.first_seq = header.first_seq
            shipments: list[Shipment] = []
            for start, stop, records in iter_ranges(segment.view, sealed_only=header.boot != boot):
                shipments.append(Shipment(segment.next_seq, records, segment, start, stop))
                segment.records += records
                segment.tail = stop
            loaded.append((segment, shipments))
        # What lies on disk and in shared memory is one segment: the latter holds what was written last.
        loaded.sort(key=lambda entry: (entry[0].first_seq, entry[0].records))
        whole = {segment.first_seq: (segment, shipments) for segment, shipments in loaded}
        for segment, _ in loaded:
            if segment is not whole[segment.first_seq][0]:
                segment.close()
        return list(whole.values())

    def _add_missing_end(self) -> None:
        last = next((shipments[-1] for _, shipments in reversed(self._segments) if shipments), None)
        if last is not None and _ends_with_an_end(last):
            return
        traces = read_signal(self.folder) or read_signal(self.folder / SHARED_LINK)
        details = json.dumps({"status": "killed", **traces})
        payload = packed(KIND_LIFECYCLE, self.seq, time.time_ns(), -1, NO_EPOCH, "end", details)
        segment = create_memory_segment(segment_size_for(len(payload)))
        segment.first_seq, segment.records = self.seq, 1
        start = segment.tail
        segment.tail = stop = start + aligned(RECORD_PREFIX.size + len(payload))
        segment.view[start + 8 : start + 8 + len(payload)] = payload
        segment.words[start >> 2] = len(payload)
        self._segments.append((segment, [Shipment(segment.first_seq, 1, segment, start, stop)]))

    def _shipments(self) -> Iterator[Shipment]:
        expected = self.first_seq
        for segment, shipments in self._segments:
            if segment.first_seq > expected:
                reason = "the segment that held them is missing or damaged"
                yield Shipment(expected, segment.first_seq - expected, None, reason=reason)
            yield from shipments
            expected = segment.next_seq


def _read_segment(path: Path) -> Segment:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size & ~7  # a file that was cut may end anywhere
        if size < SEGMENT_HEADER.size:
            raise SegmentError(f"{path}: shorter than a header")
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return Segment(size, mapping, path)


def _is_unused(path: Path) -> bool:
    """Whether a file was made as a spare and never put to use: the disk gave its blocks, and nothing was written."""
    try:
        with path.open("rb") as file:
            return not any(file.read(SEGMENT_HEADER.size))
    except OSError:
        return False


def _ends_with_an_end(shipment: Shipment) -> bool:
    segment = shipment.segment
    if segment is None:
        return False
    *_, last = iter_ranges(segment.view[: shipment.stop], start=shipment.start, limit=1)
    length, _ = RECORD_PREFIX.unpack_from(segment.view, last.start)
    with contextlib.suppress(ValueError, TypeError, LookupError, msgpack.UnpackException):
        fields = msgpack.unpackb(segment.view[last.start + 8 : last.start + 8 + length], max_array_len=64)
        return fields[0] == KIND_LIFECYCLE and fields[5] == "end"
    return False
