"""What goes wrong while watching: a step or a probe that raises, and calls that cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import GLOBAL, UPDATE, offline, sgd, small_net, take_step

import sidestep
from sidestep.errors import SidestepWarning, UsageError
from sidestep.probes import Probe

__all__ = ["offline"]


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


@pytest.mark.parametrize("event", ["begin", "before_step", "gradients", "after_step", "report", "end_step", "detach"])
def test_a_probe_may_raise_anywhere(offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")

    def broken(*_: object) -> None:
        raise RuntimeError("oh")

    kind = type("Broken", (Probe,), {"name": "broken", event: broken})
    model = small_net()
    optimizer = sgd(model)
    with pytest.warns(SidestepWarning, match=f"'broken' is switched off: {event} raised RuntimeError: oh") as warned:
        run = sidestep.watch(model, optimizer, every=1, probes=[kind()], **offline)
        for step in range(3):
            take_step(model, optimizer, step)
        run.finish(timeout=0)
    assert len(warned) == 1
    assert run.stats["refused"] == {"probe": 1}
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0, 1, 2]
