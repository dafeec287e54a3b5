"""The exact diagonal of the Hessian through BackPACK, where the network allows it (Dangel et al., BackPACK, 2020).

It takes networks of layers that it has rules for, called as modules, and a loss that ends in one of three functions:
cross entropy, mean squared error, binary cross entropy with logits. The user's loss function may call them in any form:
while it runs, calls of `torch.nn.functional` go through modules that BackPACK knows.

BackPACK hangs attributes and hooks on modules and parameters. So it is given a copy of the model, which costs the
memory of the weights once more for as long as it takes, and it never asks whether a loss adds something of its own
(a penalty, a factor): `disagreement` tells that.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sidestep.errors import UsageError
from sidestep.probes.lanczos import Product

#: What BackPACK may take beside the network: each curved unit adds a column as large as a layer's output.
BYTES_MAX: Final = 256 << 20
_LOSSES: Final[Mapping[Any, type[nn.Module]]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.mse_loss: nn.MSELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}
_CURVED: Final = (nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.ELU, nn.SELU)
#: Of a diagonal element, and of the mean of all: how far it may be from a product of its own.
_TOLERANCE: Final = 1e-3

Loss = Callable[[nn.Module, Any], Tensor]


def load() -> tuple[Any, Any]:
    """BackPACK, and its extension that gives the diagonal.

    Raises:
        ImportError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it uses of torch
        import backpack  # noqa: PLC0415 - a package that need not be there
        from backpack.extensions import DiagHessian  # noqa: PLC0415
    return backpack, DiagHessian


def diagonal(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """The diagonal of the Hessian of a loss in all parameters that are trained, one behind the other.

    Args:
        loss: of model and batch.
        model: it is left as it is.
        batch: what the loss is called with.

    Raises:
        UsageError: the network is too large for it, or of layers that it has no rule for.
        Exception: whatever BackPACK raises of what it does not know.
    """
    backpack, kind = load()
    own = copy.deepcopy(model)
    parameters = [entry for entry in own.parameters() if entry.requires_grad and entry.numel()]
    needed = bytes_needed(loss, own, batch)
    if needed > BYTES_MAX:
        raise UsageError(f"its Hessian diagonal would take {needed >> 20} MB, more than {BYTES_MAX >> 20}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks on modules whose input needs no gradient
        extended: Any = backpack.extend(own)
        with backpack.backpack(kind()):
            with _Losses(backpack.extend):
                value = loss(extended, batch)
            torch.autograd.grad(value, parameters)
    found = [getattr(entry, "diag_h", None) for entry in parameters]
    if any(entry is None for entry in found):
        raise UsageError("some of its parameters are in no layer that has a rule, or its loss is none of three")
    return torch.cat([entry.detach().reshape(-1) for entry in found if entry is not None])


def disagreement(diagonal: Tensor, product: Product, sizes: Sequence[int]) -> Tensor:
    """How far a diagonal is from single products e_kᵀ H e_k, over what is allowed: above 1 it is another matrix's.

    Compared are its largest element and one of each of the first, middle and last parameter. Allowed is 1e-3 of the
    element and of the mean of all.
    """
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    chosen = {number: starts[number] + sizes[number] // 2 for number in (0, len(sizes) // 2, len(sizes) - 1)}
    magnitude = diagonal.abs()
    places = [magnitude.argmax(), *(torch.tensor(place, device=diagonal.device) for place in chosen.values())]
    mean, wrong = magnitude.mean(), magnitude.new_zeros(())
    for place in places:
        unit = torch.zeros_like(diagonal).index_fill_(0, place.reshape(1), 1.0)
        apart = (unit @ product(unit) - unit @ diagonal).abs()
        allowed = _TOLERANCE * (unit @ magnitude + mean)
        # Of a linear loss both are zero, and agree.
        wrong = torch.maximum(wrong, torch.where(apart == 0, apart, apart / allowed))
    return wrong


def bytes_needed(loss: Loss, model: nn.Module, batch: Any) -> int:
    """Estimate of the memory that the diagonal takes: columns times the largest output, twice, in float32.

    There is a column for each output of the network, and one for each unit with a second derivative.
    """
    outputs: list[tuple[int, int, bool]] = []

    def look(module: nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim:
            outputs.append((output.numel(), output[0].numel(), isinstance(module, _CURVED)))

    removers = [module.register_forward_hook(look).remove for module in _leaves(model)]
    with torch.no_grad():
        loss(model, batch)
    for remove in removers:
        remove()
    if not outputs:
        return 0
    columns = outputs[-1][1] + sum(units for _, units, is_curved in outputs if is_curved)
    return columns * max(size for size, _, _ in outputs) * 4 * 2


def _leaves(model: nn.Module) -> Iterable[nn.Module]:
    return (module for module in model.modules() if next(module.children(), None) is None)


class _Losses(TorchFunctionMode):
    # Calls loss functions as modules that are extended.

    def __init__(self, extend: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self._extend = extend

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kind = _LOSSES.get(func)
        if kind is None:
            return func(*args, **(kwargs or {}))
        given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
        inputs = given.pop("input"), given.pop("target")
        return self._extend(kind(**{name: value for name, value in given.items() if value is not None}))(*inputs)
