"""The wire and the journal: how records are laid out in bytes.

A record is written once, by the training thread, into a journal segment; the same bytes travel. All
lengths are bytes, all times nanoseconds since the Unix epoch, integers of a segment are little-endian,
integers inside a MessagePack payload big-endian (as MessagePack has them), raw value blocks little-endian.

Segment file: a 64-byte header (`SEGMENT_HEADER`), then records, each 8-byte aligned:

    u32 length (of the payload; stored last, 0 = end)
    u32 crc32 (of the payload, 1 where that is 0; 0 = not sealed)
    payload

Record payloads are MessagePack arrays that begin `[kind, seq, t_ns, step, epoch, ...]`:

    1 scalars    schema_id, dtype code, values       fixed width, so one struct writes it (`SCALARS_HEADER`)
    2 schema     id, dtype code, tier, names, reductions
    3 tensor     name, dtype, shape, raw
    4 text       what ("text", "config", "tags", "notes", "summary"), name, text
    5 lifecycle  event, details (a JSON object as text)
    6 figure     form ("image": PNG, empty | "histogram": edges, counts as float64), name, first, second

`seq` counts the records of a stream from 0 without holes: a hole is a loss, and is declared by a gap frame.

Frame (one ZeroMQ message on PUSH): `[version, frame_kind, run, rank, attempt, stream, first_seq, count,
body, crc32(body)]`. Of a records frame the body is a range of the journal, byte for byte (CRC fields
included); of a gap frame it is the reason as UTF-8. The first six fields keep their place in every version.

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

#: The payload of a scalars record up to its values, every field with its MessagePack tag byte. With the
#: 8 bytes of the prefix it is 64 bytes long, so the values are aligned.
SCALARS_HEADER: Final = struct.Struct(">BBHBQBqBqBdBQBBBI")
#: Where the fields of a scalars record lie, from the start of the record (prefix included).
SCALARS_OFFSETS: Final = {
    "length": 0,
    "crc": 4,
    "tag": 8,
    "kind_tag": 9,
    "kind": 10,
    "seq": 13,
    "t_ns": 22,
    "step": 31,
    "epoch": 40,
    "schema_id": 49,
    "dtype": 58,
    "nbytes": 60,
    "values": 64,
}
SCALARS_VALUES_OFFSET: Final = 64

FRAME_RECORDS: Final = 0
FRAME_GAP: Final = 1
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


def pack_scalars_header(  # noqa: PLR0917 - the fields, in their order
    seq: int, t_ns: int, step: int, epoch: float, schema_id: int, dtype: int, values_nbytes: int
) -> bytes:
    """The 56 payload bytes in front of the values of a scalars record."""
    return SCALARS_HEADER.pack(
        *(0x98, 0xCD, KIND_SCALARS, 0xCF, seq, 0xD3, t_ns, 0xD3, step, 0xCB, epoch),
        *(0xCF, schema_id, 0xCC, dtype, 0xC6, values_nbytes),
    )
