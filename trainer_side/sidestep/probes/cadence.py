"""When a probe samples: every so many steps, once an epoch or a part of one, once a validation."""

from __future__ import annotations

import logging
import math
import re
import statistics
from collections import deque
from typing import Final

from sidestep.errors import UsageError
from sidestep.probes.protocol import Watched

logger = logging.getLogger("sidestep")

_EPOCH: Final = re.compile(r"(?:(\d*\.?\d+)\s+)?epochs?")
#: Steps between samples "an epoch" where the script tells of no epochs.
_STEPS_WITHOUT_EPOCHS: Final = 1000
#: Share of the training's time that samples may take where nobody has said how often they are taken.
BUDGET: Final = 0.01
#: Samples before it is asked what they cost, so that a short training has some; their last few tell.
_SAMPLES_FREE: Final = 8
_SAMPLES_KEPT: Final = 4


class Steps:
    """Every so many steps, the first among them."""

    def __init__(self, every: int) -> None:
        self.every = every

    def is_due(self, step: int, watched: Watched) -> bool:  # noqa: ARG002 - one form for all
        """Whether the coming step is one to sample."""
        return step % self.every == 0


class Budgeted(Steps):
    """Every so many steps, and twice as many each time that samples have taken more than their share of the time.

    Steps that are still sampled are among those that would have been. The first eight samples are taken whatever they
    cost, and once it is doubled each epoch has one, at its first or second step; without epochs the longest way is
    1000 steps.

    Args:
        every: steps from one sample to the next, as it begins.
        budget: share of the training's time.
    """

    def __init__(self, every: int, budget: float) -> None:
        super().__init__(every)
        self._budget = budget
        self._begun_with = every
        self._epoch = math.nan
        self._samples = 0
        self._first: tuple[int, float] = 0, 0.0
        self._costs: deque[float] = deque(maxlen=_SAMPLES_KEPT)

    def is_due(self, step: int, watched: Watched) -> bool:
        """Whether the coming step is one to sample."""
        before, self._epoch = self._epoch, watched.run.current_epoch
        is_new = self.every > self._begun_with and self._epoch != before and not math.isnan(self._epoch)
        return is_new or step % self.every == 0

    def note(self, step: int, seconds: float, now: float) -> None:
        """A sample has been taken.

        Args:
            step: of which.
            seconds: it took of the host's time; what the first took counts for nothing: much is made once.
            now: on a clock that only rises.
        """
        self._samples += 1
        if self._samples == 1:
            self._first = step, now
            return
        self._costs.append(seconds)
        began, then = self._first
        allowed = self._budget * (now - then) / max(1, step - began) * self.every
        longest = math.inf if not math.isnan(self._epoch) else _STEPS_WITHOUT_EPOCHS
        cost = statistics.median(self._costs)
        if self._samples > _SAMPLES_FREE and cost > allowed and 2 * self.every <= longest:
            self.every *= 2
            said = "from step %d on each %dth is sampled: a sample takes %.1f ms, and %.2g of the time is allowed"
            logger.debug(said, step, self.every, 1e3 * cost, self._budget)


class Epochs:
    """Once in each share of an epoch, as early as can be told: an epoch's first or second step.

    Parts of an epoch are counted by the steps of the epoch before; the first epoch, whose length nobody knows, has
    one sample. The step that comes first of all is one, too.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._epoch = math.nan
        self._start = self._length = 0
        self._part = -1

    def is_due(self, step: int, watched: Watched) -> bool:
        """Whether the coming step is one to sample."""
        epoch = watched.run.current_epoch
        if math.isnan(epoch) and math.isnan(self._epoch):
            return step % _STEPS_WITHOUT_EPOCHS == 0
        if epoch != self._epoch and not math.isnan(epoch):
            if not math.isnan(self._epoch):
                self._length = step - self._start
            self._epoch, self._start, self._part = epoch, step, -1
        parts = max(1, round(1 / self._share)) if self._length else 1
        part = min(parts - 1, (step - self._start) * parts // max(1, self._length))
        is_new, self._part = part != self._part, part
        # Of longer ones than an epoch: every so manieth.
        return is_new and (self._share <= 1 or round(epoch) % round(self._share) == 0)


class Validations:
    """The first step after each validation, that is after calls of the model in eval mode; the second for a probe that
    must know of it before the step (it has a `begin`)."""

    def __init__(self) -> None:
        self._seen = 0

    def is_due(self, step: int, watched: Watched) -> bool:  # noqa: ARG002 - one form for all
        """Whether the coming step is one to sample."""
        seen, self._seen = self._seen, watched.calls.validations
        return self._seen != seen


Cadence = Steps | Epochs | Validations


def cadence(given: int | str, owner: str) -> Cadence:
    """What a setting says.

    Args:
        given: steps; "epoch", "0.25 epoch", "10 epochs"; "validation".
        owner: whose setting it is, for the message.

    Raises:
        UsageError: it says none.
    """
    if isinstance(given, int) and given >= 1:
        return Steps(int(given))
    if given == "validation":
        return Validations()
    epochs = _EPOCH.fullmatch(given.strip()) if isinstance(given, str) else None
    if epochs and float(epochs[1] or 1) > 0:
        return Epochs(float(epochs[1] or 1))
    raise UsageError(
        f"{owner}: every={given!r} is none of: a whole number of steps of at least 1, 'epoch', '0.25 epoch', "
        "'10 epochs', 'validation'"
    )
