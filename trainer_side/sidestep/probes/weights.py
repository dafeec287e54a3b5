"""The weights: norms of the whole and of each block, the largest of them, and how far they have come.

The distance ‖θ - θ₀‖ / ‖θ₀‖ from where they were when they were first sampled is estimated from a sample of
coordinates (`sidestep.probes.sample`); the norms are exact, one pass over the weights.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.blocks import local
from sidestep.probes import stable_rank
from sidestep.probes.norms import FUSED, Norms, by_kind, fold, foreach_norm, gathered, home_of
from sidestep.probes.protocol import Part, Probe, Watched
from sidestep.probes.sample import Coordinates, Rows, coordinates
from sidestep.probes.sharding import Sharding, weighed

TAGS: Final = ("weight_norm", "train/weights/<block>", "train/weights/absmax", "train/weights/distance_from_start")
#: In a sharded model: what the distance of this rank's part is relative to, by which the collector puts ranks together.
_START: Final = ("train/weight/start_norm",)


class WeightProbe(Probe):
    """Weights after a step; once an epoch.

    Args:
        every: when it samples.
        distance: also the distance from the start, for which a sample of coordinates is kept.
        stable_rank: also the stable rank of the matrices, at the cost of 40 products of each with a vector.
    """

    name: ClassVar[str] = "weights"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS + _START + stable_rank.TAGS
    every: int | str | None = "epoch"

    def __init__(self, *, every: int | str | None = None, distance: bool = True, stable_rank: bool = False) -> None:
        super().__init__(every=every)
        self._has_distance = distance
        self._has_rank = stable_rank
        self._ranks: list[tuple[int, Tensor]] = []
        self._starts: dict[tuple[int, int], list[tuple[Coordinates, Rows]]] = {}
        self._norms: list[Norms] = []
        self._largest: list[Tensor] = []
        self._distances: list[tuple[Norms, Norms]] = []

    def attach(self, watched: Watched) -> None:
        """Say which stable ranks will not be there."""
        super().attach(watched)
        if self._has_rank and watched.sharding.is_sharded:
            what = "probe 'weights': of parameters that are sharded over ranks there is no stable rank"
            self.run.complain("weights", "stable_rank", what)

    def before_step(self, part: Part) -> None:
        """Keep the sample of the start, once."""
        if not self._has_distance or part.key in self._starts:
            return
        shares = self.watched.sharding.of(part)
        starts = [(each, each.rows()) for each in coordinates(part.placed, shares=shares)]
        for each, rows in starts:
            each.read(rows)
        self._starts = {key: kept for key, kept in self._starts.items() if key[0] != part.number}
        self._starts[part.key] = starts

    def after_step(self, part: Part) -> None:
        """Take the norms of one optimizer's weights."""
        self._norms += measure(part, self.watched.sharding, self._largest)
        if self._has_rank:
            self._ranks += stable_rank.measure(part.placed)
        for each, start in self._starts.get(part.key, ()):
            now = each.rows()
            each.read(now)
            now.whole.sub_(start.whole)
            self._distances.append((each.norms(now), each.norms(start)))

    def report(self, step: int) -> None:
        """Record the norms of all."""
        norms, largest, distances = self._norms, self._largest, self._distances
        stable_rank.report(self.run, self.watched.names, self._ranks, step)
        self.forget()
        if not norms:
            return
        self.watched.weight_norm_step = step
        blocks, folded = fold(norms)
        tags, sharding = _tags(self.watched.names, blocks), self.watched.sharding
        values = [_whole(folded), gathered(largest).max().reshape(1), folded]
        if distances:
            moved, start = (fold([pair[side] for pair in distances])[1] for side in (0, 1))
            tags += TAGS[3:]
            values.append(_whole(moved) / _whole(start))
            if sharding.is_sharded:
                tags += _START
                values.append(_whole(start))
        home = home_of(values)
        whole = torch.cat([value.to(home, non_blocking=True) for value in values])
        self.run.record(tags, whole, step=step, reductions=sharding.reductions(tags))

    def forget(self) -> None:
        """Begin anew."""
        self._norms, self._largest, self._distances, self._ranks = [], [], [], []


def measure(part: Part, sharding: Sharding, largest: list[Tensor] | None = None) -> list[Norms]:
    """L2 norm of each of an optimizer's parameters, of what lies here.

    Args:
        part: the optimizer.
        sharding: what the norms count for over ranks.
        largest: gathers the largest magnitude of each, where it is given.
    """
    whole = [(local(parameter), number) for number, (parameter, _) in enumerate(part.placed)]
    found: list[Norms] = []
    for group in by_kind([entry for entry in whole if entry[0].numel()]):
        tensors = [tensor for tensor, _ in group]
        owners = [part.placed[number] for _, number in group]
        norms = weighed(foreach_norm(tensors), (parameter for parameter, _ in owners), sharding.of(part))
        found.append(Norms([block for _, block in owners], torch.stack(tuple(norms))))
        if largest is not None:
            largest += FUSED._foreach_norm(tensors, float("inf"))  # noqa: SLF001
    return found


def _whole(norms: Tensor) -> Tensor:
    return torch.linalg.vector_norm(norms).reshape(1)


@lru_cache(maxsize=256)
def _tags(names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return (TAGS[0], TAGS[2], *(f"train/weights/{names[block]}" for block in blocks))
