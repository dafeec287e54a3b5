"""The collector's own figures: what came in, what was refused, how long commits take. Counted, never logged each."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sidestep_schemas.layout import journal_roots, segment_files

_COMMITS_KEPT = 512
#: The thread that reads turns ten times a second; after so long without it stands still.
_STILL_SECONDS: Final = 15.0
#: Less than this is no room for the next commits.
_DISK_BYTES_MIN: Final = 64 << 20


@dataclass(slots=True)
class Counters:
    """Totals since the start. Written by one thread each, read by any."""

    frames: int = 0
    bytes: int = 0
    records: int = 0
    scalars: int = 0
    rejected_frames: int = 0
    refused_versions: int = 0
    undecodable_records: int = 0
    duplicate_records: int = 0
    lost_records: int = 0
    rewinds_asked: int = 0
    heartbeats: int = 0
    commits: int = 0
    failed_commits: int = 0
    sink_failures: int = 0
    named_folder_failures: int = 0
    derived_scalars: int = 0
    analyser_failures: int = 0

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


@dataclass(slots=True)
class CommitTimes:
    """How long the last commits took."""

    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_COMMITS_KEPT))

    def add(self, seconds: float) -> None:
        """Note one."""
        self._seconds.append(seconds)

    def as_dict(self) -> dict[str, Any]:
        """Median and 99th percentile in milliseconds; None before the first."""
        ordered = sorted(self._seconds)
        if not ordered:
            return {"p50_ms": None, "p99_ms": None}
        return {
            "p50_ms": round(ordered[len(ordered) // 2] * 1e3, 2),
            "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3, 2),
        }


def journal_bytes(root: Path) -> int:
    """Bytes of all journals of a data folder on this host, of running trainings and of dead ones; on disk and in shared
    memory."""
    total = 0
    for journal in journal_roots(root):
        for folder, _, _ in os.walk(journal):
            for segment in segment_files(Path(folder)):
                try:
                    total += segment.stat().st_blocks * 512
                except OSError:
                    continue  # its process removed it just now
    return total


def disk_free_bytes(root: Path) -> int | None:
    """Bytes that are left on the disk of a data folder; None where that cannot be told."""
    try:
        return shutil.disk_usage(root).free
    except OSError:
        return None


def not_ready(document: Mapping[str, Any]) -> list[str]:
    """Why what comes in does not get stored at present; empty where it does.

    Args:
        document: of `sidestep status`.
    """
    free = document["disk_free_bytes"]
    still = document["turned_seconds_ago"]
    checks = (
        (bool(document["failing"]), f"commits fail: {document['failing']}"),
        (free is not None and free < _DISK_BYTES_MIN, f"the disk is full: {(free or 0) / 1e6:.0f} MB are left"),
        (not document["reading"], "more waits for a commit than it may: nothing is read until there is room"),
        (still > _STILL_SECONDS, f"the thread that reads has stood still for {still:.0f} s"),
    )
    return [reason for holds, reason in checks if holds]
