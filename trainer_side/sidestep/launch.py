"""Finding the collector of a data folder, and starting one in the background where there is none.

Knows the collector by its command line and by the file it writes, and imports nothing of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sidestep_schemas.errors import ConfigError, FolderError, MissingExtraError
from sidestep_schemas.keys import ClientKey, read_client_key
from sidestep_schemas.layout import default_address

#: A collector that a script started by itself ends when no stream was open for this long.
IDLE_SECONDS: Final = 600.0

_NEEDED: Final = ("duckdb", "msgspec", "numpy", "pydantic", "structlog", "tensorboard")


@dataclass(frozen=True, slots=True)
class Collector:
    """A collector that runs here, by what it wrote into its data folder. `key` is the file with the key of those
    who can read that folder, where it asks for keys."""

    pid: int
    address: str
    key: str = ""


def find(root: Path) -> Collector | None:
    """The collector that serves a data folder on this machine; None when none does."""
    try:
        found: dict[str, Any] = json.loads((root / "collector.json").read_text(encoding="utf-8"))
        collector = Collector(int(found["pid"]), str(found["address"]), str(found.get("key") or ""))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return collector if is_locked(root) else None


def local_key(root: Path, address: str | None) -> ClientKey | None:
    """The key that the collector of a data folder gives to its neighbours; None where it asks for none, where the
    address is another collector's, or where this user may not read it."""
    running = find(root)
    if running is None or running.address != address or not running.key:
        return None
    try:
        return read_client_key(running.key)
    except ConfigError:
        return None


def is_locked(root: Path) -> bool:
    """Whether a collector holds the data folder."""
    try:
        descriptor = os.open(root / "collector.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def is_importable(name: str) -> bool:
    """Whether a package is installed. Imports nothing."""
    return importlib.util.find_spec(name) is not None


def is_installed() -> bool:
    """Whether the [collector] extra is there. Imports none of it."""
    return all(is_importable(name) for name in _NEEDED)


def require_installed() -> None:
    """Fail where the [collector] extra is missing.

    Raises:
        MissingExtraError: naming the command that mends it.
    """
    missing = [name for name in _NEEDED if not is_importable(name)]
    if missing:
        raise MissingExtraError(
            f"the collector is not installed here ({', '.join(missing)} missing): pip install 'sidestep[collector]'"
        )


def command(root: Path, *options: str) -> list[str]:
    """Command line of a collector for a data folder."""
    return [sys.executable, "-m", "sidestep_collector", "--dir", str(root), *options]


def start(root: Path, *options: str, keeps: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    """Start a collector in the background, detached from this process group; its output goes to collector.log.

    Args:
        root: data folder.
        options: the collector's own.
        keeps: descriptors that it inherits.

    Raises:
        FolderError: the data folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        log = (root / "collector.log").open("ab")
    except OSError as error:
        raise FolderError(
            f"{root} cannot be written ({error.strerror}): choose another with --dir or SIDESTEP_DIR"
        ) from error
    with log:
        return subprocess.Popen(
            command(root, *options),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            pass_fds=keeps,
        )


def ensure(root: Path) -> str | None:
    """Address of the collector for a data folder, started in the background where it is not running.

    Does not wait for it: its address follows from the folder, and what is logged before it listens is in the
    journal. None where it cannot run here; the journal then waits for `sidestep sync`.
    """
    running = find(root)
    if running is not None:
        return running.address
    if not is_installed():
        return None
    if not is_locked(root):
        with contextlib.suppress(FolderError, OSError):
            _start_one(root)
    return default_address(root)


def _start_one(root: Path) -> None:
    # Of a hundred processes that begin at once, one starts a collector. The claim passes to it and ends with it, so
    # there is no moment between its start and its own lock in which another is started.
    root.mkdir(parents=True, exist_ok=True)
    claim = os.open(root / "collector.starting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Nobody waits for it: without a return code, forgetting the object is a ResourceWarning.
        start(root, "--idle-exit", str(IDLE_SECONDS), keeps=(claim,)).returncode = 0
    finally:
        os.close(claim)
