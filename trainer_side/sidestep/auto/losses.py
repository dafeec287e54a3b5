"""The loss: the scalar that `backward()` is called on.

What several calls between two steps of an optimizer were called on is added up, as their gradients are: the loss
that the step has followed. So a script that divides by its accumulation steps gives the mean of its microbatches,
and one that does not gives their sum. What `GradScaler.scale` has scaled counts unscaled. Where several optimizers
step in turn, what came since the last step of any of them belongs to the one that steps next.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor

from sidestep.auto.patching import Faults, argument, wrap
from sidestep.run import Run
from sidestep.series import Series
from sidestep.tracing import is_in_backward, is_plain

TAG: Final = "train/loss_total"


class Losses:
    """Adds up losses between steps.

    Args:
        faults: guards what is done here.
        is_on: whether capture is.
    """

    def __init__(self, faults: Faults, is_on: Callable[[], bool]) -> None:
        self._faults = faults
        self._is_on = is_on
        self._near = 0.0
        self._far: Tensor | None = None
        self._count = 0
        self._in_closure = False
        self._closure_is_seen = False
        self._unscaled: tuple[weakref.ref[Tensor], Tensor] | None = None
        self._series: dict[str, Series] = {}

    def install(self) -> None:
        """See `backward`: `Tensor.backward` calls the function, so that one wrapper sees both."""
        wrap(torch.autograd, "backward", self._around_backward)
        wrap(torch.amp.GradScaler, "scale", self._around_scale)

    @property
    def is_waiting(self) -> bool:
        """Whether there is a loss that no step has followed yet."""
        return self._count > 0

    def begin_step(self, *, has_closure: bool) -> None:
        """A step begins; of the losses that a closure gives within it, the first counts."""
        self._in_closure = has_closure
        self._closure_is_seen = False

    def end_step(self, run: Run, number: int) -> None:
        """Record what was added up as the loss of the optimizer of a number; that of the first has none."""
        self._in_closure = False
        if not self._count:
            return
        tag = TAG if number == 0 else f"train/loss_{number}"
        series = self._series.get(tag)
        if series is None:
            series = self._series[tag] = Series(run, tag)
        series.add((self._near,) if self._far is None else (self._far + self._near).reshape(1))
        self.drop()

    def drop(self) -> None:
        """Forget what was added up: its gradients are not used."""
        self._near, self._far, self._count = 0.0, None, 0

    def flush(self) -> None:
        """Send what waits on a device on its way."""
        for series in self._series.values():
            series.flush()

    def _around_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling() and self._is_on() and is_plain():
                given = argument(args, kwargs, 1, "grad_tensors")
                if given is None:
                    self._faults.guard(self._note, argument(args, kwargs, 0, "tensors"))
            return original(*args, **kwargs)

        return backward

    def _around_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(*args: Any, **kwargs: Any) -> Any:
            scaled = original(*args, **kwargs)
            if self._is_on():
                self._faults.guard(self._note_scaled, scaled, argument(args, kwargs, 1, "outputs"))
            return scaled

        return scale

    def _note_scaled(self, scaled: Any, loss: Any) -> None:
        if isinstance(scaled, Tensor) and isinstance(loss, Tensor) and scaled is not loss:
            self._unscaled = weakref.ref(scaled), loss.detach()

    def _note(self, tensors: Tensor | Iterable[Tensor] | None) -> None:
        # A backward within a backward is activation checkpointing's, or a gradient penalty's own.
        if tensors is None or is_in_backward():
            return
        if not isinstance(tensors, Tensor | list | tuple):
            return  # an iterator can be read once, and that is torch's
        if self._in_closure and self._closure_is_seen:
            return
        losses = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if any(loss.numel() != 1 or loss.device.type == "meta" for loss in losses):
            return
        for loss in losses:
            self._add(self._plain(loss))
        self._count += 1
        self._closure_is_seen = True

    def _add(self, loss: Tensor) -> None:
        if loss.device.type == "cpu":
            self._near += loss.item()
        else:  # a copy, for what a CUDA graph of `torch.compile` gives is written over by its next call
            value = loss.reshape(()).to(torch.float32, copy=True)
            self._far = value if self._far is None else self._far + value.to(self._far.device, non_blocking=True)

    def _plain(self, loss: Tensor) -> Tensor:
        unscaled, self._unscaled = self._unscaled, None
        return loss.detach() if unscaled is None or unscaled[0]() is not loss else unscaled[1]
