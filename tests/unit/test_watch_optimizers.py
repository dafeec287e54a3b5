"""Optimizers out of the ordinary, or several of them: one step of the training gives one sample, and it is right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars
from support.watched import (
    GLOBAL,
    PASSES,
    UPDATE,
    SmallNet,
    batch,
    exact_norm,
    gradients_of,
    loss_of,
    offline,
    sgd,
    small_net,
    take_step,
    weights_of,
)
from torch import Tensor, nn

import sidestep

__all__ = ["offline"]


def test_gradients_that_a_closure_makes_are_measured_after_the_step(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(batch(0)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({0: exact_norm(gradients)}, rel=1e-5)


def test_optimizers_that_share_a_network_give_one_sample(offline: dict[str, Any]) -> None:
    model = small_net()
    matrices = torch.optim.SGD([p for p in model.parameters() if p.ndim == 2], lr=0.01)
    others = torch.optim.SGD([p for p in model.parameters() if p.ndim != 2], lr=0.02)
    run = sidestep.watch(model, [matrices, others], every=2, **offline)
    expected: dict[int, float] = {}
    head: dict[int, float] = {}
    for step in range(3):
        model.zero_grad()
        model(batch(step)).square().sum().backward()
        if step % 2 == 0:
            expected[step] = exact_norm([p.grad for p in model.parameters() if p.grad is not None])
            head[step] = exact_norm([p.grad for p in model.head.parameters() if p.grad is not None])
        matrices.step()
        others.step()
    run.finish(timeout=0)
    assert run.step == 2
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)
    assert read_scalars(offline["dir"], "train/gradients/head") == pytest.approx(head, rel=1e-5)
    assert read_scalars(offline["dir"], "train/lr_1") == {0: 0.02, 2: 0.02}


def test_an_optimizer_that_steps_before_the_first_one_belongs_to_the_coming_step(offline: dict[str, Any]) -> None:
    model = nn.ModuleDict({"generator": SmallNet(), "critic": SmallNet()})
    generator, critic = sgd(model["generator"]), sgd(model["critic"])
    run = sidestep.watch(model, [generator, critic], every=2, **offline)
    expected: dict[int, float] = {}
    for step in range(4):
        take_step(model["critic"], critic, step)
        expected[step] = exact_norm([p.grad for p in model["critic"].parameters() if p.grad is not None])
        take_step(model["generator"], generator, step)
    run.finish(timeout=0)
    del expected[1], expected[3]
    assert read_scalars(offline["dir"], "train/gradients/critic") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("critic_steps", [1, 3, 0])
def test_an_optimizer_that_steps_more_often_or_never_counts_nothing(offline: dict[str, Any], critic_steps: int) -> None:
    model = nn.ModuleDict({"generator": SmallNet(), "critic": SmallNet()})
    generator, critic = sgd(model["generator"]), sgd(model["critic"])
    run = sidestep.watch(model, [generator, critic], every=2, **offline)
    for step in range(5):
        for _ in range(critic_steps):
            take_step(model["critic"], critic, step)
        take_step(model["generator"], generator, step)
    run.finish(timeout=0)
    assert run.step == 4
    reported = [0, 2, 4] if critic_steps else [0, 2]  # the last one still waited for the critic
    assert list(read_scalars(offline["dir"], "train/gradients/generator")) == reported
    assert list(read_scalars(offline["dir"], "train/gradients/critic")) == (reported if critic_steps else [])


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it scripts functions of its own
    from torch.distributed.optim import _apply_optimizer_in_backward, _get_in_backward_optimizers


def update_in_backward(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizers = {entry: torch.optim.SGD([entry], lr=0.01) for entry in model.parameters()}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad(set_to_none=True)

    for entry in model.parameters():
        entry.register_post_accumulate_grad_hook(update)
    return [*optimizers.values()]


def apply_in_backward(model: nn.Module) -> list[torch.optim.Optimizer]:
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.01})
    return _get_in_backward_optimizers(model)


@pytest.mark.parametrize("way", [update_in_backward, apply_in_backward])
def test_optimizers_that_step_while_going_backward_give_one_sample(
    offline: dict[str, Any], way: Callable[[nn.Module], list[torch.optim.Optimizer]]
) -> None:
    alone = small_net()
    optimizer = sgd(alone)
    expected: dict[int, tuple[float, float]] = {}
    for step in range(4):
        before = weights_of(alone)
        take_step(alone, optimizer, step)
        moved = exact_norm(new - old for new, old in zip(weights_of(alone), before, strict=True))
        expected[step] = exact_norm(gradients_of(alone)), moved / exact_norm(before)
    model = small_net()
    run = sidestep.watch(model, way(model), every=1, **offline)
    for step in range(4):
        loss_of(model, step).backward()
    run.finish(timeout=0)
    assert run.step == 3
    for tag, number in ((GLOBAL, 0), (UPDATE, 1)):
        found = read_scalars(offline["dir"], tag)
        assert found == pytest.approx({step: expected[step][number] for step in found}, rel=1e-4)
        # The last waits for an optimizer that has stepped ahead of the first one, where there is any.
        assert set(found) >= {0, 1, 2}


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_gradient_is_recorded_unscaled(offline: dict[str, Any], fused: bool) -> None:
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    run = sidestep.watch(model, optimizer, every=1, scaler=scaler, **offline)
    expected: dict[int, float] = {}
    for step in range(3):
        expected[step] = exact_norm(torch.autograd.grad(loss_of(model, step), list(model.parameters())))
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)


class Calling(torch.optim.SGD):
    """Takes its parent's step, whose hooks are called as well once an SGD has been made."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Stumbling(Calling):
    """Raises within the step, the first time it is called."""

    has_stumbled = False

    def step(self, closure: Any = None) -> Any:
        if not self.has_stumbled:
            self.has_stumbled = True
            raise FloatingPointError
        return super().step(closure)


@pytest.mark.parametrize("kind", [Calling, Stumbling])
def test_a_step_within_a_step_is_none(offline: dict[str, Any], kind: type[torch.optim.SGD]) -> None:
    sgd(small_net())
    model = small_net()
    optimizer = kind(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    if kind is Stumbling:
        with pytest.raises(FloatingPointError):
            optimizer.step()
    expected: dict[int, float] = {}
    moved: dict[int, float] = {}
    for step in range(3):
        before = weights_of(model)
        take_step(model, optimizer, step)
        expected[step] = exact_norm(gradients_of(model))
        change = exact_norm(new - old for new, old in zip(weights_of(model), before, strict=True))
        moved[step] = change / exact_norm(before)
    run.finish(timeout=0)
    assert run.step == 2
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)
    assert read_scalars(offline["dir"], UPDATE) == pytest.approx(moved, rel=1e-4)


def test_a_scheduled_step_is_one_step(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(3):
        take_step(model, optimizer, step)
        schedule.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/lr") == pytest.approx({0: 0.01, 1: 0.005, 2: 0.01 / 3})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Dynamo does not know:UserWarning")
def test_a_compiled_step_is_measured_apart_and_compiled_once(offline: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    step_compiled = torch.compile(optimizer.step, backend=backend)
    expected: dict[int, float] = {}
    seen: list[int] = []
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        expected[step] = exact_norm(gradients_of(model))
        step_compiled()
        seen.append(len(compiled))
    run.finish(timeout=0)
    torch._dynamo.reset()
    assert run.step == 4
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)
    assert seen[1:] == [seen[1]] * 4


def test_a_closure_that_is_called_often_gives_the_last_gradient(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    expected: dict[int, float] = {}
    for step in range(2):
        optimizer.step(closure)
        expected[step] = exact_norm(gradients_of(model))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)
    assert read_scalars(offline["dir"], PASSES)[1] == calls / 2
