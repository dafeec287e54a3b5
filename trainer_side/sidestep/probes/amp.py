"""Mixed precision: the scale of `GradScaler`, and the steps that it leaves out. Nothing waits for a device.

`update` is wrapped while a run listens, so that a scaler is found wherever a framework keeps it. A step that is left
out has no number of its own, and counts with the step that follows. On a device both numbers travel sixteen steps
at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from sidestep.probes.protocol import Probe, Watched
from sidestep.series import Series
from sidestep.wrapping import Wrappings

TAGS: Final = ("train/amp/scale", "train/amp/skipped")

_SHARDED: Final = "torch.distributed.fsdp.sharded_grad_scaler"


class AmpProbe(Probe):
    """The scale after each step that was taken, and how many were left out before it."""

    name: ClassVar[str] = "amp"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self) -> None:
        super().__init__()
        self._wrappings = Wrappings()
        self._is_within = False
        self._recorded = -1
        self._left_out: Tensor | float = 0.0

    def attach(self, watched: Watched) -> None:
        """See every `update`, of the scaler that `watch` was given or of any."""
        super().attach(watched)
        self._series = Series(self.run, *TAGS)
        self._given = watched.extras.get("scaler")
        self._recorded = self.run.step
        sharded = getattr(sys.modules.get(_SHARDED), "ShardedGradScaler", None)
        for kind in (torch.amp.GradScaler, sharded, type(self._given)):
            if kind is not None:
                self._wrappings.wrap([kind], "update", self._around)

    def detach(self) -> None:
        """See none any more, and send what waits on its way."""
        self._wrappings.remove()
        self._series.flush()

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(*args: Any, **kwargs: Any) -> Any:
            if self.run.is_off or self._is_within or (self._given is not None and args[:1] != (self._given,)):
                return original(*args, **kwargs)
            before: list[Tensor | float] = []
            self.run.guard(lambda: before.extend(scale_of(args[0])))
            self._is_within = True  # a scaler of somebody's may call that of its base
            try:
                result = original(*args, **kwargs)
            finally:
                self._is_within = False
            if before and len(args) + len(kwargs) == 1:  # without a scale that is set by hand
                self.run.guard(lambda: self._note(before[0], args[0]))
            return result

        return update

    def _note(self, before: Tensor | float, scaler: Any) -> None:
        (scale,) = scale_of(scaler)
        # torch lowers the scale after infinite gradients, and at no other time.
        self._left_out = self._left_out + (scale < before)  # a tensor where the scale is one
        if self.run.step == self._recorded:
            return
        self._recorded = self.run.step
        left_out, self._left_out = self._left_out, 0.0
        if isinstance(scale, Tensor):
            self._series.add(torch.stack([scale, torch.as_tensor(left_out).to(scale)]))
        else:
            self._series.add((scale, float(left_out)))


def scale_of(scaler: Any) -> list[Tensor | float]:
    """The scale: a copy on its device, or a number on the CPU; nothing for a scaler that is off, or has not scaled."""
    scale = getattr(scaler, "_scale", None)  # `get_scale` would wait for the device
    if not scaler.is_enabled() or not isinstance(scale, Tensor):
        return []
    if scale.device.type == "cpu":
        return [scale.item()]
    return [scale.detach().reshape(()).to(torch.float32, copy=True)]
