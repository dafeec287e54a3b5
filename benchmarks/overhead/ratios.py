"""Step time with capture over step time without, for two networks and several ways of watching; and that a training
is the same bit for bit."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from support import Table
from torch.nn.attention import SDPBackend, sdpa_kernel

from overhead.trainings import Make, Training, cnn, of_length, transformer
from overhead.turns import Watch, compare, synchronising_calls, watched
from sidestep.errors import UsageError
from sidestep.probes.registry import BUILT_IN, chosen

EVERY_STEP: dict[str, Any] = {"every": 1, "probes": {"activations": 10}}

_GPU_BARS = {"every step, activations 1 in 10": 1.01, "all probes": 1.03}


def all_probes() -> dict[str, Any]:
    """Every built-in probe that needs no argument, curvature excepted: at every step, but 1 in 10 steps those that are
    rarer by default; with norms of single parameters."""
    probes: dict[str, Any] = {"gradients": {"parameters": True}, "updates": True}
    for name in BUILT_IN:
        if name in probes or name == "curvature":
            continue
        try:
            (probe,) = [one for one in chosen([name]) if one.name == name]
        except (UsageError, ValueError):
            continue
        probes[name] = 10 if probe.every is not None else True
    return {"every": 1, "probes": probes}


def modes() -> dict[str, tuple[dict[str, Any], float]]:
    """Ways of watching, and which share of the blocks each is given: a rare sample needs many."""
    return {
        "default": ({}, 1.0),
        "every step, activations 1 in 10": (EVERY_STEP, 0.5),
        "all probes": (all_probes(), 0.5),
        "disabled": ({"mode": "off"}, 1.0),
    }


def step_times(device: str, rounds: int, place: tuple[str, Any]) -> list[Table]:
    """Ratios of step times, for both networks on a CPU, for the large one on a GPU."""
    networks = (("CNN", cnn, 0.010, 1.02, 2.0), ("transformer", transformer, 0.050, 1.005, 1.0))
    return [
        _network(name, make, device, int(rounds * share), place, bar, seconds)
        for name, make, seconds, bar, share in (networks[1:] if device == "cuda" else networks)
    ]


def _network(  # noqa: PLR0917 - a row of the table above
    name: str, make: Make, device: str, rounds: int, place: tuple[str, Any], bar: float, seconds: float
) -> Table:
    batch = of_length(make, device, seconds)
    table = Table(f"{name}, batch {batch}, on {device}: step time, watched / plain")
    for mode, (settings, share) in modes().items():
        watch = _watching(place, settings)
        found = compare(lambda: make(device, batch), device, max(3, int(rounds * share)), watch)
        most = _GPU_BARS.get(mode) if device == "cuda" else bar if mode == "default" else None
        table.add(f"{mode} (plain {found.plain * 1e3:.1f} ms)", found.ratio, "x", most=most, digits=5)
        table.say("  added a step", f"{found.added * 1e6:.0f} us; by sums {found.added_mean * 1e6:.0f} us")
        table.say("  quartiles of blocks", found.spread)
        if found.plain_cpu:
            cpu = f"{1 + found.added_cpu / found.plain_cpu:.4f} x; added {found.added_cpu * 1e6:.0f} us"
            table.say("  in CPU time of the thread", cpu)
        else:
            _count_waits(table, make(device, batch), watch)
    return table


def _watching(place: tuple[str, Any], settings: dict[str, Any]) -> Watch:
    return lambda training: watched(training, *place, settings)


def _count_waits(table: Table, training: Training, watch: Watch) -> None:
    without = synchronising_calls(training)
    with watch(training):
        table.add("  synchronising calls in 50 steps", synchronising_calls(training) - without, "", most=0)


def sameness(device: str, place: tuple[str, Any]) -> Table:
    """Whether 30 steps end at the same weights, bit for bit; attention by operations that give the same each time."""
    table = Table(f"same bits in all weights after 30 steps, on {device}: watched as not watched")
    ways = {"not watched, again": None} | {mode: _watching(place, settings) for mode, (settings, _) in modes().items()}
    torch.backends.cudnn.deterministic = True
    with sdpa_kernel(SDPBackend.MATH):
        for name, make in (("CNN", cnn), ("transformer", transformer)):
            plain = _weights(make, device, None)
            for mode, watch in ways.items():
                others = _weights(make, device, watch)
                same = all(torch.equal(one, other) for one, other in zip(plain, others, strict=True))
                table.add(f"{name}, {mode}", float(same), "(1 is yes)", least=1)
    torch.backends.cudnn.deterministic = False
    return table


def _weights(make: Make, device: str, watch: Watch | None) -> list[torch.Tensor]:
    torch.manual_seed(0)
    training = make(device, 8)
    with contextlib.nullcontext() if watch is None else watch(training):
        for _ in range(30):
            training.step()
    return list(training.model.parameters())
