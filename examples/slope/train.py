"""How fast a loss falls: a network that guesses the next character of a text, on the CPU.

    python examples/slope/train.py
    sidestep analyze slope --project slope

It records what the profile "slope" speaks of: the loss of every batch in nats (sidestep adds the bits), validations
each quarter of an epoch, curvature each 500 steps, noise each second epoch. `sweep.sh` trains 216 short runs of it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from text import CONTEXT, SYMBOLS, Windows, load
from torch import Tensor, distributed, nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it

import sidestep

QUARTERS = 4
#: Characters whose loss curvature and noise are measured of, always the same.
FIXED = 32


def network(width: int) -> nn.Sequential:
    """The neural language model of Bengio et al. (2003): one hidden layer over the last characters."""
    return nn.Sequential(nn.Linear(CONTEXT * SYMBOLS, width), nn.Tanh(), nn.Linear(width, SYMBOLS))


def batches(windows: Windows, size: int, generator: torch.Generator) -> Iterator[Windows]:
    """All windows once, in a random order; a batch that is left over and smaller is dropped."""
    order = torch.randperm(len(windows.then), generator=generator)
    for at in order[: len(order) // size * size].split(size):
        yield Windows(windows.before[at], windows.then[at])


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy in nats a character: what curvature and noise are measured of."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of the characters that were guessed."""
    return (logits.argmax(1) == targets).float().mean().item()


@torch.no_grad()
def validate(model: nn.Module, windows: Windows) -> dict[str, float]:
    """Loss and accuracy on held-out text."""
    model.eval()
    logits = model(windows.inputs())
    model.train()
    nats = F.cross_entropy(logits, windows.then).item()
    return {"loss_total": nats, "loss_nats": nats, "acc": accuracy(logits, windows.then)}


def save(model: nn.Module) -> None:
    """Write a checkpoint; sidestep sees its size."""
    with TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder) / "slope.pt")


def settings() -> argparse.Namespace:
    """What can be chosen on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--samples", type=int, default=65_536, help="characters of an epoch")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=5, help="epochs")
    parser.add_argument("--curvature-every", type=int, default=500, help="steps")
    parser.add_argument("--curvature-budget", type=float, default=0.01, help="share of the time it may take")
    parser.add_argument("--curvature-backend", choices=("auto", "own", "backpack", "curvlinops"), default="auto")
    return parser.parse_args()


def main() -> None:
    """Train, validate each quarter of an epoch, save every fifth."""
    args = settings()
    torch.manual_seed(args.seed)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    train, val = load(args.samples, held_out=2048, seed=args.seed)
    few = Windows(*(part[:FIXED] for part in val))
    fixed = few.inputs(), few.then
    if ranks > 1:
        distributed.init_process_group("gloo")
        train, val = (Windows(*(part[rank::ranks] for part in whole)) for whole in (train, val))
    plain = network(args.width)
    model = nn.parallel.DistributedDataParallel(plain) if ranks > 1 else plain
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)

    measured = {"loss": loss_of, "batch": fixed}
    run = sidestep.watch(
        model,
        optimizer,
        profile="slope",
        project="slope",
        config=vars(args),
        probes={
            "optimizer": False,  # rate and decay are logged with each batch below
            "curvature": {
                **measured,
                "every": args.curvature_every,
                "budget": args.curvature_budget,
                "backend": args.curvature_backend,
            },
            "noise": {**measured, "parts": 8},
        },
    )
    generator = torch.Generator().manual_seed(args.seed)
    steps = len(train.then) // args.batch_size
    for epoch in run.epoch(range(1, args.epochs + 1)):
        for step, batch in enumerate(batches(train, args.batch_size, generator), 1):
            logits = model(batch.inputs())
            loss = F.cross_entropy(logits, batch.then)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            nats, acc = loss.item(), accuracy(logits, batch.then)
            (group,) = optimizer.param_groups
            run.log({"loss_total": nats, "loss_nats": nats, "acc": acc, "lr": group["lr"], "wd": group["weight_decay"]})
            quarters = QUARTERS * step // steps
            if quarters > QUARTERS * (step - 1) // steps:
                found = validate(model, val)
                run.log(found, split="val", epoch=epoch + (quarters - 1) / QUARTERS)
        if rank == 0 and epoch % args.save_every == 0:
            save(plain)
        print(f"epoch {epoch:2d}  loss {nats:.4f}  acc {acc:.4f}", end="  ")
        print(f"val loss {found['loss_nats']:.4f}  val acc {found['acc']:.4f}")

    print(run.finish())
    if ranks > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
