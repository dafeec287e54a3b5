"""`sidestep report`: what a run's curves say, what is wrong with it, and what to change."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from sidestep_collector.commands.options import common
from sidestep_collector.commands.table import as_json as written
from sidestep_collector.query.backward import export
from sidestep_collector.query.naming import resolve
from sidestep_collector.query.report import make_report
from sidestep_collector.query.report.markdown import as_markdown
from sidestep_collector.query.report.page import as_page
from sidestep_collector.query.report.text import as_lines
from sidestep_collector.store import connect
from sidestep_schemas.errors import UsageError
from sidestep_schemas.layout import data_dir

_JSON = ".json"
_WRITERS = {".md": as_markdown, ".html": as_page}


@click.command()
@click.argument("run")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="write it to a file: .md, .html or .json")
@common
def report(run: str, out: Path | None, folder: str | None, *, as_document: bool) -> None:
    """Report on RUN, running or ended: its id, the beginning of it, or its name.

    Learning rate, loss, accuracy, gradients and updates by epoch, what the rules found, and a diagnosis with the change
    to make. A page (--out report.html) has the curves too, a JSON file (--out report.json) every series.
    """
    if out is not None and out.suffix not in (*_WRITERS, _JSON):
        raise UsageError(f"{out}: a report is written as {', '.join(_WRITERS)} or {_JSON}")
    with closing(connect(data_dir(folder))) as connection:
        made = make_report(connection, resolve(connection, run))
        series = export(connection, made.run) if out is not None and out.suffix == _JSON else {}
    if out is not None:
        text = written({**asdict(made), **series}) if out.suffix == _JSON else _WRITERS[out.suffix](made)
        out.write_text(text, encoding="utf-8")
        click.echo(f"wrote {out}", err=as_document)
    if as_document:
        click.echo(written(asdict(made)))
    elif out is None:
        click.echo("\n".join(as_lines(made)))
