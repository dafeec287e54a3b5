"""What modules put out: size, zeros, dead units, saturation. Hooks hang on them in sampled steps alone.

Looked at are modules without children of the kinds that make or shape activations, at most `modules` of them, chosen
evenly from first to last; of each its first output of a step. In a model that is compiled nothing is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from sidestep.blocks import local
from sidestep.probes.norms import gathered
from sidestep.probes.protocol import Probe

TAGS: Final = (
    "train/activations/<module>/rms",
    "train/activations/<module>/absmax",
    "train/activations/<module>/zero_share",
    "train/activations/<module>/dead_share",
    "train/activations/<module>/saturated_share",
)

_RECTIFIERS: Final = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardtanh, nn.Hardswish)
_SQUASHERS: Final = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign)
_OTHERS: Final = (
    *(nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.PReLU, nn.Mish, nn.Softplus),
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d),
)
_KINDS: Final = (*_RECTIFIERS, *_SQUASHERS, *_OTHERS)
#: An output is saturated within this share of its range from an end of it.
_EDGE: Final = 0.01


class ActivationProbe(Probe):
    """Outputs of modules.

    Args:
        every: when it samples.
        modules: at most so many are looked at.
    """

    name: ClassVar[str] = "activations"
    cost: ClassVar[int] = 2
    tags: ClassVar[tuple[str, ...]] = TAGS
    hooks_forward: ClassVar[bool] = True
    every: int | str | None = 500

    def __init__(self, *, every: int | str | None = None, modules: int = 64) -> None:
        super().__init__(every=every)
        self._most = modules
        self._removers: list[Callable[[], None]] = []
        self._found: dict[str, dict[str, Tensor]] = {}
        self._tags: tuple[str, ...] = ()

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Hang hooks on modules."""
        self._remove()
        self._found = {}
        for name, module in chosen(self.watched.inner, self._most):
            self._removers.append(module.register_forward_hook(self.hook(self._listener(name))).remove)

    def report(self, step: int) -> None:
        """Record what they have seen."""
        self._remove()
        found, self._found = self._found, {}
        if not found:
            return
        tags = tuple(f"train/activations/{name}/{what}" for name, numbers in found.items() for what in numbers)
        if tags != self._tags:
            self._tags = tags  # the same tuple each time
        self.run.record(
            self._tags, gathered([value for numbers in found.values() for value in numbers.values()]), step=step
        )

    def forget(self) -> None:
        """Take the hooks away."""
        self._remove()
        self._found = {}

    def detach(self) -> None:
        """Take the hooks away."""
        self._remove()

    def _remove(self) -> None:
        for remove in self._removers:
            remove()
        self._removers = []

    def _listener(self, name: str) -> Callable[..., None]:
        def listen(module: nn.Module, _arguments: Any, output: Any) -> None:
            if name in self._found or not torch.is_grad_enabled() or not self.watched.model.training:
                return
            output = output[0] if isinstance(output, tuple) and output else output
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                with torch.no_grad():
                    self._found[name] = measure(module, local(output))

        return listen


def chosen(model: nn.Module, most: int) -> list[tuple[str, nn.Module]]:
    """Modules to look at: at most so many, evenly from first to last; one that is shared once."""
    known: list[tuple[str, nn.Module]] = [
        (name or "model", module) for name, module in model.named_modules() if isinstance(module, _KINDS)
    ]
    if len(known) <= most:
        return known
    return [known[round(number * (len(known) - 1) / max(1, most - 1))] for number in range(most)]


def measure(module: nn.Module, output: Tensor) -> dict[str, Tensor]:
    """Numbers of an output by the last part of their tag, each a tensor of no dimension.

    A unit is an index of the last dimension of an output with up to three, else of the second; it is dead where it
    is zero for the whole batch. Dead units are those of modules that put out exact zeros, saturation that of
    modules whose range has an end.
    """
    size = output.numel()
    norm = torch.linalg.vector_norm(output, dtype=torch.promote_types(output.dtype, torch.float32))
    least, largest = torch.aminmax(output)
    found = {
        "rms": norm / size**0.5,
        "absmax": torch.maximum(-least, largest),
        "zero_share": 1 - output.count_nonzero() / size,
    }
    if isinstance(module, _RECTIFIERS):
        found["dead_share"] = _dead_share(output)
    if isinstance(module, _SQUASHERS):
        found["saturated_share"] = _saturated_share(module, output)
    return found


def _dead_share(output: Tensor) -> Tensor:
    unit = output.ndim - 1 if output.ndim <= 3 else 1
    others = [dimension for dimension in range(output.ndim) if dimension != unit]
    live = output.count_nonzero(others) if others else output.count_nonzero()
    return (live == 0).float().mean()


def _saturated_share(module: nn.Module, output: Tensor) -> Tensor:
    low, high = -1.0, 1.0
    if isinstance(module, nn.Sigmoid | nn.Hardsigmoid):
        low = 0.0
    elif isinstance(module, nn.Hardtanh):
        low, high = module.min_val, module.max_val
    edge = _EDGE * (high - low) / 2
    return ((output < low + edge) | (output > high - edge)).float().mean()
