"""`sidestep.clip_grad_norm_`: torch's clipping, which tells the watched run the norm it has computed anyway."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from sidestep.probes.clipping import Clipping, Told
from sidestep.probes.sharding import replicated

_listener: weakref.ref[Clipping] | None = None


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    *,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip the norm of gradients in place, bit for bit as `torch.nn.utils.clip_grad_norm_` does.

    Where a run watches, the norm before and after and whether it was clipped are recorded at the next step, and
    the global gradient norm needs no pass of its own. Of a norm other than L2 only whether it was clipped is
    recorded. Of distributed tensors that is what torch has made whole on each rank; where to know the norm took
    another collective, nothing is.

    Args:
        parameters: tensors whose gradients are clipped together.
        max_norm: limit of the norm.
        norm_type: p of the p-norm, or "inf".
        error_if_nonfinite: raise where the norm is not finite.
        foreach: fused implementation; None lets torch choose.

    Returns:
        The norm before clipping, a tensor of no dimension on the gradients' device.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
    """
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    norm = torch.nn.utils.clip_grad_norm_(
        tensors, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite, foreach=foreach
    )
    told = told_of(norm, max_norm, norm_type)
    if told is not None and tensors:
        tell(id(tensors[0]), told)
    return norm


def told_of(norm: Tensor, max_norm: float, norm_type: float) -> Told | None:
    """What is told of a call; nothing of a norm whose value here is a part, for to know it takes a collective."""
    whole = replicated(norm.detach())
    return None if whole is None else Told(whole, float(max_norm), float(norm_type) == 2.0)


def tell(subject: int, told: Told) -> bool:
    """Tell of a call of clipping, by whatever function: the one place that all of them use.

    Args:
        subject: stands for the parameters that were clipped together: a later call for the same replaces it.
        told: what the call did.

    Returns:
        Whether anybody listens.
    """
    listener = _listener() if _listener is not None else None
    if listener is not None:
        listener.tell(subject, told)
    return listener is not None


def listen(clipping: Clipping | None) -> None:
    """Have calls told to a probe from now on; None to nobody. It is held weakly."""
    global _listener  # noqa: PLW0603 - the run of the process is one
    _listener = None if clipping is None else weakref.ref(clipping)
