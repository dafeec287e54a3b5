"""The summary of an epoch of a run: its ranks taken together, and the metrics that follow from others.

Moments of the ranks are merged, but where ranks combine otherwise than by their mean: see `ranks`. First and last
values of merged ranks do not compare, since seqs and clocks differ: those of the lowest rank that has the metric stand
for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from sidestep_collector.aggregate.clock import EpochState
from sidestep_collector.aggregate.columns import Columns, concatenate, merge_columns, pick
from sidestep_collector.aggregate.moments import Floats
from sidestep_collector.aggregate.ranks import combined

Statistics = Mapping[str, float | int | None]

#: Metrics whose spread over the epoch is `train/loss_std`, the first that is there.
LOSS_TAGS: Final = ("train/loss_total", "train/loss")
LOSS_STD_TAG: Final = "train/loss_std"
CLIPPED_TAG: Final = "train/gradient/clipped"
CLIP_FRACTION_TAG: Final = "train/gradients/clip_fraction"
CLIPPING_PERCENTAGE_TAG: Final = "train/gradient/clipping_percentage"
EPOCH_TIME_TAG: Final = "perf/epoch_time_sec"
#: The gradient's norm: of clipping at every step it clips, of the optimizer's step at sampled ones.
NORM_TAGS: Final = ("train/gradient/global_norm_before_clip", "train/gradients/global_norm")
#: What they give an epoch: tag to statistic.
NORMS_OF_EPOCH: Final = {"train/mean_grad_norm": "mean", "train/min_grad_norm": "min", "train/max_grad_norm": "max"}
UPDATE_TAG: Final = "train/updates/relative_update_norm"
WEIGHT_CHANGE_TAG: Final = "train/weight_change"
#: Records of the loss are batches, where there are several: one number an epoch does not tell of them.
BATCHES_OF: Final = {"train/num_batches": LOSS_TAGS, "val/num_batches": ("val/loss_total", "val/loss")}


class _Part(NamedTuple):
    names: tuple[str, ...]
    columns: Columns


def summarise(ranks: Sequence[EpochState]) -> dict[str, Statistics]:
    """Statistics of every metric of an epoch.

    Args:
        ranks: the epoch's state of one stream of each rank, lowest rank first.
    """
    whole = _union([part for state in ranks if (part := _rank(state)) is not None], by_seq=False)
    statistics: dict[str, Statistics] = {} if whole is None else dict(_statistics(whole))
    if len(ranks) > 1:
        statistics |= combined([state.kept for state in ranks])
    for tag, value in _derived(statistics, ranks).items():
        statistics.setdefault(tag, single(value))
    return statistics


def single(value: float) -> Statistics:
    """Statistics of one value."""
    finite = math.isfinite(value)
    number = value if finite else None
    return {
        "mean": number,
        "std": None,
        "min": number,
        "max": number,
        "last": number,
        "n": int(finite),
        "n_nonfinite": int(not finite),
    }


def _rank(state: EpochState) -> _Part | None:
    totals = ((tally.names, tally.total()) for tally in state.tallies.values())
    return _union([_Part(names, columns) for names, columns in totals if columns is not None], by_seq=True)


def _union(parts: Iterable[_Part], *, by_seq: bool) -> _Part | None:
    """Parts with any names as one, in which every name stands once; None for no parts."""
    alike: dict[tuple[str, ...], list[Columns]] = {}
    for part in parts:
        alike.setdefault(part.names, []).append(part.columns)
    merged = [_Part(names, merge_columns(columns, by_seq=by_seq)) for names, columns in alike.items()]
    if len(merged) <= 1:
        return merged[0] if merged else None
    union: dict[str, Columns] = {}
    for names, columns in merged:
        for index, name in enumerate(names):
            one = pick(columns, slice(index, index + 1))
            union[name] = merge_columns([union[name], one], by_seq=by_seq) if name in union else one
    return _Part(tuple(union), concatenate(list(union.values())))


def _statistics(part: _Part) -> Iterable[tuple[str, Statistics]]:
    found = part.columns.moments
    with np.errstate(all="ignore"):
        std = np.sqrt(np.where(found.n > 1, found.m2 / (found.n - 1), np.nan))
    rows = zip(
        part.names,
        *(_or_none(numbers) for numbers in (found.mean, std, found.vmin, found.vmax, part.columns.vlast)),
        found.n.tolist(),
        found.n_nonfinite.tolist(),
        strict=True,
    )
    for name, mean, deviation, least, greatest, last, n, n_nonfinite in rows:
        yield (
            name,
            {
                "mean": mean,
                "std": deviation,
                "min": least,
                "max": greatest,
                "last": last,
                "n": n,
                "n_nonfinite": n_nonfinite,
            },
        )


def _or_none(numbers: Floats) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in numbers.tolist()]


def _derived(statistics: Mapping[str, Statistics], ranks: Sequence[EpochState]) -> dict[str, float]:
    """Metrics that follow from what was logged; they stand in the summary where the run did not log them."""
    found: dict[str, float] = {}
    loss = next((statistics[tag] for tag in LOSS_TAGS if tag in statistics), None)
    if loss is not None and loss["std"] is not None:
        found[LOSS_STD_TAG] = loss["std"]
    clipped = statistics.get(CLIPPED_TAG, {}).get("mean")
    if clipped is not None:
        found[CLIP_FRACTION_TAG] = clipped
        found[CLIPPING_PERCENTAGE_TAG] = 100.0 * clipped
    found |= _of_classification(statistics)
    seconds = [(state.end_t_ns - state.begin_t_ns) / 1e9 for state in ranks if state.end_t_ns > state.begin_t_ns > 0]
    if seconds:
        found[EPOCH_TIME_TAG] = max(seconds)
    return found


def _of_classification(statistics: Mapping[str, Statistics]) -> dict[str, float]:
    norms: Statistics = next((statistics[tag] for tag in NORM_TAGS if tag in statistics), {})
    found = {tag: norms.get(statistic) for tag, statistic in NORMS_OF_EPOCH.items()}
    found[WEIGHT_CHANGE_TAG] = statistics.get(UPDATE_TAG, {}).get("mean")
    for tag, losses in BATCHES_OF.items():
        loss: Statistics = next((statistics[name] for name in losses if name in statistics), {})
        batches = (loss.get("n") or 0) + (loss.get("n_nonfinite") or 0)
        found[tag] = float(batches) if batches > 1 else None
    return {tag: value for tag, value in found.items() if value is not None}
