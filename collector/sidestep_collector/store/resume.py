"""What a restarted collector must know of the runs that go on: their last epochs, steps and events."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import duckdb
import numpy as np

from sidestep_collector.blocks import Event, Moment, StoredValues, Stream
from sidestep_collector.store.reading import connect

#: Epochs back from the last that may still change.
EPOCHS_BACK: Final = 3

_LAST_EPOCH = "select max(epoch) from epochs where run = ?"
_REACHED = """
    select floor(epoch)::bigint, max(step), max(epoch_us(wall_time)) from snapshots
    where run = ? and epoch >= ? group by 1
"""
_EVENTS = """
    select rank, attempt, seq, epoch_us(wall_time), step, coalesce(epoch, 'nan'::double), event, details::varchar
    from events where run = ? and (epoch >= ? or event in ('start', 'end')) order by rank, attempt, seq
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


def read_tails(root: Path, streams: Iterable[Stream]) -> list[RunTail]:
    """The ends of the runs that the given streams belong to."""
    by_run: dict[str, dict[tuple[int, int], Stream]] = {}
    for stream in streams:
        by_run.setdefault(stream.run, {})[stream.rank, stream.attempt] = stream
    if not by_run:
        return []
    tails: list[RunTail] = []
    with connect(root) as connection:
        for run, members in by_run.items():
            found = connection.execute(_LAST_EPOCH, [run]).fetchone()
            since = (found[0] if found and found[0] is not None else 0) - EPOCHS_BACK
            tail = RunTail(run, since, values=_values(connection, run, since))
            for epoch, step, last_us in connection.execute(_REACHED, [run, since]).fetchall():
                tail.reached[epoch] = (step, last_us * 1000)
            for rank, attempt, seq, wall_us, step, epoch, event, details in connection.execute(
                _EVENTS, [run, since]
            ).fetchall():
                stream = members.get((rank, attempt))
                if stream is not None:
                    at = Moment(stream, seq, wall_us * 1000, step, epoch)
                    tail.events.append(Event(at, event, json.loads(details or "{}")))
            tails.append(tail)
    return tails


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
