"""Watching a training: what is recorded at which step, and that the training does not notice."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from support.journal_reader import read_records, read_scalars, read_tags
from support.watched import SmallNet, batch, offline, small_net, take_step
from torch import nn

import sidestep
from sidestep.errors import SidestepWarning, UsageError
from sidestep.probes import Probe

__all__ = ["offline"]

GLOBAL = "train/gradients/global_norm"
UPDATE = "train/updates/relative_update_norm"


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def exact_norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


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


def test_frozen_unused_shared_and_empty_parameters_do_no_harm(offline: dict[str, Any]) -> None:
    model = small_net()
    model.head.bias.requires_grad_(requires_grad=False)
    model.blocks[1].weight = model.blocks[0].weight  # type: ignore[assignment]
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model.register_parameter("empty", nn.Parameter(torch.ones(0)))
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer)
    take_step(model, optimizer, 1)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL)[1] == pytest.approx(exact_norm(gradients), rel=1e-5)
    assert run.stats["refused"] == {}


def test_parameters_that_are_added_later_are_measured_from_then_on(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.blocks.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer, 0)
    optimizer.add_param_group({"params": model.head.parameters(), "lr": 0.5})
    take_step(model, optimizer, 1)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], "train/gradients/head")) == [1]
    assert list(read_scalars(offline["dir"], "train/updates/head")) == [1]
    assert read_scalars(offline["dir"], "train/lr_1") == {1: 0.5}


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


def test_a_step_that_raises_leaves_no_half_sample(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)

    def broken() -> torch.Tensor:
        raise FloatingPointError("no")

    with pytest.raises(FloatingPointError):
        optimizer.step(broken)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], UPDATE)) == [0]
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0]


# --- several optimizers ------------------------------------------------------------------------------------------


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


# --- hooks -------------------------------------------------------------------------------------------------------


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    return sum(
        map(
            len,
            (
                model._forward_pre_hooks,
                model._forward_pre_hooks_with_kwargs,
                optimizer._optimizer_step_pre_hooks,
                optimizer._optimizer_step_post_hooks,
            ),
        )
    )


def test_hooks_go_when_the_run_is_finished(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    attributes = set(vars(model))
    run = sidestep.watch(model, optimizer, **offline)
    assert hooks_of(model, optimizer) == 4
    run.finish(timeout=0)
    assert hooks_of(model, optimizer) == 0
    assert set(vars(model)) == attributes
    take_step(model, optimizer)


def test_a_run_that_is_off_has_no_hooks(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, **{**offline, "mode": "off"})
    assert run.is_off
    assert hooks_of(model, optimizer) == 0


def test_watching_again_changes_nothing_and_is_said_once(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, **offline)
    with pytest.warns(SidestepWarning, match="watch\\(\\) was called again") as warned:
        again = [sidestep.watch(model, optimizer, **offline) for _ in range(2)]
    assert again == [run, run]
    assert len(warned) == 1
    assert run.stats["refused"] == {"watch": 2}
    assert hooks_of(model, optimizer) == 4
    take_step(model, optimizer)
    assert run.step == 0


def test_after_the_end_of_a_run_another_may_watch_the_same_optimizer(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    first = sidestep.watch(model, optimizer, **offline)
    take_step(model, optimizer)
    first.finish(timeout=0)
    second = sidestep.watch(model, optimizer, **offline)
    assert second is not first
    take_step(model, optimizer)
    assert (first.step, second.step) == (0, 0)


def test_a_watched_model_can_be_copied_and_pickled(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    average = copy.deepcopy(model)
    thawed = pickle.loads(pickle.dumps(model))
    average(batch(0))
    thawed(batch(0))
    take_step(model, optimizer, 0)
    average(batch(0))
    take_step(model, optimizer, 1)
    run.finish(timeout=0)
    steps, samples = (read_scalars(offline["dir"], f"perf/{what}_per_sec")[1] for what in ("steps", "samples"))
    assert samples == pytest.approx(8 * steps)
    copy.deepcopy(optimizer)


def test_what_is_pickled_of_a_watched_model_can_be_read_where_sidestep_is_not(offline: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1, "logits": 1}, **offline)
    for step in range(3):
        take_step(model, optimizer, step)
    pickles = pickle.dumps(model), pickle.dumps(copy.deepcopy(model))  # a step is open: hooks hang
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) >= 3
    run.finish(timeout=0)
    for one in pickles:
        assert b"sidestep" not in one
        thawed = pickle.loads(one)
        assert torch.equal(thawed(batch(0)), model(batch(0)))
        compiled = torch.compile(thawed, backend="eager", fullgraph=True)
        assert torch.equal(compiled(batch(0)), model(batch(0)))
    torch._dynamo.reset()


def test_compiling_a_watched_model_compiles_it_once(offline: dict[str, Any]) -> None:
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        compilations.append(1)
        return graph.forward

    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=2, **offline)
    compiled = torch.compile(model, backend=backend)
    for step in range(6):
        take_step(compiled, optimizer, step)
    run.finish(timeout=0)
    assert len(compilations) == 1
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0, 2, 4]


def test_a_probe_that_raises_is_switched_off_and_the_others_go_on(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")

    def broken(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("sidestep.probes.gradients.measure", broken)
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    with pytest.warns(SidestepWarning, match="probe 'gradients' is switched off: .* no such thing"):
        take_step(model, optimizer, 0)
    take_step(model, optimizer, 1)
    run.finish(timeout=0)
    assert run.step == 1
    assert run.stats["refused"] == {"probe": 1}
    assert list(read_scalars(offline["dir"], "train/lr")) == [0, 1]
    assert list(read_scalars(offline["dir"], UPDATE)) == [0, 1]
    assert GLOBAL not in read_tags(offline["dir"])


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adam"}, "takes a torch optimizer"),
        ({"optimizer": []}, "needs an optimizer"),
        ({"every": 0}, "every"),
        ({"blocks": ["nothing"]}, "nothing"),
        ({"probes": {"colour": True}}, "no probe 'colour'"),
        ({"probes": {"updates": "sometimes"}}, "'0.25 epoch'"),
        ({"probes": {"updates": {"shade": 1}}}, "shade"),
        ({"probes": [3]}, "a probe is a name"),
    ],
)
def test_what_cannot_be_meant_is_said_before_a_run_begins(
    offline: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    model = small_net()
    before = sidestep.active_run()
    with pytest.raises(UsageError, match=message):
        sidestep.watch(**{"model": model, "optimizer": sgd(model), **arguments, **offline})
    assert sidestep.active_run() is before
