"""Curvature against the exact Hessian of a small network."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.curved import loss_of, network
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, offline, take_step
from torch import Tensor, nn

import sidestep
from sidestep.errors import SidestepWarning, UsageError
from sidestep.probes import curvature, lanczos, timing

__all__ = ["offline"]


def exact_hessian(model: nn.Module, inputs: Tensor) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    sizes = [entry.numel() for entry in model.parameters()]
    shapes = [entry.shape for entry in model.parameters()]
    double = network().double()
    double.load_state_dict(model.state_dict())
    double.eval()

    def of(flat: Tensor) -> Tensor:
        parts = {name: part.view(shape) for name, part, shape in zip(names, flat.split(sizes), shapes, strict=True)}
        output = torch.func.functional_call(double, parts, (inputs.double(),))
        return nn.functional.cross_entropy(output, torch.arange(len(inputs)) % 3)

    flat = torch.cat([entry.detach().double().reshape(-1) for entry in model.parameters()])
    return torch.autograd.functional.hessian(of, flat)


def test_both_ends_and_the_trace_are_those_of_the_exact_matrix(offline: dict[str, Any]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = batch(9)
    settings = {"loss": loss_of, "batch": inputs, "every": 1, "steps": 20, "budget": 1e9}
    run = sidestep.watch(model, optimizer, probes={"curvature": settings}, **offline)
    model(batch(0)).square().sum().backward()
    optimizer.step()
    matrix = exact_hessian(model, inputs)
    values = torch.linalg.eigvalsh(matrix)
    run.finish(timeout=0)
    found = {tag: read_scalars(offline["dir"], tag)[0] for tag in curvature.TAGS}
    assert found["curvature/lambda_max"] == pytest.approx(float(values[-1]), rel=1e-3)
    assert found["curvature/lambda_min"] == pytest.approx(float(values[0]), rel=1e-2, abs=1e-4)
    assert abs(found["curvature/trace"] - float(matrix.trace())) < 4 * found["curvature/trace_se"] + 1e-4
    hutchinson = (2 * (matrix - matrix.diag().diag()).square().sum() / 10).sqrt()
    assert found["curvature/trace_se"] < 1.5 * float(hutchinson)
    assert found["perf/curvature_time_ms"] > 0


def test_the_end_of_largest_magnitude_may_be_the_lower_one() -> None:
    values = torch.linspace(-5.0, 3.0, 40)
    found = lanczos.spectrum(lambda vector: values * vector, 40, 30, torch.Generator().manual_seed(0))
    most, least = lanczos.ends(found.diagonal.double(), found.beside.double())
    assert (most, least) == (pytest.approx(3.0, rel=1e-3), pytest.approx(-5.0, rel=1e-3))
    assert torch.allclose(found.basis @ found.basis.T, torch.eye(30), atol=1e-5)


def test_standard_errors_of_the_trace_are_as_large_as_its_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(200, 200, generator=generator) / 14
    matrix = factor + factor.T
    deviations: list[float] = []
    for seed in range(60):
        generator.manual_seed(seed)
        found = lanczos.spectrum(lambda vector: matrix @ vector, 200, 5, generator)
        rest = lanczos.remainder(lambda vector: matrix @ vector, found.basis, 20, generator)
        trace, error = lanczos.whole_trace(found.diagonal, rest)
        deviations.append((trace - float(matrix.trace())) / error)
    spread = torch.tensor(deviations).square().mean().sqrt().item()
    assert 0.75 < spread < 1.35  # the standard error of this spread is 1 / sqrt(120)


def test_more_steps_than_parameters_give_the_whole_spectrum() -> None:
    values = torch.tensor([1.0, 2.0, 7.0])
    found = lanczos.spectrum(lambda vector: values * vector, 3, 10, torch.Generator().manual_seed(0))
    assert lanczos.ends(found.diagonal, found.beside) == (pytest.approx(7.0), pytest.approx(1.0))
    assert found.diagonal.sum().item() == pytest.approx(10.0)


def test_a_loss_that_is_linear_has_no_curvature() -> None:
    parameter = nn.Parameter(torch.ones(4))
    product, size = lanczos.hessian(parameter.sum(), [parameter])
    assert product(torch.ones(size)).tolist() == [0.0] * 4


def test_training_does_not_notice(offline: dict[str, Any]) -> None:
    def noisy(model: nn.Module, inputs: Tensor) -> Tensor:
        return loss_of(model, inputs + 0.1 * torch.randn_like(inputs) * random.random() * np.random.rand())  # noqa: NPY002

    def train(*, watched: bool) -> list[Any]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        model = network()
        model[2].eval()  # a frozen normalisation stays frozen
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        if watched:
            settings = {"loss": noisy, "batch": batch(9), "every": 1, "steps": 3, "vectors": 2, "budget": 1e9}
            sidestep.watch(model, optimizer, probes={"curvature": settings}, **offline)
        for step in range(6):
            loss_of(model, batch(step)).backward()
            optimizer.step()
            if step % 2:
                optimizer.zero_grad()
        assert [module.training for module in model] == [True, True, False, True, True]
        gradients = [entry.grad for entry in model.parameters() if entry.grad is not None]
        return [*model.state_dict().values(), *gradients, torch.rand(1), random.random(), np.random.rand()]  # noqa: NPY002

    plain, watched = train(watched=False), train(watched=True)
    assert len(plain) == len(watched)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(plain, watched, strict=True))
    assert list(read_scalars(offline["dir"], "curvature/lambda_max")) == list(range(6))


def test_attention_can_be_differentiated_twice(offline: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {
        "loss": lambda model, inputs: model(inputs).square().mean(),
        "batch": torch.randn(2, 5, 8),
        "steps": 3,
        "vectors": 0,
    }
    run = sidestep.watch(model, optimizer, probes={"curvature": settings}, **offline)
    optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "curvature/lambda_max")[0] > 0
    assert "curvature/trace" not in read_tags(offline["dir"])


def test_a_budget_leaves_samples_out(offline: dict[str, Any]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"loss": loss_of, "batch": batch(9), "every": 1, "budget": 1e-6}
    run = sidestep.watch(model, optimizer, probes={"curvature": settings}, **offline)
    for step in range(5):
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], "curvature/lambda_max")) == [0]


def test_what_the_first_sample_takes_to_load_is_not_held_against_the_next(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    calls = [100.0]  # seconds of the first call; each one after it takes a millisecond

    def slow(model: nn.Module, inputs: Tensor) -> Tensor:
        clock[0] += calls.pop() if calls else 1e-3
        return loss_of(model, inputs)

    monkeypatch.setattr(curvature, "mark", lambda _device: timing.Mark(clock[0], None))
    monkeypatch.setattr(curvature, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"loss": slow, "batch": batch(9), "every": 1, "backend": "own"}
    run = sidestep.watch(model, optimizer, probes={"curvature": settings}, **offline)
    for step in range(7):
        take_step(model, optimizer, step)
        clock[0] += 0.02  # so that a sample of 1 ms may come with each third step, at two percent
    run.finish(timeout=0)
    found = read_scalars(offline["dir"], "perf/curvature_time_ms")
    assert list(found) == [0, 3, 6]
    assert list(found.values()) == pytest.approx([100_001.0, 1.0, 1.0])


def test_a_loss_that_fails_switches_curvature_off(offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"loss": lambda _model, _batch: 1 / 0, "every": 1}
    run = sidestep.watch(model, optimizer, probes={"curvature": settings}, **offline)
    with pytest.warns(SidestepWarning, match="'curvature' is switched off: report raised ZeroDivisionError"):
        take_step(model, optimizer)
    assert model.training
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert run.stats["refused"] == {"probe": 1}


def test_curvature_without_a_loss_is_refused_at_once(offline: dict[str, Any]) -> None:
    model = network()
    with pytest.raises(UsageError, match="loss="):
        sidestep.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), probes={"curvature": True}, **offline)
