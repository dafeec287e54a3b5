"""A small residual network, and a plain one that is initialised far too small."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it


class Block(nn.Module):
    """Two convolutions beside a shortcut.

    Args:
        channels: of what comes in.
        wider: of what goes out.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.shortcut = nn.Conv2d(channels, wider, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features, shape (N, channels, H, W) to (N, wider, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Names the class of an image.

    Args:
        channels: of an image.
        classes: how many.
        stride: of the first convolution; 1 for images of 8 x 8, 2 for 32 x 32.
    """

    def __init__(self, channels: int, classes: int, stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, stride, 1)
        self.blocks = nn.ModuleList([Block(16, 32, 2), Block(32, 64, 2)])
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, C, H, W) to (N, classes)."""
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def tiny_weights(channels: int, classes: int) -> nn.Sequential:
    """A plain network without normalisation whose weights begin near zero: no gradient arrives anywhere."""
    layers: list[nn.Module] = []
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.ReLU()]
        channels = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes, bias=False))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=3e-4)
    return net
