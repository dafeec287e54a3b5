"""What the journal deals in: whose records, how a key set's are laid out, what is on its way, what became of all.

No behaviour beyond their own bytes: the journal appends and ships, these say what.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from sidestep.segments import Segment
from sidestep_schemas.wire import (
    RANGE_BYTES,
    RECORD_PREFIX,
    SCALARS_FORMAT,
    SCALARS_HEADER,
    SEGMENT_HEADER,
    aligned,
    scalars_lead,
)


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

    __slots__ = ("dtype", "id", "lead", "length", "pack_into", "stride")

    def __init__(self, key_set_id: int, count: int, dtype: int) -> None:
        record = struct.Struct(f"{SCALARS_FORMAT}{count}{'fd'[dtype]}")
        self.id = key_set_id
        self.dtype = dtype
        self.lead = scalars_lead(record.size - SCALARS_HEADER.size)
        self.pack_into = record.pack_into
        self.length = record.size
        self.stride = aligned(RECORD_PREFIX.size + self.length)


class Fate(NamedTuple):
    """Records by what became of them: all there were, stored, waiting on disk, and lost by reason."""

    sent: int
    committed: int
    pending: int
    lost: dict[str, int]


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

    def body(self) -> bytes:
        """What its frame carries: the records as they are in the segment, or the reason of a gap.

        Raises:
            OSError: the records are on a disk that does not give them back.
        """
        return self.reason.encode() if self.segment is None else self.segment.body(self.start, self.stop)


def seal_all(segment: Segment) -> None:
    """Put the checksum on each record of a segment that takes no more."""
    start = SEGMENT_HEADER.size
    while start < segment.tail:
        start, _ = seal(segment, start, segment.tail)


def seal(segment: Segment, start: int, tail: int) -> tuple[int, int]:
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
