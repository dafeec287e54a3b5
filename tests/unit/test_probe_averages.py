"""The distance of averaged weights from the weights, against a plain computation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars
from support.watched import flat, offline, small_net, take_step
from torch import nn

import sidestep
from sidestep.errors import SidestepWarning

__all__ = ["offline"]


def averages_of(model: nn.Module, kind: str) -> Any:
    other = small_net(seed=5)
    if kind == "AveragedModel":
        averaged = torch.optim.swa_utils.AveragedModel(model)
        averaged.module.load_state_dict(other.state_dict())
        return averaged
    shadow = {name: entry.detach().clone() for name, entry in other.named_parameters()}
    return {
        "module": other,
        "object": SimpleNamespace(module=other),
        "shadow": SimpleNamespace(shadow=shadow),
        "list": SimpleNamespace(shadow_params=list(shadow.values())),
    }[kind]


@pytest.mark.parametrize("kind", ["module", "object", "AveragedModel", "shadow", "list"])
def test_distance_of_an_average_from_the_weights(offline: dict[str, Any], kind: str) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, ema=averages_of(model, kind), **offline)
    take_step(model, optimizer)
    weights, average = flat(model.parameters()), flat(small_net(seed=5).parameters())
    run.finish(timeout=0)
    divergence = {0: float((average - weights).norm() / weights.norm())}
    assert read_scalars(offline["dir"], "ema/param_divergence") == pytest.approx(divergence, rel=1e-4)
    ratio = {0: float(average.norm() / weights.norm())}
    assert read_scalars(offline["dir"], "ema/magnitude_ratio") == pytest.approx(ratio, rel=1e-4)


def test_what_holds_no_averages_is_said_once(offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sidestep.watch(model, optimizer, ema=object(), **offline)
    with pytest.warns(SidestepWarning, match="holds no averages"):
        take_step(model, optimizer)
