"""What watching costs a training: step time with capture over step time without, in one process, in turn.

    python benchmarks/bench_overhead.py [--device cpu|cuda] [--quick] [--threads N]

Two equal networks train in turn (A B A B ...), one of them watched: step by step on a CPU, where a ratio is that of
the sums of 50 steps of each; by blocks of 50 steps on a GPU. Given are the median of the ratios, with quartiles, and
the ratio of the sums of all, which also has what is rare in it (weights, moments and activations are sampled once in
hundreds of steps). The ratio of the training thread's CPU time says the same on a machine that has other things to do.
The collector runs beside it. On a GPU a block ends with a synchronisation; inside of watched blocks one would raise.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from support import Collector, Table, folder, percentile
from torch import Tensor, nn

import sidestep
from sidestep.probes.memory import resident_bytes

STEPS = 50
EVERY_STEP: dict[str, Any] = {"every": 1, "probes": {"activations": 10}}
ALL: dict[str, Any] = {
    "every": 1,
    "probes": {"activations": 10, "logits": 1, "weights": 10, "moments": 10, "gradients": {"parameters": True}},
}
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "every step, activations 1 in 10": EVERY_STEP,
    "all probes but curvature": ALL,
    "disabled": {"mode": "off"},
}


@dataclass
class Training:
    """A network that can take a step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    targets: Tensor

    def step(self) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.inputs.is_cuda):
            output = self.model(self.inputs)
            loss = nn.functional.cross_entropy(output.flatten(0, -2), self.targets.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


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
    width, depth, words, length = (768, 12, 16384, 512) if device == "cuda" else (128, 4, 512, 64)
    model = Transformer(width, depth, words).to(device)
    inputs = torch.randint(0, words, (batch, length), device=device)
    return Training(model, torch.optim.AdamW(model.parameters(), lr=1e-4), inputs, inputs.roll(1, 1))


def of_length(make: Callable[[str, int], Training], device: str, seconds: float) -> int:
    """Batch size whose step takes about so long."""
    batch = 1
    while batch < 4096:
        training = make(device, batch)
        lengths = sorted(timed(training, device, 1) for _ in range(8))
        if lengths[2] >= seconds * 0.85:
            break
        batch = max(batch + 1, min(2 * batch, int(batch * seconds / lengths[2])))
    return batch


def timed(training: Training, device: str, steps: int, *, strict: bool = False) -> float:
    """Seconds of a block."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
    begin = time.perf_counter()
    for _ in range(steps):
        training.step()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return time.perf_counter() - begin


@contextlib.contextmanager
def watched(training: Training, address: str, root: Any, settings: dict[str, Any]) -> Iterator[sidestep.Run]:
    run = sidestep.watch(
        training.model, training.optimizer, project="bench", dir=root, **{"collector": address, **settings}
    )
    yield run
    run.finish(timeout=5)


def in_turn(plain: Training, other: Training, device: str, number: int) -> tuple[float, float, float, float]:
    """Wall time of a block of each, and CPU time of this thread."""
    if device == "cuda":
        order = (other, plain) if number % 2 else (plain, other)
        times = {id(one): timed(one, device, STEPS, strict=one is other) for one in order}
        return times[id(plain)], times[id(other)], 1.0, 1.0
    sums = [0.0, 0.0, 0.0, 0.0]
    for _ in range(STEPS):
        for place, one in enumerate((plain, other)):
            wall, cpu = time.perf_counter(), time.thread_time()
            one.step()
            sums[place] += time.perf_counter() - wall
            sums[place + 2] += time.thread_time() - cpu
    return sums[0], sums[1], sums[2], sums[3]


def ratios(
    make: Callable[[], Training], device: str, rounds: int, watch: Callable[[Training], Any]
) -> tuple[list[float], float, float, float]:
    """Ratios of blocks, ratio of the sums, that of CPU time, and milliseconds of a plain step."""
    torch.manual_seed(0)
    plain, other = make(), make()
    with watch(other):
        for training in (plain, other):
            timed(training, device, STEPS)
        blocks = [in_turn(plain, other, device, number) for number in range(rounds)]
    a, b, c, d = (sum(column) for column in zip(*blocks, strict=True))
    return [block[1] / block[0] for block in blocks], b / a, d / c, a / rounds / STEPS * 1e3


def step_times(device: str, rounds: int, place: tuple[str, Any]) -> None:
    networks = (("CNN", cnn, 0.010, 1.02), ("transformer", transformer, 0.050, 1.005))
    gpu_bars = {"every step, activations 1 in 10": 1.01, "all probes but curvature": 1.03}
    for name, make, seconds, bar in networks[1:] if device == "cuda" else networks:
        batch = of_length(make, device, seconds)
        table = Table(f"{name}, batch {batch}, on {device}: step time, watched / plain")
        for mode, settings in MODES.items():
            found, sums, cpu, plain = ratios(
                lambda make=make, batch=batch: make(device, batch),
                device,
                rounds,
                lambda training, settings=settings: watched(training, *place, settings),
            )
            most = gpu_bars.get(mode) if device == "cuda" else bar if mode == "default" else None
            table.add(f"{mode} (plain {plain:.1f} ms)", statistics.median(found), "x", most=most)
            quartiles = f"{percentile(found, 0.25):.4f} to {percentile(found, 0.75):.4f}; sums {sums:.4f}"
            table.say("  quartiles of blocks; ratio of sums", quartiles)
            if device == "cpu":
                table.say("  CPU time of the thread", f"{cpu:.4f} x")
        table.print()


def tensors(device: str, place: tuple[str, Any], *, quick: bool) -> None:
    """Host time of a step by the number of parameters."""
    table = Table(f"host time a parameter and step, on {device}")
    for count in (100, 1000, 10_000):
        for mode, settings, most in (("default", {}, 1.0), ("every step", EVERY_STEP, None)):
            model = nn.ParameterList([torch.zeros(16, device=device) for _ in range(count)])
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            times: list[float] = []
            for is_watched in (False, True):
                with (
                    watched(Training(model, optimizer, *(torch.empty(0),) * 2), *place, settings)
                    if (is_watched)
                    else contextlib.nullcontext()
                ):
                    optimizer.step()
                    rounds = [of_steps(optimizer, device) for _ in range(4 if quick else 10)]
                times.append(statistics.median(rounds))
            micros = (times[1] - times[0]) / STEPS / count * 1e6
            table.add(f"{count:,} parameters, {mode}", micros, "us", most=most)
    table.print()


def of_steps(optimizer: torch.optim.Optimizer, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(STEPS):
        optimizer.step()
    return time.perf_counter() - begin


def memory(device: str) -> None:
    """Memory that capture adds, in a process of its own."""
    table = Table(f"memory added by all probes but curvature, on {device}")
    for name, bar in (("cnn", 20.0), ("transformer", 20.0)):
        command = [sys.executable, __file__, "--memory", name, "--device", device]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        table.add(f"{name}, host", float(out[0]), "MB", most=bar)
        if device == "cuda":
            table.add(f"{name}, device", float(out[1]), "MB", most=16.0)
    table.print()


def measure_memory(name: str, device: str) -> None:
    training = {"cnn": cnn, "transformer": transformer}[name](device, 8)
    for _ in range(30):
        training.step()
    host, peak = resident_bytes() or 0, peak_bytes(device)
    with folder() as root, watched(training, "ipc:///nobody", root, {**ALL, "mode": "offline"}):
        for _ in range(60):
            training.step()
        print(((resident_bytes() or 0) - host) / 1e6, (peak_bytes(device) - peak) / 1e6)


def peak_bytes(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", choices=("cnn", "transformer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        measure_memory(arguments.memory, arguments.device)
        return
    with folder() as root, Collector(root) as collector:
        place = (collector.address, root)
        tensors(arguments.device, place, quick=arguments.quick)
        step_times(arguments.device, 8 if arguments.quick else 40, place)
    memory(arguments.device)


if __name__ == "__main__":
    main()
