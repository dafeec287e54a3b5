"""From a matrix of features to the little of it that is shipped: evenly spread rows, in half precision where that does.

Knows arrays and tensors by what they can do, and imports neither numpy nor torch. What is computed from the rows
(spread of each dimension, effective rank, similarities) is computed in the collector.
"""

from __future__ import annotations

import math
from typing import Any, Final

from sidestep.errors import UsageError
from sidestep.snapshot import dimensions, element_count, is_tensor

#: Rows that are shipped of a matrix.
ROWS: Final = 256
#: Mean square of the rounding in a dimension, over its variance: below it float16 leaves the spread as it is.
_ROUNDING: Final = 1e-4


def sampled(rows: Any) -> Any:
    """At most 256 rows, evenly spread, in memory of their own: those may change afterwards.

    Every k-th row is taken, k coprime to their number, so that in rows of (sequences, tokens) no position of a
    sequence is preferred. The same rows are taken each time. Nothing waits for a device.

    Args:
        rows: array or tensor of shape (N, d) or (N, ..., d), the last dimension being that of features.

    Returns:
        Shape (n, d), n of at most 256; detached.

    Raises:
        UsageError: it is no matrix.
    """
    if dimensions(rows) < 2 or not element_count(rows):
        raise UsageError("features() takes an array or a tensor of shape (N, d) or (N, ..., d)")
    matrix = (rows.detach() if is_tensor(rows) else rows).reshape(-1, rows.shape[-1])
    taken = matrix[:: stride_of(matrix.shape[0], ROWS)]
    return taken.clone() if is_tensor(taken) else taken.copy()


def compact(rows: Any) -> Any:
    """Rows on the CPU as float16, or as float32 where that would not do.

    It does not where a number is beyond its range (65504) or none, or where rounding would be seen in the spread of a
    dimension: its mean square is more than 1e-4 of the variance, as of features of a mean of 35 standard deviations.
    """
    if is_tensor(rows):
        whole = rows.float()
        half = whole.half()
        return half if _is_near(half.float(), whole) else whole
    import numpy as np  # noqa: PLC0415 - whoever has an array has numpy

    whole = rows.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        half = whole.astype(np.float16)
        return half if _is_near(half.astype(np.float32), whole) else whole


def _is_near(rounded: Any, whole: Any) -> bool:
    # No number compares as near: a matrix with one is shipped as it is.
    wrong, centred = rounded - whole, whole - whole.mean(0)
    return bool(((wrong * wrong).mean(0) <= _ROUNDING * (centred * centred).mean(0)).all())


def stride_of(size: int, limit: int) -> int:
    """Every how many elements one is taken: at most `limit` of them, coprime to the size."""
    stride = -(-size // limit)
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride
