"""A metric, declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher"] | None


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, or a family of them where the tag has a `<placeholder>`.

    Attributes:
        tag: the exact name; `<block>` and the like stand for one part of it.
        name: for people.
        unit: as written after a number; "" where it has none.
        tier: how often it is taken by default: step, epoch or periodic.
        meaning: what it is, with its formula where it has one.
        better: which direction is better, where one is.
        reduction: how the values of several ranks become one: mean, sum, max, or root of the sum of squares.
        sharded: the same where the model's parameters are sharded over the ranks and each tells of its part, as
            `sidestep_schemas.reductions` has it; "" where that changes nothing.
    """

    tag: str
    name: str
    unit: str
    tier: str
    meaning: str
    better: Better = None
    reduction: Literal["mean", "sum", "max", "l2"] = "mean"
    sharded: str = ""
