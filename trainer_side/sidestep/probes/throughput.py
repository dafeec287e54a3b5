"""How fast training goes. Read on the host; no device is asked."""

from __future__ import annotations

import time
from typing import ClassVar, Final

from sidestep.probes.calls import Calls
from sidestep.probes.protocol import Probe, Watched

TAGS: Final = ("perf/steps_per_sec", "perf/samples_per_sec", "perf/micro_batches_per_step")


class Throughput(Probe):
    """Steps and samples per second since the last report; the first one only begins to measure."""

    name: ClassVar[str] = "throughput"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS
    _calls: Calls

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._last: tuple[float, int, int, int] | None = None

    def attach(self, watched: Watched) -> None:
        """Count the model's calls."""
        super().attach(watched)
        self._calls = watched.calls

    def report(self, step: int) -> None:
        """Record what was reached since the last report."""
        calls = self._calls
        now = (time.perf_counter(), step, calls.samples, calls.passes)
        before, self._last = self._last, now
        if before is None or now[0] <= before[0] or step <= before[1]:
            return
        seconds, steps, samples, passes = (a - b for a, b in zip(now, before, strict=True))
        rates = {TAGS[0]: steps / seconds}
        if samples:
            rates[TAGS[1]] = samples / seconds
        if passes:
            rates[TAGS[2]] = passes / steps
        self.run.record(tuple(rates), tuple(rates.values()), step=step)
