"""Runs an example with clocks at its first and last optimizer step: what `bench_examples` starts.

    python benchmarks/staged.py OUT with|plain SCRIPT [ARGUMENTS ...]

`plain` puts in the place of sidestep a module whose calls do nothing, so that nothing of it is imported: the example
without it. Clocks are those of the wall, of the process and of the training thread; with sidestep also that of the
thread that ships records, and the time which the training thread spends within calls of sidestep's (counting takes
some microseconds a step, and is in the figures).
"""

from __future__ import annotations

import functools
import json
import runpy
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Steps before the clock of the training: what is made once is the start-up's.
WARM = 20


def clocks() -> tuple[float, float, float]:
    """Seconds of the wall, of this process and of this thread."""
    return time.perf_counter(), time.process_time(), time.thread_time()


class Off:
    """A run that is off, and its diagnostics: every call does nothing."""

    is_off = True
    diagnostics = types.SimpleNamespace(log_every_n_steps=1, every_n_epochs=10**9)

    def epoch(self, epochs: Any) -> Any:
        """The epochs as they are."""
        return epochs

    def __getattr__(self, name: str) -> Callable[..., str]:
        """Any other method."""
        return lambda *_, **__: ""


class Inside:
    """CPU seconds of the training thread within outermost calls of sidestep, once `is_on`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_on = False
        self._is_inside = False
        self._thread = threading.get_ident()

    def count(self, owner: Any, *names: str) -> None:
        """Count the time of functions."""
        for name in names:
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside or not self.is_on or threading.get_ident() != self._thread:
                return call(*args, **kwargs)
            self._is_inside, began = True, time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - began
                self._is_inside = False

        return counted


def without() -> None:
    """Put a module of nothing in sidestep's place."""
    import torch

    nothing: Any = types.ModuleType("sidestep")
    nothing.Run, nothing.watch = Off, lambda *_, **__: Off()
    nothing.clip_grad_norm_ = torch.nn.utils.clip_grad_norm_
    sys.modules["sidestep"] = nothing


def count_at_second_step(inside: Inside) -> None:
    """Count from here on; by then all that is called has been imported."""
    run, watching, calls = (sys.modules[f"sidestep.{name}"] for name in ("run", "watching", "probes.calls"))
    inside.count(run.Run, *("log", "features", "tensor", "image", "record", "_begin_epoch", "_end_epoch"))
    inside.count(watching._Watch, "_before", "_after")
    inside.count(calls.Hook, "__call__")
    inside.count(calls.Calls, "__call__")
    patching = sys.modules.get("sidestep.auto.patching")
    if patching is not None:
        inside.count(patching.Faults, "guard")


def shipping_seconds() -> float:
    """CPU seconds of the thread that ships records; 0 where there is none."""
    drain = next((thread for thread in threading.enumerate() if thread.name == "sidestep-drain"), None)
    return 0.0 if drain is None or drain.ident is None else time.clock_gettime(time.pthread_getcpuclockid(drain.ident))


def main() -> None:
    began = clocks()
    out, arm, script, *arguments = sys.argv[1:]
    if arm == "plain":
        without()
    from torch.optim.optimizer import register_optimizer_step_post_hook

    inside, steps, shipping = Inside(), [], []

    def stepped(*_: Any) -> None:
        if len(steps) == 1 and arm == "with":
            count_at_second_step(inside)
        inside.is_on = len(steps) >= WARM
        steps.append(clocks())
        if arm == "with" and len(steps) % 10 == 1:
            shipping.append((len(steps), shipping_seconds()))

    register_optimizer_step_post_hook(stepped)
    sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
    marks = {"began": began, "warm": steps[WARM], "last": steps[-1], "ended": clocks()}
    shipped = [seconds for step, seconds in shipping if step > WARM]
    found = {
        **marks,
        "steps": len(steps),
        "inside": inside.seconds,
        "shipping": shipped[-1] - shipped[0] if shipped else 0,
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
