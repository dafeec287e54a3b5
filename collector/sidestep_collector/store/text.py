"""Text on its way into SQL: quoting, and JSON that every reader accepts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

#: Levels of JSON that are kept where it is too deep for Python to write.
_DEPTH_MAX: Final = 100


@lru_cache(maxsize=1 << 16)
def clean(text: str) -> str:
    """`text` without what UTF-8 or SQL cannot carry: lone surrogates and NUL become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + clean(text).replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A quoted name of a table or column."""
    return '"' + name.replace('"', '""') + '"'


def strict_json(value: object) -> str:
    """JSON of anything: NaN and infinities become null, lone surrogates "?", what JSON does not know its text."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_plain(value), allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def _plain(value: object, depth: int = 0) -> Any:
    if depth > _DEPTH_MAX:
        return "..."
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one, depth + 1) for key, one in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [_plain(one, depth + 1) for one in cast("Sequence[object]", value)]
    return str(value)
