"""Memory of the process, and of its device. Read on the host; no device is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Final

import torch

from sidestep.probes.protocol import Probe

TAGS: Final = ("perf/gpu_mem_allocated_gb", "perf/gpu_mem_reserved_gb", "perf/host_rss_gb")

_STATM: Final = Path("/proc/self/statm")


class MemoryProbe(Probe):
    """Peaks of device memory, and resident memory of the process."""

    name: ClassVar[str] = "memory"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS

    def report(self, step: int) -> None:
        """Record what the allocator and the kernel have counted anyway."""
        values: dict[str, float] = {}
        device = self.watched.device
        if device.type == "cuda":
            statistics = torch.cuda.memory_stats(device)
            values[TAGS[0]] = statistics.get("allocated_bytes.all.peak", 0) / 1e9
            values[TAGS[1]] = statistics.get("reserved_bytes.all.peak", 0) / 1e9
        resident = resident_bytes()
        if resident is not None:
            values[TAGS[2]] = resident / 1e9
        if values:
            self.run.record(tuple(values), tuple(values.values()), step=step)


def resident_bytes() -> int | None:
    """Resident memory of this process; None where there is no /proc."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
