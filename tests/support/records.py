"""Opens the payload of a record, scalars in their fixed layout too."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from sidestep_schemas.wire import KIND_SCALARS


def unpacked(payload: bytes) -> list[Any]:
    """`[kind, seq, t_ns, step, epoch, *fields]`; the fields of scalars are schema id, dtype code and raw values."""
    fields = msgpack.unpackb(payload)
    if fields[0] != KIND_SCALARS:
        return fields
    seq, t_ns, step, epoch, schema_id, dtype = struct.unpack_from("<QqqdII", fields[1])
    return [KIND_SCALARS, seq, t_ns, step, epoch, schema_id, dtype, fields[1][40:]]
