"""Who is let in: answers ZeroMQ's question whether a client's key is allowed, and notices when one no longer is.

ZeroMQ asks at each handshake, after the client has proved that it holds the secret of the key it shows (ZAP, RFC 27).
The list is read again when its folder has changed: before each answer, and once a second for who is in already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog
import zmq
from zmq.utils import z85

from sidestep_collector.keys import KeyRing
from sidestep_schemas.keys import KEY_BYTES

log: Any = structlog.get_logger()

_ASKED_AT: Final = "inproc://zeromq.zap.01"
_DOMAIN: Final = b"sidestep"
_LOOK_SECONDS: Final = 1.0
#: Unknown keys that are remembered as said; more of them are only counted.
_SAID_MAX: Final = 1000


class Door:
    """Answers for the sockets of one context; made before any of them is bound.

    Args:
        context: of the sockets.
        ring: the keys.
        clock: monotonic time.

    Attributes:
        socket: questions come in here.
        refused: handshakes that were refused.

    Raises:
        ConfigError: the collector has no key, or one that others can read.
        FolderError: the local key cannot be written.
    """

    def __init__(self, context: zmq.Context[Any], ring: KeyRing, clock: Callable[[], float] = time.monotonic) -> None:
        self.refused = 0
        self._ring = ring
        self._clock = clock
        self._secret = ring.secret()
        ring.make_local()
        self._signature = ring.signature()
        self._allowed = ring.allowed()
        self._looked_at = clock()
        self._inside: dict[bytes, str] = {}
        self._said: set[bytes] = set()
        self.socket = context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.bind(_ASKED_AT)

    def guard(self, socket: zmq.Socket[Any]) -> None:
        """Let only those who are allowed connect to a socket that is not bound yet."""
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, z85.encode(self._secret))
        socket.set(zmq.ZAP_DOMAIN, _DOMAIN)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # should nobody answer, nobody is let in

    def answer(self) -> None:
        """Answer what was asked."""
        while self.socket.poll(0):
            self._answer(self.socket.recv_multipart())

    def has_revoked(self) -> bool:
        """Whether somebody who was let in is allowed no more. True once; who stays is let in again."""
        if self._clock() - self._looked_at >= _LOOK_SECONDS:
            self._look()
        gone = {key: name for key, name in self._inside.items() if key not in self._allowed}
        if not gone:
            return False
        log.warning(
            "keys were revoked: all connections are cut, who is allowed connects again", names=list(gone.values())
        )
        self._inside.clear()
        return True

    def as_dict(self) -> dict[str, Any]:
        """For `sidestep status`."""
        return {"allowed": sorted(self._allowed.values()), "refused": self.refused}

    def _look(self) -> None:
        self._looked_at = self._clock()
        signature = self._ring.signature()
        if signature != self._signature:
            self._signature = signature
            self._allowed = self._ring.allowed()

    def _answer(self, message: list[bytes]) -> None:
        try:
            start = message.index(b"") + 1
            version, request, _domain, address, _identity, mechanism, *credentials = message[start:]
        except ValueError:
            return  # no question of ZeroMQ's
        self._look()
        key = credentials[0] if mechanism == b"CURVE" and credentials and len(credentials[0]) == KEY_BYTES else b""
        name = self._allowed.get(key)
        if name is None:
            self._refuse(key, address)
        else:
            self._inside[key] = name
        verdict = (b"400", b"this key is not allowed", b"") if name is None else (b"200", b"OK", name.encode())
        self.socket.send_multipart([*message[:start], version, request, *verdict, b""])

    def _refuse(self, key: bytes, address: bytes) -> None:
        self.refused += 1
        if key in self._said or len(self._said) >= _SAID_MAX:
            return
        self._said.add(key)
        log.warning(
            "a client was not let in: its key is not allowed", key=key.hex()[:8], at=address.decode("ascii", "replace")
        )
