"""The overlap of two splits from their sketches, against sets whose overlap is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sidestep_collector.analyse.sketches import distinct, overlap

SIZE = 1024


def hashes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count, dtype=np.int64)


def sketch(samples: np.ndarray) -> np.ndarray:
    return np.sort(np.unique(samples))[:SIZE]


def test_small_splits_are_compared_exactly() -> None:
    train, val = hashes(900, 0), hashes(200, 1)
    val[:30] = train[:30]
    assert overlap(sketch(val), sketch(train), SIZE) == (0.15, 0.15, 0.15, 30, 200, True)


def test_the_interval_holds_the_true_share_nineteen_times_in_twenty() -> None:
    held = 0
    for seed in range(100):
        train, val = hashes(20_000, seed), hashes(5_000, 1000 + seed)
        val[:500] = train[:500]
        found = overlap(sketch(val), sketch(train), SIZE)
        held += found.low <= 0.1 <= found.high
        assert not found.is_exact
        assert 150 < found.compared < 400
    assert 88 <= held <= 100


def test_splits_that_share_nothing_share_nothing() -> None:
    found = overlap(sketch(hashes(20_000, 0)), sketch(hashes(5_000, 1)), SIZE)
    assert (found.share, found.low, found.shared) == (0.0, 0.0, 0)
    assert 0 < found.high < 0.02


def test_a_split_is_wholly_in_itself() -> None:
    one = sketch(hashes(20_000, 0))
    found = overlap(one, one, SIZE)
    assert (found.share, found.high, found.compared) == (1.0, 1.0, SIZE)


def test_of_nothing_nothing_is_known() -> None:
    found = overlap(np.empty(0, np.int64), sketch(hashes(100, 0)), SIZE)
    assert math.isnan(found.share)
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize("count", [10, 1000, 50_000])
def test_how_many_different_samples_there_are(count: int) -> None:
    samples = hashes(count, 3)
    assert distinct(sketch(np.concatenate((samples, samples))), SIZE) == pytest.approx(count, rel=0.1)
