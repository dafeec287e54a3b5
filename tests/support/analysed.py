"""Streams to analyse: records of scalars and items as the decoder gives them, cut into batches in any way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sidestep_collector.analyse import Analysis
from sidestep_collector.blocks import Event, Histogram, Image, Item, KeySet, Moment, ScalarBlock, Stream, Tensor, Text
from sidestep_collector.telemetry import Counters

STREAM = Stream(b"stream 0", b"r" * 16, "run", "project", 0, 0)
SECOND = 10**9


class Recorded:
    """Records of one stream in the order of their seq; each is a mapping of scalars, or an item."""

    def __init__(self, stream: Stream = STREAM) -> None:
        self.stream = stream
        self.records: list[tuple[Moment, dict[str, float] | Item]] = []
        self.key_sets: dict[tuple[str, ...], KeySet] = {}

    def log(
        self, values: dict[str, float], step: int = 0, epoch: float = np.nan, reductions: tuple[str, ...] = ()
    ) -> None:
        names = tuple(values)
        self.key_sets.setdefault(names, KeySet(len(self.key_sets), 1, "step", names, reductions))
        self.records.append((self._at(step, epoch), values))

    def tensor(self, name: str, array: Any, step: int = 0, epoch: float = np.nan) -> None:
        array = np.asarray(array)
        at = self._at(step, epoch)
        self.records.append((at, Tensor(at, name, array.dtype.name, array.shape, array.tobytes())))

    def event(self, event: str, **details: Any) -> None:
        at = self._at(-1, details.get("epoch", np.nan))
        self.records.append((at, Event(at, event, details)))

    def decoded(self, start: int, stop: int) -> tuple[list[ScalarBlock], list[Item]]:
        """Some of the records as one batch: a block for each key set."""
        rows: dict[tuple[str, ...], list[tuple[Moment, list[float]]]] = {}
        items: list[Item] = []
        for at, record in self.records[start:stop]:
            if isinstance(record, dict):
                rows.setdefault(tuple(record), []).append((at, list(record.values())))
            else:
                items.append(record)
        return [_block(self.stream, self.key_sets[names], found) for names, found in rows.items()], items

    def _at(self, step: int, epoch: float) -> Moment:
        seq = len(self.records)
        return Moment(self.stream, seq, seq * SECOND, step, epoch)


def _block(stream: Stream, key_set: KeySet, rows: Sequence[tuple[Moment, Sequence[float]]]) -> ScalarBlock:
    ats = [at for at, _ in rows]
    seq, t_ns, step = (np.array([getattr(at, name) for at in ats], np.int64) for name in ("seq", "t_ns", "step"))
    values = np.array([values for _, values in rows], np.float64).reshape(len(rows), len(key_set.names))
    return ScalarBlock(stream, key_set, seq, t_ns, step, np.array([at.epoch for at in ats], np.float64), values)


def tails(recorded: Recorded, stop: int, wanted: Mapping[str, int]) -> Iterator[tuple[ScalarBlock, int]]:
    """What a store tells of the records before `stop`: the last values of each tag, and how many there are."""
    found: dict[str, list[tuple[Moment, list[float]]]] = {}
    for at, record in recorded.records[:stop]:
        if isinstance(record, dict):
            for tag in wanted.keys() & record.keys():
                found.setdefault(tag, []).append((at, [record[tag]]))
    for tag, rows in found.items():
        kept = rows[max(0, len(rows) - wanted[tag]) :]
        yield _block(recorded.stream, KeySet(-1, 1, "step", (tag,), ()), kept), len(rows)


Point = tuple[int, int, int, float, float]
Points = dict[str, list[Point]]


def points(blocks: Iterable[ScalarBlock]) -> Points:
    """(seq, t_ns, step, epoch, value) of every value, by tag, in order."""
    found: Points = {}
    for block in blocks:
        for row in range(len(block.seq)):
            at = (int(block.seq[row]), int(block.t_ns[row]), int(block.step[row]), float(block.epoch[row]))
            for name, value in zip(block.key_set.names, block.values[row].tolist(), strict=True):
                found.setdefault(name, []).append((*at, value))
    return {tag: sorted(rows, key=lambda row: row[0]) for tag, rows in found.items()}


def analysed(recorded: Recorded, analysers: Sequence[Any], cuts: Iterable[int] = ()) -> tuple[Points, list[Item]]:
    """All that analysers give of a stream that is cut at some records."""
    analysis = Analysis(analysers, Counters())
    blocks: list[ScalarBlock] = []
    items: list[Item] = []
    bounds = [0, *sorted(cuts), len(recorded.records)]
    for start, stop in pairwise(bounds):
        analysis.add(*recorded.decoded(start, stop))
        more_blocks, more_items = analysis.take()
        blocks += more_blocks
        items += more_items
    return points(blocks), items


def described(items: Iterable[Item]) -> list[tuple[Any, ...]]:
    """Items as plain tuples that compare."""
    found: list[tuple[Any, ...]] = []
    for item in items:
        if isinstance(item, Histogram):
            found.append((item.at.seq, item.name, item.edges.tolist(), item.counts.tolist()))
        elif isinstance(item, Text):
            found.append((item.at.seq, item.name, item.text))
        elif isinstance(item, Image):
            found.append((item.at.seq, item.name, item.png))
    return sorted(found)


def values(found: Points, tag: str) -> list[float]:
    return [row[-1] for row in found.get(tag, [])]
