"""The collector's sockets: records in, acknowledgements and the live feed out, questions answered.

All of them belong to one thread. Another thread wakes it through a `Waker` of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog
import zmq

from sidestep_collector.keys import KeyRing
from sidestep_collector.receive.address import check_free, check_reach, keep_to_user, make_socket_folder
from sidestep_collector.receive.door import Door
from sidestep_schemas.errors import AddressError, SidestepError
from sidestep_schemas.layout import endpoints
from sidestep_schemas.wire import ACK_TOPIC, FRAME_BYTES_MAX, LIVE_TOPIC, WIRE_VERSION

log: Any = structlog.get_logger()

_WAKE: Final = "inproc://wake"
_HEARTBEAT: Final = (2_000, 6_000)
#: Frames that wait unread hold up the signs of life behind them: a pause in reading must not look like death.
_DATA_HEARTBEAT: Final = (10_000, 120_000)
_TRIES_UNSAID: Final = 50
_CONTROL_BYTES_MAX: Final = 1 << 20


@dataclass(slots=True)
class Arrivals:
    """What one wait brought. `greetings` are streams that somebody now listens for."""

    has_frames: bool = False
    greetings: list[bytes] = field(default_factory=list[bytes])
    questions: list[tuple[list[bytes], bytes]] = field(default_factory=list[tuple[list[bytes], bytes]])


class Sockets:
    """Bound sockets.

    Args:
        address: `ipc://PATH` or `tcp://HOST:PORT`.
        boot: 16 bytes that name this start of the collector.
        insecure: allow an address that other machines can reach, though nothing is encrypted.
        ring: keys that decide who may connect; None lets everybody who reaches the address.

    Attributes:
        watched: runs (16 bytes each) whose live feed somebody reads.
        listeners: streams (8 bytes each) whose trainer is connected.

    Raises:
        AddressError: the address is taken, malformed, or reachable from elsewhere without `ring` or `insecure`.
        ConfigError: the collector's key cannot be used.
    """

    def __init__(self, address: str, boot: bytes, *, insecure: bool = False, ring: KeyRing | None = None) -> None:
        points = endpoints(address)
        check_reach(address, insecure=insecure, has_keys=ring is not None)
        make_socket_folder(address)
        check_free(address)
        self.boot = boot
        self.watched: set[bytes] = set()
        self.listeners: set[bytes] = set()
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            self._door = Door(self._context, ring) if ring is not None else None
        except SidestepError:
            self._context.term()
            raise
        self._data = self._context.socket(zmq.PULL)
        self._data.set(zmq.RCVHWM, 16)
        self._data.set(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        self._ack = self._context.socket(zmq.XPUB)
        self._ack.set(zmq.XPUB_VERBOSE, 1)  # a trainer that connects again subscribes again, and is answered
        self._ack.set(zmq.SNDHWM, 10_000)
        self._ack.set(zmq.MAXMSGSIZE, 4096)
        self._control = self._context.socket(zmq.ROUTER)
        self._control.set(zmq.MAXMSGSIZE, _CONTROL_BYTES_MAX)
        self._wake = self._context.socket(zmq.PULL)
        sockets = (self._data, self._ack, self._control)
        try:
            for socket, point in zip(sockets, points, strict=True):
                socket.set(zmq.LINGER, 0)
                _set_heartbeat(socket, *(_DATA_HEARTBEAT if socket is self._data else _HEARTBEAT))
                if self._door is not None:
                    self._door.guard(socket)
                socket.bind(point)
                keep_to_user(point)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise AddressError(
                f"{address} cannot be bound ({error.strerror}): stop what uses it, or choose another with --listen"
            ) from error
        self._bound = tuple(zip(sockets, points, strict=True))
        self._unbound: list[tuple[zmq.Socket[Any], str]] = []
        self._tries = 0
        self._wake.bind(_WAKE)
        self._poller = zmq.Poller()
        for socket in (*sockets, self._wake, *([self._door.socket] if self._door else [])):
            self._poller.register(socket, zmq.POLLIN)
        self._reads_data = True

    def waker(self) -> Waker:
        """Something that ends a `wait` from another thread."""
        return Waker(self._context)

    def wait(self, seconds: float, *, read: bool) -> Arrivals:
        """Wait for something to come; `read` false leaves records where they are."""
        if read != self._reads_data:
            self._reads_data = read
            if read:
                self._poller.register(self._data, zmq.POLLIN)
            else:
                self._poller.unregister(self._data)
        found = dict(self._poller.poll(max(0, int(seconds * 1000))))
        self._watch_door()
        arrivals = Arrivals(has_frames=self._data in found)
        if self._wake in found:
            _drain(self._wake)
        if self._ack in found:
            for topic in _drain(self._ack):
                self._note_subscription(topic, arrivals)
        if self._control in found:
            while self._control.poll(0):
                *route, question = self._control.recv_multipart()
                arrivals.questions.append((route, question))
        return arrivals

    def frame(self) -> bytes | None:
        """The next frame, if one is there. Parts of a message that has several are frames of their own: ours
        have one, so each of theirs is judged, and refused, alone."""
        try:
            return self._data.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def acknowledge(self, stream: bytes, watermark: int, received: int, *, rewind: bool, message: str = "") -> None:
        """Tell a stream how far it is."""
        body = msgspec.msgpack.encode((WIRE_VERSION, self.boot, watermark, received, rewind, message))
        self._publish(ACK_TOPIC + stream + body)

    def feed(self, run: bytes, record: Any) -> None:
        """Publish something to those who watch a run, as JSON."""
        self._publish(LIVE_TOPIC + run + msgspec.json.encode(record))

    def answer(self, route: list[bytes], answer: Any) -> None:
        """Answer a question, as JSON."""
        try:
            self._control.send_multipart([*route, msgspec.json.encode(answer)], zmq.NOBLOCK)
        except zmq.ZMQError:
            return  # whoever asked is gone

    def access(self) -> dict[str, Any] | None:
        """Who may connect, for `sidestep status`; None where no keys are asked for."""
        return self._door.as_dict() if self._door is not None else None

    def close(self) -> None:
        """Close all; acknowledgements that are on their way get half a second."""
        self._ack.set(zmq.LINGER, 500)
        for socket in (self._data, self._ack, self._control, self._wake, *([self._door.socket] if self._door else [])):
            socket.close()
        self._context.term()

    def _watch_door(self) -> None:
        if self._door is None:
            return
        self._door.answer()
        if self._door.has_revoked():
            # ZeroMQ cannot cut one connection. Cut all: who is allowed is back at once, and its journal has the rest.
            for socket, point in self._bound:
                if (socket, point) not in self._unbound:
                    socket.unbind(point)
            self._unbound = list(self._bound)
        if self._unbound:
            self._bind_again()

    def _bind_again(self) -> None:
        # A port is free when ZeroMQ's own thread has closed it: mostly the second or third try, a turn later.
        for bound in tuple(self._unbound):
            socket, point = bound
            try:
                socket.bind(point)
            except zmq.ZMQError as error:
                self._tries += 1
                if self._tries == _TRIES_UNSAID:
                    log.warning("an address cannot be bound again; trying on", point=point, why=error.strerror)
                return
            self._unbound.remove(bound)
        self._tries = 0

    def _publish(self, message: bytes) -> None:
        try:
            self._ack.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return  # a subscriber that does not read; its stream asks again when it stalls

    def _note_subscription(self, message: bytes, arrivals: Arrivals) -> None:
        joined, topic = message[:1] == b"\x01", message[1:]
        if topic.startswith(ACK_TOPIC) and len(topic) == 9:
            (self.listeners.add if joined else self.listeners.discard)(topic[1:])
            if joined:
                arrivals.greetings.append(topic[1:])
        elif topic.startswith(LIVE_TOPIC) and len(topic) == 17:
            (self.watched.add if joined else self.watched.discard)(topic[1:])


class Waker:
    """Ends another thread's wait. Belongs to one thread, made on first use there."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._context = context
        self._socket: Any = None

    def wake(self) -> None:
        """Wake it."""
        socket = self._socket
        if socket is None:
            socket = self._socket = self._context.socket(zmq.PUSH)
            socket.set(zmq.LINGER, 0)
            socket.connect(_WAKE)
        try:
            socket.send(b"", zmq.NOBLOCK)
        except zmq.ZMQError:
            return  # it is awake already, or gone

    def close(self) -> None:
        """Close it, from the thread that used it."""
        if self._socket is not None:
            self._socket.close()


def _set_heartbeat(socket: zmq.Socket[Any], interval_ms: int, timeout_ms: int) -> None:
    socket.set(zmq.HEARTBEAT_IVL, interval_ms)
    socket.set(zmq.HEARTBEAT_TIMEOUT, timeout_ms)


def _drain(socket: zmq.Socket[Any]) -> list[bytes]:
    messages: list[bytes] = []
    while socket.poll(0):
        messages.append(socket.recv())
    return messages
