"""Latents as an encoder of volumes would give them: synthesised, with structure in space and over channels."""

from __future__ import annotations

import torch
from torch import Tensor

CHANNELS = 4
SIZE = 8
#: How the four channels mix three hidden fields; rows are channels.
MIXING = torch.tensor([[1.0, 0.2, 0.0], [0.6, -0.8, 0.1], [0.0, 0.5, 0.9], [-0.4, 0.3, 0.8]])
#: Mean and standard deviation of each channel before it is normalised, measured on 20,000 latents.
MEAN = torch.tensor([0.1513, -0.0126, 0.1760, 0.0878])
STD = torch.tensor([0.2372, 0.2029, 0.2495, 0.2031])


def latents(count: int, seed: int) -> Tensor:
    """Latents of shape (count, 4, 8, 8, 8): each hidden field is a Gaussian blob at a random place, of random width and
    height; channels mix the fields and add fine noise. Each channel has about mean 0 and standard deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, SIZE)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))  # (3, D, H, W)
    centre = 0.6 * (2 * torch.rand(count, 3, 3, generator=generator) - 1)
    width = 0.35 + 0.25 * torch.rand(count, 3, generator=generator)
    height = 1.0 + 0.5 * torch.randn(count, 3, generator=generator)
    square = (grid - centre[..., None, None, None]).square().sum(2)  # (count, 3, D, H, W)
    fields = height[..., None, None, None] * torch.exp(-square / (2 * width.square()[..., None, None, None]))
    mixed = torch.einsum("cf,nfdhw->ncdhw", MIXING, fields)
    mixed = mixed + 0.05 * torch.randn(mixed.shape, generator=generator)
    return (mixed - MEAN[:, None, None, None]) / STD[:, None, None, None]
