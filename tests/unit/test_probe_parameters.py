"""Probes of gradients, weights and optimizer states: their numbers against a plain recomputation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, flat, offline, small_net, take_step
from torch import Tensor, nn

import sidestep
from sidestep.probes import Placed, sample
from sidestep.probes.gradients import Directions

__all__ = ["offline"]

ZERO, COSINE = "train/gradients/zero_share", "train/gradients/cosine_previous"


def gradient_of(model: nn.Module) -> Tensor:
    return flat([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


# --- gradients ---------------------------------------------------------------------------------------------------


def test_zeros_and_direction_of_the_gradient(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=2, **offline)
    zeros: dict[int, float] = {}
    cosines: dict[int, float] = {}
    before: Tensor | None = None
    for step in range(7):
        optimizer.zero_grad()
        inputs = batch(step)
        inputs[:, 0] = 0.0  # a column of the first gradient is zero
        model(inputs).square().sum().backward()
        if step % 2 == 0:
            now = gradient_of(model)
            zeros[step] = float((now == 0).double().mean())
            if before is not None:
                cosines[step] = float(nn.functional.cosine_similarity(now, before, dim=0))
            before = now
        optimizer.step()
    run.finish(timeout=0)
    assert min(zeros.values()) > 0
    assert read_scalars(offline["dir"], ZERO) == pytest.approx(zeros, rel=1e-5)
    assert read_scalars(offline["dir"], COSINE) == pytest.approx(cosines, rel=1e-4)
    assert read_scalars(offline["dir"], "train/gradients/nonfinite_count") == dict.fromkeys((0, 2, 4, 6), 0.0)


def test_a_parameter_without_a_gradient_has_no_zeros(offline: dict[str, Any]) -> None:
    model = small_net()
    model.register_parameter("unused", nn.Parameter(torch.ones(100)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], ZERO)[0] == pytest.approx(float((gradient_of(model) == 0).double().mean()))


def test_direction_estimated_from_a_sample_is_near_the_exact_one() -> None:
    parameter, small = nn.Parameter(torch.zeros(300, 200)), nn.Parameter(torch.zeros(50))
    generator = torch.Generator().manual_seed(3)
    directions = Directions()
    part: Any = type("P", (), {"placed": [Placed(parameter, 0), Placed(small, 0)], "version": 1})()
    exact: list[Tensor] = []
    base = torch.randn(60050, generator=generator)
    for _ in range(2):
        whole = base + torch.randn(60050, generator=generator)
        whole[::3] = 0.0
        parameter.grad, small.grad = whole[:60000].reshape(300, 200), whole[60000:]
        directions.take(part)
        exact.append(whole.double())
    ((zeros, size, inner, square, before),) = (entry.tolist() for entry in directions.sums(torch.device("cpu")))
    assert size == 60050
    assert zeros / size == pytest.approx(1 / 3, abs=0.06)
    cosine = inner / math.sqrt(square * before)
    assert cosine == pytest.approx(float(nn.functional.cosine_similarity(*exact, dim=0)), abs=0.1)


def test_gradients_that_are_not_finite_are_counted_by_parameter(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    model(batch(0)).sum().backward()
    model.head.bias.grad[0] = math.nan  # type: ignore[index]
    model.head.weight.grad[0, 0] = math.inf  # type: ignore[index]
    optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/gradients/nonfinite_count") == {0: 2.0}


def test_norms_of_single_parameters_are_given_on_demand(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, probes={"gradients": {"parameters": True}}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        value = read_scalars(offline["dir"], f"train/gradients_of/{name}")[0]
        assert value == pytest.approx(float(parameter.grad.double().norm()), rel=1e-5)


def test_sparse_gradients_are_left_out_of_the_sample(offline: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    model(torch.tensor([1, 1, 7])).sum().backward()
    optimizer.step()
    run.finish(timeout=0)
    dense = flat([parameter.grad for parameter in model[1].parameters() if parameter.grad is not None])
    assert read_scalars(offline["dir"], ZERO)[0] == pytest.approx(float((dense == 0).double().mean()))


# --- weights -----------------------------------------------------------------------------------------------------


def test_norms_maximum_and_distance_of_weights(offline: dict[str, Any]) -> None:
    model = small_net()
    model.head.bias.requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = flat([entry for entry in model.parameters() if entry.requires_grad])
    run = sidestep.watch(model, optimizer, probes={"weights": 1}, **offline)
    expected: dict[str, dict[int, float]] = {name: {} for name in ("whole", "head", "absmax", "distance")}
    for step in range(3):
        take_step(model, optimizer, step)
        whole, head = flat(list(model.parameters())), flat(list(model.head.parameters()))
        moved = flat([entry for entry in model.parameters() if entry.requires_grad]) - start
        expected["whole"][step], expected["head"][step] = float(whole.norm()), float(head.norm())
        expected["absmax"][step], expected["distance"][step] = (
            float(whole.abs().max()),
            float(moved.norm() / start.norm()),
        )
    run.finish(timeout=0)
    tags = ("weight_norm", "train/weights/head", "train/weights/absmax", "train/weights/distance_from_start")
    for tag, values in zip(tags, expected.values(), strict=True):
        assert read_scalars(offline["dir"], tag) == pytest.approx(values, rel=1e-4), tag


def test_weights_of_several_types_are_taken_together(offline: dict[str, Any]) -> None:
    model = small_net()
    model.head.to(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, **offline)
    optimizer.step()
    run.finish(timeout=0)
    whole = flat(list(model.parameters()))
    assert read_scalars(offline["dir"], "weight_norm") == pytest.approx({0: float(whole.norm())}, rel=1e-5)
    assert read_scalars(offline["dir"], "train/weights/distance_from_start") == {0: 0.0}


# --- optimizer states --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_moments_of_adam(offline: dict[str, Any], fused: bool) -> None:
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.95), fused=fused)
    run = sidestep.watch(model, optimizer, probes={"moments": 1}, **offline)
    first: dict[int, float] = {}
    second: dict[int, float] = {}
    for step in range(3):
        take_step(model, optimizer, step)
        first[step] = float(flat([optimizer.state[entry]["exp_avg"] for entry in model.parameters()]).norm())
        second[step] = float(flat([optimizer.state[entry]["exp_avg_sq"] for entry in model.parameters()]).max())
    run.finish(timeout=0)
    size = {step: 0.01 * math.sqrt(1 - 0.95 ** (step + 1)) / (1 - 0.8 ** (step + 1)) for step in range(3)}
    assert read_scalars(offline["dir"], "train/optimizer/first_moment_norm") == pytest.approx(first, rel=1e-5)
    assert read_scalars(offline["dir"], "train/optimizer/second_moment_max") == pytest.approx(second, rel=1e-5)
    assert read_scalars(offline["dir"], "train/optimizer/corrected_step_size") == pytest.approx(size, rel=1e-5)
    assert read_scalars(offline["dir"], "train/optimizer/momentum") == {0: 0.8}
    assert read_scalars(offline["dir"], "train/optimizer/beta2") == {0: 0.95}


def test_momentum_of_sgd(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run = sidestep.watch(model, optimizer, probes={"moments": 1}, **offline)
    take_step(model, optimizer)
    momentum = flat([optimizer.state[entry]["momentum_buffer"] for entry in model.parameters()])
    run.finish(timeout=0)
    value = read_scalars(offline["dir"], "train/optimizer/first_moment_norm")
    assert value == pytest.approx({0: float(momentum.norm())}, rel=1e-5)
    assert read_scalars(offline["dir"], "train/optimizer/momentum") == {0: 0.9}


def test_an_optimizer_that_remembers_nothing_has_no_moments(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"moments": 1}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert not {tag for tag in read_tags(offline["dir"]) if "moment_" in tag}


def test_the_scale_of_mixed_precision(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    run = sidestep.watch(model, optimizer, every=1, scaler=scaler, **offline)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(model(batch(step)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/amp/scale") == {0: 2048.0, 1: 4096.0, 2: 8192.0}


def test_forward_passes_of_a_step_are_counted(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    for _ in range(3):
        for part in range(4):
            model(batch(part)).sum().backward()
        optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "perf/micro_batches_per_step") == {1: 4.0, 2: 4.0}


def test_a_sample_of_gradients_forgets_those_that_were_there() -> None:
    parameter = nn.Parameter(torch.ones(5))
    (taken,) = sample.coordinates([Placed(parameter, 0)])
    rows = taken.rows()
    parameter.grad = torch.ones(5)
    assert taken.read_gradients(rows) == []
    parameter.grad = None
    assert taken.read_gradients(rows) == [0]
    assert rows.whole.tolist() == [0.0] * 5
