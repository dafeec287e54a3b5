"""What a model is given: mean, spread and largest value of its first argument of floats, and a number to know it by.

The fingerprint is a sum over at most 4096 elements, evenly spread, each with a weight of its own: equal batches have
equal fingerprints, and different ones hardly ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from sidestep.blocks import local
from sidestep.probes.protocol import Probe
from sidestep.probes.sample import stride_of

TAGS: Final = ("train/input/mean", "train/input/std", "train/input/absmax", "train/input/fingerprint")

_ELEMENTS: Final = 4096


class InputProbe(Probe):
    """The input of the first forward pass of a step."""

    name: ClassVar[str] = "inputs"
    cost: ClassVar[int] = 2
    tags: ClassVar[tuple[str, ...]] = TAGS
    hooks_forward: ClassVar[bool] = True

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._remove: Callable[[], None] | None = None
        self._values: Tensor | None = None

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Hang a hook on the model."""
        self.forget()
        model = self.watched.model
        self._remove = model.register_forward_pre_hook(self.hook(self._listen), with_kwargs=True).remove

    def report(self, step: int) -> None:
        """Record what it has seen."""
        values = self._values
        self.forget()
        if values is not None:
            self.run.record(TAGS, values, step=step)

    def forget(self) -> None:
        """Take the hook away."""
        if self._remove is not None:
            self._remove()
        self._remove = self._values = None

    def detach(self) -> None:
        """Take the hook away."""
        self.forget()

    def _listen(self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if self._values is not None or not module.training or not torch.is_grad_enabled():
            return
        given = (entry for entry in (*arguments, *named.values()) if isinstance(entry, Tensor))
        floats = next((entry for entry in given if entry.is_floating_point() and entry.numel()), None)
        if floats is not None:
            with torch.no_grad():
                self._values = measure(local(floats))


def measure(batch: Tensor) -> Tensor:
    """Numbers of a batch, in the order of `TAGS`: float32 of shape (4,)."""
    flat = batch.reshape(-1)
    deviation, mean = torch.std_mean(flat.float(), correction=0)
    least, largest = torch.aminmax(flat)
    some = flat[:: stride_of(len(flat), _ELEMENTS)].float()
    # Multiples of the golden ratio, modulo 1, are spread evenly and never repeat.
    weights = torch.arange(1, len(some) + 1, device=flat.device, dtype=torch.float64).mul_(0.6180339887498949).frac_()
    return torch.stack((mean, deviation, torch.maximum(-least, largest).float(), some @ weights.float()))
