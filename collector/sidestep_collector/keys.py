"""The keys of a collector: its own, and those of the clients that it allows. Files alone; no socket.

keys/collector.key         secret of the collector
keys/local.key             key of whoever can read this folder: what runs beside the collector
keys/clients/NAME.pub      public half of a client that may connect
keys/revoked/NAME-….pub    of one that may no more

The folder and all in it are for the collector's user alone (0700, 0600).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from sidestep_schemas.errors import ConfigError, FolderError, UsageError
from sidestep_schemas.keys import (
    COLLECTOR_PREFIX,
    PUBLIC_PREFIX,
    ClientKey,
    parse_key,
    read_client_key,
    read_key_file,
    write_key,
)
from sidestep_schemas.layout import ensure_private

LOCAL: Final = "local"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who may connect, or could.

    Attributes:
        name: what the key was named.
        public: its public half, 32 bytes.
        since: when it was allowed, or revoked, in seconds since 1970.
        is_allowed: whether it may connect.
    """

    name: str
    public: bytes
    since: float
    is_allowed: bool


class KeyRing:
    """The keys of one collector.

    Args:
        folder: where they lie. Nothing is made before it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.local = folder / f"{LOCAL}.key"
        self._own = folder / "collector.key"
        self._clients = folder / "clients"
        self._revoked = folder / "revoked"

    @property
    def exists(self) -> bool:
        """Whether the collector has a key."""
        return self._own.exists()

    def secret(self) -> bytes:
        """The collector's secret, 32 bytes.

        Raises:
            ConfigError: there is none, it is no such key, or others can read it.
        """
        text = read_key_file(self._own)
        if self._own.stat().st_mode & 0o077:
            raise ConfigError(f"{self._own} can be read by others: chmod 600 it, or delete it and make new keys")
        return parse_key(COLLECTOR_PREFIX, text, str(self._own))

    def make_local(self) -> None:
        """Make the key of those who run beside the collector, where there is none that fits its own."""
        collector = public_of(self.secret())
        with contextlib.suppress(ConfigError):
            if read_client_key(self.local).collector == collector:
                return
        self.local.unlink(missing_ok=True)
        self._write(self.local, ClientKey(collector, _new_secret()).text, "of whoever can read this folder")

    def new(self, name: str) -> ClientKey:
        """Make a client's key, and the collector's own where it has none. The client is not allowed yet.

        Raises:
            UsageError: a name that cannot be one, or is taken.
        """
        if not _NAME.fullmatch(name) or name == LOCAL:
            raise UsageError(f"{name!r} cannot name a key: letters, digits and ._@+- (at most 64), and not {LOCAL!r}")
        if self._public_file(name).exists():
            raise UsageError(f"there is a key {name!r}: revoke it first, or choose another name")
        if not self.exists:
            self._write(self._own, write_key(COLLECTOR_PREFIX, _new_secret()), "the collector's secret")
        return ClientKey(public_of(self.secret()), _new_secret())

    def allow(self, name: str, key: ClientKey) -> None:
        """Let the holder of a key connect from now on."""
        self._write(self._public_file(name), write_key(PUBLIC_PREFIX, public_of(key.secret)), f"{name} may connect")

    def revoke(self, name: str) -> None:
        """Let a client connect no more.

        Raises:
            UsageError: there is none of that name.
        """
        names = [client.name for client in self.clients() if client.is_allowed]
        if name not in names:
            raise UsageError(f"no key {name!r} is allowed; there are: {', '.join(names) or 'none'}")
        public = parse_key(PUBLIC_PREFIX, read_key_file(self._public_file(name)), name)
        with _writing(self._revoked):
            ensure_private(self._revoked)
            os.utime(self._public_file(name))
            self._public_file(name).rename(self._revoked / f"{name}-{public.hex()[:8]}.pub")

    def clients(self) -> list[Client]:
        """All clients that were ever allowed, by name; files that hold no key are left out."""
        found: list[Client] = []
        for folder, is_allowed in ((self._clients, True), (self._revoked, False)):
            for path in folder.glob("*.pub"):
                with contextlib.suppress(ConfigError, FileNotFoundError):
                    public = parse_key(PUBLIC_PREFIX, read_key_file(path), str(path))
                    name = path.stem if is_allowed else path.stem.rpartition("-")[0]
                    found.append(Client(name, public, path.stat().st_mtime, is_allowed))
        return sorted(found, key=lambda client: (client.name, -client.since))

    def allowed(self) -> dict[bytes, str]:
        """Public halves of those who may connect, the local key's among them, with their names."""
        names = {client.public: client.name for client in self.clients() if client.is_allowed}
        with contextlib.suppress(ConfigError):
            names[public_of(read_client_key(self.local).secret)] = LOCAL
        return names

    def signature(self) -> object:
        """Something that differs when who is allowed does."""
        found: list[tuple[str, int, int]] = []
        for path in (self.local, self._clients):
            with contextlib.suppress(OSError):
                found += [_stamp(entry) for entry in (os.scandir(path) if path.is_dir() else [path])]
        return sorted(found)

    def _public_file(self, name: str) -> Path:
        return self._clients / f"{name}.pub"

    def _write(self, path: Path, key: str, note: str) -> None:
        with _writing(path):
            ensure_private(self.folder)
            ensure_private(path.parent)
            write_private(path, f"# sidestep, {time.strftime('%Y-%m-%d')}: {note}\n{key}\n")


def public_of(secret: bytes) -> bytes:
    """The public half of a secret; 32 bytes each."""
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def write_private(path: Path, text: str) -> None:
    """Write a file of this user's alone, whole or not at all; one that is there already stays.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        os.link(temporary, path)  # unlike a rename it never replaces
    finally:
        temporary.unlink()


def _new_secret() -> bytes:
    return z85.decode(zmq.curve_keypair()[1])


def _stamp(entry: os.DirEntry[str] | Path) -> tuple[str, int, int]:
    found = entry.stat()
    return entry.name, found.st_ino, found.st_mtime_ns


@contextlib.contextmanager
def _writing(path: Path):  # noqa: ANN202 - a context manager
    try:
        yield
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror})") from error
