"""The periodic tier and the memory of now."""

import math
import statistics

import numpy as np
import pytest

from sidestep_collector.aggregate import Live, PeriodAggregator
from sidestep_collector.blocks import EpochSummary, KeySet, ScalarBlock, Stream

DATA = {0: [1.0, 2.0], 1: [4.0], 2: [], 3: [8.0, 9.0, 10.0]}


def summary(epoch: int, values: list[float], run: str = "run") -> EpochSummary:
    found = {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "last": values[-1] if values else None,
        "n": len(values),
        "n_nonfinite": 1,
    }
    return EpochSummary(run, "project", epoch, 0, 0.0, 1, {"loss": found})


def test_a_period_is_told_when_it_is_full() -> None:
    periods = PeriodAggregator(4)
    assert periods.add([summary(epoch, DATA[epoch]) for epoch in range(3)]) == []
    (period,) = periods.add([summary(3, DATA[3])])
    every = [value for values in DATA.values() for value in values]
    assert (period.run, period.project, period.first_epoch, period.last_epoch) == ("run", "project", 0, 3)
    found = period.statistics["loss"]
    assert found["mean"] == pytest.approx(statistics.fmean(every))
    assert found["std"] == pytest.approx(statistics.stdev(every))
    assert (found["min"], found["max"], found["last"], found["n"], found["n_nonfinite"]) == (1.0, 10.0, 10.0, 6, 4)


def test_a_summary_made_anew_tells_its_period_again() -> None:
    periods = PeriodAggregator(2)
    assert len(periods.add([summary(0, [1.0]), summary(1, [1.0])])) == 1
    (again,) = periods.add([summary(1, [1.0, 4.0])])
    assert again.statistics["loss"]["mean"] == 2.0
    assert periods.add([summary(2, [1.0])]) == []
    assert periods.add([summary(2, [2.0])]) == []
    (following,) = periods.add([summary(3, [4.0])])
    assert (following.first_epoch, following.statistics["loss"]["mean"]) == (2, 3.0)


def test_one_batch_can_hold_more_than_a_period() -> None:
    periods = PeriodAggregator(2)
    told = periods.add([summary(epoch, [float(epoch)]) for epoch in range(5)])
    assert [(period.first_epoch, period.last_epoch) for period in told] == [(0, 1), (2, 3)]


def test_late_data_of_an_earlier_period_are_no_part_of_the_next() -> None:
    periods = PeriodAggregator(3)
    told = periods.add([summary(epoch, [float(epoch)]) for epoch in (0, 1, 2, 3, 2, 4, 0, 5)])
    assert [(period.first_epoch, period.last_epoch) for period in told] == [(0, 2), (3, 5)]
    assert told[1].statistics["loss"]["mean"] == 4.0


@pytest.mark.parametrize("restarted_after", range(1, 9))
def test_summaries_from_where_its_period_begins_are_all_that_a_restart_needs(restarted_after: int) -> None:
    numbers = [0, 1, 3, 4, 5, 8, 9, 10, 11]  # a run may leave epochs out
    every = [summary(number, [number, 2.0 * number]) for number in numbers]
    whole = PeriodAggregator(3).add(every)
    assert [(period.first_epoch, period.last_epoch) for period in whole] == [(0, 3), (4, 8), (9, 11)]
    before, after = PeriodAggregator(3), PeriodAggregator(3)
    told = before.add(every[:restarted_after])
    begin = after.begin("run", numbers[:restarted_after])
    after.add([one for one in every[:restarted_after] if one.epoch >= begin])
    assert [*told, *after.add(every[restarted_after:])] == whole


def test_means_that_are_unknown_stay_unknown() -> None:
    unknown = EpochSummary(
        "run",
        "project",
        1,
        0,
        0.0,
        1,
        {"loss": {**dict.fromkeys(("mean", "std", "min", "max", "last")), "n": 3, "n_nonfinite": 0}},
    )
    (period,) = PeriodAggregator(2).add([summary(0, [1.0]), unknown])
    assert (period.statistics["loss"]["mean"], period.statistics["loss"]["std"]) == (None, None)
    assert period.statistics["loss"]["n"] == 4


def test_forgotten_runs_begin_anew() -> None:
    periods = PeriodAggregator(2)
    periods.add([summary(0, [1.0])])
    periods.forget("run")
    assert periods.add([summary(1, [1.0])]) == []


def block(stream: Stream, names: tuple[str, ...], first: int, records: int) -> ScalarBlock:
    seq = np.arange(first, first + records)
    values = (seq[:, None] + np.arange(len(names)) / 10).astype("f8")
    return ScalarBlock(stream, KeySet(len(names), 1, "step", names, ()), seq, seq * 10, seq * 2, seq / 100, values)


def stream(number: int, run: str = "run") -> Stream:
    return Stream(bytes([number]) * 8, b"r" * 16, run, "project", number, 0)


def test_the_latest_of_all_key_sets() -> None:
    live = Live()
    live.add([block(stream(1), ("a",), 0, 3)])
    live.add([block(stream(0), ("a", "b"), 0, 1), block(stream(0), ("a",), 5, 2)])
    first, second = live.latest("run")
    assert (first.stream.rank, first.seq, first.t_ns, first.step, first.epoch) == (0, 6, 60, 12, 0.06)
    assert first.values == {"a": 6.0, "b": 0.1}
    assert second.values == {"a": 2.0}
    assert live.latest("another") == []


def test_what_is_rare_is_not_pushed_out_by_what_is_frequent() -> None:
    live = Live()
    live.add([block(stream(0), ("val", "acc"), 0, 1)])
    for first in range(1, 2000, 64):
        live.add([block(stream(0), ("loss",), first, 64)])
    assert set(live.latest("run")[0].values) == {"val", "acc", "loss"}


def test_a_long_block_costs_as_much_as_a_short_one() -> None:
    long, short = Live(), Live()
    long.add([block(stream(0), ("loss",), 0, 5000)])
    assert (long.latest("run")[0].seq, long.latest("run")[0].values) == (4999, {"loss": 4999.0})
    for first in range(100):
        short.add([block(stream(0), ("loss",), first, 1)])
    assert long.nbytes == short.nbytes < 1000


def test_the_silent_go_first_when_memory_is_short() -> None:
    live = Live(bytes_max=10_000)
    for number in range(20):
        live.add([block(stream(number, f"run{number}"), ("loss",), 0, 200)])
        live.add([block(stream(0, "run0"), ("loss",), 200 + number, 1)])
    assert live.nbytes <= 10_000
    assert live.latest("run0")
    assert live.latest("run19")
    assert live.latest("run1") == []


def test_a_forgotten_run_leaves_no_bytes() -> None:
    live = Live()
    live.add([block(stream(0), ("loss",), 0, 5), block(stream(1, "other"), ("loss",), 0, 5)])
    live.forget("run")
    assert live.latest("run") == []
    assert len(live.latest("other")) == 1
    live.forget("other")
    assert live.nbytes == 0
    assert math.isfinite(live.nbytes)
