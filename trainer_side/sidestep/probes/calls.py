"""Hooks on modules: one that counts a model's calls and stays, and those that probes hang up for a sampled step."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.tracing import is_in_backward, is_plain


class Calls:
    """A forward pre-hook that counts.

    A copy or a pickle of the model carries a hook that does nothing, so that models can be copied and saved as if
    they were not watched, and read where sidestep is not installed.

    Attributes:
        samples: first dimensions of the model's first tensor argument, added up while it trains.
        passes: forward passes while it trains: micro-batches, where gradients are accumulated.
        validations: how often it was called in eval mode after it had trained.
        at_validation: what is told of each of them, as it begins.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.passes = 0
        self.validations = 0
        self.at_validation: Callable[[], None] | None = None
        self._has_trained = False
        self._is_paused = False
        self._to_repeat = 0

    @contextmanager
    def paused(self) -> Generator[None]:
        """Count nothing for as long as it lasts."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Count a call; none that is compiled: a count would make it compile anew."""
        if torch.compiler.is_compiling() or self._is_paused or not is_plain():
            return
        if not module.training:
            if self._has_trained:
                self._has_trained = False
                self.validations += 1
                if self.at_validation is not None:
                    self.at_validation()
            return
        if not torch.is_grad_enabled():
            return
        if self._is_repeated():
            return
        self._has_trained = True
        self.passes += 1
        for argument in (*arguments, *named.values()):
            if isinstance(argument, Tensor) and argument.ndim:
                self.samples += argument.shape[0]
                return

    def _is_repeated(self) -> bool:
        # Checkpointing calls the model again while it goes backward; of its older kind the first call had no gradients.
        if not is_in_backward():
            self._to_repeat += 1
            return False
        self._to_repeat -= 1
        if self._to_repeat >= 0:
            return True
        self._to_repeat = 0
        return False

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return silent()


class Hook:
    """A hook that changes nothing and raises nothing; in a copy or a pickle of its module it does nothing.

    Args:
        call: what to do with the hook's arguments.
        fail: what to do with what it raises.
    """

    def __init__(self, call: Callable[..., object], fail: Callable[[Exception], None]) -> None:
        self._call = call
        self._fail = fail

    def __call__(self, *arguments: Any) -> None:
        """Pass the call on; not one that is compiled or traced, nor one in a graph that is captured."""
        if torch.compiler.is_compiling() or not is_plain():
            return
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return
        try:
            self._call(*arguments)
        except Exception as error:  # noqa: BLE001 - it would end the training
            self._fail(error)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return silent()


def silent() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What stands in a copied or pickled model in place of a hook of ours, for `__reduce__`.

    It takes anything, does nothing, returns None, and is Python's own: a pickle can be read where sidestep is not.
    """
    return getattr, (nullcontext(), "__exit__")
