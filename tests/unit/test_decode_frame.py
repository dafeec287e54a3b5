"""The envelope: what is refused, how it is said, and who is to be answered."""

import zlib

import msgpack
import pytest

from sidestep_collector.decode import NewerVersionError, decode_frame
from sidestep_schemas.errors import VersionError, WireError
from sidestep_schemas.wire import FRAME_BYTES_MAX

RUN, STREAM = b"r" * 16, b"s" * 8
FIELDS = {
    "version": 1,
    "kind": 0,
    "run": RUN,
    "rank": 3,
    "attempt": 0,
    "stream": STREAM,
    "first_seq": 5,
    "count": 2,
    "body": b"body",
    "crc": zlib.crc32(b"body"),
}


def packed(**changes: object) -> bytes:
    return msgpack.packb(list({**FIELDS, **changes}.values()))


def test_a_frame_opens_without_a_copy_of_its_body() -> None:
    data = packed()
    frame = decode_frame(data)
    assert isinstance(frame.body, memoryview)
    assert frame.body.obj is data
    assert (bytes(frame.body), frame.first_seq, frame.count, frame.rank) == (b"body", 5, 2, 3)
    assert decode_frame(memoryview(data)) == frame


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"kind": 2},
        {"run": b"short"},
        {"run": "a text instead"},
        {"rank": -1},
        {"rank": 2**32},
        {"stream": b"s" * 9},
        {"first_seq": -1},
        {"first_seq": 2**63},
        {"count": 0},
        {"body": "text"},
        {"crc": zlib.crc32(b"other")},
        {"more": 1},
    ],
    ids=str,
)
def test_a_field_out_of_range_is_refused_in_one_line(changes: dict[str, object]) -> None:
    with pytest.raises(WireError) as caught:
        decode_frame(packed(**changes))
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80" * 1000,
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        packed()[:-1],
        packed() + b"x",
    ],
    ids=["nothing", "http", "maps", "nested", "huge array", "cut", "longer"],
)
def test_what_a_stranger_sends_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="no frame"):
        decode_frame(data)


def test_a_message_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(WireError, match="at most"):
        decode_frame(bytes(FRAME_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "data",
    [packed(version=2), msgpack.packb([7, 99, RUN, 3, 0, STREAM, {"new": ["shape"]}])],
    ids=["same shape", "another shape"],
)
def test_a_newer_version_says_whom_to_answer(data: bytes) -> None:
    with pytest.raises(NewerVersionError, match="upgrade the collector") as caught:
        decode_frame(data)
    error = caught.value
    assert isinstance(error, VersionError)
    assert (error.run, error.rank, error.attempt, error.stream) == (RUN, 3, 0, STREAM)
    assert error.version > 1
