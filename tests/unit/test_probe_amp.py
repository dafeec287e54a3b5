"""Mixed precision on the CPU: the scale after each step, and the steps that were left out before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, offline, small_net

import sidestep
from sidestep.probes import amp

__all__ = ["offline"]


def train(
    used: torch.amp.GradScaler, overflows: Sequence[bool], offline: dict[str, Any], *, fused: bool = False, **more: Any
) -> None:
    """Steps of a small network, whose gradients are infinite where said so."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, fused=fused)
    run = sidestep.watch(model, optimizer, **offline, **more)
    for number, is_infinite in enumerate(overflows):
        optimizer.zero_grad()
        used.scale(model(batch(number)).square().mean()).backward()
        if is_infinite:
            model.head.bias.grad.fill_(math.inf)
        used.step(optimizer)
        used.update()
    run.finish(timeout=0)


def scaler(kind: type[torch.amp.GradScaler] = torch.amp.GradScaler, **more: Any) -> torch.amp.GradScaler:
    return kind("cpu", init_scale=1024.0, **more)


def test_steps_left_out_count_with_the_step_that_follows_them(offline) -> None:
    train(scaler(), [False, True, True, False, False, True, False], offline)
    assert read_scalars(offline["dir"], "train/amp/skipped") == {0: 0.0, 1: 2.0, 2: 0.0, 3: 1.0}
    assert read_scalars(offline["dir"], "train/amp/scale") == {0: 1024.0, 1: 256.0, 2: 256.0, 3: 128.0}


def test_steps_left_out_at_the_beginning_count_too(offline) -> None:
    train(scaler(), [True, True, True, False], offline)
    assert read_scalars(offline["dir"], "train/amp/skipped") == {0: 3.0}


def test_a_step_that_a_fused_optimizer_leaves_out_has_a_number(offline) -> None:
    train(scaler(), [False, True, False], offline, fused=True)
    assert read_scalars(offline["dir"], "train/amp/skipped") == {0: 0.0, 1: 1.0, 2: 0.0}


def test_a_scale_that_grows_is_no_step_left_out(offline) -> None:
    train(scaler(growth_interval=1), [False, False], offline)
    assert read_scalars(offline["dir"], "train/amp/scale") == {0: 2048.0, 1: 4096.0}
    assert read_scalars(offline["dir"], "train/amp/skipped") == {0: 0.0, 1: 0.0}


def test_of_a_scaler_that_was_handed_over_alone(offline) -> None:
    mine = scaler()
    train(scaler(), [False], offline, scaler=mine)
    assert not {tag for tag in read_tags(offline["dir"]) if "amp" in tag}


def test_a_scaler_of_one_s_own_counts_once(offline) -> None:
    class Mine(torch.amp.GradScaler):
        def update(self, new_scale: Any = None) -> None:
            super().update(new_scale)

    mine = scaler(Mine)
    train(mine, [False, True, False], offline, scaler=mine)
    assert read_scalars(offline["dir"], "train/amp/skipped") == {0: 0.0, 1: 1.0}


def test_a_scaler_that_is_off_tells_nothing(offline) -> None:
    train(torch.amp.GradScaler("cpu", enabled=False), [False, False], offline)
    assert not {tag for tag in read_tags(offline["dir"]) if "amp" in tag}


@pytest.mark.parametrize("probes", [None, {"amp": False}])
def test_update_is_put_back_with_the_end_of_the_run(offline, probes: Any) -> None:
    before = torch.amp.GradScaler.update
    train(scaler(), [False], offline, probes=probes)
    assert torch.amp.GradScaler.update is before
    assert ("train/amp/scale" in read_tags(offline["dir"])) == (probes is None)


def test_a_training_is_the_same_with_and_without(offline) -> None:
    results = []
    for probes in ({"amp": False}, None):
        one = scaler()
        train(one, [False, True, False], offline, probes=probes)
        results.append(one.state_dict())
    assert results[0] == results[1]


def test_on_a_device_both_numbers_stay_tensors_until_they_travel(offline, monkeypatch: pytest.MonkeyPatch) -> None:
    # As it is where reading the scale would wait: told apart by the type alone.
    monkeypatch.setattr(amp, "scale_of", lambda scaler: [scaler._scale.clone().reshape(())])
    added: list[torch.Tensor] = []
    monkeypatch.setattr(amp.Series, "add", lambda _, values: added.append(values))
    train(scaler(), [False, True, True, False], offline)
    assert [values.tolist() for values in added] == [[1024.0, 0.0], [256.0, 2.0]]
    assert all(values.dtype == torch.float32 for values in added)
