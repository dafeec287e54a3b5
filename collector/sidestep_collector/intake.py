"""Intake: from messages to records that count. Which are new, which are repeated, which are missing.

Bridges receiving and decoding for the pipeline, on its thread. Nothing is acknowledged here as stored.
"""

from __future__ import annotations

import time
from typing import Any, Final

import structlog

from sidestep_collector.blocks import Event, Gap, Stream
from sidestep_collector.decode import Decoder, Frame, NewerVersionError, decode_frame
from sidestep_collector.decode.records import decode_record
from sidestep_collector.quarantine import Quarantine
from sidestep_collector.receive import Registry, Sockets, StreamState
from sidestep_collector.telemetry import Counters
from sidestep_schemas.errors import VersionError, WireError
from sidestep_schemas.wire import FRAME_ALIVE, FRAME_GAP, RECORD_PREFIX

log: Any = structlog.get_logger()

#: What one turn reads at most, so that acknowledgements and questions get their turn.
_TURN_BYTES: Final = 8 << 20
_TURN_FRAMES: Final = 2000


class Intake:
    """Judges frames.

    Args:
        sockets: where they come from, and where streams are asked to go back.
        registry: what is known of each stream.
        decoder: gets the bodies of new records.
        quarantine: gets what is no frame of ours.
        counters: totals.

    Attributes:
        touched: streams that moved since the pipeline last took them.
        gaps: what was declared lost since.
        heard_at: monotonic time of the last message.
    """

    def __init__(
        self, sockets: Sockets, registry: Registry, decoder: Decoder, quarantine: Quarantine, counters: Counters
    ) -> None:
        self.touched: dict[bytes, StreamState] = {}
        self.gaps: list[Gap] = []
        self.heard_at = time.monotonic()
        self._sockets = sockets
        self._registry = registry
        self._decoder = decoder
        self._quarantine = quarantine
        self._counters = counters

    def read(self) -> None:
        """Take the frames that are there, up to a bound."""
        read = frames = 0
        self.heard_at = time.monotonic()
        while read < _TURN_BYTES and frames < _TURN_FRAMES:
            data = self._sockets.frame()
            if data is None:
                break
            read, frames = read + len(data), frames + 1
            self._take(data)
        self._counters.frames += frames
        self._counters.bytes += read

    def greet(self, key: bytes) -> None:
        """Tell a trainer that has connected where its stream stands."""
        state = self._registry.get(key)
        committed, received = (state.committed, state.received) if state else (0, 0)
        self._sockets.acknowledge(key, committed, received, rewind=True)

    def _take(self, data: bytes) -> None:
        try:
            frame = decode_frame(data)
        except NewerVersionError as error:
            self._counters.refused_versions += 1
            self._sockets.acknowledge(error.stream, 0, 0, rewind=False, message=str(error))
            return
        except (WireError, VersionError) as error:
            self._reject(data, error)
            return
        if frame.kind == FRAME_ALIVE:
            self._hear(frame)
            return
        state = self._registry.get(frame.stream) or self._meet(frame)
        if state is None:
            return
        state.seen = self.heard_at
        self._accept(state, frame)

    def _hear(self, frame: Frame) -> None:
        """A process lives that has nothing to send; one that is not known here has lost its beginning on the way."""
        self._counters.heartbeats += 1
        state = self._registry.get(frame.stream)
        if state is None:
            self._sockets.acknowledge(frame.stream, 0, 0, rewind=True)
            return
        state.seen = self.heard_at

    def _accept(self, state: StreamState, frame: Frame) -> None:
        following = frame.first_seq + frame.count
        if frame.first_seq > state.received:
            self._ask_again(frame.stream, state)
            return
        skip = state.received - frame.first_seq
        self._counters.duplicate_records += min(skip, frame.count)
        if following <= state.received:
            if following <= state.committed and state.may_ask(self.heard_at):  # the word that it is stored got lost
                self._sockets.acknowledge(frame.stream, state.committed, state.received, rewind=False)
            return
        self.touched[frame.stream] = state
        if frame.kind == FRAME_GAP:
            self._lose(state, following, bytes(frame.body).decode("utf-8", "replace")[:500])
            return
        try:
            self._decoder.add(state.stream, frame.body, frame.first_seq, frame.count, skip=skip)
        except WireError as error:
            self._counters.undecodable_records += following - state.received
            self._quarantine.keep(bytes(frame.body))
            self._lose(state, following, f"the collector could not decode them: {error}")
            return
        self._counters.records += following - state.received
        state.received = following

    def _lose(self, state: StreamState, following: int, reason: str) -> None:
        records = following - state.received
        self.gaps.append(Gap(state.stream, state.received, records, reason))
        state.lost += records
        self._counters.lost_records += records
        state.received = following
        log.warning("records lost", run=state.stream.run, rank=state.stream.rank, records=records, reason=reason)

    def _meet(self, frame: Frame) -> StreamState | None:
        """Take up a stream whose first frame this is; ask for its beginning where it is not."""
        if frame.first_seq > 0:
            self._sockets.acknowledge(frame.stream, 0, 0, rewind=True)
            self._counters.rewinds_asked += 1
            return None
        details: Any = {}
        if frame.kind != FRAME_GAP:
            try:
                details = _start_details(frame)
            except WireError as error:
                self._reject(bytes(frame.body), error)
                return None
        state = self._registry.register(frame.stream, frame.run, frame.rank, frame.attempt, details)
        log.info("stream", run=state.stream.run, rank=state.stream.rank, attempt=state.stream.attempt)
        return state

    def _reject(self, data: bytes, error: Exception) -> None:
        self._counters.rejected_frames += 1
        if self._quarantine.keep(data):
            log.warning("not a frame of ours, put aside", bytes=len(data), why=str(error))

    def _ask_again(self, key: bytes, state: StreamState) -> None:
        if state.may_ask(self.heard_at):
            self._counters.rewinds_asked += 1
            self._sockets.acknowledge(key, state.committed, state.received, rewind=True)


def _start_details(frame: Frame) -> Any:
    """Details of the start event that opens a stream; empty where its first record is something else."""
    if len(frame.body) < RECORD_PREFIX.size:
        raise WireError("a frame of records without a record")
    length, _ = RECORD_PREFIX.unpack_from(frame.body)
    nobody = Stream(frame.stream, frame.run, "", "", frame.rank, frame.attempt)
    first = decode_record(nobody, frame.body[RECORD_PREFIX.size : RECORD_PREFIX.size + length], 0)
    return first.details if isinstance(first, Event) else {}
