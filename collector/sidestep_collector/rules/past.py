"""What a rule over epochs remembers of a metric: the values of the last epochs, which later ones are compared with."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from sidestep_collector.profiles import RuleSpec

#: Epochs that are remembered. What was best before them counts no more; a restart reads so many back.
EPOCHS_KEPT: Final = 16


class Past:
    """The last values of a metric.

    Attributes:
        epoch: the last epoch that was judged; one that is told again is not judged again.
    """

    def __init__(self) -> None:
        self.epoch = -1
        self._values: deque[float] = deque(maxlen=EPOCHS_KEPT)

    def add(self, epoch: int, value: float) -> None:
        """Remember an epoch's value; NaN where there is none."""
        self.epoch = epoch
        self._values.append(value)

    @property
    def previous(self) -> float:
        """The value of the epoch before; NaN for none."""
        return self._values[-1] if self._values else math.nan

    def best(self, spec: RuleSpec) -> float:
        """The best value so far, where one is better only by more than the rule's gain; NaN for none.

        Of a slow rise each value alone gains too little, all of them together gain enough: the best stays the one that
        the last gain led to.
        """
        best = math.nan
        for value in self._values:
            if math.isfinite(value) and spec.is_gain(value, best):
                best = value
        return best
