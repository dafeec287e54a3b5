"""What modules put out: size, spread, outliers, zeros, dead units, saturation. Hooks hang on them in sampled steps.

Looked at are modules without children of the kinds that make or shape activations, at most `modules` of them, chosen
evenly from first to last; of each its first output in the model's first call of a step. In a model
that is compiled nothing is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from sidestep.blocks import local
from sidestep.probes.listening import FirstCall
from sidestep.probes.norms import gathered
from sidestep.probes.sample import stride_of, strided

TAGS: Final = (
    "train/activations/<module>/rms",
    "train/activations/<module>/absmax",
    "train/activations/<module>/std",
    "train/activations/<module>/kurtosis",
    "train/activations/<module>/massive_ratio",
    "train/activations/<module>/zero_share",
    "train/activations/<module>/dead_share",
    "train/activations/<module>/saturated_share",
)

_RECTIFIERS: Final = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardswish)
_SQUASHERS: Final = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign)
_OTHERS: Final = (
    *(nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.PReLU, nn.Mish, nn.Softplus),
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d),
)
_KINDS: Final = (*_RECTIFIERS, *_SQUASHERS, *_OTHERS)
#: An output is saturated within this share of its range from an end of it.
_EDGE: Final = 0.01
#: Numbers of an output that its median is taken of.
_SAMPLE: Final = 4096


class ActivationProbe(FirstCall):
    """Outputs of modules.

    Args:
        every: when it samples.
        modules: at most so many are looked at.
    """

    name: ClassVar[str] = "activations"
    tags: ClassVar[tuple[str, ...]] = TAGS
    of_each_part: ClassVar[bool] = True
    every: int | str | None = 500

    def __init__(self, *, every: int | str | None = None, modules: int = 64) -> None:
        super().__init__(every=every)
        self._most = modules
        self._hanging: list[Callable[[], None]] = []
        self._seen: set[str] = set()

    def called(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Hang hooks on modules."""
        for name, module in chosen(self.watched.inner, self._most):
            if name not in self._seen:
                self._hanging.append(module.register_forward_hook(self.hook(self._listener(name))).remove)

    def returned(self, output: Any) -> None:  # noqa: ARG002
        """Take them away."""
        hanging, self._hanging = self._hanging, []
        for remove in hanging:
            remove()

    def forget(self) -> None:
        """Take every hook away."""
        super().forget()
        self.returned(None)
        self._seen = set()

    def _listener(self, name: str) -> Callable[..., None]:
        def listen(module: nn.Module, _arguments: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) and output else output
            if name not in self._seen and isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                self._seen.add(name)
                with torch.no_grad():
                    numbers = measure(module, local(output))
                    tags = tuple(f"train/activations/{name}/{what}" for what in numbers)
                    self.keep(tags, gathered(list(numbers.values())))

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
    """Numbers of an output by the last part of their tag, each a tensor of no dimension. No copy on a device.

    A unit is an index of the last dimension of an output with up to three, else of the second; it is dead where it
    is zero for the whole batch. Kurtosis is E[x⁴] / E[x²]², about zero, and 3 of normal numbers around it; the massive
    ratio max |x| / median |x| (Sun et al. 2024). Dead units are those of modules that put out exact zeros, of which
    there is no massive ratio; saturation is that of modules whose range has an end.
    """
    size = output.numel()
    wide = torch.promote_types(output.dtype, torch.float32)
    rms = torch.linalg.vector_norm(output, dtype=wide) / size**0.5
    least, largest = torch.aminmax(output)
    absmax = torch.maximum(-least, largest)
    found = {
        "rms": rms,
        "absmax": absmax,
        "std": (rms.square() - output.mean(dtype=wide).square()).clamp(min=0).sqrt(),
        "kurtosis": torch.where(rms > 0, _fourth_moment(output, wide) / rms**4, 0.0),
        "zero_share": 1 - output.count_nonzero() / size,
    }
    if not isinstance(module, _RECTIFIERS):
        median = strided(output, stride_of(size, _SAMPLE)).abs().median()
        found["massive_ratio"] = torch.where(median > 0, absmax / median, 0.0)
    else:
        found["dead_share"] = _dead_share(output)
    if isinstance(module, _SQUASHERS):
        found["saturated_share"] = _saturated_share(module, output)
    return found


def _fourth_moment(output: Tensor, wide: torch.dtype) -> Tensor:
    if output.device.type == "cpu":  # there raising to the fourth power takes 28 times as long as squaring a copy
        return output.to(wide).square().square().mean()
    return torch.linalg.vector_norm(output, 4, dtype=wide) ** 4 / output.numel()


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
    if isinstance(module, nn.ReLU6):  # its lower end is where it is off, not where it is saturated
        return (output > high - edge).float().mean()
    return ((output < low + edge) | (output > high - edge)).float().mean()
