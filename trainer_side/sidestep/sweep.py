"""`sidestep sweep`: one command with many settings, a few at a time, all attached to one collector.

What ended well is written down in `<dir>/sweeps/<name>.jsonl`, a line a job, so the same call again runs only what is
missing. A job's output goes to `<dir>/sweeps/<name>/<run>.log`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sidestep.config import GROUP_VARIABLE, NAME_VARIABLE, PROJECT_VARIABLE, RUN_VARIABLE
from sidestep_schemas.errors import FolderError, UsageError
from sidestep_schemas.layout import safe_name

_PLACE: Final = re.compile(r"\{(\w+)\}")
#: What libraries of numbers read to learn how many threads they may start.
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_END_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """One setting of a sweep: the id of its run, what is set, and the command that does it."""

    run: str
    settings: Mapping[str, str]
    command: tuple[str, ...]

    @property
    def title(self) -> str:
        """The settings, for people."""
        return " ".join(f"{name}={value}" for name, value in self.settings.items())


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. `code` is its exit code, -n for signal n; `rss_mb` its greatest resident memory / 1e6."""

    run: str
    settings: Mapping[str, str]
    code: int
    seconds: float
    cpu_seconds: float
    rss_mb: float


@dataclass(frozen=True, slots=True)
class Room:
    """What a job took, by the jobs that ended, and how many of them this machine has room for.

    Attributes:
        seconds: median wall time.
        cores: median processor time over wall time.
        rss_mb: greatest resident memory of any job / 1e6.
        by_cpu: how many run at once before they share cores.
        by_memory: how many fit the memory that is free now.
    """

    seconds: float
    cores: float
    rss_mb: float
    by_cpu: int
    by_memory: int


def plan(name: str, command: Sequence[str], grid: Iterable[str]) -> list[Job]:
    """All combinations of a grid.

    Args:
        name: of the sweep; the beginning of every run's id. The rest follows from settings and command, so it stays
            when the grid grows.
        command: what to run. `{lr}` in it becomes the value of lr; a setting without a place is added as `--lr=value`.
        grid: axes, as `lr=0.1,0.01`; `seed=0..4` counts.

    Raises:
        UsageError: an axis that cannot be read, or is there twice; a place in the command that no axis fills.
    """
    axes: dict[str, list[str]] = {}
    for axis in grid:
        key, values = _axis(axis)
        if key in axes:
            raise UsageError(f"the grid has {key} twice: give all its values at once, {key}=a,b,c")
        axes[key] = values
    unfilled = [place for part in command for place in _PLACE.findall(part) if place not in axes]
    if unfilled:
        raise UsageError(f"the command has {{{unfilled[0]}}}, and the grid has no {unfilled[0]}=…")
    jobs = [_job(name, command, dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    return list({job.run: job for job in jobs}.values())


def run_sweep(
    jobs: Sequence[Job],
    ledger: Ledger,
    environ: Mapping[str, str],
    *,
    at_once: int,
    on_end: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run jobs, `at_once` at a time; each that ends is written down at once.

    Interrupted (Ctrl-C, SIGTERM), it ends the jobs under way and raises; what had ended stays written down.
    """
    crew = _Crew(environ, ledger)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(at_once, thread_name_prefix="sweep") as pool:
        try:
            for future in as_completed([pool.submit(crew.run, job) for job in jobs]):
                outcome = future.result()
                if outcome is not None:
                    outcomes.append(outcome)
                    ledger.add(outcome)
                    on_end(outcome)
        except BaseException:
            crew.end()
            raise
    return outcomes


def environment(environ: Mapping[str, str], *, sweep: str, project: str | None, at_once: int) -> dict[str, str]:
    """The environment of all jobs: group, project, and their share of the cores unless somebody said otherwise."""
    names = {GROUP_VARIABLE: sweep, **({PROJECT_VARIABLE: project} if project else {})}
    share = str(max(1, cores() // at_once))
    return {**dict.fromkeys(_THREADS, share), **environ, **names}


def room_for(outcomes: Sequence[Outcome]) -> Room | None:
    """What jobs like these take, and how many fit this machine; None where none ended well."""
    import psutil  # noqa: PLC0415 - only to say how much memory is free

    done = sorted((outcome for outcome in outcomes if outcome.code == 0), key=lambda outcome: outcome.seconds)
    if not done:
        return None
    used = sorted(outcome.cpu_seconds / max(outcome.seconds, 1e-3) for outcome in done)
    busy, rss = used[len(used) // 2], max(outcome.rss_mb for outcome in done)
    return Room(
        seconds=done[len(done) // 2].seconds,
        cores=busy,
        rss_mb=rss,
        by_cpu=max(1, math.floor(cores() / max(busy, 0.01))),
        by_memory=max(0, math.floor(psutil.virtual_memory().available / 1e6 / max(rss, 1.0))),
    )


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Ledger:
    """What of a sweep has ended, in a file that outlives it.

    Args:
        root: data folder.
        name: of the sweep.

    Attributes:
        logs: folder of the jobs' output.
        outcomes: by run, the last outcome of each.

    Raises:
        FolderError: its file cannot be written.
    """

    def __init__(self, root: Path, name: str) -> None:
        folder = root / "sweeps"
        self.logs = folder / safe_name(name)
        self._path = folder / f"{safe_name(name)}.jsonl"
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise FolderError(f"{folder} cannot be written ({error.strerror}): choose another --dir") from error
        self._file.seek(0)
        self.outcomes = {outcome.run: outcome for outcome in map(_outcome, self._file) if outcome is not None}

    def is_done(self, job: Job) -> bool:
        """Whether a job has ended well."""
        known = self.outcomes.get(job.run)
        return known is not None and known.code == 0

    def add(self, outcome: Outcome) -> None:
        """Write down how a job ended."""
        self.outcomes[outcome.run] = outcome
        self._file.write(json.dumps(asdict(outcome)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def opened(root: Path, name: str) -> Generator[Ledger, None, None]:
    """The ledger of a sweep, closed at the end."""
    ledger = Ledger(root, name)
    try:
        yield ledger
    finally:
        ledger.close()


class _Crew:
    """Runs jobs on threads, and can end all that are under way."""

    def __init__(self, environ: Mapping[str, str], ledger: Ledger) -> None:
        self._environ = environ
        self._ledger = ledger
        self._lock = threading.Lock()
        self._under_way: set[subprocess.Popen[bytes]] = set()
        self._is_over = False

    def run(self, job: Job) -> Outcome | None:
        """Run a job to its end; None where the sweep was ended before."""
        started = time.monotonic()
        with (self._ledger.logs / f"{job.run}.log").open("ab") as log:
            with self._lock:
                if self._is_over:
                    return None
                environ = {**self._environ, RUN_VARIABLE: job.run, NAME_VARIABLE: job.title or job.run}
                process = subprocess.Popen(
                    job.command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
                self._under_way.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            code = process.returncode = os.waitstatus_to_exitcode(status)
        with self._lock:
            self._under_way.discard(process)
            if self._is_over:
                return None  # it was ended by us, so it has not failed
        unit = 1 if sys.platform == "darwin" else 1024
        cpu = usage.ru_utime + usage.ru_stime
        return Outcome(job.run, job.settings, code, time.monotonic() - started, cpu, usage.ru_maxrss * unit / 1e6)

    def end(self) -> None:
        """End what is under way, by SIGTERM, and by SIGKILL what does not heed it."""
        with self._lock:
            self._is_over = True
            for process in self._under_way:
                with suppress(ProcessLookupError):
                    process.terminate()
        deadline = time.monotonic() + _END_SECONDS
        while self._under_way and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            for process in self._under_way:
                with suppress(ProcessLookupError):
                    process.kill()


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    key = key.strip().lstrip("-")
    if not equals or not re.fullmatch(r"[\w.-]+", key) or not values.strip():
        raise UsageError(f"{text!r} is no axis of a grid: write name=value,value,… or name=first..last")
    counted = re.fullmatch(r"\s*(-?\d+)\.\.(-?\d+)\s*", values)
    if counted:
        first, last = int(counted[1]), int(counted[2])
        if last < first:
            raise UsageError(f"{text!r} counts from {first} to {last}, which is nothing")
        return key, [str(value) for value in range(first, last + 1)]
    return key, [value.strip() for value in values.split(",")]


def _job(name: str, command: Sequence[str], settings: Mapping[str, str]) -> Job:
    places = {place for part in command for place in _PLACE.findall(part)}
    filled = [_PLACE.sub(lambda match: settings[match[1]], part) for part in command]
    added = [f"--{key}={value}" for key, value in settings.items() if key not in places]
    content = json.dumps([list(command), dict(settings)], sort_keys=True)
    run = f"{safe_name(name)}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Job(run, dict(settings), (*filled, *added))


def _outcome(line: str) -> Outcome | None:
    try:
        content: dict[str, Any] = json.loads(line)
        return Outcome(**content)
    except (ValueError, TypeError):
        return None  # cut off by a power failure
