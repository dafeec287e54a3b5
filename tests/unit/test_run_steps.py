"""Steps and epochs of a run, counted or given."""

import math

import numpy as np
import pytest
import torch
from support.runs import begin, events, records, scalars

from sidestep.errors import SidestepWarning

__all__ = ["begin"]


def test_steps_are_counted_by_calls_or_given(begin):
    run = begin()
    assert run.step == -1
    run.log({"a": 1.0})
    run.log({"a": 1.0}, step=10)
    run.log({"a": 1.0})
    run.log({"a": 1.0}, step=np.int64(20))
    run.log({"a": 1.0})
    assert [step for step, _ in scalars(run)] == [0, 10, 11, 20, 21]


def test_steps_that_an_optimizer_counts_are_not_counted_by_calls(begin):
    run = begin()
    run.count_steps_by_optimizer()
    run.log({"a": 1.0})
    assert run.next_step() == 0
    run.next_step()
    run.log({"a": 1.0})
    run.log({"a": 1.0}, step=50)
    run.log({"a": 1.0})
    assert [step for step, _ in scalars(run)] == [-1, 1, 50, 1]


@pytest.mark.parametrize("step", ["abc", None.__class__, [], 2**70], ids=repr)
def test_a_step_that_is_none_is_counted_and_the_loop_goes_on(begin, step):
    run = begin()
    with pytest.warns(SidestepWarning, match="recorded nothing"):
        run.log({"a": 1.0}, step=step)
    run.log({"a": 2.0}, step=3)
    assert scalars(run) == [(3, {"train/a": 2.0})]


def test_an_epoch_is_begun_by_a_call_and_ended_by_the_next(begin):
    run = begin()
    run.epoch(1)
    run.log({"a": 1.0})
    run.epoch(np.int64(2))
    run.log({"a": 1.0})
    run.epoch(torch.tensor(3))
    assert run.current_epoch == 3.0
    assert [record.epoch for record in records(run, "scalars")] == [1.0, 2.0]
    names = ["epoch_begin", "epoch_end", "epoch_begin", "epoch_end", "epoch_begin"]
    assert events(run) == list(zip(names, [{"epoch": float(n)} for n in (1, 1, 2, 2, 3)], strict=True))


@pytest.mark.parametrize(
    "number", [3, 2.5, np.int64(3), np.float32(3), torch.tensor(3)], ids=lambda n: type(n).__name__
)
def test_an_epoch_is_a_context(begin, number):
    run = begin()
    with run.epoch(number):
        assert run.current_epoch == float(number)
    assert math.isnan(run.current_epoch)
    assert [name for name, _ in events(run)] == ["epoch_begin", "epoch_end"]


def test_epochs_are_gone_through(begin):
    run = begin()
    seen = []
    for epoch in run.epoch(range(1, 4)):
        run.log({"a": 1.0})
        seen.append((epoch, run.current_epoch))
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert math.isnan(run.current_epoch)
    assert [record.epoch for record in records(run, "scalars")] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("wrong", [None, object()], ids=["None", "object"])
def test_an_epoch_that_is_none_raises_nothing_into_the_loop(begin, wrong):
    run = begin()
    with pytest.warns(SidestepWarning), run.epoch(wrong):
        run.log({"a": 1.0})
    assert scalars(run) == [(0, {"train/a": 1.0})]


def test_one_epoch_cannot_be_gone_through(begin):
    with pytest.raises(TypeError, match="write epoch"):
        list(begin().epoch(3))


def test_numbers_with_an_epoch_are_numbers_of_the_epoch(begin):
    run = begin()
    run.log({"a": 1.0})
    run.log({"acc": 0.5}, epoch=2, split="val")
    first, second = records(run, "scalars")
    assert (first.tier, second.tier) == ("step", "epoch")
    assert (second.step, second.epoch) == (0, 2.0)


def test_fixed_names_are_recorded_as_they_are(begin):
    run = begin()
    names = ("grad/norm", "lr")
    run.record(names, [1.0, 2.0], step=5, epoch=1.0, tier="periodic", t_ns=7)
    run.record(names, torch.tensor([3.0, 4.0]))
    first, second = records(run, "scalars")
    assert (first.step, first.epoch, first.t_ns, first.tier) == (5, 1.0, 7, "periodic")
    assert second.values == {"grad/norm": 3.0, "lr": 4.0}
    with pytest.warns(SidestepWarning):
        run.record(names, [1.0])
