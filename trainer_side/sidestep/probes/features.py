"""Outputs of chosen modules as features: rows of them are shipped, and the collector says whether they collapse.

In the model's first call of a sampled step the first output of each module is taken, at most 256 rows of it
(`Run.features`), as the tensor `train/features/<module>_features`. A row is what stands at one place: the last
dimension of an output with up to three, else the second (channels of images). On a device the rows of all modules come
home in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sidestep.blocks import local
from sidestep.errors import UsageError
from sidestep.features import sampled
from sidestep.probes.listening import FirstCall
from sidestep.probes.protocol import Watched


class FeatureProbe(FirstCall):
    """Outputs of modules, as rows of features.

    Args:
        modules: names of modules of the model, as `named_modules` has them.
        every: when it samples.
    """

    name: ClassVar[str] = "features"
    of_each_part: ClassVar[bool] = True
    every: int | str | None = 100

    def __init__(self, *, modules: Sequence[str] = (), every: int | str | None = None) -> None:
        super().__init__(every=every)
        if not modules or isinstance(modules, str):
            raise UsageError("features takes modules=, a list of names of modules")
        self._modules = tuple(modules)
        self._hanging: list[Callable[[], None]] = []
        self._rows: dict[str, Tensor] = {}

    def attach(self, watched: Watched) -> None:
        """Find the modules.

        Raises:
            UsageError: the model has no such module.
        """
        super().attach(watched)
        known = dict(watched.inner.named_modules())
        missing = [name for name in self._modules if name not in known]
        if missing:
            raise UsageError(f"the model has no module {missing[0]!r}; it has: {', '.join(filter(None, known))[:500]}")

    def called(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Hang hooks on the modules."""
        known = dict(self.watched.inner.named_modules())
        for name in self._modules:
            if name not in self._rows:
                self._hanging.append(known[name].register_forward_hook(self.hook(self._listener(name))).remove)

    def returned(self, output: Any) -> None:  # noqa: ARG002
        """Take them away."""
        hanging, self._hanging = self._hanging, []
        for remove in hanging:
            remove()

    def report(self, step: int) -> None:
        """Ship what they have seen."""
        found = self._rows
        self.forget()
        near = {name: rows for name, rows in found.items() if rows.device.type == "cpu"}
        self._ship(near, step)
        far: dict[torch.device, dict[str, Tensor]] = {}
        for name, rows in found.items():
            if name not in near:
                far.setdefault(rows.device, {})[name] = rows
        for group in far.values():
            self._bring_home(group, step)

    def forget(self) -> None:
        """Take every hook away, and drop what they have seen."""
        super().forget()
        self.returned(None)
        self._rows = {}

    def _listener(self, name: str) -> Callable[..., None]:
        def listen(_module: nn.Module, _arguments: Any, output: Any) -> None:
            tensor = None if name in self._rows else first_tensor(output)
            if tensor is not None:
                with torch.no_grad():
                    self._rows[name] = sampled(as_rows(local(tensor)))

        return listen

    def _ship(self, found: Mapping[str, Tensor], step: int) -> None:
        for name, rows in found.items():
            self.run.features(f"train/features/{name}", rows, step=step)

    def _bring_home(self, found: Mapping[str, Tensor], step: int) -> None:
        shapes = {name: rows.shape for name, rows in found.items()}

        def deliver(host: Tensor) -> None:
            parts = host.split([shape.numel() for shape in shapes.values()])
            rows = (part.view(shape) for part, shape in zip(parts, shapes.values(), strict=True))
            self._ship(dict(zip(shapes, rows, strict=True)), step)

        self.run.receive(torch.cat([rows.float().reshape(-1) for rows in found.values()]), deliver)


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of floats in what a module put out, where that is a tensor, a sequence or a mapping of them."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    for each in output if isinstance(output, tuple | list) else (output,):
        if isinstance(each, Tensor) and each.is_floating_point() and each.ndim > 1 and each.numel():
            return each
    return None


def as_rows(output: Tensor) -> Tensor:
    """An output with its features last."""
    return output.movedim(1, -1) if output.ndim > 3 else output
