"""The periodic tier: every N ended epochs of a run taken together.

Works on the summaries of epochs, whose count, mean and deviation give back the moments that are merged (Chan
et al., see `moments`). Periods are counted from the first epoch of a run: the next one begins with the first epoch
behind it. A summary that is made anew replaces the one before; if its period was already told, the period is told
again, as long as no epoch behind it has ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from sidestep_collector.aggregate.summary import Statistics
from sidestep_collector.blocks import EpochSummary, PeriodSummary

PERIOD_EPOCHS: Final = 25


class PeriodAggregator:
    """Merges the summaries of some epochs that follow each other; keeps those of one period a run.

    Args:
        period_epochs: how many, or what says it of a run.
    """

    def __init__(self, period_epochs: int | Callable[[str], int] = PERIOD_EPOCHS) -> None:
        self._period_epochs = period_epochs
        self._open: dict[str, dict[int, EpochSummary]] = {}

    def add(self, summaries: Iterable[EpochSummary]) -> list[PeriodSummary]:
        """Take summaries in the order in which they were made; returns the periods that are full or changed."""
        told: list[PeriodSummary] = []
        changed: dict[str, None] = {}
        for summary in summaries:
            epochs, size = self._open.setdefault(summary.run, {}), self._size(summary.run)
            if epochs and summary.epoch < min(epochs):
                continue  # late data of a period before this one
            if summary.epoch not in epochs and len(epochs) >= size:
                if summary.run in changed:
                    told.append(_period(epochs))
                    del changed[summary.run]
                epochs.clear()
            epochs[summary.epoch] = summary
            if len(epochs) == size:
                changed[summary.run] = None
        return [*told, *(_period(self._open[run]) for run in changed)]

    def begin(self, run: str, epochs: Sequence[int]) -> int:
        """Where the period begins that the last of some epochs is in.

        After a restart it is known again by the summaries from there on, added once more; what they tell was told.

        Args:
            run: whose.
            epochs: all epochs of the run up to one of interest, ascending.
        """
        return epochs[(len(epochs) - 1) // self._size(run) * self._size(run)]

    def forget(self, run: str) -> None:
        """Drop a run; a period that is not full is not told."""
        self._open.pop(run, None)

    def _size(self, run: str) -> int:
        return self._period_epochs(run) if callable(self._period_epochs) else self._period_epochs


def _period(epochs: Mapping[int, EpochSummary]) -> PeriodSummary:
    ordered = [epochs[epoch] for epoch in sorted(epochs)]
    gathered: dict[str, list[Statistics]] = {}
    for summary in ordered:
        for tag, statistics in summary.statistics.items():
            gathered.setdefault(tag, []).append(statistics)
    merged = {tag: _merge(parts) for tag, parts in gathered.items()}
    return PeriodSummary(ordered[0].run, ordered[0].project, ordered[0].epoch, ordered[-1].epoch, merged)


def _merge(parts: list[Statistics]) -> Statistics:
    n = sum(part["n"] or 0 for part in parts)
    counted = [(part["n"] or 0, part["mean"], part["std"]) for part in parts]
    # a mean or deviation that left float64 is None in its part, and so unknown here
    means = [(count, mean) for count, mean, _ in counted if count and mean is not None]
    mean = math.fsum(count * mean / n for count, mean in means) if n and sum(c for c, _ in means) == n else None
    std = None
    if mean is not None and n > 1 and all(deviation is not None or count < 2 for count, _, deviation in counted):
        within = math.fsum((count - 1) * (deviation or 0.0) ** 2 for count, _, deviation in counted if count)
        between = math.fsum(count * (part_mean - mean) ** 2 for count, part_mean in means)
        std = math.sqrt((within + between) / (n - 1))
    return {
        "mean": mean,
        "std": std,
        "min": min((part["min"] for part in parts if part["min"] is not None), default=None),
        "max": max((part["max"] for part in parts if part["max"] is not None), default=None),
        "last": parts[-1]["last"],
        "n": n,
        "n_nonfinite": sum(part["n_nonfinite"] or 0 for part in parts),
    }
