"""The gradient: norms of the whole and of each block, non-finite ones, zeros, and whether it keeps its direction.

Norms take one pass over the gradients. Which gradients are not finite is seen from their norms. Zeros and direction
are estimated from a sample of coordinates (`sidestep.probes.sample`), x̂ = Σ_p N_p / n_p Σ_i x_pi.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.blocks import named_parameters, seen
from sidestep.probes.norms import Norms, Placed, by_kind, fold, foreach_norm, gathered, home_of
from sidestep.probes.protocol import Part, Probe, Watched
from sidestep.probes.sample import Coordinates, Rows, coordinates
from sidestep.probes.sharding import is_partial, weighed

TAGS: Final = (
    "train/gradients/global_norm",
    "train/gradients/<block>",
    "train/gradients_of/<parameter>",
    "train/gradients/nonfinite_count",
    "train/gradients/zero_share",
    "train/gradients/cosine_previous",
)
#: In a sharded model: by what the collector weighs the share of zeros and the cosine of each rank's part.
_WEIGHTS: Final = ("train/gradient/elements", "train/gradient/direction_weight")


class GradientProbe(Probe):
    """Norms of the gradient, at the optimizer's step: after clipping, but for the global one where clipping is seen.

    Args:
        every: when it samples.
        direction: also the share of zeros, and the cosine with the gradient sampled before: from a sample of
            coordinates, of which it keeps two copies.
        parameters: also the norm of each parameter's gradient.
        blocks: also the norm of each block's.
    """

    name: ClassVar[str] = "gradients"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS + _WEIGHTS

    def __init__(
        self,
        *,
        every: int | str | None = None,
        direction: bool = True,
        parameters: bool = False,
        blocks: bool = True,
    ) -> None:
        super().__init__(every=every)
        self._with_blocks = blocks
        self._directions: dict[int, Directions] | None = {} if direction else None
        self._with_parameters = parameters
        self._parts: list[Norms] = []
        self._single: list[tuple[tuple[str, ...], Tensor]] = []

    def gradients(self, part: Part) -> None:
        """Take the norms of one optimizer's gradients."""
        shares = self.watched.sharding.of(part)
        self._parts += measure(part.placed, part.grad_scale, shares)
        if self._directions is not None:
            self._directions.setdefault(part.number, Directions()).take(part, shares)
        if self._with_parameters:
            self._single.append(self._of_parameters(part))

    def report(self, step: int) -> None:
        """Record the norms of all."""
        parts, single = self._parts, self._single
        self._parts, self._single = [], []
        seen = self.watched.norm_before_clip
        before_clip = seen[1] if seen is not None and seen[0] == step else None
        sharding = self.watched.sharding
        report(self.watched, parts, step, before_clip, with_blocks=self._with_blocks)
        for tags, norms in single:
            self.run.record(tags, norms, step=step, reductions=sharding.reductions(tags))
        if parts:
            self._report_counts(parts, step)

    def forget(self) -> None:
        """Begin anew."""
        self._parts, self._single = [], []

    def _of_parameters(self, part: Part) -> tuple[tuple[str, ...], Tensor]:
        named = {parameter: name for name, parameter in named_parameters(self.watched.inner)}
        numbered = [Placed(parameter, number) for number, (parameter, _) in enumerate(part.placed)]
        numbers, norms = fold(measure(numbered, part.grad_scale, self.watched.sharding.of(part)))
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
            weights = [size]
            if all(one.is_comparable for one in (self._directions or {}).values()):
                weights.append((square * before).sqrt())
                values.append(inner / weights[1])
                tags = TAGS[3:]
            if self.watched.sharding.is_sharded:
                values += weights
                tags += _WEIGHTS[: len(weights)]
        self.run.record(tags, torch.stack(values), step=step, reductions=self.watched.sharding.reductions(tags))


class Directions:
    """Samples of an optimizer's gradients: the last, and the one before it."""

    def __init__(self) -> None:
        self.is_comparable = False
        self._version = -1
        self._samples: list[tuple[Coordinates, list[Rows]]] = []
        self._weights: list[Tensor] = []
        self._absent: list[list[int]] = []

    def take(self, part: Part, shares: Mapping[Tensor, float] | None = None) -> None:
        """Sample the gradients that are there; the last sample becomes the one before."""
        self.is_comparable = self._version == part.version
        if not self.is_comparable:
            self._version = part.version
            self._samples = [(each, [each.rows(), each.rows()]) for each in coordinates(part.placed, shares=shares)]
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
            sizes = [size * share**2 for size, share in zip(each.sizes, each.shares, strict=True)]
            size = sum(sizes) - sum(sizes[number] for number in absent)
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


def measure(
    placed: Sequence[Placed],
    grad_scale: Tensor | None = None,
    shares: Mapping[Tensor, float] | None = None,
    order: float = 2.0,
) -> list[Norms]:
    """L2 norm (or of another order) of the gradient of each parameter that has one.

    Args:
        placed: parameters, their blocks rising.
        grad_scale: what a fused optimizer will divide gradients by (`torch.amp.GradScaler` leaves it to it).
        shares: what the norms of some count for over ranks, where that is not 1 (`sidestep.probes.sharding`).
        order: of the norm.

    Returns:
        Norms for each device and type, of what lies here. Empty, sparse but uncoalesced (on a device) and missing
        gradients are left out, and those that are terms of a sum over ranks (a partial DTensor).
    """
    parts: list[Norms] = []
    for group in by_kind(present(placed)):
        owners = [placed[number] for _, number in group]
        norms = foreach_norm([gradient for gradient, _ in group], order)
        norms = torch.stack(tuple(weighed(norms, (parameter for parameter, _ in owners), shares)))
        if grad_scale is not None:
            norms = norms / grad_scale.to(norms.device, non_blocking=True)
        parts.append(Norms([block for _, block in owners], norms))
    return parts


def report(
    watched: Watched, parts: Sequence[Norms], step: int, before_clip: Tensor | None, *, with_blocks: bool = True
) -> None:
    """Record the global norm and the norms of blocks that have gradients.

    Args:
        watched: where to, and what blocks are called.
        parts: what `measure` gave, for all optimizers.
        step: the step they belong to.
        before_clip: the global norm from clipping, which has seen the gradient as it was; else it is the norm of
            the norms of blocks.
        with_blocks: whether those of blocks are recorded.
    """
    if not parts:
        return
    blocks, norms = fold(parts)
    sharding = watched.sharding
    # The norm from clipping is that of the whole on each rank.
    whole = torch.linalg.vector_norm(norms) if before_clip is None else before_clip * sharding.of_whole
    whole = whole.to(norms.device, torch.float32, non_blocking=True).reshape(1)
    tags = _tags(tuple(watched.names), blocks if with_blocks else ())
    values = torch.cat((whole, norms)) if with_blocks else whole
    watched.run.record(tags, values, step=step, reductions=sharding.reductions(tags))


def present(placed: Sequence[Placed]) -> Iterator[tuple[Tensor, int]]:
    """The gradients that `measure` measures, each with its parameter's place in the list."""
    for number, (parameter, _) in enumerate(placed):
        gradient = parameter.grad
        if gradient is None or is_partial(gradient):
            continue
        if gradient.layout == torch.sparse_coo:
            # Coalescing on a device waits for it; on the CPU it costs what the optimizer pays as well.
            if gradient.device.type != "cpu" and not gradient.is_coalesced():
                continue
            gradient = gradient.detach().coalesce().values()
        gradient = seen(gradient)
        if gradient.numel():
            yield gradient, number


@lru_cache(maxsize=256)
def _tags(names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return (TAGS[0], *(f"train/gradients/{names[block]}" for block in blocks))
