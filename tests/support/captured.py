"""Training scripts that know nothing of sidestep, each run below `sidestep run` in its own process with a real collector.
What is stored is compared with what the script itself computed and printed, and its result with that of the same
script run alone.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.place import PATIENCE_SECONDS, Place

SCRIPTS = Path(__file__).parent / "scripts"
#: The collector keeps what a device statistic would have: single precision.
CLOSE = {"rel": 1e-5, "abs": 1e-6}


@dataclass
class Captured:
    """A script that ran below `sidestep run`: what it printed, by word, and what is stored of it."""

    place: Place
    out: str
    errors: str
    code: int
    said: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for word, value in re.findall(r"^(\w+) (.+)$", self.out, re.MULTILINE):
            try:
                self.said[word].append(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                continue

    @property
    def run(self) -> str:
        [(run,)] = self.place.rows("select run from runs")
        return run

    def points(self, metric: str, rank: int = 0) -> list[tuple[int, float]]:
        return self.place.values(self.run, metric, rank=rank)

    def values(self, metric: str) -> list[float]:
        return [value for _, value in self.points(metric)]

    def metrics(self) -> set[str]:
        return {metric for (metric,) in self.place.rows("select distinct metric from points")}

    def events(self, event: str) -> list[tuple[Any, ...]]:
        return self.place.rows("select step, epoch, * from events where event = ? order by seq", event)

    @property
    def has_run(self) -> bool:
        return bool(self.place.rows("select run from runs"))


def captured(place: Place, *command: str, options: tuple[str, ...] = (), **more: str) -> Captured:
    process = place.start(sys.executable, "-m", "sidestep", "run", *options, "--", *command, **more)
    out, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return Captured(place, out, errors, process.returncode)


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, str(SCRIPTS / name), *arguments


def written(place: Place, text: str) -> tuple[str, ...]:
    return sys.executable, str(place.written(text))


def alone(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def check_same(ran: Captured, *command: str) -> None:
    """The script prints, and ends with, the very same numbers when it is run alone."""
    plain = alone(*command)
    assert plain.returncode == 0, plain.stderr
    assert "checksum" in plain.stdout
    assert ran.out.startswith(plain.stdout)


SMALL = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(steps=12):
        for step in range(steps):
            x = torch.randn(16, 4)
            loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print("loss", loss.item())
"""
