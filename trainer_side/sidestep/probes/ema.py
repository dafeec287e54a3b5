"""How far the moving average of the weights is from the weights.

‖θ_ema - θ‖ / ‖θ‖ and ‖θ_ema‖ / ‖θ‖ are estimated from a sample of coordinates (`sidestep.probes.sample`), the same of
both. Where the average tells its decay d, half of what it knows is older than ln 2 / (1 - d) updates.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, nn

from sidestep.blocks import local, named_parameters, unwrapped
from sidestep.errors import UsageError
from sidestep.probes.norms import Norms, Placed, fold
from sidestep.probes.protocol import Probe
from sidestep.probes.sample import coordinates

TAGS: Final = ("ema/param_divergence", "ema/magnitude_ratio")
#: In a sharded model: the norm of this rank's part of the weights, by which the collector puts ranks together.
_WEIGHTS: Final = ("ema/weight_norm",)
#: The decay as it is now, and the half-life that follows from it.
_DECAY: Final = ("ema/momentum", "ema/half_life_steps")

#: As averages of diffusers, timm and torch_ema, and of ema_pytorch, name it; the first is what they use at present.
_DECAY_ATTRIBUTES: Final = ("cur_decay_value", "decay", "beta")
_ATTRIBUTES: Final = ("module", "ema_model", "shadow", "shadow_params")


class EmaProbe(Probe):
    """Distance of `watch(ema=...)` from the model: a module, or what holds one or its tensors."""

    name: ClassVar[str] = "ema"
    cost: ClassVar[int] = 2
    tags: ClassVar[tuple[str, ...]] = TAGS + _WEIGHTS + _DECAY
    every: int | str | None = 500

    def report(self, step: int) -> None:
        """Record it, where an average was handed to `watch`."""
        given = self.watched.extras.get("ema")
        if given is None:
            return
        self._report_decay(given, step)
        pairs, sharding = paired(self.watched.inner, given), self.watched.sharding
        shares = sharding.shares([each for pair in pairs for each in pair])
        theirs = coordinates([Placed(average, 0) for _, average in pairs], trained=False, shares=shares)
        ours = coordinates([Placed(parameter, 0) for parameter, _ in pairs], trained=False, shares=shares)
        sides: tuple[list[Norms], ...] = ([], [], [])
        for average, weights in zip(theirs, ours, strict=True):
            averaged, now = average.rows(), weights.rows()
            average.read(averaged)
            weights.read(now)
            sides[1].append(average.norms(averaged))
            sides[2].append(weights.norms(now))
            averaged.whole.sub_(now.whole)
            sides[0].append(average.norms(averaged))
        distance, size, whole = (fold(side)[1] for side in sides)
        tags, values = TAGS, torch.cat((distance, size)) / whole
        if sharding.is_sharded:
            tags, values = TAGS + _WEIGHTS, torch.cat((values, whole))
        self.run.record(tags, values, step=step, reductions=sharding.reductions(tags))

    def _report_decay(self, given: Any, step: int) -> None:
        decay = decay_of(given)
        if decay is not None and 0 <= decay < 1:
            self.run.record(_DECAY, (decay, math.log(2) / (1 - decay)), step=step)


def decay_of(given: Any) -> float | None:
    """The decay of an average, where it can be known without asking a device.

    An object tells it by an attribute. The functions that `torch.optim.swa_utils` makes for its `AveragedModel` keep it
    in their closure; an `AveragedModel` without one averages evenly, and has none.
    """
    for name in _DECAY_ATTRIBUTES:
        value = getattr(given, name, None)
        if isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() == 1:
            value = value.item()
        if isinstance(value, float):
            return value
    for name in ("multi_avg_fn", "avg_fn"):
        function: Any = inspect.unwrap(getattr(given, name, None) or decay_of)
        names = getattr(function, "__code__", decay_of.__code__).co_freevars
        if "decay" in names:
            return float(function.__closure__[names.index("decay")].cell_contents)
    return None


def paired(model: nn.Module, given: Any) -> list[tuple[Tensor, Tensor]]:
    """Parameters of a model, each with its average: by name, or in their order where averages have no names.

    Raises:
        UsageError: there are none, or they lie on another device (comparing them would wait for it).
    """
    named = named_parameters(model)
    averages = _averages(given, [name for name, _ in named])
    pairs = [
        (parameter, averages[name])
        for name, parameter in named
        if name in averages and local(averages[name]).shape == local(parameter).shape and local(parameter).numel()
    ]
    if not pairs:
        raise UsageError(f"{type(given).__name__} holds no averages of this model's parameters")
    if any(local(parameter).device != local(average).device for parameter, average in pairs):
        raise UsageError("the averages lie on another device than the parameters")
    return pairs


def _averages(given: Any, names: list[str]) -> dict[str, Tensor]:
    if not isinstance(given, nn.Module):
        given = next((value for name in _ATTRIBUTES if (value := getattr(given, name, None)) is not None), given)
    if isinstance(given, nn.Module):
        given = unwrapped(given)
        inner = getattr(given, "module", None)  # torch.optim.swa_utils.AveragedModel
        return dict(named_parameters(unwrapped(inner if isinstance(inner, nn.Module) else given)))
    if isinstance(given, Mapping):
        return {
            str(name): value for name, value in cast("Mapping[Any, Any]", given).items() if isinstance(value, Tensor)
        }
    if isinstance(given, Iterable):
        return dict(zip(names, cast("Iterable[Tensor]", given), strict=False))
    return {}
