"""Stable ranks against singular values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import offline, small_net, take_step
from torch import Tensor

import sidestep
from sidestep.probes.stable_rank import stable_rank

__all__ = ["offline"]


def exact(matrix: Tensor) -> float:
    values = torch.linalg.svdvals(matrix.detach().double().reshape(matrix.shape[0], -1))
    return float(values.square().sum() / values[0] ** 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 5), (1, 40), (300, 200), (64, 1000), (2000, 100), (32, 16, 3, 3)])
def test_of_matrices_without_structure_it_is_near_from_above(shape: tuple[int, ...]) -> None:
    for seed in range(3):
        matrix = normal(*shape, seed=seed)
        assert exact(matrix) * (1 - 1e-3) < float(stable_rank(matrix)) < exact(matrix) * 1.02


def test_of_matrices_with_few_directions_it_is_exact() -> None:
    matrix = normal(200, 3) @ normal(3, 150, seed=1)
    assert float(stable_rank(matrix)) == pytest.approx(exact(matrix), rel=1e-3)
    assert float(stable_rank(torch.eye(50))) == pytest.approx(50.0, rel=1e-4)
    assert float(stable_rank(torch.outer(torch.arange(1.0, 9.0), torch.ones(5)))) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_it_does_not_depend_on_the_scale(scale: float) -> None:
    assert float(stable_rank(normal(30, 40) * scale)) == pytest.approx(exact(normal(30, 40)), rel=0.01)


def test_a_matrix_of_zeros_has_none_and_one_that_is_no_number_says_so() -> None:
    assert float(stable_rank(torch.zeros(4, 4))) == 0.0
    broken = normal(4, 4)
    broken[0, 0] = torch.nan
    assert math.isnan(float(stable_rank(broken)))


def test_half_precision_is_looked_at_in_float32() -> None:
    matrix = normal(50, 60).to(torch.bfloat16)
    assert float(stable_rank(matrix)) == pytest.approx(exact(matrix), rel=0.01)


def test_blocks_have_the_mean_and_the_least_of_their_matrices(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"every": 1, "stable_rank": True}
    run = sidestep.watch(model, optimizer, blocks={"body": "blocks"}, probes={"weights": settings}, **offline)
    take_step(model, optimizer)
    ranks = [exact(block.weight) for block in model.blocks]
    run.finish(timeout=0)
    found = read_scalars(offline["dir"], "train/weights/stable_rank/body")
    assert found == pytest.approx({0: sum(ranks) / 2}, rel=1e-3)
    assert read_scalars(offline["dir"], "train/weights/stable_rank_min/body") == pytest.approx(
        {0: min(ranks)}, rel=1e-3
    )


def test_they_are_not_computed_unasked(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"weights": 1}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert not {tag for tag in read_tags(offline["dir"]) if "stable_rank" in tag}
