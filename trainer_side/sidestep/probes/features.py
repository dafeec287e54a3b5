"""Outputs of chosen modules as features: rows of them are shipped, and the collector says whether they collapse.

Of a sampled step the first output of each module is taken, at most 256 rows of it (`Run.features`), as the tensor
`train/features/<module>_features`. A row is what stands at one place: the last dimension of an output with up to
three, else the second (channels of images). On a device the rows of all modules come home in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sidestep.blocks import local
from sidestep.errors import UsageError
from sidestep.features import sampled
from sidestep.probes.protocol import Probe, Watched


class FeatureProbe(Probe):
    """Outputs of modules, as rows of features.

    Args:
        modules: names of modules of the model, as `named_modules` has them.
        every: when it samples.
    """

    name: ClassVar[str] = "features"
    cost: ClassVar[int] = 2
    hooks_forward: ClassVar[bool] = True
    every: int | str | None = 100

    def __init__(self, *, modules: Sequence[str] = (), every: int | str | None = None) -> None:
        super().__init__(every=every)
        if not modules or isinstance(modules, str):
            raise UsageError("features takes modules=, a list of names of modules")
        self._modules = tuple(modules)
        self._removers: list[Callable[[], None]] = []
        self._found: dict[str, Tensor] = {}

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

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Hang hooks on the modules."""
        self.forget()
        known = dict(self.watched.inner.named_modules())
        for name in self._modules:
            self._removers.append(known[name].register_forward_hook(self.hook(self._listener(name))).remove)

    def report(self, step: int) -> None:
        """Ship what they have seen."""
        found = self._found
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
        """Take the hooks away, and drop what they have seen."""
        for remove in self._removers:
            remove()
        self._removers = []
        self._found = {}

    def detach(self) -> None:
        """Take the hooks away."""
        self.forget()

    def _listener(self, name: str) -> Callable[..., None]:
        def listen(_module: nn.Module, _arguments: Any, output: Any) -> None:
            if name in self._found or not torch.is_grad_enabled() or not self.watched.model.training:
                return
            tensor = first_tensor(output)
            if tensor is not None:
                with torch.no_grad():
                    self._found[name] = sampled(as_rows(local(tensor)))

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
