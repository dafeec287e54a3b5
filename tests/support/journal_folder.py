"""A folder for the journal of a test, and disks that are full or cost no time."""

import errno
import os
import threading
from pathlib import Path

import pytest

from sidestep import journal as journal_module
from sidestep import segments
from sidestep_schemas.segment import iter_ranges

MEGABYTE = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stream"


@pytest.fixture
def full_disk(monkeypatch):
    """A switch: while it is set, no disk gives blocks for a file."""
    full = threading.Event()

    def refuse() -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")

    def refuse_or_reserve(descriptor: int, size: int) -> None:
        refuse()
        os.ftruncate(descriptor, size)

    write_bytes = Path.write_bytes

    def refuse_or_write(path: Path, data: bytes) -> int:
        refuse()
        return write_bytes(path, data)

    monkeypatch.setattr(segments, "_reserve", refuse_or_reserve)
    monkeypatch.setattr(Path, "write_bytes", refuse_or_write)
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 0.0)
    return full


@pytest.fixture
def unreserved(monkeypatch):
    """Reserves nothing, truncates instead: many megabytes cost no time."""
    monkeypatch.setattr(segments, "_reserve", os.ftruncate)
    monkeypatch.setattr(segments, "_prefault", lambda view: view.__setitem__(slice(None), bytes(len(view))))


def on_disk(folder: Path) -> int:
    return sum(found.records for path in folder.glob("*.seg") for found in iter_ranges(path.read_bytes()))
