"""Count, mean, M2, minimum and maximum of the columns of a matrix, and how parts of them are put together.

M2 is the sum of squared deviations from the mean, so the variance of a sample is M2 / (n - 1). A matrix is
read in chunks of rows that stay in the L2 cache; within a chunk the mean comes first and the deviations from
it after (the two-pass algorithm with its correction term), and chunks are merged:

    n = sum n_i    mean = mean_r + sum n_i d_i / n    M2 = sum M2_i + sum n_i d_i^2 - (sum n_i d_i)^2 / n

with d_i = mean_i - mean_r for a reference mean_r, which is the pairwise formula of Chan, Golub and LeVeque for
any number of parts (T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance:
analysis and recommendations", The American Statistician 37, 1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: 256 KiB as float64: with the float32 or float64 source beside it, half of a 1 MiB L2.
CHUNK_ELEMENTS: Final = 32_768
#: Below so many columns a row is too short for numpy's inner loop, and the transpose pays for itself.
NARROW_COLUMNS: Final = 48
#: Above so many columns a chunk would have too few rows to pay for its merge: the columns are split.
WIDE_COLUMNS: Final = 1024


class Moments(NamedTuple):
    """Moments of k columns, each of shape (k,). `vmin`, `vmax`, `mean` are NaN where n is 0.

    Attributes:
        n, n_nonfinite: int64; values that are finite, and that are NaN or infinite.
        vmin, vmax, mean, m2: float64, over the finite values.
    """

    n: Integers
    n_nonfinite: Integers
    vmin: Floats
    vmax: Floats
    mean: Floats
    m2: Floats


def moments(values: NDArray[np.floating[Any]]) -> Moments:
    """Moments of the columns of a matrix.

    Args:
        values: float32 or float64, shape (records, k), records >= 1. NaN and infinities are counted and enter
            no other number.

    Returns:
        Moments of shape (k,), computed in float64. M2 is infinite where squares leave float64.
    """
    rows, columns = values.shape
    if columns > WIDE_COLUMNS:
        starts = range(0, columns, WIDE_COLUMNS)
        return concatenate_moments([moments(values[:, start : start + WIDE_COLUMNS]) for start in starts])
    step = max(1, CHUNK_ELEMENTS // max(columns, 1))
    with np.errstate(all="ignore"):
        if rows <= step:
            return _of_chunk(values)
        return merge_moments([_of_chunk(values[start : start + step]) for start in range(0, rows, step)])


def merge_moments(parts: Sequence[Moments]) -> Moments:
    """Moments of the union of parts that have the same columns.

    Args:
        parts: one at least, each of shape (k,).
    """
    if len(parts) == 1:
        return parts[0]
    n, n_nonfinite, vmin, vmax, mean, m2 = (np.stack(column) for column in zip(*parts, strict=True))
    with np.errstate(all="ignore"):
        total: Integers = n.sum(axis=0)
        if not n.all():
            # a part without finite values has a mean of NaN and no weight: give it the mean of one that has
            mean = np.where(n > 0, mean, mean[np.argmax(n > 0, axis=0), np.arange(mean.shape[1])])
        at_least_1 = np.maximum(total, 1)
        deviation = mean - mean[0]
        weighted = n * deviation
        shift = weighted.sum(axis=0)
        merged_mean = mean[0] + shift / at_least_1
        merged_m2 = m2.sum(axis=0) + np.maximum((weighted * deviation).sum(axis=0) - shift * shift / at_least_1, 0.0)
        merged_m2 = np.where(total > 0, _infinite_for_nan(merged_m2), 0.0)
        overflown = np.isfinite(mean[0]) & ~np.isfinite(merged_mean)
        if overflown.any():
            merged_mean = np.where(overflown, (mean * (n / at_least_1)).sum(axis=0), merged_mean)
        return Moments(
            total,
            n_nonfinite.sum(axis=0),
            np.fmin.reduce(vmin, axis=0),
            np.fmax.reduce(vmax, axis=0),
            merged_mean,
            merged_m2,
        )


def pick_moments(found: Moments, index: slice) -> Moments:
    """Some of the columns."""
    return Moments(
        found.n[index],
        found.n_nonfinite[index],
        found.vmin[index],
        found.vmax[index],
        found.mean[index],
        found.m2[index],
    )


def concatenate_moments(parts: Sequence[Moments]) -> Moments:
    """Columns side by side; one part at least."""
    return Moments(
        np.concatenate([part.n for part in parts]),
        np.concatenate([part.n_nonfinite for part in parts]),
        np.concatenate([part.vmin for part in parts]),
        np.concatenate([part.vmax for part in parts]),
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.m2 for part in parts]),
    )


def _of_chunk(values: NDArray[np.floating[Any]]) -> Moments:
    rows, columns = values.shape
    narrow = columns < NARROW_COLUMNS and rows > 1
    source = np.ascontiguousarray(values.T) if narrow else values
    axis = 1 if narrow else 0
    work = source.astype(np.float64)
    total: Floats = np.add.reduce(work, axis=axis)
    # one NaN or infinity makes the sum of its column so; the sum costs a quarter of asking each value
    finite = np.isfinite(total)
    mean = total / rows
    np.subtract(work, mean[:, None] if narrow else mean, out=work)
    residue: Floats = np.add.reduce(work, axis=axis)
    finite &= np.isfinite(residue)  # the distance of two values can leave float64 where their sum did not
    np.multiply(work, work, out=work)
    m2 = np.maximum(np.add.reduce(work, axis=axis) - residue * residue / rows, 0.0)
    found = Moments(
        np.full(columns, rows, np.int64),
        np.zeros(columns, np.int64),
        np.minimum.reduce(source, axis=axis).astype(np.float64),
        np.maximum.reduce(source, axis=axis).astype(np.float64),
        mean + residue / rows,
        m2,
    )
    if not finite.all():
        bad = ~finite
        for column, careful in zip(found, _careful(values[:, bad].astype(np.float64)), strict=True):
            column[bad] = careful
    return found


def _careful(values: Floats) -> Moments:
    """Moments of columns that hold values that are not finite, or whose sum leaves float64."""
    finite = np.isfinite(values)
    n: Integers = finite.sum(axis=0)
    at_least_1 = np.maximum(n, 1)
    zeroed = np.where(finite, values, 0.0)
    total = zeroed.sum(axis=0)
    mean = np.where(np.isfinite(total), total / at_least_1, (zeroed / at_least_1).sum(axis=0))
    deviation = np.where(finite, values - mean, 0.0)
    residue = deviation.sum(axis=0)
    m2 = np.maximum((deviation * deviation).sum(axis=0) - residue * residue / at_least_1, 0.0)
    mean = np.where(np.isfinite(residue), mean + residue / at_least_1, mean)
    nothing = n == 0
    return Moments(
        n,
        len(values) - n,
        np.where(nothing, np.nan, np.where(finite, values, np.inf).min(axis=0)),
        np.where(nothing, np.nan, np.where(finite, values, -np.inf).max(axis=0)),
        np.where(nothing, np.nan, mean),
        _infinite_for_nan(m2),
    )


def _infinite_for_nan(m2: Floats) -> Floats:
    """M2 of finite values is only NaN where its two terms both left float64."""
    return np.where(np.isnan(m2), np.inf, m2)
