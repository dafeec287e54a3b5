"""Mixed precision: the scale of `GradScaler`, and the steps that it leaves out. Nothing waits for a device.

A step that is left out has no number of its own, so it counts with the step that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from sidestep.auto.patching import Faults, wrap
from sidestep.auto.series import Series
from sidestep.run import Run

TAGS: Final = ("train/amp/scale", "train/amp/skipped")


class Scaling:
    """Sees each `GradScaler.update`.

    Args:
        faults: guards what is done here.
        run: the run that is captured, once there is one.
        steps: optimizer steps so far.
        skipped: told that a step was left out.
    """

    def __init__(
        self, faults: Faults, run: Callable[[], Run | None], steps: Callable[[], int], skipped: Callable[[], None]
    ) -> None:
        self._faults = faults
        self._run = run
        self._steps = steps
        self._skipped = skipped
        self._series: Series | None = None
        self._recorded = 0
        self._left_out: Tensor | None = None

    def install(self) -> None:
        """See `step` and `update`."""
        wrap(torch.amp.GradScaler, "step", self._around_step)
        wrap(torch.amp.GradScaler, "update", self._around_update)

    def flush(self) -> None:
        """Send what waits on a device on its way."""
        if self._series is not None:
            self._series.flush()

    def _around_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            before = self._steps()
            result = original(*args, **kwargs)
            if self._run() is not None and self._steps() == before:
                self._faults.guard(self._skipped)
            return result

        return step

    def _around_update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(*args: Any, **kwargs: Any) -> Any:
            run = self._run()
            before: list[Tensor] = []
            if run is not None:
                self._faults.guard(lambda: before.extend(_scale(args[0])))
            result = original(*args, **kwargs)
            if run is not None and before:
                self._faults.guard(self._record, run, before[0], args[0])
            return result

        return update

    def _record(self, run: Run, before: Tensor, scaler: Any) -> None:
        if self._series is None:
            self._series = Series(run, *TAGS)
        scale = _scale(scaler)[0]
        # torch lowers the scale after infinite gradients, and at no other time.
        left_out = (scale < before).to(torch.float32)
        self._left_out = left_out if self._left_out is None else self._left_out + left_out
        if self._steps() == self._recorded:
            return
        self._recorded = self._steps()
        values = torch.stack([scale, self._left_out])
        self._left_out = None
        self._series.add(tuple(values.tolist()) if values.device.type == "cpu" else values)


def _scale(scaler: Any) -> list[Tensor]:
    """A copy of the scale, on its device; nothing for a scaler that is off, or has not scaled."""
    scale = getattr(scaler, "_scale", None)
    if not scaler.is_enabled() or not isinstance(scale, Tensor):
        return []
    return [scale.detach().reshape(()).to(torch.float32, copy=True)]
