"""Merging parts in the background: many small files become few, sorted through, without holding a commit up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sidestep_collector.store.folder import PARTS, remove, sync
from sidestep_collector.store.parts import PARQUET, engine, finish, new_part
from sidestep_collector.store.records import Part
from sidestep_collector.store.text import identifier, quoted
from sidestep_collector.store.views import merged_epochs, parts_query
from sidestep_schemas.tables import TABLE

#: Parts of a level that make one of the next: each row is rewritten log16(parts) times.
FAN_IN: Final = 16
#: A part above this is left as it is: merging it again gains little and takes minutes.
PART_BYTES_MAX: Final = 32 << 20
#: Rows of blobs lie in memory by the row group; few in a group keep them within the engine's limit.
_GROUP_BYTES: Final = 16 << 20
_GROUP_ROWS: Final = 122_880
_GROUP_ROWS_MIN: Final = 2048
#: What a merge sorts in; more goes to disk. Merging 5 million points took 0.5 GB when it could have it, and 2.2 s;
#: with 64 MB it takes 3.3 s. A few blobs may be larger than that each.
_MEMORY: Final = "64MB"
_MEMORY_FOR_BLOBS: Final = "512MB"


def choose(parts: Sequence[Part]) -> list[Part]:
    """The oldest parts of one table and level that are enough for a merge; the lowest level first."""
    groups: dict[tuple[int, str], list[Part]] = {}
    for part in parts:
        if part.nbytes <= PART_BYTES_MAX:
            groups.setdefault((part.level, part.table), []).append(part)
    ready = sorted(key for key, members in groups.items() if len(members) >= FAN_IN)
    return sorted(groups[ready[0]], key=lambda part: part.part)[:FAN_IN] if ready else []


class Compactor:
    """Writes merged parts, with a DuckDB of its own so that a merge and a commit share nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._engine = engine(folder, threads=1, memory=_MEMORY)

    def merge(self, chosen: Sequence[Part], commit: int) -> Part:
        """Write one part with the rows of several, fsynced; on any failure no file stays."""
        table = TABLE[chosen[0].table]
        rows = parts_query(table, [self._folder / part.part for part in chosen])
        if table is TABLE["epochs"]:
            rows = merged_epochs(rows)
        order = ", ".join(identifier(name) for name in table.sort)
        part = new_part(self._folder, table.name, commit, chosen[0].level + 1)
        target = self._folder / part.part
        options = f"{PARQUET}, row_group_size {_group_rows(chosen)}"
        has_blobs = any(column.type == "BLOB" for column in table.columns)
        try:
            self._engine.execute(f"set memory_limit = '{_MEMORY_FOR_BLOBS if has_blobs else _MEMORY}'")
            done = self._engine.execute(
                f"copy ({rows} order by {order}) to {quoted(str(target))} ({options})"
            ).fetchone()
            part = finish(self._folder, part, int(done[0]) if done else 0)
            sync(self._folder / PARTS / table.name)
        except BaseException:
            remove((target,))
            raise
        return part

    def interrupt(self) -> None:
        """Make a merge that is under way fail soon."""
        self._engine.interrupt()

    def close(self) -> None:
        """Let go of DuckDB."""
        self._engine.close()


def _group_rows(chosen: Sequence[Part]) -> int:
    a_row = max(1, sum(part.nbytes for part in chosen) // max(1, sum(part.rows for part in chosen)))
    return min(_GROUP_ROWS, max(_GROUP_ROWS_MIN, _GROUP_BYTES // a_row))
