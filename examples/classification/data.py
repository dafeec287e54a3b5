"""Two data sets that need no download: handwritten digits, and shapes on photographs in the form of CIFAR."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.utils.data import Dataset

SHAPES = 10
COLOURS = 10


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        transform: makes a float image of a uint8 one.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


class Normalise:
    """Brings pixels to mean 0 and standard deviation 1.

    Args:
        images: uint8, shape (N, C, H, W), that mean and deviation of each channel are taken of.
    """

    def __init__(self, images: Tensor) -> None:
        pixels = images.float() / 255
        self.mean = pixels.mean((0, 2, 3)).reshape(-1, 1, 1)
        self.std = pixels.std((0, 2, 3)).reshape(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """The image as floats."""
        return (image.float() / 255 - self.mean) / self.std


class Augment:
    """Shifts an image by up to an eighth of its size, then goes on to another transform.

    Args:
        then: what is done with the shifted image.
    """

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        self.then = then

    def __call__(self, image: Tensor) -> Tensor:
        """The image, shifted by chance."""
        most = image.shape[-1] // 8
        down, right = torch.randint(-most, most + 1, (2,)).tolist()
        return self.then(image.roll((down, right), (1, 2)))


def digits() -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits of 8 x 8 pixels (UCI, in scikit-learn)."""
    data = load_digits()
    images = torch.from_numpy(data.images * (255 / 16)).to(torch.uint8)
    return images.unsqueeze(1), torch.from_numpy(data.target).long()


def shapes32(samples: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Shapes of 32 x 32 x 3 on cuttings of scikit-learn's two photographs.

    A class is a shape (10), or a shape and a colour (100). Place, size and angle vary, and pixels are noisy.

    Args:
        samples: how many.
        classes: 10 or 100.
        seed: of what varies.

    Returns:
        Images, uint8 of shape (samples, 3, 32, 32), and labels, int64 of shape (samples,).
    """
    random = np.random.default_rng(seed)
    label = random.permutation(np.arange(samples) % classes)
    shape, colour = (label, random.integers(COLOURS, size=samples)) if classes == SHAPES else divmod(label, COLOURS)
    image = _backgrounds(samples, random)
    inside = _masks(shape, random)[..., None]
    image = np.where(inside, 0.15 * image + 0.85 * _palette()[colour][:, None, None, :], image)
    image += random.normal(0, 0.06, image.shape)
    pixels = (image.clip(0, 1) * 255).astype(np.uint8).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(label.astype(np.int64))


def _backgrounds(samples: int, random: np.random.Generator) -> np.ndarray:
    photographs = np.stack(load_sample_images().images) / 255
    _, height, width, _ = photographs.shape
    which = random.integers(len(photographs), size=samples)
    top, left = random.integers(height - 32, size=samples), random.integers(width - 32, size=samples)
    rows, columns = top[:, None] + np.arange(32), left[:, None] + np.arange(32)
    return photographs[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def _palette() -> np.ndarray:
    hue = np.arange(COLOURS)[:, None] / COLOURS + np.array([0.0, 1 / 3, 2 / 3])
    return 0.5 + 0.5 * np.cos(2 * np.pi * hue)


def _masks(shape: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Which pixels are inside, shape (N, 32, 32): each in coordinates of its own, turned, moved and scaled."""
    count = len(shape)
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), -1)
    centre = random.uniform(12, 20, (count, 1, 1, 2))
    angle, size = random.uniform(-0.4, 0.4, count), random.uniform(8, 12, count)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(count, 2, 2)
    place = np.einsum("nij,nhwj->nhwi", turn, (grid - centre)) / size[:, None, None, None]
    y, x = place[..., 0], place[..., 1]
    radius = np.hypot(x, y)
    box = np.maximum(abs(x), abs(y))
    drawn = (
        radius < 1,
        (radius < 1) & (radius > 0.55),
        box < 0.85,
        (box < 0.9) & (box > 0.5),
        (y < 0.7) & (abs(x) < (y + 0.9) / 1.6),
        (box < 1) & ((abs(x) < 0.3) | (abs(y) < 0.3)),
        (box < 1) & (abs(abs(x) - abs(y)) < 0.35),
        (box < 1) & (np.floor(y * 2.5) % 2 == 0),
        (radius < 1) & (x > 0),
        (abs(x) + abs(y) < 1.1) & (radius > 0.35),
    )
    return np.choose(shape[:, None, None], drawn)
