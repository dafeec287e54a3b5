"""Passes that are repeated, captured in a graph, or made on meta: each is measured once, where it has numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import (
    GLOBAL,
    PASSES,
    SmallNet,
    batch,
    exact_norm,
    gradients_of,
    offline,
    sgd,
    small_net,
    take_step,
)
from torch import nn
from torch.utils import checkpoint

import sidestep
from sidestep import watching

__all__ = ["offline"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_pass_that_checkpointing_repeats_counts_once(offline: dict[str, Any], reentrant: bool) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1, "logits": 1}, **offline)
    largest: dict[int, float] = {}
    for step in range(4):
        optimizer.zero_grad()
        with torch.no_grad():
            model.eval()
            largest[step] = float(model(batch(step)).max())
            model.train()
        x = batch(step).requires_grad_()
        checkpoint.checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], PASSES) == {1: 1.0, 2: 1.0, 3: 1.0}
    found = read_scalars(offline["dir"], "train/logits/max")
    assert found == pytest.approx({step: largest[step] for step in (1, 2, 3)})
    steps, samples = (read_scalars(offline["dir"], f"perf/{what}_per_sec") for what in ("steps", "samples"))
    assert samples == pytest.approx({step: 8 * rate for step, rate in steps.items()})


def test_of_a_repeated_forward_pass_the_first_is_timed(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr("sidestep.probes.timing.time.perf_counter", lambda: float(next(ticks)))
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"throughput": False}, **offline)
    for step in range(3):
        optimizer.zero_grad()
        checkpoint.checkpoint(model, batch(step), use_reentrant=False).square().sum().backward()
        optimizer.step()
    run.finish(timeout=0)
    # The clock ticks once a mark: begin, forward, forward's end, backward, its end, update, end.
    assert read_scalars(offline["dir"], "train/performance/forward_time_ms") == {1: 1000.0, 2: 1000.0}
    assert read_scalars(offline["dir"], "train/performance/backward_time_ms") == {1: 1000.0, 2: 1000.0}


def test_while_a_graph_is_captured_nothing_is_measured(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = {2, 3}
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"logits": 1, "activations": 1}, **offline)
    monkeypatch.setattr(watching, "_is_captured", lambda: run.step + 1 in captured)
    largest: dict[int, float] = {}
    for step in range(6):
        with torch.no_grad():
            largest[step] = float(model.eval()(batch(step)).max())
        model.train()
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert run.step == 5
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0, 1, 4, 5]
    # What was seen of a step that came to nothing is not taken for the next one's.
    assert read_scalars(offline["dir"], "train/logits/max") == pytest.approx(
        {step: largest[step] for step in (1, 4, 5)}
    )


def test_a_model_on_meta_is_measured_once_it_has_numbers(offline: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = SmallNet()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    optimizer.step()
    torch.manual_seed(0)
    model.to_empty(device="cpu")
    for entry in model.parameters():
        nn.init.normal_(entry)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    take_step(model, optimizer, 1)
    expected = exact_norm(gradients_of(model))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({1: expected}, rel=1e-5)
    assert "train/gradients/block_1" in read_tags(offline["dir"])
