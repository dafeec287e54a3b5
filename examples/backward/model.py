"""A network whose weights are numbers of a magnitude and a phase, both on grids of whole quanta."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

#: A phase has 256 places on [-π, π), a magnitude 128 on [0, 1.5 a], a being the deviation of usual initial weights.
PHASES, MAGNITUDES = 256, 128


class PolarWeight(torch.autograd.Function):
    """w = m cos φ, computed elsewhere: gradients are ∂L/∂m = g cos φ and ∂L/∂φ = -g m sin φ."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, magnitude: Tensor, phase: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(magnitude, phase)
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:  # type: ignore[override]  # noqa: D102
        magnitude, phase = ctx.saved_tensors
        return None, gradient * phase.cos(), -gradient * magnitude * phase.sin()


class Cache:
    """Weights that were computed, until their parameters change; counts how often one was found."""

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self._entries: dict[nn.Module, tuple[tuple[int, int], Tensor]] = {}

    def weight(self, layer: PolarLinear) -> Tensor:
        """Weights m cos φ of a layer."""
        versions = (layer.magnitude._version, layer.phase._version)  # noqa: SLF001 - torch counts changes in it
        known = self._entries.get(layer)
        if known is not None and known[0] == versions:
            self.hits += 1
            return known[1]
        self.misses += 1
        weight = layer.magnitude.detach() * layer.phase.detach().cos()
        self._entries[layer] = versions, weight
        return weight

    def hit_rate(self) -> float:
        """Share of hits since the last call."""
        rate = self.hits / max(1, self.hits + self.misses)
        self.hits = self.misses = 0
        return rate


class PolarLinear(nn.Module):
    """A linear layer of weights m cos φ; `quanta` are the distances of neighbours on the grids of both."""

    def __init__(self, inputs: int, outputs: int, cache: Cache) -> None:
        super().__init__()
        top = 1.5 * math.sqrt(2.0 / inputs)
        self.quanta = {"magnitude": top / (MAGNITUDES - 1), "phase": 2 * math.pi / PHASES}
        magnitude = torch.full((outputs, inputs), top / 1.5).mul_(torch.rand(outputs, inputs) * 0.5 + 0.75)
        places = torch.randint(-PHASES // 2, PHASES // 2, (outputs, inputs))
        self.magnitude = nn.Parameter((magnitude / self.quanta["magnitude"]).round() * self.quanta["magnitude"])
        self.phase = nn.Parameter(places * self.quanta["phase"])
        self._cache = [cache]  # in a list: it is no part of the module

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, inputs) to (batch, outputs)."""
        return x @ PolarWeight.apply(self._cache[0].weight(self), self.magnitude, self.phase).T


class PolarNet(nn.Module):
    """Images of 64 pixels to logits of ten classes, through layers without any float that is trained."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.cache = Cache()
        sizes = [64, *[width] * depth, 10]
        self.layers = nn.ModuleList(PolarLinear(inputs, outputs, self.cache) for inputs, outputs in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, 64) to (batch, 10)."""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)
