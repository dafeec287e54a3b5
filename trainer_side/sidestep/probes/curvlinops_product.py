"""Products with the Hessian from curvlinops: forward over reverse differentiation by torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.probes.lanczos import Product


def curvlinops_hessian(
    loss: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any, parameters: Sequence[nn.Parameter]
) -> tuple[Product, int]:
    """The product of the Hessian of a loss with a flat vector, and the number of parameters.

    Args:
        loss: of model and batch; torch.func must be able to take it.
        model: it is left as it is.
        batch: what the loss is called with.
        parameters: of the model, in which it is differentiated.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it uses of torch
        import curvlinops  # noqa: PLC0415 - a package that need not be there

    target = torch.zeros(1, device=parameters[0].device)
    operator: Any = curvlinops.HessianLinearOperator(
        _Whole(model, loss),
        _Itself(),
        list(parameters),
        [({"batch": batch}, target)],
        check_deterministic=False,
        num_data=1,
        batch_size_fn=_one,
    )

    def product(vector: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own rules for forward differentiation
            return (operator @ vector).detach()

    return product, sum(entry.numel() for entry in parameters)


def _one(_given: Any) -> int:
    return 1


class _Whole(nn.Module):
    # The loss as a model: what curvlinops would compute from a model's output is there already.

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, given: dict[str, Any]) -> Tensor:
        return self._loss(self.model, given["batch"])


class _Itself(nn.Module):
    reduction = "sum"

    def forward(self, value: Tensor, _target: Tensor) -> Tensor:
        return value
