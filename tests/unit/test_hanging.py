"""Stacks of a training that hangs: taken once for each hang, and only of one that stepped before."""

import threading

import pytest
from support.runs import begin, records

from sidestep.hanging import STACKS_NAME, StackWatch

__all__ = ["begin"]


@pytest.fixture
def watched(begin):
    now = [0.0]
    run = begin()
    watch = StackWatch(60.0, clock=lambda: now[0])
    watch.begin(run)

    def go(seconds, step=None):
        if step is not None:
            run.log({"loss": 1.0}, step=step)
        stop = now[0] + seconds
        while now[0] < stop:
            watch.tick()
            now[0] += 1.0
        return [record.fields[2] for record in records(run, "text") if record.fields[1] == STACKS_NAME]

    return go


def test_a_step_that_takes_long_is_one_text_with_all_stacks(watched):
    done = threading.Event()

    def stand_still():
        done.wait()

    waits = threading.Thread(target=stand_still, name="waits")
    waits.start()
    for step in range(5):
        assert watched(2, step) == []
    assert watched(57) == []
    [text] = watched(300)
    done.set()
    waits.join()
    assert "in stand_still" in text.partition("Thread waits:")[2]


def test_the_next_hang_is_told_too(watched):
    for step in range(5):
        watched(2, step)
    assert len(watched(100)) == 1
    for step in range(5, 300):
        watched(2, step)
    assert len(watched(200)) == 2


def test_slow_steps_are_waited_for_ten_times_as_long(watched):
    for step in range(5):
        watched(30, step)
    assert watched(260) == []
    assert len(watched(60)) == 1


def test_steps_that_all_came_between_two_looks_are_steps(begin):
    now = [0.0]
    run = begin()
    watch = StackWatch(60.0, clock=lambda: now[0])
    watch.begin(run)
    for step in range(20):
        run.log({"loss": 1.0}, step=step)
    for _ in range(100):
        now[0] += 1.0
        watch.tick()
    assert len([record for record in records(run, "text") if record.fields[1] == STACKS_NAME]) == 1


def test_before_the_second_step_nothing_is_a_hang(watched):
    assert watched(500) == []
    assert watched(500, 0) == []


def test_asked_for_by_argument_or_environment_with_seconds_that_can_be_set(begin, monkeypatch):
    from sidestep.config import resolve

    names = ("project", "name", "id", "group", "notes", "dir", "collector", "mode", "rank", "world_size", "profile")
    given = {**dict.fromkeys(names), "tags": (), "resume": "auto"}
    assert not resolve(**given, environ={}).stacks_on_hang
    found = resolve(**given, environ={"SIDESTEP_STACKS_ON_HANG": "1", "SIDESTEP_HANG_SECONDS": "5"})
    assert (found.stacks_on_hang, found.hang_seconds) == (True, 5.0)
    assert resolve(**given, stacks_on_hang=True, environ={}).stacks_on_hang
