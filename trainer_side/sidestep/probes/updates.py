"""Relative update of the weights, ‖Δθ‖ / ‖θ‖, of the whole and of each block, estimated from a sample.

Copying every weight before a step would double the memory of the model. Instead at most `SAMPLE` coordinates of
each parameter are copied: all of a small one, else every k-th, k coprime to the number of elements, so that the
sample passes through all rows and columns. The same coordinates are taken each time.

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

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch import Tensor

from sidestep.blocks import local
from sidestep.probes.norms import FUSED, Norms, Placed, fold, foreach_norm
from sidestep.probes.protocol import Part, Probe
from sidestep.run import Run

TAGS: Final = ("train/updates/relative_update_norm", "train/updates/<block>")

#: Coordinates of a parameter that are looked at.
SAMPLE: Final = 1024


class UpdateProbe(Probe):
    """The relative update of a step."""

    name: ClassVar[str] = "updates"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._samples: dict[int, tuple[int, list[UpdateSample]]] = {}
        self._changes: list[tuple[Norms, Norms]] = []

    def before_step(self, part: Part) -> None:
        """Copy the samples as they are before the step."""
        version, samples = self._samples.get(part.number, (-1, []))
        if version != part.version:
            samples = sample(part.placed)
            self._samples[part.number] = part.version, samples
        for one in samples:
            one.take()

    def after_step(self, part: Part) -> None:
        """Compare them with what they are after it."""
        self._changes += [one.compare() for one in self._samples[part.number][1]]

    def report(self, step: int) -> None:
        """Record the relative updates of all."""
        changes, self._changes = self._changes, []
        report(self.run, self.watched.names, changes, step)

    def forget(self) -> None:
        """Begin anew."""
        self._changes = []


class UpdateSample:
    """A sample of the weights of one device, taken before a step and compared after it.

    Args:
        placed: parameters on one device, their blocks rising; none is empty.
    """

    def __init__(self, placed: Sequence[Placed]) -> None:
        self._parameters = [parameter for parameter, _ in placed]
        self._blocks = [block for _, block in placed]
        sizes = [local(parameter).numel() for parameter in self._parameters]
        self._strides = [stride_of(size) for size in sizes]
        counts = [-(-size // stride) for size, stride in zip(sizes, self._strides, strict=True)]
        self._factors = [math.sqrt(size / count) for size, count in zip(sizes, counts, strict=True)]
        double = any(parameter.dtype in (torch.float64, torch.complex128) for parameter in self._parameters)
        dtype = torch.float64 if double else torch.float32
        self._before = torch.empty(sum(counts), dtype=dtype, device=local(self._parameters[0]).device)
        self._change = torch.empty_like(self._before)
        self._before_rows = self._before.split(counts)
        self._change_rows = self._change.split(counts)

    def take(self) -> None:
        """Copy the sample as it is before a step."""
        self._copy(self._before_rows)

    def compare(self) -> tuple[Norms, Norms]:
        """Estimated norms of the change, and of the weights before it, one a parameter."""
        self._copy(self._change_rows)
        self._change.sub_(self._before)
        return self._norms(self._change_rows), self._norms(self._before_rows)

    def _copy(self, rows: Sequence[Tensor]) -> None:
        # Views are made anew each time: a script may have given a parameter other storage.
        views = [
            strided(local(parameter), stride) for parameter, stride in zip(self._parameters, self._strides, strict=True)
        ]
        FUSED._foreach_copy_(list(rows), views)

    def _norms(self, rows: Sequence[Tensor]) -> Norms:
        norms = FUSED._foreach_mul(list(foreach_norm(rows)), self._factors)  # noqa: SLF001
        return Norms(self._blocks, torch.stack(norms))


def sample(placed: Sequence[Placed]) -> list[UpdateSample]:
    """Samples of all parameters that have elements and are trained, one a device."""
    devices: dict[torch.device, list[Placed]] = {}
    for entry in placed:
        here = local(entry.parameter)
        if entry.parameter.requires_grad and here.numel():
            devices.setdefault(here.device, []).append(entry)
    return [UpdateSample(entries) for entries in devices.values()]


def report(run: Run, names: Sequence[str], parts: Sequence[tuple[Norms, Norms]], step: int) -> None:
    """Record the relative update of the whole and of each block.

    Where the weights before the step are all zero, it is 1 when they moved and 0 when they did not.
    """
    if not parts:
        return
    blocks, change = fold([change for change, _ in parts])
    _, weights = fold([weights for _, weights in parts])
    change = torch.cat((torch.linalg.vector_norm(change).reshape(1), change))
    weights = torch.cat((torch.linalg.vector_norm(weights).reshape(1), weights))
    ratio = torch.where(weights == 0, (change != 0).to(weights.dtype), change / weights)
    run.record(_tags(tuple(names), blocks), ratio, step=step)


def stride_of(size: int) -> int:
    """Every how many elements one is taken: at most `SAMPLE` of them, coprime to the size."""
    stride = -(-size // SAMPLE)
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride


def strided(tensor: Tensor, stride: int) -> Tensor:
    """Every `stride`-th element; a view wherever memory has no holes, whatever the order of dimensions."""
    if tensor.is_contiguous():
        return tensor.view(-1)[::stride]
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    if span == tensor.numel():
        return tensor.as_strided((-(-span // stride),), (stride,))
    return tensor.reshape(-1)[::stride]


@lru_cache(maxsize=256)
def _tags(names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return (TAGS[0], *(f"train/updates/{names[block]}" for block in blocks))
