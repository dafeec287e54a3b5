"""Aggregates equal what is computed value by value, whatever the blocks, the ranks and the holes."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep_collector.aggregate import EpochAggregator
from sidestep_collector.aggregate.moments import Moments, merge_moments, moments
from sidestep_collector.blocks import EpochRows, Event, KeySet, Moment, ScalarBlock, Stream

#: Squares of numbers below 1e-150 leave float64 at its lower end.
TINY = 1e-300
finite = st.floats(-1e6, 1e6)
values = st.one_of(finite, finite, finite, st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    rows, columns = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 3, 60]))
    distinct = draw(st.lists(values, min_size=1, max_size=30))
    picks = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, len(distinct), (rows, columns))
    return np.array(distinct, draw(st.sampled_from(["f4", "f8"])))[picks]


def assert_is_direct(found: Moments, matrix: np.ndarray) -> None:
    for column in range(matrix.shape[1]):
        every = matrix[:, column].astype(np.float64).tolist()
        kept = [value for value in every if math.isfinite(value)]
        assert found.n[column] == len(kept)
        assert found.n_nonfinite[column] == len(every) - len(kept)
        if not kept:
            assert math.isnan(found.mean[column])
            assert math.isnan(found.vmin[column])
            assert math.isnan(found.vmax[column])
            assert found.m2[column] == 0
            continue
        scale = max(map(abs, kept))
        mean = math.fsum(kept) / len(kept)
        assert (found.vmin[column], found.vmax[column]) == (min(kept), max(kept))
        assert found.mean[column] == pytest.approx(mean, rel=1e-12, abs=1e-15 * scale + TINY)
        # relative to the sum of squares: that is what rounding of the values themselves leaves of M2
        m2 = math.fsum((value - mean) ** 2 for value in kept)
        assert found.m2[column] == pytest.approx(m2, rel=1e-12, abs=1e-15 * scale * scale * len(kept) + TINY)


@settings(deadline=None)
@given(matrices())
def test_moments_are_those_of_a_direct_computation(matrix: np.ndarray) -> None:
    assert_is_direct(moments(matrix), matrix)


@settings(deadline=None)
@given(matrices(), st.sets(st.integers(1, 39)))
def test_moments_of_parts_merge_to_those_of_the_whole(matrix: np.ndarray, cuts: set[int]) -> None:
    parts = np.split(matrix, sorted(cut for cut in cuts if cut < len(matrix)))
    assert_is_direct(merge_moments([moments(part) for part in parts]), matrix)


def stream(rank: int) -> Stream:
    return Stream(bytes([rank]) * 8, b"r" * 16, "run", "project", rank, 0)


def block(rank: int, matrix: np.ndarray, first: int, epochs: np.ndarray) -> ScalarBlock:
    seq = np.arange(first, first + len(matrix))
    names = tuple(f"m{column}" for column in range(matrix.shape[1]))
    dtype = int(matrix.dtype == np.float64)
    return ScalarBlock(stream(rank), KeySet(0, dtype, "step", names, ()), seq, seq * 10 + 1, seq * 2, epochs, matrix)


def end(rank: int, seq: int, epoch: int) -> Event:
    return Event(Moment(stream(rank), seq, seq * 10 + 1, -1, float(epoch)), "epoch_end", {})


def row_moments(rows: EpochRows) -> Moments:
    return Moments(rows.n, rows.n_nonfinite, rows.vmin, rows.vmax, rows.mean, rows.m2)


@settings(deadline=None, max_examples=60)
@given(st.lists(matrices(), min_size=1, max_size=3), st.data())
def test_epochs_do_not_depend_on_blocks_and_takes(ranks: list[np.ndarray], data: st.DataObject) -> None:
    aggregator = EpochAggregator()
    width = min(matrix.shape[1] for matrix in ranks)
    ranks = [np.ascontiguousarray(matrix[:, :width]) for matrix in ranks]
    stored: list[EpochRows] = []
    epochs = []
    for rank, matrix in enumerate(ranks):
        # three epochs one after the other, with records outside any epoch among them
        of_rows = np.sort(np.arange(len(matrix)) % 3) + 0.25
        of_rows[data.draw(st.lists(st.integers(0, len(matrix) - 1), max_size=3))] = math.nan
        epochs.append(of_rows)
        cuts = sorted({0, len(matrix), *data.draw(st.sets(st.integers(0, len(matrix)), max_size=5))})
        for start, stop in itertools.pairwise(cuts):
            aggregator.add([block(rank, matrix[start:stop], start, of_rows[start:stop])], [])
            if data.draw(st.booleans()):
                stored += aggregator.take()[0]
    aggregator.add([], [end(rank, len(matrix), 2) for rank, matrix in enumerate(ranks)])
    rows, _ = aggregator.take()
    stored += rows

    for rank, matrix in enumerate(ranks):
        for epoch in range(3):
            expected = matrix[np.floor(epochs[rank]) == epoch]
            parts = [one for one in stored if (one.stream.rank, one.epoch) == (rank, epoch)]
            assert bool(parts) == bool(len(expected))
            if parts:
                assert_is_direct(merge_moments([row_moments(part) for part in parts]), expected)
                np.testing.assert_array_equal(parts[0].vfirst, expected[0].astype(np.float64))
                np.testing.assert_array_equal(parts[-1].vlast, expected[-1].astype(np.float64))


@settings(deadline=None, max_examples=60)
@given(st.lists(matrices(), min_size=1, max_size=4))
def test_a_summary_is_that_of_all_ranks_together(ranks: list[np.ndarray]) -> None:
    aggregator = EpochAggregator()
    for rank, matrix in enumerate(ranks):
        aggregator.add([block(rank, matrix[:, :1], 0, np.zeros(len(matrix)))], [end(rank, len(matrix), 0)])
    _, (summary,) = aggregator.take()
    assert summary.ranks == len(ranks)
    assert summary.global_step == 2 * (max(map(len, ranks)) - 1)
    found = summary.statistics["m0"]
    every = [float(value) for matrix in ranks for value in matrix[:, 0]]
    kept = [value for value in every if math.isfinite(value)]
    assert (found["n"], found["n_nonfinite"]) == (len(kept), len(every) - len(kept))
    last = float(ranks[0][-1, 0])
    assert found["last"] == (last if math.isfinite(last) else None)
    if not kept:
        assert found["mean"] is found["min"] is found["max"] is found["std"] is None
        return
    scale = max(map(abs, kept))
    assert (found["min"], found["max"]) == (min(kept), max(kept))
    assert found["mean"] == pytest.approx(math.fsum(kept) / len(kept), rel=1e-12, abs=1e-15 * scale + TINY)
    if len(kept) == 1:
        assert found["std"] is None
    else:
        variance = statistics.variance(kept)
        assert found["std"] ** 2 == pytest.approx(variance, rel=1e-12, abs=1e-15 * scale * scale * len(kept) + TINY)
