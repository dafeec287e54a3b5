"""Backward passes: where their time goes, and gradients by kind of parameter."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, offline, small_net, take_step
from torch import Tensor, nn

import sidestep
from sidestep.errors import SidestepWarning, UsageError
from sidestep.probes import backward, timing
from sidestep.wrapping import Wrappings

__all__ = ["offline"]

LOSS, UPSTREAM, UPDATE, TOTAL, RATE = backward.TAGS
KINDS = {"phase": "*.phase", "magnitude": "*.magnitude"}


class Clock:
    """A clock that goes on when it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (timing, backward):
            monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def passes(self, milliseconds: float) -> Any:
        """A hook in which so much time passes."""

        def hook(*_call: Any) -> None:
            self.now += milliseconds / 1e3

        return hook


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Slow(torch.autograd.Function):
    """Does nothing, for so many milliseconds forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, forward: float, back: float) -> Tensor:
        ctx.save = (clock, back)
        clock.passes(forward)()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        clock, back = ctx.save
        clock.passes(back)()
        return gradient, None, None, None


class SlowNet(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Slow.apply(self.inner(x), self.clock, 7.0, 5.0)


class SlowSGD(torch.optim.SGD):
    clock: Clock

    def step(self, closure: Any = None) -> Any:
        self.clock.passes(11.0)()
        return super().step(closure)


def slow(clock: Clock) -> tuple[SlowNet, SlowSGD]:
    model = SlowNet(clock)
    optimizer = SlowSGD(model.parameters(), lr=0.01)
    optimizer.clock = clock
    return model, optimizer


def loss_of(model: SlowNet, step: int) -> Tensor:
    output = model(batch(step))
    return Slow.apply(output.square().sum(), model.clock, 2.0, 3.0)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_backward_pass_is_split_into_loss_upstream_gradient_and_update(
    offline: dict[str, Any], clock: Clock, micro_batches: int
) -> None:
    model, optimizer = slow(clock)
    run = sidestep.watch(model, optimizer, every=1, probes={"backward": 1}, **offline)
    for step in range(4):
        optimizer.zero_grad()
        for _ in range(micro_batches):
            loss_of(model, step).backward()
        optimizer.step()
    run.finish(timeout=0)
    steps, n = (1, 2, 3), micro_batches
    # 2 ms of the loss forward, 3 ms back to the outputs, 5 ms through the model, 11 ms of the update.
    for tag, milliseconds in ((LOSS, 2 * n), (UPSTREAM, 3 * n), (UPDATE, 11), (TOTAL, 10 * n + 11)):
        assert read_scalars(offline["dir"], tag) == pytest.approx(dict.fromkeys(steps, float(milliseconds))), tag
    # A step takes 17 ms a micro-batch, 7 of them forward, and 11 ms of the update.
    rate = n / ((17 * n + 11) / 1e3)
    assert read_scalars(offline["dir"], RATE) == pytest.approx(dict.fromkeys(steps[1:], rate))


def test_several_forward_passes_of_one_backward_pass_count_from_the_last(offline: dict[str, Any], clock: Clock) -> None:
    model, optimizer = slow(clock)
    run = sidestep.watch(model, optimizer, every=1, probes=["backward"], **offline)
    for step in range(2):
        optimizer.zero_grad()
        (loss_of(model, step) + loss_of(model, step + 7)).backward()
        optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], LOSS) == pytest.approx({1: 2.0})
    assert read_scalars(offline["dir"], TOTAL)[1] > 2 + 3 + 5 + 11


def test_a_gradient_asked_for_otherwise_leaves_the_update_alone(offline: dict[str, Any], clock: Clock) -> None:
    model, optimizer = slow(clock)
    run = sidestep.watch(model, optimizer, every=1, probes=["backward"], **offline)
    for step in range(3):
        gradients = torch.autograd.grad(loss_of(model, step), list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], UPDATE) == pytest.approx({1: 11.0, 2: 11.0})
    assert read_scalars(offline["dir"], TOTAL) == {}


def test_nothing_is_wrapped_between_samples_nor_after_the_run(offline: dict[str, Any]) -> None:
    original = torch.autograd.backward
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"backward": 2}, **offline)
    seen: list[bool] = []
    for step in range(5):
        seen.append(torch.autograd.backward is not original)
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert seen == [False, True, True, False, True]  # the first step is left to a model that compiles itself
    assert torch.autograd.backward is original


def test_a_backward_pass_that_capture_has_wrapped_is_timed_as_well(
    offline: dict[str, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = Wrappings()
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)  # put back, whatever happens
    captured.wrap([torch.autograd], "backward", partial)
    wrapped = torch.autograd.backward
    model, optimizer = slow(clock)
    run = sidestep.watch(model, optimizer, every=1, probes=["backward"], **offline)
    for step in range(2):
        loss_of(model, step).backward()
        optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], UPSTREAM) == pytest.approx({1: 3.0})
    assert torch.autograd.backward is wrapped


# --- kinds ---------------------------------------------------------------------------------------------------------


class Polar(nn.Module):
    """Weights of a magnitude and a phase each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.rand(outputs, inputs) * 6)
        self.magnitude = nn.Parameter(torch.rand(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.magnitude * self.phase.cos()).T


def polar_net(width: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Polar(6, width), nn.Tanh(), Polar(width, 3), nn.LayerNorm(3))


def test_norms_and_correlation_of_kinds_are_those_of_numpy(offline: dict[str, Any]) -> None:
    model = polar_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"kinds": {"every": 1, **KINDS}}, **offline)
    norms: dict[str, dict[int, float]] = {"phase": {}, "magnitude": {}}
    correlations: dict[int, float] = {}
    for step in range(3):
        optimizer.zero_grad()
        model(batch(step))[:, 0].square().sum().backward()
        gradients = {
            kind: np.concatenate([getattr(model[at], kind).grad.double().numpy().ravel() for at in (0, 2)])
            for kind in norms
        }
        for kind, gradient in gradients.items():
            norms[kind][step] = float(np.linalg.norm(gradient))
        correlations[step] = float(np.corrcoef(np.abs(gradients["phase"]), np.abs(gradients["magnitude"]))[0, 1])
        optimizer.step()
    run.finish(timeout=0)
    for kind, expected in norms.items():
        assert read_scalars(offline["dir"], f"train/kinds/{kind}/gradient_norm") == pytest.approx(expected, rel=1e-5)
    found = read_scalars(offline["dir"], "train/kinds/phase_magnitude/gradient_correlation")
    assert found == pytest.approx(correlations, abs=1e-5)


def test_a_correlation_of_large_parameters_is_estimated_from_a_sample(offline: dict[str, Any]) -> None:
    model = polar_net(width=4000)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    run = sidestep.watch(model, optimizer, every=1, probes={"kinds": KINDS}, **offline)
    model(batch(0))[:, 0].square().sum().backward()
    both = [np.concatenate([np.abs(getattr(model[at], kind).grad.numpy().ravel()) for at in (0, 2)]) for kind in KINDS]
    optimizer.step()
    run.finish(timeout=0)
    found = read_scalars(offline["dir"], "train/kinds/phase_magnitude/gradient_correlation")
    assert found == pytest.approx({0: np.corrcoef(*both)[0, 1]}, abs=0.1)


def test_kinds_that_have_no_partner_have_norms_and_a_flat_one_no_correlation(offline: dict[str, Any]) -> None:
    model = polar_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probes = {"kinds": {**KINDS, "rest": ["3.weight", "3.bias"]}}
    run = sidestep.watch(model, optimizer, every=1, probes=probes, **offline)
    for module in (model[0], model[2]):
        module.phase.grad, module.magnitude.grad = torch.ones_like(module.phase), torch.rand_like(module.phase)
    model[3].weight.grad = torch.tensor([3.0, 0.0, 4.0])
    optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/kinds/rest/gradient_norm") == {0: 5.0}
    assert read_scalars(offline["dir"], "train/kinds/phase_magnitude/gradient_correlation") == {0: 0.0}
    tags = {tag for tag in read_tags(offline["dir"]) if tag.startswith("train/kinds/")}
    assert len(tags) == 4


def test_a_kind_that_no_parameter_is_of_is_said_and_training_goes_on(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="needs them by name"):
        sidestep.watch(small_net(), torch.optim.SGD(small_net().parameters()), probes=["kinds"], **offline)
    monkeypatch.setenv("SIDESTEP_STRICT", "0")
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.warns(SidestepWarning, match="no parameter is of the kinds phase"):
        run = sidestep.watch(model, optimizer, every=1, probes={"kinds": {"phase": "*.phase"}}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert list(read_scalars(Path(offline["dir"]), "train/gradients/global_norm")) == [0]
