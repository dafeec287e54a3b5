"""Norms of the gradient: of the whole, and of each block. One pass over the gradients, none of it waited for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.blocks import local
from sidestep.probes.norms import Norms, Placed, by_kind, fold, foreach_norm
from sidestep.probes.protocol import Part, Probe
from sidestep.run import Run

TAGS: Final = ("train/gradients/global_norm", "train/gradients/<block>")


class GradientProbe(Probe):
    """Norms of the gradient, at the optimizer's step: after clipping, but for the global one where clipping is seen."""

    name: ClassVar[str] = "gradients"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._parts: list[Norms] = []

    def gradients(self, part: Part) -> None:
        """Take the norms of one optimizer's gradients."""
        self._parts += measure(part.placed, part.grad_scale)

    def report(self, step: int) -> None:
        """Record the norms of all."""
        parts, self._parts = self._parts, []
        seen = self.watched.norm_before_clip
        report(self.run, self.watched.names, parts, step, seen[1] if seen is not None and seen[0] == step else None)

    def forget(self) -> None:
        """Begin anew."""
        self._parts = []


def measure(placed: Sequence[Placed], grad_scale: Tensor | None = None) -> list[Norms]:
    """L2 norm of the gradient of each parameter that has one.

    Args:
        placed: parameters, their blocks rising.
        grad_scale: what a fused optimizer will divide gradients by (`torch.amp.GradScaler` leaves it to it).

    Returns:
        Norms for each device and type. Empty, sparse but uncoalesced (on a device) and missing gradients are left
        out.
    """
    parts: list[Norms] = []
    for group in by_kind(_gradients(placed)):
        norms = torch.stack(foreach_norm([gradient for gradient, _ in group]))
        if grad_scale is not None:
            norms = norms / grad_scale.to(norms.device, non_blocking=True)
        parts.append(Norms([block for _, block in group], norms))
    return parts


def report(run: Run, names: Sequence[str], parts: Sequence[Norms], step: int, before_clip: Tensor | None) -> None:
    """Record the global norm and the norms of blocks that have gradients.

    Args:
        run: where to.
        names: names of all blocks.
        parts: what `measure` gave, for all optimizers.
        step: the step they belong to.
        before_clip: the global norm from clipping, which has seen the gradient as it was; else it is the norm of
            the norms of blocks.
    """
    if not parts:
        return
    blocks, norms = fold(parts)
    whole = torch.linalg.vector_norm(norms) if before_clip is None else before_clip
    whole = whole.to(norms.device, torch.float32, non_blocking=True).reshape(1)
    run.record(_tags(tuple(names), blocks), torch.cat((whole, norms)), step=step)


def _gradients(placed: Sequence[Placed]) -> Iterator[tuple[Tensor, int]]:
    for parameter, block in placed:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout == torch.sparse_coo:
            # Coalescing on a device waits for it; on the CPU it costs what the optimizer pays as well.
            if gradient.device.type != "cpu" and not gradient.is_coalesced():
                continue
            gradient = gradient.detach().coalesce().values()
        gradient = local(gradient)
        if gradient.numel():
            yield gradient, block


@lru_cache(maxsize=256)
def _tags(names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return (TAGS[0], *(f"train/gradients/{names[block]}" for block in blocks))
