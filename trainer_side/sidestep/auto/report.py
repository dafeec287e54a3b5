"""What is said when capture begins: one block on stderr that lists everything that was found."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.optim import Optimizer

from sidestep.auto.by_hand import ByHand
from sidestep.auto.loaders import Pass
from sidestep.auto.owners import Owner, parameters_of
from sidestep.run import Run


def say(run: Run, lines: Sequence[tuple[str, str]]) -> None:
    """Print the block, on the first rank alone."""
    if run.rank == 0:
        text = "".join(f"  {name:<10} {value}\n" for name, value in lines if value)
        sys.stderr.write(f"sidestep: this script is captured (`sidestep run --no-auto` leaves it alone)\n{text}")


def run_line(run: Run) -> str:
    """Project and id."""
    return f"{run.project}/{run.id}"


def model_line(owners: Sequence[Owner], optimizers: Sequence[Optimizer]) -> str:
    """Classes of the modules and what is trained of them."""
    trained = sum(entry.numel() for optimizer in optimizers for entry in parameters_of(optimizer))
    if not owners:
        return f"none found that has the optimizer's {trained:,} parameters; they are taken as they are"
    return f"{', '.join(type(owner.module).__name__ for owner in owners)}, {trained:,} parameters trained"


def optimizer_line(optimizers: Sequence[Optimizer]) -> str:
    """Classes and learning rates."""
    if isinstance(optimizers[0], ByHand):
        return "none: the script updates weights itself; its steps are seen where it calls zero_grad()"
    return ", ".join(f"{type(one).__name__} (lr {_rate(one)})" for one in optimizers)


def loader_line(last: Pass | None) -> str:
    """The loader that is trained on."""
    if last is None:
        return "none seen: no epochs"
    loader = last.loader
    name, samples = last.kind
    size = "" if samples is None else f", {samples:,} samples"
    workers = f", {loader.num_workers} workers" if loader is not None and loader.num_workers else ""
    batch = f" in batches of {loader.batch_size}" if loader is not None and loader.batch_size else ""
    return f"DataLoader over {name}{size}{batch}{workers}"


def config_line(config: Sequence[str]) -> str:
    """Number of settings that the script's arguments, or its own configuration, gave."""
    return f"{len(config)} settings of the script" if config else ""


def captured_line(every: int, budget: float | None) -> str:
    """Everything that is captured from now on."""
    seldom = f" (more seldom where that takes over {budget:.0%} of the time)" if budget is not None else ""
    return (
        f"loss at each step; rates, gradients, updates and accuracy at each {every}th{seldom}; "
        "validation, epochs, clipping, loss scale, checkpoints as they come"
    )


def _rate(optimizer: Optimizer) -> str:
    rates = [group.get("lr") for group in optimizer.param_groups]
    return ", ".join(dict.fromkeys(f"{rate:g}" if isinstance(rate, int | float) else "tensor" for rate in rates))
