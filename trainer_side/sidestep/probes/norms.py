"""Norms of tensors, and of blocks from those of their parameters: fused, where they lie, never waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

#: torch, for its fused operations over lists: they have no public names, and torch's own clipping uses them so.
FUSED: Final[Any] = torch

#: Tensors that are gathered in lists at once. Python looks for garbage whenever 700 objects more have been made than
#: freed; with thousands of views at a time that took longer than the measurement.
AT_ONCE: Final = 192

_KIND: Final = attrgetter("device", "dtype")


class Placed(NamedTuple):
    """A parameter and the number of its block."""

    parameter: Tensor
    block: int


class Norms(NamedTuple):
    """One norm a parameter: `values` has shape (len(blocks),), `blocks` rises."""

    blocks: Sequence[int]
    values: Tensor


def fold(parts: Sequence[Norms], order: float = 2.0) -> tuple[tuple[int, ...], Tensor]:
    """Norms of blocks from norms of their parameters: the root of the sum of their squares; of order 1 their sum.

    Returns:
        Numbers of the blocks, rising, and their norms, float32 of shape (blocks,). No copy to the CPU is made.
    """
    home = home_of(part.values for part in parts)
    pieces: dict[int, list[Tensor]] = {}
    for part in parts:
        sizes = [(block, len(list(same))) for block, same in groupby(part.blocks)]
        split = part.values.to(home, torch.float32, non_blocking=True).split([size for _, size in sizes])
        for (block, _), piece in zip(sizes, split, strict=True):
            pieces.setdefault(block, []).append(piece)
    blocks = tuple(sorted(pieces))
    whole = [pieces[block][0] if len(pieces[block]) == 1 else torch.cat(pieces[block]) for block in blocks]
    return blocks, torch.stack(foreach_norm(whole, order))


def home_of(tensors: Iterable[Tensor]) -> torch.device:
    """Where numbers of several devices are put together: never on the CPU if one is elsewhere, for it would wait."""
    return next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), torch.device("cpu"))


def gathered(tensors: Sequence[Tensor]) -> Tensor:
    """Single numbers of several devices in one float32 tensor of shape (len(tensors),)."""
    home = home_of(tensors)
    return torch.stack([tensor.to(home, torch.float32, non_blocking=True).reshape(()) for tensor in tensors])


def foreach_norm(tensors: Sequence[Tensor], order: float = 2.0) -> tuple[Tensor, ...]:
    """L2 norm (or of another order) of each of some tensors of one type on one device; of half precision as float32."""
    if tensors[0].dtype in (torch.float16, torch.bfloat16):
        return tuple(FUSED._foreach_norm(list(tensors), order, dtype=torch.float32))  # noqa: SLF001
    return tuple(FUSED._foreach_norm(list(tensors), order))  # noqa: SLF001


def by_kind(tensors: Iterable[tuple[Tensor, int]]) -> Iterator[list[tuple[Tensor, int]]]:
    """Tensors and their blocks by device and type, at most `AT_ONCE` together: what one fused operation can take."""
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, int]]] = {}
    for entry in tensors:
        kind = _KIND(entry[0])
        group = groups.get(kind)
        if group is None:
            group = groups[kind] = []
        group.append(entry)
        if len(group) == AT_ONCE:
            yield groups.pop(kind)
            del group  # nobody holds its tensors while others are gathered
    yield from groups.values()
