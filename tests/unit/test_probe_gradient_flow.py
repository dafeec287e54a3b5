"""The mean absolute gradient of each block: its numbers, and who has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import SmallNet, batch, offline, small_net, take_step

import sidestep

__all__ = ["offline"]

FLOW = "train/gradient_flow/"


def means_of(model: SmallNet) -> dict[str, float]:
    """Plainly: all elements of a block's gradients in one row, their mean size in float64."""
    blocks = {"block_0": model.blocks[0], "block_1": model.blocks[1], "head": model.head}
    rows = {
        name: torch.cat([parameter.grad.double().flatten() for parameter in block.parameters()])
        for name, block in blocks.items()
    }
    rows["root"] = model.temperature.grad.double().flatten()
    return {name: float(row.abs().mean()) for name, row in rows.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_size_of_the_elements_of_a_blocks_gradient(offline: dict[str, Any], dtype: torch.dtype) -> None:
    model = small_net().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sidestep.watch(model, optimizer, probes={"gradient_flow": 1}, **offline)
    model(batch(0).to(dtype)).square().sum().backward()
    wanted = means_of(model)
    optimizer.step()
    run.finish(timeout=0)
    found = {name: read_scalars(offline["dir"], f"{FLOW}{name}_mean")[0] for name in wanted}
    assert found == pytest.approx(wanted, rel=1e-5)


def test_a_parameter_without_a_gradient_does_not_count(offline: dict[str, Any]) -> None:
    model = small_net()
    model.head.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sidestep.watch(model, optimizer, probes={"gradient_flow": 1}, **offline)
    model(batch(0)).square().sum().backward()
    wanted = float(model.head.weight.grad.double().abs().mean())
    optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], f"{FLOW}head_mean") == pytest.approx({0: wanted}, rel=1e-5)


@pytest.mark.parametrize(("given", "has_it"), [({"profile": "jepa"}, True), ({}, False)])
def test_a_run_has_it_by_its_profile(offline: dict[str, Any], given: dict[str, str], *, has_it: bool) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sidestep.watch(model, optimizer, **offline, **given)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert (f"{FLOW}head_mean" in read_tags(offline["dir"])) == has_it


def test_a_run_that_was_begun_with_the_profile_has_it_too(offline: dict[str, Any]) -> None:
    run = sidestep.init(profile="jepa", **offline)
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    assert sidestep.watch(model, optimizer) is run
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert f"{FLOW}head_mean" in read_tags(offline["dir"])


def test_what_a_profile_asks_for_can_be_left_out(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sidestep.watch(model, optimizer, profile="jepa", probes={"gradient_flow": False}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert f"{FLOW}head_mean" not in read_tags(offline["dir"])
