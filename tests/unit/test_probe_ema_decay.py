"""Decay and half-life of averaged weights, where the average tells them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import offline, small_net, take_step
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import sidestep
from sidestep.probes.ema import decay_of

__all__ = ["offline"]


@pytest.mark.parametrize(
    ("given", "decay"),
    [
        (SimpleNamespace(decay=0.99), 0.99),
        (SimpleNamespace(beta=0.95), 0.95),
        (SimpleNamespace(decay=0.9999, cur_decay_value=0.5), 0.5),
        (SimpleNamespace(decay=torch.tensor(0.5)), 0.5),
        (SimpleNamespace(decay=torch.tensor(0.5, device="meta")), None),  # a device would have to be waited for
        (SimpleNamespace(decay=lambda step: 0.9), None),
        (object(), None),
    ],
)
def test_an_object_tells_its_decay_by_an_attribute(given: Any, decay: float | None) -> None:
    assert decay_of(given) == decay


@pytest.mark.parametrize(
    ("functions", "decay"),
    [
        ({"multi_avg_fn": get_ema_multi_avg_fn(0.98)}, 0.98),
        ({"avg_fn": get_ema_avg_fn(0.97)}, 0.97),
        ({"multi_avg_fn": get_swa_multi_avg_fn()}, None),
        ({}, None),
    ],
)
def test_an_averaged_model_of_torch_has_it_in_its_function(functions: dict[str, Any], decay: float | None) -> None:
    assert decay_of(AveragedModel(small_net(), **functions)) == decay


def test_the_half_life_is_the_number_of_updates_after_which_a_weight_counts_half(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    run = sidestep.watch(model, optimizer, ema=average, probes={"ema": 1}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "ema/momentum") == {0: 0.999}
    (half_life,) = read_scalars(offline["dir"], "ema/half_life_steps").values()
    assert half_life == pytest.approx(692.8, abs=0.4)
    assert math.exp(-half_life * (1 - 0.999)) == pytest.approx(0.5)


def test_an_average_without_a_decay_has_no_half_life(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, ema=AveragedModel(model), probes={"ema": 1}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    tags = read_tags(offline["dir"])
    assert "ema/param_divergence" in tags
    assert not tags & {"ema/momentum", "ema/half_life_steps"}
