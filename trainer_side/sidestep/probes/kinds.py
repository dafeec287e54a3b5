"""Parameters of several kinds, as the phase and the magnitude of one weight: norms, and whether they learn the same.

A kind is a name and a pattern of parameter names, `{"phase": "*.phase", "magnitude": "*.magnitude"}`, where a star
stands for anything. Of each kind the L2 norm of its gradient is recorded. Two kinds are compared where the stars of
their patterns stand for the same (`layers.0.phase`, `layers.0.magnitude`) and shapes are equal: Pearson's correlation,
over all such elements, of the absolute gradients x = |∂L/∂a| and y = |∂L/∂b|,

    r = Σ w (x - x̄) (y - ȳ) / √(Σ w (x - x̄)² Σ w (y - ȳ)²),

w being what an element of the sample stands for (`sidestep.probes.sample`). It is 0 where either is the same
everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.blocks import named_parameters
from sidestep.errors import UsageError
from sidestep.probes.gradients import measure
from sidestep.probes.norms import Norms, Placed, fold, home_of
from sidestep.probes.protocol import Part, Probe, Watched
from sidestep.probes.sample import Coordinates, coordinates

TAGS: Final = ("train/kinds/<kind>/gradient_norm", "train/kinds/<pair>/gradient_correlation")

#: Of two kinds: coordinates of the one beside those of the other, on one device.
_Beside = tuple[Coordinates, Coordinates]


class KindProbe(Probe):
    """Gradients by kind of parameter.

    Args:
        every: when it samples.
        **kinds: name of a kind to the pattern of its parameters' names, or several.

    Raises:
        UsageError: no kind is named.
    """

    name: ClassVar[str] = "kinds"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self, *, every: int | str | None = None, **kinds: str | Sequence[str]) -> None:
        super().__init__(every=every)
        if not kinds:
            raise UsageError("probe 'kinds' needs them by name: {'phase': '*.phase', 'magnitude': '*.magnitude'}")
        self._patterns = {kind: [one] if isinstance(one, str) else list(one) for kind, one in kinds.items()}
        self._members: dict[Tensor, int] = {}
        self._pairs: dict[str, list[_Beside]] = {}
        self._norms: list[Norms] = []

    def attach(self, watched: Watched) -> None:
        """Find which parameter is of which kind.

        Raises:
            UsageError: a kind that no parameter is of.
        """
        super().attach(watched)
        found = {kind: dict(_matched(watched, patterns)) for kind, patterns in self._patterns.items()}
        missing = [kind for kind, members in found.items() if not members]
        if missing:
            raise UsageError(f"no parameter is of the kinds {', '.join(missing)}")
        self._members = {entry: number for number, kind in enumerate(found.values()) for entry in kind.values()}
        self._pairs = {
            f"{first}_{second}": beside
            for first, second in combinations(found, 2)
            if (beside := _beside(found[first], found[second]))
        }

    def gradients(self, part: Part) -> None:
        """Take the norms of one optimizer's gradients."""
        placed = [Placed(entry, self._members[entry]) for entry, _ in part.placed if entry in self._members]
        shares = self.watched.sharding.of(part)
        self._norms += measure(sorted(placed, key=lambda one: one.block), part.grad_scale, shares)

    def report(self, step: int) -> None:
        """Record norms and correlations."""
        parts, self._norms = self._norms, []
        if not parts:
            return
        numbers, norms = fold(parts)
        names = tuple(self._patterns)
        tags = tuple(f"train/kinds/{names[number]}/gradient_norm" for number in numbers)
        found = [(f"train/kinds/{pair}/gradient_correlation", correlation(both)) for pair, both in self._pairs.items()]
        values = [norms, *(value.to(norms.device, torch.float32, non_blocking=True).reshape(1) for _, value in found)]
        tags += tuple(tag for tag, _ in found)
        self.run.record(tags, torch.cat(values), step=step, reductions=self.watched.sharding.reductions(tags))

    def forget(self) -> None:
        """Begin anew."""
        self._norms = []


def correlation(pairs: Sequence[_Beside]) -> Tensor:
    """Correlation of absolute gradients over pairs of samples; a tensor without dimensions, where the first lies."""
    columns = [_absolute(pair) for pair in pairs]
    home = home_of(column for column, _, _ in columns)
    x, y, w = (torch.cat([column.to(home, non_blocking=True) for column in one]) for one in zip(*columns, strict=True))
    whole = w.sum()
    x, y = x - (w @ x) / whole, y - (w @ y) / whole
    spread = ((w @ x.square()) * (w @ y.square())).sqrt()
    return torch.where(spread > 0, (w * x) @ y / spread, torch.zeros_like(spread))


def _absolute(pair: _Beside) -> tuple[Tensor, Tensor, Tensor]:
    rows = [each.rows() for each in pair]
    for each, row in zip(pair, rows, strict=True):
        each.read_gradients(row)
    return rows[0].whole.abs(), rows[1].whole.abs(), pair[0].weights()


def _matched(watched: Watched, patterns: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """What the stars stand for in the name of each parameter that matches, and the parameter."""
    expressions = [re.compile("(.*)".join(map(re.escape, one.split("*")))) for one in patterns]
    for name, parameter in named_parameters(watched.inner):
        match = next((match for one in expressions if (match := one.fullmatch(name))), None)
        if match is not None:
            yield match.groups() or (name,), parameter


def _beside(first: Mapping[tuple[str, ...], Tensor], second: Mapping[tuple[str, ...], Tensor]) -> list[_Beside]:
    both = [(first[key], second[key]) for key in first if key in second]
    both = [
        (a, b) for a, b in both if a.shape == b.shape and a.device == b.device and a.requires_grad == b.requires_grad
    ]
    sides = [coordinates([Placed(pair[side], 0) for pair in both]) for side in range(2)]
    return list(zip(*sides, strict=True))
