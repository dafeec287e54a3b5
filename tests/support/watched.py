"""What tests of watched trainings share: a run that keeps its journal, and a small network with a step to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sidestep

GLOBAL = "train/gradients/global_norm"
UPDATE = "train/updates/relative_update_norm"
PASSES = "perf/micro_batches_per_step"


class SmallNet(nn.Module):
    """Two blocks in a list, a head, and a parameter of its own: 6 inputs, 3 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x) * self.temperature


def small_net(seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet()


def batch(step: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step))


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0, limit: float | None = None) -> None:
    """One step of a made-up regression, clipped by sidestep where a limit is given."""
    optimizer.zero_grad()
    model(batch(step)).square().sum().backward()
    if limit is not None:
        sidestep.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()


def loss_of(model: Callable[[Tensor], Tensor], step: int) -> Tensor:
    return model(batch(step)).square().sum()


def gradients_of(model: nn.Module) -> list[Tensor | None]:
    return [entry.grad for entry in model.parameters()]


def weights_of(model: nn.Module) -> list[Tensor]:
    return [entry.detach().clone() for entry in model.parameters()]


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def exact_norm(tensors: Iterable[Tensor | None]) -> float:
    """L2 norm of all elements together, in double precision; None counts as nothing."""
    there = (one.detach() for one in tensors if one is not None)
    return math.sqrt(sum(float(one.to(torch.complex128).abs().square().sum()) for one in there))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All elements one after another, in double precision."""
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Arguments of a run that ships nothing and raises what it would only count; it is finished afterwards."""
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    yield {"dir": tmp_path, "mode": "offline", "project": "test"}
    run = sidestep.active_run()
    if run is not None:
        run.finish(timeout=0)
