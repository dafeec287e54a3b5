"""Clipping: torch's result, and what the run is told of it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.journal_reader import read_records, read_scalars, read_tags
from support.watched import batch, offline, small_net, take_step
from torch import Tensor

import sidestep
from sidestep.probes import clipping

__all__ = ["offline"]

BEFORE, AFTER, CLIPPED = clipping.TAGS


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_it_gives_what_torch_gives_bit_for_bit(norm_type: float, foreach: bool | None, limit: float) -> None:
    ours, theirs = small_net(), small_net()
    for model in (ours, theirs):
        model(batch(0)).square().sum().backward()
    norm = sidestep.clip_grad_norm_(ours.parameters(), limit, norm_type, foreach=foreach)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit, norm_type, foreach=foreach)
    assert torch.equal(norm, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients(ours), gradients(theirs), strict=True))


def test_it_works_on_one_tensor_and_on_none() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    parameter.grad = torch.full((4,), 3.0)
    assert sidestep.clip_grad_norm_(parameter, 1.0).item() == 6.0
    assert sidestep.clip_grad_norm_([], 1.0).item() == 0.0


def test_it_raises_for_a_norm_that_is_not_finite_where_asked_to() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    parameter.grad = torch.full((4,), math.nan)
    with pytest.raises(RuntimeError, match="non-finite"):
        sidestep.clip_grad_norm_(parameter, 1.0, error_if_nonfinite=True)


def test_every_step_that_clips_is_recorded(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run = sidestep.watch(model, optimizer, every=2, **offline)
    expected: dict[int, float] = {}
    for step in range(6):
        optimizer.zero_grad()
        model(batch(step)).square().sum().backward()
        expected[step] = math.sqrt(sum(float(grad.double().square().sum()) for grad in gradients(model)))
        sidestep.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
    run.finish(timeout=0)
    before, after = read_scalars(offline["dir"], BEFORE), read_scalars(offline["dir"], AFTER)
    assert before == pytest.approx(expected, rel=1e-6)
    assert after == pytest.approx({step: min(norm, 3.0) for step, norm in expected.items()}, rel=1e-6)
    flags = read_scalars(offline["dir"], CLIPPED)
    assert flags == {step: float(norm > 3.0) for step, norm in expected.items()}
    assert set(flags.values()) == {0.0, 1.0}
    # The global norm is the one from before clipping.
    assert read_scalars(offline["dir"], "train/gradients/global_norm") == pytest.approx(
        {step: expected[step] for step in (0, 2, 4)}, rel=1e-6
    )


def test_several_calls_of_a_step_are_one_gradient(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, **offline)
    model(batch(0)).square().sum().backward()
    body = sidestep.clip_grad_norm_(model.blocks.parameters(), 0.5)
    head = sidestep.clip_grad_norm_(model.head.parameters(), 1e9)
    optimizer.step()
    run.finish(timeout=0)
    expected = math.hypot(body.item(), head.item())
    assert read_scalars(offline["dir"], BEFORE) == pytest.approx({0: expected})
    assert read_scalars(offline["dir"], AFTER) == pytest.approx({0: math.hypot(0.5, head.item())}, rel=1e-5)
    assert read_scalars(offline["dir"], CLIPPED) == {0: 1.0}
    assert read_scalars(offline["dir"], "train/gradients/global_norm") == pytest.approx({0: expected})


def test_clipping_again_before_the_step_replaces_what_was_told(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, **offline)
    model(batch(0)).square().sum().backward()
    sidestep.clip_grad_norm_(model.parameters(), 2.0)
    sidestep.clip_grad_norm_(model.parameters(), 100.0)  # the first one's step was left out, say
    optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], BEFORE) == pytest.approx({0: 2.0}, rel=1e-5)
    assert read_scalars(offline["dir"], CLIPPED) == {0: 0.0}


def test_of_another_norm_only_the_flag_is_recorded(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, **offline)
    model(batch(0)).square().sum().backward()
    sidestep.clip_grad_norm_(model.parameters(), 1e-3, math.inf)
    clipped = math.sqrt(sum(float(grad.double().square().sum()) for grad in gradients(model)))
    optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], CLIPPED) == {0: 1.0}
    assert BEFORE not in read_tags(offline["dir"])
    assert read_scalars(offline["dir"], "train/gradients/global_norm") == pytest.approx({0: clipped}, rel=1e-5)


def test_a_norm_that_is_no_number_is_recorded_as_such(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, **offline)
    (model(batch(0)).sum() * math.nan).backward()
    sidestep.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    run.finish(timeout=0)
    assert math.isnan(read_scalars(offline["dir"], BEFORE)[0])
    assert read_scalars(offline["dir"], CLIPPED) == {0: 0.0}


def test_a_step_without_clipping_has_no_record_of_it(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer, 0, limit=1.0)
    take_step(model, optimizer, 1)
    run.finish(timeout=0)
    assert set(read_scalars(offline["dir"], BEFORE)) == {0}


def test_after_the_run_nothing_is_told(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sidestep.watch(model, optimizer, **offline).finish(timeout=0)
    take_step(model, optimizer, 0, limit=1.0)
    assert all(record.values is None for record in read_records(offline["dir"]))


class FarRun:
    """Stands for a run whose norms lie on a device: `receive` keeps what is to be copied."""

    def __init__(self) -> None:
        self.step, self.current_epoch = -1, 1.0
        self.posted: list[tuple[Tensor, Any]] = []
        self.recorded: list[tuple[int, float, tuple[float, ...]]] = []

    def receive(self, tensor: Tensor, deliver: Any) -> None:
        self.posted.append((tensor, deliver))

    def record(self, _names: object, values: tuple[float, ...], *, step: int, epoch: float, t_ns: int) -> None:
        assert t_ns > 0
        self.recorded.append((step, epoch, values))


def clip_far_away(run: FarRun, probe: clipping.Clipping, calls: int = 1) -> None:
    run.step += 1
    for call in range(calls):
        probe.tell(call, clipping.Told(torch.empty((), device="meta"), 2.0, is_l2=True))
    probe.end_step()
    assert probe.watched.norm_before_clip is not None
    assert probe.watched.norm_before_clip[0] == run.step


def listening(run: FarRun) -> clipping.Clipping:
    probe = clipping.Clipping()
    probe.attach(SimpleNamespace(run=run, norm_before_clip=None))  # type: ignore[arg-type]
    return probe


def test_norms_on_a_device_travel_together_and_keep_their_steps() -> None:
    run = FarRun()
    probe = listening(run)
    for _ in range(16):
        clip_far_away(run, probe)
    ((tensor, deliver),) = run.posted
    assert (tensor.shape, tensor.dtype) == ((16,), torch.float32)
    deliver(torch.arange(16.0))
    assert [step for step, _, _ in run.recorded] == list(range(16))
    assert [values[2] for _, _, values in run.recorded] == [0.0] * 3 + [1.0] * 13
    assert run.recorded[8][2][:2] == pytest.approx((8.0, 2.0))


def test_norms_on_a_device_leave_at_the_end_of_their_epoch() -> None:
    run = FarRun()
    probe = listening(run)
    clip_far_away(run, probe, calls=2)
    run.current_epoch = 2.0
    clip_far_away(run, probe)
    ((tensor, deliver),) = run.posted
    assert tensor.shape == (2,)
    deliver(torch.tensor([3.0, 4.0]))
    assert run.recorded[0][:2] == (0, 1.0)
    assert run.recorded[0][2] == pytest.approx((5.0, math.hypot(2.0, 2.0), 1.0))
    probe.flush()
    assert len(run.posted) == 2
