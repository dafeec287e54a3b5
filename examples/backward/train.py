"""Digits, learned by a network whose every weight moves in whole quanta; sidestep follows what becomes of gradients.

    sidestep run -- python examples/backward/train.py
    sidestep run -- python examples/backward/train.py --lr 0.05 --feedback 0 --every 10     # rounding takes all away
    sidestep run -- torchrun --nproc-per-node 2 examples/backward/train.py

Trains for some ten seconds on a CPU, to 97 % of the validation images.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import torch
from model import MAGNITUDES, PHASES, PolarNet
from optimizer import QuantumDescent
from sklearn.datasets import load_digits
from torch import Tensor, distributed, nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it

import sidestep

#: Parts of a batch, one forward and backward pass each: weights are computed for the first of them.
PARTS = 4
BATCH = 64


def load(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images of 64 standardised pixels with their labels: 1,437 to train on, 360 to validate on."""
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = (images.float() - images.float().mean()) / images.float().std()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, val = order[:-360], order[-360:]
    return (images[train], labels[train]), (images[val], labels[val])


def batches(count: int, generator: torch.Generator, rank: int = 0, ranks: int = 1) -> Iterator[Tensor]:
    """Numbers of the samples of each batch of an epoch, cut into parts; of several ranks each has its share."""
    for batch in torch.randperm(count, generator=generator).split(BATCH * ranks):
        if len(batch) == BATCH * ranks:
            yield batch[rank::ranks].reshape(PARTS, -1)


def discrete(model: PolarNet, lr: float, feedback: float) -> QuantumDescent:
    """The optimizer of a network: each parameter with its grid."""
    quanta = {layer.magnitude: (layer.quanta["magnitude"], 0, MAGNITUDES - 1) for layer in model.layers}
    quanta |= {layer.phase: (layer.quanta["phase"], -PHASES // 2, PHASES // 2 - 1) for layer in model.layers}
    return QuantumDescent(quanta, lr=lr, feedback=feedback)


def backward(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Gradients of a batch of shape (parts, samples, 64), added up over its parts; its loss and accuracy."""
    loss = right = 0.0
    for part, target in zip(images, labels, strict=True):
        logits = model(part)
        mean = F.cross_entropy(logits, target, label_smoothing=0.1)
        (mean / len(images)).backward()
        loss += mean.item() / len(images)
        right += (logits.argmax(1) == target).sum().item()
    return loss, right / labels.numel()


@torch.no_grad()
def validate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and accuracy."""
    model.eval()
    logits = model(images)
    model.train()
    return {
        "loss_total": F.cross_entropy(logits, labels, label_smoothing=0.1).item(),
        "acc": (logits.argmax(1) == labels).float().mean().item(),
    }


def main() -> None:
    """Train, and validate after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.6, help="typical change of a step, in quanta")
    parser.add_argument("--feedback", type=float, default=1.0, help="0 forgets what rounding takes away")
    # A measurement takes half of a step, so one an epoch of 22 steps: at each tenth they took a twentieth of the time.
    parser.add_argument("--every", type=int, default=22, help="steps from one measurement to the next")
    args = parser.parse_args()

    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(args.seed)
    (images, labels), val = load(args.seed)
    inner = PolarNet(args.width)
    optimizer = discrete(inner, args.lr, args.feedback)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.3, args.epochs * (len(images) // (BATCH * ranks)))
    model: nn.Module = inner
    if ranks > 1:
        distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(inner)

    run = sidestep.watch(
        model,
        optimizer,
        every=args.every,
        probes={"kinds": {"phase": "*.phase", "magnitude": "*.magnitude"}},
        profile="backward",
        project="backward",
        config=vars(args),
    )
    shuffle = torch.Generator().manual_seed(args.seed)
    for epoch in run.epoch(range(1, args.epochs + 1)):
        for batch in batches(len(images), shuffle, rank, ranks):
            optimizer.zero_grad()
            loss, acc = backward(model, images[batch], labels[batch])
            optimizer.step()
            schedule.step()
            hit_rate = inner.cache.hit_rate()
            run.log({"loss_total": loss, "acc": acc, "train/backward/cache_hit_rate": hit_rate})
        scores = validate(inner, *val)
        if rank == 0:
            run.log(scores, split="val", epoch=epoch)
            print(
                f"epoch {epoch:2d}  loss {loss:.4f}  val loss {scores['loss_total']:.4f}  val acc {scores['acc']:.4f}"
            )
    print(run.finish())
    if ranks > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
