"""Curvature against the exact Hessian of a small network; averages of weights against a plain computation."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, offline, small_net, take_step
from torch import Tensor, nn

import sidestep
from sidestep.errors import SidestepWarning, UsageError
from sidestep.probes import curvature, exact_trace, lanczos, timing

__all__ = ["offline"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs), torch.arange(len(inputs)) % 3)


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


# --- back-ends ---------------------------------------------------------------------------------------------------


def plain_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4


def convolutions(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, outputs))


def samples(count: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(1)), torch.arange(count) % classes


def cross_entropy(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(given[0]), given[1])


def exact_of(model: nn.Module, loss: Any, given: Any) -> Tensor:
    """The whole Hessian, by torch."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [entry.shape for entry in model.parameters()]

    def of(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        given_parts = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return loss(lambda inputs: torch.func.functional_call(model, given_parts, (inputs,)), given)

    return torch.autograd.functional.hessian(
        of, torch.cat([entry.detach().reshape(-1) for entry in model.parameters()])
    )


def found_by(folder: dict[str, Any], model: nn.Module, loss: Any, given: Any, **settings: Any) -> dict[str, float]:
    """Curvature after a step that changes nothing, as recorded."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"loss": loss, "batch": given, "every": 1, "budget": 1e9, **settings}
    run = sidestep.watch(model, optimizer, probes={"curvature": settings}, **folder)
    for _ in range(2):
        optimizer.step()
    run.finish(timeout=0)
    values = {tag: read_scalars(folder["dir"], tag) for tag in curvature.TAGS[:4]}
    assert all(list(series) == [0, 1] for series in values.values())
    return {tag.rpartition("/")[2]: series[1] for tag, series in values.items()}


def test_the_trace_of_a_plain_network_is_exact(offline: dict[str, Any]) -> None:
    model, given = plain_network(), samples(128, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        cross_entropy(model, given).backward()
        optimizer.step()
    optimizer.zero_grad()
    matrix = exact_of(model, cross_entropy, given)
    values = torch.linalg.eigvalsh(matrix)
    state = {name: entry.clone() for name, entry in model.state_dict().items()}
    attributes = [set(vars(part)) for part in (*model.modules(), *model.parameters())]
    found = found_by(offline, model, cross_entropy, given, steps=30)
    assert found["trace"] == pytest.approx(float(matrix.trace()), rel=1e-4)
    assert found["trace_se"] == 0.0
    assert found["lambda_max"] == pytest.approx(float(values[-1]), rel=1e-3)
    assert found["lambda_min"] == pytest.approx(float(values[0]), rel=0.05)
    # BackPACK has left nothing in the model.
    assert [set(vars(part)) for part in (*model.modules(), *model.parameters())] == attributes
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(entry.grad is None for entry in model.parameters())
    assert all(torch.equal(entry, state[name]) for name, entry in model.state_dict().items())


@pytest.mark.parametrize(("backend", "is_exact"), [("own", False), ("backpack", True), ("curvlinops", False)])
def test_every_backend_gives_the_figures_of_the_exact_matrix(
    offline: dict[str, Any], backend: str, is_exact: bool
) -> None:
    model, given = plain_network(), samples(32, 10)
    matrix = exact_of(model, cross_entropy, given)
    values, trace = torch.linalg.eigvalsh(matrix), float(matrix.trace())
    found = found_by(offline, model, cross_entropy, given, backend=backend, steps=30)
    assert found["lambda_max"] == pytest.approx(float(values[-1]), rel=1e-3)
    assert found["lambda_min"] == pytest.approx(float(values[0]), rel=0.05)
    assert (found["trace_se"] == 0.0) is is_exact
    assert abs(found["trace"] - trace) <= 4 * found["trace_se"] + 1e-4 * trace


def squared(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
    return nn.MSELoss()(model(given[0]), nn.functional.one_hot(given[1], 4).float())


def binary(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(given[0]), (given[1] > 1).float().unsqueeze(1))


@pytest.mark.parametrize("loss", [cross_entropy, squared, binary])
def test_convolutions_and_other_losses_have_exact_traces(offline: dict[str, Any], loss: Any) -> None:
    model = convolutions(1 if loss is binary else 4)
    found = found_by(offline, model, loss, images(), backend="backpack")
    assert found["trace"] == pytest.approx(float(exact_of(model, loss, images()).trace()), rel=1e-4)
    assert found["trace_se"] == 0.0


class Functional(nn.Module):
    """Calls what curves it as a function, which BackPACK does not see."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.sigmoid(2 * self.first(inputs)))


def penalised(model: nn.Module, given: Any) -> Tensor:
    return cross_entropy(model, given) + 0.01 * sum(entry.square().sum() for entry in model.parameters())


def scaled(model: nn.Module, given: Any) -> Tensor:
    return 1.1 * cross_entropy(model, given)


def smoothed(model: nn.Module, given: Any) -> Tensor:
    return nn.functional.cross_entropy(model(given[0]), given[1], label_smoothing=0.3)


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (Functional, cross_entropy),
        (plain_network, penalised),
        (plain_network, scaled),
        (lambda: nn.Sequential(nn.Linear(16, 4), nn.LayerNorm(4)), cross_entropy),
        (plain_network, lambda model, given: model(given[0]).square().mean()),
    ],
)
def test_what_is_not_allowed_for_an_exact_trace_is_estimated(offline: dict[str, Any], make: Any, loss: Any) -> None:
    model, given = make(), samples(12, 4)
    found = found_by(offline, model, loss, given, vectors=60)
    error = found["trace_se"]
    assert error > 0
    if loss is not penalised:  # its sum over parameters needs a module
        assert abs(found["trace"] - float(exact_of(model, loss, given).trace())) < 5 * error


def test_a_smoothed_loss_has_the_trace_of_the_exact_matrix_whoever_gives_it(offline: dict[str, Any]) -> None:
    model, given = plain_network(), samples(12, 4)
    found = found_by(offline, model, smoothed, given, vectors=60)
    exact = float(exact_of(model, smoothed, given).trace())
    assert abs(found["trace"] - exact) <= 5 * found["trace_se"] + 1e-3 * exact


def test_a_network_that_is_too_large_for_it_is_estimated(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = plain_network(), samples(12, 4)
    assert exact_trace.bytes_needed(cross_entropy, model, given) == (10 + 32) * 12 * 16 * 8
    monkeypatch.setattr(exact_trace, "BYTES_MAX", 1000)
    assert found_by(offline, model, cross_entropy, given)["trace_se"] > 0


def test_curvlinops_gives_the_same_numbers(offline: dict[str, Any]) -> None:
    model, given = plain_network(), samples(32, 10)
    matrix = exact_of(model, cross_entropy, given)
    values = torch.linalg.eigvalsh(matrix)
    found = found_by(offline, model, cross_entropy, given, backend="curvlinops", steps=20, vectors=20)
    assert found["lambda_max"] == pytest.approx(float(values[-1]), rel=1e-3)
    assert found["lambda_min"] == pytest.approx(float(values[0]), rel=0.1)
    assert abs(found["trace"] - float(matrix.trace())) < 4 * found["trace_se"]
    assert all(entry.grad is None for entry in model.parameters())


@pytest.mark.parametrize("backend", ["backpack", "curvlinops"])
def test_a_package_that_is_missing_is_named(
    offline: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature, "find_spec", lambda _: None)
    settings = {"loss": cross_entropy, "batch": samples(12, 4)}
    model = plain_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(UsageError, match=f"pip install {backend}-for-pytorch"):
        sidestep.watch(model, optimizer, probes={"curvature": {**settings, "backend": backend}}, **offline)
    assert found_by(offline, model, cross_entropy, settings["batch"])["trace_se"] > 0


def test_a_backend_that_is_none_is_refused(offline: dict[str, Any]) -> None:
    model = plain_network()
    settings = {"loss": cross_entropy, "backend": "magic"}
    with pytest.raises(UsageError, match="none of: auto, own"):
        sidestep.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), probes={"curvature": settings}, **offline)


@pytest.mark.parametrize(
    ("make", "loss", "said"),
    [
        (network, loss_of, "BackPACK cannot take this network"),
        (plain_network, lambda model, given: 2 * cross_entropy(model, samples(9, 3)), "not that of this loss"),
    ],
)
def test_backpack_that_was_asked_for_and_cannot_is_said(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch, make: Any, loss: Any, said: str
) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"loss": loss, "batch": batch(9), "every": 1, "backend": "backpack"}
    run = sidestep.watch(model, optimizer, probes={"curvature": settings}, **offline)
    with pytest.warns(SidestepWarning, match=said):
        optimizer.step()
    run.finish(timeout=0)
    assert "curvature/trace" not in read_tags(offline["dir"])


# --- averages of weights -----------------------------------------------------------------------------------------


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


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
