"""Gradient descent in whole quanta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class QuantumDescent(Optimizer):
    """Parameters lie on grids, kept as int8 places, and move by whole quanta; what is less is kept for later.

    A step would change a parameter by e = -lr q m̂, where q is its quantum and m̂ the mean of its gradients (decay
    `momentum`), divided by their root mean square: `lr` is a typical change in quanta. With what is left from before it
    is rounded to whole quanta and applied, at most so far that the place is within the grid; the rest waits.

    Args:
        quanta: parameters with the distance of their grids' places, and the least and the greatest place.
        lr: typical change of a step, in quanta.
        momentum: decay of the mean of gradients.
        feedback: share of the rest that is kept; 0 forgets what rounding takes away.
    """

    def __init__(
        self,
        quanta: Mapping[Tensor, tuple[float, int, int]],
        lr: float = 0.5,
        momentum: float = 0.9,
        feedback: float = 1.0,
    ) -> None:
        groups = [
            {"params": [entry], "quantum": quantum, "least": least, "most": most}
            for entry, (quantum, least, most) in quanta.items()
        ]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "feedback": feedback})
        for group in self.param_groups:
            (parameter,) = group["params"]
            self.state[parameter] = {
                "place": (parameter.detach() / group["quantum"]).round().to(torch.int8),
                "mean": torch.zeros_like(parameter),
                "rest": torch.zeros_like(parameter),
            }
        self._groups = {group["params"][0]: group for group in self.param_groups}

    @torch.no_grad()
    def expected_update(self, parameter: Tensor) -> Tensor | None:
        """The change that the coming step would make if there were no quanta."""
        if parameter.grad is None:
            return None
        group, mean = self._groups[parameter], self.state[parameter]["mean"]
        mean = torch.lerp(parameter.grad, mean, group["momentum"])
        return mean.mul_(-group["lr"] * group["quantum"] / mean.square().mean().sqrt().clamp_min(1e-12))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Move all parameters that have a gradient."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            (parameter,) = group["params"]
            expected = self.expected_update(parameter)
            if expected is None:
                continue
            state, quantum = self.state[parameter], group["quantum"]
            state["mean"].lerp_(parameter.grad, 1 - group["momentum"])
            wanted = state["rest"] + expected / quantum
            before = state["place"].float()
            after = (before + wanted.round()).clamp_(group["least"], group["most"])
            state["rest"] = group["feedback"] * (wanted - (after - before)).clamp_(-1, 1)
            state["place"] = after.to(torch.int8)
            parameter.copy_(after * quantum)
