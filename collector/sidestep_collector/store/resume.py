"""What a restarted collector must know of the runs that go on: their last epochs, steps and events."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sidestep_collector.blocks import Event, Moment, Stream
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


@dataclass(frozen=True, slots=True)
class RunTail:
    """The end of a run as stored.

    Attributes:
        since_epoch: first epoch that is looked at.
        reached: for an epoch, its greatest step and the time of its last record in nanoseconds.
        events: events of those epochs, and starts and ends, in the order of their seq.
    """

    run: str
    since_epoch: int
    reached: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    events: list[Event] = field(default_factory=list[Event])


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
            tail = RunTail(run, since)
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
