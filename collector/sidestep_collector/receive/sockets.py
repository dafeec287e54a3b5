"""The collector's sockets: records in, acknowledgements and the live feed out, questions answered.

All of them belong to one thread. Another thread wakes it through a `Waker` of its own.
"""

from __future__ import annotations

import ipaddress
import os
import socket as unix
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from sidestep_schemas.errors import AddressError
from sidestep_schemas.layout import endpoints
from sidestep_schemas.wire import ACK_TOPIC, FRAME_BYTES_MAX, LIVE_TOPIC, WIRE_VERSION

_WAKE: Final = "inproc://wake"
_HEARTBEAT: Final = (2_000, 6_000)
#: Frames that wait unread hold up the signs of life behind them: a pause in reading must not look like death.
_DATA_HEARTBEAT: Final = (10_000, 120_000)
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

    Attributes:
        watched: runs (16 bytes each) whose live feed somebody reads.
        listeners: streams (8 bytes each) whose trainer is connected.

    Raises:
        AddressError: the address is taken, malformed, or reachable from elsewhere without `insecure`.
    """

    def __init__(self, address: str, boot: bytes, *, insecure: bool = False) -> None:
        points = endpoints(address)
        _check_reach(address, insecure=insecure)
        _make_socket_folder(address)
        _check_free(address)
        self.boot = boot
        self.watched: set[bytes] = set()
        self.listeners: set[bytes] = set()
        self._context: zmq.Context[Any] = zmq.Context()
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
                socket.bind(point)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise AddressError(
                f"{address} cannot be bound ({error.strerror}): stop what uses it, or choose another with --listen"
            ) from error
        self._wake.bind(_WAKE)
        self._poller = zmq.Poller()
        for socket in (*sockets, self._wake):
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

    def close(self) -> None:
        """Close all; acknowledgements that are on their way get half a second."""
        self._ack.set(zmq.LINGER, 500)
        for socket in (self._data, self._ack, self._control, self._wake):
            socket.close()
        self._context.term()

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


def _check_reach(address: str, *, insecure: bool) -> None:
    if insecure or not address.startswith("tcp://"):
        return
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not is_local:
        raise AddressError(
            f"{address} can be reached from other machines, and nothing on it is encrypted or checked: listen on "
            "127.0.0.1 and tunnel, or say --insecure on a network you trust"
        )


def _check_free(address: str) -> None:
    # libzmq removes a socket file and binds anew, whoever listens on it: the other collector would go deaf.
    if not address.startswith("ipc://"):
        return
    with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as probe:
        try:
            probe.connect(endpoints(address).control.removeprefix("ipc://"))
        except OSError:
            return
    raise AddressError(
        f"{address} cannot be bound (a collector listens there): attach to it, or choose another with --listen"
    )


def _make_socket_folder(address: str) -> None:
    if not address.startswith("ipc://"):
        return
    folder = Path(address.removeprefix("ipc://")).parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = folder.stat()
    except OSError as error:
        raise AddressError(f"{folder} cannot be made ({error.strerror}): choose an address with --listen") from error
    if owner.st_uid != os.getuid():
        raise AddressError(f"{folder} belongs to another user: choose an address with --listen")
