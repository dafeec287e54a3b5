"""The collector's own figures: what came in, what was refused, how long commits take. Counted, never logged each."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

_COMMITS_KEPT = 512


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
