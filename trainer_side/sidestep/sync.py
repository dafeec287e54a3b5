"""Shipping what was left behind: `sidestep sync`. The same pusher, over journals read back from disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidestep.leftover import LeftoverJournal
from sidestep.push import Pusher
from sidestep_schemas.claims import find_leftovers
from sidestep_schemas.errors import SegmentError, VersionError
from sidestep_schemas.host import boot_id
from sidestep_schemas.keys import ClientKey


@dataclass(slots=True)
class SyncReport:
    """What a sync did, in streams and records."""

    streams: int = 0
    records: int = 0
    bytes: int = 0
    pending_streams: int = 0
    damaged: int = 0
    reasons: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


def sync(
    root: Path,
    address: str,
    *,
    patience: float,
    on_progress: Callable[[int, int], None] | None = None,
    key: ClientKey | None = None,
) -> SyncReport:
    """Ship every journal under a data folder whose process is gone, and remove what is stored.

    Args:
        root: data folder.
        address: the collector.
        patience: seconds to wait for a collector that does not move on.
        on_progress: called with (records stored, records found).
        key: shown to the collector.
    """
    report = SyncReport()
    reasons: list[str] = []
    journals: list[LeftoverJournal] = []
    for folder in find_leftovers(root):
        try:
            journals.append(LeftoverJournal(folder, boot_id()))
        except BlockingIOError:
            continue
        except (SegmentError, VersionError, OSError) as error:
            if not folder.exists():
                continue  # nothing was left in it
            report.damaged += 1
            reasons.append(f"{folder}: {error}")
    total = sum(journal.seq - journal.first_seq for journal in journals)
    stored = 0
    for journal in journals:
        before = stored

        def tell(committed: int, first: int = journal.first_seq, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + max(0, committed - first), total)

        delivered, why = _ship(journal, address, key, patience, tell)
        journal.close(delivered=delivered)
        if delivered:
            stored += journal.seq - journal.first_seq
            report.streams += 1
            report.bytes += journal.nbytes
            continue
        report.pending_streams += 1
        reasons.append(f"{journal.folder}: {why}")
    report.records = stored
    report.reasons = tuple(reasons)
    return report


def _ship(
    journal: LeftoverJournal, address: str, key: ClientKey | None, patience: float, tell: Callable[[int], None]
) -> tuple[bool, str]:
    pusher = Pusher(journal, address, key=key)
    pusher.start()
    moved_at, committed = time.monotonic(), 0
    try:
        while not pusher.wait(journal.seq, 0.1):
            if pusher.delivery.refused:
                return False, pusher.delivery.refused
            if pusher.delivery.committed > committed:
                moved_at, committed = time.monotonic(), pusher.delivery.committed
            if time.monotonic() - moved_at > patience:
                return False, f"no collector at {address} took it within {patience:g} s"
            tell(committed)
        tell(journal.seq)
        return True, ""
    finally:
        pusher.stop(2.0)
