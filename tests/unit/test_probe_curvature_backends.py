"""Who computes curvature: each back-end gives what the exact matrix has, and says what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.curved import loss_of, network
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, offline
from torch import Tensor, nn

import sidestep
from sidestep.errors import SidestepWarning, UsageError
from sidestep.probes import curvature, exact_trace

__all__ = ["offline"]


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
