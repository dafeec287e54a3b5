"""One training of this process, captured: hooks at torch's import, a run at the first step, what is seen into it.

A script that begins a run of its own before its first step is left to itself: its run knows better what it wants.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import sidestep
from sidestep import start, watching
from sidestep.auto import naming, owners, report
from sidestep.auto.by_hand import WITHOUT, ByHand, Updates
from sidestep.auto.clipping import Clipping
from sidestep.auto.loaders import Loaders, Pass
from sidestep.auto.losses import Losses
from sidestep.auto.patching import FAULTS_MAX, Faults, hide_wrappers
from sidestep.auto.predictions import Predictions
from sidestep.auto.scaling import Scaling
from sidestep.probes.checkpoints import SAVES
from sidestep.probes.registry import Setting
from sidestep.run import Run
from sidestep.steps import Nesting, has_closure

_LATER: Final = "what it trains is not captured; a script that trains several times calls sidestep.watch itself"


class Capture:
    """The capture of a process.

    Args:
        parsed: what the script's argument parsers gave, and will give.

    Attributes:
        is_on: whether anything is looked at.
        run: the run, from the first step on.
        steps: optimizer steps seen, of all optimizers.
    """

    def __init__(self, parsed: Sequence[Any]) -> None:
        self.is_on = True
        self.run: Run | None = None
        self.steps = 0
        self._parsed = parsed
        self._every, self._budget = naming.every()
        self._numbers: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._nesting: weakref.WeakKeyDictionary[Optimizer, Nesting] = weakref.WeakKeyDictionary()
        self._roots: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._is_foreign = False
        faults = self.faults = Faults()
        self._losses = Losses(faults, self._is_on)
        self._loaders = Loaders(faults, self._is_on, self._end_pass)
        self._predictions = Predictions(
            faults, self._is_on, self._is_sampled, self._is_training, lambda: self.steps > 0, self._loaders
        )
        self._clipping = Clipping(faults, self._is_on)
        self._scaling = Scaling(faults, lambda: self.run is not None, lambda: self.steps, self._drop)
        self._updates = Updates(faults, lambda: self.is_on and self._losses.is_waiting, lambda: self.steps > 0)

    def install(self) -> None:
        """See torch's functions, and every optimizer's steps."""
        for part in (
            self._losses, self._loaders, self._predictions, self._clipping, self._scaling, self._updates,
        ):  # fmt: skip
            part.install()
        SAVES.install(stays=True)  # now, so that scripts which import `save` by its name are seen; told by the probe
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)
        os.register_at_fork(after_in_child=self._after_fork)
        hide_wrappers()

    def turn_off(self) -> None:
        """Look at nothing any more."""
        self.is_on = False
        self.run = None
        self._numbers.clear()
        self._roots.clear()

    def _is_on(self) -> bool:
        return self.is_on

    def _is_sampled(self) -> bool:
        return self.run is None or watching.is_sampled(self.run)

    def _is_training(self) -> bool:
        return any(root.training for root in self._roots)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.is_on or not self._nesting.setdefault(optimizer, Nesting()).enters(optimizer):
            return
        if self.faults.count > FAULTS_MAX or (self.run is not None and not self.run.is_live):
            self.turn_off()
            return
        makes_gradients = has_closure(args, kwargs)
        if self.run is None:
            self.faults.guard(self._try_to_begin, optimizer, makes_gradients)
        if self.run is not None:
            self.faults.guard(self._begin_step, self.run, optimizer, makes_gradients)

    def _after_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if not self.is_on or not self._nesting.setdefault(optimizer, Nesting()).leaves(optimizer):
            return
        self.steps += 1
        if self.run is not None:
            self.faults.guard(self._end_step, self.run, optimizer)

    def _try_to_begin(self, optimizer: Optimizer, makes_gradients: bool) -> None:
        if not makes_gradients and not owners.has_gradient(optimizer):
            return  # no step yet: some scripts step once to please a scheduler
        if start.active_run() is not None:
            self.turn_off()
            return
        try:
            self._begin(optimizer)
        except BaseException:
            self.turn_off()
            raise

    def _begin(self, optimizer: Optimizer) -> None:
        optimizers = owners.find_optimizers(optimizer)
        found = owners.find_owners(optimizers)
        model = owners.as_model(found, optimizers)
        named = naming.init_arguments(self._parsed)
        probes: dict[str, Setting] = dict.fromkeys(WITHOUT, False) if isinstance(optimizer, ByHand) else {}
        if self._loaders.last is not None:
            probes["time"] = {"waiting": False}  # the loader tells it
        run = sidestep.watch(model, optimizers, every=self._every, budget=self._budget, probes=probes, **named)
        if run.is_off:
            self.turn_off()
            return
        self.faults.complain = run.complain
        self.run = run
        self._numbers.update((one, number) for number, one in enumerate(optimizers))
        self._roots.update(owner.module for owner in found)
        run.at_finish(self._end)
        self._clipping.begin()
        lines = [
            ("run", report.run_line(run)),
            ("model", report.model_line(found, optimizers)),
            ("optimizer", report.optimizer_line(optimizers)),
            ("data", report.loader_line(self._loaders.last)),
            ("loss", self._predictions.function or "what backward() is called on"),
            ("config", report.config_line(list(named.get("config", ())))),
            ("captured", report.captured_line(self._every, self._budget)),
        ]
        self.faults.guard(report.say, run, lines)

    def _begin_step(self, run: Run, optimizer: Optimizer, makes_gradients: bool) -> None:
        # First the validation, which belongs to the epoch that has ended.
        self._end_validation(run)
        number = self._numbers.get(optimizer)
        self._is_foreign = number is None
        if number is None:
            run.complain("capture", "optimizer", f"{type(optimizer).__name__} was made after the first step: {_LATER}")
        elif number == 0:
            self._loaders.begin_step(run)
        self._losses.begin_step(has_closure=makes_gradients)

    def _end_step(self, run: Run, optimizer: Optimizer) -> None:
        number = self._numbers.get(optimizer)
        if number is None:
            self._losses.drop()
        else:
            self._losses.end_step(run, number)
        if number == 0:
            self._predictions.end_step(run)
        else:
            self._predictions.drop()

    def _drop(self) -> None:
        self._losses.drop()
        self._predictions.drop()

    def _end_pass(self, _: Pass) -> None:
        if self.run is not None:
            self._end_validation(self.run)

    def _end_validation(self, run: Run) -> None:
        if self._is_foreign:
            self._predictions.drop_validation()
        else:
            self._predictions.end_validation(run)

    def _end(self) -> None:
        run = self.run
        if run is None:
            return
        self._end_validation(run)
        self._loaders.flush()
        self._losses.flush()
        self.turn_off()

    def _after_fork(self) -> None:
        if self.run is not None:  # the run is the parent's
            self.turn_off()


def install(parsed: Sequence[Any]) -> None:
    """Capture the training of this process, when and if it comes.

    Args:
        parsed: a list into which the namespaces of the script's argument parsers come.
    """
    Capture(parsed).install()
