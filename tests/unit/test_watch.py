"""Watching a training: what is recorded at which step, and that the training does not notice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.journal_reader import read_records, read_scalars, read_tags
from support.watched import GLOBAL, UPDATE, batch, exact_norm, offline, sgd, small_net, take_step
from torch import nn

import sidestep
from sidestep.probes import Probe

__all__ = ["offline"]


def test_training_is_the_same_bit_for_bit(offline: dict[str, Any]) -> None:
    def train(*, watched: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        model = small_net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if watched:
            sidestep.watch(model, optimizer, every=3, **offline)
        for step in range(20):
            take_step(model, optimizer, step, limit=1.0)
        return [parameter.detach().clone() for parameter in model.parameters()], torch.get_rng_state()

    plain, plain_state = train(watched=False)
    watched, watched_state = train(watched=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(plain_state, watched_state)
    assert list(read_scalars(offline["dir"], UPDATE)) == list(range(0, 20, 3))


def test_steps_are_counted_by_the_optimizer_and_logged_numbers_follow(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=2, **offline)
    for step in range(5):
        take_step(model, optimizer, step)
        assert run.step == step
        run.log({"loss": 1.0})
        run.log({"extra": 1.0})
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], "train/loss")) == [0, 1, 2, 3, 4]
    assert list(read_scalars(offline["dir"], "train/extra")) == [0, 1, 2, 3, 4]
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0, 2, 4]


def test_gradient_norms_and_updates_are_those_of_a_plain_computation(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    norms: dict[str, dict[int, float]] = {"global_norm": {}, "root": {}, "block_0": {}, "block_1": {}, "head": {}}
    changes: dict[str, dict[int, float]] = {name: {} for name in norms}
    parts = {
        "global_norm": list(model.parameters()),
        "root": [model.temperature],
        "block_0": list(model.blocks[0].parameters()),
        "block_1": list(model.blocks[1].parameters()),
        "head": list(model.head.parameters()),
    }
    for step in range(4):
        before = {name: [entry.detach().clone() for entry in entries] for name, entries in parts.items()}
        take_step(model, optimizer, step)
        for name, entries in parts.items():
            norms[name][step] = exact_norm([entry.grad for entry in entries if entry.grad is not None])
            moved = [entry.detach().double() - old.double() for entry, old in zip(entries, before[name], strict=True)]
            changes[name][step] = exact_norm(moved) / exact_norm(before[name])
    run.finish(timeout=0)
    for name, expected in norms.items():
        assert read_scalars(offline["dir"], f"train/gradients/{name}") == pytest.approx(expected, rel=1e-5)
        tag = UPDATE if name == "global_norm" else f"train/updates/{name}"
        assert read_scalars(offline["dir"], tag) == pytest.approx(changes[name], rel=1e-4)
    assert not {tag for tag in read_tags(offline["dir"]) if tag.endswith("/other")}


def test_rates_of_each_group_are_those_of_the_step(offline: dict[str, Any]) -> None:
    model = small_net()
    groups = [
        {"params": model.blocks.parameters(), "weight_decay": 0.1},
        {"params": model.head.parameters(), "lr": torch.tensor(0.5), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.25, foreach=False)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    for step in range(2):
        take_step(model, optimizer, step)
        schedule.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/lr") == {0: 0.25, 1: 0.125}
    assert read_scalars(offline["dir"], "train/lr_1") == {0: 0.5, 1: 0.25}
    assert read_scalars(offline["dir"], "train/wd") == {0: 0.1, 1: 0.1}
    assert read_scalars(offline["dir"], "train/wd_1") == {0: 0.0, 1: 0.0}


def test_of_many_groups_those_with_the_same_rates_are_told_of_once(offline: dict[str, Any]) -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(40)]
    model = nn.ParameterList(parameters)
    rate = torch.tensor(0.5)
    optimizers = [torch.optim.SGD([one], lr=0.25, momentum=0.9) for one in parameters[:17]]
    optimizers += [torch.optim.SGD([one], lr=rate, weight_decay=0.1, foreach=False) for one in parameters[17:]]
    run = sidestep.watch(model, optimizers, every=1, **offline)
    for step in range(2):
        for number, (one, optimizer) in enumerate(zip(parameters, optimizers, strict=True)):
            one.grad = torch.ones(2)
            optimizer.step()
            if step == 0 and number == 38:
                optimizers[39].param_groups[0]["lr"] = 0.125
    run.finish(timeout=0)
    rates = {
        tag: read_scalars(offline["dir"], tag) for tag in read_tags(offline["dir"]) if "/lr" in tag or "/wd" in tag
    }
    assert rates == {
        "train/lr": {0: 0.25, 1: 0.25},
        "train/lr_17": {0: 0.5, 1: 0.5},
        "train/lr_39": {0: 0.125, 1: 0.125},
        "train/wd": {0: 0.0, 1: 0.0},
        "train/wd_17": {0: pytest.approx(0.1), 1: pytest.approx(0.1)},
        "train/wd_39": {0: pytest.approx(0.1), 1: pytest.approx(0.1)},
    }


class Whereabouts(Probe):
    """Remembers where the model is said to be."""

    name = "whereabouts"
    every = 1

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def report(self, step: int) -> None:
        self.seen.append(self.watched.device.type)


def test_the_device_is_where_the_model_trains_not_where_it_was_made(offline: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 1)
    optimizer, probe = sgd(model), Whereabouts()
    run = sidestep.watch(model, optimizer, every=1, probes=[probe], **offline)
    assert probe.watched.device.type == "meta"
    optimizer.step()
    model.to_empty(device="cpu")
    optimizer.param_groups[0]["params"] = list(model.parameters())
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    run.finish(timeout=0)
    assert probe.seen == ["cpu", "cpu"]
    model.to("meta")
    assert probe.watched.device.type == "cpu"


def test_no_step_is_sampled_while_any_parameter_is_on_meta(offline: dict[str, Any]) -> None:
    model = nn.ParameterList([torch.ones(2), torch.ones(2, device="meta")])
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    for step in range(4):
        if step == 2:  # the list of parameters stays as long as it was
            optimizer.param_groups[0]["params"][1] = nn.Parameter(torch.ones(2))
        for entry in optimizer.param_groups[0]["params"]:
            entry.grad = torch.ones_like(entry)
        optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({2: 2.0, 3: 2.0})
    assert list(read_scalars(offline["dir"], "train/lr")) == [2, 3]


def test_throughput_is_measured_between_reports(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=2, **offline)
    for step in range(5):
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    steps = read_scalars(offline["dir"], "perf/steps_per_sec")
    samples = read_scalars(offline["dir"], "perf/samples_per_sec")
    assert list(steps) == [2, 4]
    assert samples == pytest.approx({step: 8 * rate for step, rate in steps.items()})


def test_given_blocks_are_used(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, blocks={"body": "blocks"}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    tags = {tag for tag in read_tags(offline["dir"]) if tag.startswith("train/updates/")}
    assert tags == {UPDATE, "train/updates/body", "train/updates/other"}


def test_a_step_without_gradients_is_counted_and_moves_nothing(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    optimizer.step()
    run.finish(timeout=0)
    assert run.step == 0
    assert GLOBAL not in read_tags(offline["dir"])
    assert read_scalars(offline["dir"], UPDATE) == {0: 0.0}


def test_gradients_that_are_no_numbers_are_recorded_as_such(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    (model(batch(0)).sum() * math.nan).backward()
    optimizer.step()
    run.finish(timeout=0)
    assert math.isnan(read_scalars(offline["dir"], GLOBAL)[0])
    assert math.isnan(read_scalars(offline["dir"], UPDATE)[0])


def test_weights_that_begin_at_zero_have_an_update_of_one(offline: dict[str, Any]) -> None:
    model = small_net()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    model(batch(0)).sum().backward()
    optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/updates/head") == {0: 1.0}


def test_records_carry_the_epoch(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    for epoch in run.epoch(range(1, 3)):
        take_step(model, optimizer, int(epoch), limit=1.0)
    run.finish(timeout=0)
    scalars = [record for record in read_records(offline["dir"]) if record.values is not None]
    assert {(record.step, record.epoch) for record in scalars} == {(0, 1.0), (1, 2.0)}
    assert {record.tier for record in scalars} == {"step"}
