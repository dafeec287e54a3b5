"""The past of streams that go on, as a restarted collector's analysers need it: last values and tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np

from sidestep_collector.blocks import KeySet, Moment, ScalarBlock, Stream, Tensor
from sidestep_collector.store.reading import connect
from sidestep_schemas.wire import DTYPE_FLOAT64, TIER_STEP

_STREAM: Final = "run = $run and rank = $rank and attempt = $attempt"
_COUNTS: Final = f"""
    select metric, count(*) from points where {_STREAM} and metric in (select unnest($tags)) group by metric
"""  # noqa: S608 - no value of a user's in it
#: A point has a step and no seq: what its record was is found by the step.
_TAILS: Final = f"""
    with tail as (
        select metric, step, value from points where {_STREAM} and metric in (select unnest($tags))
        qualify row_number() over (partition by metric order by step desc) <= $memory
    ), taken as (
        select step, max(seq) as seq, max(epoch_us(wall_time)) as taken_us, max(epoch) as epoch from snapshots
        where {_STREAM} and step >= (select min(step) from tail) group by step
    )
    select metric, seq, taken_us, step, coalesce(epoch, 'nan'::double) as epoch, value
    from tail join taken using (step) order by metric, seq
"""  # noqa: S608 - no value of a user's in it
_NAMES: Final = f"select distinct name from tensors where {_STREAM}"  # noqa: S608 - no value of a user's in it
_TENSOR: Final = f"""
    select seq, epoch_us(wall_time), step, coalesce(epoch, 'nan'::double), dtype, shape, data from tensors
    where {_STREAM} and name = $name order by seq desc limit 1
"""  # noqa: S608 - no value of a user's in it


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
    if not wanted:
        return {}
    with connect(root) as connection:
        return {
            stream: Past(
                list(_tails(connection, stream, tags)) if tags else [],
                list(_tensors(connection, stream, wants_tensor)),
            )
            for stream, tags in wanted.items()
        }


def _tails(
    connection: duckdb.DuckDBPyConnection, stream: Stream, tags: Mapping[str, int]
) -> Iterable[tuple[ScalarBlock, int]]:
    counts = dict(connection.execute(_COUNTS, _of(stream) | {"tags": list(tags)}).fetchall())
    blocks: dict[str, ScalarBlock] = {}
    for memory in sorted({memory for memory in tags.values() if memory}):
        names = [tag for tag, needed in tags.items() if needed == memory]
        found: Any = connection.execute(_TAILS, _of(stream) | {"tags": names, "memory": memory}).fetchnumpy()
        for tag in names:
            blocks[tag] = _block(stream, tag, found, np.flatnonzero(np.asarray(found["metric"]) == tag))
    for tag in tags:
        if counts.get(tag):
            yield blocks.get(tag) or _block(stream, tag, None, np.empty(0, np.int64)), int(counts[tag])


def _block(stream: Stream, tag: str, found: Any, rows: Any) -> ScalarBlock:
    def column(name: str, kind: Any) -> Any:
        return np.empty(0, kind) if found is None else np.asarray(found[name])[rows].astype(kind)

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
    connection: duckdb.DuckDBPyConnection, stream: Stream, wants_tensor: Callable[[str], bool]
) -> Iterable[Tensor]:
    for (name,) in connection.execute(_NAMES, _of(stream)).fetchall():
        if wants_tensor(name):
            found: Any = connection.execute(_TENSOR, _of(stream) | {"name": name}).fetchone()
            seq, taken_us, step, epoch, dtype, shape, data = found
            yield Tensor(Moment(stream, seq, taken_us * 1000, step, epoch), name, dtype, tuple(shape), bytes(data))


def _of(stream: Stream) -> dict[str, Any]:
    return {"run": stream.run, "rank": stream.rank, "attempt": stream.attempt}
