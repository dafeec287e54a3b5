"""What a call of `run.log` with 100 floats costs the training thread.

    python benchmarks/bench_log.py [--quick] [--threads N]

Tight loop: rounds of calls, beside the same numbers as a JSON line that is flushed to a file, through torch's
SummaryWriter and through tensorboardX, in turn. Torch loop: one call a step of a small network (some 10 ms a
step), with the collector alive, stopped (SIGSTOP) and dead (SIGKILL) in turn; then the same writers step by step.
Only the call is timed. Figures of rounds are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from support import Collector, Table, folder, percentile
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import sidestep

Log = Callable[[Mapping[str, float], int], Any]

NAMES = tuple(f"metric_{index:03d}" for index in range(100))
DIFFERENT = 64
STATES = ("alive", "stopped", "dead")
#: A trainer connects to a collector that came back within two seconds (its longest interval between tries).
SETTLE_SECONDS = 2.5
WARM_CALLS = 20
JSON, SUMMARY, X = "JSON line, flushed", "torch SummaryWriter", "tensorboardX"


def mappings() -> list[dict[str, float]]:
    source = random.Random(0)
    return [{name: source.gauss(0, 1) for name in NAMES} for _ in range(DIFFERENT)]


def writers(root: Path) -> dict[str, Log]:
    """Other ways to keep the same numbers. Files are closed with the process."""
    lines = (root / "lines.jsonl").open("w", encoding="utf-8")

    def write_line(values: Mapping[str, float], step: int) -> None:
        lines.write(json.dumps({"step": step, **values}) + "\n")
        lines.flush()

    found: dict[str, Log] = {JSON: write_line, SUMMARY: through(SummaryWriter(str(root / "torch")))}
    try:
        from tensorboardX import SummaryWriter as XWriter
    except ImportError:
        return found
    found[X] = through(XWriter(str(root / "x")))
    return found


def through(writer: Any) -> Log:
    def add(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return add


def timed(log: Log, calls: int) -> list[float]:
    """Microseconds of each of `calls` calls, one right after the other."""
    values, clock = mappings(), time.perf_counter_ns
    times: list[float] = []
    for call in range(calls):
        mapping = values[call % DIFFERENT]
        start = clock()
        log(mapping, call)
        times.append((clock() - start) / 1e3)
    return times


def training(threads: int | None) -> Iterator[None]:
    """Steps of a small convolutional network on random images; for ever."""
    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(threads)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(48, 3, 32, 32), torch.randint(0, 10, (48,))
    while True:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        yield


def in_loop(steps: Iterator[None], logs: list[Log], count: int) -> tuple[list[list[float]], float]:
    """Microseconds of each call, the logs taking turns step by step; and milliseconds of a step without them."""
    values, clock = mappings(), time.perf_counter_ns
    times: list[list[float]] = [[] for _ in logs]
    spent, began = 0, clock()
    for step in range(count):
        next(steps)
        mapping = dict(values[step % DIFFERENT])  # as in a script: made at this step
        log = logs[step % len(logs)]
        start = clock()
        log(mapping, step)
        took = clock() - start
        spent += took
        times[step % len(logs)].append(took / 1e3)
    return times, (clock() - began - spent) / count / 1e6


def tight(run: sidestep.Run, others: dict[str, Log], rounds: int, calls: int) -> Table:
    own: Log = lambda values, step: run.log(values, step=step)  # noqa: E731 - as the others
    logs: dict[str, tuple[Log, int]] = {"sidestep": (own, calls)}
    for name, log in others.items():
        logs[name] = (log, calls // 20 if name == JSON else max(20, calls // 200))
    times: dict[str, list[list[float]]] = {name: [] for name in logs}
    for log, _ in logs.values():
        timed(log, WARM_CALLS)
    for _ in range(rounds):
        for name, (log, number) in logs.items():
            times[name].append(timed(log, number))
            run.flush(60)
    table = Table(f"100 floats, tight loop, {rounds} rounds of {calls:,} calls")
    bars: dict[str, tuple[float, float]] = {"sidestep": (4, 12)}
    ours = 0.0
    for name, results in times.items():
        p50, p99 = (statistics.median(percentile(result, share) for result in results) for share in (0.5, 0.99))
        bar = bars.get(name, (None, None))
        table.add(f"{name}, p50", p50, "us", most=bar[0])
        table.add(f"{name}, p99", p99, "us", most=bar[1])
        table.add(f"{name}, max", max(map(max, results)), "us")
        ours = ours or p50
        if name != "sidestep":
            table.add(f"{name} / sidestep, p50", p50 / ours, "x", least={JSON: 5, SUMMARY: 150}.get(name))
    return table


def beside(run: sidestep.Run, collector: Collector, steps: Iterator[None], rounds: int, count: int) -> Table:
    log: Log = lambda values, _step: run.log(values)  # noqa: E731
    times: dict[str, list[list[float]]] = {state: [] for state in STATES}
    lengths: list[float] = []
    for turn in range(rounds):
        for state in STATES[turn % 3 :] + STATES[: turn % 3]:
            with in_state(collector, state):
                in_loop(steps, [log], WARM_CALLS)
                (found,), length = in_loop(steps, [log], count)
            times[state].append(found)
            lengths.append(length)
            run.flush(30)
    table = Table(f"100 floats, torch loop, {rounds} rounds of {count} steps")
    table.add("a step without the call", statistics.median(lengths), "ms")
    figures = {
        (state, share): statistics.median(percentile(result, share) for result in results)
        for state, results in times.items()
        for share in (0.5, 0.99)
    }
    for state in STATES:
        table.add(f"collector {state}, p50", figures[state, 0.5], "us", most=20)
        table.add(f"collector {state}, p99", figures[state, 0.99], "us", most=60)
        table.add(f"collector {state}, max", max(map(max, times[state])), "us")
    for state in STATES[1:]:
        table.add(f"{state} / alive, p50", figures[state, 0.5] / figures["alive", 0.5], "x", most=1.2)
        table.add(f"{state} / alive, p99", figures[state, 0.99] / figures["alive", 0.99], "x")
    return table


class in_state:  # noqa: N801 - reads as one
    """The collector is alive, stopped or dead inside, and alive afterwards."""

    def __init__(self, collector: Collector, state: str) -> None:
        self._collector, self._state = collector, state

    def __enter__(self) -> None:
        if self._state == "stopped":
            self._collector.send(signal.SIGSTOP)
        elif self._state == "dead":
            self._collector.kill()
        if self._state != "alive":
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        if self._state == "stopped":
            self._collector.send(signal.SIGCONT)
        elif self._state == "dead":
            self._collector.restart()
            time.sleep(SETTLE_SECONDS)


def step_by_step(run: sidestep.Run, others: dict[str, Log], steps: Iterator[None], count: int) -> Table:
    log: Log = lambda values, _step: run.log(values)  # noqa: E731
    logs: dict[str, Log] = {"sidestep": log, **others}
    in_loop(steps, list(logs.values()), WARM_CALLS)
    times, _ = in_loop(steps, list(logs.values()), count * len(logs))
    table = Table(f"100 floats, torch loop, in turn, {count} steps each")
    ours = percentile(times[0], 0.5)
    for name, result in zip(logs, times, strict=True):
        table.add(f"{name}, p50", percentile(result, 0.5), "us")
        table.add(f"{name}, p99", percentile(result, 0.99), "us")
        if name != "sidestep":
            least = {JSON: 5, SUMMARY: 150}.get(name)
            table.add(f"{name} / sidestep, p50", percentile(result, 0.5) / ours, "x", least=least)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few calls: shows that it works")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch; default its own choice")
    given = parser.parse_args()
    rounds, calls, count = (2, 1000, 30) if given.quick else (6, 20_000, 300)
    with folder() as root, Collector(root) as collector:
        steps = training(given.threads)
        run = sidestep.init("bench", id="log", dir=root, collector=collector.address)
        others = writers(root)
        try:
            tight(run, others, rounds, calls).print()
            for _ in range(WARM_CALLS):
                next(steps)
            beside(run, collector, steps, rounds, count).print()
            step_by_step(run, others, steps, count).print()
            stats = run.stats
            assert not stats["dropped"], stats
            assert not stats["refused"], stats
        finally:
            run.finish()


if __name__ == "__main__":
    main()
