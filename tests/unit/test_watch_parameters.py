"""Parameters out of the ordinary: shared, frozen, unused, empty, sparse, replaced, and of every type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars
from support.watched import (
    GLOBAL,
    UPDATE,
    batch,
    exact_norm,
    gradients_of,
    offline,
    sgd,
    small_net,
    take_step,
    weights_of,
)
from torch import Tensor, nn

import sidestep

__all__ = ["offline"]


def test_frozen_unused_shared_and_empty_parameters_do_no_harm(offline: dict[str, Any]) -> None:
    model = small_net()
    model.head.bias.requires_grad_(requires_grad=False)
    model.blocks[1].weight = model.blocks[0].weight  # type: ignore[assignment]
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model.register_parameter("empty", nn.Parameter(torch.ones(0)))
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer)
    take_step(model, optimizer, 1)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL)[1] == pytest.approx(exact_norm(gradients), rel=1e-5)
    assert run.stats["refused"] == {}


def test_parameters_that_are_added_later_are_measured_from_then_on(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.blocks.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer, 0)
    optimizer.add_param_group({"params": model.head.parameters(), "lr": 0.5})
    take_step(model, optimizer, 1)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], "train/gradients/head")) == [1]
    assert list(read_scalars(offline["dir"], "train/updates/head")) == [1]
    assert read_scalars(offline["dir"], "train/lr_1") == {1: 0.5}


def test_a_shared_weight_counts_once(offline: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 6), "head": nn.Linear(6, 10, bias=False)})
    model["head"].weight = model["embedding"].weight  # type: ignore[assignment]
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    tokens = torch.arange(8)
    model["head"](model["embedding"](tokens)).square().sum().backward()
    optimizer.step()
    expected = exact_norm([model["head"].weight.grad])
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({0: expected}, rel=1e-5)
    assert read_scalars(offline["dir"], "train/gradients/embedding") == pytest.approx({0: expected}, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_numbers_of_every_type_are_right(offline: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3, dtype=dtype)
    model.register_parameter("single", nn.Parameter(torch.tensor(2.0, dtype=dtype)))
    model.register_parameter("empty", nn.Parameter(torch.ones(0, dtype=dtype)))
    model.register_buffer("counts", torch.zeros(3, dtype=torch.int8))
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"weights": 1}, **offline)
    before = weights_of(model)
    (model(batch(0).to(dtype)) * model.single).abs().square().sum().backward()
    optimizer.step()
    expected = exact_norm(gradients_of(model))
    moved = exact_norm(new.to(torch.complex128) - old for new, old in zip(weights_of(model), before, strict=True))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({0: expected}, rel=1e-3)
    assert read_scalars(offline["dir"], UPDATE) == pytest.approx({0: moved / exact_norm(before)}, rel=1e-2)
    assert read_scalars(offline["dir"], "weight_norm") == pytest.approx({0: exact_norm(weights_of(model))}, rel=1e-3)


def test_sparse_gradients_count_with_their_rows(offline: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    before = weights_of(model)
    model(torch.tensor([1, 2, 2])).square().sum().backward()
    optimizer.step()
    gradient = model[0].weight.grad
    assert isinstance(gradient, Tensor)
    moved = exact_norm(new - old for new, old in zip(weights_of(model), before, strict=True))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({0: exact_norm([gradient.to_dense()])}, rel=1e-5)
    assert read_scalars(offline["dir"], UPDATE) == pytest.approx({0: moved / exact_norm(before)}, rel=1e-4)


def test_a_layer_that_is_replaced_is_measured_in_its_new_shape(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer, 0)
    model.head = nn.Linear(6, 5)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    take_step(model, optimizer, 1)
    expected = exact_norm(gradients_of(model.head))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/gradients/head")[1] == pytest.approx(expected, rel=1e-5)
