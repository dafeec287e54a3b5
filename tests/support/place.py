"""A data folder, and the processes that a test starts around it: collectors, training scripts, the command line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

from sidestep import launch
from sidestep_collector.commands.dial import ask
from sidestep_collector.store import connect
from sidestep_schemas.errors import SidestepError
from sidestep_schemas.keys import read_client_key
from sidestep_schemas.layout import DIR_VARIABLE, default_address, segment_files

PATIENCE_SECONDS = 120.0
#: Tables that hold records one by one, by seq.
RECORD_TABLES = ("snapshots", "events", "texts", "tensors", "images", "histograms")
#: Names of items that the collector derives: they stand at the records that they follow from.
DERIVED_ITEMS = "^(feature_distributions/|histograms/|train/flow/profile$|samples/(generated_grid|real_vs_generated)$)"


class Place:
    """A data folder. `close` ends all that was started around it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[subprocess.Popen[str]] = []

    # --- processes ---------------------------------------------------------------------------------------

    def environ(self, **more: str) -> dict[str, str]:
        return {**os.environ, DIR_VARIABLE: str(self.root), "SIDESTEP_STRICT": "1", **more}

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Start a command with its pipes open; ended with the place."""
        process = subprocess.Popen(
            command,
            env=self.environ(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def script(self, text: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start a training script that is given as text."""
        return self.start(sys.executable, str(self.written(text)), *arguments, **more)

    def written(self, text: str) -> Path:
        path = self.root.parent / f"script_{abs(hash(text))}.py"
        if not path.exists():  # else one that starts just now would read it empty
            path.write_text(dedent(text), encoding="utf-8")
        return path

    def train(self, text: str, *arguments: str, **more: str) -> str:
        """Run a training script to its end; what it printed."""
        return ended(self.script(text, *arguments, **more))

    def sidestep(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        process = self.start(sys.executable, "-m", "sidestep", *arguments, **more)
        out, errors = process.communicate(timeout=PATIENCE_SECONDS)
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)

    def up(self, *options: str, **more: str) -> dict[str, Any]:
        """Start a collector; what the command says of it."""
        done = self.sidestep("up", "--json", *options, **more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def down(self) -> None:
        done = self.sidestep("down", "--json")
        assert done.returncode == 0, done.stderr

    def collector(self) -> launch.Collector | None:
        return launch.find(self.root)

    def kill_collector(self) -> None:
        """SIGKILL; returns when the folder is free."""
        found = self.collector()
        assert found is not None
        os.kill(found.pid, signal.SIGKILL)
        until(lambda: not launch.is_locked(self.root))

    def close(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        found = self.collector()
        if found is not None:
            for number in (signal.SIGCONT, signal.SIGTERM):
                os.kill(found.pid, number)
            with contextlib.suppress(AssertionError):
                until(lambda: not launch.is_locked(self.root), seconds=15)
            if launch.is_locked(self.root):
                os.kill(found.pid, signal.SIGKILL)
        shutil.rmtree(Path(default_address(self.root).removeprefix("ipc://")).parent, ignore_errors=True)

    # --- what there is -----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any] | None:
        """What the collector says of itself; None where none answers."""
        found = self.collector()
        if found is None:
            return None
        try:
            return ask(found.address, {"ask": "status"}, read_client_key(found.key) if found.key else None)
        except SidestepError:
            return None

    def counters(self) -> dict[str, int]:
        status = self.status()
        assert status is not None
        return status["counters"]

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of the store; none where there is no store yet."""
        try:
            with connect(self.root) as connection:
                return connection.execute(query, parameters).fetchall()
        except SidestepError:
            return []

    def row(self, query: str, *parameters: object) -> tuple[Any, ...]:
        [row] = self.rows(query, *parameters)
        return row

    def stored(self, run: str) -> int:
        """Records of a run that are stored: the sum of its watermarks."""
        return self.row("select coalesce(sum(watermark), 0) from ingest join runs using (run_uid) where run = ?", run)[
            0
        ]

    def journals(self) -> list[Path]:
        """Segments that lie on disk or in shared memory."""
        walked = os.walk(self.root / "journal")  # unlike a glob, it does not mind a folder that goes meanwhile
        return sorted(segment for folder, _, _ in walked for segment in segment_files(Path(folder)))

    def values(self, run: str, metric: str, attempt: int = 0, rank: int = 0) -> list[tuple[int, float]]:
        """(step, value) of every point of a metric, by step."""
        return self.rows(
            "select step, value from points where (run, metric, attempt, rank) = (?, ?, ?, ?) order by step",
            *(run, metric, attempt, rank),
        )

    def tensorboard(self, run: str, attempt: int = 0, project: str = "default", rank: int = 0) -> Path:
        name = f"attempt_{attempt}" + (f"_rank_{rank}" if rank else "")
        return self.root / "runs" / project / run / "tensorboard" / name

    def document(self, run: str, epoch: int, project: str = "default") -> dict[str, Any]:
        path = self.root / "runs" / project / run / "diagnostics" / f"epoch_{epoch:03d}" / "summary.json"
        return json.loads(path.read_text(encoding="utf-8"))

    # --- what must hold ----------------------------------------------------------------------------------

    def check_whole(self, run: str, attempts: int = 1, key_sets: int | None = None) -> None:
        """Every record of a run is stored once: no stream has a gap, a loss, or a record that is there twice.

        Where it is known how many key sets each stream declares (records that have no row), all others are counted.
        """
        streams = self.rows(
            "select rank, attempt, watermark, lost, i.ended from ingest i join runs using (run_uid) where run = ?", run
        )
        assert len({attempt for _, attempt, *_ in streams}) == attempts
        assert self.rows("select * from gaps where run = ?", run) == []
        union = " union all ".join(
            f"select run, rank, attempt, seq from {table}"
            + (" where event not in ('post_mortem', 'hang', 'hang_over', 'heard_again')" if table == "events" else "")
            + (
                f" where not regexp_matches(name, '{DERIVED_ITEMS}')"
                if table in {"texts", "histograms", "images"}
                else ""
            )
            for table in RECORD_TABLES
        )
        for rank, attempt, watermark, lost, is_ended in streams:
            assert (lost, is_ended) == (0, True)
            query = f"select seq from ({union}) where (run, rank, attempt) = (?, ?, ?) order by seq"
            seqs = [seq for (seq,) in self.rows(query, run, rank, attempt)]
            assert len(set(seqs)) == len(seqs)
            assert (seqs[0], seqs[-1]) == (0, watermark - 1)
            assert key_sets is None or len(seqs) == watermark - key_sets
        doubled = "select metric, rank, attempt, step from points where run = ? group by all having count(*) > 1"
        assert self.rows(doubled, run) == []


def until(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until a condition holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.02)
    return found


def ended(process: subprocess.Popen[str], code: int = 0, seconds: float = PATIENCE_SECONDS) -> str:
    """Wait for a process to end with a code; what it printed."""
    out, errors = process.communicate(timeout=seconds)
    assert process.returncode == code, errors
    return out


def said(process: subprocess.Popen[str], word: str) -> str:
    """Wait until a process prints a line that begins with a word; that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return line.strip()
    errors = process.stderr.read() if process.stderr is not None else ""
    raise AssertionError(f"it ended without saying {word!r}: {errors}")


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    """Give a process a line to read."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def free_ports() -> int:
    """The first of three ports of 127.0.0.1 in a row that nobody has."""
    while True:
        with contextlib.ExitStack() as stack:
            first = 0
            try:
                for offset in range(3):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", first + offset if first else 0))
                    first = first or probe.getsockname()[1]
            except (OSError, OverflowError):
                continue
            return first


def tensorboard_points(folder: Path) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of every scalar in the event files of a folder, read without any tidying."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in sorted(folder.glob("*tfevents*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, event.step, value.simple_value
