"""Reading a journal: what was appended is cut into ranges for shipping, each once, and what is missing is named.

Called by the drain thread alone, while the training thread appends behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from sidestep.records import Shipment, seal
from sidestep.segments import Segment
from sidestep_schemas.segment import iter_ranges
from sidestep_schemas.wire import SEGMENT_HEADER

logger = logging.getLogger("sidestep")


class Reader:
    """How far a journal was read.

    Attributes:
        number: number of the segment that is read next.
        offset: where in it.
        seq: of the record that comes next.
    """

    def __init__(self) -> None:
        self.number = 0
        self.offset = SEGMENT_HEADER.size
        self.seq = 0

    def is_behind(self, segment: Segment) -> bool:
        """Whether it has read all that a segment holds, and stands at its end."""
        return self.number == segment.number and self.offset == segment.tail

    def shipments(self, segments: Iterable[Segment], reason: Callable[[], str]) -> Iterator[Shipment]:
        """Cut what it has not read into ranges, with the gaps between segments.

        Args:
            segments: in the order of their records.
            reason: says why records are missing.
        """
        for segment in segments:
            if segment.number < self.number:
                continue
            if segment.first_seq > self.seq:
                lost, self.seq = segment.first_seq - self.seq, segment.first_seq
                yield Shipment(self.seq - lost, lost, None, reason=reason())
            if segment.number > self.number:
                self.number, self.offset = segment.number, SEGMENT_HEADER.size
            yield from self._parked(segment) if segment.is_parked else self._mapped(segment)

    def _mapped(self, segment: Segment) -> Iterator[Shipment]:
        while self.offset < (tail := segment.tail):
            start, first = self.offset, self.seq
            self.offset, records = seal(segment, start, tail)
            self.seq += records
            yield Shipment(first, records, segment, start, self.offset)

    def _parked(self, segment: Segment) -> Iterator[Shipment]:
        if self.offset >= segment.tail:
            return
        try:
            with segment.opened() as view:
                for start, stop, records in iter_ranges(view[: segment.tail], start=self.offset):
                    first, self.offset = self.seq, stop
                    self.seq += records
                    yield Shipment(first, records, segment, start, stop)
        except OSError as error:
            logger.warning("a segment of the journal cannot be read back: %s", error)
        if self.seq < segment.next_seq:
            lost, self.seq, self.offset = segment.next_seq - self.seq, segment.next_seq, segment.tail
            yield Shipment(self.seq - lost, lost, None, reason="the file that held them was damaged")
