"""What is known of a call of an optimizer's step: whether it is a whole one, and whether it makes gradients itself.

torch has `step` call the hooks for each class that defines it: where a subclass's `step` calls `super().step()`, they
are called twice. Touches nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import CodeType
from typing import Any, Final, cast

from torch.optim import Optimizer

#: Of the wrapper that torch makes around `step`, which calls the hooks: the same code for every class.
_WRAPPER: Final[CodeType] = cast("Any", Optimizer.profile_hook_step(lambda *_: None)).__code__


class Nesting:
    """Tells the outermost step of one optimizer from those within it."""

    def __init__(self) -> None:
        self._depth = 0

    def enters(self, optimizer: Optimizer) -> bool:
        """Whether a step that begins is the outermost; called by the hook before it."""
        if self._depth and not _is_nested(optimizer):
            self._depth = 0  # the step before has raised, and never ended
        self._depth += 1
        return self._depth == 1

    def leaves(self, optimizer: Optimizer) -> bool:
        """Whether a step that ends is the outermost; called by the hook after it."""
        if self._depth > 1 and _is_nested(optimizer):
            self._depth -= 1
            return False
        self._depth = 0
        return True


def has_closure(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Whether a step was given a closure: gradients come into being within it.

    Args:
        arguments: of the step, the optimizer first.
        named: likewise, by name.
    """
    return named.get("closure") is not None or (len(arguments) > 1 and arguments[1] is not None)


def _is_nested(optimizer: Optimizer) -> bool:
    """Whether two calls of the optimizer's step are under way; costs microseconds, so asked only where it may be."""
    calls = 0
    frame = inspect.currentframe()
    while frame is not None:
        calls += frame.f_code is _WRAPPER and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return calls > 1
