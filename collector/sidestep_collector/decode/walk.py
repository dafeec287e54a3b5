"""The walk through a body that is not all of one kind: record by record, and nothing kept before the end.

Neighbouring records of one key set are joined to one chunk again, so even here no record of scalars costs more
than one look at its header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sidestep_collector.blocks import Item, KeySet, Stream
from sidestep_collector.decode.errors import UnknownKeySetError
from sidestep_collector.decode.layout import PROBE, Buffer, Layout
from sidestep_collector.decode.records import decode_record
from sidestep_schemas.errors import WireError
from sidestep_schemas.wire import KIND_SCALARS, RECORD_PREFIX, SCALARS_LEAD, aligned


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a frame: `count` records with seq from `first_seq` on, the first `skip` of them known."""

    data: Buffer
    first_seq: int
    count: int
    skip: int


class _Piece(NamedTuple):
    layout: Layout
    start: int
    stop: int


class Walk:
    """One pass over a body. `run` reads it; then `items`, `new_layouts` and `chunks` are what it holds."""

    def __init__(self, stream: Stream, layouts: dict[bytes, Layout], body: Body) -> None:
        self.items: list[Item] = []
        self.new_layouts: dict[bytes, Layout] = {}
        self._stream = stream
        self._layouts = layouts
        self._body = memoryview(body.data)
        self._first_seq = body.first_seq
        self._count = body.count
        self._keep_from = body.first_seq + body.skip
        self._pieces: list[_Piece] = []

    def run(self) -> None:
        """Read all records.

        Raises:
            UnknownKeySetError, WireError: naming the first record that is wrong.
        """
        position, seq = 0, self._first_seq
        try:
            for seq in range(self._first_seq, self._first_seq + self._count):
                position = self._record(position, seq)
        except UnknownKeySetError:
            raise
        except WireError as failure:
            index = seq - self._first_seq
            raise WireError(f"record {index} of {self._count} (seq {seq}, byte {position}): {failure}") from None
        if position != len(self._body):
            raise WireError(f"{len(self._body) - position} bytes behind the last of {self._count} records")

    def chunks(self) -> Iterator[tuple[Layout, Buffer]]:
        """The records of scalars that are new, as ranges of whole records."""
        for layout, start, stop in self._pieces:
            chunk = self._body[start:stop]
            # only the last record of a file that was cut there can lack its padding
            missing = -len(chunk) % 8
            yield layout, bytes(chunk) + bytes(missing) if missing else chunk

    def _record(self, start: int, seq: int) -> int:
        """Read the record at `start`; returns where the next one begins."""
        body, size = self._body, len(self._body)
        if start + RECORD_PREFIX.size > size:
            raise WireError("the body ends before it")
        length, _ = RECORD_PREFIX.unpack_from(body, start)
        stop = start + RECORD_PREFIX.size + length
        if length == 0 or stop > size:
            raise WireError(f"a length of {length} bytes, {size - start - RECORD_PREFIX.size} are left")
        following = min(start + aligned(RECORD_PREFIX.size + length), size)
        payload = body[start + RECORD_PREFIX.size : stop]
        if bytes(payload[: len(SCALARS_LEAD)]) == SCALARS_LEAD:
            self._scalars(start, following, length, seq)
        elif payload[0] & 0xF0 == 0x90 and length > 1 and payload[1] == KIND_SCALARS:
            raise WireError("scalars that are not in their fixed layout")
        else:
            self._other(payload, seq)
        return following

    def _scalars(self, start: int, following: int, length: int, seq: int) -> None:
        if RECORD_PREFIX.size + length < PROBE.size:
            raise WireError(f"scalars of {length} bytes, shorter than their header")
        _, lead, carried, tail = PROBE.unpack_from(self._body, start)
        if carried != seq:
            raise WireError(f"carries seq {carried}")
        layout = self.new_layouts.get(tail) or self._layouts.get(tail)
        if layout is None:
            if seq < self._keep_from:
                return
            raise self._no_layout(tail, seq)
        if length != layout.length or lead != layout.lead:
            raise WireError(f"scalars that do not fit their key set of {len(layout.key_set.names)} names")
        if seq >= self._keep_from:
            self._piece(layout, start, following)

    def _piece(self, layout: Layout, start: int, stop: int) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.layout is layout and last.stop == start:
            self._pieces[-1] = _Piece(layout, last.start, stop)
        else:
            self._pieces.append(_Piece(layout, start, stop))

    def _other(self, payload: Buffer, seq: int) -> None:
        found = decode_record(self._stream, payload, seq)
        if isinstance(found, KeySet):
            self._declare(found)
        elif seq >= self._keep_from:
            self.items.append(found)

    def _declare(self, key_set: KeySet) -> None:
        known = self._known(key_set.id)
        if known is None:
            layout = Layout(self._stream, key_set)
            self.new_layouts[layout.tail] = layout
        elif known.key_set != key_set:
            raise WireError(f"declares the key set {key_set.id} anew, with other names or another dtype")

    def _no_layout(self, tail: bytes, seq: int) -> WireError:
        """Why no layout fits: the id is unknown, or known with another dtype or number of values."""
        key_set_id = int.from_bytes(tail[:4], "little")
        known = self._known(key_set_id)
        if known is not None:
            return WireError(f"scalars whose dtype or size is not that of key set {key_set_id}")
        return UnknownKeySetError(
            f"the record with seq {seq} is of key set {key_set_id}, which its stream did not declare here",
            key_set_id=key_set_id,
            seq=seq,
        )

    def _known(self, key_set_id: int) -> Layout | None:
        for layouts in (self.new_layouts, self._layouts):
            for layout in layouts.values():
                if layout.key_set.id == key_set_id:
                    return layout
        return None
