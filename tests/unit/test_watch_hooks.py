"""Hooks of a watched model: they go with the run, and are in the way of no copy, pickle, trace or compilation."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import (
    GLOBAL,
    PASSES,
    SmallNet,
    batch,
    loss_of,
    offline,
    sgd,
    small_net,
    take_step,
)
from torch import nn

import sidestep
from sidestep.errors import SidestepWarning

__all__ = ["offline"]


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


def saved(model: nn.Module) -> Any:
    place = io.BytesIO()
    torch.save(model, place)
    place.seek(0)
    return torch.load(place, weights_only=False)


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.jit.script": torch.jit.script,
    "torch.jit.trace": lambda model: torch.jit.trace(model, batch(0)),
    "torch.export": lambda model: torch.export.export(model, (batch(0),)).module(),
    "torch.fx": torch.fx.symbolic_trace,
    "torch.compile": lambda model: torch.compile(model, backend="eager", fullgraph=True),
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_watched_model_can_be_copied_traced_and_scripted_at_any_time(offline: dict[str, Any], way: str) -> None:
    torch._dynamo.reset()
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1, "logits": 1}, **offline)
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        with torch.no_grad():
            if way != "torch.compile":
                other = WAYS[way](model)  # hooks hang on the model, for the step is sampled
                assert torch.equal(other(batch(step)), model.eval()(batch(step)))
            else:
                assert torch.allclose(WAYS[way](model)(batch(step)), model.eval()(batch(step)))
        model.train()
        loss.backward()
        optimizer.step()
    run.finish(timeout=0)
    torch._dynamo.reset()
    assert list(read_scalars(offline["dir"], "train/activations/head/rms")) == [1, 2, 3]
    assert read_scalars(offline["dir"], PASSES) == {1: 1.0, 2: 1.0, 3: 1.0}


@pytest.mark.parametrize("is_zipped", [True, False])
def test_what_is_saved_of_a_watched_model_knows_nothing_of_sidestep(offline: dict[str, Any], is_zipped: bool) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1}, **offline)
    take_step(model, optimizer)
    place = io.BytesIO()
    torch.save({"model": model, "optimizer": optimizer.state_dict()}, place, _use_new_zipfile_serialization=is_zipped)
    run.finish(timeout=0)
    assert b"sidestep" not in place.getvalue()
    place.seek(0)
    with torch.serialization.safe_globals([SmallNet, nn.ModuleList, nn.Linear, set]):
        # Of whole models in the older format torch itself can read none with `weights_only`.
        found = torch.load(place, weights_only=is_zipped)["model"]
    assert torch.equal(found(batch(0)), model(batch(0)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_a_model_leaves_its_hooks_where_they_were(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1}, **offline)
    take_step(model, optimizer)
    before = [dict(hooks) for entry in model.modules() for hooks in (entry._forward_hooks, entry._forward_pre_hooks)]
    assert any(before)
    torch.jit.script(model)
    after = [dict(hooks) for entry in model.modules() for hooks in (entry._forward_hooks, entry._forward_pre_hooks)]
    assert before == after
    run.finish(timeout=0)


def test_hooks_of_an_optimizer_that_something_removes_are_said_at_the_end(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer, 0)
    optimizer._optimizer_step_pre_hooks.clear()
    optimizer._optimizer_step_post_hooks.clear()
    take_step(model, optimizer, 1)
    run.log({"mine": 1.0})
    with pytest.warns(SidestepWarning, match="removed hooks from SGD: its steps after 0 were not seen") as warned:
        run.finish(timeout=0)
    assert len([entry for entry in warned if "removed hooks" in str(entry.message)]) == 1
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0]
    assert list(read_scalars(offline["dir"], "train/mine")) == [0]


def test_without_hooks_on_modules_the_rest_is_measured(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1}, **offline)
    for step in range(4):
        for module in model.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0, 1, 2, 3]
    assert not {tag for tag in read_tags(offline["dir"]) if tag.startswith("train/activations")}
