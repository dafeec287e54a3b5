"""A small 3-D U-Net that predicts the average velocity u(z, r, t) between the times r and t."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Blocks as they are logged, each with its prefix of parameter names.
BLOCKS = {
    "conv_in": "conv_in",
    **{f"down_block_{number}": f"down_blocks.{number}" for number in range(4)},
    "middle_block": "middle_block",
    **{f"up_block_{number}": f"up_blocks.{number}" for number in range(4)},
    "out": "out",
    "r_embed": "r_embed",
    "time_embed": "time_embed",
}


class Embedding(nn.Module):
    """A time from 0 to 1 as a vector: sines and cosines of eight frequencies, and a small network behind them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(-2, 6), persistent=False)
        self.net = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        """Vectors of shape (N, width) for times of shape (N,)."""
        angle = time[:, None] * self.frequencies
        return self.net(torch.cat((angle.sin(), angle.cos()), 1))


class Block(nn.Module):
    """Normalise, shift by the times, convolve; added to what came in."""

    def __init__(self, inputs: int, outputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, inputs)
        self.shift = nn.Linear(width, inputs)
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
        self.skip = nn.Conv3d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """Shape (N, outputs, ...) for (N, inputs, ...); halved in space where the stride is 2."""
        hidden = self.norm(x) + self.shift(times)[:, :, None, None, None]
        return self.skip(x) + self.conv(nn.functional.silu(hidden))


class UNet(nn.Module):
    """Latents of 8 x 8 x 8 down to 2 x 2 x 2 and up again, with skips between."""

    def __init__(self, channels: int = 4, width: int = 8) -> None:
        super().__init__()
        wide, embedded = 2 * width, 4 * width
        self.time_embed = Embedding(embedded)
        self.r_embed = Embedding(embedded)
        self.conv_in = nn.Conv3d(channels, width, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                Block(width, width, embedded),
                Block(width, wide, embedded, stride=2),
                Block(wide, wide, embedded),
                Block(wide, wide, embedded, stride=2),
            ]
        )
        self.middle_block = Block(wide, wide, embedded)
        self.up_blocks = nn.ModuleList(
            [
                Block(wide + wide, wide, embedded),
                Block(wide + wide, wide, embedded),
                Block(wide + wide, width, embedded),
                Block(width + width, width, embedded),
            ]
        )
        self.out = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv3d(width, channels, 3, padding=1))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """The average velocity, of the shape of z (N, C, D, H, W), for times r <= t of shape (N,)."""
        times = self.time_embed(t) + self.r_embed(r)
        z = self.conv_in(z)
        skips: list[Tensor] = []
        for block in self.down_blocks:
            z = block(z, times)
            skips.append(z)
        z = self.middle_block(z, times)
        for block in self.up_blocks:
            skip = skips.pop()
            if z.shape != skip.shape and z.shape[-1] != skip.shape[-1]:
                z = nn.functional.interpolate(z, size=skip.shape[2:])
            z = block(torch.cat((z, skip), 1), times)
        return self.out(z)
