"""`sidestep sql`: any question, in SQL, that changes nothing."""

from __future__ import annotations

from contextlib import closing

import click
import duckdb

from sidestep_collector.commands.table import as_json, as_text
from sidestep_collector.store import connect
from sidestep_schemas.errors import UsageError
from sidestep_schemas.layout import data_dir


@click.command()
@click.argument("query")
@click.option("--dir", "folder", metavar="DIR", help="Data folder; SIDESTEP_DIR, else ./sidestep-data.")
@click.option("--json", "as_document", is_flag=True, help="Print one JSON document: a list of rows.")
def sql(query: str, folder: str | None, as_document: bool) -> None:
    """Ask the store a QUERY in DuckDB's SQL, read-only.

    Tables: runs, attempts, metrics, snapshots, points, points_current, epochs, tensors, images, histograms,
    texts, events, ingest, key_sets, gaps, files, parts, store_info.
    """
    with closing(connect(data_dir(folder))) as connection:
        try:
            done = connection.execute(query)
            columns = [str(column[0]) for column in done.description or ()]
            rows = done.fetchall()
        except duckdb.Error as error:
            raise UsageError(str(error)) from error
    if as_document:
        click.echo(as_json([dict(zip(columns, row, strict=False)) for row in rows]))
    else:
        click.echo(as_text(columns, rows))
