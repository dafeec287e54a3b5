"""Where things lie under a data folder (`--dir`, `SIDESTEP_DIR`), and how names become folder names.

<dir>/collector.json          pid, address, boot id and start of the collector (written by it)
<dir>/collector.lock          held with flock by the collector
<dir>/collector.starting      held by a collector that a script started, from its first moment on
<dir>/collector.log           output of a collector that was started in the background
<dir>/keys/                   who may connect, where a collector asks for keys: its own key and those it allows
<dir>/journal/<run>/r0-a0/    segments of one stream, until they are acknowledged; `memory` leads to those of
                              them that lie in shared memory
<dir>/store/                  the catalogue and its parts
<dir>/runs/<project>/<run>/   TensorBoard events and epoch documents
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from sidestep_schemas.errors import AddressError

DIR_VARIABLE: Final = "SIDESTEP_DIR"
COLLECTOR_VARIABLE: Final = "SIDESTEP_COLLECTOR"
DEFAULT_DIR: Final = "sidestep-data"
DEFAULT_PROJECT: Final = "default"
#: In a stream's folder: where its segments lie that are in shared memory.
SHARED_LINK: Final = "memory"

_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")
#: An ipc path must fit `sockaddr_un.sun_path` (108 bytes on Linux, 104 on macOS) with a suffix.
_IPC_PATH_MAX: Final = 90


class Endpoints(NamedTuple):
    """The three sockets of a collector: records in, acknowledgements out, questions."""

    data: str
    ack: str
    control: str


def data_dir(given: str | os.PathLike[str] | None = None) -> Path:
    """The data folder: what is given, else `SIDESTEP_DIR`, else `sidestep-data` here; absolute."""
    return Path(given or os.environ.get(DIR_VARIABLE) or DEFAULT_DIR).expanduser().absolute()


def safe_name(name: str) -> str:
    """`name` as the name of one folder: no separators, no leading dot, at most 80 characters.

    A name that had to be changed gets a short hash of the original, so two names never share a folder.
    """
    cleaned = _UNSAFE.sub("_", name).strip(".") or "_"
    if cleaned == name and len(name) <= 80:
        return name
    return f"{cleaned[:71]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def run_dir(root: Path, project: str, run: str) -> Path:
    """Folder of a run's files."""
    return root / "runs" / safe_name(project) / safe_name(run)


def user_runtime_dir() -> Path:
    """A folder on this machine that belongs to this user alone: for sockets, and for journals whose data
    folder lies on a network file system. Not created here."""
    return Path(tempfile.gettempdir()) / f"sidestep-{os.getuid()}"


def ensure_private(folder: Path) -> None:
    """Make a folder that this user alone can enter; take the rights of others away where it is there already.

    Both sides do it before they use `user_runtime_dir`: its name can be guessed, and whoever makes it first owns
    what is put there.

    Raises:
        OSError: it belongs to another user, is a link or no folder, or cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    # Looked at through one descriptor, so that nothing can be put in its place between the look and the change.
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise OSError(error.errno, "it is a link or a file, and must be a folder of yours", str(folder)) from error
        raise
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def guard_runtime(path: str | os.PathLike[str]) -> None:
    """`ensure_private` for the user's runtime folder, where `path` lies in it; an `ipc://` address is a path too.

    Raises:
        OSError: see there.
    """
    place = Path(os.fspath(path).removeprefix("ipc://"))
    if place.is_relative_to(user_runtime_dir()):
        ensure_private(user_runtime_dir())


def keys_dir(root: Path) -> Path:
    """Where the keys of a data folder's collector lie, unless its settings say otherwise."""
    return root / "keys"


def journal_roots(root: Path) -> tuple[Path, Path]:
    """Where journals of this data folder may lie: in it, or node-local when it is on a network."""
    return root / "journal", user_runtime_dir() / _digest(root) / "journal"


def shared_root() -> Path | None:
    """A folder in memory that outlives processes, of this user alone; None where the system has none. Not created
    here."""
    memory = Path("/dev/shm")  # noqa: S108 - made private before it is used
    return memory / f"sidestep-{os.getuid()}" if memory.is_dir() else None


def segment_files(stream: Path) -> list[Path]:
    """The segments of a stream, by its folder: those on disk, and those in shared memory."""
    return [*sorted(stream.glob("*.seg")), *sorted((stream / SHARED_LINK).glob("*.seg"))]


def default_address(root: Path) -> str:
    """The ipc address that belongs to a data folder on this machine."""
    return f"ipc://{user_runtime_dir() / _digest(root) / 'collector'}"


def endpoints(address: str) -> Endpoints:
    """The three socket addresses that an address stands for.

    `ipc://PATH` gives three paths with a suffix; `tcp://HOST:PORT` three consecutive ports.

    Raises:
        AddressError: the address is of neither form.
    """
    if address.startswith("ipc://") and len(address) > len("ipc://"):
        if len(address) - len("ipc://") > _IPC_PATH_MAX:
            raise AddressError(f"{address}: a socket path has at most {_IPC_PATH_MAX} characters; take a shorter one")
        return Endpoints(f"{address}.data", f"{address}.ack", f"{address}.control")
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if address.startswith("tcp://") and host and port.isdigit() and 0 < int(port) <= 65533:
        return Endpoints(*(f"tcp://{host}:{int(port) + offset}" for offset in range(3)))
    raise AddressError(f"{address!r} is no address: write ipc:///path/of/socket or tcp://host:port")


def _digest(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
