"""Records that are not scalars: typed MessagePack, checked against their bounds, into items.

Each record is decoded by one union of structs whose lists and names are bounded *before* memory is taken for
them: a header of five bytes may announce four thousand million names.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from sidestep_collector.blocks import Event, Histogram, Image, Item, KeySet, Moment, Stream, Tensor, Text
from sidestep_collector.decode.frame import DECODE_FAILURES
from sidestep_schemas.errors import WireError
from sidestep_schemas.wire import (
    DTYPE_BYTES,
    KIND_FIGURE,
    KIND_LIFECYCLE,
    KIND_SCHEMA,
    KIND_TENSOR,
    KIND_TEXT,
    TIERS,
)

NAMES_MAX: Final = 10_000
NAME_BYTES_MAX: Final = 1024
DETAILS_CHARACTERS_MAX: Final = 8 << 20
#: JSON of 8 MiB can be four million empty lists of 56 bytes; what is no log of values needs far fewer lists,
#: objects and keys.
DETAILS_PARTS_MAX: Final = 200_000
#: Half of a surrogate pair, which Python's json writes for file names that are not UTF-8. No text can hold it.
_LONE_SURROGATE: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"

#: Bytes of an element; a tensor of another dtype passes with whatever bytes it has.
TENSOR_ITEM_BYTES: Final = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}

Integer64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]


# Only key sets bound their names: they are kept for as long as the stream lives. A name of an item is as long as
# its record lets it be, for to refuse it would lose all records of its body.


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    t_ns: Integer64
    step: Integer64
    epoch: float

    def at(self, stream: Stream) -> Moment:
        return Moment(stream, self.seq, self.t_ns, self.step, self.epoch)


class _Schema(_Record, frozen=True, tag=KIND_SCHEMA):
    id: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    dtype: int
    tier: Name
    names: Annotated[tuple[Name, ...], Meta(max_length=NAMES_MAX)]
    reductions: Annotated[tuple[Name, ...], Meta(max_length=NAMES_MAX)]


class _Tensor(_Record, frozen=True, tag=KIND_TENSOR):
    name: str
    dtype: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**62)], ...], Meta(max_length=32)]
    raw: bytes


class _Text(_Record, frozen=True, tag=KIND_TEXT):
    what: str
    name: str
    text: str


class _Lifecycle(_Record, frozen=True, tag=KIND_LIFECYCLE):
    event: str
    details: Annotated[str, Meta(max_length=DETAILS_CHARACTERS_MAX)]


class _Figure(_Record, frozen=True, tag=KIND_FIGURE):
    form: str
    name: str
    first: bytes
    second: bytes


_AnyRecord = _Schema | _Tensor | _Text | _Lifecycle | _Figure
_records = msgspec.msgpack.Decoder(_AnyRecord)
_details = msgspec.json.Decoder(dict[str, Any])


def decode_record(stream: Stream, payload: bytes | memoryview, seq: int) -> Item | KeySet:
    """Decode a payload of the kinds 2 to 6.

    Args:
        stream: whose record it is.
        payload: the MessagePack array, without prefix and padding.
        seq: the seq that it must carry.

    Raises:
        WireError: what is wrong with it; the caller adds which record it was.
    """
    try:
        record: _AnyRecord = _records.decode(payload)
    except DECODE_FAILURES as failure:
        raise WireError(f"no record of a known kind: {failure}") from None
    if record.seq != seq:
        raise WireError(f"carries seq {record.seq}")
    match record:
        case _Schema():
            return _key_set(record)
        case _Tensor():
            return _tensor(record, record.at(stream))
        case _Text():
            return Text(record.at(stream), record.what, record.name, record.text)
        case _Lifecycle():
            return Event(record.at(stream), record.event, _decode_details(record.details))
        case _Figure():
            return _figure(record, record.at(stream))


def _key_set(record: _Schema) -> KeySet:
    if record.dtype not in DTYPE_BYTES:
        raise WireError(f"a key set of dtype code {record.dtype}; known are {sorted(DTYPE_BYTES)}")
    if record.tier not in TIERS:
        raise WireError(f"a key set of tier {record.tier!r}; known are {', '.join(TIERS)}")
    # UTF-8 has one to four bytes a character: only a long name that is not ASCII needs encoding to be measured
    if any(len(name) > NAME_BYTES_MAX // 4 and len(name.encode()) > NAME_BYTES_MAX for name in record.names):
        raise WireError(f"a key set with a name of more than {NAME_BYTES_MAX} bytes")
    if len(set(record.names)) != len(record.names):
        raise WireError("a key set that has a name twice")
    if record.reductions and len(record.reductions) != len(record.names):
        raise WireError(f"a key set of {len(record.names)} names and {len(record.reductions)} reductions")
    return KeySet(record.id, record.dtype, record.tier, record.names, record.reductions)


def _tensor(record: _Tensor, at: Moment) -> Tensor:
    item_bytes = TENSOR_ITEM_BYTES.get(record.dtype)
    elements = math.prod(record.shape)
    if item_bytes is not None and elements * item_bytes != len(record.raw):
        raise WireError(
            f"a tensor {record.name!r} of shape {list(record.shape)} and dtype {record.dtype} has "
            f"{len(record.raw)} bytes, not {elements * item_bytes}"
        )
    return Tensor(at, record.name, record.dtype, record.shape, record.raw)


def _decode_details(text: str) -> dict[str, Any]:
    if text.count('":') + text.count("[") + text.count("{") > DETAILS_PARTS_MAX:
        raise WireError(f"details of an event with more than {DETAILS_PARTS_MAX} parts")
    try:
        # looked for first: a search for a fixed text costs nothing beside the decoding
        return _details.decode(_LONE_SURROGATE.sub(r"\\ufffd", text) if "\\ud" in text.lower() else text)
    except DECODE_FAILURES as failure:
        raise WireError(f"details of an event are no JSON object: {failure}") from None


def _figure(record: _Figure, at: Moment) -> Image | Histogram:
    if record.form == "image":
        if not record.first.startswith(PNG_MAGIC):
            raise WireError(f"an image {record.name!r} that is no PNG")
        return Image(at, record.name, record.first)
    if record.form != "histogram":
        raise WireError(f"a figure of form {record.form!r}; known are image, histogram")
    if len(record.first) % 8 or len(record.first) != len(record.second) + 8:
        raise WireError(
            f"a histogram {record.name!r} with {len(record.first)} bytes of edges and {len(record.second)} of counts: "
            "there is one edge more than counts, 8 bytes each"
        )
    return Histogram(at, record.name, np.frombuffer(record.first, "<f8"), np.frombuffer(record.second, "<f8"))
