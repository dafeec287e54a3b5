"""What `sidestep sweep` does and says around `sweep`: the collector, the progress bar, the figures at the end."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sidestep import sweep as sweeps
from sidestep.auto import environment as auto
from sidestep.beside import collector_for
from sidestep.sweep import Job, Ledger, Outcome
from sidestep_schemas.errors import UsageError


def sweep(
    root: Path,
    name: str,
    command: Sequence[str],
    grid: Sequence[str],
    *,
    project: str | None,
    at_once: int,
    again: bool,
    dry_run: bool,
    no_auto: bool,
    as_json: bool,
) -> int:
    """Run a sweep; 0 where every job of it has ended well, now or before, else 1.

    Raises:
        UsageError: an axis, or a command, that cannot be meant.
        FolderError: the data folder cannot be written.
    """
    jobs = sweeps.plan(name, command, grid)
    if dry_run:
        for job in jobs:
            click.echo(f"{job.run}  {shlex.join(job.command)}")
        return 0
    if not command or shutil.which(command[0]) is None:
        raise UsageError(f"{command[0] if command else 'nothing'} cannot be run: there is no such command")
    with collector_for(root) as variables, sweeps.opened(root, name) as ledger:
        missing = jobs if again else [job for job in jobs if not ledger.is_done(job)]
        outcomes = _run(missing, ledger, _environ(variables, name, project, at_once, no_auto=no_auto), at_once)
        failed = [job for job in jobs if not ledger.is_done(job)]
        _say(jobs, outcomes, failed, ledger, before=len(jobs) - len(missing), as_json=as_json)
    return 1 if failed else 0


def _environ(
    variables: Mapping[str, str], name: str, project: str | None, at_once: int, *, no_auto: bool
) -> dict[str, str]:
    captured = {auto.AUTO_VARIABLE: "0"} if no_auto else auto.variables(os.environ)
    return sweeps.environment({**os.environ, **variables, **captured}, sweep=name, project=project, at_once=at_once)


def _run(jobs: Sequence[Job], ledger: Ledger, environ: Mapping[str, str], at_once: int) -> list[Outcome]:
    titles = {job.run: job.title for job in jobs}
    with _terminable():
        if sys.stderr.isatty():
            with click.progressbar(length=len(jobs), label="sweep", file=sys.stderr, show_pos=True) as bar:

                def advance(outcome: Outcome) -> None:
                    bar.update(1)
                    if outcome.code:
                        click.echo(f"\r{_failure(outcome, titles, ledger)}", err=True)

                return sweeps.run_sweep(jobs, ledger, environ, at_once=at_once, on_end=advance)
        counted = _Counted(len(jobs))

        def tell(outcome: Outcome) -> None:
            counted.tell()
            if outcome.code:
                click.echo(_failure(outcome, titles, ledger), err=True)

        return sweeps.run_sweep(jobs, ledger, environ, at_once=at_once, on_end=tell)


class _Counted:
    """Progress where no terminal is: a line for each tenth."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._tenths, self._started = total, 0, 0, time.monotonic()

    def tell(self) -> None:
        self._done += 1
        tenths = 10 * self._done // self._total
        if tenths > self._tenths:
            self._tenths = tenths
            left = (time.monotonic() - self._started) / self._done * (self._total - self._done)
            click.echo(f"sweep: {self._done} of {self._total} have ended, about {left / 60:.1f} min left", err=True)


@contextmanager
def _terminable() -> Generator[None, None, None]:
    """SIGTERM ends a sweep as Ctrl-C does: its jobs are ended, and what they sent is stored."""

    def end(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failure(outcome: Outcome, titles: Mapping[str, str], ledger: Ledger) -> str:
    how = f"exit code {outcome.code}" if outcome.code > 0 else f"signal {-outcome.code}"
    return f"{titles[outcome.run]}: {how}; its output: {ledger.logs / outcome.run}.log"


def _say(
    jobs: Sequence[Job],
    outcomes: Sequence[Outcome],
    failed: Sequence[Job],
    ledger: Ledger,
    *,
    before: int,
    as_json: bool,
) -> None:
    room = sweeps.room_for([ledger.outcomes[job.run] for job in jobs if job.run in ledger.outcomes])
    if as_json:
        ended = [asdict(ledger.outcomes[job.run]) for job in jobs if job.run in ledger.outcomes]
        document = {"jobs": len(jobs), "run_now": len(outcomes), "done_before": before, "failed": len(failed)}
        click.echo(json.dumps({**document, "room": room and asdict(room), "outcomes": ended}))
        return
    click.echo(f"{len(jobs)} jobs: {len(outcomes)} run now, {before} done before, {len(failed)} not done")
    if room is not None:
        click.echo(
            f"a job takes {room.seconds:.1f} s, {room.cores:.2f} cores and at most {room.rss_mb:.0f} MB; this machine "
            f"has room for {min(room.by_cpu, room.by_memory)} at once ({room.by_cpu} by cores, {room.by_memory} by "
            "memory): --jobs"
        )
