"""The wire and the journal: how records are laid out in bytes.

A record is written once, by the training thread, into a journal segment; the same bytes travel. All
lengths are bytes, all times nanoseconds since the Unix epoch, integers of a segment are little-endian,
integers inside a MessagePack payload big-endian (as MessagePack has them), raw blocks little-endian.

Segment file: a 64-byte header (`SEGMENT_HEADER`), then records, each 8-byte aligned:

    u32 length (of the payload; stored last, 0 = end)
    u32 crc32 (of the payload, 1 where that is 0; 0 = not sealed)
    payload

Record payloads are MessagePack arrays `[kind, ...]`. Scalars, which nearly all records are, have a fixed layout
that one struct writes and one numpy dtype reads in place; they are `[1, block]`, the block little-endian:

    seq u64 | t_ns i64 | step i64 | epoch f64 | schema_id u32 | dtype code u32 | values

All others begin `[kind, seq, t_ns, step, epoch, ...]`:

    2 schema     id, dtype code, tier, names, reductions
    3 tensor     name, dtype, shape, raw
    4 text       what ("text", "config", "tags", "notes", "summary"), name, text
    5 lifecycle  event, details (a JSON object as text)
    6 figure     form ("image": PNG, empty | "histogram": edges, counts as float64), name, first, second

`seq` counts the records of a stream from 0 without holes: a hole is a loss, and is declared by a gap frame.

Frame (one ZeroMQ message on PUSH): `[version, frame_kind, run, rank, attempt, stream, first_seq, count,
body, crc32(body)]`. Of a records frame the body is a range of the journal, byte for byte (CRC fields
included); of a gap frame it is the reason as UTF-8. A frame of kind alive has no records (count 0) and no body: the
process lives and had nothing to send for a while. The first six fields keep their place in every version.

Acknowledgement (one message on PUB): topic `b"w" + stream`, then `[version, boot, watermark, received,
rewind, message]`. The watermark is the count of records committed: all with seq < watermark are safe.
`received` is the seq the collector expects next; with `rewind` it asks to be sent everything from there. A
message that is not empty says why the stream is refused. An acknowledgement is published after each commit
that moves the stream, when a hole is seen, and whenever somebody subscribes to the topic, so a trainer that
connects (again) learns at once where the collector stands.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sidestep_schemas.errors import SegmentError, VersionError

WIRE_VERSION: Final = 1

SEGMENT_MAGIC: Final = b"SIDESTEP"
#: magic, version, rank, attempt, segment number, first seq, run, stream, first 8 bytes of the boot id
SEGMENT_HEADER: Final = struct.Struct("<8sIIIIQ16s8s8s")
SEGMENT_BYTES_MIN: Final = 1 << 20
SEGMENT_BYTES_MAX: Final = 1 << 24

#: length, crc32
RECORD_PREFIX: Final = struct.Struct("<II")
RECORD_BYTES_MAX: Final = SEGMENT_BYTES_MAX - SEGMENT_HEADER.size - RECORD_PREFIX.size - 8

KIND_SCALARS: Final = 1
KIND_SCHEMA: Final = 2
KIND_TENSOR: Final = 3
KIND_TEXT: Final = 4
KIND_LIFECYCLE: Final = 5
KIND_FIGURE: Final = 6

DTYPE_FLOAT32: Final = 0
DTYPE_FLOAT64: Final = 1
DTYPE_BYTES: Final = {DTYPE_FLOAT32: 4, DTYPE_FLOAT64: 8}

#: What a scalars record begins with behind its prefix: an array of two, the kind in two bytes so that all that
#: follows is aligned, a block of bytes whose length (big-endian u32) follows.
SCALARS_LEAD: Final = b"\x92\xcc\x01\xc6"
#: The payload of a scalars record up to its values: lead with length, seq, t_ns, step, epoch, schema id, dtype.
SCALARS_FORMAT: Final = "<8sQqqdII"
SCALARS_HEADER: Final = struct.Struct(SCALARS_FORMAT)
#: Bytes of the block in front of its values.
SCALARS_BLOCK_HEAD: Final = 40
#: Where the fields of a scalars record lie, from the start of the record (prefix included).
SCALARS_OFFSETS: Final = {
    "length": 0,
    "crc": 4,
    "lead": 8,
    "seq": 16,
    "t_ns": 24,
    "step": 32,
    "epoch": 40,
    "schema_id": 48,
    "dtype": 52,
    "values": 56,
}
SCALARS_VALUES_OFFSET: Final = 56

FRAME_RECORDS: Final = 0
FRAME_GAP: Final = 1
FRAME_ALIVE: Final = 2
RANGE_BYTES: Final = 256 * 1024
FRAME_BYTES_MAX: Final = SEGMENT_BYTES_MAX + 4096

NO_STEP: Final = -1
#: Epoch of a record that was logged outside any epoch (not a number on the wire).
NO_EPOCH: Final = float("nan")

ACK_TOPIC: Final = b"w"
LIVE_TOPIC: Final = b"l"

TIER_STEP: Final = "step"
TIER_EPOCH: Final = "epoch"
TIER_PERIODIC: Final = "periodic"
TIERS: Final = (TIER_STEP, TIER_EPOCH, TIER_PERIODIC)


class SegmentHeader(NamedTuple):
    """Header of a journal segment. `run` is 16 bytes, `stream` and `boot` are 8."""

    rank: int
    attempt: int
    number: int
    first_seq: int
    run: bytes
    stream: bytes
    boot: bytes

    def pack(self) -> bytes:
        """The 64 bytes that open a segment file."""
        return SEGMENT_HEADER.pack(
            SEGMENT_MAGIC,
            WIRE_VERSION,
            self.rank,
            self.attempt,
            self.number,
            self.first_seq,
            self.run,
            self.stream,
            self.boot,
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> SegmentHeader:
        """Read a header.

        Raises:
            SegmentError: the bytes are no segment header.
            VersionError: the segment was written by a newer version.
        """
        if len(data) < SEGMENT_HEADER.size:
            raise SegmentError(f"a segment header has {SEGMENT_HEADER.size} bytes, these are {len(data)}")
        magic, version, rank, attempt, number, first_seq, run, stream, boot = SEGMENT_HEADER.unpack_from(data)
        if magic != SEGMENT_MAGIC:
            raise SegmentError(f"no journal segment: it begins with {bytes(magic)!r}, not {SEGMENT_MAGIC!r}")
        if version > WIRE_VERSION:
            raise VersionError(
                f"the journal segment is of wire version {version}, this sidestep reads up to {WIRE_VERSION}: "
                "upgrade sidestep here; the segment is left as it is"
            )
        return cls(rank, attempt, number, first_seq, run, stream, boot)


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the 8-byte grid of a segment."""
    return (nbytes + 7) & ~7


def scalars_lead(values_nbytes: int) -> bytes:
    """The first 8 payload bytes of a scalars record with so many bytes of values."""
    return SCALARS_LEAD + (SCALARS_BLOCK_HEAD + values_nbytes).to_bytes(4, "big")


def pack_scalars_header(  # noqa: PLR0917 - the fields, in their order
    seq: int, t_ns: int, step: int, epoch: float, schema_id: int, dtype: int, values_nbytes: int
) -> bytes:
    """The 48 payload bytes in front of the values of a scalars record."""
    return SCALARS_HEADER.pack(scalars_lead(values_nbytes), seq, t_ns, step, epoch, schema_id, dtype)
