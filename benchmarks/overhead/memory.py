"""Memory that capture adds to a training process, each in a process of its own beside one that is not watched.

Nothing of sidestep's is imported before the first reading.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from support import Table

from overhead.trainings import Training, large, transformer

BENCH = Path(__file__).parents[1] / "bench_overhead.py"
SIZES = {"1 M parameters": transformer, "100 M parameters": large}


def memory(device: str) -> Table:
    """Growth of the watched process less that of the other."""
    table = Table(f"memory added by all probes, on {device}")
    for name in ("100 M parameters",) if device == "cuda" else SIZES:
        plain = _grown(name, device, "none")
        for mode in ("default", "all"):
            full = _grown(name, device, mode)
            table.add(f"{name}, {mode} probes, host", full[0] - plain[0], "MB", most=20.0)
            table.say("  of it pages of files: libraries, the journal", f"{full[2] - plain[2]:.1f} MB")
            if device == "cuda":
                table.add(f"{name}, {mode} probes, device", full[1] - plain[1], "MB", most=16.0)
    return table


def _grown(name: str, device: str, mode: str) -> list[float]:
    command = [sys.executable, str(BENCH), "--memory", name, mode, "--device", device]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(word) for word in out.split()]


def measure(name: str, mode: str, device: str) -> None:
    """Print by how many megabytes host memory, the device's peak and shared pages have grown in 40 steps."""
    training = SIZES[name](device, 8 if name.startswith("1 ") or device == "cuda" else 1)
    _train(training, 12)
    before = _readings(device)
    if mode == "none":
        _train(training, 40)
        print(*_growth(before, device))
        return
    import sidestep
    from overhead.ratios import all_probes

    settings: dict[str, Any] = all_probes() if mode == "all" else {"every": 10}
    with (
        tempfile.TemporaryDirectory() as root,
        sidestep.watch(training.model, training.optimizer, dir=root, mode="offline", **settings),
    ):
        _train(training, 40)
        print(*_growth(before, device))


def _train(training: Training, steps: int) -> None:
    for _ in range(steps):
        training.step()


def _growth(before: list[float], device: str) -> list[float]:
    return [now - then for now, then in zip(_readings(device), before, strict=True)]


def _readings(device: str) -> list[float]:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    size = os.sysconf("SC_PAGE_SIZE") / 1e6
    peak = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0
    return [int(pages[1]) * size, peak, int(pages[2]) * size]
