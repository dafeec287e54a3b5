"""Handwritten digits on the CPU: a small convolutional network, followed by sidestep.

    python examples/digits.py --epochs 10

Trains for well under a minute. What sidestep needs are the lines that mention it: `watch` follows the optimizer by
itself (learning rate, gradient norms, updates, throughput), `run.log` records what only this script knows.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it
from torch.utils.data import DataLoader, TensorDataset, random_split

import sidestep


class DigitNet(nn.Module):
    """Two convolutional stages and a linear head: 8x8 images to ten classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stages = nn.ModuleList([stage(1, width), stage(width, 2 * width)])
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(2 * width * 2 * 2, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (batch, 10) for images of shape (batch, 1, 8, 8)."""
        for part in self.stages:
            images = part(images)
        return self.head(images)


def stage(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, normalisation, activation; halves height and width."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
    )


def load(seed: int, batch_size: int) -> tuple[DataLoader[tuple[Tensor, ...]], TensorDataset]:
    """Batches to train on, and 360 of the 1,797 images to validate on; pixels standardised."""
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8)
    data = TensorDataset((images - images.mean()) / images.std(), labels)
    generator = torch.Generator().manual_seed(seed)
    train, val = random_split(data, [len(data) - 360, 360], generator)
    return DataLoader(train, batch_size, shuffle=True, generator=generator), TensorDataset(*data[val.indices])


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, with the model in evaluation mode for as long as it takes."""
    model.eval()
    logits = model(images)
    model.train()
    return logits


def grid(images: Tensor, columns: int = 8) -> Tensor:
    """At most 16 images side by side as one of shape (height, width), from 0 to 1, enlarged four times."""
    tiles = F.pad(images[:16, 0], (1, 1, 1, 1), value=images.min().item())
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, -len(tiles) % columns), value=images.min().item())
    picture = tiles.unflatten(0, (-1, columns)).permute(0, 2, 1, 3).reshape(-1, columns * tiles.shape[-1])
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    return picture.repeat_interleave(4, 0).repeat_interleave(4, 1)


def checkpoint_size_mb(model: nn.Module) -> float:
    """Save the weights, and say how large the file is."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "digits.pt"
        torch.save(model.state_dict(), path)
        return path.stat().st_size / 1e6


def main() -> None:
    """Train, validate after each epoch, and show what was predicted wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    batches, val = load(args.seed, args.batch_size)
    model = DigitNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(batches))

    run = sidestep.watch(model, optimizer, every=5, project="digits", config=vars(args))
    run.text("notes/data", f"sklearn digits: {len(batches.dataset)} images to train on, {len(val)} to validate on")

    for epoch in run.epoch(range(1, args.epochs + 1)):
        for images, labels in batches:
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            sidestep.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            nats, acc = loss.item(), (logits.argmax(1) == labels).float().mean().item()
            run.log({"loss_total": nats, "loss_nats": nats, "loss_bits": nats / math.log(2), "acc": acc})

        images, labels = val.tensors
        logits = predict(model, images)
        predicted = logits.argmax(1)
        wrong = predicted != labels
        val_loss, val_acc = F.cross_entropy(logits, labels).item(), 1 - wrong.float().mean().item()
        run.log({"loss_total": val_loss, "acc": val_acc}, split="val", epoch=epoch)
        run.tensor("confusion", torch.bincount(10 * labels + predicted, minlength=100).reshape(10, 10), split="val")
        if wrong.any():
            run.image("misclassified", grid(images[wrong]), split="val")
        if epoch % 5 == 0:
            run.histogram("weights/head", model.head[-1].weight)
            size_mb = checkpoint_size_mb(model)
            run.mark("checkpoint", size_mb=size_mb)
            run.log({"checkpoint_size_mb": size_mb}, split=None, epoch=epoch)
        print(f"epoch {epoch:2d}  loss {nats:.4f}  val loss {val_loss:.4f}  val acc {val_acc:.4f}")

    print(run.finish())


if __name__ == "__main__":
    main()
