"""How many samples two splits share, from sketches of their hashes (`data/sketch_train`, `data/sketch_val`).

A sketch holds the k smallest of the different hashes of a split's samples, which are spread evenly over 2⁶⁴. One that
holds fewer than k knows all of them. Below the lesser of the two largest hashes of full sketches, both know every
hash: what lies there is a random sample of each split, the same part of both (k minimum values: Bar-Yossef et al. 2002;
Beyer et al. 2007). Plain functions on arrays, no state.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

#: Hashes are signed; this makes the least of them zero.
_OFFSET: Final = 2.0**63
_RANGE: Final = 2.0**64

Hashes = npt.NDArray[np.int64]


class Overlap(NamedTuple):
    """The share of one split's different samples that another has, too.

    Attributes:
        share: the estimate; NaN where nothing could be compared.
        low, high: the confidence interval.
        shared: samples of both that were seen in the compared part.
        compared: samples of the one split in it.
        is_exact: whether both sketches knew all samples.
    """

    share: float
    low: float
    high: float
    shared: int
    compared: int
    is_exact: bool


def overlap(one: Hashes, other: Hashes, size: int, z: float = 1.96) -> Overlap:
    """Which share of the samples of `one` is in `other`, with Wilson's interval for the share of a sample.

    Args:
        one: different hashes, int64 of shape (at most size,), in any order.
        other: likewise.
        size: k, the hashes that a full sketch holds.
        z: quantile of the normal distribution: 1.96 for 95 %.
    """
    one, other = np.unique(one), np.unique(other)
    full = [sketch[-1] for sketch in (one, other) if len(sketch) >= size]
    if full:
        one, other = one[one <= min(full)], other[other <= min(full)]
    shared, compared = len(np.intersect1d(one, other, assume_unique=True)), len(one)
    if not compared:
        return Overlap(math.nan, 0.0, 1.0, 0, 0, is_exact=False)
    share = shared / compared
    if not full:
        return Overlap(share, share, share, shared, compared, is_exact=True)
    low, high = _wilson(shared, compared, z)
    return Overlap(share, low, high, shared, compared, is_exact=False)


def distinct(sketch: Hashes, size: int) -> float:
    """How many different samples there were: (k - 1) 2⁶⁴ / h_k with h_k the largest of a full sketch's hashes."""
    hashes = np.unique(sketch)
    if len(hashes) < size or size < 2:
        return float(len(hashes))
    return (size - 1) * _RANGE / (float(hashes[size - 1]) + _OFFSET)


def _wilson(hits: int, trials: int, z: float) -> tuple[float, float]:
    share, weight = hits / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
