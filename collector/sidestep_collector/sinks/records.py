"""TFRecord framing and the few protobuf encodings that a template needs.

A TFRecord is `u64 length | u32 masked crc of the length | data | u32 masked crc of the data`, little-endian
(tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import struct
from typing import Final

from sidestep_collector.sinks.crc32c import masked_crc32c

#: Length and its CRC, in front of the data; the CRC of the data, behind it.
HEAD_BYTES: Final = 12
TAIL_BYTES: Final = 4


def head(length: int) -> bytes:
    """What stands in front of data of this length."""
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


def frame(data: bytes) -> bytes:
    """`data` as one record."""
    return head(len(data)) + data + struct.pack("<I", masked_crc32c(data))


def varint(number: int) -> bytes:
    """A number from 0 as a protobuf varint."""
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def field_bytes(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field (string, bytes or message)."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload
