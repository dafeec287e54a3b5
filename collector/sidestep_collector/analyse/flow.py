"""Flow: how gradient norms go by depth, at the end of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.analyse.protocol import Analyser, EpochEnd, Floats, Given, Span, Values
from sidestep_collector.blocks import Text

PREFIX: Final = "train/gradients/"
CLASSES: Final = ("uniform", "sparse", "vanishing", "exploding")
UNIFORM, SPARSE, VANISHING, EXPLODING = range(4)
#: Norms of an epoch that are averaged: its last ones, where settings say no other number.
MEMORY: Final = 64
#: A block is a bottleneck where its norm is below this share of the median.
BOTTLENECK_SHARE: Final = 0.1
#: A profile is sparse where so many of its blocks are bottlenecks.
SPARSE_SHARE: Final = 0.25
#: Norms beyond which a block explodes, and below which gradients vanish, whatever the profile.
LARGEST: Final = 1e3
SMALLEST: Final = 1e-8
#: Decades from the first block to the last that are no profile of a healthy network.
DECADES: Final = 3.0


class Profile(NamedTuple):
    """A profile of norms.

    Attributes:
        slope: of log10 norm by depth, decades from a block to the next; positive where deep blocks have more.
            NaN for fewer than two norms above 0.
        min_over_median: NaN where the median is 0.
        kind: index into `CLASSES`.
        bottlenecks: bool, shape (blocks,).
    """

    slope: float
    min_over_median: float
    kind: int
    bottlenecks: NDArray[np.bool_]


def depth_slope(norms: Floats) -> float:
    """Least-squares slope of log10 norm over the block's number, of norms above 0; NaN for fewer than two."""
    depth = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    if len(depth) < 2:
        return np.nan
    x = depth - depth.mean()
    return float(x @ np.log10(norms[depth]) / (x @ x))


def profile(norms: Floats) -> Profile:
    """Slope, least share, class and bottlenecks.

    The class is the first that holds: exploding: a norm that is not finite or above 1e3, or that falls with depth by
    over 3 decades from first to last block along the slope (it grows on its way back); vanishing: the median below
    1e-8, or a rise with depth by over 3 decades; sparse: a quarter of the blocks are bottlenecks (below 0.1 of the
    median); uniform: else. The limits are those of SPEC.md (block norms) and RULES.md (decades).

    Args:
        norms: shape (blocks,), first block first.
    """
    finite = norms[np.isfinite(norms)]
    median = float(np.median(finite)) if len(finite) else np.nan
    slope = depth_slope(norms)
    bottlenecks = norms < BOTTLENECK_SHARE * median
    least = float(finite.min()) / median if median > 0 else np.nan
    gap = slope * (len(norms) - 1)
    if len(finite) < len(norms) or finite.max() > LARGEST or gap < -DECADES:
        kind = EXPLODING
    elif median < SMALLEST or gap > DECADES:
        kind = VANISHING
    else:
        kind = SPARSE if bottlenecks.mean() >= SPARSE_SHARE else UNIFORM
    return Profile(slope, least, kind, bottlenecks)


class Flow(Analyser):
    """`train/flow/...` at each end of an epoch, of the means of its last 64 norms by block; for two blocks or more."""

    name = "flow"
    reads = (f"{PREFIX}<block>",)
    gives = (
        "train/flow/slope",
        "train/flow/min_over_median",
        "train/flow/class",
        "train/flow/bottleneck_count",
        "train/flow/bottleneck/<block>",
        "train/flow/bottleneck_share/<block>",
    )
    memory = MEMORY
    has_settable_memory = True
    when = "epochs"

    def add(self, span: Span) -> Iterator[Given]:
        """See `Analyser`."""
        for end in span.ended:
            norms = _norms(span, end, self.memory)
            if len(norms) >= 2:
                yield from _given(end, norms)


def _given(end: EpochEnd, norms: dict[str, Floats]) -> Iterator[Given]:
    found = profile(np.array([values.mean() for values in norms.values()]))
    slow = [block for block, is_slow in zip(norms, found.bottlenecks, strict=True) if is_slow]
    values = {
        "train/flow/slope": found.slope,
        "train/flow/min_over_median": found.min_over_median,
        "train/flow/class": float(found.kind),
        "train/flow/bottleneck_count": float(len(slow)),
        **{f"train/flow/bottleneck/{block}": float(block in slow) for block in norms},
        **{f"train/flow/bottleneck_share/{block}": share for block, share in _shares(norms).items()},
    }
    yield Values.at(end.at, values)
    text = CLASSES[found.kind] + (f"; bottlenecks: {', '.join(slow)}" if slow else "")
    yield Text(end.at, "text", "train/flow/profile", text)


def _shares(norms: dict[str, Floats]) -> dict[str, float]:
    """In what share of the records each block is a bottleneck; nothing where blocks were not recorded together."""
    if len({len(values) for values in norms.values()}) > 1:
        return {}
    matrix = np.stack(list(norms.values()))
    with np.errstate(invalid="ignore"):
        slow = matrix < BOTTLENECK_SHARE * np.median(matrix, axis=0)
    return dict(zip(norms, slow.mean(axis=1).tolist(), strict=True))


def _norms(span: Span, end: EpochEnd, memory: int) -> dict[str, Floats]:
    """The last norms of each block in the epoch."""
    norms: dict[str, Floats] = {}
    for tag, series in span.series.items():
        stop = int(np.searchsorted(series.seq, end.at.seq, side="right"))
        last = slice(max(0, stop - memory), stop)
        values = series.values[last][np.floor(series.epoch[last]) == end.epoch]
        if len(values):
            norms[tag.removeprefix(PREFIX)] = values
    return norms
