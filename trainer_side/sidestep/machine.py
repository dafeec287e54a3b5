"""What the machine does meanwhile: load, memory, disks, network, and the device that the process uses.

Sampled on the drain thread, never in the loop: nothing here is called by the training thread but the beginning and
the end. The journal takes records of several threads, so that a sample is recorded where it is taken, and a
training that hangs still shows what its machine does. psutil and NVML are loaded by the first sample; what they
cannot tell is counted, said once at debug level, and left out. Imports neither torch nor anything else at import.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from sidestep.device import Device

if TYPE_CHECKING:
    from sidestep.run import Run

logger = logging.getLogger("sidestep")

TAGS: Final = (
    "system/cpu_utilisation_percent",
    "system/memory_used_gb",
    "system/memory_used_percent",
    "system/disk_read_mb_per_sec",
    "system/disk_write_mb_per_sec",
    "system/network_received_mb_per_sec",
    "system/network_sent_mb_per_sec",
    "system/process_cpu_percent",
    "system/process_memory_gb",
    "system/gpu_utilisation_percent",
    "system/gpu_memory_used_gb",
    "system/gpu_memory_used_percent",
    "system/gpu_power_watts",
    "system/gpu_temperature_celsius",
)
#: The first sample, so that a short run has one; loads and rates need this much to look back on.
FIRST_SECONDS: Final = 2.0
_LOCAL_RANK_VARIABLES: Final = (
    "LOCAL_RANK",
    "SLURM_LOCALID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "FLUX_TASK_LOCAL_ID",
)
_LOOPBACK: Final = ("lo", "lo0")

#: Takes the seconds since it was asked last, 0.0 at first; gives values by tag.
Source = Callable[[float], Mapping[str, float]]


class Machine:
    """Samples of the machine for one run.

    Args:
        seconds: from one sample to the next; 0 takes none.
        environ: tells the local rank, and which devices the process sees.
        clock: seconds that only rise.

    Attributes:
        seconds: may be changed while it runs.
        device: what the process computes on.
        failures: what could not be read, by source: how often.
    """

    def __init__(
        self,
        seconds: float,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.failures: dict[str, int] = {}
        self._local_rank = local_rank(environ)
        self.device = Device(environ, self._local_rank or 0, self.note_failure)
        self._clock = clock
        self._run: Run | None = None
        self._sources: dict[str, Source] | None = None
        self._due = 0.0
        self._last = 0.0
        self._tags: tuple[str, ...] = ()
        self._recording = threading.Lock()

    def begin(self, run: Run) -> None:
        """Sample for a run from now on."""
        self._due = self._clock() + min(self.seconds, FIRST_SECONDS)
        self._run = run

    def end(self) -> None:
        """Record nothing from here on. Waits for a record that is being written, not for a device that is asked."""
        with self._recording:
            self._run = None

    def tick(self) -> None:
        """Take a sample when one is due; never raises. Called at every wake-up of the drain thread."""
        now = self._clock()
        run = self._run
        if run is None or self.seconds <= 0 or now < self._due:
            return
        self._due = now + self.seconds
        try:
            self._sample(run, now)
        except Exception as error:  # noqa: BLE001 - the thread that ships records must live
            self.note_failure("sample", error)

    def note_failure(self, what: str, error: Exception) -> None:
        """Count something that could not be read, and say it once."""
        count = self.failures[what] = self.failures.get(what, 0) + 1
        if count == 1:
            logger.debug("the machine's %s cannot be read: %s: %s", what, type(error).__name__, error)

    def _sample(self, run: Run, now: float) -> None:
        if self._sources is None:
            # Loads and rates look back: their sources are asked once for nothing.
            self._sources = self._open(run)
            self._read(self._sources, 0.0)
            self._last, self._due = now, now + min(self.seconds, FIRST_SECONDS)
            return
        values = self._read(self._sources, now - self._last)
        self._last = now
        tags = tuple(values)
        if tags != self._tags:
            self._tags = tags  # the same tuple each time
        with self._recording:
            if self._run is not None and values:
                self._run.record(self._tags, tuple(values.values()), step=max(0, self._run.step))

    def _open(self, run: Run) -> dict[str, Source]:
        sources: dict[str, Source] = {"device": self.device.read}
        try:
            import psutil  # noqa: PLC0415 - on this thread, and only where samples are taken
        except ImportError as error:
            self.note_failure("psutil", error)
            return sources
        sources |= process_sources(psutil)
        # Rates of hosts are added up over ranks, so that a host must be told of once. Of ranks that a script has
        # spawned itself nobody tells which share a host: the first one tells of its own.
        rank = run.rank if self._local_rank is None else self._local_rank
        return host_sources(psutil) | sources if rank == 0 else sources

    def _read(self, sources: Mapping[str, Source], seconds: float) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, source in sources.items():
            try:
                values |= source(seconds)
            except Exception as error:  # noqa: BLE001 - psutil's errors differ by system
                self.note_failure(name, error)
        return values


def local_rank(environ: Mapping[str, str]) -> int | None:
    """Number of this process among those of its host; None where nothing tells."""
    return next((int(value) for name in _LOCAL_RANK_VARIABLES if (value := environ.get(name, "")).isdecimal()), None)


def process_sources(psutil: Any) -> dict[str, Source]:
    """Sources that speak of this process."""
    process = psutil.Process()

    def cpu(seconds: float) -> dict[str, float]:
        percent = process.cpu_percent(None)  # since it was called last
        return {TAGS[7]: percent} if seconds > 0 else {}

    return {"process_cpu": cpu, "process_memory": lambda _: {TAGS[8]: process.memory_info().rss / 1e9}}


def host_sources(psutil: Any) -> dict[str, Source]:
    """Sources that speak of the host."""

    def cpu(seconds: float) -> dict[str, float]:
        percent = psutil.cpu_percent(None)  # since this thread called it last
        return {TAGS[0]: percent} if seconds > 0 else {}

    def memory(_: float) -> dict[str, float]:
        found = psutil.virtual_memory()
        return {TAGS[1]: (found.total - found.available) / 1e9, TAGS[2]: found.percent}

    def disk() -> tuple[float, float]:
        found = psutil.disk_io_counters()
        return found.read_bytes, found.write_bytes

    def network() -> tuple[float, float]:
        found = [count for name, count in psutil.net_io_counters(pernic=True).items() if name not in _LOOPBACK]
        return sum(count.bytes_recv for count in found), sum(count.bytes_sent for count in found)

    return {
        "cpu": cpu,
        "memory": memory,
        "disk": Rates(disk, TAGS[3:5]),
        "network": Rates(network, TAGS[5:7]),
    }


class Rates:
    """Megabytes a second from counters of bytes.

    Args:
        read: gives the counters.
        tags: as many.
    """

    def __init__(self, read: Callable[[], tuple[float, ...]], tags: tuple[str, ...]) -> None:
        self._counters = read
        self._tags = tags
        self._last: tuple[float, ...] | None = None

    def __call__(self, seconds: float) -> dict[str, float]:
        """Rates since the last call; none at the first, and none where a counter began anew."""
        now = self._counters()
        before, self._last = self._last, now
        if before is None or seconds <= 0 or any(b < a for a, b in zip(before, now, strict=True)):
            return {}
        return {tag: (b - a) / seconds / 1e6 for tag, a, b in zip(self._tags, before, now, strict=True)}
