"""How large the gradient is in each block, whatever the number of its parameters: its mean absolute value.

    mean(b) = Σ_p Σ_i |g_pi| / Σ_p N_p        over the parameters p of block b that have a gradient

A norm grows with the root of the number of elements, so that norms of a wide and of a narrow block cannot be compared;
this can. Taken at the optimizer's step, after clipping.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.probes.gradients import measure, present
from sidestep.probes.norms import FUSED, Norms, fold
from sidestep.probes.protocol import Part, Probe

TAGS: Final = ("train/gradient_flow/<module>_mean",)
#: In a sharded model: elements of this rank's part, by which the collector weighs the means.
_WEIGHTS: Final = ("train/gradient_elements/<module>",)


class GradientFlowProbe(Probe):
    """Mean absolute gradient of each block."""

    name: ClassVar[str] = "gradient_flow"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS + _WEIGHTS

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._sums: list[Norms] = []
        self._elements: dict[int, float] = {}

    def gradients(self, part: Part) -> None:
        """Take the sums of one optimizer's gradients."""
        # A share is what an L2 norm counts for; a sum counts for its square.
        shares = {parameter: share**2 for parameter, share in self.watched.sharding.of(part).items()}
        self._sums += measure(part.placed, part.grad_scale, shares, order=1.0)
        self._count(part, shares)

    def report(self, step: int) -> None:
        """Record the means of all."""
        sums, elements = self._sums, self._elements
        self.forget()
        if not sums:
            return
        blocks, whole = fold(sums, order=1.0)
        counts = [elements[block] for block in blocks]
        means = torch.stack(FUSED._foreach_div(list(whole.unbind()), counts))  # noqa: SLF001
        names, sharding = tuple(self.watched.names), self.watched.sharding
        tags = _tags(TAGS[0], names, blocks)
        if sharding.is_sharded:
            tags += _tags(_WEIGHTS[0], names, blocks)
            # Filled where they are: a copy to a device would be waited for.
            weights = [torch.full_like(mean, count) for mean, count in zip(means, counts, strict=True)]
            means = torch.cat((means, torch.stack(weights)))
        self.run.record(tags, means, step=step, reductions=sharding.reductions(tags))

    def forget(self) -> None:
        """Begin anew."""
        self._sums, self._elements = [], {}

    def _count(self, part: Part, shares: Mapping[Tensor, float]) -> None:
        for gradient, number in present(part.placed):
            parameter, block = part.placed[number]
            here = gradient.numel() * shares.get(parameter, 1.0)
            self._elements[block] = self._elements.get(block, 0.0) + here


@lru_cache(maxsize=256)
def _tags(template: str, names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(template.replace("<module>", names[block]) for block in blocks)
