"""Train a small network to name the class of an image: an ordinary script.

    sidestep run -- python examples/classification/train.py --data shapes32
    sidestep run -- torchrun --nproc-per-node 2 examples/classification/train.py

`--trouble` makes one of the mistakes that people make, and that `sidestep report` names.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from data import Augment, Images, Normalise, digits, shapes32
from model import ResNet, tiny_weights
from torch import Tensor, distributed, nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

TROUBLES = ("early-drop", "plateau", "vanishing", "chance", "clip-before-unscale", "shared-transform")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings of a training; default those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "shapes32"), default="digits")
    parser.add_argument("--samples", type=int, default=6000, help="images of shapes32, a fifth of them for validation")
    parser.add_argument("--num-classes", type=int, choices=(10, 100), default=10, help="of shapes32")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--clip", type=float, default=5.0, help="limit of the gradient's norm")
    parser.add_argument("--amp", action="store_true", help="bfloat16 where torch allows it, with a loss scale")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="file of the checkpoint")
    parser.add_argument("--trouble", choices=TROUBLES, help="make a mistake")
    args = parser.parse_args(arguments)
    if args.trouble == "clip-before-unscale":
        args.amp = True
    if args.trouble == "plateau":
        args.data, args.num_classes = "shapes32", 100
        args.label_smoothing, args.weight_decay, args.lr = 0.3, 0.05, 0.1
    if args.trouble == "vanishing":
        args.weight_decay = 0.0
    return args


def datasets(args: argparse.Namespace) -> tuple[Dataset[tuple[Tensor, int]], Dataset[tuple[Tensor, int]]]:
    """Training and validation data: two objects over one split of the indices, each with its own transform."""
    images, labels = digits() if args.data == "digits" else shapes32(args.samples, args.num_classes, args.seed)
    order = torch.randperm(len(images)).tolist()
    train, val = order[len(order) // 5 :], order[: len(order) // 5]
    if args.trouble == "chance":
        labels[train] = labels[train][torch.randperm(len(train))]
    plain = Normalise(images[train])
    augmented = Images(images, labels, Augment(plain))
    if args.trouble == "shared-transform":
        return Subset(augmented, train), Subset(augmented, val)
    return Subset(augmented, train), Subset(Images(images, labels, plain), val)


def network(args: argparse.Namespace) -> nn.Module:
    """The network that fits the data."""
    channels = 1 if args.data == "digits" else 3
    if args.trouble == "vanishing":
        return tiny_weights(channels, args.num_classes)
    net = ResNet(channels, args.num_classes, stride=1 if args.data == "digits" else 2)
    if args.trouble == "plateau":
        net.requires_grad_(False).head.requires_grad_(True)
    return net


def schedule(optimizer: Optimizer, args: argparse.Namespace) -> LRScheduler:
    """The learning rate over epochs."""
    if args.trouble == "early-drop":
        return MultiStepLR(optimizer, milestones=[2], gamma=1e-4)
    return CosineAnnealingLR(optimizer, args.epochs)


def train_epoch(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    args: argparse.Namespace,
) -> float:
    """One pass over the training data; the mean loss of its batches."""
    model.train()
    total = 0.0
    for images, labels in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.amp):
            loss = F.cross_entropy(model(images), labels, label_smoothing=args.label_smoothing)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if args.trouble != "clip-before-unscale":
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        scaler.step(optimizer)
        scaler.update()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def validate(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean loss and accuracy on the validation data."""
    model.eval()
    loss = right = samples = 0.0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item() * len(labels)
        right += (logits.argmax(1) == labels).sum().item()
        samples += len(labels)
    return loss / samples, right / samples


def main() -> None:
    """Train."""
    args = parse()
    torch.manual_seed(args.seed)
    train_data, val_data = datasets(args)
    val_loader = DataLoader(val_data, 256)
    model = network(args)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    sampler = DistributedSampler(train_data, seed=args.seed) if ranks > 1 else None
    train_loader = DataLoader(train_data, args.batch_size, shuffle=sampler is None, sampler=sampler, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
    scheduler = schedule(optimizer, args)
    scaler = torch.amp.GradScaler("cpu", enabled=args.amp)
    for epoch in range(1, args.epochs + 1):
        if sampler is not None:
            sampler.set_epoch(epoch)
        loss = train_epoch(model, train_loader, optimizer, scaler, args)
        val_loss, val_acc = validate(model, val_loader)
        scheduler.step()
        print(f"epoch {epoch:2d}  loss {loss:.4f}  val loss {val_loss:.4f}  val acc {val_acc:.4f}")
        if args.save and (ranks == 1 or distributed.get_rank() == 0):
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, args.save)
    if ranks > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
