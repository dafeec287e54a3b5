"""How long `sidestep analyze slope` takes over a sweep, and what back-ends of curvature find beside the exact matrix.

    python benchmarks/bench_slope.py [--quick] [--json]

The sweep is made here: 216 runs of 15 epochs of 64 steps, 8 metrics a step, of power laws with noise; the store is
compacted as a collector leaves it. `read` and `fit` are one call of `analyse_slopes`. Bar: 2 s for both. The exact
Hessian is that of a small network in double precision, by differentiating twice along each direction.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import Table
from torch import Tensor, nn

from sidestep.probes import exact_trace, lanczos
from sidestep.probes.curvlinops_product import curvlinops_hessian
from sidestep_collector.blocks import Batch, Event, KeySet, Moment, Progress, ScalarBlock, Stream
from sidestep_collector.query import slope
from sidestep_collector.query.slope import analyse_slopes
from sidestep_collector.store import Store, connect

RUNS, EPOCHS, STEPS = 216, 15, 64
TAGS = ("train/loss_nats", "train/loss_bits", "train/loss_total", "train/acc", "train/lr", "train/wd")
REPEATS = 5
#: Runs that are committed together.
AT_ONCE = 24


def run(number: int) -> tuple[float, Batch]:
    """A run whose loss follows a power law: its exponent, and what a collector would store of it."""
    rng = np.random.default_rng(number)
    exponent = 0.2 + 0.6 * number / RUNS
    name = f"run-{number:03}"
    stream = Stream(hashlib.sha256(name.encode()).digest()[:8], name.encode().ljust(16), name, "sweep", 0, 0)
    steps = np.arange(EPOCHS * STEPS)
    nats = 0.5 + 2 * ((steps + 1) / STEPS) ** -exponent + rng.normal(0, 0.02, len(steps))
    values = np.stack([nats, nats / np.log(2), nats, *rng.random((3, len(steps)))], 1)
    epochs = 1.0 + steps // STEPS
    loss = ScalarBlock(stream, KeySet(0, 1, "step", TAGS, ()), steps, steps * 1000, steps, epochs, values)
    at = steps[::48]
    sharp = ScalarBlock(
        stream, KeySet(1, 1, "periodic", (slope.CURVATURE,), ()), len(steps) + np.arange(len(at)), at * 1000, at,
        epochs[::48], rng.random((len(at), 1)),
    )  # fmt: skip
    start = Event(Moment(stream, 10_000, 10**18, -1, np.nan), "start", {"config": {"exponent": exponent}, "group": "g"})
    return exponent, Batch(blocks=[loss, sharp], items=[start], progress=[Progress(stream, 10_001, 0, False)])


def analysis(runs: int) -> dict[str, float]:
    """Seconds to read and to fit, the least of some repeats, and the share of exponents inside of their intervals."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        exponents, batches = zip(*map(run, range(runs)), strict=True)
        for at in range(0, runs, AT_ONCE):
            some = batches[at : at + AT_ONCE]
            parts = {
                part: [entry for one in some for entry in getattr(one, part)]
                for part in ("blocks", "items", "progress")
            }
            store.commit(Batch(**parts), {})
        while store.compact():
            pass
        store.close()
        with connect(Path(folder)) as connection:
            names = [f"run-{number:03}" for number in range(runs)]
            reading = least(lambda: slope.read_series(connection, names, (*slope.LOSSES, slope.CURVATURE)))
            whole = least(lambda: analyse_slopes(connection, names))
            found = analyse_slopes(connection, names)
    laws = [(exponent, one.law) for exponent, one in zip(exponents, found, strict=True) if one.law]
    inside = sum(law.b_low <= exponent <= law.b_high for exponent, law in laws)
    return {"read": reading, "whole": whole, "fitted": len(laws), "inside": inside / len(laws)}


def least(work: Callable[[], Any]) -> float:
    seconds: list[float] = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def curvature() -> dict[str, dict[str, float]]:
    """Both ends of the spectrum, the trace and the milliseconds of each back-end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 10))
    given = (torch.randn(64, 32), torch.randint(10, (64,)))

    def loss(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(given[0]), given[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        loss(model, given).backward()
        optimizer.step()
    parameters = list(model.parameters())
    matrix = exact(model, given)
    values = torch.linalg.eigvalsh(matrix)
    found = {"exact": {"max": float(values[-1]), "min": float(values[0]), "trace": float(matrix.trace()), "se": 0.0}}

    def own() -> dict[str, float]:
        return estimate(*lanczos.hessian(loss(model, given), parameters))

    def curvlinops() -> dict[str, float]:
        return estimate(*curvlinops_hessian(loss, model, given, parameters))

    def backpack() -> dict[str, float]:
        found = estimate(*lanczos.hessian(loss(model, given), parameters), vectors=0)
        return found | {"trace": float(exact_trace.diagonal(loss, model, given).sum()), "se": 0.0}

    for work in (own, backpack, curvlinops):
        found[work.__name__] = {**work(), "ms": least(work) * 1e3}
    return found


def estimate(product: lanczos.Product, size: int, vectors: int = 10) -> dict[str, float]:
    """What the probe computes of products, with its defaults."""
    generator = torch.Generator().manual_seed(0)
    spectrum = lanczos.spectrum(product, size, 10, generator)
    most, smallest = lanczos.ends(spectrum.diagonal.double(), spectrum.beside.double())
    found = {"max": most, "min": smallest}
    if vectors:
        rest = lanczos.remainder(product, spectrum.basis, vectors, generator)
        trace, error = lanczos.whole_trace(spectrum.diagonal.double(), rest.double())
        found |= {"trace": trace, "se": error}
    return found


def exact(model: nn.Sequential, given: tuple[Tensor, Tensor]) -> Tensor:
    names, shapes = zip(*((name, entry.shape) for name, entry in model.named_parameters()), strict=True)

    def of(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        placed = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, placed, (given[0].double(),)), given[1])

    return torch.autograd.functional.hessian(
        of, torch.cat([entry.detach().double().reshape(-1) for entry in model.parameters()])
    )


def main() -> None:
    runs = 24 if "--quick" in sys.argv else RUNS
    sweep, matrix = analysis(runs), curvature()
    if "--json" in sys.argv:
        print(json.dumps({"sweep": sweep, "curvature": matrix}))
        return
    table = Table(f"analyze slope, {runs} runs")
    table.add("read", sweep["read"], "s")
    table.add("read and fit", sweep["whole"], "s", most=2)
    table.add("laws fitted", sweep["fitted"], "")
    table.add("exponents inside of their 95 % interval", sweep["inside"], "")
    table.print()
    table = Table("curvature, 1,042 parameters")
    for name, found in matrix.items():
        table.say(name, "  ".join(f"{key} {value:.5g}" for key, value in found.items()))
    table.print()


if __name__ == "__main__":
    main()
