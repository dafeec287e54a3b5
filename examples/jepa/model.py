"""A small vision transformer of three levels, a predictor for each of them, and the teacher that averages it."""

from __future__ import annotations

import copy
import math

import torch
from data import GRIDS, PATCH
from torch import Tensor, nn

WIDTH = 64
LEVELS = len(GRIDS)


class Block(nn.Module):
    """Attention and a network for each patch, both beside a residual connection."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, patches, width), as it came."""
        y = self.norm_1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class Encoder(nn.Module):
    """Features of patches at three levels; between two levels four neighbours become one patch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.hidden = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.places = nn.Parameter(0.02 * torch.randn(GRIDS[0] ** 2, WIDTH))
        self.levels = nn.ModuleList([Block() for _ in GRIDS])
        self.merges = nn.ModuleList([nn.Linear(4 * WIDTH, WIDTH) for _ in GRIDS[1:]])

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """Features of each level, shape (batch, patches of the level, width).

        Args:
            images: shape (batch, 3, 64, 64).
            hidden: True where a patch of the finest level is not shown, shape (batch, 64).
        """
        x = self.patches(images).flatten(2).transpose(1, 2)
        if hidden is not None:
            x = torch.where(hidden[:, :, None], self.hidden, x)
        x = x + self.places
        found = []
        for k, level in enumerate(self.levels):
            if k:
                x = self.merges[k - 1](four_as_one(x, GRIDS[k - 1]))
            x = level(x)
            found.append(x)
        return found


def four_as_one(x: Tensor, grid: int) -> Tensor:
    """Neighbours in squares of four side by side: (batch, grid², width) to (batch, grid² / 4, 4 · width)."""
    squares = x.unflatten(1, (grid // 2, 2, grid // 2, 2))
    return squares.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


class Student(nn.Module):
    """The encoder that learns, and what predicts the teacher's features from its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.predictors = nn.ModuleList(
            [nn.Sequential(Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in GRIDS]
        )

    def forward(self, images: Tensor, hidden: Tensor) -> list[Tensor]:
        """Predicted features of every patch at each level, from images whose `hidden` patches are not shown."""
        seen = self.encoder(images, hidden)
        return [predict(features) for predict, features in zip(self.predictors, seen, strict=True)]


class Teacher:
    """A moving average of the student's encoder, θ ← d θ + (1 - d) θ_student, whose d rises from 0.996 to 1.

    Attributes:
        module: the average, under the names that the student's parameters have.
        decay: d as it is now.
    """

    target = 1.0

    def __init__(self, student: Student, steps: int, decay: float = 0.996) -> None:
        self.module = nn.ModuleDict({"encoder": copy.deepcopy(student.encoder)}).requires_grad_(False)
        self.decay = self._first = decay
        self._steps = steps

    @torch.no_grad()
    def follow(self, student: Student, step: int) -> None:
        """Take a share of the student's weights in; the share falls along half a cosine."""
        falling = (math.cos(math.pi * step / self._steps) + 1) / 2
        self.decay = self.target - (self.target - self._first) * falling
        for mine, theirs in zip(self.module.parameters(), student.encoder.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """What is to be predicted: features of whole images."""
        return self.module["encoder"](images)


class Itself:
    """A student that is its own teacher: no average, and the gradient reaches what is to be predicted. It collapses."""

    target = 1.0
    decay = 0.0

    def __init__(self, student: Student) -> None:
        self.module = student

    def follow(self, student: Student, step: int) -> None:
        """Nothing to do."""

    def features(self, images: Tensor) -> list[Tensor]:
        """What is to be predicted, and moves towards the prediction."""
        return self.module.encoder(images)
