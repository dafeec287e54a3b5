"""What the benchmarks share: a collector of their own, percentiles, and a table with the bar beside the figure."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

_START_SECONDS = 30.0


class Table:
    """Rows of (what, measured, bar). A bar is `<= x` or `>= x`; the last column says whether it was met."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: list[tuple[str, str, str, str]] = []

    def add(
        self,
        what: str,
        value: float,
        unit: str,
        *,
        most: float | None = None,
        least: float | None = None,
        digits: int = 0,
    ) -> None:
        """Add a figure, with the bar it may not exceed or must reach, if it has one; with so many digits."""
        bar, verdict = "", ""
        if most is not None:
            bar, verdict = f"<= {most:,g} {unit}", "ok" if value <= most else "MISSED"
        if least is not None:
            bar, verdict = f">= {least:,g} {unit}", "ok" if value >= least else "MISSED"
        shown = f"{value:.{digits}g}" if digits else _digits(value)
        self._rows.append((what, f"{shown} {unit}", bar, verdict))

    def say(self, what: str, value: str) -> None:
        """Add something that is no number."""
        self._rows.append((what, value, "", ""))

    def print(self) -> None:
        """Print it, with the machine it was measured on."""
        head = (self._title, "measured", "bar", "")
        rows = [tuple(cell.rstrip() for cell in row) for row in (head, *self._rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for number, row in enumerate(rows):
            what, value, bar, verdict = row
            print(f"{what:{widths[0]}}  {value:>{widths[1]}}  {bar:>{widths[2]}}  {verdict}".rstrip())
            if number == 0:
                print("-" * (sum(widths) + 6))
        print(f"on {machine()}\n")

    def markdown(self) -> str:
        """The same as a table of a page, without the machine."""
        head = (self._title, "measured", "bar", "")
        rows = [head, ("---", "---:", "---:", "---"), *self._rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


class Collector:
    """A collector process over a data folder, for as long as the `with` lasts.

    Args:
        root: data folder.
        options: further command line options.
    """

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self.address = f"ipc://{root}/s"
        self._options = options
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def usage(self) -> psutil.Process:
        """The process as psutil sees it."""
        return psutil.Process(self.process.pid)

    def cpu_seconds(self) -> float:
        """CPU time of the process so far, user and system."""
        times = self.usage.cpu_times()
        return times.user + times.system

    def rss_mb(self) -> float:
        """Resident memory in megabytes."""
        return self.usage.memory_info().rss / 1e6

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it without a chance to say so."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start it again after `kill`."""
        (self.root / "collector.json").unlink(missing_ok=True)
        self.process = self._start()

    def end(self) -> None:
        """End it cleanly; by force where that takes too long."""
        if self.process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sidestep_collector", "--dir", str(self.root), "--listen", self.address]
        with (self.root / "collector.log").open("ab") as log:
            process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        announcement = self.root / "collector.json"
        while not announcement.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                said = (self.root / "collector.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"the collector did not start:\n{said}")
            time.sleep(0.02)
        assert json.loads(announcement.read_text(encoding="utf-8"))["pid"]
        return process


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A data folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sidestep-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of all lie below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def machine() -> str:
    """One line about the machine and the software."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), model)
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, load {load:.1f}; "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}{_versions()}"
    )


def _versions() -> str:
    said = ""
    for name in ("torch", "duckdb", "numpy"):
        module: Any = sys.modules.get(name)
        said += f", {name} {module.__version__}" if module else ""
    return said


def _digits(value: float) -> str:
    if value != value:  # noqa: PLR0124 - NaN
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
