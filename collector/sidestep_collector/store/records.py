"""What the store tells the pipeline about itself, and what its own modules hand each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sidestep_collector.blocks import KeySet, Stream

#: A row of a catalogue table by column; never changed once it is in the ledger. Timestamps are microseconds.
Row = dict[str, Any]
#: Columns of a table's sort: texts and whole numbers; those in the same place compare.
KeyPart = Any
Key = tuple[KeyPart, ...]


@dataclass(frozen=True, slots=True)
class KnownStream:
    """A stream as of the last commit: where a trainer may go on, and what its key sets mean.

    `cause` is "lost" or "killed" where it was found so; None where it goes on.
    """

    stream: Stream
    watermark: int
    lost: int
    ended: bool
    key_sets: tuple[KeySet, ...]
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run as of the last commit."""

    run: str
    project: str
    started_ns: int
    state: str


@dataclass(frozen=True, slots=True)
class Part:
    """An immutable file of rows. `part` is its path relative to the store's folder."""

    part: str
    table: str
    level: int
    rows: int
    nbytes: int
