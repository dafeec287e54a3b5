"""Noise of the gradient, from micro-batches and from parts of a batch, against plain recomputation and against theory."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, flat, offline, small_net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sidestep
from sidestep.errors import UsageError
from sidestep.probes import Placed, noise, sample
from sidestep.probes.scatter import Scatter

__all__ = ["offline"]

VARIANCE, SIGNAL, GNS, SAMPLES = noise.TAGS[:4]


def expected_of(parts: list[Tensor], samples: int) -> dict[str, float]:
    """From gradients of the parts, by the norms of McCandlish et al., appendix A.1."""
    count = len(parts)
    small, big = samples / count, float(samples)
    of_small = sum(float((part * count).square().sum()) for part in parts) / count
    of_big = float(torch.stack(parts).sum(0).square().sum())
    signal = (big * of_big - small * of_small) / (big - small)
    spread = (of_small - of_big) / (1 / small - 1 / big)
    return {VARIANCE: spread / samples, SIGNAL: signal, GNS: spread / signal, SAMPLES: samples}


def gradient_of(loss: Tensor, model: nn.Module) -> Tensor:
    """The whole gradient, asked for beside training, which may go backward afterwards."""
    return flat(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))


def backward(model: nn.Module, number: int, scale: float = 1.0) -> None:
    (model(batch(number)).square().mean() * scale).backward()


def check(folder: Any, step: int, expected: dict[str, float]) -> None:
    for tag, value in expected.items():
        assert read_scalars(folder, tag)[step] == pytest.approx(value, rel=2e-3), tag


@pytest.mark.parametrize("parts", [2, 5])
def test_micro_batches_tell_variance_signal_and_noise_scale(offline: dict[str, Any], parts: int) -> None:
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"noise": 2}, **offline)
    expected: dict[int, dict[str, float]] = {}
    for step in range(5):
        gradients: list[Tensor] = []
        for part in range(parts):
            loss = model(batch(step * parts + part)).square().mean() / parts
            gradients.append(gradient_of(loss, model))
            loss.backward()
        sidestep.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        expected[step] = expected_of(gradients, 8 * parts)
        hooked = [entry for entry in model.parameters() if entry._backward_hooks or entry._post_accumulate_grad_hooks]
        assert bool(hooked) == (step in (0, 1, 3))  # for the step to come: the first sample is that of the second
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], VARIANCE)) == [1, 2, 4]
    for step in (1, 2, 4):
        check(offline["dir"], step, expected[step])


def test_gradients_that_are_only_asked_for_do_not_count(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"noise": 1}, **offline)
    optimizer.step()
    parts: list[Tensor] = []
    for part in range(3):
        output = model(batch(part)).square().mean()
        parts.append(flat(torch.autograd.grad(output, list(model.parameters()), create_graph=True)))
        torch.autograd.grad(output * 100, list(model.parameters()), retain_graph=True)
        output.backward()
    optimizer.step()
    run.finish(timeout=0)
    check(offline["dir"], 1, expected_of(parts, 24))


def test_two_calls_of_the_model_for_one_loss_are_one_part(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"noise": 1}, **offline)
    optimizer.step()
    parts: list[Tensor] = []
    for part in range(2):
        loss = (model(batch(part)) - model(batch(part + 10))).square().mean()
        parts.append(gradient_of(loss, model))
        loss.backward()
    optimizer.step()
    run.finish(timeout=0)
    check(offline["dir"], 1, expected_of(parts, 16))


class Checkpointed(nn.Module):
    """One layer twice, each time computed anew in the backward pass, which is then several in one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.requires_grad_()
        for _ in range(2):
            inputs = checkpoint(self.body, inputs, use_reentrant=True)
        return self.head(inputs)


def test_a_backward_pass_inside_of_another_is_part_of_it(offline: dict[str, Any]) -> None:
    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sidestep.watch(model, optimizer, probes={"noise": 1}, **offline)
    optimizer.step()
    parts: list[Tensor] = []
    for part in range(3):
        before = flat([torch.zeros_like(entry) if entry.grad is None else entry.grad for entry in model.parameters()])
        backward(model, part)
        parts.append(flat([entry.grad for entry in model.parameters()]) - before)
    optimizer.step()
    run.finish(timeout=0)
    check(offline["dir"], 1, expected_of(parts, 24))


def test_a_copy_of_a_model_that_is_listened_to_has_no_hooks(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sidestep.watch(model, optimizer, probes={"noise": 1}, **offline)
    optimizer.step()
    assert model.head.weight._backward_hooks
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other.head.weight._backward_hooks
        assert not other.head.weight._post_accumulate_grad_hooks


def test_one_backward_pass_a_step_has_no_noise(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"noise": 1}, **offline)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    optimizer.step(lambda: backward(model, 7))
    run.finish(timeout=0)
    assert not {tag for tag in read_tags(offline["dir"]) if tag.startswith("noise/")}


def test_a_loss_scale_is_taken_out_and_a_step_that_was_left_out_is_forgotten(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run = sidestep.watch(model, optimizer, probes={"noise": 1}, scaler=scaler, **offline)
    parts: list[Tensor] = []
    for attempt in range(3):
        parts = []
        for part in range(2):
            loss = model(batch(10 * attempt + part)).square().mean() * (math.inf if attempt == 1 else 1.0)
            parts.append(gradient_of(loss, model))
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    run.finish(timeout=0)
    assert run.step == 1
    check(offline["dir"], 1, expected_of(parts, 16))


def test_the_sample_lies_as_far_from_the_whole_as_its_standard_error_says() -> None:
    shapes, count, deviations = [(200, 300), (64, 32, 3, 3), (64,)], 4, []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        parts = [[1 + torch.randn(shape, generator=generator) for shape in shapes] for _ in range(count)]
        (at,) = sample.coordinates([Placed(parameter, 0) for parameter in parameters])
        scatter = Scatter(at)
        for part in parts:
            for number, gradient in enumerate(part):
                scatter.add(number, at.read_one(number, gradient))
            scatter.end_part()
        variance, square = scatter.sums().tolist()
        whole, error = 0.0, 0.0
        for number in range(len(shapes)):
            single = torch.stack([part[number] for part in parts]).double().var(0) * count
            size, taken = single.numel(), at.counts[number]
            whole += float(single.sum())
            error += size**2 * (1 - taken / size) * float(single.var()) / taken
        deviations.append((variance - whole) / math.sqrt(error))
        assert math.sqrt(error) / whole < 0.04
        assert square == pytest.approx(
            sum(float(sum(parts[k][n] for k in range(count)).square().sum()) for n in range(3)), rel=0.1
        )
    assert 0.7 < math.sqrt(sum(each**2 for each in deviations) / len(deviations)) < 1.3
    assert max(map(abs, deviations)) < 4


def test_means_of_variance_and_signal_are_those_of_theory() -> None:
    """Gradients of |w - x|² / 2 are w - x: with x of unit variance in 50 dimensions, tr Σ = 50 and |G|² = |w|²."""
    generator = torch.Generator().manual_seed(0)
    weights, size, parts = nn.Parameter(torch.full((50,), 0.2)), 8, 4
    (at,) = sample.coordinates([Placed(weights, 0)])
    found: list[Tensor] = []
    for _ in range(800):
        scatter = Scatter(at)
        for _ in range(parts):
            gradient = weights.detach() - torch.randn(size, 50, generator=generator).mean(0)
            scatter.add(0, gradient / parts)
            scatter.end_part()
        variance, square = scatter.sums()
        found.append(torch.stack((variance, square - variance)))
    variance, signal = torch.stack(found).mean(0).tolist()
    assert variance == pytest.approx(50 / (size * parts), rel=0.02)
    assert signal == pytest.approx(50 * 0.04, rel=0.05)
    assert size * parts * variance / signal == pytest.approx(25.0, rel=0.06)


# --- parts of a batch --------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(given[0]), given[1])


@pytest.mark.parametrize("count", [2, 3])
def test_parts_of_a_batch_stand_in_for_micro_batches(offline: dict[str, Any], count: int) -> None:
    model = small_net()
    model.head.bias.requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = torch.cat([batch(1), batch(2)])[:13], torch.arange(13) % 3
    settings = {"loss": loss_of, "batch": (inputs, labels), "parts": count, "every": 1}
    run = sidestep.watch(model, optimizer, probes={"noise": settings}, **offline)
    backward(model, 0)
    optimizer.step()
    optimizer.step()
    trained = [entry for entry in model.parameters() if entry.requires_grad]
    size = 13 // count
    parts = [slice(number * size, (number + 1) * size) for number in range(count)]
    gradients = [
        flat(torch.autograd.grad(loss_of(model, (inputs[part], labels[part])) / count, trained)) for part in parts
    ]
    run.finish(timeout=0)
    check(offline["dir"], 1, expected_of(gradients, size * count))


class Pair(NamedTuple):
    left: Tensor
    right: Any


def test_a_batch_is_cut_whatever_holds_it() -> None:
    whole = {"ids": torch.arange(6), "pair": Pair(torch.ones(6, 2), [torch.zeros(3), "kept"]), "rate": torch.ones(())}
    first, second = noise.pieces(whole, 2)
    assert (first["ids"].tolist(), second["ids"].tolist()) == ([0, 1, 2], [3, 4, 5])
    assert first["pair"].left.shape == (3, 2)
    assert first["pair"].right[0].shape == (3,)  # as short as it was
    assert (first["pair"].right[1], first["rate"].item()) == ("kept", 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": print},
        {"batch": torch.ones(4)},
        {"parts": 1},
        {"loss": print, "batch": torch.ones(1)},
        {"loss": print, "batch": "text"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(offline: dict[str, Any], settings: dict[str, Any]) -> None:
    model = small_net()
    with pytest.raises(UsageError, match="noise"):
        sidestep.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), probes={"noise": settings}, **offline)
