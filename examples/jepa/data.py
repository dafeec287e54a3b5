"""Crops of scikit-learn's two photographs, and the blocks of them that are hidden."""

from __future__ import annotations

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

SIZE = 64
PATCH = 8
#: Patches of a side, by level: each level has a quarter of the patches of the one below.
GRIDS = (SIZE // PATCH, SIZE // PATCH // 2, SIZE // PATCH // 4)
#: Crops are taken left of it to train on, and right of it to validate on (photographs are 640 pixels wide).
BORDER = 448


def crops(count: int, split: str, seed: int) -> Tensor:
    """Standardised crops of shape (count, 3, 64, 64), at places drawn at random, half of them mirrored."""
    photographs = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    pixels = photographs.permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)
    left, right = (0, BORDER - SIZE) if split == "train" else (BORDER, pixels.shape[3] - SIZE)
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(pixels), (count,), generator=generator).tolist()
    rows = torch.randint(pixels.shape[2] - SIZE + 1, (count,), generator=generator).tolist()
    columns = torch.randint(left, right + 1, (count,), generator=generator).tolist()
    mirrored = (torch.rand(count, generator=generator) < 0.5).tolist()
    taken = [
        pixels[photograph, :, row : row + SIZE, column : column + SIZE].flip(2 if flip else ())
        for photograph, row, column, flip in zip(which, rows, columns, mirrored, strict=True)
    ]
    return torch.stack(taken)


def block_masks(count: int, generator: torch.Generator) -> Tensor:
    """True where a patch of the coarsest level is hidden, shape (count, 2, 2): a block of one or of two patches."""
    row, column, wide, tall = torch.randint(2, (4, count), generator=generator)
    tall = tall * (1 - wide)  # one patch, two beside each other, or two above each other
    rows = (torch.arange(2) == row[:, None]) | tall.bool()[:, None]
    columns = (torch.arange(2) == column[:, None]) | wide.bool()[:, None]
    return rows[:, :, None] & columns[:, None, :]


def at_levels(masks: Tensor) -> list[Tensor]:
    """The same masks for each level, the finest first: shapes (count, 64), (count, 16), (count, 4)."""
    return [
        masks.repeat_interleave(grid // 2, 1).repeat_interleave(grid // 2, 2).flatten(1)  # True hides
        for grid in GRIDS
    ]
