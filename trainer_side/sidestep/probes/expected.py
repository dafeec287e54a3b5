"""What an optimizer's step should change, on a sample of coordinates, told before the step from gradients and state.

With g the gradient, θ the weights and the settings of the parameter group:

    SGD     d = g + wd θ;  b ← μ b + (1 - τ) d, b = d at first;  Δθ = -lr (d + μ b) under Nesterov, else -lr b
    Adam    g ← g + wd θ, or Δθ of -lr wd θ more where the decay is decoupled;
            m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  Δθ = -lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)

as `torch.optim` has them, in float32. Of another optimizer it is what its `expected_update(parameter)` gives, or what
a callable of the user's does. Nothing here writes to weights, gradients or state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from sidestep.probes.norms import home_of
from sidestep.probes.sample import Coordinates, Rows

#: The change of a parameter, of its shape, that a step is expected to make; None where none is.
Ask = Callable[[Tensor], Tensor | None]
#: The same on a sample: optimizer, its parameter group, the coordinates, and what gradients must be divided by.
Rule = Callable[[Optimizer, Mapping[str, Any], Coordinates, Tensor | None], Tensor]


def rule_of(optimizer: Optimizer, ask: Ask | None) -> Rule | None:
    """How the expected change of an optimizer is told; None where nobody knows."""
    ask = ask or getattr(optimizer, "expected_update", None)
    if ask is not None:
        return _asking(ask)
    if isinstance(optimizer, Adam):
        return adam
    return sgd if isinstance(optimizer, SGD) else None


def sgd(optimizer: Optimizer, group: Mapping[str, Any], at: Coordinates, scale: Tensor | None) -> Tensor:
    """Change by SGD, with momentum, dampening, Nesterov's and weight decay."""
    change, absent = _gradient(group, at, scale)
    change = _decayed(change, group["weight_decay"], at)
    momentum = group["momentum"]
    if momentum != 0:
        buffer = at.rows()
        missing = at.read_tensors(buffer, _states(optimizer, at, "momentum_buffer"))
        following = momentum * buffer.whole + (1 - group["dampening"]) * change
        for number in missing:
            at.part(following, number).copy_(at.part(change, number))
        change = change + momentum * following if group["nesterov"] else following
    return _cleared(-group["lr"] * change, at, absent)


def adam(optimizer: Optimizer, group: Mapping[str, Any], at: Coordinates, scale: Tensor | None) -> Tensor:
    """Change by Adam and AdamW, AMSGrad included."""
    gradient, absent = _gradient(group, at, scale)
    rate, decay = group["lr"], group["weight_decay"]
    first, second = group["betas"]
    is_decoupled = group.get("decoupled_weight_decay", False)
    if not is_decoupled:
        gradient = _decayed(gradient, decay, at)
    mean = first * _read(at, _states(optimizer, at, "exp_avg")) + (1 - first) * gradient
    square = second * _read(at, _states(optimizer, at, "exp_avg_sq")) + (1 - second) * gradient**2
    if group["amsgrad"]:
        square = torch.maximum(square, _read(at, _states(optimizer, at, "max_exp_avg_sq")))
    taken = at.spread(_steps(optimizer, at)) + 1
    change = -rate / (1 - first**taken) * mean / (square.sqrt() / (1 - second**taken).sqrt() + group["eps"])
    if is_decoupled:
        change = change - rate * decay * _weights(at)
    return _cleared(change, at, absent)


def _asking(ask: Ask) -> Rule:
    def rule(_optimizer: Optimizer, _group: Mapping[str, Any], at: Coordinates, _scale: Tensor | None) -> Tensor:
        return _read(at, [ask(parameter) for parameter in at.parameters])

    return rule


def _gradient(group: Mapping[str, Any], at: Coordinates, scale: Tensor | None) -> tuple[Tensor, list[int]]:
    rows = at.rows()
    absent = at.read_gradients(rows)
    gradient = rows.whole if scale is None else rows.whole / scale.to(rows.whole.device, non_blocking=True)
    return -gradient if group["maximize"] else gradient, absent


def _decayed(gradient: Tensor, decay: Any, at: Coordinates) -> Tensor:
    # A rate on a device is not looked at: that would wait.
    return gradient if isinstance(decay, float | int) and not decay else gradient + decay * _weights(at)


def _weights(at: Coordinates) -> Tensor:
    rows = at.rows()
    at.read(rows)
    return rows.whole


def _read(at: Coordinates, tensors: Sequence[Tensor | None]) -> Tensor:
    rows: Rows = at.rows()
    at.read_tensors(rows, tensors)
    return rows.whole


def _states(optimizer: Optimizer, at: Coordinates, key: str) -> list[Tensor | None]:
    # `get`, for the state makes an entry of what is only looked up.
    return [optimizer.state.get(parameter, {}).get(key) for parameter in at.parameters]


def _steps(optimizer: Optimizer, at: Coordinates) -> Tensor:
    taken = [torch.as_tensor(optimizer.state.get(parameter, {}).get("step", 0.0)) for parameter in at.parameters]
    home = home_of(taken)
    return torch.stack([each.detach().to(home, torch.float32, non_blocking=True).reshape(()) for each in taken])


def _cleared(change: Tensor, at: Coordinates, absent: Sequence[int]) -> Tensor:
    # A parameter without a gradient is left as it is, weight decay included.
    for number in absent:
        at.part(change, number).zero_()
    return change
