"""Being let in: a client's keys on its sockets, and what the collector's side makes of them.

Beside `push` the only module here that touches ZeroMQ, and on its thread. ZeroMQ gives up for good when a key is
refused, so trying again, ever more rarely, is done here: a key that is allowed later is then noticed.
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import Any, Final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from sidestep_schemas.keys import ClientKey, Failure, why_refused

_FAILURES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
#: A collector that ends in the middle of a handshake looks like one that cannot read it; it does so once.
_SILENCES: Final = 3
_AGAIN_SECONDS: Final = (1.0, 30.0)
_READABLE: Final = int(zmq.POLLIN)  # a flag of an enumeration makes a new one at each use


class Door:
    """Connects sockets to one collector.

    Args:
        address: the collector's.
        key: what is shown there; used on tcp alone, an ipc socket is guarded by its folder.
    """

    def __init__(self, address: str, key: ClientKey | None) -> None:
        self._address = address
        self._key = key if address.startswith("tcp://") else None
        self._points: list[tuple[zmq.Socket[Any], str]] = []
        self._monitors: list[zmq.Socket[Any]] = []
        self._accepted: set[int] = set()
        self._known: Failure | None = None
        self._silences = 0
        self._again_at: float | None = None
        self._again_seconds = _AGAIN_SECONDS[0]

    def connect(self, socket: zmq.Socket[Any], point: str) -> None:
        """Connect a socket, and watch what becomes of it."""
        if self._key is not None:
            show(socket, self._key)
        self._points.append((socket, point))
        self._monitors.append(socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILURES))
        socket.connect(point)

    def look(self) -> str | None:
        """What is new: why nothing is let in, or nothing (""), where all sockets are now. None where nothing is."""
        if self._again_at is not None and time.monotonic() >= self._again_at:
            self._again_at = None
            for socket, point in self._points:
                socket.connect(point)
        was_open = self._is_open
        failure = self._read()
        if self._again_at is not None:
            return None  # disconnected; what came was said of the try before
        if failure is not None:
            self._leave()
            if failure != "silence" or self._known is None:
                self._known = failure  # an end without a word takes nothing back
            return why_refused(self._address, self._known, has_key=self._key is not None)
        if self._is_open and not was_open:
            self._known = None
            self._again_seconds = _AGAIN_SECONDS[0]
            return ""
        return None

    @property
    def _is_open(self) -> bool:
        return len(self._accepted) == len(self._points)

    def _read(self) -> Failure | None:
        worst: Failure | None = None
        for index, monitor in enumerate(self._monitors):
            while int(monitor.get(zmq.EVENTS)) & _READABLE:
                event = recv_monitor_message(monitor, zmq.NOBLOCK)
                if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._accepted.add(index)
                    self._silences = 0
                else:
                    worst = self._judge(event["event"], event["value"]) or worst
        return worst

    def _judge(self, event: int, value: int) -> Failure | None:
        failure = failure_of(event, value)
        if failure != "silence" or event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return failure
        if not self._address.startswith("tcp://") or value in {errno.ETIMEDOUT, errno.EAGAIN}:
            return None  # a stopped collector, say: it will go on
        self._silences += 1
        return failure if self._silences >= _SILENCES else None

    def _leave(self) -> None:
        for socket, point in self._points:
            with contextlib.suppress(zmq.ZMQError):  # ZeroMQ has let go of it already
                socket.disconnect(point)
        self._accepted.clear()
        self._silences = 0
        self._again_at = time.monotonic() + self._again_seconds
        self._again_seconds = min(2 * self._again_seconds, _AGAIN_SECONDS[1])


def show(socket: zmq.Socket[Any], key: ClientKey) -> None:
    """Make a socket speak CurveZMQ with a key, from its next connection on."""
    socket.set(zmq.CURVE_SERVERKEY, z85.encode(key.collector))
    socket.set(zmq.CURVE_SECRETKEY, z85.encode(key.secret))
    socket.set(zmq.CURVE_PUBLICKEY, zmq.curve_public(z85.encode(key.secret)))


def failure_of(event: int, value: int) -> Failure:
    """Which failure an event of a socket monitor tells of."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "key"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return "mechanism"
    return "silence"
