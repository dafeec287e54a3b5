"""How often rules counted in a run, told as `train/stability/<rule>_count` at the end of each epoch of a rank.

Only a profile that declares this metric is told so. What is counted are values beyond a bound that belong to findings,
so that what lasts too short counts nothing; a count rises over the whole run, restarts of the collector included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.blocks import Event, KeySet, ScalarBlock
from sidestep_collector.profiles import Profile
from sidestep_collector.rules.ruleset import Rule
from sidestep_schemas.wire import DTYPE_FLOAT64, TIER_EPOCH

METRIC: Final = "train/stability/<kind>_count"
#: Ids that no stream and no other stage has: the analysers' begin at 1 << 32, second names at 1 << 33.
_FIRST_KEY_SET: Final = 1 << 34
#: Steps that wait for the end of their epoch; of more it no longer matters which epoch they are of.
_WAITING_MAX: Final = 1 << 16


class Counts:
    """How often each rule counted on each rank of a run."""

    def __init__(self) -> None:
        self._past: dict[tuple[str, int], int] = {}
        self._waiting: dict[tuple[str, int], list[NDArray[np.int64]]] = {}

    def begin(self, rule: str, rank: int, count: int) -> None:
        """Go on from what was counted before a restart."""
        self._past[rule, rank] = self._past.get((rule, rank), 0) + count

    def add(self, rule: str, rank: int, steps: NDArray[np.int64]) -> None:
        """Count values of these steps."""
        waiting = self._waiting.setdefault((rule, rank), [])
        waiting.append(steps)
        if sum(map(len, waiting)) > _WAITING_MAX:
            self.until(rule, rank, math.inf)

    def until(self, rule: str, rank: int, step: float) -> int:
        """How often it was up to a step; those steps are not to be asked about again one by one."""
        key = (rule, rank)
        steps = np.concatenate([np.empty(0, dtype=np.int64), *self._waiting.pop(key, ())])
        later = steps[steps > step]
        if len(later):
            self._waiting[key] = [later]
        self._past[key] = self._past.get(key, 0) + len(steps) - len(later)
        return self._past[key]


class CountSeries:
    """Makes values of counts, at the moments of events."""

    def __init__(self) -> None:
        self._key_sets: dict[tuple[str, ...], KeySet] = {}
        self._with_epochs: set[bytes] = set()
        self._blocks: list[ScalarBlock] = []

    def note(self, event: Event) -> None:
        """Take what happened before a restart: which streams tell of epochs."""
        if event.event in ("epoch_begin", "epoch_end"):
            self._with_epochs.add(event.at.stream.key)

    def tell(self, event: Event, counts: Counts, rules: Iterable[Rule], own: Profile | None) -> None:
        """Tell of a rank's counts as they are at an event: the end of an epoch, or of a run that told of none."""
        self.note(event)
        key = event.at.stream.key
        is_due = event.event == "epoch_end" or (event.event == "end" and key not in self._with_epochs)
        if event.event == "end":
            self._with_epochs.discard(key)
        if own is None or METRIC not in own.metrics or not is_due:
            return
        names = [rule.name for rule in rules if rule.profile == own.name and rule.spec.over == "step"]
        if names:
            at, rank = event.at, event.at.stream.rank
            last = math.inf if event.event == "end" else at.step
            values = np.array([[float(counts.until(name, rank, last)) for name in names]])
            seq, t_ns, step = (np.array([number], np.int64) for number in (at.seq, at.t_ns, at.step))
            key_set = self._key_set(tuple(METRIC.replace("<kind>", name) for name in names))
            self._blocks.append(ScalarBlock(at.stream, key_set, seq, t_ns, step, np.array([at.epoch]), values))

    def take(self) -> list[ScalarBlock]:
        """What was told since the last take."""
        blocks, self._blocks = self._blocks, []
        return blocks

    def _key_set(self, tags: tuple[str, ...]) -> KeySet:
        found = self._key_sets.get(tags)
        if found is None:
            number = _FIRST_KEY_SET + len(self._key_sets)
            found = self._key_sets[tags] = KeySet(number, DTYPE_FLOAT64, TIER_EPOCH, tags, (), derived=True)
        return found
