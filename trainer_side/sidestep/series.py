"""Numbers of a step that may still be on a device: recorded at once where they are not, else some steps together."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from sidestep.run import Run

#: Steps whose numbers travel from a device together.
STEPS_TOGETHER: Final = 16


class _Waiting(NamedTuple):
    step: int
    epoch: float
    t_ns: int
    values: Tensor


class Series:
    """Numbers under fixed tags, once a step or more seldom.

    Args:
        run: where to.
        tags: whole tags.
    """

    def __init__(self, run: Run, *tags: str) -> None:
        self._run = run
        self._tags = tags
        self._waiting: list[_Waiting] = []

    def add(self, values: Tensor | tuple[float, ...]) -> None:
        """Record numbers of the run's step: floats, or a tensor of shape (tags,) on a device."""
        run = self._run
        if not isinstance(values, Tensor):
            run.record(self._tags, values)
            return
        if self._waiting and self._waiting[-1].epoch != run.current_epoch:
            self.flush()
        self._waiting.append(_Waiting(run.step, run.current_epoch, time.time_ns(), values))
        if len(self._waiting) >= STEPS_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Send what waits on its way."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return

        def deliver(host: Any) -> None:
            for entry, values in zip(waiting, host.tolist(), strict=True):
                self._run.record(self._tags, values, step=entry.step, epoch=entry.epoch, t_ns=entry.t_ns)

        self._run.receive(torch.stack([entry.values for entry in waiting]), deliver)
