"""What an address to listen at must be like before anything is bound to it."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from pathlib import Path

from sidestep_schemas.errors import AddressError
from sidestep_schemas.layout import endpoints, guard_runtime


def reaches_out(address: str) -> bool:
    """Whether other machines can reach it."""
    if not address.startswith("tcp://"):
        return False
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def check_reach(address: str, *, insecure: bool, has_keys: bool) -> None:
    """Refuse an address that other machines can reach where nothing says who may.

    Raises:
        AddressError: saying what to do.
    """
    if reaches_out(address) and not has_keys and not insecure:
        raise AddressError(
            f"{address} can be reached from other machines, and there are no keys to say who may: make some with "
            "`sidestep keys new NAME`, listen on 127.0.0.1 and tunnel, or say --insecure on a network you trust"
        )


def check_free(address: str) -> None:
    """Refuse a socket file that a collector listens on.

    libzmq removes such a file and binds anew, whoever listens on it: the other collector would go deaf.

    Raises:
        AddressError: one does.
    """
    if not address.startswith("ipc://"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(endpoints(address).control.removeprefix("ipc://"))
        except OSError:
            return
    raise AddressError(
        f"{address} cannot be bound (a collector listens there): attach to it, or choose another with --listen"
    )


def make_socket_folder(address: str) -> None:
    """Make the folder of a socket file, or refuse one that others could put a socket of theirs in.

    Raises:
        AddressError: it cannot be made, belongs to another user, or others may write in it.
    """
    if not address.startswith("ipc://"):
        return
    folder = Path(address.removeprefix("ipc://")).parent
    try:
        guard_runtime(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        where = error.filename or folder
        raise AddressError(f"{where} cannot be used ({error.strerror}): choose an address with --listen") from error
    if found.st_uid != os.getuid():
        raise AddressError(f"{folder} belongs to another user: choose an address with --listen")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise AddressError(f"{folder} can be written by others: chmod 700 it, or choose an address with --listen")


def keep_to_user(point: str) -> None:
    """Let no other user connect to a socket file that was just bound."""
    if point.startswith("ipc://"):
        Path(point.removeprefix("ipc://")).chmod(0o600)
