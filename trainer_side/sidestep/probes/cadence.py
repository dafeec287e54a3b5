"""When a probe samples: every so many steps, once an epoch or a part of one, once a validation."""

from __future__ import annotations

import math
import re
from typing import Final

from sidestep.errors import UsageError
from sidestep.probes.protocol import Watched

_EPOCH: Final = re.compile(r"(?:(\d*\.?\d+)\s+)?epochs?")
#: Steps between samples "an epoch" where the script tells of no epochs.
_STEPS_WITHOUT_EPOCHS: Final = 1000


class Steps:
    """Every so many steps, the first among them."""

    def __init__(self, every: int) -> None:
        self._every = every

    def is_due(self, step: int, watched: Watched) -> bool:  # noqa: ARG002 - one form for all
        """Whether the coming step is one to sample."""
        return step % self._every == 0


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
