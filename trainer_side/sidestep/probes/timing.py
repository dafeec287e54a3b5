"""Where the time of a step goes: waiting for data, forward, backward, the optimizer.

On a GPU times are those of the device: events are recorded between its kernels, and read when a later step finds
that they have happened. The share of waiting is of the host's clock in any case.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from sidestep.probes.protocol import Part, Probe
from sidestep.tracing import is_in_backward

TAGS: Final = (
    "perf/step_time_ms",
    "perf/data_loading_frac",
    "train/performance/optimizer_time_ms",
    "train/performance/forward_time_ms",
    "train/performance/backward_time_ms",
)

#: Steps whose events have not happened yet; of more the oldest is given up.
PENDING_MAX: Final = 8


class Mark(NamedTuple):
    """A moment: on the host's clock in seconds, and on the device where there is one."""

    host: float
    event: torch.cuda.Event | None

    def until(self, later: Mark) -> float:
        """Milliseconds from here to there, on the device where there is one. Both must have happened."""
        if self.event is None or later.event is None:
            return (later.host - self.host) * 1e3
        return self.event.elapsed_time(later.event)


def mark(device: torch.device) -> Mark:
    """The moment of the call."""
    event = None
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
    return Mark(time.perf_counter(), event)


class TimedStep(ABC):
    """Moments of a step.

    Attributes:
        number: of the step, once it is over.
        update, end: beginning of the first optimizer's step and end of the last one's.
    """

    def __init__(self) -> None:
        self.number = -1
        self.update: Mark | None = None
        self.end: Mark | None = None

    @abstractmethod
    def values(self) -> dict[str, float]:
        """Times by tag, once all its moments have happened."""


S = TypeVar("S", bound=TimedStep)


class TimedProbe(Probe, Generic[S]):
    """Takes the moments of a step's update, and records the times of a step once its moments have all happened."""

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._step: S | None = None
        self._pending: list[S] = []

    def before_step(self, part: Part) -> None:  # noqa: ARG002
        """The optimizer begins."""
        if self._step is not None and self._step.update is None:
            self._step.update = self._mark()

    def after_step(self, part: Part) -> None:  # noqa: ARG002
        """The optimizer ends."""
        if self._step is not None:
            self._step.end = self._mark()

    def report(self, step: int) -> None:
        """Record the steps whose moments have all happened."""
        self._remove()
        done, self._step = self._step, None
        if done is not None and done.end is not None and done.update is not None:
            done.number = step
            self._pending = [*self._pending, done][-PENDING_MAX:]
        self._deliver()

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

    @abstractmethod
    def _remove(self) -> None:
        """Take away whatever was hung up for a step."""

    def _told(self, step: S) -> dict[str, float]:
        return step.values()

    def _mark(self) -> Mark:
        return mark(self.watched.device)

    def _deliver(self) -> None:
        while self._pending and (end := self._pending[0].end) is not None and has_happened(end):
            step = self._pending.pop(0)
            values = self._told(step)
            self.run.record(tuple(values), tuple(values.values()), step=step.number)


class _Step(TimedStep):
    """Moments of a step.

    Attributes:
        forward, backward: pairs of beginning and end, one a micro-batch; a pair may lack its end.
    """

    def __init__(self, begin: Mark) -> None:
        super().__init__()
        self.begin = begin
        self.forward: list[list[Mark]] = []
        self.backward: list[list[Mark]] = []

    def values(self) -> dict[str, float]:
        """Times by tag."""
        assert self.update is not None
        assert self.end is not None
        forward = [pair for pair in self.forward if len(pair) == 2]
        backward = [pair for pair in self.backward if len(pair) == 2]
        found = {TAGS[0]: self.begin.until(self.end), TAGS[2]: self.update.until(self.end)}
        if forward:
            seconds = self.end.host - self.begin.host
            found[TAGS[1]] = min(1.0, self._waited(forward, backward) / seconds) if seconds > 0 else 0.0
            found[TAGS[3]] = sum(first.until(last) for first, last in forward)
        if backward:
            found[TAGS[4]] = sum(first.until(last) for first, last in backward)
        return found

    def _waited(self, forward: list[list[Mark]], backward: list[list[Mark]]) -> float:
        # Before each forward pass: since the end of what came before it.
        ends = [self.begin.host, *(last.host for _, last in forward + backward)]
        return sum(first.host - max(end for end in ends if end <= first.host) for first, _ in forward)


class TimeProbe(TimedProbe[_Step]):
    """Times of the phases of a step.

    Args:
        every: when it samples.
        waiting: also the share of waiting for data, as far as it can be told from outside of the loader.
    """

    name: ClassVar[str] = "time"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS
    hooks_forward: ClassVar[bool] = True

    def __init__(self, *, every: int | str | None = None, waiting: bool = True) -> None:
        super().__init__(every=every)
        self._tells_waiting = waiting
        self._removers: list[Callable[[], None]] = []

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Begin a step, and hang hooks on the model."""
        self._remove()
        model = self.watched.model
        self._removers = [
            model.register_forward_pre_hook(self.hook(self._before_forward)).remove,
            model.register_forward_hook(self.hook(self._after_forward)).remove,
        ]
        self._step = _Step(self._mark())

    def _told(self, step: _Step) -> dict[str, float]:
        values = super()._told(step)
        if not self._tells_waiting:
            values.pop(TAGS[1], None)
        return values

    def _remove(self) -> None:
        for remove in self._removers:
            remove()
        self._removers = []

    def _before_forward(self, module: nn.Module, *_call: Any) -> None:
        step = self._step
        if step is None or not module.training or not torch.is_grad_enabled():
            return
        if not step.forward or not is_in_backward():  # checkpointing repeats a forward pass while it goes backward
            step.forward.append([self._mark()])

    def _after_forward(self, module: nn.Module, _arguments: Any, output: Any) -> None:
        step = self._step
        if step is None or not module.training or not step.forward or len(step.forward[-1]) != 1:
            return
        step.forward[-1].append(self._mark())
        first = next((tensor for tensor in tensors_of(output) if tensor.requires_grad), None)
        if first is not None:
            first.register_hook(self.hook(lambda *_: self._before_backward(step)))

    def _before_backward(self, step: _Step) -> None:
        pair = [self._mark()]
        step.backward.append(pair)
        # What DistributedDataParallel does to learn of the end of a backward pass.
        engine = cast("Any", torch.autograd.Variable)._execution_engine  # noqa: SLF001
        engine.queue_callback(self.hook(lambda: pair.append(self._mark())))


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Tensors in what a model returns: a tensor, or a tuple, list or mapping of them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (value for value in output.values() if isinstance(value, Tensor))
    elif isinstance(output, Sequence) and not isinstance(output, str):
        yield from (value for value in output if isinstance(value, Tensor))


def has_happened(moment: Mark) -> bool:
    """Whether a moment has come on the device as well; never waits."""
    return moment.event is None or moment.event.query()
