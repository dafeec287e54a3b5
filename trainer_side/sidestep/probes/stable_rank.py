"""Stable rank of weight matrices, ‖W‖_F² / ‖W‖₂²: how many directions a matrix uses, between 1 and its rank.

(Rudelson and Vershynin, Sampling from large matrices, 2007.) A weight of more dimensions is taken as a matrix of its
first against all others. The largest singular value is the root of the largest eigenvalue of WᵀW or WWᵀ, whichever is
smaller, by Lanczos with random numbers of its own (`sidestep.probes.lanczos`): 20 steps, two products with W each.
They find it from below, to 0.5 % for matrices without structure, and so the stable rank from above, to 1 %.

Of the small tridiagonal matrix T that Lanczos leaves, the largest eigenvalue is taken where it lies, tr(T M) / tr(M)
with M = T^4096 by squaring: solving for it would wait for the device. A matrix in another type than float32 is copied
for as long as it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from sidestep.probes.lanczos import spectrum
from sidestep.probes.norms import Placed, gathered
from sidestep.probes.sharding import replicated
from sidestep.run import Run

TAGS: Final = ("train/weights/stable_rank/<block>", "train/weights/stable_rank_min/<block>")

_STEPS: Final = 20
_SQUARINGS: Final = 12


def stable_rank(matrix: Tensor, steps: int = _STEPS) -> Tensor:
    """Stable rank of a matrix of two dimensions or more, a tensor of no dimension.

    It is 0 where all weights are, and NaN where one is no number.
    """
    whole = matrix.detach().reshape(matrix.shape[0], -1).float()
    # Squares of squares leave the range of float32 for weights below 1e-9 or above 1e9.
    unit = 1 / whole.abs().max().clamp_min(torch.finfo(whole.dtype).tiny)
    square = (torch.linalg.vector_norm(whole) * unit).square()
    return torch.where(square == 0, square, square / largest(whole, unit, steps))


def largest(whole: Tensor, unit: Tensor, steps: int) -> Tensor:
    """Largest eigenvalue of WᵀW times unit², a tensor of no dimension."""
    turned = whole if whole.shape[0] <= whole.shape[1] else whole.T

    def product(vector: Tensor) -> Tensor:
        return turned @ (vector @ turned * unit) * unit

    generator = torch.Generator(whole.device).manual_seed(0)
    found = spectrum(product, turned.shape[0], steps, generator)
    small = torch.diag(found.diagonal) + torch.diag(found.beside, 1) + torch.diag(found.beside, -1)
    power = small
    for _ in range(_SQUARINGS):
        power = power / torch.linalg.matrix_norm(power).clamp_min(torch.finfo(power.dtype).tiny)
        power = power @ power
    return (small @ power).trace() / power.trace()


def measure(placed: Sequence[Placed]) -> list[tuple[int, Tensor]]:
    """Blocks and stable ranks of the matrices among some parameters; of one that is sharded none."""
    matrices = [(replicated(parameter), block) for parameter, block in placed if _is_matrix(parameter)]
    return [(block, stable_rank(matrix)) for matrix, block in matrices if matrix is not None]


def report(run: Run, names: Sequence[str], found: Sequence[tuple[int, Tensor]], step: int) -> None:
    """Record mean and least of each block that has matrices."""
    blocks: dict[int, list[Tensor]] = {}
    for block, value in found:
        blocks.setdefault(block, []).append(value)
    if blocks:
        ranks = [gathered(values) for values in blocks.values()]
        numbers = [*(each.mean() for each in ranks), *(each.min() for each in ranks)]
        run.record(_tags(tuple(names), tuple(blocks)), gathered(numbers), step=step)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and parameter.numel() > 0 and not parameter.is_complex()


@lru_cache(maxsize=64)
def _tags(names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(tag.replace("<block>", names[block]) for tag in TAGS for block in blocks)
