"""Memory of the process, and of its device. Read on the host; no device is asked.

torch keeps one peak for each device, from its last reset. To have the peak since the last report, this probe resets
it, and keeps what the peak was before for everybody else: `torch.cuda.memory_stats`, and all that reads it
(`max_memory_allocated`, `memory_summary`, ...), give the larger of both until the script resets the peak itself. So a
script sees the numbers that it would see without us. Code that asks torch's C functions sees the peak since our last
report; `reset_peaks=False` leaves the counter alone, and records what it says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from sidestep.probes.protocol import Probe
from sidestep.wrapping import Wrappings

TAGS: Final = (
    "perf/gpu_mem_allocated_gb",
    "perf/gpu_mem_reserved_gb",
    "perf/gpu_mem_fragmentation",
    "perf/host_rss_gb",
)

_STATM: Final = Path("/proc/self/statm")
_MODULES: Final = (("torch.cuda.memory", "torch.cuda"), ("torch.accelerator.memory", "torch.accelerator"))


class MemoryProbe(Probe):
    """Peaks of device memory since the last report, and resident memory of the process.

    Args:
        every: when it samples.
        reset_peaks: reset torch's counter after each report, hidden from the script; else peaks are those since the
            process began, or the script reset them.
    """

    name: ClassVar[str] = "memory"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self, *, every: int | str | None = None, reset_peaks: bool = True) -> None:
        super().__init__(every=every)
        self._resets = reset_peaks

    def report(self, step: int) -> None:
        """Record what the allocator and the kernel have counted anyway."""
        values: dict[str, float] = {}
        device = self.watched.device
        if device.type == "cuda":
            statistics = PEAKS.take(device) if self._resets else torch.cuda.memory_stats(device)
            values[TAGS[0]] = statistics.get("allocated_bytes.all.peak", 0) / 1e9
            values[TAGS[1]] = statistics.get("reserved_bytes.all.peak", 0) / 1e9
            reserved = statistics.get("reserved_bytes.all.current", 0)
            if reserved:
                values[TAGS[2]] = 1 - statistics.get("allocated_bytes.all.current", 0) / reserved
        resident = resident_bytes()
        if resident is not None:
            values[TAGS[3]] = resident / 1e9
        if values:
            self.run.record(tuple(values), tuple(values.values()), step=step)


class Peaks:
    """Resets torch's peaks for us alone.

    What was wrapped stays so when a run ends: a script may ask for the peak of its training afterwards.
    """

    def __init__(self) -> None:
        self._wrappings = Wrappings()
        self._kept: dict[int, dict[str, int]] = {}
        self._is_own = False

    def take(self, device: torch.device) -> dict[str, Any]:
        """Statistics of a device, their peaks since the last call; reset from now on."""
        self._install()
        with self._own():
            statistics = torch.cuda.memory_stats(device)
            torch.cuda.reset_peak_memory_stats(device)
        kept = self._kept.setdefault(_index(device), {})
        for name, value in statistics.items():
            if name.endswith(".peak"):
                kept[name] = max(kept.get(name, 0), value)
        return statistics

    def _install(self) -> None:
        for names in _MODULES:
            places = [module for name in names if (module := _module(name)) is not None]
            self._wrappings.wrap(places, "memory_stats", self._around_stats)
            self._wrappings.wrap(places, "reset_peak_memory_stats", self._around_reset)

    @contextmanager
    def _own(self) -> Generator[None]:
        self._is_own = True
        try:
            yield
        finally:
            self._is_own = False

    def _around_stats(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def memory_stats(*args: Any, **kwargs: Any) -> Any:
            statistics = original(*args, **kwargs)
            if not self._is_own:
                for name, value in self._kept.get(_index(*args, **kwargs), {}).items():
                    if name in statistics:
                        statistics[name] = max(statistics[name], value)
            return statistics

        return memory_stats

    def _around_reset(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def reset_peak_memory_stats(*args: Any, **kwargs: Any) -> Any:
            if not self._is_own:
                self._kept.pop(_index(*args, **kwargs), None)
            return original(*args, **kwargs)

        return reset_peak_memory_stats


#: Those of this process: torch has one counter.
PEAKS: Final = Peaks()


def resident_bytes() -> int | None:
    """Resident memory of this process; None where there is no /proc."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _index(*args: Any, **kwargs: Any) -> int:
    # As torch's functions take it: first argument, `device`, or `device_index`; an index, a device, its name, or none.
    given = args[0] if args else kwargs.get("device", kwargs.get("device_index"))
    index = given if isinstance(given, int) or given is None else torch.device(given).index
    return torch.cuda.current_device() if index is None else index


def _module(name: str) -> Any:
    module: Any = torch
    for part in name.split(".")[1:]:
        module = getattr(module, part, None)
    return module
