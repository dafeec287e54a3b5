"""What `sidestep run` says when the job has ended: results, delivery, where the files are, what to try next."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from sidestep_collector.store import connect
from sidestep_schemas.claims import find_leftovers
from sidestep_schemas.errors import FolderError
from sidestep_schemas.layout import run_dir

_RUNS = """
    select r.run, r.project, r.state, epoch(r.started), epoch(r.ended),
           coalesce(sum(i.watermark), 0)::bigint, coalesce(sum(i.lost), 0)::bigint, count(distinct i.rank)
    from runs r join ingest i on i.run_uid = r.run_uid
    where epoch(i.updated) >= ?
    group by all order by 4
"""
_LAST = """
    select metric, arg_max(value, step) from points_current
    where run = ? and rank = 0 and (metric like '%loss%' or metric like '%acc%' or metric like '%accuracy%')
    group by metric order by metric
"""
_QUESTION = "select metric, arg_max(value, step) as last from points where run = '{}' group by all"
_HEADLINES = ("train/loss_total", "val/loss_total", "train/acc", "val/acc")


@dataclass(frozen=True, slots=True)
class Job:
    """A run as it stands when the job has ended. Counts are records over all ranks."""

    run: str
    project: str
    state: str
    seconds: float
    ranks: int
    sent: int
    committed: int
    lost: int
    waiting_streams: int
    last: dict[str, float]
    tensorboard: str
    diagnostics: str
    store: str


def report(root: Path, since: float, *, as_json: bool) -> None:
    """Print a summary of the runs that were written under a data folder since a time (Unix seconds)."""
    jobs = _jobs(root, since)
    if as_json:
        click.echo(json.dumps([asdict(job) for job in jobs]))
        return
    if not jobs:
        click.echo(f"sidestep: the command began no run that used {root}", err=True)
    for job in jobs:
        click.echo(_text(root, job), err=True)


def _jobs(root: Path, since: float) -> list[Job]:
    try:
        connection = connect(root)
    except FolderError:
        return []
    waiting = len(find_leftovers(root))
    jobs: list[Job] = []
    with connection:
        for run, project, state, started, ended, records, lost, ranks in connection.execute(_RUNS, [since]).fetchall():
            last = dict(connection.execute(_LAST, [run]).fetchall())
            folder = run_dir(root, project, run)
            jobs.append(
                Job(
                    run=run,
                    project=project,
                    state=state,
                    seconds=(time.time() if ended is None else ended) - started,
                    ranks=ranks,
                    sent=records,
                    committed=records - lost,
                    lost=lost,
                    waiting_streams=waiting,
                    last=last,
                    tensorboard=str(folder / "tensorboard"),
                    diagnostics=str(folder / "diagnostics"),
                    store=str(root / "store" / "sidestep.duckdb"),
                )
            )
    return jobs


def _text(root: Path, job: Job) -> str:
    rows: list[tuple[str, str]] = []
    values = _headlines(job.last)
    if values:
        rows.append(("final", "   ".join(f"{name} {value:.4g}" for name, value in values.items())))
    delivered = f"sent {job.sent:,}   committed {job.committed:,}   lost {job.lost:,}"
    if job.waiting_streams:
        delivered += f"   ({job.waiting_streams} journals wait: `sidestep up` or `sidestep sync` delivers them)"
    rows += [
        ("records", delivered),
        ("TensorBoard", _shown(job.tensorboard)),
        ("epoch files", _shown(job.diagnostics)),
        ("database", _shown(job.store)),
    ]
    option = "" if root == Path("sidestep-data").absolute() else f" --dir {_shown(str(root))}"
    tries = (
        f"sidestep show {job.run}{option}",
        f"""sidestep sql{option} "{_QUESTION.format(job.run)}\"""",
        f"tensorboard --logdir {_shown(str(root / 'runs'))}",
    )
    head = f"{job.project}/{job.run}  {job.state} after {timedelta(seconds=round(job.seconds))}"
    if job.ranks > 1:
        head += f", {job.ranks} ranks"
    body = "\n".join(f"  {name:<12} {text}" for name, text in rows)
    return f"\n{click.style('sidestep', bold=True)}  {head}\n\n{body}\n\n  try next\n" + "".join(
        f"    {line}\n" for line in tries
    )


def _headlines(last: dict[str, float]) -> dict[str, Any]:
    chosen = {name: last[name] for name in _HEADLINES if name in last}
    return chosen or dict(list(last.items())[:4])


def _shown(path: str) -> str:
    """A path as short as it can be typed here."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
