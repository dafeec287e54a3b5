"""Where the time of a backward pass goes, from the model's outputs to the changed weights.

    loss        from the end of the forward pass to the beginning of the backward pass
    upstream    from there until the gradient has arrived at the model's outputs
    total       loss, upstream, the gradients of the parameters, and the update, together
    update      from the beginning of the first optimizer's step to the end of the last one's

Of a step with several micro-batches they are sums. Each is a moment on the host, on a GPU an event between its
kernels (`sidestep.probes.timing`). When a backward pass begins and ends is seen from `torch.autograd.backward`, which
`Tensor.backward` calls; it is wrapped in sampled steps alone. Where a script calls `torch.autograd.grad` instead, only
the update is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch
from torch import nn

from sidestep.probes.calls import Calls
from sidestep.probes.protocol import Watched
from sidestep.probes.timing import Mark, TimedProbe, TimedStep, tensors_of
from sidestep.tracing import is_in_backward
from sidestep.wrapping import Wrappings

TAGS: Final = (
    "train/backward/loss_time_ms",
    "train/backward/upstream_time_ms",
    "train/backward/update_time_ms",
    "train/backward/total_time_ms",
    "train/backward/passes_per_sec",
)


class _Pass:
    """Moments of a backward pass; of several forward passes that it is of, the last one's end."""

    def __init__(self, begin: Mark) -> None:
        self.begin = begin
        self.forward_end: Mark | None = None
        self.arrived = begin
        self.end = begin

    def values(self) -> tuple[float, float, float]:
        """Milliseconds of the loss, of the upstream gradient, and of all until the pass has ended."""
        assert self.forward_end is not None
        return (
            self.forward_end.until(self.begin),
            self.begin.until(self.arrived),
            self.forward_end.until(self.end),
        )


class _Step(TimedStep):
    """Moments of a step, and of its backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[_Pass] = []

    def values(self) -> dict[str, float]:
        """Milliseconds by tag."""
        assert self.update is not None
        assert self.end is not None
        update = self.update.until(self.end)
        if not self.passes:
            return {TAGS[2]: update}
        loss, upstream, whole = map(sum, zip(*(one.values() for one in self.passes), strict=True))
        return dict(zip(TAGS, (loss, upstream, update, whole + update), strict=False))


class BackwardProbe(TimedProbe[_Step]):
    """Times of a backward pass, and passes per second."""

    name: ClassVar[str] = "backward"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS
    hooks_forward: ClassVar[bool] = True
    _calls: Calls

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._wrappings = Wrappings()
        self._remover: Callable[[], None] | None = None
        self._open: _Pass | None = None
        self._last: tuple[float, int] | None = None

    def attach(self, watched: Watched) -> None:
        """Count the model's calls."""
        super().attach(watched)
        self._calls = watched.calls

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Begin a step: listen for the end of forward passes, and for backward passes."""
        self._remove()
        self._step = _Step()
        self._remover = self.watched.model.register_forward_hook(self.hook(self._after_forward)).remove
        self._wrappings.wrap([torch.autograd], "backward", self._around, again=True)  # `sidestep run` has wrapped it

    def report(self, step: int) -> None:
        """Record the rate, and the steps whose moments have all happened."""
        super().report(step)
        now = (time.perf_counter(), self._calls.passes)
        before, self._last = self._last, now
        if before is not None and now[0] > before[0] and now[1] > before[1]:
            self.run.record(TAGS[4:], ((now[1] - before[1]) / (now[0] - before[0]),), step=step)

    def _remove(self) -> None:
        self._wrappings.remove()
        self._open = None
        if self._remover is not None:
            self._remover()
            self._remover = None

    def _after_forward(self, module: nn.Module, _arguments: Any, output: Any) -> None:
        step = self._step
        if step is None or not module.training or not torch.is_grad_enabled() or is_in_backward():
            return
        first = next((tensor for tensor in tensors_of(output) if tensor.requires_grad), None)
        if first is None:
            return
        end = self._mark()
        first.register_hook(self.hook(lambda *_: self._arrived(step, end)))

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        begins, ends = self.hook(self._begins), self.hook(self._ends)

        def backward(*arguments: Any, **named: Any) -> Any:
            begins()
            try:
                return original(*arguments, **named)
            finally:
                ends()

        return backward

    def _begins(self) -> None:
        self._open = _Pass(self._mark())

    def _arrived(self, step: _Step, forward_end: Mark) -> None:
        one = self._open
        if one is None or step is not self._step:
            return
        if one.forward_end is None or one.forward_end.host < forward_end.host:
            one.forward_end = forward_end
        one.arrived = self._mark()

    def _ends(self) -> None:
        one, self._open = self._open, None
        if one is not None and one.forward_end is not None and self._step is not None:
            one.end = self._mark()
            self._step.passes.append(one)
