"""Mixed precision: steps that `GradScaler` leaves out, whose losses and predictions belong to no step.

What is recorded of a scaler is the probe's (`sidestep.probes.amp`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sidestep.auto.patching import Faults, wrap


class Scaling:
    """Sees each `GradScaler.step`.

    Args:
        faults: guards what is done here.
        is_on: whether a run is captured.
        steps: optimizer steps so far.
        skipped: told that a step was left out.
    """

    def __init__(
        self, faults: Faults, is_on: Callable[[], bool], steps: Callable[[], int], skipped: Callable[[], None]
    ) -> None:
        self._faults = faults
        self._is_on = is_on
        self._steps = steps
        self._skipped = skipped

    def install(self) -> None:
        """See `step`."""
        wrap(torch.amp.GradScaler, "step", self._around)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            before = self._steps()
            result = original(*args, **kwargs)
            if self._is_on() and self._steps() == before:
                self._faults.guard(self._skipped)
            return result

        return step
