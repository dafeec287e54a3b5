"""Shares: what part of a whole a term is, record by record."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sidestep_collector.analyse.protocol import Analyser, Floats, Series, Span, Values


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two tags of one record.

    Attributes:
        gives: tag of the ratio.
        part: tag of the term. With a `<placeholder>` it stands for several, and `gives` has the same one.
        whole: tags of the whole; for each record the first that is in it.
    """

    gives: str
    part: str
    whole: tuple[str, ...]


TOTALS: Final = ("train/loss_total", "train/loss/total", "train/loss")
RATIOS: Final = (
    Ratio("train/loss_ratio_fm", "train/loss_fm", TOTALS),
    Ratio("train/loss/contribution_h<k>", "train/loss/h<k>", ("train/loss/total", "train/loss_total", "train/loss")),
)


def share(part: Floats, whole: Floats) -> Floats:
    """|part| / |whole|, element by element: a signed loss has a share of its size. Infinite or NaN where whole is 0."""
    with np.errstate(all="ignore"):
        return np.abs(part) / np.abs(whole)


class Shares(Analyser):
    """Shares of terms.

    Args:
        ratios: which; a profile may give its own.
    """

    name = "shares"

    def __init__(self, ratios: Sequence[Ratio] = RATIOS) -> None:
        self._ratios = [(ratio, _pattern(ratio.part)) for ratio in ratios]
        self.reads = tuple({tag: None for ratio in ratios for tag in (ratio.part, *ratio.whole)})
        self.gives = tuple(ratio.gives for ratio in ratios)

    def add(self, span: Span) -> Iterator[Values]:
        """See `Analyser`."""
        for ratio, pattern in self._ratios:
            wholes = [span.series[tag] for tag in ratio.whole if tag in span.series]
            for tag, part in span.series.items():
                match = pattern.fullmatch(tag)
                if match is not None and wholes and part.fresh < len(part.seq):
                    yield from _shares(_given(ratio, match), part, wholes)


def _shares(tag: str, part: Series, wholes: Sequence[Series]) -> Iterator[Values]:
    found = np.empty(len(part.seq))
    has = np.zeros(len(part.seq), bool)
    for whole in reversed(wholes):  # the first comes last, over what others gave
        of_part, of_whole = _alike(part, whole)
        found[of_part] = share(part.values[of_part], whole.values[of_whole])
        has[of_part] = True
    if has.any():
        yield Values.along(part, has, {tag: found[has]})


def _alike(one: Series, other: Series) -> tuple[Any, Any]:
    """The new records that two series have in common, as rows of both."""
    left, right = one.seq[one.fresh :], other.seq[other.fresh :]
    if len(left) == len(right) and (left == right).all():
        return slice(one.fresh, None), slice(other.fresh, None)
    _, of_one, of_other = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    return of_one + one.fresh, of_other + other.fresh


def _pattern(tag: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", re.escape(tag).replace(r"\<", "<").replace(r"\>", ">")))


def _given(ratio: Ratio, match: re.Match[str]) -> str:
    return re.sub(r"<(\w+)>", lambda found: match[found[1]], ratio.gives)
