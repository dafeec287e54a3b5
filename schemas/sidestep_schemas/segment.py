"""Reading a journal segment: which records in it are whole, and where they lie.

Works on bytes that are handed in; opens nothing. Used to ship what a dead process left behind.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sidestep_schemas.wire import RANGE_BYTES, RECORD_PREFIX, SEGMENT_HEADER, aligned


class Range(NamedTuple):
    """Consecutive records of a segment: `records` of them in the bytes `start:stop`."""

    start: int
    stop: int
    records: int


def iter_ranges(
    segment: bytes | memoryview, *, sealed_only: bool = False, start: int | None = None, limit: int = RANGE_BYTES
) -> Iterator[Range]:
    """Yield the whole records of a segment in ranges of at most `limit` bytes (one record at least).

    Reading ends at the first record that is not whole: a length of 0, a length beyond the file, or a seal
    that does not fit its bytes.

    Args:
        segment: the whole file, header included.
        sealed_only: stop at the first record without a seal. Said after a machine crash, when bytes that
            were never flushed may be missing from the middle of the page cache's file.
        start: offset of the first record; default behind the header.
        limit: bytes of a range.
    """
    position = SEGMENT_HEADER.size if start is None else start
    begin, count = position, 0
    end = len(segment)
    while position + RECORD_PREFIX.size <= end:
        length, seal = RECORD_PREFIX.unpack_from(segment, position)
        stop = position + RECORD_PREFIX.size + length
        if length == 0 or stop > end:
            break
        if seal:
            if (zlib.crc32(segment[position + RECORD_PREFIX.size : stop]) or 1) != seal:
                break
        elif sealed_only:
            break
        following = min(aligned(stop), end)
        if count and following - begin > limit:
            yield Range(begin, position, count)
            begin, count = position, 0
        position, count = following, count + 1
    if count:
        yield Range(begin, position, count)
