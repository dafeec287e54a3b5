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
from sidestep.probes.protocol import Part, Probe, Watched
from sidestep.probes.timing import PENDING_MAX, Mark, has_happened, mark, tensors_of
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


class _Step:
    """Moments of a step."""

    def __init__(self) -> None:
        self.number = -1
        self.passes: list[_Pass] = []
        self.update: Mark | None = None
        self.end: Mark | None = None

    def values(self) -> dict[str, float]:
        """Milliseconds by tag."""
        assert self.update is not None
        assert self.end is not None
        update = self.update.until(self.end)
        if not self.passes:
            return {TAGS[2]: update}
        loss, upstream, whole = map(sum, zip(*(one.values() for one in self.passes), strict=True))
        return dict(zip(TAGS, (loss, upstream, update, whole + update), strict=False))


class BackwardProbe(Probe):
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
        self._step: _Step | None = None
        self._pending: list[_Step] = []
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

    def before_step(self, part: Part) -> None:  # noqa: ARG002
        """The optimizer begins."""
        if self._step is not None and self._step.update is None:
            self._step.update = self._mark()

    def after_step(self, part: Part) -> None:  # noqa: ARG002
        """The optimizer ends."""
        if self._step is not None:
            self._step.end = self._mark()

    def report(self, step: int) -> None:
        """Record the rate, and the steps whose moments have all happened."""
        self._remove()
        done, self._step = self._step, None
        if done is not None and done.end is not None and done.update is not None:
            done.number = step
            self._pending = [*self._pending, done][-PENDING_MAX:]
        self._deliver()
        now = (time.perf_counter(), self._calls.passes)
        before, self._last = self._last, now
        if before is not None and now[0] > before[0] and now[1] > before[1]:
            self.run.record(TAGS[4:], ((now[1] - before[1]) / (now[0] - before[0]),), step=step)

    def forget(self) -> None:
        """Take the hooks away."""
        self._remove()
        self._step = None

    def detach(self) -> None:
        """Take the hooks away, and record the last steps: training is over, so they may be waited for."""
        self._remove()
        for step in self._pending:
            if step.end is not None and step.end.event is not None:
                step.end.event.synchronize()
        self._deliver()

    def _deliver(self) -> None:
        while self._pending and (end := self._pending[0].end) is not None and has_happened(end):
            step = self._pending.pop(0)
            values = step.values()
            self.run.record(tuple(values), tuple(values.values()), step=step.number)

    def _mark(self) -> Mark:
        return mark(self.watched.device)

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
