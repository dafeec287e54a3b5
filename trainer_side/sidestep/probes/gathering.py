"""What is added up over the batches of an epoch, on their device, and shipped when it ends: no probe of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from sidestep.run import Run

#: Steps after which is shipped where a script tells of no epochs.
_STEPS_WITHOUT_EPOCHS: Final = 1000


class Turn:
    """Tells when an epoch is over: when another begins. A validation between two belongs to the former.

    Attributes:
        epoch: the one that is being added up; NaN where the script tells of none.
    """

    def __init__(self, run: Run) -> None:
        self.epoch = run.current_epoch
        self._run = run
        self._since = run.step

    def has_come(self) -> bool:
        """Whether what was gathered is of an epoch that is over; to be asked before each batch is added."""
        current = self._run.current_epoch
        if not math.isnan(current):
            return current != self.epoch
        return math.isnan(self.epoch) and self._run.step - self._since >= _STEPS_WITHOUT_EPOCHS

    def begin(self) -> None:
        """The next one begins."""
        current = self._run.current_epoch
        self.epoch = self.epoch if math.isnan(current) else current
        self._since = self._run.step


def tally(into: Tensor, labels: Tensor, is_counted: Tensor, width: int = 1) -> None:
    """Count labels in classes.

    Args:
        into: counts, int64 of shape (bins,); the last bin takes what lies beyond it.
        labels: integers of shape (n,).
        is_counted: which of them count, bool of shape (n,).
        width: classes that share a bin.
    """
    bins = labels.long().div(width, rounding_mode="floor").clamp_(0, len(into) - 1)
    into.scatter_add_(0, bins, is_counted.to(into.dtype))


def bring_home(run: Run, parts: Mapping[str, Tensor], deliver: Callable[[str, Sequence[int]], None]) -> None:
    """Have int64 tensors of one dimension brought to the CPU in one copy that nobody waits for.

    Args:
        run: whose way of bringing home.
        parts: tensors on one device, by a name.
        deliver: is called for each with its name and numbers.
    """

    def unpack(host: Tensor) -> None:
        for name, part in zip(parts, host.split([len(part) for part in parts.values()]), strict=True):
            deliver(name, part.tolist())

    if parts:
        whole = torch.cat(list(parts.values()))
        if whole.device.type == "cpu":
            unpack(whole)
        else:
            run.receive(whole, unpack)
