"""`sidestep ls` and `sidestep show`: what runs there are, and how one of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import click
import duckdb

from sidestep_collector.commands.table import as_json, as_text
from sidestep_collector.profiles import suggested
from sidestep_collector.query.ending import endings
from sidestep_collector.query.naming import resolve
from sidestep_collector.query.report.text import finding
from sidestep_collector.store import connect
from sidestep_schemas.layout import data_dir

_RUNS = """
with reached as (select run, max(step) as steps from snapshots group by run),
losses as (
    select run, arg_max(value, (metric, attempt, step)) as loss from points
    where metric in ('train/loss', 'train/loss_total') group by run -- the total where both are there
)
select run, project, name, state, started, nullif(steps, -1) as steps, loss
from runs left join reached using (run) left join losses using (run) order by started desc, run"""
_ATTEMPTS = """
select a.rank, a.attempt, coalesce(a.cause, 'running') as state, a.started, a.ended, a.start_step, a.host, a.pid,
    i.watermark as stored, i.lost
from attempts a left join ingest i using (stream) where a.run = ? order by a.rank, a.attempt"""
_GAPS = "select rank, attempt, first_seq, records, reason, noticed from gaps where run = ? order by all"
_LAST = """
select l.metric, l.step, l.value, coalesce(m.unit, '') as unit from (
    select metric, max(step) as step, arg_max(value, (attempt, step)) as value from points where run = ? group by metric
) l left join metrics m using (metric) order by l.metric"""
_EPOCHS = """
select epoch, count(distinct metric) as metrics, count(distinct rank) as ranks
from epochs where run = ? group by epoch order by epoch"""
_FINDINGS = """
select severity, state, finding, rule, subject, first_step, last_step, count, message, advice
from findings where run = ? and state <> 'pending'
order by state, case severity when 'critical' then 0 when 'warning' then 1 else 2 end, first_step"""
_FILES = "select path, bytes from files where contains(path, ?) order by path"
_RUN = "select * from runs where run = ?"

_folder = click.option("--dir", "folder", metavar="DIR", help="Data folder; SIDESTEP_DIR, else ./sidestep-data.")
_json = click.option("--json", "as_document", is_flag=True, help="Print one JSON document.")


@click.command()
@_folder
@_json
def ls(folder: str | None, as_document: bool) -> None:
    """List the runs of a data folder, the newest first."""
    with closing(connect(data_dir(folder))) as connection:
        columns, rows = _ask(connection, _RUNS)
    if as_document:
        click.echo(as_json([dict(zip(columns, row, strict=True)) for row in rows]))
    else:
        click.echo(as_text(columns, rows) if rows else "no runs yet")


@click.command()
@click.argument("run")
@_folder
@_json
def show(run: str, folder: str | None, as_document: bool) -> None:
    """Show one RUN: its id, the beginning of it, or its name."""
    with closing(connect(data_dir(folder))) as connection:
        found = resolve(connection, run)
        columns, rows = _ask(connection, _RUN, found)
        identity = dict(zip(columns, rows[0], strict=True))
        asked = {"findings": _FINDINGS, "attempts": _ATTEMPTS, "gaps": _GAPS, "metrics": _LAST, "epochs": _EPOCHS}
        parts = {name: _ask(connection, query, found) for name, query in asked.items()}
        ended = endings(connection, found)
        parts["files"] = _ask(connection, _FILES, f"/{found}/")
    fitting = [] if identity["profile"] else suggested(row[0] for row in parts["metrics"][1])
    if as_document:
        lists = {name: [dict(zip(head, row, strict=True)) for row in body] for name, (head, body) in parts.items()}
        click.echo(as_json({**identity, "suggested_profiles": fitting, "endings": ended, **lists}))
        return
    width = max(map(len, identity))
    for name, value in identity.items():
        if value not in (None, [], ""):
            click.echo(f"{name:<{width}}  {value}")
    if fitting:
        click.echo(f"{'profile':<{width}}  none; fitting: {', '.join(fitting)}: sidestep.init(profile={fitting[0]!r})")
    for ending in ended:
        click.echo(f"\n{ending['wall_time']:%Y-%m-%d %H:%M:%S}  rank {ending['rank']} attempt {ending['attempt']}")
        click.echo("\n".join(f"    {line}" for line in ending["said"]))
    head, body = parts.pop("findings")
    for row in body:
        told = dict(zip(head, row, strict=True))
        click.echo(f"\n{finding(told)}")
        click.echo("\n".join(f"    change {line}" for line in told["advice"]))
    for name, (head, body) in parts.items():
        if body:
            click.echo(f"\n{name}\n{as_text(head, body)}")


def _ask(connection: duckdb.DuckDBPyConnection, query: str, *given: str) -> tuple[list[str], Sequence[tuple[Any, ...]]]:
    done = connection.execute(query, list(given))
    return [str(column[0]) for column in done.description or ()], done.fetchall()
