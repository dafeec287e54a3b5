"""Scalar events as bytes: a template for each set of tags, filled in for many records at once.

All values of a record stand in one event, so the tags, lengths and field keys of an event are the same in
every record of a key set. What differs is copied in as columns, and the CRC follows from these bytes alone
(see `crc32c`). Protobuf allows fields in any order, and a varint padded to ten bytes, so an event is

    summary {value {tag, simple_value} ...}   wall_time   step (ten bytes)

with everything that differs close to the end: a tag of any length then still fits the table of distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.sinks import crc32c, records

Octets = NDArray[np.uint8]

# Keys of protobuf fields (number << 3 | wire type) of tensorflow/core/util/event.proto and summary.proto.
_EVENT_WALL_TIME: Final = b"\x09"
_EVENT_STEP: Final = b"\x10"
_EVENT_SUMMARY: Final = 5
_SUMMARY_VALUE: Final = 1
_VALUE_TAG: Final = 1
_VALUE_SIMPLE: Final = b"\x15"

_VARINT_BYTES: Final = 10
#: wall_time and step with their keys: they end every event.
_END_BYTES: Final = 1 + 8 + 1 + _VARINT_BYTES
#: Most bytes of values in one event, so that its first value lies within the table of distances.
_SUMMARY_BYTES_MAX: Final = crc32c.DISTANCES - _END_BYTES
#: Bytes filled in one go: what a second-level cache holds beside the tables.
_CHUNK_BYTES: Final = 1 << 18


def templates(names: Sequence[str]) -> list[tuple[slice, ScalarTemplate]]:
    """Templates that together hold all tags, each with the columns it takes: as few as fit."""
    values = [_value(name) for name in names]
    cuts, size = [0], 0
    for index, value in enumerate(values):
        if index > cuts[-1] and size + len(value) > _SUMMARY_BYTES_MAX:
            cuts.append(index)
            size = 0
        size += len(value)
    cuts.append(len(values))
    return [(slice(a, b), ScalarTemplate(values[a:b])) for a, b in pairwise(cuts) if b > a]


class ScalarTemplate:
    """The record of one event with a fixed set of tags.

    Attributes:
        record_bytes: length of a record, framing included.
    """

    def __init__(self, values: Sequence[bytes]) -> None:
        summary = b"".join(values)
        event = (
            records.field_bytes(_EVENT_SUMMARY, summary)
            + _EVENT_WALL_TIME
            + bytes(8)
            + _EVENT_STEP
            + bytes(_VARINT_BYTES)
        )
        self.record_bytes = records.HEAD_BYTES + len(event) + records.TAIL_BYTES
        self._record: Octets = np.frombuffer(records.head(len(event)) + event + bytes(4), dtype=np.uint8)
        self._crc = np.uint32(crc32c.crc32c(event))
        end = records.HEAD_BYTES + len(event)
        ends = np.cumsum([len(value) for value in values]) + end - _END_BYTES - len(summary)
        self._places = np.concatenate(
            (
                (ends[:, None] + np.arange(-4, 0)).ravel(),
                np.arange(end - _END_BYTES + 1, end - _END_BYTES + 9),
                np.arange(end - _VARINT_BYTES, end),
            )
        )
        self._rows: NDArray[np.intp] = ((end - 1 - self._places) * 256).astype(np.intp)
        self._chunk = max(1, _CHUNK_BYTES // self.record_bytes)

    def fill(
        self, wall_time: NDArray[np.float64], step: NDArray[np.int64], values: NDArray[np.floating[Any]]
    ) -> Iterator[Octets]:
        """Records of many events, a chunk of them at a time.

        Args:
            wall_time: seconds since the Unix epoch, shape (records,).
            step: shape (records,).
            values: shape (records, tags); written as float32.

        Yields:
            Arrays of shape (rows, record_bytes).
        """
        for start in range(0, len(step), self._chunk):
            rows = slice(start, start + self._chunk)
            yield self._fill(wall_time[rows], step[rows], values[rows])

    def _fill(
        self, wall_time: NDArray[np.float64], step: NDArray[np.int64], values: NDArray[np.floating[Any]]
    ) -> Octets:
        varying = np.empty((len(step), len(self._places)), dtype=np.uint8)
        wide = varying.shape[1] - 8 - _VARINT_BYTES
        varying[:, :wide] = _float32(values).view(np.uint8)
        varying[:, wide : wide + 8] = wall_time.astype("<f8")[:, None].view(np.uint8)
        varying[:, wide + 8 :] = padded_varints(step)
        filled = np.empty((len(step), self.record_bytes), dtype=np.uint8)
        filled[:] = self._record
        filled[:, self._places] = varying
        parts = crc32c.positions().ravel().take(np.add(varying, self._rows, dtype=np.intp))
        crc = np.bitwise_xor.reduce(parts, axis=1)
        crc ^= self._crc
        filled[:, -records.TAIL_BYTES :] = crc32c.mask(crc).astype("<u4")[:, None].view(np.uint8)
        return filled


def padded_varints(numbers: NDArray[np.int64]) -> Octets:
    """Numbers as varints of ten bytes each, shape (numbers, 10); negative ones as protobuf's int64 has them.

    Nine bytes of seven bits with the continuation bit set, whether needed or not, and the 64th bit.
    """
    unsigned = numbers.astype(np.int64).view(np.uint64)
    shifts = np.arange(0, 7 * _VARINT_BYTES, 7, dtype=np.uint64)
    octets = (unsigned[:, None] >> shifts).astype(np.uint8)
    octets[:, :-1] |= 0x80
    octets[:, -1] &= 0x01
    return octets


def _value(name: str) -> bytes:
    tag = records.field_bytes(_VALUE_TAG, name.encode("utf-8", "replace"))
    return records.field_bytes(_SUMMARY_VALUE, tag + _VALUE_SIMPLE + bytes(4))


def _float32(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    # A float64 above float32's range becomes an infinity, as every TensorBoard writer has it.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype="<f4")
