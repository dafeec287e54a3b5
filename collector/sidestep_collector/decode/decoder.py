"""The decoder: bodies of frames in, blocks and items out.

`add` is called for each frame and does little: a body of equal scalars records, which is nearly all there is,
is checked where it lies and kept as bytes. `take` is called for each flush and makes one block for each stream
and key set, so the price of numpy calls is paid per flush and not per frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sidestep_collector.blocks import Item, KeySet, ScalarBlock, Stream
from sidestep_collector.decode.layout import PROBE, Buffer, Layout
from sidestep_collector.decode.walk import Body, Walk


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder gathered: blocks in the order in which streams came, items in the order of arrival.

    `key_sets` are those that were new. `nbytes` counts the bytes of the bodies.
    """

    blocks: list[ScalarBlock] = field(default_factory=list[ScalarBlock])
    items: list[Item] = field(default_factory=list[Item])
    key_sets: list[tuple[Stream, KeySet]] = field(default_factory=list[tuple[Stream, KeySet]])
    nbytes: int = 0


class Decoder:
    """Turns bodies into blocks; remembers the key sets of every stream until it is forgotten."""

    def __init__(self) -> None:
        self._layouts: dict[bytes, dict[bytes, Layout]] = {}
        self._waiting: list[Layout] = []
        self._items: list[Item] = []
        self._key_sets: list[tuple[Stream, KeySet]] = []
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of bodies that were added since the last `take`."""
        return self._nbytes

    def add(self, stream: Stream, body: Buffer, first_seq: int, count: int, *, skip: int = 0) -> None:
        """Check a body and keep its records.

        The body is kept as it is until `take`: it must not change. Key sets are learned from skipped records
        too.

        Args:
            stream: whose body it is.
            body: `count` whole records of a journal, seq from `first_seq` on.
            first_seq: seq of the first record of the body.
            count: records in the body.
            skip: how many records at its beginning are known already and not kept.

        Raises:
            UnknownKeySetError: a record of scalars belongs to a key set that the stream did not declare.
            WireError: the body is something else; nothing of it was kept.
        """
        layouts = self._layouts.get(stream.key)
        if layouts is None:
            layouts = self._layouts[stream.key] = {}
        size = len(body)
        if size >= PROBE.size:
            length, lead, seq, tail = PROBE.unpack_from(body)
            layout = layouts.get(tail)
            if (
                layout is not None
                and size == layout.stride * count
                and length == layout.length
                and lead == layout.lead
                and seq == first_seq
                and (count == 1 or layout.uniform(body, first_seq, count))
            ):
                if skip < count:
                    self._keep(layout, memoryview(body)[skip * layout.stride :] if skip else body)
                    self._nbytes += size
                return
        self._add_mixed(stream, layouts, Body(body, first_seq, count, skip))

    def restore(self, stream: Stream, key_sets: Iterable[KeySet]) -> None:
        """Learn the key sets that a stream declared before this collector started."""
        layouts = self._layouts.setdefault(stream.key, {})
        for key_set in key_sets:
            layout = Layout(stream, key_set)
            layouts.setdefault(layout.tail, layout)

    def forget(self, stream: Stream) -> None:
        """Drop the key sets of a stream that has ended; records of it that wait are still taken."""
        self._layouts.pop(stream.key, None)

    def take(self) -> Decoded:
        """Everything that was added since the last take."""
        decoded = Decoded([layout.take() for layout in self._waiting], self._items, self._key_sets, self._nbytes)
        self._waiting, self._items, self._key_sets, self._nbytes = [], [], [], 0
        return decoded

    def _keep(self, layout: Layout, chunk: Buffer) -> None:
        if not layout.chunks:
            self._waiting.append(layout)
        layout.append(chunk)

    def _add_mixed(self, stream: Stream, layouts: dict[bytes, Layout], body: Body) -> None:
        walk = Walk(stream, layouts, body)
        walk.run()
        for layout in walk.new_layouts.values():
            layouts[layout.tail] = layout
            self._key_sets.append((stream, layout.key_set))
        for layout, chunk in walk.chunks():
            self._keep(layout, chunk)
        self._items += walk.items
        self._nbytes += len(body.data) if body.skip < body.count else 0
