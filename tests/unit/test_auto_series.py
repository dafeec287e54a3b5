"""Numbers that come from a device some steps together, and losses that add up between steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sidestep.auto.losses import Losses
from sidestep.auto.patching import Faults
from sidestep.series import STEPS_TOGETHER, Series


class FakeRun:
    """Takes a tensor on the CPU for one on a device."""

    def __init__(self) -> None:
        self.step = -1
        self.current_epoch = math.nan
        self.records: list[tuple[int, tuple[float, ...]]] = []
        self.copies = 0

    def record(self, _tags: Any, values: Any, *, step: int | None = None, **_at: Any) -> None:
        self.records.append((self.step if step is None else step, tuple(values)))

    def receive(self, tensor: torch.Tensor, deliver: Callable[[Any], None]) -> None:
        self.copies += 1
        deliver(tensor)


def test_numbers_on_a_device_travel_together_with_their_steps() -> None:
    run: Any = FakeRun()
    run.current_epoch = 1.0
    series = Series(run, "a", "b")
    for step in range(STEPS_TOGETHER + 2):
        run.step = step
        series.add(torch.tensor([float(step), 0.5]))
    assert (run.copies, len(run.records)) == (1, STEPS_TOGETHER)
    series.flush()
    assert run.records == [(step, (float(step), 0.5)) for step in range(STEPS_TOGETHER + 2)]


def test_an_epoch_that_ends_sends_what_waits() -> None:
    run: Any = FakeRun()
    series = Series(run, "a")
    for step, epoch in enumerate((1.0, 1.0, 2.0)):
        run.step, run.current_epoch = step, epoch
        series.add(torch.tensor([1.0]))
    assert [step for step, _ in run.records] == [0, 1]


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    return Losses(Faults(), lambda: True)


def test_losses_of_a_step_add_up_and_are_dropped_with_it(losses: Losses) -> None:
    run: Any = FakeRun()
    for value in (1.0, 0.5):
        losses._note(torch.tensor(value))
    run.step = 0
    losses.end_step(run, 0)
    losses._note([torch.tensor(2.0), torch.tensor([1.0])])
    losses.drop()
    losses._note(torch.tensor(4.0))
    run.step = 1
    losses.end_step(run, 0)
    losses.end_step(run, 0)  # nothing since
    assert run.records == [(0, (1.5,)), (1, (4.0,))]


def test_what_is_no_scalar_is_no_loss(losses: Losses) -> None:
    run: Any = FakeRun()
    losses._note(torch.ones(3))
    losses._note(None)
    losses._note(torch.ones((), device="meta"))
    losses.end_step(run, 0)
    assert run.records == []


def test_the_first_loss_of_a_closure_adds_to_what_was_accumulated(losses: Losses) -> None:
    run: Any = FakeRun()
    losses._note(torch.tensor(1.0))
    losses.begin_step(has_closure=True)
    for value in (0.25, 100.0):
        losses._note(torch.tensor(value))
    losses.end_step(run, 0)
    assert [values for _, values in run.records] == [(1.25,)]


def test_a_scaled_loss_counts_as_it_was(losses: Losses) -> None:
    run: Any = FakeRun()
    loss = torch.tensor(0.5)
    scaled = loss * 1024
    losses._note_scaled(scaled, loss)
    losses._note(scaled)
    losses.end_step(run, 0)
    assert [values for _, values in run.records] == [(0.5,)]
