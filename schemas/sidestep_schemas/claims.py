"""Who holds a stream's journal folder: the process that writes it, or one that ships what a dead one left.

The claim is a POSIX record lock on the file `lock` in the folder. Not flock: a record lock is not inherited by
forked children, so it ends with the process that took it, whatever its workers do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from sidestep_schemas.layout import journal_roots

LOCK_NAME: Final = "lock"


def claim(folder: Path, *, patience_seconds: float = 0.0) -> int:
    """Take a stream's folder; returns a descriptor that holds it until it is closed.

    Args:
        folder: folder of the stream.
        patience_seconds: how long to try again. Whoever only looks whether it is free holds it for microseconds.

    Raises:
        BlockingIOError: a living process has it.
        OSError: the folder cannot be written.
    """
    deadline = time.monotonic() + patience_seconds
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise
            time.sleep(0.005)
        else:
            return descriptor


def is_claimed(folder: Path) -> bool:
    """Whether a living process other than this one holds a stream's folder."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def find_leftovers(root: Path) -> list[Path]:
    """Folders of streams under a data folder that hold segments and no living process, oldest first."""
    found: list[tuple[float, Path]] = []
    for journal in journal_roots(root):
        for lock in journal.glob(f"*/*/{LOCK_NAME}"):
            folder = lock.parent
            with contextlib.suppress(FileNotFoundError):  # its process may remove it just now
                if any(folder.glob("*.seg")) and not is_claimed(folder):
                    found.append((folder.stat().st_mtime, folder))
    return [folder for _, folder in sorted(found)]
