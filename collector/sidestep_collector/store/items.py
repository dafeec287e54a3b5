"""Items (tensors, images, histograms, texts, events) as rows of their tables."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from sidestep_collector.blocks import Event, Histogram, Image, Item, Moment, Tensor
from sidestep_collector.store.records import Row
from sidestep_collector.store.text import strict_json
from sidestep_schemas.tables import TABLE

#: Texts that describe the run: they stand in `runs`, not in `texts`.
ABOUT_THE_RUN: Final = frozenset({"config", "tags", "notes"})
#: Bytes of JSON that go into one part: DuckDB holds a part's rows in memory several times.
_CHUNK_BYTES: Final = 16 << 20


def rows(items: Sequence[Item]) -> Iterator[tuple[str, list[Row]]]:
    """Tables and their rows in the order of their sort, in portions that fit the memory of a write."""
    tables: dict[str, list[Row]] = {}
    for item in items:
        table, row = _row(item)
        if table:
            tables.setdefault(table, []).append(row)
    for table, every in tables.items():
        every.sort(key=lambda row, table=table: tuple(row[name] for name in TABLE[table].sort))
        for portion in _portions(every):
            yield table, portion


def _portions(every: list[Row]) -> Iterator[list[Row]]:
    portion: list[Row] = []
    size = 0
    for row in every:
        weight = sum(len(value) for value in row.values() if isinstance(value, (str, list)))
        if portion and size + weight > _CHUNK_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(row)
        size += weight
    yield portion


def _row(item: Item) -> tuple[str, Row]:
    row = _moment(item.at)
    if isinstance(item, Event):
        return "events", row | {"event": item.event, "details": strict_json(dict(item.details))}
    row["name"] = item.name
    if isinstance(item, Tensor):
        return "tensors", row | {"dtype": item.dtype, "shape": list(item.shape), "data": _blob(item.data)}
    if isinstance(item, Image):
        return "images", row | {"png": _blob(item.png)}
    if isinstance(item, Histogram):
        return "histograms", row | {"edges": _floats(item.edges), "counts": _floats(item.counts)}
    return ("", row) if item.what in ABOUT_THE_RUN else ("texts", row | {"text": item.text})


def _moment(at: Moment) -> Row:
    return {
        "run": at.stream.run,
        "attempt": at.stream.attempt,
        "rank": at.stream.rank,
        "step": at.step,
        "epoch": at.epoch if math.isfinite(at.epoch) else None,
        "wall_time": at.t_ns // 1000,
        "seq": at.seq,
    }


def _blob(data: bytes) -> str:
    return b64encode(data).decode()


def _floats(values: NDArray[Any]) -> list[float | str]:
    return [value if math.isfinite(value) else str(value) for value in map(float, values)]
