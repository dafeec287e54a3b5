"""The same quantities logged with other tools: what each adds to a step.

Logged are loss, learning rate and step time at every step, and in sampled steps (1 in 50, or each) the norm of the
gradient, of the whole and by block, and the relative update by block. Users of the others compute these with a loop
over parameters, a copy of the weights before the step and `.item()`; that alone is a row of its own. Each tool has a
process of its own, in which two equal networks train in turn. What its threads and processes do meanwhile falls on
both and is not counted, sidestep's neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from support import Table
from torch import Tensor

import sidestep
from overhead.trainings import Training, small, transformer
from overhead.turns import compare
from sidestep.blocks import Blocks, named_parameters
from sidestep.probes.registry import DEFAULTS

CADENCES = (50, 1)
BENCH = Path(__file__).parents[1] / "bench_overhead.py"

Send = Callable[[dict[str, float], int], object]
#: From an empty folder to what sends values somewhere, for as long as a `with` lasts.
Opened = contextlib.AbstractContextManager[Send]


class ByHand:
    """What a script computes itself.

    Args:
        training: its hooks are set.
        every: steps from one sample to the next.
        send: takes the values of a step.
    """

    def __init__(self, training: Training, every: int, send: Send) -> None:
        parameters = [parameter for _, parameter in named_parameters(training.model)]
        blocks = Blocks(training.model)
        self._members: dict[str, list[Tensor]] = {}
        for parameter, place in zip(parameters, blocks.place(parameters), strict=True):
            self._members.setdefault(blocks.names[place], []).append(parameter)
        self._training = training
        self._every = every
        self._send = send
        self._step = 0
        self._before: dict[Tensor, Tensor] = {}
        self._last = time.perf_counter()
        training.before_step, training.after_step = self.before, self.after

    @torch.no_grad()
    def before(self) -> None:
        if self._step % self._every == 0:
            every = (parameter for members in self._members.values() for parameter in members)
            self._before = {parameter: parameter.detach().clone() for parameter in every}

    @torch.no_grad()
    def after(self) -> None:
        values = cheap(self._training, self._last)
        self._last = time.perf_counter()
        if self._step % self._every == 0:
            values |= self._norms()
        self._send(values, self._step)
        self._step += 1

    def _norms(self) -> dict[str, float]:
        values: dict[str, float] = {}
        whole = 0.0
        for name, members in self._members.items():
            gradient = change = weights = 0.0
            for parameter in members:
                if parameter.grad is not None:
                    gradient += parameter.grad.norm(2).item() ** 2
                change += (parameter - self._before[parameter]).norm(2).item() ** 2
                weights += self._before[parameter].norm(2).item() ** 2
            values[f"train/gradients/{name}"] = gradient**0.5
            values[f"train/updates/{name}"] = (change / weights) ** 0.5 if weights else 0.0
            whole += gradient
        values["train/gradients/global_norm"] = whole**0.5
        return values


def cheap(training: Training, last: float, *, waits: bool = True) -> dict[str, Any]:
    """What every step logs; the loss as a number, or as it is, for those who need not wait for a device."""
    assert training.loss is not None
    return {
        "train/loss_total": training.loss.item() if waits else training.loss,
        "train/lr": training.optimizer.param_groups[0]["lr"],
        "train/step_time_ms": (time.perf_counter() - last) * 1e3,
    }


# --- tools -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def nobody(_root: Path) -> Iterator[Send]:
    yield lambda _values, _step: None


@contextlib.contextmanager
def summary_writer(root: Path) -> Iterator[Send]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(root))
    yield lambda values, step: [writer.add_scalar(name, value, step) for name, value in values.items()]
    writer.close()


@contextlib.contextmanager
def wandb_offline(root: Path) -> Iterator[Send]:
    run = _wandb_run(root)
    yield lambda values, step: run.log(values, step=step)
    run.finish()


@contextlib.contextmanager
def mlflow_sqlite(root: Path, *, synchronous: bool = True) -> Iterator[Send]:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    mlflow.set_experiment("bench")
    with mlflow.start_run():
        yield lambda values, step: mlflow.log_metrics(values, step=step, synchronous=synchronous)


def mlflow_async(root: Path) -> Opened:
    return mlflow_sqlite(root, synchronous=False)


@contextlib.contextmanager
def trackio_local(_root: Path) -> Iterator[Send]:
    import trackio

    trackio.init("bench", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    yield lambda values, step: trackio.log(values, step=step)
    trackio.finish()


def _wandb_run(root: Path) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    return wandb.init(project="bench", dir=root, mode="offline", settings=settings)


#: Those that are sent what is computed by hand.
LOGGERS: dict[str, Callable[[Path], Opened]] = {
    "computed by hand, logged nowhere": nobody,
    "torch SummaryWriter": summary_writer,
    "wandb, offline": wandb_offline,
    "mlflow, sqlite": mlflow_sqlite,
    "mlflow, sqlite, asynchronous": mlflow_async,
    "trackio, local": trackio_local,
}
#: Those that look at the model themselves.
WATCHERS = ("sidestep", "sidestep, all its defaults", "wandb.watch gradients", "wandb.watch all")
SAME: dict[str, Any] = {**dict.fromkeys(DEFAULTS, False), "gradients": {"direction": False}, "updates": True}


@contextlib.contextmanager
def watching(name: str, training: Training, every: int, root: Path, address: str) -> Iterator[None]:
    """A training that a tool watches by its own means; what every step logs is handed to it."""
    with contextlib.ExitStack() as stack:
        if name.startswith("sidestep"):
            probes = SAME if name == "sidestep" else None
            run: Any = sidestep.watch(
                training.model,
                training.optimizer,
                every=every,
                probes=probes,
                dir=root,
                project="bench",
                collector=address,
            )
            stack.callback(run.finish, timeout=5)
        else:
            run = _wandb_run(root)
            run.watch(training.model, log=name.rpartition(" ")[2], log_freq=every)
            stack.callback(run.finish)
        last = [time.perf_counter()]
        waits = not (name.startswith("sidestep") and training.inputs.is_cuda)

        def after() -> None:
            values = cheap(training, last[0], waits=waits)
            last[0] = time.perf_counter()
            run.log(values)

        training.after_step = after
        yield


@contextlib.contextmanager
def logging(name: str, training: Training, every: int, root: Path) -> Iterator[None]:
    """A training that logs by hand."""
    with LOGGERS[name](root) as send:
        ByHand(training, every, send)
        yield


# --- one process a tool ------------------------------------------------------------------------------------------


def measure(name: str, device: str, rounds: int, place: tuple[str, Path]) -> None:
    """Print what a tool adds to a step, by cadence, as JSON; or that it is not installed."""
    address, root = place
    make = transformer if device == "cuda" else small
    found: dict[str, Any] = {}
    for every in CADENCES:
        folder = root / f"peer-{abs(hash(name))}-{every}"
        folder.mkdir()

        def watch(training: Training, every: int = every, folder: Path = folder) -> Any:
            if name in WATCHERS:
                return watching(name, training, every, folder, address)
            return logging(name, training, every, folder)

        try:
            result = compare(lambda: make(device, 2), device, rounds if every > 1 else max(3, rounds // 3), watch)
        except ImportError as error:
            found = {"missing": str(error)}
            break
        found[str(every)] = [result.plain, result.added, result.added_mean, result.added_cpu]
    print(f"\nFOUND {json.dumps(found)}")


def peers(device: str, rounds: int, place: tuple[str, Path]) -> Table:
    """What each tool adds to a step, and how that compares to sidestep."""
    names = (*WATCHERS[:2], *LOGGERS, *WATCHERS[2:])
    results = {name: _in_process(name, device, rounds, place) for name in names}
    table = Table(f"added to a step by logging the same quantities, on {device}")
    for every in CADENCES:
        key = str(every)
        cadence = "each step" if every == 1 else f"1 step in {every}"
        ours = results["sidestep"].get(key)
        for name, result in results.items():
            what = f"{name}, samples {cadence}"
            if key not in result:
                table.say(what, str(result.get("missing", "failed")))
                continue
            plain, added, mean, cpu = (value * 1e6 for value in result[key])
            times = f" = {added / ours[1] / 1e6:.1f} x sidestep" if ours and not name.startswith("sidestep") else ""
            table.say(what, f"{added:,.0f} us{times} (CPU {cpu:,.0f}; by sums {mean:,.0f}; plain step {plain:,.0f})")
        others = [results[name][key][1] for name in LOGGERS if key in results[name] and name != names[2]]
        if ours and others:
            table.add(f"sidestep over the best of them, {cadence}", ours[1] / min(others), "x", most=0.1)
    return table


def _in_process(name: str, device: str, rounds: int, place: tuple[str, Path]) -> dict[str, Any]:
    address, root = place
    arguments = ["--peer", name, "--device", device, "--rounds", str(rounds), "--place", address, str(root)]
    quiet = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(root / "trackio"),
        **dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "1"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    try:
        done = subprocess.run(
            [sys.executable, str(BENCH), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **quiet},
            check=False,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return {"missing": "took more than two minutes"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"missing": f"failed: {last[:80]}"}
    found = json.loads(lines[-1].removeprefix("FOUND "))
    return {"missing": "not installed"} if "missing" in found else found
