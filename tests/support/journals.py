"""Journals to test with: made in a folder, and read back as a collector would see them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sidestep.encode import packed
from sidestep.journal import Journal
from sidestep.records import Identity, KeySetLayout, Shipment
from sidestep_schemas.wire import DTYPE_FLOAT64, KIND_TEXT, RECORD_PREFIX, aligned
from support.journal_reader import fields_of

IDENTITY = Identity(run=b"r" * 16, rank=3, attempt=1, stream=b"streamid", boot=b"bootboot")
LAYOUT = KeySetLayout(0, 2, DTYPE_FLOAT64)


def new_journal(folder: Path | None, **more: Any) -> Journal:
    return Journal(folder, IDENTITY, **more)


def log(journal: Journal, *values: float, step: int = 0) -> bool:
    """Append a record of two numbers."""
    return journal.append_scalars(1, step, 0.0, LAYOUT, values or (1.0, 2.0))


def write(journal: Journal, nbytes: int) -> bool:
    """Append a text of `nbytes`."""
    return journal.append(lambda seq: packed(KIND_TEXT, seq, 1, 0, 0.0, "text", "name", "x" * nbytes))


def payloads(shipment: Shipment) -> list[list[Any]]:
    """Records of a shipment, decoded."""
    assert shipment.segment is not None
    found: list[list[Any]] = []
    position = 0
    view = shipment.body()
    while position < len(view):
        length, seal = RECORD_PREFIX.unpack_from(view, position)
        assert length
        start = position + RECORD_PREFIX.size
        found.append(fields_of(bytes(view[start : start + length])))
        position = aligned(start + length)
    assert len(found) == shipment.records
    return found


def seqs_and_gaps(shipments: Iterable[Shipment]) -> tuple[list[int], list[int]]:
    """Seqs of the records, and seqs that were declared lost; checks that both follow each other without a hole."""
    seqs: list[int] = []
    lost: list[int] = []
    expected: int | None = None
    for shipment in shipments:
        assert expected is None or shipment.first_seq == expected
        expected = shipment.next_seq
        named = range(shipment.first_seq, shipment.next_seq)
        if shipment.segment is None:
            assert shipment.reason
            lost.extend(named)
            continue
        assert [fields[1] for fields in payloads(shipment)] == list(named)
        seqs.extend(named)
    return seqs, lost
