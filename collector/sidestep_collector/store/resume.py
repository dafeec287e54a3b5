"""What a restarted collector must know of the runs that go on: their last epochs, steps and events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np

from sidestep_collector.blocks import Event, Moment, StoredValues, Stream
from sidestep_collector.store.reading import connect

#: Epochs back from the last that may still change.
EPOCHS_BACK: Final = 3

_EPOCHS: Final = "select distinct epoch from epochs where run = ? order by epoch"
_REACHED: Final = """
    select floor(epoch)::bigint, max(step), max(epoch_us(wall_time)) from snapshots
    where run = ? and epoch >= ? group by 1
"""
_EVENT: Final = """
    select run, rank, attempt, seq, epoch_us(wall_time), step, coalesce(epoch, 'nan'::double), event, details::varchar
    from events
"""
_STARTS: Final = f"{_EVENT} where event = 'start' and list_contains(?, run) order by run, rank, attempt, seq"
_EVENTS: Final = f"""
    {_EVENT} where run = ? and (epoch >= ? or event in ('start', 'end')) order by rank, attempt, seq
"""
_RANKS: Final = """
    select max(greatest(rank + 1, coalesce(world_size, 1))) from attempts join runs using (run) where run = ?
"""
# A point has no epoch of its own: it is that of its step. Where a step is in two, what was logged there at the
# beginning of the second is seldom of a metric that ranks combine.
_VALUES: Final = """
    with taken as (
        select rank, attempt, step, floor(min(epoch))::bigint as epoch from snapshots where run = $run group by all
    ), said as (select distinct metric, rank, attempt, reduction, weight from reductions where run = $run)
    select p.rank, p.attempt, t.epoch, p.metric,
        coalesce(s.reduction || coalesce(':' || s.weight, ''), m.reduction, 'mean'),
        list(p.step order by p.step), list(p.value order by p.step)
    from points p join taken t using (rank, attempt, step) left join said s using (metric, rank, attempt)
    left join metrics m on m.metric = p.metric
    where p.run = $run and t.epoch >= $since
        and (s.reduction is not null or m.reduction <> 'mean' or p.metric in (select weight from said))
    group by 1, 2, 3, 4, 5
"""

#: Run, rank and attempt of a stream.
_Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class RunTail:
    """The end of a run as stored.

    Attributes:
        since_epoch: first epoch that is looked at.
        reached: for an epoch, its greatest step and the time of its last record in nanoseconds.
        events: events of those epochs, and starts and ends, in the order of their seq.
        values: of a run of several ranks, those of metrics that ranks combine otherwise than by their mean; None of
            one that is not known to have several.
    """

    run: str
    since_epoch: int
    reached: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    events: list[Event] = field(default_factory=list[Event])
    values: list[StoredValues] | None = None


def read_starts(root: Path, streams: Iterable[Stream]) -> list[Event]:
    """What streams said when they started."""
    known = _by_place(streams)
    if not known:
        return []
    with connect(root) as connection:
        rows = connection.execute(_STARTS, [sorted({run for run, *_ in known})]).fetchall()
    return _events(rows, known)


def read_tails(root: Path, streams: Iterable[Stream], begin: Callable[[str, Sequence[int]], int]) -> list[RunTail]:
    """The ends of the runs that the given streams belong to.

    Args:
        root: data folder.
        streams: of runs that go on.
        begin: of a run, and those of its epochs that can change no more, ascending: from which on they are needed.
    """
    known = _by_place(streams)
    tails: list[RunTail] = []
    if not known:
        return tails
    with connect(root) as connection:
        for run in dict.fromkeys(run for run, *_ in known):
            epochs = [epoch for (epoch,) in connection.execute(_EPOCHS, [run]).fetchall()]
            since = _since(epochs, partial(begin, run))
            tail = RunTail(run, since, values=_values(connection, run, since))
            for epoch, step, last_us in connection.execute(_REACHED, [run, since]).fetchall():
                tail.reached[epoch] = (step, last_us * 1000)
            tail.events.extend(_events(connection.execute(_EVENTS, [run, since]).fetchall(), known))
            tails.append(tail)
    return tails


def _by_place(streams: Iterable[Stream]) -> dict[_Place, Stream]:
    return {(stream.run, stream.rank, stream.attempt): stream for stream in streams}


def _since(epochs: list[int], begin: Callable[[Sequence[int]], int]) -> int:
    since = (epochs[-1] if epochs else 0) - EPOCHS_BACK
    settled = [epoch for epoch in epochs if epoch <= since]
    return min(since, begin(settled)) if settled else since


def _events(rows: Iterable[tuple[Any, ...]], known: Mapping[_Place, Stream]) -> list[Event]:
    return [
        Event(Moment(stream, seq, wall_us * 1000, step, epoch), event, json.loads(details or "{}"))
        for run, rank, attempt, seq, wall_us, step, epoch, event, details in rows
        if (stream := known.get((run, rank, attempt))) is not None
    ]


def _values(connection: duckdb.DuckDBPyConnection, run: str, since: int) -> list[StoredValues] | None:
    ranks = connection.execute(_RANKS, [run]).fetchone()
    if ranks is None or (ranks[0] or 1) < 2:
        return None
    return [
        StoredValues(run, rank, attempt, epoch, metric, reduction, np.array(steps, np.int64), np.array(values))
        for rank, attempt, epoch, metric, reduction, steps, values in connection.execute(
            _VALUES, {"run": run, "since": since}
        ).fetchall()
    ]
