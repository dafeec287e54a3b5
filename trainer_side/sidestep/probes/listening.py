"""What probes share that listen to one call of the model: the first one of a sampled step that trains.

Two hooks hang on the model while a sample is open. Between them the probe may listen to more, and whatever ends the
call, an exception among it, ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sidestep.probes.norms import home_of
from sidestep.probes.protocol import Probe


class FirstCall(Probe):
    """Derive from it and say what is done when the model is called, and when it has returned.

    What it finds it hands to `keep`; it is recorded together when the step has ended.
    """

    cost: ClassVar[int] = 2
    hooks_forward: ClassVar[bool] = True

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._removers: list[Callable[[], None]] = []
        self._is_inside = self._is_over = False
        self._found: list[tuple[tuple[str, ...], Tensor]] = []
        self._tags: tuple[str, ...] = ()

    def called(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """The model is called."""

    def returned(self, output: Any) -> None:
        """It has returned; None where it raised."""

    def keep(self, tags: tuple[str, ...], values: Tensor) -> None:
        """Have numbers recorded with this step: as many as tags, in one tensor."""
        self._found.append((tags, values))

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Hang hooks on the model."""
        self.forget()
        model = self.watched.model
        before = model.register_forward_pre_hook(self.hook(self._before), with_kwargs=True)
        after = model.register_forward_hook(self.hook(self._after), always_call=True)
        self._removers = [before.remove, after.remove]

    def report(self, step: int) -> None:
        """Record what was kept."""
        found = self._found
        self.forget()
        if not found:
            return
        tags = tuple(tag for names, _ in found for tag in names)
        if tags != self._tags:
            self._tags = tags  # the same tuple each time
        home = home_of(values for _, values in found)
        parts = [values.to(home, torch.float32, non_blocking=True).reshape(-1) for _, values in found]
        self.run.record(self._tags, torch.cat(parts), step=step)

    def forget(self) -> None:
        """Take the hooks away."""
        for remove in self._removers:
            remove()
        self._removers, self._found = [], []
        self._is_inside = self._is_over = False

    def detach(self) -> None:
        """Take the hooks away."""
        self.forget()

    def _before(self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if self._is_over or self._is_inside or not module.training or not torch.is_grad_enabled():
            return
        self._is_inside = True
        with torch.no_grad():
            self.called(arguments, named)

    def _after(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        if self._is_inside:
            self._is_inside, self._is_over = False, True
            with torch.no_grad():
                self.returned(output)
