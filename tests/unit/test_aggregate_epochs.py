"""Epochs: when one ends, what a summary says, and what comes after it."""

import math

import numpy as np
import pytest

from sidestep_collector.aggregate import EpochAggregator, RunHistory
from sidestep_collector.blocks import EpochRows, EpochSummary, Event, KeySet, Moment, ScalarBlock, Stream
from sidestep_schemas.epoch import epoch_document

SECOND = 10**9
T0 = 1_000 * SECOND


def stream(rank: int = 0, attempt: int = 0, run: str = "run") -> Stream:
    return Stream(f"{run:.4}{rank:02}{attempt:02}".encode(), b"r" * 16, run, "project", rank, attempt)


class Source:
    """Writes the records of one stream; its clock goes one second a record."""

    def __init__(self, aggregator: EpochAggregator, at: Stream | None = None, start: int = 0) -> None:
        self.aggregator = aggregator
        self.stream = at or stream()
        self.seq = start
        self.ids: dict[tuple[str, ...], int] = {}

    def log(self, epoch: float, step: int = 0, **values: float) -> None:
        names = tuple(name.replace("__", "/") for name in values)
        key_set = KeySet(self.ids.setdefault(names, len(self.ids)), 1, "step", names, ())
        self.aggregator.add(
            [
                ScalarBlock(
                    self.stream,
                    key_set,
                    np.array([self.seq]),
                    np.array([T0 + self.seq * SECOND]),
                    np.array([step]),
                    np.array([float(epoch)]),
                    np.array([list(values.values())]),
                )
            ],
            [],
        )
        self.seq += 1

    def event(self, event: str, at_epoch: float = math.nan, **details: object) -> None:
        at = Moment(self.stream, self.seq, T0 + self.seq * SECOND, -1, at_epoch)
        self.aggregator.add([], [Event(at, event, details)])
        self.seq += 1


@pytest.fixture
def aggregator() -> EpochAggregator:
    return EpochAggregator()


@pytest.fixture
def source(aggregator: EpochAggregator) -> Source:
    return Source(aggregator)


def summaries(aggregator: EpochAggregator) -> list[EpochSummary]:
    return aggregator.take()[1]


def epochs(aggregator: EpochAggregator) -> list[int]:
    return [summary.epoch for summary in summaries(aggregator)]


def test_an_open_epoch_gives_rows_and_no_summary(aggregator: EpochAggregator, source: Source) -> None:
    source.log(0, loss=1.0)
    rows, told = aggregator.take()
    assert [(row.epoch, row.names, row.n.tolist()) for row in rows] == [(0, ("loss",), [1])]
    assert told == []
    assert aggregator.take() == ([], [])


@pytest.mark.parametrize(
    "ending",
    [
        lambda source: source.event("epoch_end", 0.0),
        lambda source: source.event("epoch_end", 1.0, epoch=0),
        lambda source: source.event("epoch_begin", 1.0),
        lambda source: source.log(1, loss=1.0),
        lambda source: source.event("end"),
        lambda source: source.aggregator.end(source.stream),
        lambda source: Source(source.aggregator, stream(attempt=1)).log(1, loss=1.0),
    ],
    ids=["its end", "an end that names it", "a begin", "a record", "the run's end", "a death", "the next attempt"],
)
def test_an_epoch_ends_by(aggregator: EpochAggregator, source: Source, ending) -> None:
    source.log(0.1, loss=1.0)
    assert epochs(aggregator) == []
    ending(source)
    assert epochs(aggregator) == [0]
    assert epochs(aggregator) == []


def test_blocks_and_events_of_one_add_are_put_in_order(aggregator: EpochAggregator, source: Source) -> None:
    key_set = KeySet(0, 1, "step", ("loss",), ())
    seq = np.array([1, 2, 5, 6, 9])
    of_rows = np.array([0.0, 0.5, 1.0, math.nan, 2.0])
    block = ScalarBlock(source.stream, key_set, seq, T0 + seq, seq, of_rows, np.arange(5.0)[:, None])
    events = [
        Event(Moment(source.stream, at, T0 + at, -1, float(epoch)), name, {})
        for at, name, epoch in [(0, "epoch_begin", 0), (3, "epoch_end", 0), (4, "epoch_begin", 1), (7, "epoch_end", 1)]
    ]
    aggregator.add([block], [*events, Event(Moment(source.stream, 8, T0 + 8, -1, 2.0), "epoch_begin", {})])
    rows, told = aggregator.take()
    assert {row.epoch: (row.n[0], row.mean[0]) for row in rows} == {0: (2, 0.5), 1: (1, 2.0), 2: (1, 4.0)}
    assert [summary.epoch for summary in told] == [0, 1]


def test_validation_after_the_end_tells_the_epoch_again(aggregator: EpochAggregator, source: Source) -> None:
    source.log(0, loss=1.0)
    source.event("epoch_end", 0.0)
    assert epochs(aggregator) == [0]
    source.log(0, val__loss=3.0)
    (again,) = summaries(aggregator)
    assert again.epoch == 0
    assert set(again.statistics) == {"loss", "val/loss"}
    source.log(1, loss=1.0)
    assert epochs(aggregator) == []


def test_a_late_record_after_the_next_epoch_began_belongs_to_its_own(
    aggregator: EpochAggregator, source: Source
) -> None:
    for epoch in (0, 1):
        source.log(epoch, loss=1.0)
    assert epochs(aggregator) == [0]
    source.log(0, val__loss=3.0)
    source.log(1, loss=5.0)
    (again,) = summaries(aggregator)
    assert (again.epoch, again.statistics["val/loss"]["mean"]) == (0, 3.0)
    source.event("end")
    (last,) = summaries(aggregator)
    assert (last.epoch, last.statistics["loss"]["mean"]) == (1, 3.0)


def test_old_epochs_are_forgotten_and_their_late_records_only_stored(
    aggregator: EpochAggregator, source: Source
) -> None:
    for epoch in range(10):
        source.log(epoch, loss=1.0)
    assert epochs(aggregator) == list(range(9))
    source.log(2, loss=9.0)
    rows, told = aggregator.take()
    assert [(row.epoch, row.mean[0]) for row in rows] == [(2, 9.0)]
    assert told == []
    source.log(6, loss=9.0)
    assert epochs(aggregator) == [6]
    (run,) = aggregator._runs.values()
    (clock,) = run.clocks.values()
    assert set(clock.epochs) == {6, 7, 8, 9}


def test_records_outside_epochs_are_not_aggregated(aggregator: EpochAggregator, source: Source) -> None:
    for epoch in (math.nan, math.inf, -math.inf, 1e300):
        source.log(epoch, loss=1.0)
    source.event("epoch_end")
    assert aggregator.take() == ([], [])


def test_times_and_steps(aggregator: EpochAggregator, source: Source) -> None:
    source.event("start")
    source.event("epoch_begin", 0.0)
    source.log(0, step=5, loss=1.0)
    source.log(0.5, step=7, loss=2.0)
    source.event("epoch_end", 0.0)
    (summary,) = summaries(aggregator)
    assert (summary.run, summary.project, summary.ranks) == ("run", "project", 1)
    assert (summary.global_step, summary.wall_time_sec, summary.last_t_ns) == (7, 4.0, T0 + 4 * SECOND)
    assert summary.statistics["perf/epoch_time_sec"] == {
        "mean": 3.0,
        "std": None,
        "min": 3.0,
        "max": 3.0,
        "last": 3.0,
        "n": 1,
        "n_nonfinite": 0,
    }


def test_without_a_start_the_run_begins_at_its_first_record(aggregator: EpochAggregator, source: Source) -> None:
    source.log(math.nan, loss=1.0)
    source.log(0, loss=1.0)
    source.event("end")
    (summary,) = summaries(aggregator)
    assert (summary.wall_time_sec, summary.global_step) == (1.0, 0)


def test_statistics_of_values_that_are_not_finite(aggregator: EpochAggregator, source: Source) -> None:
    for value in (1.0, math.nan, 3.0, math.inf):
        source.log(0, loss=value, bad=math.nan, huge=1.7e308)
    source.event("end")
    (summary,) = summaries(aggregator)
    assert summary.statistics["loss"] == {
        "mean": 2.0,
        "std": math.sqrt(2),
        "min": 1.0,
        "max": 3.0,
        "last": None,
        "n": 2,
        "n_nonfinite": 2,
    }
    assert summary.statistics["bad"] == {
        "mean": None,
        "std": None,
        "min": None,
        "max": None,
        "last": None,
        "n": 0,
        "n_nonfinite": 4,
    }
    assert summary.statistics["huge"]["mean"] == pytest.approx(1.7e308)
    assert summary.statistics["huge"]["n"] == 4


def test_a_metric_of_two_key_sets_is_one_metric(aggregator: EpochAggregator, source: Source) -> None:
    source.log(0, loss=1.0)
    source.log(0, loss=2.0, acc=0.5)
    source.log(0, loss=6.0)
    source.event("end")
    (summary,) = summaries(aggregator)
    assert (summary.statistics["loss"]["n"], summary.statistics["loss"]["mean"]) == (3, 3.0)
    assert summary.statistics["loss"]["last"] == 6.0
    assert summary.statistics["acc"]["n"] == 1


def test_metrics_that_follow_from_others(aggregator: EpochAggregator, source: Source) -> None:
    for loss, clipped in ((1.0, 0.0), (3.0, 1.0), (5.0, 0.0), (7.0, 0.0)):
        source.log(0, train__loss=loss, train__gradient__clipped=clipped)
    source.event("end")
    (summary,) = summaries(aggregator)
    means = {tag: statistics["mean"] for tag, statistics in summary.statistics.items()}
    assert means["train/loss_std"] == pytest.approx(np.std([1, 3, 5, 7], ddof=1))
    assert means["train/gradients/clip_fraction"] == 0.25
    assert means["train/gradient/clipping_percentage"] == 25.0
    document = epoch_document(0, 0, 0.0, summary.statistics)
    assert document["train"]["clip_fraction"] == 0.25


def test_what_the_run_logged_itself_is_not_derived(aggregator: EpochAggregator, source: Source) -> None:
    source.event("epoch_begin", 0.0)
    for loss in (1.0, 3.0):
        source.log(0, train__loss=loss, train__loss_std=9.0, perf__epoch_time_sec=8.0)
    source.event("epoch_end", 0.0)
    (summary,) = summaries(aggregator)
    assert summary.statistics["train/loss_std"]["mean"] == 9.0
    assert summary.statistics["perf/epoch_time_sec"]["mean"] == 8.0


def test_loss_total_comes_before_loss(aggregator: EpochAggregator, source: Source) -> None:
    for loss in (1.0, 3.0):
        source.log(0, train__loss=loss * 10, train__loss_total=loss)
    source.event("end")
    (summary,) = summaries(aggregator)
    assert summary.statistics["train/loss_std"]["mean"] == pytest.approx(math.sqrt(2))


def test_an_epoch_without_records_is_told_by_its_events(aggregator: EpochAggregator, source: Source) -> None:
    source.event("epoch_begin", 0.0)
    source.event("epoch_end", 0.0)
    (summary,) = summaries(aggregator)
    assert set(summary.statistics) == {"perf/epoch_time_sec"}
    assert summary.global_step == -1


def test_all_ranks_are_waited_for(aggregator: EpochAggregator) -> None:
    first, second = Source(aggregator, stream(0)), Source(aggregator, stream(1))
    for rank, source in enumerate((first, second)):
        source.event("epoch_begin", 0.0)
        for _ in range(rank):
            source.log(math.nan, other=0.0)
        source.log(0, loss=float(rank), **{f"only{rank}": 1.0})
    first.event("epoch_end", 0.0)
    assert epochs(aggregator) == []
    second.event("epoch_end", 0.0)
    (summary,) = summaries(aggregator)
    assert summary.ranks == 2
    assert (summary.statistics["loss"]["mean"], summary.statistics["loss"]["last"]) == (0.5, 0.0)
    assert set(summary.statistics) == {"loss", "only0", "only1", "perf/epoch_time_sec"}
    assert summary.statistics["perf/epoch_time_sec"]["mean"] == 3.0


@pytest.mark.parametrize(
    "moving_on", [lambda source: source.event("end"), lambda source: source.log(2, loss=1.0)], ids=["end", "two ahead"]
)
def test_a_silent_rank_is_not_waited_for_for_ever(aggregator: EpochAggregator, moving_on) -> None:
    first, silent = Source(aggregator, stream(0)), Source(aggregator, stream(1))
    for source in (first, silent):
        source.log(0, loss=1.0)
    first.log(1, loss=1.0)
    assert epochs(aggregator) == []
    moving_on(first)
    assert next((summary.epoch, summary.ranks) for summary in summaries(aggregator)) == (0, 2)


def test_the_latest_attempt_with_data_counts(aggregator: EpochAggregator) -> None:
    before = Source(aggregator, stream(0, 0))
    for epoch in (0, 1):
        before.log(epoch, loss=1.0)
    assert epochs(aggregator) == [0]
    after = Source(aggregator, stream(0, 1))
    after.log(1, loss=5.0)
    after.event("epoch_begin", 2.0)
    (summary,) = summaries(aggregator)
    assert (summary.epoch, summary.ranks, summary.statistics["loss"]["mean"]) == (1, 1, 5.0)
    last = Source(aggregator, stream(0, 2))
    last.event("epoch_begin", 1.0)
    last.event("epoch_end", 1.0)
    (again,) = [summary for summary in summaries(aggregator) if summary.epoch == 1]
    assert again.statistics["loss"]["mean"] == 5.0


def test_an_epoch_whose_data_one_rank_forgot_is_not_told_wrongly(aggregator: EpochAggregator) -> None:
    first, late = Source(aggregator, stream(0)), Source(aggregator, stream(1))
    for epoch in range(8):
        first.log(epoch, loss=1.0)
    aggregator.take()
    late.log(0, loss=9.0)
    late.log(1, loss=9.0)
    rows, told = aggregator.take()
    assert [row.epoch for row in rows] == [0, 1]
    assert told == []


def test_a_number_that_begins_again_is_an_epoch_again(aggregator: EpochAggregator, source: Source) -> None:
    for epoch in range(6):
        source.log(epoch, loss=1.0)
    aggregator.take()
    source.event("epoch_begin", 0.0)
    source.log(0, loss=7.0)
    source.event("epoch_end", 0.0)
    told = {summary.epoch: summary for summary in summaries(aggregator)}
    assert told[0].statistics["loss"]["mean"] == 7.0
    assert set(told) == {0, 5}


def test_runs_are_apart_and_can_be_forgotten(aggregator: EpochAggregator) -> None:
    for name in ("one", "two"):
        source = Source(aggregator, stream(run=name))
        source.log(0, loss=1.0)
        source.event("end")
    assert [summary.run for summary in summaries(aggregator)] == ["one", "two"]
    Source(aggregator, stream(run="one"), 5).log(1, loss=1.0)
    aggregator.forget("one")
    assert aggregator.take() == ([], [])
    assert set(aggregator._runs) == {"two"}


def test_rows_carry_first_and_last_with_their_seq(aggregator: EpochAggregator, source: Source) -> None:
    for value in (math.nan, 2.0, -math.inf):
        source.log(0, loss=value)
    ((row,), _) = aggregator.take()
    assert (row.n[0], row.n_nonfinite[0], row.mean[0], row.m2[0]) == (1, 2, 2.0, 0.0)
    assert math.isnan(row.vfirst[0])
    assert row.vlast[0] == -math.inf
    assert (row.first_seq.tolist(), row.last_seq.tolist()) == ([0], [2])


def test_a_restart_goes_on_where_the_rows_end(aggregator: EpochAggregator, source: Source) -> None:
    source.event("start")
    stored: list[EpochRows] = []
    for epoch in range(6):
        for value in (1.0, 2.0):
            source.log(epoch, step=epoch, loss=value, train__loss=value)
            stored += aggregator.take()[0]
    restarted = EpochAggregator()
    history = RunHistory("run", "project", T0, {5: (5, T0 + 12 * SECOND)})
    begin = Event(Moment(source.stream, 11, T0 + 2 * SECOND, -1, 5.0), "epoch_begin", {})
    told = restarted.restore(stored, [history], [begin])
    assert [(one.epoch, one.statistics["loss"]["mean"]) for one in told] == [(epoch, 1.5) for epoch in range(5)]
    assert restarted.take() == ([], [])
    source.aggregator = restarted
    source.log(5, step=3, loss=6.0)
    source.event("epoch_end", 5.0)
    rows, (summary,) = restarted.take()
    assert [(row.epoch, row.n[0]) for row in rows] == [(5, 1)]
    assert (summary.epoch, summary.global_step, summary.wall_time_sec) == (5, 5, 14.0)
    assert (summary.statistics["loss"]["n"], summary.statistics["loss"]["mean"]) == (3, 3.0)
    assert summary.statistics["loss"]["last"] == 6.0
    assert summary.statistics["perf/epoch_time_sec"]["mean"] == 12.0
    source.log(1, loss=1.0)
    assert epochs(restarted) == []


@pytest.mark.parametrize("over", [True, False])
def test_no_epoch_of_a_stream_that_is_over_is_open_after_a_restart(aggregator: EpochAggregator, over: bool) -> None:
    for rank in (0, 1):
        Source(aggregator, stream(rank)).log(0, loss=float(rank))
    restarted = EpochAggregator()
    restarted.restore(aggregator.take()[0], [RunHistory("run", "project", T0)], over={stream(1)} if over else ())
    Source(restarted, stream(0), start=5).log(1, loss=1.0)
    told = summaries(restarted)
    assert [(one.epoch, one.ranks, one.statistics["loss"]["mean"]) for one in told] == ([(0, 2, 0.5)] if over else [])


def test_after_a_restart_the_latest_attempt_with_data_counts_and_earlier_ones_are_over(
    aggregator: EpochAggregator,
) -> None:
    for attempt, numbers in ((0, (0, 1)), (1, (1, 2)), (2, (3,)), (3, (4,)), (4, (5, 6))):
        source = Source(aggregator, stream(0, attempt))
        for number in numbers:
            source.log(number, loss=10.0 * attempt + number)
    restarted = EpochAggregator()
    told = restarted.restore(aggregator.take()[0], [RunHistory("run", "project", T0)])
    found = [(one.epoch, one.statistics["loss"]["mean"]) for one in told]
    assert found == [(0, 0.0), (1, 11.0), (2, 12.0), (3, 23.0), (4, 34.0), (5, 45.0)]
    (run,) = restarted._runs.values()
    assert sorted(clock.stream.attempt for clock in run.clocks.values()) == [2, 3, 4]


def test_memory_does_not_grow_with_attempts(aggregator: EpochAggregator) -> None:
    for attempt in range(20):
        Source(aggregator, stream(0, attempt)).log(attempt, loss=1.0)
        aggregator.take()
    (run,) = aggregator._runs.values()
    assert sorted(clock.stream.attempt for clock in run.clocks.values()) == [17, 18, 19]
