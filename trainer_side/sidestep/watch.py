"""`sidestep.watch`: hooks on an optimizer and a model, and nothing else of the training is touched.

Steps are counted by the optimizer's post-step hook. On every `every`-th step the probes measure; this module says
when, and knows nothing of what. Nothing here writes to parameters, gradients or random states, so training is the
same bit for bit with and without it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sidestep import clip, start
from sidestep.blocks import Blocks, local
from sidestep.errors import UsageError
from sidestep.probes import Norms, Placed, gradients, updates
from sidestep.probes import optimizer as rates
from sidestep.probes.clipping import Clipping
from sidestep.probes.throughput import SampleCounter, Throughput
from sidestep.run import Run

_watched: weakref.WeakSet[Run] = weakref.WeakSet()


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    every: int = 50,
    blocks: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    **init_arguments: Any,
) -> Run:
    """Begin a run, or take the one of this process, and have it follow a training through hooks.

    Each optimizer step is counted (the first is 0). On every `every`-th, the learning rate and weight decay, the
    gradient norms, the relative update and the throughput are recorded, for the whole and for each block. Where
    gradients are clipped by `sidestep.clip_grad_norm_`, the norms before and after are recorded at every step. A
    step that `torch.amp.GradScaler` leaves out because of infinite gradients is no step. What is logged without a
    step belongs to the step that ended last.

    Args:
        model: the model; wrapped (DistributedDataParallel, torch.compile) or not.
        optimizer: its optimizer, or several, of which the first counts the steps.
        every: steps from one measurement to the next; 1 measures all.
        blocks: prefixes of parameter names (`["encoder", "decoder.layers.0"]`), or names of blocks with their
            prefix or prefixes; default is found from the module tree: its children, lists of modules opened.
        **init_arguments: those of `sidestep.init`.

    Returns:
        The run. Its hooks are removed when it is finished.

    Raises:
        UsageError: an argument that cannot be meant, a prefix that no parameter has.
        ConfigError, AddressError: as `sidestep.init`.
    """
    optimizers = _optimizers(optimizer)
    if every < 1:
        raise UsageError(f"watch(every={every!r}): every how many steps is a whole number of at least 1")
    settled = Blocks(model, blocks)
    run = start.init(**init_arguments)
    if run.is_off:
        return run
    if run in _watched:
        again = "watch() was called again: the run goes on as it is; several optimizers go into one call, in a list"
        run.guard(lambda: run.complain("watch", "again", again))
        return run
    _Watch(run, model, optimizers, every, settled)
    _watched.add(run)
    return run


class _Member:
    """A watched optimizer: its parameters by block, and the sample that is open.

    Args:
        optimizer: the optimizer.
        blocks: where its parameters belong.
    """

    def __init__(self, optimizer: Optimizer, blocks: Blocks) -> None:
        self.optimizer = optimizer
        self.gradients: list[Norms] = []
        self.changes: list[tuple[Norms, Norms]] = []
        self.is_done = False
        self._is_open = False
        self._blocks = blocks
        self._placed: list[Placed] = []
        self._samples: list[updates.UpdateSample] = []
        self._signature: list[Any] = []
        self._has_closure = False

    def before(self, *, has_closure: bool) -> None:
        """Measure what must be known before the step."""
        self._is_open = False
        self._has_closure = has_closure
        self._settle()
        if not has_closure:
            self._measure_gradients()
        for sample in self._samples:
            sample.take()
        self._is_open = True

    def after(self) -> None:
        """Measure what is known after it; with a closure gradients come into being in the step itself."""
        if not self._is_open:
            return
        self._is_open = False
        if self._has_closure:
            self._measure_gradients()
        self.changes = [sample.compare() for sample in self._samples]
        self.is_done = True

    def forget(self) -> None:
        """Be ready for another sample."""
        self.gradients, self.changes = [], []
        self.is_done = self._is_open = False

    def _measure_gradients(self) -> None:
        # A GradScaler leaves unscaling to a fused optimizer, and hands it the scale in this attribute.
        scale: Tensor | None = getattr(self.optimizer, "grad_scale", None)
        self.gradients = gradients.measure(self._placed, scale)

    def _settle(self) -> None:
        """Place the parameters anew where they are others than last time: groups are added, shapes change."""
        parameters: list[Tensor] = [entry for group in self.optimizer.param_groups for entry in group["params"]]
        signature = [(id(entry), entry.shape, entry.dtype, entry.device, entry.requires_grad) for entry in parameters]
        if signature == self._signature:
            return
        places = self._blocks.place(parameters)
        placed = [Placed(parameter, block) for parameter, block in zip(parameters, places, strict=True)]
        self._placed = sorted(placed, key=lambda entry: entry.block)
        self._samples = updates.sample(self._placed)
        self._signature = signature


class _Watch:
    """The hooks of a run, and the sample they take together.

    A sample opens before the first optimizer's step of a sampled number, or before that of another which leads:
    which had stepped before the first one's first step. Each optimizer adds to a sample once; it is recorded when
    all of them have.

    Args:
        run: where to record.
        model: whose calls are counted.
        optimizers: the first counts steps.
        every: steps between samples.
        blocks: of the model.
    """

    def __init__(self, run: Run, model: nn.Module, optimizers: Sequence[Optimizer], every: int, blocks: Blocks) -> None:
        self._run = run
        self._every = every
        self._names = blocks.names
        self._members = [_Member(optimizer, blocks) for optimizer in optimizers]
        self._first = self._members[0]
        self._leaders = {self._first}
        self._has_begun = False
        self._open_step: int | None = None
        self._before_clip: Tensor | None = None
        self._clipping = Clipping(run)
        counter = SampleCounter()
        self._throughput = Throughput(counter, _device(model))
        self._removers: list[Callable[[], None]] = [
            model.register_forward_pre_hook(counter, with_kwargs=True).remove,
            *(remove for member in self._members for remove in self._hook(member)),
        ]
        clip.listen(self._clipping)
        run.count_steps_by_optimizer()
        run.at_finish(self._remove)

    def _hook(self, member: _Member) -> list[Callable[[], None]]:
        def before(_: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._before(member, arguments, named)

        def after(_: Optimizer, *_call: Any) -> None:
            self._after(member)

        optimizer = member.optimizer
        return [
            optimizer.register_step_pre_hook(before).remove,
            optimizer.register_step_post_hook(after).remove,
        ]

    def _before(self, member: _Member, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        run = self._run
        if (self._open_step is None and (run.step + 1) % self._every and self._has_begun) or run.is_off:
            return
        run.guard(lambda: self._open(member, arguments, named))

    def _after(self, member: _Member) -> None:
        run = self._run
        if run.is_off:
            return
        if member is self._first:
            self._has_begun = True
            run.next_step()
            run.guard(self._end_step)
        if self._open_step is not None:
            run.guard(lambda: self._close(member))
        run.collect()

    def _end_step(self) -> None:
        before_clip = self._clipping.end_step()
        if self._open_step == self._run.step:
            self._before_clip = before_clip

    def _open(self, member: _Member, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        following = self._run.step + 1
        if not self._has_begun:
            self._leaders.add(member)
        if member is self._first and self._open_step not in (None, following):
            self._report()  # another has not stepped this time
        if member.is_done:
            return  # it steps more often than the one that counts
        if self._open_step is None:
            if following % self._every or member not in self._leaders or _is_captured(member.optimizer):
                return
            self._open_step = following
        with torch.no_grad():
            member.before(has_closure=_has_closure(arguments, named))

    def _close(self, member: _Member) -> None:
        with torch.no_grad():
            member.after()
        if all(other.is_done for other in self._members):
            self._report()

    def _report(self) -> None:
        step, self._open_step = self._open_step, None
        before_clip, self._before_clip = self._before_clip, None
        measured = [norms for member in self._members for norms in member.gradients]
        changes = [pair for member in self._members for pair in member.changes]
        for member in self._members:
            member.forget()
        if step is None:
            return
        run = self._run
        groups = [group for member in self._members for group in member.optimizer.param_groups]
        run.guard(lambda: rates.report(run, groups, step))
        run.guard(lambda: gradients.report(run, self._names, measured, step, before_clip))
        run.guard(lambda: updates.report(run, self._names, changes, step))
        run.guard(lambda: self._throughput.report(run, step))

    def _remove(self) -> None:
        for remove in self._removers:
            remove()
        self._run.guard(self._clipping.flush)
        clip.listen(None)
        self._removers.clear()
        self._members.clear()
        self._leaders.clear()


def _optimizers(given: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    several = list(given) if isinstance(given, Sequence) else [given]
    # Accelerate and others wrap an optimizer, and call its step.
    optimizers = [inner if isinstance(inner := getattr(one, "optimizer", None), Optimizer) else one for one in several]
    for one in optimizers:
        if not hasattr(one, "register_step_post_hook"):
            raise UsageError(f"watch() takes a torch optimizer, or a list of them, not {type(one).__name__}")
    if not optimizers:
        raise UsageError("watch() needs an optimizer: its steps are counted")
    return optimizers


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else local(first).device


def _has_closure(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    return named.get("closure") is not None or (len(arguments) > 1 and arguments[1] is not None)


def _is_captured(optimizer: Optimizer) -> bool:
    # What is launched while a CUDA graph is captured becomes part of it.
    on_device = any(entry.is_cuda for group in optimizer.param_groups for entry in group["params"])
    return on_device and torch.cuda.is_current_stream_capturing()
