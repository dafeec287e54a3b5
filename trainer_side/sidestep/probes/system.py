"""The machine beside the training: processors, memory, disks, network, and the GPU through NVML.

It is not sampled by steps. Every run has samples from its beginning, taken on the drain thread (`sidestep.machine`);
this probe says which device the model lies on, and may change or end them.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from sidestep.device import Device
from sidestep.errors import UsageError
from sidestep.machine import TAGS
from sidestep.probes.protocol import Probe, Watched


class SystemProbe(Probe):
    """Load, memory and transfers of machine and device.

    Args:
        seconds: from one sample to the next; default as the run was told.
    """

    name: ClassVar[str] = "system"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self, *, seconds: float | None = None) -> None:
        super().__init__()
        if seconds is not None and not seconds > 0:
            raise UsageError(f"system: seconds={seconds!r}: it is a number above 0; False leaves the machine alone")
        self._seconds = seconds
        self._chosen = torch.device("cpu")

    def attach(self, watched: Watched) -> None:
        """Tell what samples the machine of the device and the setting."""
        super().attach(watched)
        machine = self.run.machine
        if machine is None:
            return
        if self._seconds is not None:
            machine.seconds = self._seconds
        self._choose(machine.device)

    def report(self, step: int) -> None:  # noqa: ARG002
        """See whether the model has been moved since."""
        if self.run.machine is not None:
            self._choose(self.run.machine.device)

    def _choose(self, device: Device) -> None:
        found = self.watched.device
        if found.type == "cuda" and found != self._chosen:
            self._chosen = found
            device.choose(str(torch.cuda.get_device_properties(found).uuid))
