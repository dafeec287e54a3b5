"""Histograms of arrays."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.blocks import Histogram, Moment

BINS: Final = 64


def histogram(at: Moment, name: str, values: NDArray[Any], bins: int = BINS) -> Histogram | None:
    """A histogram of the finite ones of some values in bins of equal width from the least to the greatest.

    `numpy.histogram` takes 16 ms for 200,000 values, since it searches for edges that were rounded; this takes 2.
    A value within rounding of an edge may stand in the bin beside it.

    Returns:
        None where no value is finite.
    """
    flat = values.ravel()
    if not np.isfinite(flat.sum()):
        flat = flat[np.isfinite(flat)]
    if not len(flat):
        return None
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    place = flat - low
    place *= bins / (high - low)
    counts = np.bincount(place.astype(np.intp), minlength=bins + 1).astype(np.float64)
    counts[bins - 1] += counts[bins:].sum()  # the greatest, which the last bin includes
    return Histogram(at, name, np.linspace(low, high, bins + 1), counts[:bins])
