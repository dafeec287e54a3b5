"""`sidestep run`: a collector beside a job, the job's exit code and signals passed through, a summary at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from sidestep import launch
from sidestep_schemas.claims import find_leftovers
from sidestep_schemas.errors import AddressError, FolderError, SidestepError, UsageError
from sidestep_schemas.keys import KEY_VARIABLE
from sidestep_schemas.layout import COLLECTOR_VARIABLE, DIR_VARIABLE

_START_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.02
_SYNC_SECONDS: Final = 5.0
_PASSED_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_beside(root: Path, command: tuple[str, ...], names: Mapping[str, str], *, as_json: bool) -> int:
    """Run a command with a collector beside it.

    Args:
        root: data folder.
        command: what to run; a leading `--` is left out.
        names: environment that names the run.
        as_json: print the summary as JSON.

    Returns:
        Exit code of the command; 128 + n when signal n ended it.
    """
    command = command[1:] if command[:1] == ("--",) else command
    if not command:
        raise UsageError("nothing to run: sidestep run -- python train.py")
    if shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]} cannot be run: there is no such command")
    started = time.time()
    with collector_for(root) as variables:
        code = _run_job(command, {**os.environ, **variables, **names})
    summarize = _summary()
    if summarize is not None:
        summarize(root, started, as_json=as_json)
    return code


@contextmanager
def collector_for(root: Path) -> Generator[dict[str, str], None, None]:
    """The collector of a data folder for as long as this lasts; one that was there before stays.

    Yields:
        The environment that leads jobs to it.

    Raises:
        MissingExtraError: the collector is not installed here.
        SidestepError: it could not be started.
    """
    launch.require_installed()
    running = launch.find(root)
    collector = running or start_and_wait(root)
    try:
        # Whatever key the environment has is for another collector.
        yield {COLLECTOR_VARIABLE: collector.address, KEY_VARIABLE: collector.key, DIR_VARIABLE: str(root)}
    finally:
        if running is None and launch.find(root) == collector:  # else it is gone: what it lacks is in the journals
            _ship_leftovers(root, collector.address)
            with suppress(ProcessLookupError):
                os.kill(collector.pid, signal.SIGTERM)
            wait_for_end(root, collector.pid, _START_SECONDS)


def start_and_wait(root: Path, *options: str) -> launch.Collector:
    """Start a collector and wait until it listens.

    Raises:
        SidestepError: it ended instead, with what it said; or it did not listen in time.
    """
    _make(root)
    log = root / "collector.log"
    before = log.stat().st_size if log.exists() else 0
    process = launch.start(root, *options)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        found = launch.find(root)
        if found is not None and found.pid == process.pid:
            return found
        if process.poll() is not None:
            if found is not None:
                return found  # another one was faster
            raise _ended(process.returncode, log, before)
        time.sleep(_LOOK_SECONDS)
    raise SidestepError(f"the collector did not listen within {_START_SECONDS:g} s; see {log}")


def wait_for_end(root: Path, pid: int, timeout: float) -> bool:
    """Wait until the collector of a process id holds the data folder no more; whether that is so."""
    deadline = time.monotonic() + timeout
    while launch.is_locked(root):
        found = launch.find(root)
        if found is not None and found.pid != pid:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _run_job(command: tuple[str, ...], environ: Mapping[str, str]) -> int:
    job: list[subprocess.Popen[bytes]] = []
    early: list[int] = []  # came before there was a job to pass them to

    def pass_on(number: int, _frame: Any) -> None:
        # Ctrl-C reaches the whole foreground group by itself; sent twice, it would interrupt the job's own clean-up.
        if number == signal.SIGINT and sys.stdin.isatty():
            return
        if not job:
            early.append(number)
            return
        with suppress(ProcessLookupError):
            job[0].send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in _PASSED_SIGNALS}
    try:
        job.append(subprocess.Popen(command, env=dict(environ)))
        for number in early:
            pass_on(number, None)
        code = job[0].wait()
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be run: {error.strerror}") from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _ship_leftovers(root: Path, address: str) -> None:
    """A job that was killed could not wait for its last records: ship them before the collector goes."""
    if find_leftovers(root):
        from sidestep.sync import sync  # noqa: PLC0415 - needed after a crash alone

        sync(root, address, patience=_SYNC_SECONDS, key=launch.local_key(root, address))


def _summary() -> Callable[..., None] | None:
    for point in entry_points(group="sidestep.reports", name="job"):
        loaded: Callable[..., None] = point.load()
        return loaded
    return None


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(
            f"{root} cannot be written ({error.strerror}): choose another with --dir or SIDESTEP_DIR"
        ) from error


def _ended(code: int, log: Path, before: int) -> SidestepError:
    """What a collector said before it ended, as an error with its exit code."""
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    said = next((line for line in lines if line.startswith("sidestep: ")), lines[-1] if lines else "without a word")
    kinds: dict[int, type[SidestepError]] = {4: AddressError, 5: FolderError}
    error = kinds.get(code, SidestepError)(said.removeprefix("sidestep: "))
    error.exit_code = code or 1
    return error
