"""Two equal networks that train in turn, one of them watched, and what the watching adds to a step.

On a CPU they take turns step by step, each of them first in every other pair. Of the differences of pairs the median
is taken over all blocks for each of a block's 50 places, so that one place in 50 that samples counts as what it is,
and what else the machine did counts for nothing. The sum of all differences also has what is rarer than one step in
50, and the noise. On a GPU they take turns by blocks of 50 steps, each of which ends with a synchronisation.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from support import percentile

import sidestep
from overhead.trainings import Training

STEPS = 50

#: From a training to something that watches it for as long as a `with` lasts.
Watch = Callable[[Training], contextlib.AbstractContextManager[Any]]


@dataclass
class Found:
    """What was measured, in seconds a step.

    Attributes:
        plain: a step of the one that is not watched, median.
        added: what a watched step takes longer, from medians.
        added_mean: the same from sums.
        blocks: the same for each block.
        plain_cpu, added_cpu: the first two in CPU time of the training thread, which says the same on a machine that
            has other things to do, but leaves out what is waited for; zero on a GPU.
    """

    plain: float
    added: float
    added_mean: float
    blocks: list[float]
    plain_cpu: float = 0.0
    added_cpu: float = 0.0

    @property
    def ratio(self) -> float:
        return 1 + self.added / self.plain

    @property
    def spread(self) -> str:
        """Quartiles of the ratios of blocks, and the ratio of the sums."""
        low, high = (1 + percentile(self.blocks, share) / self.plain for share in (0.25, 0.75))
        return f"{low:.4f} to {high:.4f}; sums {1 + self.added_mean / self.plain:.4f}"


@contextlib.contextmanager
def watched(training: Training, address: str, root: Any, settings: dict[str, Any]) -> Iterator[sidestep.Run]:
    """A training that sidestep watches."""
    run = sidestep.watch(
        training.model, training.optimizer, project="bench", dir=root, **{"collector": address, **settings}
    )
    try:
        yield run
    finally:
        run.finish(timeout=5)


def compare(make: Callable[[], Training], device: str, rounds: int, watch: Watch) -> Found:
    """Train two networks, one of them watched."""
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    other = make()
    with watch(other):
        for training in (plain, other):
            block(training, device)
        if device == "cuda":
            return _by_blocks(plain, other, device, rounds)
        return _by_steps(plain, other, rounds)


def _by_steps(plain: Training, other: Training, rounds: int) -> Found:
    """Times of pairs: first index the clock (wall, CPU), then round, step, and which of the two."""
    clocks: tuple[list[list[tuple[float, float]]], ...] = ([], [])
    for number in range(rounds):
        pairs = [_pair(plain, other, is_reversed=(number + step) % 2 == 1) for step in range(STEPS)]
        for clock, times in zip(clocks, zip(*pairs, strict=True), strict=True):
            clock.append(list(times))
    blocks = [statistics.fmean(second - first for first, second in one) for one in clocks[0]]
    (middle, added), (middle_cpu, added_cpu) = (_medians(clock) for clock in clocks)
    return Found(middle, added, statistics.fmean(blocks), blocks, middle_cpu, added_cpu)


def _medians(rounds: list[list[tuple[float, float]]]) -> tuple[float, float]:
    middle = statistics.median(first for one in rounds for first, _ in one)
    places = [statistics.median(second - first for first, second in place) for place in zip(*rounds, strict=True)]
    return middle, statistics.fmean(places)


def _pair(plain: Training, other: Training, *, is_reversed: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """Wall time of a step of each, and CPU time."""
    walls, cpus = [0.0, 0.0], [0.0, 0.0]
    for place in (1, 0) if is_reversed else (0, 1):
        one = other if place else plain
        wall, cpu = time.perf_counter(), time.thread_time()
        one.step()
        walls[place], cpus[place] = time.perf_counter() - wall, time.thread_time() - cpu
    return (walls[0], walls[1]), (cpus[0], cpus[1])


def _by_blocks(plain: Training, other: Training, device: str, rounds: int) -> Found:
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        order = (other, plain) if number % 2 else (plain, other)
        seconds = {id(one): block(one, device) / STEPS for one in order}
        pairs.append((seconds[id(plain)], seconds[id(other)]))
    blocks = [second - first for first, second in pairs]
    middle = statistics.median(first for first, _ in pairs)
    return Found(middle, statistics.median(blocks), statistics.fmean(blocks), blocks)


def block(training: Training, device: str) -> float:
    """Seconds of 50 steps."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(STEPS):
        training.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def synchronising_calls(training: Training) -> int:
    """How often 50 steps on a GPU wait for it; of calls that torch knows to wait."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(STEPS):
                training.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)
