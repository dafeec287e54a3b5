"""What probes share that listen to one call of the model: the first one of a sampled step that trains.

Two hooks hang on the model while a sample is open. Between them the probe may hang more, on modules inside. Nothing
hangs there in a validation, for which torch has shorter ways that it does not take past a hook. A call that raised is
seen to have ended by the next one, or with the step: models are compiled anew for a hook that is told of it.
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
        self._found: dict[tuple[str, ...], Tensor] = {}
        self._tags: tuple[str, ...] = ()

    def called(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """The model is called."""

    def returned(self, output: Any) -> None:
        """It has returned; None where it raised, or its step ended first."""

    def keep(self, tags: tuple[str, ...], values: Tensor) -> None:
        """Have numbers recorded with this step: as many as tags, in one tensor; the last for the same tags."""
        self._found[tags] = values

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Hang hooks on the model."""
        self.forget()
        for part in callable_parts(self.watched.model):
            before = part.register_forward_pre_hook(self.hook(self._before), with_kwargs=True)
            after = part.register_forward_hook(self.hook(self._after))
            self._removers += [before.remove, after.remove]

    def report(self, step: int) -> None:
        """Record what was kept."""
        found = self._found
        self.forget()
        if not found:
            return
        tags = tuple(tag for names in found for tag in names)
        if tags != self._tags:
            self._tags = tags  # the same tuple each time
        home = home_of(found.values())
        parts = [values.to(home, torch.float32, non_blocking=True).reshape(-1) for values in found.values()]
        self.run.record(self._tags, torch.cat(parts), step=step)

    def forget(self) -> None:
        """Take the hooks away."""
        for remove in self._removers:
            remove()
        self._removers, self._found = [], {}
        self._inside, self._over = None, []

    def detach(self) -> None:
        """Take the hooks away."""
        self.forget()

    def _before(self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if self._inside is module:
            self._end(None)  # it raised
        if self._inside is not None or not module.training or not torch.is_grad_enabled():
            return
        if module in self._over or (self._over and not self.of_each_part):
            return
        self._inside = module
        with torch.no_grad():
            self.called(arguments, named)

    def _after(self, module: nn.Module, _arguments: Any, output: Any) -> None:
        if self._inside is module:
            self._over.append(module)
            self._end(output)

    def _end(self, output: Any) -> None:
        self._inside = None
        with torch.no_grad():
            self.returned(output)


def callable_parts(model: nn.Module) -> list[nn.Module]:
    """The model, or the modules under it where it has no `forward`."""
    if type(model).forward is not nn.Module.forward or "forward" in vars(model):
        return [model]
    return [part for child in model.children() for part in callable_parts(child)]
