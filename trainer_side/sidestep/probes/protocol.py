"""The contract of a probe: what it declares, when it is called, and what it may touch.

A probe measures one family of quantities at sampled steps. Ten lines make one:

    from sidestep.probes import Probe

    class Temperature(Probe):
        name = "temperature"
        every = 100
        tags = ("train/temperature",)

        def report(self, step):
            self.run.record(self.tags, self.watched.model.temperature.detach().reshape(1), step=step)

    sidestep.watch(model, optimizer, probes=[Temperature()])

Of a step that it samples, a probe is told in this order, and each of it is optional:

    begin(step)            the step before has ended: register hooks for forward and backward
    before_step(part)      an optimizer is about to update its parameters; once for each optimizer
    gradients(part)        its gradients are there: just before the update, or after it where a closure makes them
    after_step(part)       it has updated them
    report(step)           every optimizer has: record
    forget()               instead of `report`: the sample came to nothing

and of every step, sampled or not, by `end_step()`, which must cost next to nothing.

What a probe does, it does under `torch.no_grad` (its hooks on modules, made by `self.hook`, excepted). It never
writes to parameters, gradients or random states, and never waits for a device: it computes there, stacks its numbers
into one float32 tensor and hands that to `Run.record`, which brings them home. What it raises is counted, said once,
and switches it off; the training and the other probes go on.

Third parties name theirs as an entry point in the group `sidestep.probes`; it is then asked for by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sidestep.blocks import Blocks, local, unwrapped
from sidestep.probes.calls import Calls, Hook
from sidestep.probes.labels import Labels
from sidestep.probes.norms import Placed
from sidestep.probes.sharding import Sharding
from sidestep.run import Run


class Watched:
    """What a run watches: what probes look at, and where they record.

    Args:
        run: where to record.
        model: as it was handed to `watch`.
        optimizers: the first counts steps.
        blocks: of the model.
        extras: what else was handed to `watch`: "scaler", "ema".

    Attributes:
        names: names of the blocks, by their number.
        has_stepped: whether an optimizer has stepped.
        sharding: how the parameters lie over ranks.
        switch_off: what is told of a probe whose hook raised.
        norm_before_clip: a step and its gradient's L2 norm before clipping, where a probe has seen it.
        weight_norm_step: the last step for which the norm of the weights was recorded.
    """

    def __init__(
        self, run: Run, model: nn.Module, optimizers: Sequence[Optimizer], blocks: Blocks, **extras: Any
    ) -> None:
        self.run = run
        self.model = model
        self.optimizers = list(optimizers)
        self.names = blocks.names
        self.extras = extras
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        self.sharding = Sharding(model, (entry for group in groups for entry in group["params"]))
        self.has_stepped = False
        self.norm_before_clip: tuple[int, Tensor] | None = None
        self.weight_norm_step: int | None = None
        self.switch_off: Callable[[Probe, str, Exception], None] | None = None
        self._calls: Calls | None = None
        self._labels: Labels | None = None
        self._device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter lies: looked up until it has trained there, for models are moved."""
        if self._device is not None:
            return self._device
        first = next(self.model.parameters(), None)
        device = torch.device("cpu") if first is None else local(first).device
        if self.has_stepped and device.type != "meta":
            self._device = device
        return device

    @property
    def inner(self) -> nn.Module:
        """The model inside of its wrappers."""
        return unwrapped(self.model)

    @property
    def calls(self) -> Calls:
        """Counts of the model's calls, from the first time this is asked for."""
        if self._calls is None:
            self._calls = Calls()
            remove = self.model.register_forward_pre_hook(self._calls, with_kwargs=True).remove
            self.run.at_finish(remove)
        return self._calls

    @property
    def labels(self) -> Labels:
        """Labels of the batches, for those that listen."""
        if self._labels is None:
            labels = self._labels = Labels(self.model)
            self.run.at_batch(lambda _, given, split: labels.told(given, split))
        return self._labels


class Part:
    """A watched optimizer at a sampled step.

    Args:
        number: its place among the watched optimizers.
        optimizer: the optimizer.
        blocks: where its parameters belong.

    Attributes:
        placed: its parameters, their blocks rising.
        is_on_meta: whether any of them has no numbers yet.
        version: another number whenever `placed` is another list: groups are added, shapes change.
    """

    def __init__(self, number: int, optimizer: Optimizer, blocks: Blocks) -> None:
        self.number = number
        self.optimizer = optimizer
        self.placed: list[Placed] = []
        self.is_on_meta = False
        self.version = 0
        self._blocks = blocks
        self._signature: list[int] = []

    @property
    def key(self) -> tuple[int, int]:
        """Names this list of parameters: what was prepared for it holds as long as the key does."""
        return self.number, self.version

    @property
    def grad_scale(self) -> Tensor | None:
        """What a fused optimizer will divide gradients by: a GradScaler leaves unscaling to it."""
        return getattr(self.optimizer, "grad_scale", None)

    def settle(self) -> None:
        """Place the parameters anew where they are others than last time."""
        parameters: list[Tensor] = [entry for group in self.optimizer.param_groups for entry in group["params"]]
        # Numbers: Python looks through thousands of tuples for garbage, which takes longer than making them.
        signature = [
            hash((id(entry), entry.shape, entry.dtype, entry.device, entry.requires_grad)) for entry in parameters
        ]
        if signature == self._signature:
            return
        places = self._blocks.place(parameters)
        placed = [Placed(parameter, block) for parameter, block in zip(parameters, places, strict=True)]
        self.placed = sorted(placed, key=lambda entry: entry.block)
        self.is_on_meta = any(entry.is_meta for entry in parameters)
        self._signature = signature
        self.version += 1


class Probe:
    """One family of quantities; derive from it, and say what is measured and when.

    Attributes:
        name: how settings and messages call it.
        cost: 0 free, 1 a reduction for each tensor, 2 a copy or a hook, 3 a forward or backward more, 4 tens of them.
        every: when it samples: a number of steps, "epoch", "0.25 epoch", "validation"; None is as `watch` was told.
        tags: names of what it records, as the catalogue has them.
        hooks_forward: whether it hangs hooks on modules in `begin`. It is then left out of a run's first step, and has
            the second instead: a model that compiles itself in its first call would have the hooks compiled in.

    Args:
        every: instead of the class's.
    """

    name: ClassVar[str] = ""
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = ()
    hooks_forward: ClassVar[bool] = False
    every: int | str | None = None
    run: Run
    watched: Watched

    def __init__(self, *, every: int | str | None = None) -> None:
        if every is not None:
            self.every = every

    def attach(self, watched: Watched) -> None:
        """The run begins; keeps `watched` and `run`."""
        self.watched = watched
        self.run = watched.run

    def hook(self, call: Callable[..., object]) -> Hook:
        """A hook for a module or a tensor: what it raises switches this probe off instead of ending the training."""

        def fail(error: Exception) -> None:
            if self.watched.switch_off is not None:
                self.watched.switch_off(self, "a hook", error)

        return Hook(call, fail)

    def begin(self, step: int) -> None:
        """The step before the sampled one has ended."""

    def before_step(self, part: Part) -> None:
        """An optimizer is about to update its parameters."""

    def gradients(self, part: Part) -> None:
        """The gradients of an optimizer's parameters are there."""

    def after_step(self, part: Part) -> None:
        """An optimizer has updated its parameters."""

    def report(self, step: int) -> None:
        """Every optimizer has stepped."""

    def forget(self) -> None:
        """The sample came to nothing: drop what was measured, remove hooks that wait for it."""

    def end_step(self) -> None:
        """A step has ended, sampled or not; its number is `run.step`."""

    def detach(self) -> None:
        """The run ends, or this probe is switched off: remove every hook."""
