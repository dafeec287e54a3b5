"""Host time of a step by the number of parameter tensors: is it linear, and how much is it a tensor?

Half of the tensors are vectors of 64 elements, half matrices of 64 x 64, as biases and weights are; 20 make a block.
On a CPU host and device are the same, so what is computed is in it; given beside it is the least that a sampled step
has to compute there: the norms of all gradients, one copy of a sample of the gradients and two of the weights.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from support import Table
from torch import nn

from overhead.trainings import Training
from overhead.turns import watched

COUNTS = (100, 300, 1000, 3000, 10_000)
#: Gradients, updates and what costs nothing by the tensor; no rare probes, which the default would be charged with.
MODES: dict[str, tuple[dict[str, Any], int, float | None]] = {
    "default, 1 step in 50 samples": ({}, 50, 1.0),
    "every step samples": ({"every": 1, "probes": {"activations": 10}}, 10, None),
}


def tensors(device: str, place: tuple[str, Any], plot: Path | None, *, quick: bool) -> Table:
    """Time added to a step, by number of tensors, and the line through it."""
    table = Table(f"host time added to a step, by number of parameter tensors, on {device}")
    found: dict[str, list[float]] = {mode: [] for mode in (*MODES, "least computation of a sample")}
    counts = COUNTS[::2] if quick else COUNTS
    for count in counts:
        optimizer, model = parameters(count, device)
        for mode, (settings, steps, _) in MODES.items():
            found[mode].append(_added(optimizer, model, device, place, settings, steps))
        found["least computation of a sample"].append(least(optimizer, device))
    for mode, seconds in found.items():
        fixed, slope = line(counts, seconds)
        most = MODES[mode][2] if mode in MODES else None
        table.add(f"{mode}: a tensor and step, slope", slope * 1e6, "us", most=most)
        table.say("  besides, whatever their number", f"{fixed * 1e6:.0f} us")
        each = ", ".join(f"{value * 1e6 / count:.2f}" for count, value in zip(counts, seconds, strict=True))
        table.say(f"  us a tensor for {', '.join(map(str, counts))}", each)
    if plot is not None:
        draw(plot, counts, found)
    return table


def parameters(count: int, device: str) -> tuple[torch.optim.Optimizer, nn.Module]:
    """So many parameters with gradients, and their optimizer, which takes no steps worth the name."""
    shapes = ((64,), (64, 64)) * 10
    layers = [nn.ParameterList([torch.randn(shape, device=device) for shape in shapes]) for _ in range(count // 20)]
    model = nn.ModuleDict({"layers": nn.ModuleList(layers)})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return torch.optim.SGD(model.parameters(), lr=1e-6, foreach=True), model


def _added(  # noqa: PLR0917 - what a block of steps takes
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    device: str,
    place: tuple[str, Any],
    settings: dict[str, Any],
    steps: int,
) -> float:
    training = Training(model, optimizer, *(torch.empty(0),) * 2)
    times: dict[bool, list[float]] = {False: [], True: []}
    blocks = 4 if len(optimizer.param_groups[0]["params"]) <= 1000 else 2
    for _ in range(3 if blocks > 2 else 2):
        for is_watched in (False, True):
            with watched(training, *place, settings) if is_watched else contextlib.nullcontext():
                for _ in range(steps + 1 if is_watched else 3):  # from here on a block has as many samples as another
                    optimizer.step()
                times[is_watched] += [_steps(optimizer, device, steps if is_watched else 10) for _ in range(blocks)]
    return statistics.median(times[True]) - statistics.median(times[False])


def _steps(optimizer: torch.optim.Optimizer, device: str, steps: int) -> float:
    # CPU time of this thread: on a device the host's part alone, and the same on a machine that has other things to do.
    begin = time.thread_time()
    for _ in range(steps):
        optimizer.step()
    seconds = (time.thread_time() - begin) / steps
    if device == "cuda":
        torch.cuda.synchronize()
    return seconds


@torch.no_grad()
def least(optimizer: torch.optim.Optimizer, device: str) -> float:
    """Norms of all gradients, one copy of 1024 or fewer elements of each, and two of each weight; no Python between."""
    weights = [entry for group in optimizer.param_groups for entry in group["params"]]
    gradients = [entry.grad for entry in weights]
    most = max(1, min(1024, (1 << 18) // len(weights)))
    views = [[entry.view(-1)[:: -(-entry.numel() // most)] for entry in some] for some in (gradients, weights)]
    into = torch.cat(views[0])

    def compute() -> None:
        torch._foreach_norm(gradients)
        for some in (views[0], views[1], views[1]):
            torch.cat(some, out=into)

    return statistics.median(_timed(compute, device) for _ in range(15))


def _timed(call: Callable[[], None], device: str) -> float:
    begin = time.thread_time()
    call()
    seconds = time.thread_time() - begin
    if device == "cuda":
        torch.cuda.synchronize()
    return seconds


def line(counts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Value at no tensors and slope of the line with the least squares of relative distances (weights 1 / count²)."""
    weights = [1 / count**2 for count in counts]
    whole = sum(weights)
    x = sum(weight * count for weight, count in zip(weights, counts, strict=True)) / whole
    y = sum(weight * value for weight, value in zip(weights, seconds, strict=True)) / whole
    pairs = list(zip(weights, counts, seconds, strict=True))
    slope = sum(weight * (count - x) * (value - y) for weight, count, value in pairs)
    slope /= sum(weight * (count - x) ** 2 for weight, count, _ in pairs)
    return y - slope * x, slope


def draw(file: Path, counts: Sequence[int], found: dict[str, list[float]]) -> None:
    """Plot it, where matplotlib is installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sidestep"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    for (mode, seconds), marker in zip(found.items(), "os^", strict=True):
        fixed, slope = line(counts, seconds)
        label = f"{mode}: {slope * 1e6:.2f} us a tensor"
        (points,) = axes.loglog(counts, [value * 1e6 for value in seconds], marker, label=label)
        fit = [max(1e-7, fixed + slope * count) * 1e6 for count in counts]
        axes.loglog(counts, fit, "-", linewidth=1, color=points.get_color())
    axes.set_xlabel("parameter tensors")
    axes.set_ylabel("added to a step, us")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
