"""How the values of several ranks become one: the names of reductions as they stand on the wire.

    mean            mean of the values
    sum, max        their sum, the largest of them
    l2              root of the sum of their squares: of norms of parts of one thing
    mean:<tag>      mean weighted by another metric of the same record: Σ w v / Σ w
    rms:<tag>       root mean square weighted by a norm: √(Σ (w v)² / Σ w²). With v = ‖a‖ / ‖b‖ of a part and w = ‖b‖
                    it is ‖a‖ / ‖b‖ of the whole

A name that is not known (a newer trainer's) is read as the mean.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MEAN: Final = "mean"
SUM: Final = "sum"
MAX: Final = "max"
L2: Final = "l2"
RMS: Final = "rms"

_PLAIN: Final = frozenset({MEAN, SUM, MAX, L2})
_WEIGHTED: Final = frozenset({MEAN, RMS})


class Reduction(NamedTuple):
    """A rule, and the tag of the metric that weighs; "" where nothing does."""

    rule: str
    weight: str = ""


def is_of_part(name: str) -> bool:
    """Whether it says that a rank's value speaks of its own part of one thing, as in a sharded model."""
    reduction = parsed(name)
    return reduction.rule in {L2, RMS} or bool(reduction.weight)


def parsed(name: str) -> Reduction:
    """The reduction of a name."""
    rule, _, weight = name.partition(":")
    if weight and rule in _WEIGHTED:
        return Reduction(rule, weight)
    return Reduction(rule if rule in _PLAIN and not weight else MEAN)
