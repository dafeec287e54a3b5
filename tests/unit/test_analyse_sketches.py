"""The overlap of two splits from their sketches, against sets whose overlap is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.analysed import Recorded, analysed, values

from sidestep_collector.analyse.sketches import EMPTY, Sketches, distinct, overlap

SIZE = 1024


def hashes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count, dtype=np.int64)


def sketch(samples: np.ndarray) -> np.ndarray:
    known = np.sort(np.unique(samples))[:SIZE]
    return np.concatenate((known, np.full(SIZE - len(known), EMPTY)))


def test_small_splits_are_compared_exactly() -> None:
    train, val = hashes(900, 0), hashes(200, 1)
    val[:30] = train[:30]
    assert overlap(sketch(val), sketch(train)) == (0.15, 0.15, 0.15, 30, 200, True)


def test_the_interval_holds_the_true_share_nineteen_times_in_twenty() -> None:
    held = 0
    for seed in range(100):
        train, val = hashes(20_000, seed), hashes(5_000, 1000 + seed)
        val[:500] = train[:500]
        found = overlap(sketch(val), sketch(train))
        held += found.low <= 0.1 <= found.high
        assert not found.is_exact
        assert 150 < found.compared < 400
    assert 88 <= held <= 100


def test_splits_that_share_nothing_share_nothing() -> None:
    found = overlap(sketch(hashes(20_000, 0)), sketch(hashes(5_000, 1)))
    assert (found.share, found.low, found.shared) == (0.0, 0.0, 0)
    assert 0 < found.high < 0.02


def test_a_split_is_wholly_in_itself() -> None:
    one = sketch(hashes(20_000, 0))
    found = overlap(one, one)
    assert (found.share, found.high, found.compared) == (1.0, 1.0, SIZE)


def test_of_nothing_nothing_is_known() -> None:
    found = overlap(sketch(hashes(0, 1)), sketch(hashes(100, 0)))
    assert math.isnan(found.share)
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize("count", [10, 1000, 50_000])
def test_how_many_different_samples_there_are(count: int) -> None:
    samples = hashes(count, 3)
    assert distinct(sketch(np.concatenate((samples, samples)))) == pytest.approx(count, rel=0.1)


def test_with_each_sketch_of_a_validation_the_overlap_is_given() -> None:
    recorded = Recorded()
    train, val = hashes(900, 0), hashes(200, 1)
    val[:30] = train[:30]
    for step, known in enumerate((train[:15], train)):
        recorded.tensor("data/sketch_train", sketch(known), step=step)
        recorded.tensor("data/sketch_val", sketch(val), step=step)
    found, _ = analysed(recorded, [Sketches()])
    for end in ("share", "low", "high"):
        assert values(found, f"data/overlap_val/{end}") == pytest.approx([0.075, 0.15])
    assert values(found, "data/distinct_train") == [15, 900]
    assert values(found, "data/distinct_val") == [200, 200]
