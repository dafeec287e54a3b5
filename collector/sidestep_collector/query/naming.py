"""Runs by what people type."""

from __future__ import annotations

from typing import Final

import duckdb

from sidestep_schemas.errors import UsageError

_CANDIDATES: Final = """
select run, name, case when run = $1 then 0 when starts_with(run, $1) then 1 else 2 end as how
from runs where starts_with(run, $1) or name = $1 order by how, run"""


def resolve(connection: duckdb.DuckDBPyConnection, given: str) -> str:
    """The one run that is meant: an exact id, else the only beginning, else the only name.

    Raises:
        UsageError: there is none, or there are several.
    """
    rows: list[tuple[str, str, int]] = connection.execute(_CANDIDATES, [given]).fetchall()
    for how in range(3):
        ids = [row[0] for row in rows if row[2] == how]
        if len(ids) == 1:
            return ids[0]
        if ids:
            raise UsageError(
                f"{given!r} may be any of {len(ids)} runs: {', '.join(ids[:8])}{' ...' if ids[8:] else ''}"
            )
    known: list[tuple[str]] = connection.execute("select run from runs order by started desc limit 8").fetchall()
    there = f"; there are {', '.join(row[0] for row in known)}" if known else "; there are no runs yet"
    raise UsageError(f"no run {given!r}{there}")
