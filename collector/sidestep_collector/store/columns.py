"""Blocks as sorted columns, in numpy.

A block is records x metrics, and a part is sorted by (run, metric, rank, attempt, step): so sorting is a
transpose and an ordering of segments (a metric of a stream), hundreds of them; the values themselves are
moved once, and compared only where a step goes backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.blocks import EpochRows, ScalarBlock, Stream
from sidestep_collector.store.text import clean

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of a parts table by column, in the order of the table's sort.

    A column that `words` names holds codes: positions in its list.
    """

    arrays: dict[str, Array]
    words: dict[str, list[str]]


def points(blocks: Sequence[ScalarBlock]) -> Columns:
    """One row a value."""
    groups = _by_names(blocks)
    runs = _Words(stream.run for stream, _, _ in groups)
    metrics = _Words(name for _, names, _ in groups for name in names)
    segments: list[Array] = []
    steps: list[Array] = []
    values: list[Array] = []
    for stream, names, members in groups:
        step = np.concatenate([block.step for block in members])
        segments.append(_segments(runs[stream.run], metrics.codes(names), stream, len(step)))
        steps.append(np.tile(step, len(names)))
        values.append(np.concatenate([block.values for block in members]).T.ravel().astype(np.float64, copy=False))
    table = np.concatenate(segments, axis=1)
    order = np.lexsort(table[3::-1])
    key, length = table[:4, order], table[4, order]
    take = _gather(table[4], order)
    step, value = np.concatenate(steps)[take], np.concatenate(values)[take]
    fresh = np.ones(key.shape[1], dtype=bool)
    fresh[1:] = np.any(key[:, 1:] != key[:, :-1], axis=0)
    group = np.repeat(np.cumsum(fresh), length)
    if np.any((step[1:] < step[:-1]) & (group[1:] == group[:-1])):
        by_step = np.lexsort((step, group))
        step, value = step[by_step], value[by_step]
    run, metric, rank, attempt = (np.repeat(column.astype(np.int32), length) for column in key)
    arrays = {"run": run, "metric": metric, "rank": rank, "attempt": attempt, "step": step, "value": value}
    return Columns(arrays, {"run": runs.words, "metric": metrics.words})


def snapshots(blocks: Sequence[ScalarBlock]) -> Columns:
    """One row a record."""
    runs = _Words(block.stream.run for block in blocks)
    tiers = _Words(block.key_set.tier for block in blocks)
    arrays: dict[str, Array] = {
        "run": _repeat([runs[block.stream.run] for block in blocks], blocks),
        "attempt": _repeat([block.stream.attempt for block in blocks], blocks),
        "rank": _repeat([block.stream.rank for block in blocks], blocks),
        "step": np.concatenate([block.step for block in blocks]),
        "epoch": np.concatenate([block.epoch for block in blocks]),
        "tier": _repeat([tiers[block.key_set.tier] for block in blocks], blocks),
        "wall_time": np.concatenate([block.t_ns for block in blocks]) // 1000,
        "seq": np.concatenate([block.seq for block in blocks]),
    }
    order = np.lexsort((arrays["seq"], arrays["step"], arrays["attempt"], arrays["rank"], arrays["run"]))
    return Columns({name: array[order] for name, array in arrays.items()}, {"run": runs.words, "tier": tiers.words})


_MEASURES = ("n", "n_nonfinite", "vmin", "vmax", "mean", "m2", "vfirst", "vlast", "first_seq", "last_seq")


def epochs(rows: Sequence[EpochRows]) -> Columns:
    """One row an aggregate, not merged: that is done when they are read, and when parts are."""
    runs = _Words(row.stream.run for row in rows)
    metrics = _Words(name for row in rows for name in row.names)
    key = np.concatenate(
        [_segments(runs[row.stream.run], metrics.codes(row.names), row.stream, row.epoch) for row in rows], axis=1
    )
    order = np.lexsort(key[::-1])
    run, metric, rank, attempt = key[:4, order].astype(np.int32)
    arrays: dict[str, Array] = {"run": run, "metric": metric, "rank": rank, "attempt": attempt, "epoch": key[4, order]}
    for name in _MEASURES:
        arrays[name] = np.concatenate([getattr(row, name) for row in rows])[order]
    return Columns(arrays, {"run": runs.words, "metric": metrics.words})


class _Words:
    """Strings as codes; the order of the codes is the order of the strings in DuckDB (by code point)."""

    def __init__(self, texts: Iterable[str]) -> None:
        raw = set(texts)
        self.words = sorted({clean(text) for text in raw})
        code = {word: number for number, word in enumerate(self.words)}
        self._code = {text: code[clean(text)] for text in raw}
        self._codes: dict[tuple[str, ...], Array] = {}

    def __getitem__(self, text: str) -> int:
        return self._code[text]

    def codes(self, texts: tuple[str, ...]) -> Array:
        known = self._codes.get(texts)
        if known is None:
            known = self._codes[texts] = np.array([self._code[text] for text in texts], dtype=np.int64)
        return known


def _by_names(blocks: Sequence[ScalarBlock]) -> list[tuple[Stream, tuple[str, ...], list[ScalarBlock]]]:
    groups: dict[tuple[bytes, tuple[str, ...]], list[ScalarBlock]] = {}
    for block in blocks:
        groups.setdefault((block.stream.key, block.key_set.names), []).append(block)
    return [(members[0].stream, names, members) for (_, names), members in groups.items()]


def _segments(run: int, metrics: Array, stream: Stream, last: int) -> Array:
    """Columns (run, metric, rank, attempt, last) of the segments of one stream, int64, shape (5, metrics)."""
    table = np.empty((5, len(metrics)), dtype=np.int64)
    table[0], table[1], table[2], table[3], table[4] = run, metrics, stream.rank, stream.attempt, last
    return table


def _gather(length: Array, order: Array) -> Array:
    """Where the rows of segments lie, once the segments are put in order."""
    start = np.cumsum(length) - length
    ordered = length[order]
    shift = start[order] - (np.cumsum(ordered) - ordered)
    return np.arange(int(ordered.sum())) + np.repeat(shift, ordered)


def _repeat(values: Sequence[int], blocks: Sequence[ScalarBlock]) -> Array:
    return np.repeat(np.array(values, dtype=np.int32), [len(block.seq) for block in blocks])
