"""`sidestep analyze`: questions over many runs that are more than one query."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click
import duckdb

from sidestep_collector.commands.options import common
from sidestep_collector.commands.table import as_json, as_text
from sidestep_collector.query.slope import RunSlope, Settings, analyse_slopes, document, relations
from sidestep_collector.query.slope_plots import draw_slopes
from sidestep_collector.store import connect
from sidestep_schemas.errors import UsageError
from sidestep_schemas.layout import data_dir

_RUNS: Final = """
select run, name from runs
where ($project is null or project = $project) and ($group is null or "group" = $group)
    and (len($named) = 0 or list_contains($named, run) or list_contains($named, name)) order by run"""
#: Columns for people; the others are in CSV and JSON.
_SHOWN: Final = (
    *("run", "epochs", "early_slope", "early_slope_se", "exponent", "exponent_low", "exponent_high"),
    *("burn_in_end", "law", "curvature_peak_at"),
)


@click.group()
def analyze() -> None:
    """Compare how runs learn."""


@analyze.command()
@click.argument("runs", nargs=-1)
@click.option("--project", help="only runs of this project")
@click.option("--group", help="only runs of this group (a sweep)")
@click.option("--metric", help="the loss; default the first of train/loss_nats, loss_total, loss, loss_bits there is")
@click.option("--window", nargs=2, type=float, default=(5.0, 15.0), show_default=True, help="epochs of the early slope")
@click.option("--every", type=float, default=0.25, show_default=True, help="epochs that losses are averaged over")
@click.option("--no-floor", is_flag=True, help="fit a n^-b instead of c + a n^-b")
@click.option("--csv", "table", type=click.Path(dir_okay=False, path_type=Path), help="write one line a run")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="write pictures to this folder")
@common
def slope(
    *,
    runs: tuple[str, ...],
    project: str | None,
    group: str | None,
    metric: str | None,
    window: tuple[float, float],
    every: float,
    no_floor: bool,
    table: Path | None,
    plots: Path | None,
    folder: str | None,
    as_document: bool,
) -> None:
    """Say how fast RUNS learn (default: all): early slope, power law, burn-in, curvature.

    The early slope is d log L / d log n in a window of epochs; the power law L = c + a n^-b is fitted to what follows
    the burn-in, whose end AIC chooses; intervals are of 95 %.
    """
    settings = Settings(metric, window[0], window[1], every, not no_floor)
    with closing(connect(data_dir(folder))) as connection:
        chosen = _chosen(connection, runs, project, group)
        found = analyse_slopes(connection, chosen, settings)
    if not found:
        raise UsageError(f"none of {len(chosen)} runs has the loss {metric or 'of a training step'}; name it: --metric")
    if table is not None:
        _write(table, [run.row() for run in found])
    pictures = [] if plots is None else draw_slopes(found, plots)
    if as_document:
        click.echo(as_json(document(found)))
        return
    _print(found, left_out=len(chosen) - len(found))
    for path in ([table] if table else []) + pictures:
        click.echo(f"wrote {path}")


def _chosen(
    connection: duckdb.DuckDBPyConnection, named: Sequence[str], project: str | None, group: str | None
) -> list[str]:
    given = {"project": project, "group": group, "named": list(named)}
    rows: list[tuple[str, str]] = connection.execute(_RUNS, given).fetchall()
    missing = [name for name in named if not any(name in row for row in rows)]
    if missing or not rows:
        raise UsageError(f"no runs {', '.join(missing) or 'of that project and group'}: `sidestep ls` lists all")
    return [run for run, _ in rows]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _print(found: Sequence[RunSlope], *, left_out: int) -> None:
    rows = [run.row() for run in found]
    click.echo(as_text(_SHOWN, [[row[name] for name in _SHOWN] for row in rows]))
    for relation in relations(rows):
        click.echo(
            f"{relation.x} against {relation.y}: rank correlation {relation.rho:.2f} over {relation.runs} runs"
            f" (p = {relation.p:.2g})"
        )
    beyond = [row["run"] for row in rows if (row["unit_difference_se"] or 0) > 1]
    if beyond:
        click.echo(f"the exponent differs between nats and bits: {', '.join(beyond)}; one of the two is not the loss")
    if left_out:
        click.echo(f"{left_out} runs have no such loss and are left out")
