"""MessagePack for what is not a record of scalars. Names and texts that are no valid UTF-8 are mended, not refused."""

from __future__ import annotations

from typing import Any

import msgpack


def packed(*fields: Any) -> bytes:
    """Fields as a MessagePack array.

    Raises:
        TypeError, ValueError, OverflowError: a field that MessagePack has no form for.
    """
    data: Any = msgpack.packb(fields, unicode_errors="replace")
    return bytes(data)
