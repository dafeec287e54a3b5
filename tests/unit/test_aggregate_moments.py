"""Moments: shapes and ranges that the property tests do not reach."""

import math

import numpy as np
import pytest

from sidestep_collector.aggregate.moments import CHUNK_ELEMENTS, WIDE_COLUMNS, merge_moments, moments


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    "shape", [(CHUNK_ELEMENTS * 3 + 1, 1), (2_000, 30), (1_500, 100), (70, WIDE_COLUMNS * 2 + 5), (1, 3)]
)
def test_every_shape_gives_the_same_as_numpy(shape: tuple[int, int], dtype: str) -> None:
    matrix = np.random.default_rng(0).normal(3.0, 2.0, shape).astype(dtype)
    found = moments(matrix)
    exact = matrix.astype(np.longdouble)
    assert all(array.shape == shape[1:] for array in found)
    assert (found.n == shape[0]).all()
    assert (found.n_nonfinite == 0).all()
    np.testing.assert_array_equal(found.vmin, matrix.min(axis=0).astype("f8"))
    np.testing.assert_array_equal(found.vmax, matrix.max(axis=0).astype("f8"))
    mean = exact.mean(axis=0)
    np.testing.assert_allclose(found.mean, mean.astype("f8"), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.m2, ((exact - mean) ** 2).sum(axis=0).astype("f8"), rtol=1e-12, atol=1e-14)


def test_a_large_offset_does_not_eat_the_variance() -> None:
    matrix = (1e9 + np.random.default_rng(0).normal(size=(50_000, 2))).astype("f8")
    deviation = (matrix - matrix[0]).astype(np.longdouble)
    expected = ((deviation - deviation.mean(axis=0)) ** 2).sum(axis=0).astype("f8")
    np.testing.assert_allclose(moments(matrix).m2, expected, rtol=1e-9)


def test_sums_that_leave_float64_leave_the_mean() -> None:
    found = moments(np.full((CHUNK_ELEMENTS * 2, 1), 1.7e308))
    assert found.mean[0] == pytest.approx(1.7e308)
    assert (found.n[0], found.vmin[0], found.vmax[0]) == (CHUNK_ELEMENTS * 2, 1.7e308, 1.7e308)
    far = merge_moments([moments(np.array([[1.7e308]])), moments(np.array([[-1.7e308]]))])
    assert far.mean[0] == 0.0


def test_distances_that_leave_float64_leave_the_mean() -> None:
    found = moments(np.array([[1.7e308], [-1.7e308], [-1.7e308]]))
    assert found.mean[0] == pytest.approx(-1.7e308 / 3)
    assert (found.n[0], found.n_nonfinite[0], found.m2[0]) == (3, 0, math.inf)


def test_one_bad_column_leaves_the_others_alone() -> None:
    matrix = np.arange(300.0).reshape(3, 100)
    expected = moments(matrix)
    matrix[1, 7] = math.nan
    found = moments(matrix)
    others = np.arange(100) != 7
    for before, after in zip(expected, found, strict=True):
        np.testing.assert_array_equal(before[others], after[others])
    assert (found.n[7], found.n_nonfinite[7], found.mean[7]) == (2, 1, 107.0)


def test_the_input_is_left_as_it_is() -> None:
    matrix = np.ones((10, 100))
    matrix.flags.writeable = False
    moments(matrix)
    assert (matrix == 1).all()
