"""Reaching a running collector from a command: its address, the key it asks for, and why it does not answer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec
import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from sidestep_schemas.errors import AddressError, ConfigError
from sidestep_schemas.keys import KEY_VARIABLE, ClientKey, Failure, read_client_key, why_refused
from sidestep_schemas.layout import data_dir, default_address, endpoints, guard_runtime

_ANSWER_SECONDS: Final = 5.0
_TRIES: Final = 2
_FAILURES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
#: A collector that ends in the middle of a handshake looks like one that cannot read it; it does so once.
_SILENCES: Final = 3

Command = Callable[..., Any]


class Peer(NamedTuple):
    """A collector to talk to."""

    address: str
    key: ClientKey | None


def reaching(command: Command) -> Command:
    """`--collector` and `--key`."""
    command = click.option("--key", default=None, help=f"key file for that collector; default {KEY_VARIABLE}")(command)
    return click.option("--collector", default=None, help="address; default the collector of the folder")(command)


def find(folder: str | None, collector: str | None, key: str | None) -> Peer:
    """The collector that is meant: the one at an address, else that of a data folder, with the key to show there.

    Raises:
        AddressError: none runs for the folder.
        ConfigError: the key cannot be read.
    """
    given = key or os.environ.get(KEY_VARIABLE)
    shown = read_client_key(given) if given else None
    root = data_dir(folder)
    address, local = _announced(root)
    if collector is None and not address:
        address = default_address(root)
        if not Path(address.removeprefix("ipc://") + ".control").exists():
            raise AddressError(f"no collector runs for {root}: `sidestep up --dir {root}` starts one")
    if collector is not None and collector != address:
        return Peer(collector, shown)
    return Peer(address, shown or local)


def ask(address: str, question: dict[str, Any], key: ClientKey | None = None) -> Any:
    """Ask a collector.

    Raises:
        AddressError: none answers there, or it lets nobody in with this key.
    """
    with connected(Peer(address, key), zmq.DEALER, endpoints(address).control) as line:
        for _ in range(_TRIES):  # a question is lost where the collector cuts its connections to revoke a key
            with suppress(zmq.Again):
                line.socket.send(msgspec.json.encode(question), zmq.NOBLOCK)
            if line.wait(_ANSWER_SECONDS / _TRIES):
                return msgspec.json.decode(line.socket.recv_multipart()[-1])
    raise AddressError(f"no collector answers at {address}: `sidestep up` starts one")


class Line:
    """A socket that is connected to a collector, and what becomes of its handshakes."""

    def __init__(self, peer: Peer, socket: zmq.Socket[Any], monitor: zmq.Socket[Any]) -> None:
        self.socket = socket
        self._peer = peer
        self._monitor = monitor
        self._silences = 0
        self._poller = zmq.Poller()
        for each in (socket, monitor):
            self._poller.register(each, zmq.POLLIN)

    def wait(self, seconds: float | None) -> bool:
        """Wait for something to read; False when nothing came in that time (None: for ever).

        Raises:
            AddressError: the collector does not let us in.
        """
        while True:
            found = dict(self._poller.poll(None if seconds is None else int(seconds * 1000)))
            if self._monitor in found:
                self._judge(recv_monitor_message(self._monitor))
            if self.socket in found:
                return True
            if not found:
                return False

    def _judge(self, event: Any) -> None:
        failure: Failure = "silence"
        if event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            failure = "key"
        elif event["value"] == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            failure = "mechanism"
        elif event["event"] == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._silences += 1
            if not self._peer.address.startswith("tcp://") or self._silences < _SILENCES:
                return
        raise AddressError(why_refused(self._peer.address, failure, has_key=self._peer.key is not None))


@contextmanager
def connected(peer: Peer, kind: int, point: str, subscription: bytes | None = None) -> Generator[Line]:
    """A socket of a collector, for as long as this lasts.

    Raises:
        AddressError: its folder is not this user's.
    """
    try:
        guard_runtime(peer.address)
    except OSError as error:
        raise AddressError(f"{peer.address} is not to be trusted: {error.filename}: {error.strerror}") from error
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(kind)
    try:
        socket.set(zmq.LINGER, 0)
        if subscription is not None:
            socket.set(zmq.SUBSCRIBE, subscription)
        if peer.key is not None and peer.address.startswith("tcp://"):
            secret = z85.encode(peer.key.secret)
            socket.set(zmq.CURVE_SERVERKEY, z85.encode(peer.key.collector))
            socket.set(zmq.CURVE_SECRETKEY, secret)
            socket.set(zmq.CURVE_PUBLICKEY, zmq.curve_public(secret))
        monitor = socket.get_monitor_socket(_FAILURES)
        socket.connect(point)
        yield Line(peer, socket, monitor)
    finally:
        context.destroy(linger=0)


def _announced(root: Path) -> tuple[str, ClientKey | None]:
    """Address of the collector that serves a folder, and the key it gives to its neighbours; "" where none says so."""
    try:
        said = json.loads((root / "collector.json").read_text(encoding="utf-8"))
        address, key = str(said["address"]), str(said.get("key") or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", None
    try:
        return address, read_client_key(key) if key else None
    except ConfigError:
        return address, None  # not for this user's eyes; the collector will say that it wants one
