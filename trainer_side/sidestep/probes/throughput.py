"""How fast training goes, and the device memory it takes. Read on the host; no device is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from sidestep.run import Run

TAGS: Final = (
    "perf/steps_per_sec",
    "perf/samples_per_sec",
    "perf/gpu_mem_allocated_gb",
    "perf/gpu_mem_reserved_gb",
)


class SampleCounter:
    """A forward pre-hook that adds up the first dimension of a model's first tensor argument while it trains.

    A copy or a pickle of the model carries a hook that does nothing, so that models can be copied and saved as if
    they were not watched.
    """

    def __init__(self) -> None:
        self.samples = 0

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Count a call; none that is compiled (a count would make it compile anew), nor one without gradient."""
        if torch.compiler.is_compiling() or not module.training or not torch.is_grad_enabled():
            return
        for argument in (*arguments, *named.values()):
            if isinstance(argument, Tensor) and argument.ndim:
                self.samples += argument.shape[0]
                return

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _silent_counter, ()


def count_nothing(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """What stands in a copied model in place of a `SampleCounter`."""


def _silent_counter() -> Callable[..., None]:
    return count_nothing


class Throughput:
    """Steps and samples per second since the last report.

    Args:
        counter: counts samples.
        device: where the model lies; memory is reported for CUDA.
    """

    def __init__(self, counter: SampleCounter, device: torch.device) -> None:
        self._counter = counter
        self._device = device
        self._last: tuple[float, int, int] | None = None

    def report(self, run: Run, step: int) -> None:
        """Record what was reached since the last report; the first one only begins to measure."""
        now = (time.perf_counter(), step, self._counter.samples)
        before, self._last = self._last, now
        rates: dict[str, float] = {}
        if before is not None and now[0] > before[0] and step > before[1]:
            seconds = now[0] - before[0]
            rates[TAGS[0]] = (step - before[1]) / seconds
            if now[2] > before[2]:
                rates[TAGS[1]] = (now[2] - before[2]) / seconds
        if self._device.type == "cuda":
            statistics = torch.cuda.memory_stats(self._device)
            rates[TAGS[2]] = statistics.get("allocated_bytes.all.peak", 0) / 1e9
            rates[TAGS[3]] = statistics.get("reserved_bytes.all.peak", 0) / 1e9
        if rates:
            run.record(tuple(rates), tuple(rates.values()), step=step)
