"""The gradient: norms of the whole and of each block, non-finite ones, zeros, and whether it keeps its direction.

Norms take one pass over the gradients. Which gradients are not finite is seen from their norms. Zeros and direction
are estimated from a sample of coordinates (`sidestep.probes.sample`), x̂ = Σ_p N_p / n_p Σ_i x_pi.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.blocks import named_parameters, seen
from sidestep.probes.norms import Norms, Placed, by_kind, fold, foreach_norm, gathered, home_of
from sidestep.probes.protocol import Part, Probe
from sidestep.probes.sample import Coordinates, Rows, coordinates
from sidestep.run import Run

TAGS: Final = (
    "train/gradients/global_norm",
    "train/gradients/<block>",
    "train/gradients_of/<parameter>",
    "train/gradients/nonfinite_count",
    "train/gradients/zero_share",
    "train/gradients/cosine_previous",
)


class GradientProbe(Probe):
    """Norms of the gradient, at the optimizer's step: after clipping, but for the global one where clipping is seen.

    Args:
        every: when it samples.
        direction: also the share of zeros, and the cosine with the gradient sampled before: from a sample of
            coordinates, of which it keeps two copies.
        parameters: also the norm of each parameter's gradient.
    """

    name: ClassVar[str] = "gradients"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self, *, every: int | str | None = None, direction: bool = True, parameters: bool = False) -> None:
        super().__init__(every=every)
        self._directions: dict[int, Directions] | None = {} if direction else None
        self._with_parameters = parameters
        self._parts: list[Norms] = []
        self._single: list[tuple[tuple[str, ...], Tensor]] = []

    def gradients(self, part: Part) -> None:
        """Take the norms of one optimizer's gradients."""
        self._parts += measure(part.placed, part.grad_scale)
        if self._directions is not None:
            self._directions.setdefault(part.number, Directions()).take(part)
        if self._with_parameters:
            self._single.append(self._of_parameters(part))

    def report(self, step: int) -> None:
        """Record the norms of all."""
        parts, single = self._parts, self._single
        self._parts, self._single = [], []
        seen = self.watched.norm_before_clip
        report(self.run, self.watched.names, parts, step, seen[1] if seen is not None and seen[0] == step else None)
        for tags, norms in single:
            self.run.record(tags, norms, step=step)
        if parts:
            self._report_counts(parts, step)

    def forget(self) -> None:
        """Begin anew."""
        self._parts, self._single = [], []

    def _of_parameters(self, part: Part) -> tuple[tuple[str, ...], Tensor]:
        named = {parameter: name for name, parameter in named_parameters(self.watched.inner)}
        numbered = [Placed(parameter, number) for number, (parameter, _) in enumerate(part.placed)]
        numbers, norms = fold(measure(numbered, part.grad_scale))
        names = (named.get(part.placed[number].parameter, f"unnamed_{number}") for number in numbers)
        return tuple(f"train/gradients_of/{name}" for name in names), norms

    def _report_counts(self, parts: Sequence[Norms], step: int) -> None:
        home = home_of(part.values for part in parts)
        values = [gathered([part.values.isfinite().logical_not().sum() for part in parts]).sum()]
        shares = [entry for one in (self._directions or {}).values() for entry in one.sums(home)]
        tags = TAGS[3:4]
        if shares:
            zeros, size, inner, square, before = torch.stack(shares).sum(0)
            values.append(zeros / size)
            tags = TAGS[3:5]
            if all(one.is_comparable for one in (self._directions or {}).values()):
                values.append(inner / (square * before).sqrt())
                tags = TAGS[3:]
        self.run.record(tags, torch.stack(values), step=step)


class Directions:
    """Samples of an optimizer's gradients: the last, and the one before it."""

    def __init__(self) -> None:
        self.is_comparable = False
        self._version = -1
        self._samples: list[tuple[Coordinates, list[Rows]]] = []
        self._weights: list[Tensor] = []
        self._absent: list[list[int]] = []

    def take(self, part: Part) -> None:
        """Sample the gradients that are there; the last sample becomes the one before."""
        self.is_comparable = self._version == part.version
        if not self.is_comparable:
            self._version = part.version
            self._samples = [(each, [each.rows(), each.rows()]) for each in coordinates(part.placed)]
            self._weights = [each.weights() for each, _ in self._samples]
        self._absent = []
        for each, rows in self._samples:
            rows.reverse()
            absent = each.read_gradients(rows[0])
            self._absent.append(absent)

    def sums(self, home: torch.device) -> list[Tensor]:
        """Estimates, one tensor a device: zeros, elements, inner product with the one before, squares of both norms."""
        sums: list[Tensor] = []
        for (each, (now, before)), absent, weights in zip(self._samples, self._absent, self._weights, strict=True):
            size = sum(each.sizes) - sum(each.sizes[number] for number in absent)
            if not size:
                continue
            is_zero = (now.whole == 0).to(weights.dtype)
            for number in absent:  # zero in the sample, and no zeros of a gradient
                each.part(is_zero, number).zero_()
            weighted = now.whole * weights
            old = before.whole if self.is_comparable else now.whole
            squares = weighted @ now.whole
            found = (is_zero @ weights, torch.full_like(squares, size), weighted @ old, squares, (old * weights) @ old)
            sums.append(torch.stack(found).to(home, torch.float32, non_blocking=True))
        return sums


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
        gradient = seen(gradient)
        if gradient.numel():
            yield gradient, block


@lru_cache(maxsize=256)
def _tags(names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return (TAGS[0], *(f"train/gradients/{names[block]}" for block in blocks))
