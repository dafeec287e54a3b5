"""Norms of the whole model at every validation: of its gradient and of its weights, at the first step after each.

The gradient of that step is the one at the weights that were validated. After the last validation of a training no
step follows, and none is recorded.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.probes import gradients, weights
from sidestep.probes.norms import Norms, fold, home_of
from sidestep.probes.protocol import Part, Probe

TAGS: Final = ("grad_norm", "weight_norm")


class ValidationProbe(Probe):
    """Norms of gradient and weights; the first step after each validation.

    `grad_norm` is the norm before clipping, where that is seen. `weight_norm` is left to the probe "weights" at steps
    that this one samples too, so that no step has it twice.
    """

    name: ClassVar[str] = "validation"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS
    every: int | str | None = "validation"

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._gradients: list[Norms] = []
        self._weights: list[Norms] = []

    def gradients(self, part: Part) -> None:
        """Take the norms of one optimizer's gradients."""
        self._gradients += gradients.measure(part.placed, part.grad_scale, self.watched.sharding.of(part))

    def after_step(self, part: Part) -> None:
        """Take the norms of one optimizer's weights."""
        self._weights += weights.measure(part, self.watched.sharding)

    def report(self, step: int) -> None:
        """Record the norms of the whole."""
        found: dict[str, Tensor] = {}
        if self._gradients:
            found[TAGS[0]] = self._gradient_norm(step)
        if self._weights and self.watched.weight_norm_step != step:
            found[TAGS[1]] = _whole(self._weights)
        self.forget()
        if found:
            tags, home = tuple(found), home_of(found.values())
            values = torch.stack([value.to(home, torch.float32, non_blocking=True) for value in found.values()])
            self.run.record(tags, values, step=step, reductions=self.watched.sharding.reductions(tags))

    def forget(self) -> None:
        """Begin anew."""
        self._gradients, self._weights = [], []

    def _gradient_norm(self, step: int) -> Tensor:
        seen = self.watched.norm_before_clip
        if seen is not None and seen[0] == step:
            return (seen[1] * self.watched.sharding.of_whole).reshape(())
        return _whole(self._gradients)


def _whole(norms: list[Norms]) -> Tensor:
    return torch.linalg.vector_norm(fold(norms)[1])
