"""What probes share that listen to one call of the model: the first one of a sampled step that trains.

Two hooks hang on the model while a sample is open. Between them the probe may hang more, on modules inside, and
whatever ends the call, an exception among it, ends that: nothing hangs inside of the model in a validation, for which
torch has shorter ways that it does not take past a hook.
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

    Attributes:
        of_each_part: where the model is none that can be called (several under one name), whether it listens to the
            first call of each part instead of the first call of any.
    """

    of_each_part: ClassVar[bool] = False
    cost: ClassVar[int] = 2
    hooks_forward: ClassVar[bool] = True

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._removers: list[Callable[[], None]] = []
        self._inside: nn.Module | None = None
        self._over: list[nn.Module] = []
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
        for part in callable_parts(self.watched.model):
            before = part.register_forward_pre_hook(self.hook(self._before), with_kwargs=True)
            after = part.register_forward_hook(self.hook(self._after), always_call=True)
            self._removers += [before.remove, after.remove]

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
        self._inside, self._over = None, []

    def detach(self) -> None:
        """Take the hooks away."""
        self.forget()

    def _before(self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if self._inside is not None or not module.training or not torch.is_grad_enabled():
            return
        if module in self._over or (self._over and not self.of_each_part):
            return
        self._inside = module
        with torch.no_grad():
            self.called(arguments, named)

    def _after(self, module: nn.Module, _arguments: Any, output: Any) -> None:
        if self._inside is module:
            self._inside = None
            self._over.append(module)
            with torch.no_grad():
                self.returned(output)


def callable_parts(model: nn.Module) -> list[nn.Module]:
    """The model, or the modules under it where it has no `forward`."""
    if type(model).forward is not nn.Module.forward or "forward" in vars(model):
        return [model]
    return [part for child in model.children() for part in callable_parts(child)]
