"""`torch.nn.utils.clip_grad_norm_`: the norm that it gives is told to the clipping probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from types import GeneratorType
from typing import Any, Final

import torch
from torch import Tensor

from sidestep import clip
from sidestep.auto.patching import Faults, argument, wrap
from sidestep.probes.clipping import Told

_EARLY_MAX: Final = 64


class Clipping:
    """Sees calls of clipping.

    Args:
        faults: guards what is done here.
        is_on: whether capture is.
    """

    def __init__(self, faults: Faults, is_on: Callable[[], bool]) -> None:
        self._faults = faults
        self._is_on = is_on
        self._early: dict[int, Told] = {}

    def install(self) -> None:
        """See `clip_grad_norm_` under both of its names."""
        wrap(torch.nn.utils, "clip_grad_norm_", self._around)
        torch.nn.utils.clip_grad.clip_grad_norm_ = torch.nn.utils.clip_grad_norm_

    def begin(self) -> None:
        """Tell the probe, which listens from now on, of the calls before the first step."""
        early, self._early = self._early, {}
        for subject, told in early.items():
            self._tell(subject, told)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
            if not self._is_on():
                return original(*args, **kwargs)
            if args:
                first, same = _first(args[0])
                args = (same, *args[1:])
            else:
                first, kwargs["parameters"] = _first(kwargs.get("parameters"))
            norm = original(*args, **kwargs)
            if first is not None:
                self._faults.guard(self._note, first, norm, args, kwargs)
            return norm

        return clip_grad_norm_

    def _note(self, first: Tensor, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        limit = argument(args, kwargs, 1, "max_norm")
        kind = argument(args, kwargs, 2, "norm_type", 2.0)
        told = clip.told_of(norm, limit, kind) if isinstance(norm, Tensor) else None
        if told is not None:
            self._tell(id(first), told)

    def _tell(self, subject: int, told: Told) -> None:
        if not clip.tell(subject, told) and len(self._early) < _EARLY_MAX:
            self._early[subject] = told


def _first(parameters: Any) -> tuple[Tensor | None, Any]:
    """The first of the parameters, and all of them; a generator stays one, for torch asks whether it is."""
    if isinstance(parameters, Tensor):
        return parameters, parameters
    if isinstance(parameters, GeneratorType):
        generator: Iterator[Tensor] = parameters
        first = list(_take_one(generator))
        return (first[0] if first else None), (entry for entry in chain(first, generator))
    if isinstance(parameters, Iterable) and hasattr(parameters, "__getitem__"):
        return next(iter(parameters), None), parameters
    return None, parameters


def _take_one(entries: Iterator[Tensor]) -> Iterator[Tensor]:
    for entry in entries:
        yield entry
        return
