"""Reads back what a run recorded: the records in the segments of a journal that nobody has shipped."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidestep_schemas.layout import segment_files
from sidestep_schemas.segment import iter_ranges
from sidestep_schemas.wire import (
    DTYPE_BYTES,
    KIND_FIGURE,
    KIND_LIFECYCLE,
    KIND_SCALARS,
    KIND_SCHEMA,
    KIND_TENSOR,
    KIND_TEXT,
    RECORD_PREFIX,
)
from support.records import unpacked

NAMES = {
    KIND_SCALARS: "scalars",
    KIND_SCHEMA: "schema",
    KIND_TENSOR: "tensor",
    KIND_TEXT: "text",
    KIND_LIFECYCLE: "lifecycle",
    KIND_FIGURE: "figure",
}


@dataclass(frozen=True)
class Record:
    """A record: `fields` are what follows kind, seq, t_ns, step and epoch; `values` those of scalars, by tag."""

    kind: str
    seq: int
    t_ns: int
    step: int
    epoch: float
    fields: tuple[Any, ...]
    tier: str = ""
    values: dict[str, float] | None = None


def read_records(folder: Path | str) -> list[Record]:
    """All records of the stream folders under `folder`, streams one after the other, each in the order of seq."""
    streams = sorted(Path(place) for place, _, _ in os.walk(folder) if segment_files(Path(place)))
    return [record for stream in streams for record in _read_stream(stream)]


def read_scalars(folder: Path | str, tag: str) -> dict[int, float]:
    """Values of one tag by step."""
    return {
        record.step: record.values[tag]
        for record in read_records(folder)
        if record.values is not None and tag in record.values
    }


def read_tags(folder: Path | str) -> set[str]:
    """Tags of all scalars."""
    return {tag for record in read_records(folder) for tag in record.values or ()}


def read_events(folder: Path | str, name: str) -> list[dict[str, Any]]:
    """Details of all events of a name."""
    found = [record for record in read_records(folder) if record.kind == "lifecycle" and record.fields[0] == name]
    return [json.loads(record.fields[1]) for record in found]


def fields_of(payload: bytes) -> list[Any]:
    """Fields of a record; those of scalars are `kind, seq, t_ns, step, epoch, key set, dtype, values`."""
    fields = unpacked(payload)
    if fields[0] != KIND_SCALARS or len(fields) > 2:
        return fields
    head = struct.Struct("<QqqdII")
    return [KIND_SCALARS, *head.unpack_from(fields[1]), fields[1][head.size :]]


def _read_stream(folder: Path) -> list[Record]:
    payloads = (payload for path in segment_files(folder) for payload in _payloads(path.read_bytes()))
    found = {fields[1]: fields for fields in map(fields_of, payloads)}  # some lie in shared memory and on disk
    ordered = [found[seq] for seq in sorted(found)]
    key_sets: dict[int, tuple[str, list[str]]] = {}
    records: list[Record] = []
    for kind, seq, t_ns, step, epoch, *fields in ordered:
        at = (NAMES[kind], seq, t_ns, step, epoch, tuple(fields))
        if kind == KIND_SCHEMA:
            key_sets[fields[0]] = (fields[2], fields[3])
        if kind != KIND_SCALARS:
            records.append(Record(*at))
            continue
        tier, names = key_sets[fields[0]]
        _, dtype, raw = fields
        numbers = struct.unpack(f"<{len(raw) // DTYPE_BYTES[dtype]}{'fd'[dtype]}", raw)
        records.append(Record(*at, tier, dict(zip(names, numbers, strict=True))))
    return records


def _payloads(segment: bytes) -> Iterator[bytes]:
    for found in iter_ranges(segment):
        position = found.start
        for _ in range(found.records):
            length, _ = RECORD_PREFIX.unpack_from(segment, position)
            start = position + RECORD_PREFIX.size
            yield segment[start : start + length]
            position = (start + length + 7) & ~7
