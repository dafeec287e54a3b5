"""From values to codes: which of them are beyond a rule's bounds, which are safe again.

A code is HIT where the rule's condition holds, SAFE where a value is on the good side of the level to clear at, and
else 0: between the two, during the warm-up, or where a comparison has no meaning.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.profiles import RuleSpec

HIT: Final = 1
SAFE: Final = 2

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]
Flags = NDArray[np.bool_]


class Judged(NamedTuple):
    """Of records and columns, shape (records, columns): what was judged, how, and whether it is worse than that."""

    values: Floats
    codes: Codes
    worse: Flags


def judge(
    spec: RuleSpec, values: Floats, to: Floats | None, also: list[Floats], muted: Flags, *, best: float = math.nan
) -> Judged:
    """Judge values.

    Args:
        spec: the rule.
        values: shape (records, columns).
        to: what they are divided by, of the same shape; values that are not above 0 divide nothing.
        also: for each further condition of the rule its metric's values, of the same shape.
        muted: records that are not judged, shape (records,).
        best: of a plateau, the best of the values before; NaN for none.
    """
    if to is not None:
        with np.errstate(all="ignore"):
            values = np.where(to > 0, values / to, np.nan)
    hit, safe = _nonfinite(values) if spec.form == "nonfinite" else _beyond(spec, values)
    for condition, other in zip(spec.also, also, strict=True):
        with np.errstate(invalid="ignore"):
            holds = other > condition.above if condition.above is not None else other < (condition.below or 0.0)
        hit &= holds
        safe |= ~holds & np.isfinite(other)
    if spec.form == "plateau":
        gains = np.array([[spec.is_gain(value, best) for value in row] for row in values.tolist()])
        hit &= ~gains
        safe |= gains & np.isfinite(values)
    codes = np.where(hit, HIT, np.where(safe, SAFE, 0)).astype(np.int8)
    codes[muted] = 0
    return Judged(values, codes, _worse(spec, values) & hit)


def may_hit(spec: RuleSpec, values: NDArray[np.floating[Any]]) -> bool:
    """Whether any value may be a hit of a rule that compares none: never wrong where it says no.

    It works on values as they came. A bound is rounded to their type, hence the values that equal it count.
    """
    if spec.form == "nonfinite":
        return not bool(np.isfinite(values).all())
    with np.errstate(invalid="ignore", over="ignore"):
        kind = values.dtype.type
        if spec.above is not None and bool((values >= kind(spec.above)).any()):
            return True
        return spec.below is not None and bool((values <= kind(spec.below)).any())


def _nonfinite(values: Floats) -> tuple[Flags, Flags]:
    finite = np.isfinite(values)
    return ~finite, finite


def _beyond(spec: RuleSpec, values: Floats) -> tuple[Flags, Flags]:
    with np.errstate(invalid="ignore"):
        hit = np.zeros(values.shape, dtype=bool)
        safe = np.isfinite(values)
        if spec.above is not None:
            hit |= values > spec.above
            safe &= values <= (spec.above if spec.clear is None else spec.clear)
        if spec.below is not None:
            hit |= values < spec.below
            safe &= values >= (spec.below if spec.clear is None else spec.clear)
    return hit, safe


def _worse(spec: RuleSpec, values: Floats) -> Any:
    worse = np.zeros(values.shape, dtype=bool)
    if spec.escalate is not None:
        with np.errstate(invalid="ignore"):
            if spec.escalate.above is not None:
                worse |= values > spec.escalate.above
            if spec.escalate.below is not None:
                worse |= values < spec.escalate.below
    return worse


def bound(spec: RuleSpec, value: float) -> float:
    """The bound that a value is beyond; NaN for a rule without any."""
    if spec.above is not None and (spec.below is None or value > spec.above):
        return spec.above
    return float("nan") if spec.below is None else spec.below
