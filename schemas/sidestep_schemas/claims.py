"""Who holds a stream's journal folder: the process that writes it, or one that ships what a dead one left.

The claim is a POSIX record lock on the file `lock` in the folder. Not flock: a record lock is not inherited by
forked children, so it ends with the process that took it, whatever its workers do.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from sidestep_schemas.layout import journal_roots

LOCK_NAME: Final = "lock"


def claim(folder: Path) -> int:
    """Take a stream's folder; returns a descriptor that holds it until it is closed.

    Raises:
        BlockingIOError: a living process has it.
        OSError: the folder cannot be written.
    """
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def is_claimed(folder: Path) -> bool:
    """Whether a living process other than this one holds a stream's folder."""
    try:
        os.close(claim(folder))
    except OSError:
        return True
    return False


def find_leftovers(root: Path) -> list[Path]:
    """Folders of streams under a data folder that no living process holds, oldest first."""
    folders = [lock.parent for journal in journal_roots(root) for lock in journal.glob(f"*/*/{LOCK_NAME}")]
    free = [(folder.stat().st_mtime, folder) for folder in folders if not is_claimed(folder)]
    return [folder for _, folder in sorted(free)]
