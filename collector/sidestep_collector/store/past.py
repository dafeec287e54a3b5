"""The past of streams that go on, as a restarted collector's analysers need it: last values and tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np

from sidestep_collector.blocks import KeySet, Moment, ScalarBlock, Stream, Tensor
from sidestep_collector.store.reading import connect
from sidestep_collector.store.rows import dump
from sidestep_schemas.wire import DTYPE_FLOAT64, TIER_STEP

#: Streams that are asked for at once: a query for each took 25 ms of planning, and one for all too much memory.
_STREAMS_AT_ONCE: Final = 64

#: What is asked for travels as one JSON text, see `rows`.
_ASKED: Final = """
    asked as materialized (select unnest(from_json($asked, '[{"id": "BIGINT", "run": "VARCHAR", "rank": "INTEGER",
        "attempt": "INTEGER", "metric": "VARCHAR", "memory": "BIGINT"}]'), recursive := true))
"""
_COUNTS: Final = f"""
    with {_ASKED} select id, count(*) from points join asked using (run, rank, attempt, metric) group by id
"""  # noqa: S608 - no value of a user's in it
#: A point has a step and no seq: what its record was is found by the step.
_TAILS: Final = f"""
    with {_ASKED}, tail as (
        select id, run, rank, attempt, step, value from points join asked using (run, rank, attempt, metric)
        where memory > 0 qualify row_number() over (partition by id order by step desc) <= memory
    ), since as (
        select run, rank, attempt, min(step) as first_step from tail group by all
    ), taken as (
        select run, rank, attempt, step, max(seq) as seq, max(epoch_us(wall_time)) as taken_us, max(epoch) as epoch
        from snapshots join since using (run, rank, attempt) where step >= first_step group by run, rank, attempt, step
    )
    select id, seq, taken_us, step, coalesce(epoch, 'nan'::double) as epoch, value
    from tail join taken using (run, rank, attempt, step) order by id, seq
"""  # noqa: S608 - no value of a user's in it
_NAMES: Final = f"""
    with {_ASKED} select distinct id, name from tensors join asked using (run, rank, attempt) order by all
"""  # noqa: S608 - no value of a user's in it
_TENSOR: Final = """
    select seq, epoch_us(wall_time), step, coalesce(epoch, 'nan'::double), dtype, shape, data from tensors
    where (run, rank, attempt, name) = ($run, $rank, $attempt, $name) order by seq desc limit 1
"""


@dataclass(frozen=True, slots=True)
class Past:
    """What is stored of a stream.

    Attributes:
        tails: for each tag its last values, as a block of that one name, and how many values there are in all.
        tensors: the last tensor of each name.
    """

    tails: list[tuple[ScalarBlock, int]] = field(default_factory=list[tuple[ScalarBlock, int]])
    tensors: list[Tensor] = field(default_factory=list[Tensor])


def read_past(
    root: Path, wanted: Mapping[Stream, Mapping[str, int]], wants_tensor: Callable[[str], bool]
) -> dict[Stream, Past]:
    """The past of streams.

    Values of one tag and one step stand in no particular order; a record's seq is known where its step is its own.

    Args:
        root: data folder.
        wanted: for each stream its tags, and how many last values of each.
        wants_tensor: whether the last tensor of a name is asked for.
    """
    past = {stream: Past() for stream in wanted}
    if not wanted:
        return past
    streams = list(wanted)
    with connect(root) as connection:
        for start in range(0, len(streams), _STREAMS_AT_ONCE):
            some = streams[start : start + _STREAMS_AT_ONCE]
            tags = [(stream, tag, memory) for stream in some for tag, memory in wanted[stream].items()]
            if tags:
                for stream, block, count in _tails(connection, tags):
                    past[stream].tails.append((block, count))
            for tensor in _tensors(connection, some, wants_tensor):
                past[tensor.at.stream].tensors.append(tensor)
    return past


def _tails(
    connection: duckdb.DuckDBPyConnection, tags: Sequence[tuple[Stream, str, int]]
) -> Iterator[tuple[Stream, ScalarBlock, int]]:
    asked = dump(
        _row(number, stream) | {"metric": tag, "memory": memory} for number, (stream, tag, memory) in enumerate(tags)
    )
    counts = dict(connection.execute(_COUNTS, {"asked": asked}).fetchall())
    found: Any = connection.execute(_TAILS, {"asked": asked}).fetchnumpy()
    bounds = np.searchsorted(np.asarray(found["id"]), np.arange(len(tags) + 1))
    for number, (stream, tag, _) in enumerate(tags):
        if counts.get(number):
            yield stream, _block(stream, tag, found, slice(bounds[number], bounds[number + 1])), int(counts[number])


def _block(stream: Stream, tag: str, found: Any, rows: slice) -> ScalarBlock:
    def column(name: str, kind: Any) -> Any:
        return np.asarray(found[name])[rows].astype(kind)

    return ScalarBlock(
        stream,
        KeySet(-1, DTYPE_FLOAT64, TIER_STEP, (tag,), ()),
        column("seq", np.int64),
        column("taken_us", np.int64) * 1000,
        column("step", np.int64),
        column("epoch", np.float64),
        column("value", np.float64)[:, None],
    )


def _tensors(
    connection: duckdb.DuckDBPyConnection, streams: Sequence[Stream], wants_tensor: Callable[[str], bool]
) -> Iterator[Tensor]:
    asked = dump(_row(number, stream) | {"metric": "", "memory": 0} for number, stream in enumerate(streams))
    for number, name in connection.execute(_NAMES, {"asked": asked}).fetchall():
        if wants_tensor(name):
            stream = streams[number]
            of = {"run": stream.run, "rank": stream.rank, "attempt": stream.attempt, "name": name}
            row: Any = connection.execute(_TENSOR, of).fetchone()
            seq, taken_us, step, epoch, dtype, shape, data = row
            yield Tensor(Moment(stream, seq, taken_us * 1000, step, epoch), name, dtype, tuple(shape), bytes(data))


def _row(number: int, stream: Stream) -> dict[str, Any]:
    return {"id": number, "run": stream.run, "rank": stream.rank, "attempt": stream.attempt}
