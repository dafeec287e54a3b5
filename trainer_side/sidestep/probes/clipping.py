"""Gradient norm before and after clipping, and whether a step was clipped: at every step that clips.

`sidestep.clip_grad_norm_` tells the norm it has computed anyway. On a device the norms stay there and travel
sixteen steps at a time, so that a step costs no copy.
"""

from __future__ import annotations

import math
import time
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sidestep.run import Run

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


class Clipping:
    """Collects what clipping tells between two steps of an optimizer.

    Several calls of a step (one for each part of a network) count as one gradient: squares of their norms add up.

    Args:
        run: where to record.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._told: dict[int, Told] = {}
        self._waiting: list[_Step] = []

    def tell(self, subject: int, told: Told) -> None:
        """Remember a call; a later one for the same parameters (the step was skipped, say) replaces it."""
        self._told[subject] = told

    def end_step(self) -> Tensor | None:
        """Record the step that ends; returns its L2 norm before clipping, where that is known."""
        if not self._told:
            self._flush_old_epoch()
            return None
        told = tuple(self._told.values())
        self._told.clear()
        step = _Step(self._run.step, self._run.current_epoch, time.time_ns(), told)
        if all(call.norm.device.type == "cpu" for call in told):
            self._record(step, [call.norm.item() for call in told])
        else:
            self._flush_old_epoch()
            self._waiting.append(step)
            if len(self._waiting) >= _STEPS_TOGETHER:
                self.flush()
        if not all(call.is_l2 for call in told):
            return None
        return told[0].norm if len(told) == 1 else torch.linalg.vector_norm(torch.stack([call.norm for call in told]))

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

        self._run.receive(stacked, deliver)

    def _flush_old_epoch(self) -> None:
        if self._waiting and self._waiting[-1].epoch != self._run.current_epoch:
            self.flush()

    def _record(self, step: _Step, norms: list[float]) -> None:
        told = step.told
        names, values = _FLAG, (float(any(norm > call.limit for norm, call in zip(norms, told, strict=True))),)
        if all(call.is_l2 for call in told):
            limits = (call.limit for call in told)
            after = [norm * min(1.0, limit / (norm + _EPSILON)) for norm, limit in zip(norms, limits, strict=True)]
            names, values = TAGS, (math.hypot(*norms), math.hypot(*after), *values)
        self._run.record(names, values, step=step.step, epoch=step.epoch, t_ns=step.t_ns)
