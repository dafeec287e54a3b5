"""How many samples two splits share, from sketches of their hashes (`data/sketch_train`, `data/sketch_val`).

A sketch holds the k smallest of the different hashes of a split's samples, which are spread evenly over 2⁶⁴. One that
is filled up knows all of them. Below the lesser of the two largest hashes of full sketches, both know every
hash: what lies there is a random sample of each split, the same part of both (k minimum values: Bar-Yossef et al. 2002;
Beyer et al. 2007).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sidestep_collector.analyse.protocol import Analyser, Given, Span, Values
from sidestep_collector.blocks import Tensor

PREFIX: Final = "data/sketch_"
TRAIN: Final = "data/sketch_train"
#: Fills up a sketch that is not full.
EMPTY: Final = 2**63 - 1

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


class Sketches(Analyser):
    """Of each `data/sketch_<split>`: how many different samples the split has, and which share of them the training."""

    name = "sketches"
    tensors = (f"{PREFIX}*",)
    gives = (
        "data/overlap_<split>/share",
        "data/overlap_<split>/low",
        "data/overlap_<split>/high",
        "data/distinct_<split>",
    )
    keeps_tensors = True

    def add(self, span: Span) -> Iterator[Given]:
        """See `Analyser`."""
        train = span.before.get(TRAIN)
        for tensor in span.tensors:
            if tensor.dtype != "int64" or len(tensor.shape) != 1:
                continue
            train = tensor if tensor.name == TRAIN else train
            split, sketch = tensor.name.removeprefix(PREFIX), _hashes(tensor)
            values = {f"data/distinct_{split}": distinct(sketch)}
            if train is not None and tensor is not train:
                found = overlap(sketch, _hashes(train))
                if found.compared:
                    ends = {"share": found.share, "low": found.low, "high": found.high}
                    values |= {f"data/overlap_{split}/{end}": value for end, value in ends.items()}
            yield Values.at(tensor.at, values)


def overlap(one: Hashes, other: Hashes, z: float = 1.96) -> Overlap:
    """Which share of the samples of `one` is in `other`, with Wilson's interval for the share of a sample.

    Args:
        one: a sketch, int64 of shape (k,), `EMPTY` in place of hashes that there are not.
        other: another, whose k may be another.
        z: quantile of the normal distribution: 1.96 for 95 %.
    """
    full = [sketch.max() for sketch in (one, other) if len(sketch) and EMPTY not in sketch]
    one, other = _known(one), _known(other)
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


def distinct(sketch: Hashes) -> float:
    """How many different samples there were: (k - 1) 2⁶⁴ / h_k with h_k the largest of a full sketch's hashes."""
    hashes = _known(sketch)
    if len(hashes) < max(2, len(sketch)):
        return float(len(hashes))
    return (len(hashes) - 1) * _RANGE / (float(hashes[-1]) + _OFFSET)


def _hashes(tensor: Tensor) -> Hashes:
    return np.frombuffer(tensor.data, "<i8").astype(np.int64)


def _known(sketch: Hashes) -> Hashes:
    return np.unique(sketch[sketch != EMPTY])


def _wilson(hits: int, trials: int, z: float) -> tuple[float, float]:
    share, weight = hits / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
