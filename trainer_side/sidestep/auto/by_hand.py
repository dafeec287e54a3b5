"""Weights that a script updates itself, without an optimizer: `for p in model.parameters(): p.data.add_(...)`.

Such a script calls `model.zero_grad()` before each backward pass. What lies before that call, or before `model.eval()`,
and after a backward pass is a step: gradients are still there, and weights have been updated.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from sidestep.auto.owners import alive
from sidestep.auto.patching import Faults, wrap

#: Probes that compare what lies before an optimizer's step with what lies after it, or look at its settings.
WITHOUT: Final[tuple[str, ...]] = ("optimizer", "updates", "effectiveness", "moments")
#: How often it is looked for an optimizer, which takes milliseconds.
_LOOKS_MAX: Final = 3


class ByHand(Optimizer):
    """Stands for the loop of a script that updates weights: it steps when the loop has, and does nothing."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let the hooks of a step be called."""


class Updates:
    """Sees where a script without an optimizer ends a step.

    Args:
        faults: guards what is done here.
        is_due: whether there was a backward pass since the last step, and capture is on.
        is_over: whether an optimizer has stepped.
    """

    def __init__(self, faults: Faults, is_due: Callable[[], bool], is_over: Callable[[], bool]) -> None:
        self._faults = faults
        self._is_due = is_due
        self._is_over = is_over
        self._model: nn.Module | None = None
        self._stand_in: ByHand | None = None
        self._looks = 0

    def install(self) -> None:
        """See modules' gradients dropped, and modules evaluated."""
        wrap(nn.Module, "zero_grad", self._around)
        wrap(nn.Module, "eval", self._around)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._is_due():
                self._faults.guard(self._end_step, module, original.__name__)
            return original(module, *args, **kwargs)

        return call

    def _end_step(self, module: nn.Module, call: str) -> None:
        if self._stand_in is None and call == "zero_grad":
            self._look(module)
        if self._stand_in is not None and module is self._model:
            self._stand_in.step()

    def _look(self, module: nn.Module) -> None:
        trained = [entry for entry in module.parameters() if entry.requires_grad]
        is_trained = module.training and any(entry.grad is not None for entry in trained)
        if self._is_over() or not is_trained or self._looks >= _LOOKS_MAX:
            return
        self._looks += 1
        if alive(Optimizer):
            return
        self._model, self._stand_in = module, ByHand(trained, {})
        atexit.register(self._end)  # it is called before the run's own

    def _end(self) -> None:
        if self._stand_in is not None and self._is_due():
            self._faults.guard(self._stand_in.step)
