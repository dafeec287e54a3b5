"""CRC-32C (Castagnoli) with numpy: of one buffer, and of many records that share a template.

A CRC is linear over GF(2). With state 0 before the first byte, the CRC of a message is the exclusive or of
what each of its bytes contributes, and the contribution of byte `b` followed by `d` more bytes is a table
entry `P[d][b]`. So a record that differs from a template in a few bytes costs one look-up for each of them.

Source: RFC 3720, appendix B.4 (polynomial, test vectors); the mask is that of the TFRecord format
(tensorflow/core/lib/hash/crc32c.h).
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

#: 0x1EDC6F41 with its bits reversed.
_POLYNOMIAL: Final = 0x82F63B78
_MASK_DELTA: Final = 0xA282EAD8
#: Below this many bytes a loop over bytes is faster than numpy's call overhead.
_LOOP_BYTES: Final = 512
#: Distances that `positions` covers. Its table takes 1 KiB for each.
DISTANCES: Final = 4096


def crc32c(data: bytes) -> int:
    """The CRC-32C of `data`."""
    if len(data) <= _LOOP_BYTES:
        state, table = 0xFFFFFFFF, _byte_list()
        for byte in data:
            state = (state >> 8) ^ table[(state ^ byte) & 0xFF]
        return state ^ 0xFFFFFFFF
    start = np.array([0xFFFFFFFF], dtype="<u4")
    return int(_linear(data) ^ _advance(start, len(data))[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The CRC-32C of `data` as a TFRecord stores it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def mask(crc: Words) -> Words:
    """The same mask over an array of CRCs, in place."""
    high = crc << np.uint32(17)
    crc >>= np.uint32(15)
    crc |= high
    crc += np.uint32(_MASK_DELTA)
    return crc


@cache
def positions() -> Words:
    """Contributions to a CRC, shape (DISTANCES, 256): row `d` is for a byte with `d` bytes behind it."""
    table = np.empty((DISTANCES, 256), dtype=np.uint32)
    table[0] = _byte_table()
    done = 1
    while done < DISTANCES:
        more = min(done, DISTANCES - done, 256)  # small steps: little memory in between
        table[done : done + more] = _advance(table[:more].ravel(), done).reshape(more, 256)
        done += more
    return table


def _linear(data: bytes) -> int:
    """The CRC with state 0 before the first byte and none after: log2(n) passes, each joins neighbours."""
    # Zero bytes in front change nothing while the state is 0.
    words = np.frombuffer(bytes(-len(data) % 4) + data, dtype="<u4")
    parts, span = _advance(words, 4), 4
    while len(parts) > 1:
        if len(parts) % 2:
            parts = np.concatenate((np.zeros(1, dtype="<u4"), parts))
        parts, span = _advance(parts[0::2], span) ^ parts[1::2], span * 2
    return int(parts[0])


def _advance(states: Words, zeros: int) -> Words:
    """The states after that many zero bytes more."""
    power = 0
    while zeros >> power:
        if zeros >> power & 1:
            states = _apply(_operator(power), states)
        power += 1
    return states


def _apply(operator: Words, states: Words) -> Words:
    octets = np.ascontiguousarray(states, dtype="<u4").view(np.uint8).reshape(-1, 4)
    result = operator[0].take(octets[:, 0])
    for index in range(1, 4):
        result ^= operator[index].take(octets[:, index])
    return result


@cache
def _operator(power: int) -> Words:
    """What 2^power zero bytes make of a state, by each of its four bytes: shape (4, 256)."""
    octets = np.arange(256, dtype=np.uint32)
    if power:
        half = _operator(power - 1)
        return np.stack([_apply(half, half[index]) for index in range(4)])
    # One zero byte: the lowest byte goes through the table, the others move down.
    return np.stack([_byte_table(), *(octets << np.uint32(8 * index) for index in range(3))])


@cache
def _byte_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


@cache
def _byte_list() -> list[int]:
    return _byte_table().tolist()
