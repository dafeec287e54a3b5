"""Peaks of device memory since the last report, while the script sees its own counters as if nobody had reset them.

There is no device here: `Allocator` stands for torch's C allocator behind `torch.cuda.memory_stats`; what reads those
statistics is torch's own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import offline, small_net, take_step

import sidestep
from sidestep.probes import memory
from sidestep.probes.memory import MemoryProbe, Peaks, resident_bytes

__all__ = ["offline"]

GB = 10**9


class Allocator:
    """One device's counters."""

    def __init__(self) -> None:
        self.current = self.peak = 0
        self.reserved = 10 * GB

    def use(self, *levels: int) -> None:
        for level in levels:
            self.current = level
            self.peak = max(self.peak, level)

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": self.current,
            "allocated_bytes.all.peak": self.peak,
            "reserved_bytes.all.current": self.reserved,
            "reserved_bytes.all.peak": self.reserved,
        }

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        self.peak = self.current


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Allocator]:
    one = Allocator()
    for module in (torch.cuda, torch.cuda.memory):
        for name in ("memory_stats", "reset_peak_memory_stats"):
            # A function each, the same in both modules, as torch has them.
            monkeypatch.setattr(module, name, one.__dict__.setdefault(name, plain(getattr(one, name))))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    peaks = Peaks()
    monkeypatch.setattr(memory, "PEAKS", peaks)
    yield one
    peaks._wrappings.remove()


def plain(method: Any) -> Any:
    return lambda device=None: method(device)


def reports(probe: MemoryProbe) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    probe.watched = SimpleNamespace(device=torch.device("cuda", 0))
    probe.run = SimpleNamespace(record=lambda tags, values, step: found.append(dict(zip(tags, values, strict=True))))
    return found


def test_a_report_has_the_peak_since_the_last_one(allocator: Allocator) -> None:
    probe = MemoryProbe()
    found = reports(probe)
    for levels in ((3 * GB, 9 * GB, 1 * GB), (4 * GB, 2 * GB), (2 * GB,)):
        allocator.use(*levels)
        probe.report(0)
    assert [each["perf/gpu_mem_allocated_gb"] for each in found] == [9, 4, 2]
    assert [each["perf/gpu_mem_reserved_gb"] for each in found] == [10, 10, 10]
    assert [each["perf/gpu_mem_fragmentation"] for each in found] == pytest.approx([0.9, 0.8, 0.8])


def test_a_script_sees_the_peak_that_it_would_see_without_us(allocator: Allocator) -> None:
    early = torch.cuda.max_memory_allocated  # imported before anything was wrapped
    probe = MemoryProbe()
    reports(probe)
    allocator.use(9 * GB, 1 * GB)
    probe.report(0)
    allocator.use(4 * GB)
    assert early() == torch.cuda.max_memory_allocated("cuda:0") == 9 * GB
    assert torch.cuda.memory_stats(0)["allocated_bytes.all.peak"] == 9 * GB
    allocator.use(12 * GB, 1 * GB)
    assert torch.cuda.max_memory_allocated(torch.device("cuda", 0)) == 12 * GB


def test_a_reset_of_the_script_s_forgets_what_was_before(allocator: Allocator) -> None:
    probe = MemoryProbe()
    found = reports(probe)
    allocator.use(9 * GB, 1 * GB)
    probe.report(0)
    torch.cuda.reset_peak_memory_stats()
    allocator.use(3 * GB, 2 * GB)
    probe.report(1)
    assert torch.cuda.max_memory_allocated() == 3 * GB
    assert [each["perf/gpu_mem_allocated_gb"] for each in found] == [9, 3]


def test_left_alone_the_counter_is_recorded_as_it_stands(allocator: Allocator) -> None:
    before = torch.cuda.memory_stats
    probe = MemoryProbe(reset_peaks=False)
    found = reports(probe)
    for levels in ((9 * GB,), (1 * GB,)):
        allocator.use(*levels)
        probe.report(0)
    assert [each["perf/gpu_mem_allocated_gb"] for each in found] == [9, 9]
    assert torch.cuda.memory_stats is before


def test_an_allocator_that_holds_nothing_is_not_fragmented(allocator: Allocator) -> None:
    allocator.reserved = 0
    probe = MemoryProbe()
    found = reports(probe)
    probe.report(0)
    assert "perf/gpu_mem_fragmentation" not in found[0]


def test_on_the_cpu_resident_memory_alone_is_told(offline: dict[str, Any]) -> None:
    before = torch.cuda.memory_stats
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"memory": 1}, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert {tag for tag in read_tags(offline["dir"]) if "mem" in tag or "rss" in tag} == {"perf/host_rss_gb"}
    (resident,) = read_scalars(offline["dir"], "perf/host_rss_gb").values()
    assert resident == pytest.approx(resident_bytes() / 1e9, rel=0.5)
    assert torch.cuda.memory_stats is before
