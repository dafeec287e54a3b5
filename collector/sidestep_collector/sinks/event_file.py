"""Files of records that grow, and can be cut back to what was committed.

A file's length here is what was appended and handed to the operating system. On first touch a file is cut
to its committed length; a file without one is emptied. Whatever a batch appended can be taken back until
the next batch begins.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from sidestep_collector.sinks import records

Chunk = bytes | memoryview

#: Files open at a time. A run is one file or a few, and there may be a thousand runs.
OPEN_FILES: Final = 128
#: Small chunks are joined up to here, a larger one is written as it is. Calls of 64 to 256 KiB were 1.5 to 3
#: times as fast as calls of 1 MiB, which leave the cache between filling and writing.
_WRITE_BYTES: Final = 1 << 16


class EventFiles:
    """The files below a folder, by their path relative to it."""

    def __init__(self, root: Path, committed: Mapping[str, int], open_files: int = OPEN_FILES) -> None:
        self._root = root
        self._lengths = dict(committed)
        self._limit = open_files
        self._open: OrderedDict[str, int] = OrderedDict()
        self._before: dict[str, int] = {}
        self._complete = True

    def begin(self) -> None:
        """A new batch: what came before it stays. A batch that broke off is taken back first."""
        if not self._complete:
            self.discard()
        self._before.clear()
        self._complete = False

    def finish(self) -> dict[str, int]:
        """The batch is complete: the new lengths of the files that it touched."""
        self._complete = True
        return {path: self._lengths[path] for path in self._before}

    def touched(self) -> list[str]:
        """The files that the batch has touched."""
        return list(self._before)

    def length(self, path: str) -> int:
        """Length of a file; opens it."""
        self._descriptor(path)
        return self._lengths[path]

    def append(self, path: str, chunks: Iterable[Chunk]) -> None:
        """Appends to a file.

        Raises:
            OSError: it cannot be written; `discard` cuts off what was.
        """
        descriptor = self._descriptor(path)
        self._before.setdefault(path, self._lengths[path])
        for buffer in _joined(chunks):
            _write_at(descriptor, buffer, self._lengths[path])
            self._lengths[path] += len(buffer)

    def leading(self, path: str, limit: int) -> Iterator[bytes]:
        """Data of the records that lie within the first `limit` bytes of a file."""
        descriptor = self._descriptor(path)
        for begin, end in _spans(descriptor, min(limit, self._lengths[path])):
            yield os.pread(descriptor, end - begin, begin)

    def discard(self) -> None:
        """Cuts the files of the batch back to their lengths before it; a file that it made goes.

        Raises:
            OSError: a file cannot be cut back; call again.
        """
        self._complete = False
        for path, length in list(self._before.items()):
            if length:
                # Opening cuts to the length that is noted; it cannot where the file was open all along.
                self._lengths[path] = length
                os.ftruncate(self._descriptor(path), self._lengths[path])
            else:
                self._close(path)
                self._lengths.pop(path, None)
                (self._root / path).unlink(missing_ok=True)
            del self._before[path]
        self._complete = True

    def close(self) -> None:
        """Closes all files."""
        for path in list(self._open):
            self._close(path)

    def _descriptor(self, path: str) -> int:
        descriptor = self._open.get(path)
        if descriptor is not None:
            if os.fstat(descriptor).st_nlink:
                self._open.move_to_end(path)
                return descriptor
            self._close(path)  # somebody deleted the file: it starts anew
        if len(self._open) >= self._limit:
            self._close(next(iter(self._open)))
        file = self._root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._open[path] = descriptor
        self._lengths[path] = _cut(descriptor, self._lengths.get(path, 0))
        return descriptor

    def _close(self, path: str) -> None:
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)


def _cut(descriptor: int, length: int) -> int:
    """Cuts a file to a length, or to its last whole record where it is shorter. Returns what it has then."""
    size = os.fstat(descriptor).st_size
    if size < length:
        # Appends are not fsynced: after a power cut the file may lack what was committed.
        length = max((end + records.TAIL_BYTES for _, end in _spans(descriptor, size)), default=0)
    if size != length:
        os.ftruncate(descriptor, length)
    return length


def _spans(descriptor: int, limit: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the data of each whole record below `limit`; ends at a damaged length."""
    at = 0
    while at + records.HEAD_BYTES <= limit:
        head = os.pread(descriptor, records.HEAD_BYTES, at)
        (length,) = struct.unpack_from("<Q", head)
        begin = at + records.HEAD_BYTES
        at = begin + length + records.TAIL_BYTES
        if head != records.head(length) or at > limit:
            return
        yield begin, begin + length


def _joined(chunks: Iterable[Chunk]) -> Iterator[memoryview]:
    pending: list[Chunk] = []
    size = 0
    for chunk in chunks:
        pending.append(chunk)
        size += memoryview(chunk).nbytes
        if size >= _WRITE_BYTES:
            yield _one(pending)
            pending, size = [], 0
    if pending:
        yield _one(pending)


def _one(chunks: list[Chunk]) -> memoryview:
    return memoryview(chunks[0] if len(chunks) == 1 else b"".join(chunks)).cast("B")


def _write_at(descriptor: int, buffer: memoryview, offset: int) -> None:
    while buffer:
        written = os.pwrite(descriptor, buffer, offset)
        buffer = buffer[written:]
        offset += written
