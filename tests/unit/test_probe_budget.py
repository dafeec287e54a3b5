"""How often is sampled where nobody has said: often at first, and more seldom where samples take too much time."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support.journal_reader import read_scalars
from support.watched import GLOBAL, offline, sgd, small_net, take_step

import sidestep
from sidestep import watching
from sidestep.errors import UsageError
from sidestep.probes.cadence import Budgeted, Steps
from sidestep.probes.protocol import Probe, Watched

__all__ = ["offline"]


def sampled(cadence: Steps, steps: int, cost: float, epochs: int | None = None) -> list[int]:
    """Steps that are sampled of so many, of a second each besides; `epochs` long in steps each."""
    now, found = 0.0, []
    for step in range(steps):
        epoch = float("nan") if epochs is None else float(step // epochs)
        now += 1.0
        if cadence.is_due(step, cast("Watched", SimpleNamespace(run=SimpleNamespace(current_epoch=epoch)))):
            found.append(step)
            now += cost
            if isinstance(cadence, Budgeted):
                cadence.note(step, cost, now)
    return found


def test_cheap_samples_are_taken_as_often_as_ever() -> None:
    assert sampled(Budgeted(10, 0.01), 500, cost=0.09) == list(range(0, 500, 10))


def test_dear_samples_become_rarer_until_they_take_their_share_and_no_more() -> None:
    found = sampled(Budgeted(10, 0.01), 4000, cost=0.5)
    assert found[:9] == list(range(0, 90, 10))
    last = found[-1] - found[-2]
    assert last == 80  # 0.5 s each 80 steps are less than 1 %, each 40 they would be more
    assert {step % 10 for step in found} == {0}


def test_once_samples_are_rarer_each_epoch_still_has_one() -> None:
    found = sampled(Budgeted(5, 0.01), 2000, cost=10.0, epochs=25)
    assert {step // 25 for step in found} == set(range(80))
    assert len(found) < 120


def test_without_epochs_a_thousand_steps_are_the_longest_way() -> None:
    found = sampled(Budgeted(10, 0.01), 6000, cost=1000.0)
    assert 500 < max(b - a for a, b in pairwise(found)) <= 1000


def test_a_cadence_that_was_given_is_obeyed_whatever_it_costs() -> None:
    assert sampled(Steps(2), 400, cost=10.0) == list(range(0, 400, 2))


class Dear(Probe):
    """Computes for longer than a step takes."""

    name = "dear"
    tags = ("train/dear",)

    def report(self, step: int) -> None:
        weights = torch.ones(200, 200)
        for _ in range(40):
            weights = (weights @ weights) / 200
        self.run.record(self.tags, weights[0, :1], step=step)


@pytest.mark.parametrize(("given", "is_kept"), [({"every": 2}, True), ({"every": 2, "budget": 0.001}, False)])
def test_a_watched_training_measures_more_seldom_only_within_a_budget(
    offline: dict[str, Any], given: dict[str, Any], is_kept: bool
) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, probes=[Dear()], **given, **offline)
    expected: list[int] = []
    for step in range(100):
        expected += [step] if watching.is_sampled(run) else []
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    steps = list(read_scalars(offline["dir"], GLOBAL))
    assert steps == expected
    assert (steps == list(range(0, 100, 2))) is is_kept
    assert steps[:8] == list(range(0, 16, 2))


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5])
def test_a_budget_that_is_no_share_is_refused(offline: dict[str, Any], budget: float) -> None:
    model = small_net()
    with pytest.raises(UsageError, match="budget"):
        sidestep.watch(model, sgd(model), budget=budget, **offline)
