"""Whose parameters an optimizer steps: optimizers and modules that are alive, found once, at the first step.

Goes through the objects that the garbage collector knows, by their type alone: attributes of objects of others are
not touched.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Owner(NamedTuple):
    """A module that parameters were found in, and what the script calls it."""

    name: str
    module: nn.Module


class Together(nn.Module):
    """Several modules under one, so that they have one tree of names.

    Args:
        owners: the modules.
    """

    def __init__(self, owners: Sequence[Owner]) -> None:
        super().__init__()
        for owner in owners:
            name = owner.name.replace(".", "_") or "model"
            while hasattr(self, name):
                name += "_"
            self.add_module(name, owner.module)


class Loose(nn.Module):
    """Parameters that no living module has.

    Args:
        parameters: of an optimizer.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        entries = [entry for entry in parameters if isinstance(entry, nn.Parameter)]
        self.parameter = nn.ParameterList(entries)


def find_optimizers(stepping: Optimizer) -> list[Optimizer]:
    """All optimizers that step parameters of their own; the one that steps first counts the steps."""
    found = [stepping]
    taken = {id(parameter) for parameter in parameters_of(stepping)}
    for other in alive(Optimizer):
        own = {id(parameter) for parameter in parameters_of(other)} if _is_whole(other) else set[int]()
        # Another one of the same parameters was made and left behind, or takes turns: it is not a second part.
        if other is not stepping and own and not own & taken:
            found.append(other)
            taken |= own
    return found


def find_owners(optimizers: Sequence[Optimizer]) -> list[Owner]:
    """The outermost modules that own the optimizers' parameters, as few as it takes."""
    wanted = {id(parameter) for optimizer in optimizers for parameter in parameters_of(optimizer)}
    owners: list[Owner] = []
    candidates = [(root, {id(entry) for entry in root.parameters()}) for root in _outermost()]
    names = _main_names()
    while wanted:
        # The one that has most of them; among equals the one with the least besides, then one that has a name.
        best = max(
            candidates, key=lambda pair: (len(pair[1] & wanted), -len(pair[1]), id(pair[0]) in names), default=None
        )
        if best is None or not best[1] & wanted:
            break
        owners.append(Owner(names.get(id(best[0]), type(best[0]).__name__.lower()), best[0]))
        wanted -= best[1]
    return owners


def as_model(owners: Sequence[Owner], optimizers: Sequence[Optimizer]) -> nn.Module:
    """One module that has all of them."""
    if not owners:
        return Loose([parameter for optimizer in optimizers for parameter in parameters_of(optimizer)])
    return owners[0].module if len(owners) == 1 else Together(owners)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of all its groups."""
    return [entry for group in optimizer.param_groups for entry in group["params"]]


def has_gradient(optimizer: Optimizer) -> bool:
    """Whether any of its parameters has a gradient: if not, a step is none."""
    return any(entry.grad is not None for entry in parameters_of(optimizer))


def _outermost() -> list[nn.Module]:
    modules = [module for module in alive(nn.Module) if "_modules" in module.__dict__]
    inner = {id(child) for module in modules for child in module.__dict__["_modules"].values()}
    return [
        module
        for module in modules
        if id(module) not in inner and not isinstance(module, torch.jit.ScriptFunction | Together | Loose)
    ]


def alive(kind: type[Any]) -> list[Any]:
    """All objects of a type."""
    # By type(): isinstance() asks an object for its __class__, which lazy objects answer by coming into being.
    return [entry for entry in gc.get_objects() if issubclass(type(entry), kind)]


def _is_whole(optimizer: Optimizer) -> bool:
    return isinstance(optimizer.__dict__.get("param_groups"), list)


def _main_names() -> dict[int, str]:
    main = sys.modules.get("__main__")
    return {id(value): name for name, value in vars(main).items() if not name.startswith("_")} if main else {}
