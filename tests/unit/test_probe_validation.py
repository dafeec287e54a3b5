"""Norms of the whole model at each validation, against a plain recomputation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars
from support.watched import batch, exact_norm, offline, small_net, take_step
from torch import nn

import sidestep

__all__ = ["offline"]

ALONE = {"weights": False}  # it has the norm of the weights too, once an epoch


def validate(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        for number in range(3):
            model(batch(100 + number))
    model.train()


@pytest.mark.parametrize("limit", [None, 0.01])
def test_norms_are_those_of_the_first_step_after_each_validation(offline: dict[str, Any], limit: float | None) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, every=4, probes=ALONE, **offline)
    gradients: dict[int, float] = {}
    weights: dict[int, float] = {}
    for step in range(9):
        optimizer.zero_grad()
        model(batch(step)).square().sum().backward()
        norm = exact_norm(entry.grad for entry in model.parameters())
        if limit is not None:
            sidestep.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        if step in (3, 4, 7):  # the first after each of the three
            gradients[step], weights[step] = norm, exact_norm(model.parameters())
        if step in (2, 3, 6, 8):
            validate(model)
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "grad_norm") == pytest.approx(gradients, rel=1e-5)
    assert read_scalars(offline["dir"], "weight_norm") == pytest.approx(weights, rel=1e-5)


def test_a_training_without_validations_has_none(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, every=1, probes=ALONE, **offline)
    for step in range(4):
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "grad_norm") == {}
    assert read_scalars(offline["dir"], "weight_norm") == {}


def test_no_step_has_the_norm_of_the_weights_twice(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"weights": 4}, **offline)
    recorded: list[tuple[str, int]] = []
    record = run.record

    def remember(tags: tuple[str, ...], values: Any, **at: Any) -> None:
        recorded.extend((tag, at["step"]) for tag in tags if "step" in at)
        record(tags, values, **at)

    run.record = remember  # type: ignore[method-assign]
    for epoch in run.epoch(range(1, 4)):
        for step in range(4):
            take_step(model, optimizer, 4 * epoch + step)
            if step % 2:
                validate(model)
    run.finish(timeout=0)
    assert [step for tag, step in recorded if tag == "weight_norm"] == [0, 2, 4, 6, 8, 10]
    assert [step for tag, step in recorded if tag == "grad_norm"] == [2, 4, 6, 8, 10]
