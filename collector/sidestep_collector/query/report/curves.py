"""What curves by epoch say: reductions of a rate, plateaus, first, last and best. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sidestep_collector.query.epochs import ByEpoch, Floats

#: A rate that falls at least by this factor from one epoch to the next was reduced; less is a schedule that decays.
_REDUCTION: Final = 2.0
#: A reduction is a step where the rate fell by less than this share of it (of logarithms) the epoch before.
_STEP_SHARE: Final = 0.5
#: Share of the whole gain that counts as none.
_GAIN_SHARE: Final = 0.02
#: Epochs without gain that make a plateau.
PLATEAU_EPOCHS: Final = 3


@dataclass(frozen=True, slots=True)
class Reduction:
    """A rate that was reduced: in which epoch, from what to what.

    `is_step` says that it fell at once; a cosine that nears its end falls a little more from epoch to epoch.
    """

    epoch: float
    before: float
    after: float
    is_step: bool = True

    @property
    def factor(self) -> float:
        """By how much it was divided."""
        return self.before / self.after if self.after else np.inf


@dataclass(frozen=True, slots=True)
class Course:
    """How a curve went. `plateau_since` is the epoch after which it gained nothing more; None where it still gains."""

    epochs: int
    first: float
    last: float
    best: float
    best_epoch: float
    plateau_since: float | None


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of a quantity over all epochs."""

    mean: float
    least: float
    greatest: float
    first: float
    last: float


def reductions(rate: ByEpoch) -> list[Reduction]:
    """Where a learning rate was reduced at least twofold: between epochs, or inside of one."""
    found: list[Reduction] = []
    last: float | None = None
    fell = 0.0  # logarithm of the factor of the epoch before
    for epoch, first, end in zip(rate.epoch.tolist(), rate.first.tolist(), rate.last.tolist(), strict=True):
        before = first if last is None else last
        if np.isfinite(end) and np.isfinite(before) and before > 0:
            falls = np.log(before / end) if end > 0 else np.inf
            if 0 <= end * _REDUCTION <= before:
                found.append(Reduction(epoch, before, end, is_step=bool(fell < _STEP_SHARE * falls)))
            fell = falls
        last = end if np.isfinite(end) else last
    return found


def course(curve: ByEpoch, *, better: str) -> Course | None:
    """How the means of a curve went.

    A plateau is a stretch of at least `PLATEAU_EPOCHS` epochs up to the end in which the best value so far improved
    by less than 2 % of what it gained in all.

    Args:
        curve: by epoch.
        better: "lower" or "higher".

    Returns:
        None where no epoch has a finite value.
    """
    known = np.isfinite(curve.mean)
    epoch, mean = curve.epoch[known], curve.mean[known]
    if len(mean) == 0:
        return None
    sign = 1.0 if better == "lower" else -1.0
    best = int(np.argmin(sign * mean))
    return Course(
        epochs=len(mean),
        first=float(mean[0]),
        last=float(mean[-1]),
        best=float(mean[best]),
        best_epoch=float(epoch[best]),
        plateau_since=_plateau(epoch, sign * mean),
    )


def spread(curve: ByEpoch) -> Spread | None:
    """Values of a curve over all epochs; None where none is finite."""
    known = np.isfinite(curve.mean)
    if not known.any():
        return None
    weights = curve.n[known]
    return Spread(
        mean=float(np.average(curve.mean[known], weights=weights)),
        least=float(curve.least[known].min()),
        greatest=float(curve.greatest[known].max()),
        first=float(curve.mean[known][0]),
        last=float(curve.mean[known][-1]),
    )


def _plateau(epoch: Floats, loss: Floats) -> float | None:
    """The last epoch that gained anything, where enough epochs follow it."""
    best = np.minimum.accumulate(loss)
    gained = best[0] - best[-1]
    still_to_gain = best - best[-1]
    settled = np.flatnonzero(still_to_gain <= _GAIN_SHARE * gained)
    since = int(settled[0])
    return float(epoch[since]) if len(loss) - 1 - since >= PLATEAU_EPOCHS else None
