"""`sidestep.watch`: hooks on an optimizer and a model, and nothing else of the training is touched.

Steps are counted by the optimizer's post-step hook. On every `every`-th step the probes measure; this module says
when, and knows nothing of what. Nothing here writes to parameters, gradients or random states, so training is the
same bit for bit with and without it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sidestep import start
from sidestep.blocks import Blocks
from sidestep.errors import UsageError
from sidestep.judged import read_profile
from sidestep.probes.cadence import BUDGET, cadence
from sidestep.probes.calls import Calls, Hook
from sidestep.probes.protocol import Part, Watched
from sidestep.probes.registry import Given, chosen
from sidestep.run import Run
from sidestep.sampling import Sampling
from sidestep.steps import Nesting, has_closure
from sidestep.tracing import hide_hooks
from sidestep_schemas.diagnostics import Diagnostics

_watched: weakref.WeakKeyDictionary[Run, Sampling] = weakref.WeakKeyDictionary()


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    every: int | None = None,
    budget: float | None = None,
    blocks: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    probes: Given = None,
    scaler: Any = None,
    ema: Any = None,
    **init_arguments: Any,
) -> Run:
    """Begin a run, or take the one of this process, and have it follow a training through hooks.

    Each optimizer step is counted (the first is 0). On every `every`-th, the learning rate and weight decay, the
    gradient norms, the relative update and the throughput are recorded, for the whole and for each block. Where
    gradients are clipped by `sidestep.clip_grad_norm_`, the norms before and after are recorded at every step. A
    step that `torch.amp.GradScaler` leaves out because of infinite gradients is no step, but with a fused optimizer,
    which decides on its device. What is logged without a step belongs to the step that ended last.

    Args:
        model: the model; wrapped (DistributedDataParallel, torch.compile) or not.
        optimizer: its optimizer, or several, of which the first counts the steps.
        every: steps from one measurement to the next; 1 measures all. Default is the `log_every_n_steps` of
            `diagnostics`, 50.
        budget: share of the training's time that these measurements may take: as long as they take more, `every` is
            doubled, but each epoch has one of them. Default is 0.01 where `every` is left at 50, and without bound
            where it was given. A run of several ranks has none, for its ranks measure the same steps.
        blocks: prefixes of parameter names (`["encoder", "decoder.layers.0"]`), or names of blocks with their
            prefix or prefixes; default is found from the module tree: its children, lists of modules opened.
        probes: what is measured: names of probes to when they sample (`500`, `"epoch"`, `"0.25 epoch"`,
            `"validation"`), to their settings (`{"every": 500}`), to True, or to False to leave one out; or names
            and probes of your own to add to those of each `watch`. docs/probes.md has them all.
        scaler: the `torch.amp.GradScaler`, to have its scale recorded.
        ema: the module that averages weights, or an object that has it as `module`, for the probe "ema".
        **init_arguments: those of `sidestep.init`.

    Returns:
        The run. Its hooks are removed when it is finished.

    Raises:
        UsageError: an argument that cannot be meant, a prefix that no parameter has.
        ConfigError, AddressError: as `sidestep.init`.
    """
    optimizers = _optimizers(optimizer)
    wanted = _wanted(init_arguments)
    if budget is None and every is None and wanted.log_every_n_steps == Diagnostics().log_every_n_steps:
        budget = BUDGET
    every = wanted.log_every_n_steps if every is None else every
    if every < 1:
        raise UsageError(f"watch(every={every!r}): every how many steps is a whole number of at least 1")
    if budget is not None and not 0 < budget <= 1:
        raise UsageError(f"watch(budget={budget!r}): the share of the time that measuring may take, above 0 to 1")
    settled, taken = Blocks(model, blocks), chosen(probes, _profile(init_arguments), wanted)
    for probe in taken:
        cadence(every if probe.every is None else probe.every, probe.name)
    run = start.init(**init_arguments)
    if run.is_off:
        return run
    if run in _watched:
        again = "watch() was called again: the run goes on as it is; several optimizers go into one call, in a list"
        run.guard(lambda: run.complain("watch", "again", again))
        return run
    if run.machine is not None and all(probe.name != "system" for probe in taken):
        run.machine.seconds = 0.0  # every run begins with it
    watched = Watched(run, model, optimizers, settled, scaler=scaler, ema=ema)
    sampling = _watched[run] = Sampling(watched, taken, every, budget if run.world_size == 1 else None)
    _Watch(watched, settled, sampling)
    return run


def is_sampled(run: Run) -> bool:
    """Whether the coming step of a watched run is one of those that `every` means."""
    sampling = _watched.get(run)
    return sampling is not None and sampling.is_regular


def _wanted(init_arguments: Mapping[str, Any]) -> Diagnostics:
    present = start.active_run()
    if present is not None and present.is_live:
        return present.diagnostics
    return Diagnostics.read(init_arguments.get("diagnostics"))


class _Member:
    """A watched optimizer, and how far it is with the sample that is open.

    Args:
        part: the optimizer, as probes see it.
        sampling: the probes.

    Attributes:
        nesting: tells a step from one within it.
        is_done: whether it has added to the sample.
    """

    def __init__(self, part: Part, sampling: Sampling) -> None:
        self.part = part
        self.nesting = Nesting()
        self.is_done = False
        self._sampling = sampling
        self._is_open = False
        self._has_closure = False

    def before(self, *, has_closure: bool) -> None:
        """Have measured what must be known before the step."""
        self._is_open = False
        self._has_closure = has_closure
        if not has_closure:
            self._sampling.tell("gradients", self.part)
        self._sampling.tell("before_step", self.part)
        self._is_open = True

    def after(self) -> None:
        """Have measured what is known after it; with a closure gradients come into being in the step itself."""
        if not self._is_open:
            return
        self._is_open = False
        if self._has_closure:
            self._sampling.tell("gradients", self.part)
        self._sampling.tell("after_step", self.part)
        self.is_done = True

    def forget(self) -> None:
        """Be ready for another sample."""
        self.is_done = self._is_open = False


class _Watch:
    """The hooks of a run, and the sample they take together.

    A sample opens before the first optimizer's step of a sampled number, or before that of another which leads:
    which had stepped before the first one's first step. Each optimizer adds to a sample once; it is recorded when
    all of them have.

    Args:
        watched: model, optimizers and run; the first optimizer counts steps.
        blocks: of the model.
        sampling: the probes.
    """

    def __init__(self, watched: Watched, blocks: Blocks, sampling: Sampling) -> None:
        self._run = watched.run
        self._sampling = sampling
        self._members = [
            _Member(Part(number, optimizer, blocks), sampling) for number, optimizer in enumerate(watched.optimizers)
        ]
        self._first = self._members[0]
        self._leaders = {self._first}
        self._has_begun = False
        self._open_step: int | None = None
        self._expected: int | None = None
        self._handles = [(member, handle) for member in self._members for handle in self._hook(member)]
        hide_hooks(watched.model, (Calls, Hook))
        self._run.count_steps_by_optimizer()
        self._run.at_finish(self._remove)
        self._expect()

    def _hook(self, member: _Member) -> list[RemovableHandle]:
        # Compiled into a step of the optimizer they would be compiled anew for whatever they see.
        before_apart: Any = torch.compiler.disable(self._before)
        after_apart: Any = torch.compiler.disable(self._after)

        def before(optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                before_apart(member, arguments, named)
            elif member.nesting.enters(optimizer):
                self._before(member, arguments, named)

        def after(optimizer: Optimizer, *_call: Any) -> None:
            if torch.compiler.is_compiling():
                after_apart(member)
            elif member.nesting.leaves(optimizer):
                self._after(member)

        optimizer = member.part.optimizer
        return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def _before(self, member: _Member, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        run = self._run
        is_expected = self._expected == run.step + 1 and not self._sampling.due
        if (self._open_step is None and is_expected and self._has_begun) or run.is_off:
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
        if self._open_step is None and self._expected != run.step + 1:
            run.guard(self._expect)
        run.collect()

    def _end_step(self) -> None:
        self._sampling.end_step()
        if self._open_step is None and self._sampling.due:
            self._sampling.forget()

    def _expect(self) -> None:
        self._expected = self._run.step + 1
        self._sampling.begin(self._expected)

    def _open(self, member: _Member, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        following = self._run.step + 1
        if not self._has_begun:
            self._leaders.add(member)
        if member is self._first and self._open_step not in (None, following):
            self._report()  # another has not stepped this time
        if self._open_step is None and self._expected != following:
            self._expect()  # the run was moved on: it goes on from a checkpoint
        if member.is_done:
            return  # it steps more often than the one that counts
        if self._open_step is None:
            if not self._sampling.due or member not in self._leaders or _is_captured():
                return
            member.part.settle()
            if member.part.is_on_meta:
                return  # nothing is computed there
            self._open_step = following
        else:
            member.part.settle()
        member.before(has_closure=has_closure(arguments, named))

    def _close(self, member: _Member) -> None:
        member.after()
        if all(other.is_done for other in self._members):
            self._report()

    def _report(self) -> None:
        step, self._open_step = self._open_step, None
        for member in self._members:
            member.forget()
        if step is not None:
            self._sampling.report(step)

    def _remove(self) -> None:
        for member, handle in self._handles:
            hooks = handle.hooks_dict_ref()
            if hooks is not None and handle.id not in hooks:
                self._run.guard(lambda member=member: self._say_removed(member))
            handle.remove()
        self._sampling.detach()
        self._handles.clear()
        self._members.clear()
        self._leaders.clear()

    def _say_removed(self, member: _Member) -> None:
        optimizer = type(member.part.optimizer).__name__
        what = f"something has removed hooks from {optimizer}: its steps after {self._run.step} were not seen"
        self._run.complain("watch", f"hooks of {member.part.number}", what)


def _profile(init_arguments: Mapping[str, Any]) -> str:
    run = start.active_run()
    if run is not None and run.is_live:
        return run.profile
    return read_profile(init_arguments.get("profile"), os.environ)[0]


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


def _is_captured() -> bool:
    # What is launched while a CUDA graph is captured becomes part of it.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
