"""How a model's parameters lie over the ranks, and what the norm of what lies here counts for in that of the whole.

A sharded DTensor (FSDP2, tensor parallelism) has other elements on each rank. Probes look at those that lie here, and
the collector puts their norms together, √(Σ v²) over ranks. What lies on several ranks alike would be counted as often:
its norm is divided by the root of the number of its copies, which are

    the sizes of the dimensions of its mesh that replicate it (HSDP)
    times that of the model's largest mesh over that of its own (a tensor that is no DTensor has a mesh of one)
    times the ranks of a DistributedDataParallel around the model.

Reads what torch knows of placements in this process. Never communicates: a collective that not all ranks join is a
training that hangs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sidestep.probes.norms import FUSED
from sidestep_schemas import catalog

if TYPE_CHECKING:
    from sidestep.probes.protocol import Part


class Sharding:
    """Placements of the parameters of a model.

    Args:
        model: as it was handed to `watch`.
        parameters: of all its optimizers.

    Attributes:
        is_sharded: whether any of them has other elements on other ranks.
        of_whole: what a norm of the whole that every rank knows counts for.
    """

    def __init__(self, model: nn.Module | None = None, parameters: Iterable[Tensor] = ()) -> None:
        layouts = [layout for parameter in parameters if (layout := _layout(parameter)) is not None]
        self.is_sharded = any(copies < size for size, copies in layouts)
        outer = _copies_of(model)
        self._ranks = outer * max((size for size, _ in layouts), default=1)
        self._known: dict[int, tuple[int, Mapping[Tensor, float]]] = {}
        self.of_whole = 1 / math.sqrt(self._ranks) if self.is_sharded else 1.0

    def share(self, parameter: Tensor) -> float:
        """What the norm of a parameter's local part counts for; 1 in a model that is not sharded."""
        if not self.is_sharded:
            return 1.0
        size, copies = _layout(parameter) or (1, 1)
        return math.sqrt(size / (self._ranks * copies))

    def of(self, part: Part) -> Mapping[Tensor, float]:
        """Those of an optimizer's parameters that are not 1."""
        known = self._known.get(part.number)
        if known is None or known[0] != part.version:
            known = part.version, self.shares(parameter for parameter, _ in part.placed)
            self._known[part.number] = known
        return known[1]

    def shares(self, parameters: Iterable[Tensor]) -> dict[Tensor, float]:
        """What the norms of some parameters count for, where that is not 1."""
        if not self.is_sharded:
            return {}
        return {parameter: share for parameter in parameters if (share := self.share(parameter)) != 1.0}

    def reductions(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """How ranks combine, for `Run.record`; empty where it is as the catalogue says."""
        return _reductions(tags) if self.is_sharded else ()


def weighed(
    norms: Sequence[Tensor], parameters: Iterable[Tensor], shares: Mapping[Tensor, float] | None
) -> Sequence[Tensor]:
    """Norms of parameters' local parts as they count in those of the whole; `shares` as of `Sharding.shares`."""
    if not shares:
        return norms
    return FUSED._foreach_mul(list(norms), [shares.get(parameter, 1.0) for parameter in parameters])  # noqa: SLF001


def is_partial(tensor: Any) -> bool:
    """Whether the elements here are terms of a sum over ranks: no norm of theirs means anything."""
    return any(placement.is_partial() for placement in getattr(tensor, "placements", ()))


def replicated(tensor: Any) -> Tensor | None:
    """The value of a tensor that every rank has whole; None where it takes a collective to know it."""
    placements = getattr(tensor, "placements", None)
    if placements is None:
        return tensor
    return tensor.to_local() if all(placement.is_replicate() for placement in placements) else None


def _copies_of(model: nn.Module | None) -> int:
    # Ranks that a DistributedDataParallel gives the same parameters.
    group = model.process_group if isinstance(model, nn.parallel.DistributedDataParallel) else None
    return 1 if group is None else group.size()


def _layout(parameter: Any) -> tuple[int, int] | None:
    # Ranks of a DTensor's mesh, and how many of them have the same elements.
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return None
    mesh = parameter.device_mesh
    copies = (mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_replicate())
    return mesh.size(), math.prod(copies)


@lru_cache(maxsize=256)
def _reductions(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(catalog.sharded_reduction(tag) for tag in tags)
