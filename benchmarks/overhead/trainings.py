"""Networks that train: small ones whose step takes about so long, and one of 100 million parameters.

Imports nothing of sidestep's: what importing it costs is part of the memory that it adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Training:
    """A network that can take a step.

    Attributes:
        loss: of the last step.
        before_step, after_step: called next to the optimizer's step, for those who log by hand.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    targets: Tensor
    loss: Tensor | None = None
    before_step: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None

    def step(self) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.inputs.is_cuda):
            output = self.model(self.inputs)
            loss = nn.functional.cross_entropy(output.flatten(0, -2), self.targets.flatten())
        loss.backward()
        self.loss = loss.detach()
        if self.before_step is not None:
            self.before_step()
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step()
        self.optimizer.zero_grad()


Make = Callable[[str, int], Training]


def cnn(device: str, batch: int) -> Training:
    layers: list[nn.Module] = []
    for inner, outer in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)).to(device)
    inputs, targets = torch.randn(batch, 3, 32, 32, device=device), torch.randint(0, 10, (batch,), device=device)
    return Training(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), inputs, targets)


class Transformer(nn.Module):
    """A language model without positions."""

    def __init__(self, width: int, depth: int, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, max(2, width // 64), 4 * width, 0.0, "gelu", batch_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, words)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def transformer(device: str, batch: int) -> Training:
    """0.9 million parameters on a CPU, 110 million on a GPU."""
    return _language(device, batch, *((768, 12, 16384, 512) if device == "cuda" else (128, 4, 512, 64)))


def small(device: str, batch: int) -> Training:
    """0.2 million parameters in 53 tensors: a step of milliseconds."""
    return _language(device, batch, 64, 4, 128, 16)


def large(device: str, batch: int) -> Training:
    """110 million parameters, short texts."""
    return _language(device, batch, 768, 12, 16384, 16)


def _language(  # noqa: PLR0917 - sizes
    device: str, batch: int, width: int, depth: int, words: int, length: int
) -> Training:
    model = Transformer(width, depth, words).to(device)
    inputs = torch.randint(0, words, (batch, length), device=device)
    return Training(model, torch.optim.AdamW(model.parameters(), lr=1e-4), inputs, inputs.roll(1, 1))


def of_length(make: Make, device: str, seconds: float) -> int:
    """Batch size whose step takes about so long."""
    batch = 1
    while batch < 4096:
        training = make(device, batch)
        lengths = sorted(_one_step(training, device) for _ in range(8))
        if lengths[2] >= seconds * 0.85:
            break
        batch = max(batch + 1, min(2 * batch, int(batch * seconds / lengths[2])))
    return batch


def _one_step(training: Training, device: str) -> float:
    begin = time.perf_counter()
    training.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
