"""Rows for people and for programs."""

from __future__ import annotations

import json
import math
import shutil
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

_GAP: Final = "  "
#: No column is made narrower than this, however narrow the terminal.
_WIDTH_MIN: Final = 6


def as_json(value: object) -> str:
    """Strict JSON: non-finite numbers are null, times are ISO 8601 in UTC, bytes are base64."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=2)


def as_text(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None = None) -> str:
    """An aligned table that fits the terminal: the widest columns are cut first."""
    numeric = [all(isinstance(row[at], (int, float)) or row[at] is None for row in rows) for at in range(len(columns))]
    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    room = (width or shutil.get_terminal_size((120, 24)).columns) - len(_GAP) * (len(columns) - 1)
    while sum(widths) > room and max(widths, default=0) > _WIDTH_MIN:
        widths[widths.index(max(widths))] -= 1
    lines.insert(1, ["-" * size for size in widths])
    return "\n".join(_line(line, widths, numeric).rstrip() for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    cut = [cell if len(cell) <= size else cell[: size - 1] + "…" for cell, size in zip(cells, widths, strict=True)]
    return _GAP.join(
        cell.rjust(size) if right else cell.ljust(size) for cell, size, right in zip(cut, widths, numeric, strict=True)
    )


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.strftime("%Y-%m-%d %H:%M:%S")
        case bytes():
            return f"{len(value)} bytes"
        case _:
            return str(value).replace("\n", " ").replace("\t", " ")


def _plain(value: object) -> Any:
    match value:
        case float():
            plain: Any = value if math.isfinite(value) else None
        case bool() | int() | str() | None:
            plain = value
        case datetime():
            plain = value.isoformat() + ("Z" if value.tzinfo is None else "")
        case bytes():
            plain = b64encode(value).decode()
        case Mapping():
            plain = {str(key): _plain(one) for key, one in cast("Mapping[object, object]", value).items()}
        case list() | tuple():
            plain = [_plain(one) for one in cast("Sequence[object]", value)]
        case _:
            plain = str(value)
    return plain
