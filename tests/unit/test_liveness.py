"""Watching over streams: what is silence, what is a hang, and what is known of an end. Clocks are the test's own."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from sidestep_collector.blocks import Event, KeySet, Moment, ScalarBlock, Stream, Text
from sidestep_collector.liveness import Vigil
from sidestep_collector.liveness.origin import Origin
from sidestep_collector.liveness.pace import Pace
from sidestep_collector.liveness.post_mortem import loss_of, post_mortem
from sidestep_schemas.host import boot_id, process_space, process_start

S = Stream(b"12345678", b"r" * 16, "run", "project", 0, 0)
LOSS = KeySet(1, 1, "step", ("train/loss",), ("",))
EPOCH = KeySet(2, 1, "epoch", ("val/loss",), ("",))


def block(steps, seconds, key_set=LOSS):
    steps = np.array(steps)
    times = (np.array(seconds) * 1e9).astype(np.int64)
    values = np.zeros((len(steps), 1))
    return ScalarBlock(S, key_set, steps, times, steps, np.full(len(steps), np.nan), values)


def start(**details):
    return Event(Moment(S, 0, 0, -1, float("nan")), "start", details)


HERE = {
    "boot": boot_id().hex(),
    "process_space": process_space(),
    "pid": os.getpid(),
    "process_start": process_start(os.getpid()),
}


class Watch:
    """A vigil and one stream under it."""

    def __init__(self):
        self.now = 0.0
        self.state = SimpleNamespace(stream=S, received=5, ended=False, seen=0.0)
        self.vigil = Vigil(60.0, 60.0, lambda _: [], clock=lambda: self.now, now_ns=lambda: 0)
        self.states, self.events = [], []

    def go(self, seconds, *, heard=False, is_reading=True):
        for _ in range(int(seconds)):
            self.now += 1.0
            if heard:
                self.state.seen = self.now
            news = self.vigil.look([self.state], is_reading=is_reading)
            self.states += [cause for _, cause in news.states] if news else []
            self.events += news.events if news else []
        return [event.event for event in self.events]


def stepping(watch, steps=100, seconds=1.0):
    watch.vigil.add([block(range(steps), [step * seconds for step in range(steps)])], [])


def test_a_stream_of_another_host_is_lost_after_a_silence_and_back_when_heard():
    watch = Watch()
    watch.vigil.add([], [start(**HERE | {"boot": "ff" * 8})])
    assert watch.go(55) == []
    assert watch.go(10) == ["post_mortem"]
    assert (watch.states, watch.events[0].details["cause"], watch.vigil.word(S.key)) == (["lost"], "lost", "lost")
    assert watch.go(500) == ["post_mortem"]
    assert watch.go(5, heard=True) == ["post_mortem", "heard_again"]
    assert (watch.states, watch.vigil.word(S.key)) == (["lost", "running"], "running")


def test_a_stream_that_is_heard_is_never_lost():
    watch = Watch()
    assert watch.go(1000, heard=True) == []


def test_while_nothing_is_read_nobody_is_silent():
    watch = Watch()
    assert watch.go(1000, is_reading=False) == []
    watch.now += 1000  # the collector stood still
    assert watch.go(50) == []


def test_a_process_of_this_host_is_looked_at():
    watch = Watch()
    watch.vigil.add([], [start(**HERE)])
    assert watch.go(300) == []
    assert watch.vigil.word(S.key) == "silent"
    watch = Watch()
    watch.vigil.add([], [start(**HERE | {"process_start": "1"})])  # its id belongs to another one now
    assert watch.go(300) == ["post_mortem"]
    assert watch.states == ["killed"]


def test_what_the_store_knows_to_be_lost_is_told_no_second_time():
    watch = Watch()
    watch.vigil.restore(watch.state, "lost", None)
    assert watch.go(300) == []
    assert watch.go(3, heard=True) == ["heard_again"]


def test_no_step_for_the_least_time_is_a_hang_told_once_and_over_with_the_next():
    watch = Watch()
    stepping(watch)
    assert watch.go(60, heard=True) == []
    assert watch.go(300, heard=True) == ["hang"]
    assert watch.events[0].details == {"step": 99, "seconds": 61.0, "step_seconds_p99": 1.0, "heartbeats": True}
    watch.vigil.add([block([100], [500.0])], [])
    assert watch.go(5, heard=True) == ["hang", "hang_over"]


def test_slow_steps_are_waited_for_ten_times_as_long():
    watch = Watch()
    stepping(watch, seconds=30.0)
    assert watch.go(299, heard=True) == []
    assert watch.go(5, heard=True) == ["hang"]


def test_a_pause_that_was_outlived_is_no_hang_the_next_time():
    watch = Watch()
    stepping(watch)
    watch.go(200, heard=True)
    watch.vigil.add([block([100], [300.0])], [])
    watch.go(1, heard=True)
    assert watch.go(350, heard=True) == ["hang", "hang_over"]


def test_numbers_of_an_epoch_and_marks_are_progress_and_stacks_and_repeated_steps_are_none():
    watch = Watch()
    stepping(watch)
    at = Moment(S, 7, 0, 99, float("nan"))
    watch.go(50, heard=True)
    watch.vigil.add([block([99], [150.0], EPOCH)], [])
    watch.go(50, heard=True)
    watch.vigil.add([], [Event(at, "checkpoint", {})])
    assert watch.go(50, heard=True) == []
    watch.vigil.add([block([99, 99], [199.0, 200.0])], [Text(at, "text", "system/stacks", "")])
    assert watch.go(20, heard=True) == ["hang"]


def test_before_the_second_step_nothing_is_a_hang():
    watch = Watch()
    stepping(watch, steps=1)
    assert watch.go(1000, heard=True) == []


def test_the_pace_is_the_99th_percentile_of_seconds_a_step_however_records_come():
    random = np.random.default_rng(3)
    gaps = random.exponential(1.0, 400)
    times = np.concatenate(([0.0], np.cumsum(gaps)))
    whole, pieces = Pace(), Pace()
    whole.add(block(range(401), times))
    for first in range(401):
        pieces.add(block([first], [times[first]]))
        pieces.add(block([first], [times[first] + 0.001]))  # another key set of the same step
    assert whole.p99() == pieces.p99() == pytest.approx(sorted(gaps)[int(0.99 * 399)], rel=1e-6)
    coarse = Pace()
    coarse.add(block([0, 10, 20], [0.0, 5.0, 20.0]))
    assert coarse.p99() == 0.5  # of the two gaps the lower: 99 % of one gap is none


def test_what_a_start_does_not_say_or_says_wrongly_is_unknown():
    assert Origin.of({}).lives() is None
    assert Origin.of({"boot": 3, "pid": "x", "oom_counters": [1]}).lives() is None
    assert Origin.of(HERE | {"oom_counters": {"/etc/passwd": 1, "/sys/fs/cgroup/../x": 1}}).oom_counters == {}
    assert Origin.of(HERE).lives() is True


def test_memory_kills_since_the_start_are_a_cause(monkeypatch):
    own, above = "/sys/fs/cgroup/job/memory.events", "/sys/fs/cgroup/memory.events"
    origin = Origin.of(HERE | {"oom_counters": {own: 0, above: 4}})
    for now, kills in (({own: 2, above: 9}, 2), ({above: 5}, 1), ({own: 0}, 0), ({}, None)):
        monkeypatch.setattr("sidestep_collector.liveness.origin.read_oom_counters", lambda _, now=now: now)
        details = post_mortem("killed", S, origin, said={}, lasts=[], now_ns=0)
        assert details.get("oom_kills") == kills
        assert details["cause"] == ("out_of_memory" if kills else "killed")
    assert post_mortem("killed", S, Origin(), said={}, lasts=[], now_ns=0)["cause"] == "killed"


def test_the_last_of_each_rank_is_that_of_its_latest_attempt():
    def last(rank, attempt, step, loss):
        stream = Stream(b"x" * 8, b"r" * 16, "run", "p", rank, attempt)
        return SimpleNamespace(stream=stream, t_ns=10**9, step=step, values={"train/loss": loss})

    lasts = [last(0, 0, 9, 1.0), last(0, 1, 4, 0.5), last(1, 0, 3, float("nan"))]
    details = post_mortem("failed", S, Origin(), said={"error": "E"}, lasts=lasts, now_ns=3 * 10**9)
    assert details["ranks"] == [
        {"rank": 0, "step": 4, "loss": 0.5, "seconds_since_last_record": 2.0},
        {"rank": 1, "step": 3, "loss": "nan", "seconds_since_last_record": 2.0},
    ]
    assert (details["step"], details["loss"], details["error"]) == (4, 0.5, "E")


def test_the_loss_is_the_total_else_the_plain_one_else_one_that_is_called_so():
    assert loss_of({"train/loss": 2.0, "train/loss_total": 1.0}) == 1.0
    assert loss_of({"train/loss": 2.0, "train/loss_a": 1.0}) == 2.0
    assert loss_of({"val/loss": 1.0, "train/loss_a": 3.0}) == 3.0
    assert loss_of({"train/acc": 3.0}) is None
