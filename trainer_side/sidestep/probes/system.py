"""The machine beside the training: processors, memory, disks, network, and the GPU through NVML.

It is not sampled by steps. Every run has samples from its beginning, taken on the drain thread (`sidestep.machine`);
this probe says which device the model lies on, and may change or end them.
"""

from __future__ import annotations

from typing import ClassVar

import torch

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

    def attach(self, watched: Watched) -> None:
        """Tell what samples the machine of the device and the setting."""
        super().attach(watched)
        machine = self.run.machine
        if machine is None:
            return
        if self._seconds is not None:
            machine.seconds = self._seconds
        if watched.device.type == "cuda":
            machine.device.choose(str(torch.cuda.get_device_properties(watched.device).uuid))
