"""The NVIDIA device that this process computes on, as NVML sees it: utilisation, memory, power, temperature.

Asks nothing before the process has begun to use a device, and touches no CUDA context: NVML is the driver's own
library, which other processes' tools use too. Called on the drain thread alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

TAGS: Final = (
    "system/gpu_utilisation_percent",
    "system/gpu_memory_used_gb",
    "system/gpu_memory_used_percent",
    "system/gpu_power_watts",
    "system/gpu_temperature_celsius",
)
#: Of these torch alone tells whether it uses a device; the others do once they are loaded.
_FRAMEWORKS: Final = ("jax", "tensorflow", "cupy", "paddle", "mxnet")


class Device:
    """Readings of one device.

    Args:
        environ: CUDA_VISIBLE_DEVICES in it says which devices the process sees.
        rank: number of the process on its host: the device it takes unless it is told which.
        note_failure: told what cannot be read.
    """

    def __init__(self, environ: Mapping[str, str], rank: int, note_failure: Callable[[str, Exception], None]) -> None:
        self._visible = visible_devices(environ.get("CUDA_VISIBLE_DEVICES"))
        self._rank = rank
        self._note_failure = note_failure
        self._uuid = ""
        self._handle: Any = None
        self._is_closed = False

    def choose(self, uuid: str) -> None:
        """Read the device of this UUID, without a prefix, from the next time on."""
        self._uuid, self._handle, self._is_closed = uuid, None, False

    def read(self, _seconds: float) -> dict[str, float]:
        """What the device does; nothing while this process uses none, or where there is no driver."""
        if self._is_closed or not uses_a_device():
            return {}
        try:
            import pynvml  # noqa: PLC0415 - where a device is used
        except ImportError as error:
            self._is_closed = True
            self._note_failure("nvml", error)
            return {}
        if self._handle is None:
            self._handle = self._open(pynvml)
        return {} if self._handle is None else self._readings(pynvml, self._handle)

    def _open(self, nvml: Any) -> Any:
        try:
            nvml.nvmlInit()
            return self._find(nvml)
        except nvml.NVMLError as error:  # no driver, or no such device: there will be none later
            self._is_closed = True
            self._note_failure("nvml", error)
            return None

    def _find(self, nvml: Any) -> Any:
        if self._uuid:
            try:
                return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{self._uuid}")
            except nvml.NVMLError:  # a part of a device
                return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{self._uuid}")
        name = name_of(self._visible, self._rank)
        if name is None:
            self._is_closed = True
            return None
        return nvml.nvmlDeviceGetHandleByUUID(name) if isinstance(name, str) else nvml.nvmlDeviceGetHandleByIndex(name)

    def _readings(self, nvml: Any, handle: Any) -> dict[str, float]:
        def memory() -> tuple[float, ...]:
            found = nvml.nvmlDeviceGetMemoryInfo(handle)
            return found.used / 1e9, 100 * found.used / found.total

        readers: dict[str, tuple[tuple[str, ...], Callable[[], tuple[float, ...]]]] = {
            "gpu_utilisation": (TAGS[:1], lambda: (nvml.nvmlDeviceGetUtilizationRates(handle).gpu,)),
            "gpu_memory": (TAGS[1:3], memory),
            "gpu_power": (TAGS[3:4], lambda: (nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,)),
            "gpu_temperature": (
                TAGS[4:],
                lambda: (nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),),
            ),
        }
        values: dict[str, float] = {}
        for name, (tags, read) in readers.items():
            try:
                values |= dict(zip(tags, read(), strict=True))
            except nvml.NVMLError as error:  # some devices have no sensor for it
                self._note_failure(name, error)
        return values


def uses_a_device() -> bool:
    """Whether a framework of this process has begun to use a device."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)  # torch may be half imported by another thread
    return bool(is_initialized is not None and is_initialized()) or any(name in sys.modules for name in _FRAMEWORKS)


def visible_devices(setting: str | None) -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES lists, up to the first entry that is none, as CUDA reads it; None for all."""
    if setting is None:
        return None
    found: list[str] = []
    for entry in setting.split(","):
        name = entry.strip()
        if not name.isdecimal() and not name.startswith(("GPU-", "MIG-")):
            break
        found.append(name)
    return found


def name_of(visible: list[str] | None, rank: int) -> str | int | None:
    """Index or UUID of the device of a process: its own of those that are visible, the only one, or none."""
    if visible is None:
        return rank
    if not visible:
        return None
    name = visible[rank] if rank < len(visible) else visible[0]
    return int(name) if name.isdecimal() else name
