"""The bytes of scalars records of one key set, and their way into arrays.

A key set fixes every byte of such a record except crc, seq, t_ns, step, epoch and the values: its lengths, its
MessagePack tags, the id, the dtype. So a record is valid when its fixed bytes are
those of the key set, and a body of equal records is checked by comparing two columns of words: no field is
parsed before it is needed.
"""

from __future__ import annotations

import struct
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.blocks import KeySet, ScalarBlock, Stream
from sidestep_schemas.wire import (
    DTYPE_BYTES,
    DTYPE_FLOAT32,
    RECORD_PREFIX,
    SCALARS_OFFSETS,
    SCALARS_VALUES_OFFSET,
    aligned,
    pack_scalars_header,
)

Buffer = bytes | memoryview

#: One look at a scalars record: length, lead with the length of the block, seq, and the 8 bytes that name the key set.
PROBE: Final = struct.Struct("<I4x8sQ24x8s")
TAIL: Final = slice(SCALARS_OFFSETS["schema_id"], SCALARS_VALUES_OFFSET)

_WORDS: Final = SCALARS_VALUES_OFFSET // 8
_FIXED: Final = (slice(0, 4), slice(8, 16), TAIL)
_MASK: Final = np.zeros(SCALARS_VALUES_OFFSET, np.uint8)
for _part in _FIXED:
    _MASK[_part] = 0xFF
_MASK_WORDS: Final[NDArray[np.uint64]] = _MASK.view(np.uint64)

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("sidestep's collector reads value blocks in place, which needs a little-endian machine")


class Layout:
    """What a record of scalars of one key set of a stream looks like, and the records of it that wait.

    Attributes:
        tail: the 8 bytes in front of the values, which name the key set: the key to find a layout by.
        lead: the first 8 bytes of the payload.
        used: bytes of a record without padding.
        stride: bytes from a record to the next.
        chunks: byte ranges of whole records, in the order of their seq.
    """

    __slots__ = (
        *("_dtype", "_fixed", "chunks", "key_set", "lead", "length", "nbytes", "stream", "stride"),
        *("tail", "used"),
    )

    def __init__(self, stream: Stream, key_set: KeySet) -> None:
        values_nbytes = len(key_set.names) * DTYPE_BYTES[key_set.dtype]
        payload = pack_scalars_header(0, 0, 0, 0.0, key_set.id, key_set.dtype, values_nbytes)
        length = len(payload) + values_nbytes
        template = RECORD_PREFIX.pack(length, 0) + payload
        self.stream = stream
        self.key_set = key_set
        self.tail = template[TAIL]
        self.length = length
        self.lead = payload[:8]
        self.used = RECORD_PREFIX.size + length
        self.stride = aligned(self.used)
        self.chunks: list[Buffer] = []
        self.nbytes = 0
        self._fixed = np.frombuffer(template, np.uint64) & _MASK_WORDS
        value = "<f4" if key_set.dtype == DTYPE_FLOAT32 else "<f8"
        self._dtype = np.dtype(
            {
                "names": ["seq", "t_ns", "step", "epoch", "values"],
                "formats": ["<i8", "<i8", "<i8", "<f8", (value, (len(key_set.names),))],
                "offsets": [SCALARS_OFFSETS[name] for name in ("seq", "t_ns", "step", "epoch", "values")],
                "itemsize": self.stride,
            }
        )

    def uniform(self, body: Buffer, first_seq: int, count: int) -> bool:
        """Whether `body` is `count` records of this layout, with seq from `first_seq` on.

        Args:
            body: exactly `count * stride` bytes.
            first_seq: seq of the first record.
            count: records.
        """
        words = np.frombuffer(body, np.uint64).reshape(count, self.stride // 8)[:, :_WORDS]
        if not ((words & _MASK_WORDS) == self._fixed).all():
            return False
        seq = np.frombuffer(body, self._dtype)["seq"]
        return bool((seq == np.arange(first_seq, first_seq + count)).all())

    def append(self, chunk: Buffer) -> None:
        """Keep whole records that were checked; those of a chunk follow those of the chunk before."""
        self.chunks.append(chunk)
        self.nbytes += len(chunk)

    def take(self) -> ScalarBlock:
        """All that waits as one block; nothing waits afterwards."""
        joined = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks = []
        self.nbytes = 0
        rows = np.frombuffer(joined, self._dtype)
        return ScalarBlock(
            self.stream,
            self.key_set,
            rows["seq"].astype(np.int64),
            rows["t_ns"].astype(np.int64),
            rows["step"].astype(np.int64),
            rows["epoch"].astype(np.float64),
            self._values(rows),
        )

    @staticmethod
    def _values(rows: NDArray[Any]) -> NDArray[np.floating[Any]]:
        return np.ascontiguousarray(rows["values"])
