"""The SQL of the catalogue: its tables, and the views over parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sidestep_collector.store.derived_epochs import with_derived
from sidestep_collector.store.over_ranks import POINTS_OVER_RANKS
from sidestep_collector.store.text import identifier, quoted
from sidestep_schemas.tables import DERIVED_VIEWS, TABLE, TABLES, Table

CATALOG_TABLES: Final = tuple(table for table in TABLES if table.where == "catalog")
PARTS_TABLES: Final = tuple(table for table in TABLES if table.where == "parts")

_EPOCH_KEY: Final = "run, metric, rank, attempt, epoch"

# Rows that speak of the same epoch are merged with Chan's formula. The mean comes first, in a pass of its
# own: sums of squares that are subtracted lose everything when the spread is small beside the mean.
_MERGED_EPOCHS: Final = f"""
with weighed as (
    select *, sum(n) over (partition by {_EPOCH_KEY}) as total from ({{rows}})
), centred as (
    select *, sum(mean * (n / total)) over (partition by {_EPOCH_KEY}) as centre from weighed
)
select {_EPOCH_KEY}, sum(n)::BIGINT as n, sum(n_nonfinite)::BIGINT as n_nonfinite, min(vmin) as vmin, max(vmax) as vmax,
    any_value(centre) as mean, coalesce(sum(m2 + n * (mean - centre) * (mean - centre)), 0)::DOUBLE as m2,
    arg_min(vfirst, first_seq) as vfirst, arg_max(vlast, last_seq) as vlast,
    min(first_seq) as first_seq, max(last_seq) as last_seq
from centred group by {_EPOCH_KEY}"""  # noqa: S608 - no value of a user's in it

# The latest attempt of a rank always stands, so only what came before a resume is looked up.
_POINTS_CURRENT: Final = """
with latest as (select run, rank, max(attempt) as attempt from attempts group by run, rank)
select p.run, p.metric, p.rank, p.attempt, p.step, p.value
from points p join latest l on p.run = l.run and p.rank = l.rank and p.attempt = l.attempt
union all
select p.run, p.metric, p.rank, p.attempt, p.step, p.value
from points p join latest l on p.run = l.run and p.rank = l.rank and p.attempt < l.attempt
where not exists (
    select 1 from points q
    where q.attempt > 0 and q.attempt > p.attempt
        and q.run = p.run and q.metric = p.metric and q.rank = p.rank and q.step = p.step
)"""

_DERIVED: Final = {"points_current": _POINTS_CURRENT, "points_over_ranks": POINTS_OVER_RANKS}
assert _DERIVED.keys() == DERIVED_VIEWS.keys(), "each derived view that is declared has its query here"


def create_table(table: Table) -> str:
    """DDL of a catalogue table, without its terminator."""
    columns = ", ".join(f"{identifier(column.name)} {column.type}" for column in table.columns)
    return f"create or replace table {identifier(table.name)} ({columns})"


def create_views(files: Mapping[str, Sequence[Path]], *, kind: str = "view") -> list[str]:
    """Statements for every view; `files` maps a table to its parts, `kind` may be "temp view"."""
    views = [(table.name, view_query(table, files.get(table.name, ()))) for table in PARTS_TABLES]
    return [f"create or replace {kind} {identifier(name)} as {query}" for name, query in (*views, *_DERIVED.items())]


def view_query(table: Table, files: Sequence[Path]) -> str:
    """What the view of a parts table asks."""
    rows = parts_query(table, files)
    if table is not TABLE["epochs"]:
        return rows
    columns = ", ".join(identifier(column.name) for column in table.columns)
    return with_derived(merged_epochs(rows), columns)


def parts_query(table: Table, files: Sequence[Path]) -> str:
    """The rows of parts as they lie there."""
    if not files:
        columns = ", ".join(f"null::{column.type} as {identifier(column.name)}" for column in table.columns)
        return f"select {columns} where false"
    columns = ", ".join(
        f"{identifier(column.name)}::{column.type} as {identifier(column.name)}" for column in table.columns
    )
    # Partition detection would read columns out of a folder that is called `run=1`.
    paths = ", ".join(quoted(str(file)) for file in files)
    return f"select {columns} from read_parquet([{paths}], hive_partitioning = false)"  # noqa: S608 - quoted


def merged_epochs(rows: str) -> str:
    """One row for each metric and epoch of a stream, from a query that gives several."""
    return _MERGED_EPOCHS.format(rows=rows)
