"""A fixed sample of coordinates of tensors, which stands for all of them: its memory does not grow with the model.

At most `SAMPLE` coordinates of a tensor are taken: all of a small one, else every k-th, k coprime to the number of
elements, so that the sample passes through all rows and columns. The same coordinates are taken each time. Where
there are more tensors than `TOTAL / SAMPLE` on a device, fewer of each are taken: one copy of the sample is `TOTAL`
numbers at most.

Of N_p elements of tensor p a sample has n_p. What is summed over elements is estimated by N_p / n_p times the sum over
the sample, which is exact where n_p = N_p; `factors` are the roots √(N_p / n_p), for sums of squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, islice
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sidestep.blocks import local, seen
from sidestep.probes.norms import AT_ONCE, Norms, Placed, foreach_norm

#: Coordinates of a tensor that are looked at.
SAMPLE: Final = 1024
#: Coordinates of all tensors on a device: 1 MB in float32.
TOTAL: Final = 1 << 18


class Rows(NamedTuple):
    """The numbers of a sample, those of one tensor behind those of another."""

    whole: Tensor


class Coordinates:
    """Which coordinates of some tensors are looked at.

    Args:
        placed: parameters on one device, their blocks rising; none is empty.
        exact: look at all of them. A copy is then as large as the parameters are in float32.
        shares: what the norms of some of them count for, where that is not 1.

    Attributes:
        parameters: the parameters.
        blocks: their blocks.
        sizes: their numbers of elements, here.
        counts: how many of them are looked at.
        shares: what the norm of each counts for in that over all ranks (`sidestep.probes.sharding`).
        factors: roots of what a coordinate counts for.
    """

    def __init__(
        self, placed: Sequence[Placed], *, exact: bool = False, shares: Mapping[Tensor, float] | None = None
    ) -> None:
        self.parameters = [parameter for parameter, _ in placed]
        self.blocks = [block for _, block in placed]
        self.sizes = [local(parameter).numel() for parameter in self.parameters]
        limit = max(self.sizes) if exact else max(1, min(SAMPLE, TOTAL // len(placed)))
        self._strides = [stride_of(size, limit) for size in self.sizes]
        self.counts = [-(-size // stride) for size, stride in zip(self.sizes, self._strides, strict=True)]
        self._starts = [0, *accumulate(self.counts)]
        self.shares = [1.0 if shares is None else shares.get(parameter, 1.0) for parameter in self.parameters]
        sizes = zip(self.shares, self.sizes, self.counts, strict=True)
        self.factors = [share * math.sqrt(size / count) for share, size, count in sizes]
        double = any(parameter.dtype in (torch.float64, torch.complex128) for parameter in self.parameters)
        self._dtype = torch.float64 if double else torch.float32
        self._device = local(self.parameters[0]).device
        self._blocks, self._block_counts = _added_up(self.blocks, self.counts)

    def rows(self) -> Rows:
        """Memory for a sample."""
        return Rows(torch.empty(self._starts[-1], dtype=self._dtype, device=self._device))

    @torch.no_grad()
    def read(self, into: Rows) -> None:
        """Copy the sample of the parameters."""
        # Views are made anew each time: a script may have given a parameter other storage, or want the old one freed.
        entries = zip(self.parameters, self._strides, strict=True)
        self._copy((strided(seen(entry), stride) for entry, stride in entries), into.whole)

    @torch.no_grad()
    def read_gradients(self, into: Rows) -> list[int]:
        """Copy the sample of their gradients; of those without a dense one it is zero.

        Returns:
            Numbers of the parameters that have none.
        """
        return self.read_tensors(into, [parameter.grad for parameter in self.parameters])

    @torch.no_grad()
    def read_tensors(self, into: Rows, tensors: Sequence[Tensor | None]) -> list[int]:
        """Copy the sample of tensors shaped as the parameters are, one for each; of a missing one it is zero.

        Returns:
            Numbers of the parameters whose tensor is missing, sparse or elsewhere.
        """
        absent: list[int] = []
        self._copy(self._views(into, tensors, absent), into.whole)
        return absent

    def read_one(self, number: int, tensor: Tensor) -> Tensor:
        """The sample of a tensor shaped as one parameter is; a view wherever it can be."""
        return strided(seen(tensor), self._strides[number])

    def part(self, whole: Tensor, number: int) -> Tensor:
        """What of a tensor as long as a sample belongs to one parameter."""
        return whole.narrow(0, self._starts[number], self.counts[number])

    def norms(self, rows: Rows) -> Norms:
        """Estimated L2 norms of what a sample was taken of, one a block."""
        whole = rows.whole if self._roots is None else rows.whole * self._roots
        return Norms(self._blocks, torch.stack(foreach_norm(whole.split(self._block_counts))))

    def weights(self) -> Tensor:
        """What each number of a sample counts for in a sum: N_p / n_p."""
        return self._spread([factor**2 for factor in self.factors])

    def spread(self, numbers: Tensor) -> Tensor:
        """One number a parameter, repeated for each of its coordinates; on the sample's device, never waited for."""
        return numbers.to(self._device, self._dtype, non_blocking=True)[self._owners]

    def add_up(self, values: Tensor, blocks: int) -> Tensor:
        """Sums over the coordinates of each block: of shape (k, coordinates) to (k, blocks)."""
        return values.new_zeros(len(values), blocks).index_add_(1, self._block_numbers, values)

    @cached_property
    def _owners(self) -> Tensor:
        return self._repeated(torch.arange(len(self.counts)))

    @cached_property
    def _block_numbers(self) -> Tensor:
        return self._repeated(torch.tensor(self.blocks))

    def _views(self, into: Rows, tensors: Sequence[Tensor | None], absent: list[int]) -> Iterator[Tensor]:
        for number, (tensor, parameter, stride) in enumerate(zip(tensors, self.parameters, self._strides, strict=True)):
            if tensor is None or tensor.layout != torch.strided or tensor.device != parameter.device:
                absent.append(number)
                yield into.whole.new_zeros(self.counts[number])
            else:
                yield strided(seen(tensor), stride)

    def _copy(self, views: Iterator[Tensor], whole: Tensor) -> None:
        # One operation for many tensors, on a device few kernels whatever their strides, where copying each would
        # launch one a tensor. It would be slow where types differ.
        for first in range(0, len(self.parameters), AT_ONCE):
            some = list(islice(views, AT_ONCE))
            row = whole[self._starts[first] : self._starts[first + len(some)]]
            if some[0].dtype == row.dtype:
                torch.cat(some, out=row)
            else:
                row.copy_(torch.cat(some))

    @cached_property
    def _roots(self) -> Tensor | None:
        # Of each number of a sample; None where every element is in it, as in small networks.
        return None if all(factor == 1.0 for factor in self.factors) else self._spread(self.factors)

    def _spread(self, numbers: Sequence[float]) -> Tensor:
        return self._repeated(torch.tensor(numbers, dtype=self._dtype))

    def _repeated(self, numbers: Tensor) -> Tensor:
        return numbers.repeat_interleave(torch.tensor(self.counts)).to(self._device, non_blocking=True)


def coordinates(
    placed: Sequence[Placed],
    *,
    trained: bool = True,
    exact: bool = False,
    shares: Mapping[Tensor, float] | None = None,
) -> list[Coordinates]:
    """Coordinates of all parameters that have elements, one object a device.

    Args:
        placed: parameters, their blocks rising.
        trained: leave out those that need no gradient.
        exact: look at all of their elements.
        shares: what the norms of some of them count for, where that is not 1.
    """
    devices: dict[torch.device, list[Placed]] = {}
    for entry in placed:
        here = local(entry.parameter)
        if (entry.parameter.requires_grad or not trained) and here.numel():
            devices.setdefault(here.device, []).append(entry)
    return [Coordinates(entries, exact=exact, shares=shares) for entries in devices.values()]


def stride_of(size: int, limit: int = SAMPLE) -> int:
    """Every how many elements one is taken: at most `limit` of them, coprime to the size."""
    stride = -(-size // limit)
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride


def strided(tensor: Tensor, stride: int) -> Tensor:
    """Every `stride`-th element; a view wherever memory has no holes, whatever the order of dimensions."""
    if tensor.is_contiguous():
        if stride == 1 and tensor.ndim == 1:
            return tensor  # a view costs 0.6 us, and most small parameters are vectors
        return tensor.as_strided((-(-tensor.numel() // stride),), (stride,))
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    if span == tensor.numel():
        return tensor.as_strided((-(-span // stride),), (stride,))
    return tensor.reshape(-1)[::stride]


def _added_up(blocks: Sequence[int], counts: Sequence[int]) -> tuple[list[int], list[int]]:
    # The blocks that there are, and how many numbers each has.
    sums: dict[int, int] = {}
    for block, count in zip(blocks, counts, strict=True):
        sums[block] = sums.get(block, 0) + count
    return list(sums), list(sums.values())
