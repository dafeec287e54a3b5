"""Gradient norm before and after clipping, and whether a step was clipped: at every step that clips.

`sidestep.clip_grad_norm_` tells the norm it has computed anyway. On a device the norms stay there and travel
sixteen steps at a time, so that a step costs no copy.
"""

from __future__ import annotations

import math
import time
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from sidestep.probes.protocol import Probe, Watched

TAGS: Final = (
    "train/gradient/global_norm_before_clip",
    "train/gradient/global_norm_after_clip",
    "train/gradient/clipped",
)

_FLAG: Final = TAGS[2:]
_STEPS_TOGETHER: Final = 16
#: What torch adds to the norm before it divides the limit by it.
_EPSILON: Final = 1e-6


class Told(NamedTuple):
    """One call of clipping: the norm before it, of no dimension, and what it was limited to."""

    norm: Tensor
    limit: float
    is_l2: bool


class _Step(NamedTuple):
    step: int
    epoch: float
    t_ns: int
    told: tuple[Told, ...]


class Clipping(Probe):
    """Collects what clipping tells between two steps of an optimizer.

    Several calls of a step (one for each part of a network) count as one gradient: squares of their norms add up.
    """

    name: ClassVar[str] = "clipping"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[int, Told] = {}
        self._waiting: list[_Step] = []

    def attach(self, watched: Watched) -> None:
        """Listen to `sidestep.clip_grad_norm_`."""
        from sidestep import clip  # noqa: PLC0415 - it imports this module, for what it tells

        super().attach(watched)
        clip.listen(self)

    def tell(self, subject: int, told: Told) -> None:
        """Remember a call; a later one for the same parameters (the step was skipped, say) replaces it."""
        self._told[subject] = told

    def end_step(self) -> None:
        """Record the step that ends, and tell other probes its norm before clipping, where that is known."""
        if not self._told:
            self._flush_old_epoch()
            return
        told = tuple(self._told.values())
        self._told.clear()
        step = _Step(self.run.step, self.run.current_epoch, time.time_ns(), told)
        if all(call.norm.device.type == "cpu" for call in told):
            self._record(step, [call.norm.item() for call in told])
        else:
            self._flush_old_epoch()
            self._waiting.append(step)
            if len(self._waiting) >= _STEPS_TOGETHER:
                self.flush()
        if all(call.is_l2 for call in told):
            self.watched.norm_before_clip = (step.step, _whole([call.norm for call in told]))

    def detach(self) -> None:
        """Send the last, and listen no longer."""
        from sidestep import clip  # noqa: PLC0415 - it imports this module, for what it tells

        clip.listen(None)
        self.flush()

    def flush(self) -> None:
        """Send what waits on a device on its way."""
        steps, self._waiting = self._waiting, []
        if not steps:
            return
        norms = [call.norm for step in steps for call in step.told]
        home = next(norm.device for norm in norms if norm.device.type != "cpu")
        stacked = torch.stack([norm.to(home, torch.float32, non_blocking=True) for norm in norms])

        def deliver(host: Tensor) -> None:
            values = iter(host.tolist())
            for step in steps:
                self._record(step, [next(values) for _ in step.told])

        self.run.receive(stacked, deliver)

    def _flush_old_epoch(self) -> None:
        if self._waiting and self._waiting[-1].epoch != self.run.current_epoch:
            self.flush()

    def _record(self, step: _Step, norms: list[float]) -> None:
        told = step.told
        names, values = _FLAG, (float(any(norm > call.limit for norm, call in zip(norms, told, strict=True))),)
        if all(call.is_l2 for call in told):
            limits = (call.limit for call in told)
            after = [norm * min(1.0, limit / (norm + _EPSILON)) for norm, limit in zip(norms, limits, strict=True)]
            names, values = TAGS, (math.hypot(*norms), math.hypot(*after), *values)
        self.run.record(names, values, step=step.step, epoch=step.epoch, t_ns=step.t_ns)


def _whole(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
