"""Relative update of the weights, ‖Δθ‖ / ‖θ‖, of the whole and of each block, estimated from a sample.

Copying every weight before a step would double the memory of the model. Instead a sample of coordinates is copied
(`sidestep.probes.sample`).

With N_p elements and a sample of n_p of parameter p, θ before the step and δ its change, squared norms are
estimated by

    S(x) = Σ_p N_p / n_p · Σ_i x_pi²          ratio = √(S(δ) / S(θ))

which is exact where n_p = N_p. Taking the coordinates for a simple random sample, the standard error of the ratio
follows by the delta method, with R = S(δ) / S(θ), d_pi = δ_pi² - R θ_pi², and s_p² the sample variance of d_p:

    SE(ratio) = 1 / (2 · ratio · S(θ)) · √(Σ_p N_p² (1 - n_p / N_p) s_p² / n_p)

For one large matrix of normal weights and changes that is about 3 % of the ratio, and less for a block of several.
(Cochran, Sampling Techniques, 1977, chapters 2 and 6.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.probes.norms import Norms, Placed, fold
from sidestep.probes.protocol import Part, Probe, Watched
from sidestep.probes.sample import Coordinates, coordinates

TAGS: Final = ("train/updates/relative_update_norm", "train/updates/<block>")
#: In a sharded model: what the updates of this rank's part are relative to, by which the collector puts ranks together.
_WEIGHTS: Final = ("train/update_weights/global_norm", "train/update_weights/<block>")


class UpdateProbe(Probe):
    """The relative update of a step.

    Args:
        every: when it samples.
        exact: from all weights instead of a sample. It keeps two copies of them in float32, on their device, and a
            sampled step reads each weight three times more.
    """

    name: ClassVar[str] = "updates"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS + _WEIGHTS

    def __init__(self, *, every: int | str | None = None, exact: bool = False) -> None:
        super().__init__(every=every)
        self._is_exact = exact
        self._samples: dict[int, tuple[int, list[UpdateSample]]] = {}
        self._changes: list[tuple[Norms, Norms]] = []

    def before_step(self, part: Part) -> None:
        """Copy the samples as they are before the step."""
        version, samples = self._samples.get(part.number, (-1, []))
        if version != part.version:
            samples = sample(part.placed, exact=self._is_exact, shares=self.watched.sharding.of(part))
            self._samples[part.number] = part.version, samples
        for one in samples:
            one.take()

    def after_step(self, part: Part) -> None:
        """Compare them with what they are after it."""
        self._changes += [one.compare() for one in self._samples[part.number][1]]

    def report(self, step: int) -> None:
        """Record the relative updates of all."""
        changes, self._changes = self._changes, []
        report(self.watched, changes, step)

    def forget(self) -> None:
        """Begin anew."""
        self._changes = []


class UpdateSample:
    """A sample of the weights of one device, taken before a step and compared after it.

    Args:
        coordinates: of the weights.
    """

    def __init__(self, coordinates: Coordinates) -> None:
        self._coordinates = coordinates
        self._before = coordinates.rows()
        self._change = coordinates.rows()

    def take(self) -> None:
        """Copy the sample as it is before a step."""
        self._coordinates.read(self._before)

    def compare(self) -> tuple[Norms, Norms]:
        """Estimated norms of the change, and of the weights before it, one a parameter."""
        self._coordinates.read(self._change)
        self._change.whole.sub_(self._before.whole)
        return self._coordinates.norms(self._change), self._coordinates.norms(self._before)


def sample(
    placed: Sequence[Placed], *, exact: bool = False, shares: Mapping[Tensor, float] | None = None
) -> list[UpdateSample]:
    """Samples of all parameters that have elements and are trained, one a device."""
    return [UpdateSample(entries) for entries in coordinates(placed, exact=exact, shares=shares)]


def report(watched: Watched, parts: Sequence[tuple[Norms, Norms]], step: int) -> None:
    """Record the relative update of the whole and of each block; in a sharded model also what it is relative to.

    Where the weights before the step are all zero, it is 1 when they moved and 0 when they did not. Such a part of a
    sharded model counts by its change, which is then not lost: it adds to the weights no more than that.
    """
    if not parts:
        return
    blocks, change = fold([change for change, _ in parts])
    _, weights = fold([weights for _, weights in parts])
    change = torch.cat((torch.linalg.vector_norm(change).reshape(1), change))
    weights = torch.cat((torch.linalg.vector_norm(weights).reshape(1), weights))
    ratio = torch.where(weights == 0, (change != 0).to(weights.dtype), change / weights)
    names, sharding = tuple(watched.names), watched.sharding
    tags = _tags(TAGS, names, blocks)
    if sharding.is_sharded:
        tags += _tags(_WEIGHTS, names, blocks)
        ratio = torch.cat((ratio, torch.where(weights == 0, change, weights)))
    watched.run.record(tags, ratio, step=step, reductions=sharding.reductions(tags))


@lru_cache(maxsize=256)
def _tags(templates: tuple[str, str], names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return (templates[0], *(templates[1].replace("<block>", names[block]) for block in blocks))
