"""Reading a segment back: whole records, and an end at the first that is not."""

import zlib

import pytest

from sidestep_schemas.errors import SegmentError, VersionError
from sidestep_schemas.segment import Range, iter_ranges
from sidestep_schemas.wire import RECORD_PREFIX, SEGMENT_HEADER, WIRE_VERSION, SegmentHeader

HEADER = SegmentHeader(1, 2, 3, 4, b"r" * 16, b"s" * 8, b"b" * 8)


def record(payload: bytes, *, sealed: bool = False) -> bytes:
    seal = (zlib.crc32(payload) or 1) if sealed else 0
    data = RECORD_PREFIX.pack(len(payload), seal) + payload
    return data + bytes(-len(data) % 8)


def segment(*records: bytes, room: int = 64) -> bytes:
    return HEADER.pack() + b"".join(records) + bytes(room)


def count(data: bytes, **options: object) -> int:
    return sum(found.records for found in iter_ranges(data, **options))


def test_a_header_reads_as_it_was_written():
    assert SegmentHeader.unpack(HEADER.pack()) == HEADER
    assert len(HEADER.pack()) == 64


@pytest.mark.parametrize("data", [b"", HEADER.pack()[:63], bytes(64), b"something else" * 9])
def test_bytes_that_are_no_header_are_refused(data):
    with pytest.raises(SegmentError):
        SegmentHeader.unpack(data)


def test_a_newer_header_says_what_to_do():
    data = bytearray(HEADER.pack())
    data[8] = WIRE_VERSION + 1
    with pytest.raises(VersionError, match="upgrade sidestep here; the segment is left as it is"):
        SegmentHeader.unpack(data)


def test_a_segment_without_records_has_no_range():
    assert list(iter_ranges(segment())) == []
    assert list(iter_ranges(b"")) == []


def test_records_of_all_lengths_are_found():
    data = segment(*(record(b"x" * length) for length in range(1, 30)))
    assert count(data) == 29
    (found,) = iter_ranges(data)
    assert (found.start, found.stop) == (SEGMENT_HEADER.size, len(data) - 64)


def test_ranges_have_at_most_their_limit_or_one_record():
    data = segment(record(b"x" * 24), record(b"x" * 24), record(b"x" * 24), record(b"x" * 240), record(b"x" * 8))
    assert list(iter_ranges(data, limit=64)) == [
        Range(64, 128, 2),
        Range(128, 160, 1),
        Range(160, 408, 1),
        Range(408, 424, 1),
    ]


def test_reading_may_start_at_a_record():
    data = segment(record(b"x" * 24), record(b"y" * 8))
    assert list(iter_ranges(data, start=96)) == [Range(96, 112, 1)]


@pytest.mark.parametrize("length", [0, 10_000, 2**32 - 1])
def test_reading_ends_at_a_length_that_cannot_be(length):
    torn = RECORD_PREFIX.pack(length, 0) + b"x" * 24
    assert count(segment(record(b"whole"), torn, record(b"behind"))) == 1


def test_reading_ends_at_a_seal_that_does_not_fit():
    bad = bytearray(record(b"contents", sealed=True))
    bad[9] ^= 1
    assert count(segment(record(b"a", sealed=True), bytes(bad), record(b"b", sealed=True))) == 1


def test_records_without_a_seal_count_only_where_no_machine_died():
    data = segment(record(b"a", sealed=True), record(b"b"), record(b"c", sealed=True))
    assert count(data) == 3
    assert count(data, sealed_only=True) == 1


def test_a_payload_whose_checksum_is_zero_counts_as_sealed():
    payload = b"\x9d\x0a\xd9\x6d"  # its crc32 is 0
    assert zlib.crc32(payload) == 0
    assert count(segment(record(payload, sealed=True)), sealed_only=True) == 1


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_file_that_was_cut_gives_the_records_before_the_cut(cut):
    data = segment(record(b"a" * 16, sealed=True), record(b"b" * 16, sealed=True), room=0)
    assert count(data[:-cut]) == (1 if cut <= 24 else 0)
