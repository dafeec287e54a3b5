"""The spectrum of a symmetric matrix that is known by its products with vectors: both ends, and the trace.

`spectrum` is k steps of Lanczos on products H v, for the Hessian by differentiating the gradient again (Pearlmutter,
1994): of a tridiagonal matrix of size k, the ends of whose spectrum are those of H. Ten were enough to 0.2 % where the
largest eigenvalue stands apart and to 2 % where others lie close to it, fifteen to 0.01 %, five for neither. Power
iteration would not do: it finds the eigenvalue of largest magnitude, which may be negative.

The basis Q that Lanczos leaves has the directions that matter most, so the trace is taken as that of Hutch++
(Meyer et al., 2021): exactly on Q, and by Hutchinson's estimate on what is orthogonal to it,

    tr H ≈ tr QᵀHQ + mean over m of gᵀ H g,    g = (I - QQᵀ) z,    z of random signs

with the standard deviation of the m terms over √m as its standard error. Everything stays on the device; the small
matrix is solved on the host when it has arrived there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class Spectrum(NamedTuple):
    """What Lanczos leaves: a tridiagonal matrix, shapes (k,) and (k - 1,), and its basis, shape (k, parameters)."""

    diagonal: Tensor
    beside: Tensor
    basis: Tensor


def hessian(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Product, int]:
    """The product of the Hessian of a loss with a flat vector, and the number of parameters."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    sizes = [parameter.numel() for parameter in parameters]
    # A gradient that does not depend on the parameters has no graph, and a Hessian of zero.
    live = [number for number, gradient in enumerate(gradients) if gradient.requires_grad]

    def product(vector: Tensor) -> Tensor:
        if not live:
            return torch.zeros_like(vector)
        parts = vector.split(sizes)
        given = [parts[number].view_as(gradients[number]).to(gradients[number].dtype) for number in live]
        rows = torch.autograd.grad(
            [gradients[number] for number in live], parameters, given, retain_graph=True, materialize_grads=True
        )
        return torch.cat([row.detach().reshape(-1).to(vector.dtype) for row in rows])

    return product, sum(sizes)


def spectrum(product: Product, size: int, steps: int, generator: torch.Generator) -> Spectrum:
    """Lanczos, each vector made orthogonal to all before it, twice.

    Args:
        product: the matrix, symmetric, as its product with a vector of shape (size,).
        size: its size.
        steps: at most `size` are taken.
        generator: for the first vector; its device is the matrix's.
    """
    vector = torch.randn(size, generator=generator, device=generator.device)
    vector = _unit(vector)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    basis = vector.new_zeros(min(steps, size), size)
    for number in range(len(basis)):
        basis[number] = vector
        vector = product(vector)
        diagonal.append(basis[number] @ vector)
        before = basis[: number + 1]
        vector = _without(_without(vector, before), before)
        beside.append(vector.norm())
        # Where the matrix has no further direction, rounding is left: what of it is new makes a basis as well.
        vector = _unit(_without(_unit(vector), before))
    return Spectrum(torch.stack(diagonal), torch.stack(beside)[:-1], basis)


def remainder(product: Product, basis: Tensor, vectors: int, generator: torch.Generator) -> Tensor:
    """Hutchinson's terms of the trace on what is orthogonal to a basis: shape (vectors,)."""
    terms: list[Tensor] = []
    for _ in range(vectors):
        vector = torch.randint(0, 2, basis.shape[1:], generator=generator, device=basis.device).to(basis.dtype) * 2 - 1
        vector = _without(_without(vector, basis), basis)
        terms.append(vector @ product(vector))
    return torch.stack(terms) if terms else basis.new_zeros(0)


def _without(vector: Tensor, basis: Tensor) -> Tensor:
    return vector - basis.T @ (basis @ vector)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)


def ends(diagonal: Tensor, beside: Tensor) -> tuple[float, float]:
    """Largest and smallest eigenvalue of a tridiagonal matrix; NaN where it is no number."""
    matrix = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
    if not bool(matrix.isfinite().all()):
        return float("nan"), float("nan")
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1]), float(values[0])


def whole_trace(diagonal: Tensor, rest: Tensor) -> tuple[float, float]:
    """The trace, and its standard error; NaN where there is one term only."""
    error = rest.std() / len(rest) ** 0.5 if len(rest) > 1 else torch.tensor(float("nan"))
    return float(diagonal.sum() + rest.mean()), float(error)
