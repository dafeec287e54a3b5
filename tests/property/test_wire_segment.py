"""Segments and headers as bytes: whatever they hold, reading ends, in bounds, at a record's edge."""

import struct
import zlib

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from support.records import unpacked

from sidestep_schemas.segment import iter_ranges
from sidestep_schemas.wire import (
    KIND_SCALARS,
    RECORD_PREFIX,
    SEGMENT_HEADER,
    SegmentHeader,
    aligned,
    pack_scalars_header,
)

U32 = st.integers(0, 2**32 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
U64 = st.integers(0, 2**64 - 1)


def eight(size: int = 8):
    return st.binary(min_size=size, max_size=size)


@given(st.builds(SegmentHeader, U32, U32, U32, U64, eight(16), eight(), eight()))
def test_a_header_survives_its_bytes(header):
    assert SegmentHeader.unpack(header.pack()) == header


@given(U64, I64, I64, st.floats(), U32, st.sampled_from([0, 1]), st.lists(st.floats(), max_size=50))
def test_a_scalars_record_is_plain_messagepack(seq, t_ns, step, epoch, schema_id, dtype, values):
    raw = struct.pack(f"<{len(values)}d", *values)
    payload = pack_scalars_header(seq, t_ns, step, epoch, schema_id, dtype, len(raw)) + raw
    assert msgpack.unpackb(payload)[0] == KIND_SCALARS
    fields = unpacked(payload)
    assert fields[:4] == [KIND_SCALARS, seq, t_ns, step]
    assert struct.pack(">d", fields[4]) == struct.pack(">d", epoch)
    assert fields[5:] == [schema_id, dtype, raw]


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.booleans()), max_size=20), st.integers(8, 500))
def test_ranges_cover_all_records_in_order(records, limit):
    data = bytearray(SEGMENT_HEADER.size)
    edges = [len(data)]
    for payload, sealed in records:
        data += RECORD_PREFIX.pack(len(payload), (zlib.crc32(payload) or 1) if sealed else 0) + payload
        data += bytes(aligned(len(data)) - len(data))
        edges.append(len(data))
    found = list(iter_ranges(bytes(data) + bytes(64), limit=limit))
    assert sum(part.records for part in found) == len(records)
    assert [part.start for part in found] == ([64] if records else []) + [part.stop for part in found[:-1]]
    assert all(part.stop in edges and (part.stop - part.start <= limit or part.records == 1) for part in found)


@given(st.binary(max_size=400), st.booleans(), st.integers(1, 100))
def test_any_bytes_end_reading_within_them(noise, sealed_only, limit):
    data = bytes(SEGMENT_HEADER.size) + noise
    position = SEGMENT_HEADER.size
    for start, stop, records in iter_ranges(data, sealed_only=sealed_only, limit=limit):
        assert start == position < stop <= len(data)
        assert records >= 1
        position = stop
