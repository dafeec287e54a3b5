"""The store's folder: who may write it, where its files lie, and what makes them safe on disk."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from sidestep_schemas.errors import FolderError

CATALOGUE: Final = "sidestep.duckdb"
#: A publish builds the next catalogue here; whatever lies here at the start was never committed.
NEXT: Final = "sidestep.duckdb.next"
PARTS: Final = "parts"
SUPERSEDED: Final = "superseded.json"
SPILL: Final = "spill"
_PATIENCE_SECONDS: Final = 0.5


def store_dir(root: Path) -> Path:
    """Folder of the catalogue and its parts."""
    return root / "store"


def lock(root: Path) -> int:
    """Take the folder for this process; the descriptor holds it until it is closed.

    Raises:
        FolderError: it cannot be written, or another collector has it.
    """
    try:
        (store_dir(root) / PARTS).mkdir(parents=True, exist_ok=True)
        handle = os.open(root / "collector.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FolderError(f"{root}: cannot be written ({error.strerror}); choose another folder with --dir") from error
    try:
        _take(handle)
    except BlockingIOError as error:
        os.close(handle)
        raise FolderError(
            f"{root}: {_holder(root)} writes this folder already; attach to it, or choose another folder with --dir"
        ) from error
    except OSError as error:
        os.close(handle)
        raise FolderError(f"{root}: cannot be locked ({error.strerror}); choose a local folder with --dir") from error
    return handle


def _take(handle: int) -> None:
    # Whoever only looks whether a collector is there holds the lock for microseconds.
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _holder(root: Path) -> str:
    try:
        said: Any = json.loads((root / "collector.json").read_text())
    except (OSError, ValueError):
        said = None
    if not isinstance(said, dict):
        return "another collector"
    known = cast("dict[str, Any]", said)
    where = f" at {known['address']}" if known.get("address") else ""
    return f"the collector with pid {known.get('pid', 'unknown')}{where}"


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(paths: Iterable[Path]) -> None:
    """Remove files that nobody reads; one that will not go now goes at the next start."""
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_unpublished(folder: Path) -> None:
    """Remove what a publish that did not end left."""
    remove((folder / NEXT, folder / f"{NEXT}.wal"))


class Superseded:
    """Parts that were merged into others and wait for their readers to finish.

    They stand in a file of their own, because the manifest must not name them and a restart must not take
    them for leftovers of a killed commit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._since: dict[str, float] = {}
        with suppress(OSError, ValueError):
            said: Any = json.loads((folder / SUPERSEDED).read_text())
            if isinstance(said, dict):
                known = cast("dict[str, Any]", said)
                self._since = {part: float(since) for part, since in known.items()}

    def add(self, parts: Iterable[str], now: float) -> None:
        """Remember parts before the manifest drops them: a kill in between leaves them named in both, which is safe."""
        self._write(self._since | dict.fromkeys(parts, now))

    def sweep(self, manifest: set[str], now: float, grace_seconds: float) -> int:
        """Remove the parts whose time is over; return how many."""
        over = [part for part, since in self._since.items() if now - since >= grace_seconds and part not in manifest]
        if over:
            remove(self._folder / part for part in over)
            self._write({part: since for part, since in self._since.items() if part not in over})
        return len(over)

    def remove_leftovers(self, manifest: set[str]) -> None:
        """Remove part files that no catalogue ever named."""
        files = (path for path in (self._folder / PARTS).glob("*/*") if path.is_file())
        remove(
            p for p in files if (name := str(p.relative_to(self._folder))) not in manifest and name not in self._since
        )

    def _write(self, since: dict[str, float]) -> None:
        path = self._folder / SUPERSEDED
        fresh = path.with_suffix(".json.next")
        fresh.write_text(json.dumps(since))
        sync(fresh)
        fresh.replace(path)
        self._since = since
