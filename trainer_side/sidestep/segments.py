"""Segments: the files (or, where no file can be had, the memory) that records are appended to.

Made, zeroed, recycled and removed by the drain thread; written by the training thread through a memory map,
so that appending is a copy into memory and survives the death of the process. One that waits for a collector is
parked: its file stays, its memory does not. Touches files, never a socket.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Generator
from pathlib import Path

from sidestep_schemas.wire import RECORD_PREFIX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENT_HEADER, SegmentHeader

#: Memory for records that no file would take: beyond it they are dropped and counted.
RING_BYTES_MAX = 16 * SEGMENT_BYTES_MIN

_ZEROS = bytes(1 << 18)


class Segment:
    """Room for records.

    Attributes:
        number: position in its stream, from 0, once it is in use.
        size: bytes, header included.
        limit: no record may end behind it: its size, or 0 once nothing more may go into it.
        tail: offset behind the last whole record. Only the training thread moves it.
        records: whole records in it.
        first_seq: seq of its first record, once it is in use.
        is_shared: its file lies in shared memory and not on a disk.
        kept: where it is shared, so many of its first bytes lie on disk too, in `kept_path`.
    """

    __slots__ = (
        *("_map", "first_seq", "is_shared", "kept", "kept_path", "limit"),
        *("number", "path", "records", "size", "tail", "view", "words"),
    )

    def __init__(
        self, size: int, mapping: mmap.mmap | bytearray, path: Path | None, *, is_shared: bool = False
    ) -> None:
        self.number = -1
        self.size = size
        self.limit = size
        self.path = path
        self.is_shared = is_shared
        self.kept = 0
        self.kept_path: Path | None = None
        self._map: mmap.mmap | bytearray | None = mapping
        self.view = memoryview(mapping)
        self.words = self.view.cast("I")
        self.tail = SEGMENT_HEADER.size
        self.records = 0
        self.first_seq = -1

    @property
    def next_seq(self) -> int:
        """Seq behind its last record."""
        return self.first_seq + self.records

    def open(self, header: SegmentHeader) -> None:
        """Put it to use: from here on the file says whose records it holds."""
        self.number, self.first_seq = header.number, header.first_seq
        self.view[: SEGMENT_HEADER.size] = header.pack()

    def reuse(self, path: Path) -> None:
        """Make an acknowledged segment empty again, under a new name. Keeps its disk blocks and its memory.

        Raises:
            OSError: it cannot be renamed.
        """
        if self.path is not None:
            _prefault(self.view[: self.tail])
            self.path.rename(path)
            self.path = path
        self.limit, self.tail, self.records = self.size, SEGMENT_HEADER.size, 0
        self.number = self.first_seq = -1

    @property
    def in_memory(self) -> bool:
        """Whether its records do not survive the process."""
        return isinstance(self._map, bytearray)

    def spill(self, path: Path, *, is_shared: bool = False) -> None:
        """Move a segment from memory to a file, so that its records survive the process. Nothing is appended after.

        Args:
            path: of the file.
            is_shared: it lies in shared memory.

        Raises:
            OSError: the file cannot be written; the segment is as it was.
        """
        unfinished = path.with_suffix(".tmp")
        try:
            unfinished.write_bytes(self.view[: self.tail])
            with unfinished.open("r+b") as file:
                mapping = mmap.mmap(file.fileno(), self.tail)
            unfinished.rename(path)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise OSError(str(error)) from error
        self.close()
        self._map, self.path, self.size, self.limit = mapping, path, self.tail, 0
        self.is_shared = is_shared
        self.view = memoryview(mapping)
        self.words = self.view.cast("I")

    @property
    def is_parked(self) -> bool:
        """Whether its records lie in its file alone. It takes no more."""
        return self._map is None

    def park(self) -> None:
        """Give back its memory, and go on from the copy on disk where it was shared. Nothing is appended after."""
        self.close()
        self._map, self.limit = None, 0
        if self.is_shared and self.kept_path is not None:
            _unlink(self.path)
            self.path, self.is_shared = self.kept_path, False

    @contextlib.contextmanager
    def opened(self) -> Generator[memoryview]:
        """Its bytes; those of a parked one are mapped for as long, and cannot be changed.

        Raises:
            OSError: the file of a parked one cannot be read, or lost its end.
        """
        if self._map is not None or self.path is None:
            yield self.view
            return
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self.tail:
                raise OSError(f"{self.path} is shorter than it was")
            mapping = mmap.mmap(file.fileno(), self.tail, access=mmap.ACCESS_READ)
        view = memoryview(mapping)
        try:
            yield view
        finally:
            view.release()
            mapping.close()

    def body(self, start: int, stop: int) -> bytes:
        """A copy of its bytes.

        Raises:
            OSError: see `opened`.
        """
        with self.opened() as view:
            return bytes(view[start:stop])

    def close(self) -> None:
        """Give back its memory; its file stays."""
        self.words.release()
        self.view.release()
        if isinstance(self._map, mmap.mmap):
            self._map.close()

    def release(self) -> None:
        """Give back its memory and remove its file; one that cannot be removed is found again by `sidestep sync`."""
        self.close()
        _unlink(self.path)


def create_file_segment(path: Path, size: int, *, is_shared: bool = False) -> Segment:
    """A segment in a new file whose blocks are reserved and whose pages are in memory.

    Reserving matters: storing into a mapped page that has no block left on a full disk is a SIGBUS.

    Args:
        path: of the file.
        size: in bytes.
        is_shared: the file lies in shared memory: storing into it waits for no disk.

    Raises:
        OSError: the disk is full, read-only, or does not map files.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _reserve(descriptor, size)
        segment = Segment(size, mmap.mmap(descriptor, size), path, is_shared=is_shared)
        _prefault(segment.view)
    except (OSError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    finally:
        os.close(descriptor)
    return segment


def create_memory_segment(size: int) -> Segment:
    """A segment in memory: survives neither the process nor the machine, but a dead disk."""
    return Segment(size, bytearray(size), None)


def segment_size_for(nbytes: int) -> int:
    """Size of a segment that holds a record of `nbytes` payload."""
    needed = SEGMENT_HEADER.size + RECORD_PREFIX.size + nbytes + 8
    size = SEGMENT_BYTES_MIN
    while size < needed:
        size *= 4
    return min(size, SEGMENT_BYTES_MAX)


def _unlink(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for _ in range(0, size, len(_ZEROS)):  # macOS
        os.write(descriptor, _ZEROS)


def _prefault(view: memoryview) -> None:
    # The kernel copies zeros into the mapped pages while the interpreter lock is free: it empties a recycled
    # segment and makes the pages of a new one present, so that the training thread meets no page fault.
    # Measured: 12 ms for 16 MiB of new pages, 1.4 ms of present ones, none of it holding the lock.
    with open("/dev/zero", "rb", buffering=0) as zeros:  # noqa: PTH123 - a device, read unbuffered
        done = 0
        while done < len(view):
            done += zeros.readinto(view[done:]) or 0
