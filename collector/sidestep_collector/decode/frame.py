"""The frame: one message of the data socket, opened with types and checked against its sum.

libzmq hands whatever a raw TCP client writes to a PULL socket as messages, so bytes that are no frame are
an everyday matter here: they end in a `WireError` of one line, and cost no more memory than they have.
"""

from __future__ import annotations

import zlib
from typing import Annotated

import msgspec
from msgspec import Meta

from sidestep_collector.decode.errors import NewerVersionError
from sidestep_schemas.errors import WireError
from sidestep_schemas.wire import FRAME_ALIVE, FRAME_BYTES_MAX, FRAME_RECORDS, WIRE_VERSION

Version = Annotated[int, Meta(ge=1, le=2**31 - 1)]
RunUid = Annotated[bytes, Meta(min_length=16, max_length=16)]
StreamKey = Annotated[bytes, Meta(min_length=8, max_length=8)]
Unsigned32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
#: Ranks and attempts are INTEGER in the store.
Unsigned31 = Annotated[int, Meta(ge=0, le=2**31 - 1)]
#: seq and count stay below 2**62, so their sum is an int64.
FirstSeq = Annotated[int, Meta(ge=0, le=2**62)]
Count = Annotated[int, Meta(ge=0, le=2**62)]


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A frame of this version.

    Attributes:
        kind: `FRAME_RECORDS`, `FRAME_GAP` or `FRAME_ALIVE`.
        run: 16 bytes.
        stream: 8 bytes, unique to the start of a process.
        first_seq: seq of the first record of the body, or of the first record that is lost.
        count: records in the body, or records lost; at least one, except in a sign of life.
        body: the range of the journal, or the reason as UTF-8; a view into the message, not a copy.
    """

    version: Version
    kind: Annotated[int, Meta(ge=FRAME_RECORDS, le=FRAME_ALIVE)]
    run: RunUid
    rank: Unsigned31
    attempt: Unsigned31
    stream: StreamKey
    first_seq: FirstSeq
    count: Count
    body: memoryview
    crc: Unsigned32


class _Envelope(msgspec.Struct, array_like=True):
    """What every version of the frame begins with; fields behind these are skipped unread."""

    version: Version
    kind: int
    run: RunUid
    rank: Unsigned31
    attempt: Unsigned31
    stream: StreamKey


_frames = msgspec.msgpack.Decoder(Frame)
_envelopes = msgspec.msgpack.Decoder(_Envelope)
#: Everything that msgspec raises for bytes: wrong types, bad UTF-8, nesting beyond the interpreter's limit.
DECODE_FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_frame(data: bytes | memoryview) -> Frame:
    """Open a message.

    Args:
        data: the whole message. The frame's body is a view into it.

    Raises:
        WireError: the message is no frame, or its body is not what was sent.
        NewerVersionError: the frame is of a newer version; the error says who sent it.
    """
    size = len(data)
    if size > FRAME_BYTES_MAX:
        raise WireError(f"no frame: {size} bytes, at most {FRAME_BYTES_MAX} are allowed")
    try:
        frame = _frames.decode(data)
    except DECODE_FAILURES as failure:
        _refuse_newer(data)
        raise WireError(f"no frame: {failure}") from None
    if frame.version > WIRE_VERSION:
        _refuse_newer(data)
    if (frame.count == 0) != (frame.kind == FRAME_ALIVE):
        raise WireError(f"no frame: kind {frame.kind} with {frame.count} records")
    if zlib.crc32(frame.body) != frame.crc:
        raise WireError(
            f"damaged frame: {len(frame.body)} bytes of body from rank {frame.rank} of run {frame.run.hex()} "
            "do not fit their crc32"
        )
    return frame


def _refuse_newer(data: bytes | memoryview) -> None:
    try:
        envelope = _envelopes.decode(data)
    except DECODE_FAILURES:
        return
    if envelope.version > WIRE_VERSION:
        raise NewerVersionError(
            f"rank {envelope.rank} of run {envelope.run.hex()} sends wire version {envelope.version}, this collector "
            f"reads up to {WIRE_VERSION}: upgrade the collector; the trainer keeps its journal",
            version=envelope.version,
            run=envelope.run,
            rank=envelope.rank,
            attempt=envelope.attempt,
            stream=envelope.stream,
        )
