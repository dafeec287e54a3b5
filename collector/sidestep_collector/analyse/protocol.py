"""The contract of an analyser; all of it.

An analyser says which tags it reads and which it gives, and is a function of what the stage hands it: a `Span`
with the last `memory` values of each tag followed by the new ones. It keeps nothing of its own, so a collector that
was restarted gives the same numbers as one that was not, and how records were cut into batches does not matter:

    give one value for each new record that deserves one, from the values up to that record and no later ones.

Arrays are views into the stage's memory: read them, do not keep or change them. A tag in `reads`, `tensors` or
`gives` may be a pattern: `<name>` stands for one part of a tag, as in the catalogue, `*` for any text. A pattern of
`reads` does not match a tag that the catalogue declares in full. What is given is not read by others; and a tag
that a stream logs itself is never given for it, so what a script measures stands.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.blocks import Event, Histogram, Image, Moment, Stream, Tensor, Text

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one tag of a stream in the order of their seq: past ones first, new ones from `fresh` on.

    Attributes:
        first: how many values of the tag the stream had before element 0; the n-th value is always the n-th.
        seq, t_ns, step: int64, shape (n,).
        epoch, values: float64, shape (n,); an epoch is NaN outside epochs, values may be NaN or infinite.
    """

    tag: str
    first: int
    fresh: int
    seq: Integers
    t_ns: Integers
    step: Integers
    epoch: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """An epoch of the stream has ended: by its event (`at` is the event's), by the next one, or with the stream."""

    epoch: int
    at: Moment


@dataclass(frozen=True, slots=True)
class Span:
    """What is new of one stream, with what came before it.

    Attributes:
        series: by tag, in the order in which the stream declared them; tags that it never logged are not there.
        tensors: new ones, in the order of their seq.
        before: the last tensor of each name before them, where the analyser `keeps_tensors`.
        ended: epochs that ended.
    """

    stream: Stream
    series: Mapping[str, Series]
    tensors: Sequence[Tensor]
    before: Mapping[str, Tensor]
    ended: Sequence[EpochEnd]


@dataclass(frozen=True, slots=True)
class Values:
    """Values that are given: one row a moment, one column a tag.

    Attributes:
        seq, t_ns, step: int64, shape (n,), ascending by seq; those of the record that they belong to.
        epoch: float64, shape (n,).
        values: float64, shape (n, len(tags)).
    """

    tags: tuple[str, ...]
    seq: Integers
    t_ns: Integers
    step: Integers
    epoch: Floats
    values: Floats

    @classmethod
    def along(cls, series: Series, rows: slice | NDArray[Any], values: Mapping[str, Floats]) -> Self:
        """Values at some of the records of a series; each array of shape (rows,)."""
        columns = np.stack([np.asarray(column, np.float64) for column in values.values()], axis=1)
        return cls(tuple(values), series.seq[rows], series.t_ns[rows], series.step[rows], series.epoch[rows], columns)

    @classmethod
    def at(cls, moment: Moment, values: Mapping[str, float]) -> Self:
        """Values at one moment."""
        seq, t_ns, step = (np.array([number], np.int64) for number in (moment.seq, moment.t_ns, moment.step))
        row = np.array([list(values.values())], np.float64)
        return cls(tuple(values), seq, t_ns, step, np.array([moment.epoch], np.float64), row)


Given = Values | Histogram | Image | Text | Event


class Analyser(ABC):
    """Derive one in ten lines: see docs/analysers.md.

    Attributes:
        name: what it is called in messages; default the class's.
        reads: tags of scalars, or patterns.
        tensors: names of tensors, or patterns.
        gives: tags of what it gives, or patterns.
        memory: how many values of each tag before the new ones it needs.
        has_settable_memory: whether a collector's settings may say another `memory`.
        keeps_tensors: whether it needs the last tensor of each name before the new ones.
        when: "records": `add` is called when there are new values or tensors; "epochs": when an epoch ended.
    """

    name: str = ""
    reads: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    memory: int = 0
    has_settable_memory: bool = False
    keeps_tensors: bool = False
    when: Literal["records", "epochs"] = "records"

    @abstractmethod
    def add(self, span: Span) -> Iterable[Given]:
        """What follows from what is new. One that raises is counted and switched off for the run."""


def is_pattern(tag: str) -> bool:
    """Whether a tag stands for several."""
    return "<" in tag or "*" in tag


def matcher(tags: Iterable[str]) -> re.Pattern[str] | None:
    """What matches a tag that falls under one of `tags`; None for no tags."""
    parts = [_expression(tag) for tag in tags]
    return re.compile("|".join(parts)) if parts else None


def _expression(tag: str) -> str:
    escaped = re.escape(tag).replace(r"\<", "<").replace(r"\>", ">").replace(r"\*", ".+")
    return re.sub(r"<\w+>", "[^/]+", escaped)
