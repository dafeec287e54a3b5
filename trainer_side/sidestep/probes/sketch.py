"""Hashes of samples, computed where the samples lie, and a sketch of all that were seen: the k smallest hashes.

The hash of a sample x is h = Σ_j w_j bits(x_j) mod 2⁶⁴ over at most `ELEMENTS` of its elements, evenly spread, with odd
weights w_j, finished by the mixer of MurmurHash3. Integer sums wrap around and know no order, so equal samples have
equal hashes on every device and in every batch. Of the hashes of all samples, spread evenly over 2⁶⁴, the k smallest
tell how many distinct ones there are, and two such sketches how many they share (k minimum values: Bar-Yossef et al.
2002; Beyer et al. 2007). Nothing here waits for a device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from sidestep.probes.sample import stride_of

#: Elements of a sample that are looked at.
ELEMENTS: Final = 512
#: Stands for "no hash" in a sketch that is not full.
EMPTY: Final = (1 << 63) - 1

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MIX: Final = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Sketch:
    """The smallest hashes of all samples that were added, without repetition.

    Args:
        size: how many are kept.
        device: where samples lie.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._least = torch.full((size,), EMPTY, dtype=torch.int64, device=device)
        self._buffer = torch.empty_like(self._least)
        self._waiting = 0

    @property
    def device(self) -> torch.device:
        """Where it is kept."""
        return self._least.device

    def add(self, sums: Tensor) -> None:
        """Add samples by what `row_sums` makes of them; they are merged when enough have come together."""
        room = len(self._buffer) - self._waiting
        if len(sums) > room:
            self._merge(sums[room:])  # with what waits
            sums = sums[:room]
        self._buffer[self._waiting : self._waiting + len(sums)].copy_(sums)
        self._waiting += len(sums)

    def least(self) -> Tensor:
        """The smallest hashes, rising, int64 of shape (size,), `EMPTY` behind the last."""
        self._merge()
        return self._least.clone()

    def _merge(self, more: Tensor | None = None) -> None:
        new = self._buffer[: self._waiting]
        if more is not None:
            new = torch.cat((new, more))
        self._waiting = 0
        if not len(new):
            return
        ordered = torch.cat((self._least, mixed(new))).sort().values
        # An equal neighbour makes room: filled up with EMPTY and sorted again, for nothing here may wait for a count.
        ordered[1:].masked_fill_(ordered[1:] == ordered[:-1], EMPTY)
        self._least = ordered.sort().values[: len(self._least)]


def row_sums(samples: Tensor) -> Tensor:
    """Weighted sums of the bits of samples, one a row: int64 of shape (rows,), to be `mixed`.

    Args:
        samples: of shape (rows, ...), of any type; none is without elements.
    """
    rows = samples.reshape(len(samples), -1)
    rows = rows[:, :: stride_of(rows.shape[1], ELEMENTS)]
    bits = rows.view(_INTEGERS[rows.element_size()])
    return torch.mul(bits, _weights(rows.shape[1], rows.device)).sum(1)


def fingerprint(sums: Tensor) -> Tensor:
    """The hash of a batch from those of its samples, which knows their order: its upper and lower 24 bits of 48, as
    float32 of shape (2,), which holds both exactly."""
    whole = mixed((mixed(sums) * _weights(len(sums), sums.device)).sum().reshape(1))
    return torch.cat(((whole >> 40) & 0xFFFFFF, (whole >> 16) & 0xFFFFFF)).float()


def mixed(sums: Tensor) -> Tensor:
    """Each number's bits spread over all 64: MurmurHash3's fmix64 (Appleby 2011)."""
    for factor in _MIX:
        sums = (sums ^ ((sums >> 33) & 0x7FFFFFFF)) * _signed(factor)
    return sums ^ ((sums >> 33) & 0x7FFFFFFF)


@lru_cache(maxsize=64)
def _weights(count: int, device: torch.device) -> Tensor:
    # Odd, so that no bit of an element is lost; from the golden ratio by fmix64, not from torch's random numbers.
    return mixed(torch.arange(1, count + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN)) | 1


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
