"""How long a record takes from `run.log` to the collector's memory and to the store, and what the collector costs.

    python benchmarks/bench_latency.py [--quick]

Four training processes log 50 numbers 100 times a second each. First half: this process follows all four as
`sidestep tail` does; a record is visible when it has come out of the live feed. Second half: nobody
follows, which is when the collector's CPU share and memory count. Committed is what the trainer sees: its own
watermark has passed the record (that is up to 200 ms, when its drain thread looks next, later than it was).
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import threading
import time
from bisect import bisect_right
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import zmq
from support import Collector, Table, folder, percentile

import sidestep
from sidestep_schemas.layout import endpoints
from sidestep_schemas.wire import LIVE_TOPIC

RUNS = 4
RECORDS_A_SECOND = 100
VALUES = 50
SETTLE_SECONDS = 2.0


def train(number: int, root: Path, address: str, pipe: Connection) -> None:
    """Log at a steady pace until told to end; then report when each record was logged and committed."""
    source = random.Random(number)
    run = sidestep.init("bench", id=f"run-{number}", dir=root, collector=address)
    committed: list[tuple[int, int]] = []
    note_commits(run, committed)
    pipe.send(run._settings.uid)
    names = [f"metric_{index:02d}" for index in range(VALUES)]
    logged: list[tuple[int, int]] = []
    due = time.monotonic() + source.random() / RECORDS_A_SECOND  # not in step with the others
    step = 0
    while not pipe.poll(0):
        values = {name: source.gauss(0, 1) for name in names}
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.time_ns()
        run.log(values, step=step)
        logged.append((run.stats["records"] - 1, now))
        due, step = due + 1 / RECORDS_A_SECOND, step + 1
    report = run.finish(timeout=10)
    pipe.send((commit_seconds(logged, committed), logged[0][1], logged[-1][1], report.lost, report.pending))


def note_commits(run: sidestep.Run, committed: list[tuple[int, int]]) -> None:
    """Have each watermark noted with its time, on the drain thread, about once a second."""
    pusher = run._pusher
    forget = pusher._forget

    def noting(watermark: int) -> None:
        committed.append((watermark, time.time_ns()))
        forget(watermark)

    pusher._forget = noting


def commit_seconds(logged: list[tuple[int, int]], committed: list[tuple[int, int]]) -> list[tuple[int, float]]:
    """(when it was logged, seconds until it was committed) of each record: the first watermark above it."""
    watermarks = [watermark for watermark, _ in committed]
    found = []
    for seq, logged_ns in logged:
        place = bisect_right(watermarks, seq)
        if place < len(committed):
            found.append((logged_ns, (committed[place][1] - logged_ns) / 1e9))
    return found


class Follower(threading.Thread):
    """Reads the live feed of runs; notes how old each record is when it arrives."""

    def __init__(self, address: str, runs: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self._address, self._runs = address, runs
        self._ended = threading.Event()

    def run(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        socket = context.socket(zmq.SUB)
        for run in self._runs:
            socket.set(zmq.SUBSCRIBE, LIVE_TOPIC + run)
        socket.connect(endpoints(self._address).ack)
        try:
            while not self._ended.is_set():
                if socket.poll(100):
                    message = socket.recv()
                    now = time.time_ns()
                    self.seconds.append((now - msgspec.json.decode(message[17:])["t_ns"]) / 1e9)
        finally:
            context.destroy(linger=0)

    def end(self) -> None:
        self._ended.set()
        self.join()


class Cost:
    """CPU share and memory of a collector from here on."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._cpu, self._at = collector.cpu_seconds(), time.monotonic()
        self.rss_mb = 0.0

    def wait(self, seconds: float) -> float:
        """Wait so long; CPU time over wall time in percent of a core."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.25)
            self.rss_mb = max(self.rss_mb, self._collector.rss_mb())
        return 100 * (self._collector.cpu_seconds() - self._cpu) / (time.monotonic() - self._at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that it works")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each half")
    given = parser.parse_args()
    half = 3.0 if given.quick else given.seconds
    spawn = multiprocessing.get_context("spawn")
    with folder() as root, Collector(root) as collector:
        pairs = [spawn.Pipe() for _ in range(RUNS)]
        trainers = [
            spawn.Process(target=train, args=(number, root, collector.address, theirs), daemon=True)
            for number, (_, theirs) in enumerate(pairs)
        ]
        try:
            for trainer in trainers:
                trainer.start()
            runs = [pipe.recv() for pipe, _ in pairs]
            time.sleep(SETTLE_SECONDS)
            follower = Follower(collector.address, runs)
            follower.start()
            followed = Cost(collector)
            share_followed = followed.wait(half)
            follower.end()
            quiet_from = time.time_ns()
            alone = Cost(collector)
            share = alone.wait(half)
            quiet_to = time.time_ns()
            for pipe, _ in pairs:
                pipe.send("end")
            reports = [pipe.recv() for pipe, _ in pairs]
        finally:
            for trainer in trainers:
                with suppress(AttributeError):
                    trainer.join(15)
                    trainer.kill()
    print_table(follower.seconds, reports, (quiet_from, quiet_to), (share_followed, followed), (share, alone))


def print_table(
    visible: list[float],
    reports: list[Any],
    quiet: tuple[int, int],
    followed: tuple[float, Cost],
    alone: tuple[float, Cost],
) -> None:
    rates = [len(seconds) / ((last - first) / 1e9) for seconds, first, last, _, _ in reports]
    times = [(at, seconds) for found, *_ in reports for at, seconds in found]
    while_quiet = [seconds for at, seconds in times if quiet[0] < at < quiet[1]]
    table = Table(f"{RUNS} runs x {RECORDS_A_SECOND} records/s x {VALUES} scalars")
    table.add("records a second, all runs", sum(rates), "/s")
    table.add("records seen by the follower", len(visible), "")
    table.add("emit to visible in memory, p50", percentile(visible, 0.5) * 1e3, "ms", most=60)
    table.add("emit to visible in memory, p99", percentile(visible, 0.99) * 1e3, "ms", most=150)
    table.add("emit to visible in memory, max", max(visible) * 1e3, "ms")
    table.add("emit to committed, p50", percentile(while_quiet, 0.5), "s", most=0.7)
    table.add("emit to committed, p99", percentile(while_quiet, 0.99), "s", most=1.5)
    table.add("emit to committed, max", max(while_quiet), "s")
    table.add("collector, of a core", alone[0], "%", most=15)
    table.add("collector, of a core, four runs followed", followed[0], "%")
    table.add("collector memory, highest", max(alone[1].rss_mb, followed[1].rss_mb), "MB", most=200)
    table.add("records lost or not delivered", sum(lost + pending for *_, lost, pending in reports), "", most=0)
    table.print()


if __name__ == "__main__":
    main()
