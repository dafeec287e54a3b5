"""Epochs of several ranks: sums, maxima, norms and ratios step by step, against a plain recomputation."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sidestep_collector.aggregate import EpochAggregator, RunHistory, ranks
from sidestep_collector.blocks import Batch, Event, KeySet, Moment, Progress, ScalarBlock, Stream
from sidestep_collector.store import Store
from sidestep_collector.store.resume import read_tails

STEPS = 6
RNG = np.random.default_rng(7)


def stream(rank: int) -> Stream:
    return Stream(bytes([rank]) * 8, b"r" * 16, "r", "p", rank, 0)


def event(rank: int, seq: int, name: str, **details: object) -> Event:
    return Event(Moment(stream(rank), seq, seq + 10**9, -1, math.nan), name, details)


def block(rank: int, names, values, reductions=(), steps=None) -> ScalarBlock:
    rows = np.array(values, dtype=np.float64).reshape(-1, len(names))
    seq = np.arange(1, len(rows) + 1)
    steps = np.arange(len(rows)) if steps is None else np.array(steps)
    key_set = KeySet(0, 1, "step", tuple(names), tuple(reductions))
    return ScalarBlock(stream(rank), key_set, seq, seq + 10**9, steps, np.zeros(len(rows)), rows)


def summary(*blocks: ScalarBlock, world_size: int = 2):
    """Statistics of epoch 0 of a run whose ranks have these values."""
    aggregator = EpochAggregator()
    told = {one.stream.rank for one in blocks}
    aggregator.add([], [event(rank, 0, "start", world_size=world_size) for rank in told])
    aggregator.add(list(blocks), [])
    aggregator.add([], [event(rank, 100, "end") for rank in told])
    ((_, summaries),) = (aggregator.take(),)
    return summaries[0].statistics


@pytest.mark.parametrize(
    ("said", "combine"),
    [
        ("sum", lambda values: values.sum(0)),
        ("max", lambda values: values.max(0)),
        ("l2", lambda values: np.sqrt((values**2).sum(0))),
    ],
)
def test_an_epoch_is_of_the_ranks_combined_step_by_step(said, combine):
    values = RNG.normal(size=(3, STEPS))
    found = summary(*(block(rank, ("m",), values[rank], (said,)) for rank in range(3)), world_size=3)["m"]
    expected = combine(values)
    assert found["n"] == STEPS
    assert found["mean"] == pytest.approx(expected.mean())
    assert found["std"] == pytest.approx(expected.std(ddof=1))
    assert (found["min"], found["max"]) == pytest.approx((expected.min(), expected.max()))
    assert found["last"] == pytest.approx(expected[-1])


def test_what_the_catalogue_says_holds_without_a_word_of_the_run():
    found = summary(*(block(rank, ("perf/samples_per_sec", "mine"), [(10.0 + rank, rank)] * 2) for rank in (0, 1)))
    assert found["perf/samples_per_sec"]["mean"] == found["perf/samples_per_sec"]["last"] == 21.0
    assert found["mine"]["mean"] == 0.5
    assert found["mine"]["n"] == 4


def test_ratios_and_shares_are_weighed():
    values, weights = RNG.random((2, STEPS)), RNG.random((2, STEPS))
    said = ("rms:w", "mean:w", "l2")
    rows = [np.stack((values[rank], values[rank], weights[rank]), axis=1) for rank in (0, 1)]
    found = summary(*(block(rank, ("ratio", "share", "w"), rows[rank], said) for rank in (0, 1)))
    ratio = np.sqrt(((values * weights) ** 2).sum(0) / (weights**2).sum(0))
    assert found["ratio"]["mean"] == pytest.approx(ratio.mean())
    assert found["share"]["mean"] == pytest.approx(((values * weights).sum(0) / weights.sum(0)).mean())


def test_a_step_that_a_rank_has_lost_is_left_out():
    whole, holed = block(0, ("m",), [3.0, 3.0, 30.0], ("l2",)), block(1, ("m",), [4.0, 40.0], ("l2",), steps=(0, 2))
    found = summary(whole, holed)["m"]
    assert (found["n"], found["min"], found["last"]) == (2, 5.0, 50.0)


def test_a_rank_that_has_no_part_of_a_metric_is_not_waited_for():
    found = summary(block(0, ("m",), [3.0], ("l2",)), block(1, ("other",), [1.0]))
    assert found["m"]["mean"] == 3.0


def test_a_norm_of_which_a_part_is_not_finite_is_counted_and_not_averaged():
    found = summary(block(0, ("m",), [3.0, math.nan], ("l2",)), block(1, ("m",), [4.0, 4.0], ("l2",)))["m"]
    assert (found["n"], found["n_nonfinite"], found["mean"], found["last"]) == (1, 1, 5.0, None)


def test_sums_of_ranks_that_never_speak_of_the_same_step_have_a_mean_and_norms_do_not():
    one = block(0, ("s", "n"), [(1, 1), (3, 1)], ("sum", "l2"), steps=(0, 2))
    two = block(1, ("s", "n"), [(10, 1), (30, 1)], ("sum", "l2"), steps=(1, 3))
    found = summary(one, two)
    assert found["s"]["mean"] == 22.0
    assert found["s"]["last"] == 33.0
    assert (found["n"]["mean"], found["n"]["n"]) == (None, 0)


def test_one_rank_alone_is_as_it_was():
    found = summary(block(0, ("perf/samples_per_sec",), [1.0, 2.0]), world_size=1)
    assert found["perf/samples_per_sec"]["mean"] == 1.5


def test_values_above_the_bound_make_the_number_unknown_not_wrong(monkeypatch):
    monkeypatch.setattr(ranks, "VALUES_MAX", 3)
    found = summary(*(block(rank, ("m",), [3.0] * 4, ("l2",)) for rank in (0, 1)))["m"]
    assert found == {"mean": None, "std": None, "min": None, "max": None, "last": None, "n": 0, "n_nonfinite": 0}


def test_the_last_of_several_values_of_a_step_counts():
    found = summary(block(0, ("m",), [1.0, 3.0], ("l2",), steps=(5, 5)), block(1, ("m",), [4.0], ("l2",), steps=(5,)))
    assert (found["m"]["n"], found["m"]["mean"]) == (1, 5.0)


def test_an_epoch_goes_on_over_a_restart(tmp_path):
    """What the first collector stored and what the second receives are one epoch."""
    said, names = ("l2", "rms:n", ""), ("n", "ratio", "perf/samples_per_sec")
    values = RNG.random((2, STEPS, 3))

    def part(rank: int, rows: slice) -> ScalarBlock:
        every = block(rank, names, values[rank], said)
        return replace(
            every, **{name: getattr(every, name)[rows] for name in ("seq", "t_ns", "step", "epoch", "values")}
        )

    streams = [stream(rank) for rank in (0, 1)]
    starts = [event(rank, 0, "start", world_size=2) for rank in (0, 1)]
    first = EpochAggregator()
    before = [part(rank, slice(0, 4)) for rank in (0, 1)]
    first.add(before, starts)
    store = Store.open(tmp_path)
    key_sets = [(one.stream, one.key_set) for one in before]
    progress = [Progress(of, 5, 0, ended=False) for of in streams]
    store.commit(Batch(before, list(starts), first.take()[0], progress=progress, key_sets=key_sets), {})

    (tail,) = read_tails(tmp_path, streams, lambda _, epochs: epochs[-1])
    second = EpochAggregator()
    history = RunHistory("r", "p", 1, tail.reached, tail.values is not None)
    second.restore(store.epoch_rows({"r": 0}), [history], tail.events, tail.values or ())
    store.close()
    second.add([part(rank, slice(4, None)) for rank in (0, 1)], [event(rank, 100, "end") for rank in (0, 1)])

    whole = summary(*(block(rank, names, values[rank], said) for rank in (0, 1)))
    found = second.take()[1][0].statistics
    for name in names:
        assert found[name] == pytest.approx(whole[name])


def test_what_a_restart_does_not_know_is_not_guessed():
    first, second = EpochAggregator(), EpochAggregator()
    first.add([block(rank, ("n",), [3.0], ("l2",)) for rank in (0, 1)], [])
    second.restore(first.take()[0], [RunHistory("r", "p", 1)])
    second.add([block(rank, ("n",), [4.0], ("l2",)) for rank in (0, 1)], [event(rank, 100, "end") for rank in (0, 1)])
    assert second.take()[1][0].statistics["n"]["mean"] is None
