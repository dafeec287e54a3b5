"""The drain thread: ships the journal over ZeroMQ and forgets what the collector has stored.

With `door`, the only module of the trainer side that touches a socket. It never holds a lock that the training thread
takes, except for the moment of a copy, and every call to ZeroMQ is non-blocking.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack
import zmq

from sidestep.door import Door
from sidestep.encode import packed
from sidestep.records import Identity, Shipment
from sidestep_schemas.keys import ClientKey
from sidestep_schemas.layout import endpoints, guard_runtime
from sidestep_schemas.wire import ACK_TOPIC, FRAME_ALIVE, FRAME_BYTES_MAX, FRAME_GAP, FRAME_RECORDS, WIRE_VERSION

logger = logging.getLogger("sidestep")

#: Waking for every step costs three times more than waking on a timer.
TICK_SECONDS = 0.04
#: What else is looked after (acknowledgements, the door, segments, the machine) is so at one wake-up in five, unless
#: somebody waits: at each it took 2 to 4 % of a core, all of it next to a training that uses the same interpreter.
LOOK_SECONDS = 0.2
#: Where nothing was sent for so long, a frame without records says that the process lives (decision 9).
ALIVE_SECONDS = 5.0
#: What one wake-up ships at most, so that acknowledgements and segments get their turn.
_SHIPMENTS_PER_TICK = 64
_STALL_SECONDS = (5.0, 60.0)
#: As integers: of the flags of an enumeration each use makes a new one, in Python.
_READABLE, _WRITABLE = int(zmq.POLLIN), int(zmq.POLLOUT)
#: From this many bytes on a frame is handed over without a copy: to keep account of that costs more than copying less.
_UNCOPIED_BYTES = 65_536
_HEARTBEAT = (2_000, 6_000)
#: A collector that does not read for a while answers no sign of life either, and is not dead for that.
_DATA_HEARTBEAT = (10_000, 120_000)


@dataclass(frozen=True, slots=True)
class Ack:
    """What a collector says of a stream: see the wire's description."""

    boot: bytes
    watermark: int
    received: int
    rewind: bool
    message: str


@dataclass(slots=True)
class Delivery:
    """How far a stream is, in records: all below `shipped` were handed to the socket, all below `committed` are
    stored. `refused` says why a collector does not take the stream, or does not let this process in."""

    shipped: int = 0
    committed: int = 0
    resent: int = 0
    refused: str = ""


class Source(Protocol):
    """What a `Pusher` ships: the journal of this process, or one that a dead process left."""

    identity: Identity
    is_growing: bool
    wanted: threading.Event

    @property
    def seq(self) -> int:
        """Records so far."""
        ...

    def provide(self) -> None:
        """Housekeeping, at every wake-up."""

    def shipments(self) -> Iterator[Shipment]:
        """What has not been yielded yet."""
        ...

    def release_below(self, watermark: int) -> None:
        """Forget what is stored."""


class Pusher:
    """Ships one journal from a thread of its own.

    Args:
        journal: what to ship.
        address: the collector's address; None ships nothing and only provides segments.
        on_tick: called at every look around, on the drain thread.
        key: shown to a collector at a tcp address.

    Attributes:
        delivery: how far the stream is.
    """

    def __init__(
        self,
        journal: Source,
        address: str | None,
        on_tick: Callable[[], None] | None = None,
        *,
        key: ClientKey | None = None,
    ) -> None:
        self.journal = journal
        self.address = address
        self.delivery = Delivery()
        self._on_tick = on_tick
        self._key = key
        self._progress = threading.Condition()
        self._waiting = 0  # callers of `wait`
        self._look_at = 0.0
        self._stop = threading.Event()
        self._unacked: deque[Shipment] = deque()
        self._resend = 0  # index in _unacked of what is sent next; its length when nothing is to be resent
        self._boot = b""
        self._said = ""
        self._kept_out = ""
        self._stalled_at = self._sent_at = time.monotonic()
        self._stall_seconds = _STALL_SECONDS[0]
        self._thread = threading.Thread(target=self._work, name="sidestep-drain", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait(self, seq: int, timeout: float) -> bool:
        """Wait until all records below `seq` are committed; at most `timeout` seconds."""
        if self.address is None:
            return self.delivery.committed >= seq
        deadline = time.monotonic() + timeout
        self.journal.wanted.set()
        with self._progress:
            self._waiting += 1
            try:
                while self.delivery.committed < seq and not self.delivery.refused:
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._thread.is_alive():
                        break
                    self._progress.wait(min(left, 0.1))
            finally:
                self._waiting -= 1
        return self.delivery.committed >= seq

    def stop(self, timeout: float) -> bool:
        """End the thread; False when it did not end in time (a disk that does not answer)."""
        self._stop.set()
        self.journal.wanted.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        sockets: _Sockets | None = None
        try:
            sockets = self._connect()
            while not self._stop.is_set():
                is_wanted = self.journal.wanted.wait(TICK_SECONDS)
                if is_wanted or self._waiting or time.monotonic() >= self._look_at:
                    self.journal.wanted.clear()
                    self._look_at = time.monotonic() + LOOK_SECONDS
                    self._tick(sockets)
                elif sockets is not None and self._has_news():
                    self._ship(sockets)
        except Exception:
            logger.exception("shipping stopped; records stay in the journal, `sidestep sync` ships them")
        finally:
            if sockets is not None:
                sockets.close()

    def _connect(self) -> _Sockets | None:
        if not self.address:
            return None
        try:
            guard_runtime(self.address)
        except OSError as error:
            self._note_refusal(f"{self.address} is not to be trusted: {error.filename}: {error.strerror}")
            return None
        return _Sockets(self.address, self.journal.identity, self._key)

    def _tick(self, sockets: _Sockets | None) -> None:
        self.journal.provide()
        if self._on_tick is not None:
            self._on_tick()
        if sockets is None:
            return
        self._note_door(sockets.door.look())
        for ack in sockets.acks():
            self._take(ack)
        if not self.delivery.refused:
            self._ship(sockets)
            self._watch_for_stall()
            self._show_life(sockets)

    def _has_news(self) -> bool:
        return self.journal.seq != self.delivery.shipped and not self.delivery.refused

    def _ship(self, sockets: _Sockets) -> None:
        sent = 0
        while self._resend < len(self._unacked) and sent < _SHIPMENTS_PER_TICK:
            if not sockets.send(self._unacked[self._resend]):
                return
            self._note_sent(self._unacked[self._resend])
            sent += 1
        if self._resend < len(self._unacked):
            self.journal.wanted.set()
            return
        if not sockets.ready():
            return
        for shipment in self.journal.shipments():
            if not self._unacked:
                self._stalled_at = time.monotonic()
            self._unacked.append(shipment)
            if not sockets.send(shipment):
                return  # it stays at the end of _unacked, and _resend points to it
            self._note_sent(shipment)
            sent += 1
            if sent >= _SHIPMENTS_PER_TICK:
                self.journal.wanted.set()
                return

    def _show_life(self, sockets: _Sockets) -> None:
        now = time.monotonic()
        if self.journal.is_growing and now - self._sent_at >= ALIVE_SECONDS and sockets.alive(self.delivery.shipped):
            self._sent_at = now

    def _note_sent(self, shipment: Shipment) -> None:
        self._sent_at = time.monotonic()
        self._resend += 1
        if shipment.next_seq > self.delivery.shipped:
            self.delivery.shipped = shipment.next_seq
        else:
            self.delivery.resent += shipment.records

    def _take(self, ack: Ack) -> None:
        if ack.watermark > self.journal.seq and self.journal.is_growing:
            return  # nobody can have stored what was never written; of what is read back, a dead disk may have lost it
        if ack.message:
            self._note_refusal(ack.message)
        elif ack.boot != self._boot:
            self.delivery.refused = ""  # another collector: it may take what the last one did not
        if ack.watermark > self.delivery.committed:
            self._forget(min(ack.watermark, self.journal.seq))
        if ack.rewind or ack.boot != self._boot:
            self._boot = ack.boot
            self._rewind(ack.received)

    def _note_door(self, news: str | None) -> None:
        if news:
            if self._kept_out:
                self._said = news  # it was said that nothing is shipped; why may be known better by now
            self._kept_out = news
            self._note_refusal(news)
        elif news == "" and self._kept_out:
            logger.info("the collector at %s lets this process in", self.address)
            if self.delivery.refused == self._kept_out:
                self.delivery.refused = ""
            self._kept_out = self._said = ""

    def _note_refusal(self, message: str) -> None:
        if message != self._said:
            logger.warning("nothing is shipped, the journal keeps it: %s", message)
        self._said = message
        with self._progress:
            self.delivery.refused = message
            self._progress.notify_all()

    def _forget(self, watermark: int) -> None:
        while self._unacked and self._unacked[0].next_seq <= watermark:
            self._unacked.popleft()
            self._resend = max(0, self._resend - 1)
        self.journal.release_below(watermark)
        self._stalled_at = time.monotonic()
        self._stall_seconds = _STALL_SECONDS[0]
        with self._progress:
            self.delivery.committed = watermark
            self._progress.notify_all()

    def _rewind(self, seq: int) -> None:
        lowest = self._unacked[0].first_seq if self._unacked else self.delivery.shipped
        if seq < lowest:
            # A collector that knows less than another one has acknowledged: a new store, or an older copy of it.
            reason = "they were acknowledged by a collector whose store this one does not have"
            self._unacked.appendleft(Shipment(seq, lowest - seq, None, reason=reason))
        self._resend = next(
            (index for index, shipment in enumerate(self._unacked) if shipment.next_seq > seq), len(self._unacked)
        )
        self._stalled_at = time.monotonic()

    def _watch_for_stall(self) -> None:
        if not self._unacked or time.monotonic() - self._stalled_at < self._stall_seconds:
            return
        self._stall_seconds = min(2 * self._stall_seconds, _STALL_SECONDS[1])
        self._rewind(self.delivery.committed)


class _Sockets:
    """The two sockets of a stream: PUSH for records, SUB for acknowledgements."""

    def __init__(self, address: str, identity: Identity, key: ClientKey | None) -> None:
        points = endpoints(address)
        self._envelope = (identity.run, identity.rank, identity.attempt, identity.stream)
        self._topic = ACK_TOPIC + identity.stream
        self._context: zmq.Context[Any] = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._push.set(zmq.SNDHWM, 16)
        self._push.set(zmq.IMMEDIATE, 1)  # no peer, no message: the journal is the only buffer
        self._sub = self._context.socket(zmq.SUB)
        for socket, (interval_ms, timeout_ms) in ((self._push, _DATA_HEARTBEAT), (self._sub, _HEARTBEAT)):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RECONNECT_IVL, 50)
            socket.set(zmq.RECONNECT_IVL_MAX, 2000)
            socket.set(zmq.HEARTBEAT_IVL, interval_ms)
            socket.set(zmq.HEARTBEAT_TIMEOUT, timeout_ms)
            socket.set(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        self._sub.set(zmq.SUBSCRIBE, self._topic)
        self.door = Door(address, key)
        self.door.connect(self._push, points.data)
        self.door.connect(self._sub, points.ack)

    def ready(self) -> bool:
        """Whether a frame would be taken now."""
        return bool(self._push.get(zmq.EVENTS) & _WRITABLE)

    def send(self, shipment: Shipment) -> bool:
        """Hand a frame to the socket; False when it takes none now."""
        try:
            body = shipment.body()
        except OSError as error:
            logger.warning("records of the journal cannot be read back: %s", error)
            shipment.segment, shipment.reason = None, "the file that held them cannot be read"
            body = shipment.body()
        kind = FRAME_GAP if shipment.segment is None else FRAME_RECORDS
        return self._push_frame(kind, shipment.first_seq, shipment.records, body)

    def alive(self, seq: int) -> bool:
        """Hand a sign of life to the socket; False when it takes none now."""
        return self._push_frame(FRAME_ALIVE, seq, 0, b"")

    def _push_frame(self, kind: int, first_seq: int, records: int, body: bytes) -> bool:
        frame = packed(WIRE_VERSION, kind, *self._envelope, first_seq, records, body, zlib.crc32(body))
        try:
            self._push.send(frame, zmq.NOBLOCK, copy=len(frame) < _UNCOPIED_BYTES)
        except zmq.Again:
            return False
        return True

    def acks(self) -> list[Ack]:
        """What came since the last call."""
        found: list[Ack] = []
        while self._sub.get(zmq.EVENTS) & _READABLE:  # asking costs a tenth of being told by an exception
            ack = _decode_ack(self._sub.recv(zmq.NOBLOCK)[len(self._topic) :])
            if ack is not None:
                found.append(ack)
        return found

    def close(self) -> None:
        """Close both without waiting: what was not taken is in the journal."""
        self._context.destroy(linger=0)


def _decode_ack(data: bytes) -> Ack | None:
    """An acknowledgement, or None for bytes that are none (counted nowhere: the collector will say it again)."""
    try:
        fields = msgpack.unpackb(data, max_array_len=16, max_str_len=4096, max_bin_len=64, max_map_len=0)
        _version, boot, watermark, received, rewind, message = fields[:6]
    except (ValueError, TypeError, LookupError, msgpack.UnpackException):
        return None
    whole = type(watermark) is int and type(received) is int and isinstance(boot, bytes) and isinstance(message, str)
    return Ack(boot, watermark, received, bool(rewind), message) if whole and 0 <= watermark <= received else None
