"""Bringing to disk what waits in shared memory: what the collector has not stored after a second.

Segments that a training thread stores into lie in shared memory (`/dev/shm`): storing into a file of a disk waits for
that disk whenever it has to note that a page changes, and with a disk that stands still it waits for ever, with the
interpreter lock held. Shared memory outlives the process, not the machine or the container; so what waits goes to
disk, from a thread that nothing else depends on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from sidestep.records import seal
from sidestep.segments import Segment
from sidestep_schemas.claims import claim, is_claimed
from sidestep_schemas.layout import SHARED_LINK, ensure_private, shared_root
from sidestep_schemas.wire import SEGMENT_HEADER

logger = logging.getLogger("sidestep")

#: Shared memory that the segments of a stream may take, spares included.
SHARED_BYTES_MAX = 40 << 20
#: A container often has 64 MB of it, which loaders of data need themselves: below this it is left alone.
_FREE_BYTES_MIN = 4 * SHARED_BYTES_MAX
#: What is older than this and not stored goes to disk.
_KEEP_SECONDS = 1.0
#: A write that takes longer is a disk that stands still.
_STILL_SECONDS = 2.0
_OWNER_NAME = "stream"
#: Shared memory of a dead process whose folders are elsewhere is freed after a day.
_OLD_SECONDS = 86_400.0


class Keeper:
    """Writes the segments of one stream to disk, as far as they wait.

    Args:
        folder: folder of the stream on disk.
        segments: gives those that are in use, oldest first.
        bytes_max: what they may take on disk.

    Attributes:
        committed: records below this are stored by a collector; nobody needs them on disk.
        nbytes: what lies on disk.
    """

    def __init__(self, folder: Path, segments: Callable[[], Iterable[Segment]], bytes_max: int) -> None:
        self.committed = 0
        self.nbytes = 0
        self._folder = folder
        self._segments = segments
        self._bytes_max = bytes_max
        self._error = ""
        self._busy_since: float | None = None
        self._lock = threading.Lock()  # held for a copy of memory, never while a disk is asked
        self._aged: dict[int, tuple[int, int]] = {}  # number of a segment: its tail and the seq behind it, a round ago
        self._unwanted: deque[tuple[Path, int]] = deque()
        self._wake = threading.Event()
        self._is_last = self._keeps_last = False
        self._last: Callable[[], None] = _nothing
        self._thread = threading.Thread(target=self._work, name="sidestep-keep", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why the disk takes no more; "" while it does."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > _STILL_SECONDS:
            return f"the disk of {self._folder} stands still"
        return self._error

    def hurry(self) -> None:
        """Shared memory runs short: keep what is there now."""
        self._wake.set()

    def let_go(self, segment: Segment, call: Callable[[], None]) -> None:
        """Have a segment released, reused or parked by `call`, at a moment when it is not being copied.

        What of it lies on disk is removed, unless it is parked there."""
        with self._lock:
            number, kept, path = segment.number, segment.kept, segment.kept_path
            call()
            self._aged.pop(number, None)
            if segment.is_parked and segment.path == path:
                return
            segment.kept, segment.kept_path = 0, None
        if path is not None:
            self.discard(path, kept)

    def discard(self, path: Path, nbytes: int) -> None:
        """Have a file removed that nobody needs any more."""
        self._unwanted.append((path, nbytes))

    def close(self, last: Callable[[], None], timeout: float, *, keep: bool) -> bool:
        """Keep all there is, if asked to, then have `last` called by the thread; False where the disk took too long."""
        self._last = last
        self._keeps_last = keep
        self._is_last = True
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            while not self._is_last:
                is_hurry = self._wake.wait(_KEEP_SECONDS)
                self._wake.clear()
                if not self._is_last:
                    self._round(everything=is_hurry)
            if self._keeps_last:
                self._round(everything=True)
            self._last()
        except Exception as error:
            self._error = str(error)
            logger.exception("nothing is written to the journal on disk any more")

    def _round(self, *, everything: bool) -> None:
        self._busy_since = time.monotonic()
        try:
            self._remove_unwanted()
            self._error = ""
            for segment in list(self._segments()):
                if segment.is_shared and not self._keep(segment, everything=everything):
                    break
        except OSError as error:
            self._error = f"the journal folder {self._folder} takes no more: {error.strerror or error}"
        finally:
            self._busy_since = None

    def _remove_unwanted(self) -> None:
        while self._unwanted:
            path, nbytes = self._unwanted.popleft()
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            self.nbytes -= nbytes

    def _keep(self, segment: Segment, *, everything: bool) -> bool:
        number, tail, behind = segment.number, segment.tail, segment.next_seq
        aged_tail, aged_behind = (tail, behind) if everything else self._aged.get(number, (0, 0))
        self._aged[number] = (tail, behind)
        if aged_behind <= self.committed and not self._keeps_last:
            return True
        while (piece := self._copy(segment, number, aged_tail)) is not None:
            path, start, data = piece
            if self.nbytes + len(data) > self._bytes_max:
                self._error = f"the journal {self._folder} holds the {self._bytes_max >> 20} MB that it may"
                return False
            self._busy_since = time.monotonic()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                written = os.pwrite(descriptor, data, start)
            finally:
                os.close(descriptor)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.nbytes += len(data)
            with self._lock:
                if segment.number == number and segment.kept_path == path:
                    segment.kept = start + len(data)
                else:
                    self._unwanted.append((path, len(data)))
                    return True
        return True

    def _copy(self, segment: Segment, number: int, tail: int) -> tuple[Path, int, bytes] | None:
        """The next bytes to write, sealed: of a machine that crashes, only what is sealed counts."""
        with self._lock:
            if segment.number != number or segment.kept >= tail or not segment.is_shared or segment.path is None:
                return None
            stop, _ = seal(segment, max(segment.kept, SEGMENT_HEADER.size), tail)
            if segment.kept_path is None:
                segment.kept_path = self._folder / segment.path.name
            return segment.kept_path, segment.kept, bytes(segment.view[segment.kept : stop])


def shared_folder(stream: Path) -> tuple[Path, int] | None:
    """A folder in shared memory for the segments of a stream, linked from its folder on disk, and the descriptor that
    claims it; None where none can be had."""
    root = shared_root()
    if root is None:
        return None
    folder, link = root / stream.name, stream / SHARED_LINK
    try:
        found = os.statvfs(root.parent)
        if found.f_bavail * found.f_frsize < _FREE_BYTES_MIN:
            return None
        ensure_private(root)
        remove_abandoned(root)
        link.symlink_to(folder, target_is_directory=True)  # first of all: what no link leads to is removed by others
        folder.mkdir(mode=0o700)
        descriptor = claim(folder)
        (folder / _OWNER_NAME).write_text(f"{_mounts()}\n{stream}", encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            link.unlink()
        return None
    return folder, descriptor


def remove_shared_folder(stream: Path) -> None:
    """Remove the folder in shared memory that belongs to a stream, and the link to it; what cannot be removed stays."""
    link, root = stream / SHARED_LINK, shared_root()
    with contextlib.suppress(OSError):
        target = link.readlink()
        if root is not None and target.parent == root:
            shutil.rmtree(target, ignore_errors=True)
        link.unlink()


def remove_abandoned(root: Path) -> None:
    """Free shared memory of dead processes whose folder on disk somebody removed.

    A container that shares its memory with others has folders that nobody else sees: of those, what is old goes.
    """
    for folder in root.iterdir():
        with contextlib.suppress(OSError, ValueError):
            if is_claimed(folder):
                continue
            mounts, _, stream = (folder / _OWNER_NAME).read_text(encoding="utf-8").partition("\n")
            if mounts == _mounts():
                is_abandoned = not (Path(stream) / SHARED_LINK).is_symlink()
            else:
                is_abandoned = time.time() - folder.stat().st_mtime > _OLD_SECONDS
            if is_abandoned:
                shutil.rmtree(folder)


def _mounts() -> str:
    """Which paths count: two processes with the same answer see the same folders."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/mnt").readlink())
    return ""


def _nothing() -> None:
    pass
