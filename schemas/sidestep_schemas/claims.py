"""Who holds a stream's journal folder: the process that writes it, or one that ships what a dead one left.

The claim is a POSIX record lock on the file `lock` in the folder. Not flock: a record lock is not inherited by
forked children, so it ends with the process that took it, whatever its workers do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from sidestep_schemas.layout import journal_roots, segment_files

LOCK_NAME: Final = "lock"

#: Descriptors that `claim` gave to this process.
_ours: Final[dict[Path, int]] = {}


def claim(folder: Path, *, patience_seconds: float = 0.0) -> int:
    """Take a stream's folder; returns a descriptor that holds it until it is closed.

    Args:
        folder: folder of the stream.
        patience_seconds: how long to try again. Whoever only looks whether it is free holds it for microseconds.

    Raises:
        BlockingIOError: a living process has it.
        OSError: the folder cannot be written.
    """
    if _is_ours(folder):
        raise BlockingIOError(errno.EAGAIN, "this process holds it", str(folder))
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
            _ours[folder] = descriptor
            return descriptor


def is_claimed(folder: Path) -> bool:
    """Whether a living process, this one included, holds a stream's folder."""
    if _is_ours(folder):
        return True
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
        for place, _, names in os.walk(journal):  # a glob raises where a folder goes meanwhile
            if LOCK_NAME not in names:
                continue
            folder = Path(place)
            with contextlib.suppress(FileNotFoundError):  # its process may remove it just now
                if segment_files(folder) and not is_claimed(folder):
                    found.append((folder.stat().st_mtime, folder))
    return [folder for _, folder in sorted(found)]


def _is_ours(folder: Path) -> bool:
    # A record lock does not keep out its own process, which loses it when it closes any descriptor of the file.
    descriptor = _ours.get(folder)
    if descriptor is None:
        return False
    with contextlib.suppress(OSError):  # it was closed, or the folder is gone
        if os.path.samestat(os.fstat(descriptor), (folder / LOCK_NAME).stat()):
            return True
    del _ours[folder]
    return False
