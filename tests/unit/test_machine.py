"""Samples of the machine: when they are taken, what they say, and what becomes of what cannot be read.

NVML itself needs an NVIDIA driver; `Driver` below stands for it at the edge of its C calls.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch
from support.journal_reader import read_records, read_tags
from support.runs import begin, scalars

import sidestep
from sidestep import machine as machines
from sidestep.device import TAGS as DEVICE_TAGS
from sidestep.device import Device, name_of, visible_devices
from sidestep.errors import ConfigError, UsageError
from sidestep.machine import FIRST_SECONDS, TAGS, Machine, Rates, local_rank
from sidestep.probes import registry

__all__ = ["begin"]

HOST, PROCESS = set(TAGS[:7]), set(TAGS[7:9])


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sampled(run, *seconds: float, environ=None, every: float = 10.0) -> Machine:
    """A machine whose drain thread wakes up after each of these seconds, on a clock of its own."""
    clock = Clock()
    machine = Machine(every, environ or {}, clock)
    machine.begin(run)
    for passed in seconds:
        clock.now += passed
        machine.tick()
    return machine


def times_of(run) -> int:
    return len(scalars(run))


# --- when --------------------------------------------------------------------------------------------------------


def test_the_first_sample_comes_soon_and_the_others_at_their_interval(begin) -> None:
    run = begin()
    sampled(run, 1.9)
    assert times_of(run) == 0
    sampled(run, FIRST_SECONDS, FIRST_SECONDS)
    assert times_of(run) == 1
    sampled(run, FIRST_SECONDS, FIRST_SECONDS, 9.9)
    assert times_of(run) == 2
    sampled(run, FIRST_SECONDS, FIRST_SECONDS, 10.0, 10.0)
    assert times_of(run) == 5


def test_a_run_that_is_told_so_takes_none(begin) -> None:
    run = begin()
    machine = sampled(run, 100.0, 100.0, 100.0, every=0.0)
    assert times_of(run) == 0
    assert "psutil" not in machine.failures


def test_nothing_is_recorded_after_the_end(begin) -> None:
    run = begin()
    clock = Clock()
    machine = Machine(1.0, {}, clock)
    machine.begin(run)

    def wake() -> None:
        clock.now += 100
        machine.tick()

    wake()  # opens its sources
    wake()
    assert times_of(run) == 1
    machine.end()
    wake()
    assert times_of(run) == 1


def test_the_drain_thread_samples_a_run_by_itself(begin, tmp_path: Path) -> None:
    run = begin(system_seconds=0.001)
    arrived = threading.Event()
    record = run.record

    def listen(names, values, **more) -> None:
        record(names, values, **more)
        arrived.thread = threading.current_thread().name
        arrived.set()

    run.record = listen
    assert arrived.wait(60)
    run.finish()
    assert arrived.thread == "sidestep-drain"
    assert read_tags(tmp_path) >= PROCESS


def test_samples_belong_to_the_step_that_the_training_is_at(begin) -> None:
    run = begin()
    run.log({"x": 1.0}, step=41)
    sampled(run, FIRST_SECONDS, FIRST_SECONDS)
    assert [step for step, _ in scalars(run)] == [41, 41]


def test_records_of_two_threads_are_all_kept_and_keep_their_names(begin, tmp_path: Path) -> None:
    run = begin()
    other = threading.Thread(
        target=lambda: [run.record((f"b/{number % 50}",), (float(number),), step=number) for number in range(2000)]
    )
    other.start()
    for number in range(2000):
        run.log({f"a/{number % 70}": float(number)}, step=number)
    other.join()
    run.finish()
    records = read_records(tmp_path)
    found = [(tag, record.step, value) for record in records for tag, value in (record.values or {}).items()]
    for letter, tags in (("a", 70), ("b", 50)):
        mine = [(int(tag[2:]), step, value) for tag, step, value in found if tag[0] == letter]
        assert len(mine) == 2000
        assert all(value == step and step % tags == number for number, step, value in mine)
    assert len({record.seq for record in records}) == len(records)


@pytest.mark.parametrize(
    ("given", "environ", "seconds"),
    [(None, {}, 10.0), (None, {"SIDESTEP_SYSTEM_SECONDS": "2.5"}, 2.5), (0, {"SIDESTEP_SYSTEM_SECONDS": "2.5"}, 0.0)],
)
def test_the_interval_is_the_argument_else_the_environment_else_ten_seconds(
    begin, monkeypatch: pytest.MonkeyPatch, given: float | None, environ: dict[str, str], seconds: float
) -> None:
    monkeypatch.delenv("SIDESTEP_SYSTEM_SECONDS")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert begin(system_seconds=given).machine.seconds == seconds


@pytest.mark.parametrize("given", [-1, math.nan, math.inf, "often"])
def test_an_interval_that_is_none_is_refused(begin, given: object) -> None:
    with pytest.raises(ConfigError, match="system_seconds"):
        begin(system_seconds=given)


@pytest.mark.parametrize(
    ("probes", "seconds"), [(None, 7.0), ({"system": {"seconds": 3}}, 3.0), ({"system": False}, 0.0)]
)
def test_watch_changes_or_ends_samples_through_the_probe(begin, probes: object, seconds: float) -> None:
    begin(system_seconds=7)
    model = torch.nn.Linear(2, 2)
    run = sidestep.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), probes=probes)
    assert run.machine.seconds == seconds


def test_a_probe_that_is_to_sample_never_is_refused() -> None:
    with pytest.raises(UsageError, match="seconds=0"):
        registry.chosen({"system": {"seconds": 0}})


# --- what --------------------------------------------------------------------------------------------------------


def test_a_sample_tells_of_host_and_process(begin) -> None:
    run = begin()
    sampled(run, FIRST_SECONDS, FIRST_SECONDS)
    ((_, values),) = scalars(run)
    assert set(values) >= PROCESS | {TAGS[0], TAGS[1], TAGS[2]}
    assert 0 < values["system/process_memory_gb"] < psutil.virtual_memory().total / 1e9
    assert 0 < values["system/memory_used_percent"] <= 100
    assert 0 <= values["system/cpu_utilisation_percent"] <= 100
    assert not set(values) & set(DEVICE_TAGS)  # this process uses none


def test_only_the_first_process_of_a_host_tells_of_the_host(begin) -> None:
    run = begin()
    sampled(run, FIRST_SECONDS, FIRST_SECONDS, environ={"LOCAL_RANK": "1"})
    ((_, values),) = scalars(run)
    assert set(values) == PROCESS


@pytest.mark.parametrize(("rank", "environ", "tells"), [
    (0, {}, True),
    (1, {}, False),
    (4, {"LOCAL_RANK": "0"}, True),
    (4, {"LOCAL_RANK": "2"}, False),
])  # fmt: skip
def test_a_host_is_told_of_once_whatever_has_started_its_ranks(
    begin, rank: int, environ: dict[str, str], tells: bool
) -> None:
    run = begin(rank=rank, world_size=8)
    sampled(run, FIRST_SECONDS, FIRST_SECONDS, environ=environ)
    ((_, values),) = scalars(run)
    assert (TAGS[1] in values) == tells
    assert set(values) >= PROCESS


@pytest.mark.parametrize(
    ("environ", "rank"),
    [({}, None), ({"LOCAL_RANK": "3"}, 3), ({"SLURM_LOCALID": "2"}, 2), ({"LOCAL_RANK": "x"}, None)],
)
def test_the_local_rank_is_what_launchers_tell(environ: dict[str, str], rank: int | None) -> None:
    assert local_rank(environ) == rank


def test_rates_are_differences_over_time_in_megabytes() -> None:
    counters = iter([(1e6, 0.0), (5e6, 3e6), (0.0, 9e6), (2e6, 9e6)])
    rates = Rates(lambda: next(counters), ("read", "write"))
    assert rates(0.0) == {}
    assert rates(2.0) == {"read": 2.0, "write": 1.5}
    assert rates(2.0) == {}  # a counter began anew
    assert rates(4.0) == {"read": 0.5, "write": 0.0}


# --- what cannot be read -----------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_counted_and_said_once_and_the_rest_goes_on(
    begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)  # a container without /proc/diskstats
    caplog.set_level(logging.DEBUG, "sidestep")
    run = begin()
    machine = sampled(run, FIRST_SECONDS, FIRST_SECONDS, 10.0)
    assert machine.failures == {"memory": 3, "disk": 3}
    said = [record for record in caplog.records if "cannot be read" in record.message]
    assert [record.levelno for record in said] == [logging.DEBUG] * 2
    assert all(set(values) >= PROCESS for _, values in scalars(run))


def test_without_psutil_nothing_is_recorded(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    run = begin()
    assert sampled(run, FIRST_SECONDS, FIRST_SECONDS).failures == {"psutil": 1}
    assert times_of(run) == 0


def test_a_sample_that_fails_altogether_ends_no_shipping(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()
    monkeypatch.setattr(machines, "process_sources", lambda _: 1 / 0)
    assert sampled(run, FIRST_SECONDS, 10.0).failures == {"sample": 2}


# --- the device --------------------------------------------------------------------------------------------------


class Driver(ModuleType):
    """NVML of a machine with two devices; each call answers as its C function does."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, broken: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self.asked: list[str | int] = []
        self._broken = broken

    def __getattribute__(self, name: str):
        if name.startswith("nvml") and name in super().__getattribute__("_broken"):
            raise Driver.NVMLError(name)
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int):
        self.asked.append(index)
        return f"GPU-{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str):
        self.asked.append(uuid)
        if uuid == "GPU-part":
            raise Driver.NVMLError("not found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str):
        return SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle: str):
        return SimpleNamespace(total=80_000_000_000, used=20_000_000_000, free=60_000_000_000)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 512_300

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 61


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch):
    """Puts a driver in place, and has torch say that it uses a device."""

    def put(driver: Driver | None) -> Driver | None:
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        return driver

    return put


def device(failures: dict[str, int] | None = None, *, visible: str | None = None, rank: int = 0) -> Device:
    def note(what: str, _: Exception) -> None:
        if failures is not None:
            failures[what] = failures.get(what, 0) + 1

    return Device({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, rank, note)


def test_readings_of_a_device_have_the_units_of_their_names(drive) -> None:
    drive(Driver())
    assert device().read(1.0) == {
        "system/gpu_utilisation_percent": 87,
        "system/gpu_memory_used_gb": 20.0,
        "system/gpu_memory_used_percent": 25.0,
        "system/gpu_power_watts": 512.3,
        "system/gpu_temperature_celsius": 61,
    }


def test_a_device_that_the_process_does_not_use_is_not_asked(drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive(Driver())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert device().read(1.0) == {}
    assert driver.asked == []


@pytest.mark.parametrize(
    ("visible", "rank", "asked"),
    [
        (None, 0, [0]),
        (None, 3, [3]),
        ("5", 0, [5]),
        ("4,6", 1, [6]),
        ("6", 1, [6]),  # a launcher shows each process its own alone
        ("GPU-abc,GPU-def", 1, ["GPU-def"]),
        ("", 0, []),
        ("-1", 0, []),
        ("2,-1,3", 2, [2]),  # CUDA sees what stands before the one that is none
    ],
)
def test_the_device_is_the_one_that_the_process_sees(drive, visible: str | None, rank: int, asked: list) -> None:
    driver = drive(Driver())
    device(visible=visible, rank=rank).read(1.0)
    assert driver.asked == asked


def test_the_device_that_a_model_lies_on_comes_before_what_the_environment_tells(drive) -> None:
    driver = drive(Driver())
    chosen = device(visible="4")
    assert chosen.read(1.0)
    chosen.choose("whole")
    assert chosen.read(1.0)
    chosen.choose("part")
    assert chosen.read(1.0)
    assert driver.asked == [4, "GPU-whole", "GPU-part", "MIG-part"]


def test_a_sensor_that_a_device_lacks_is_counted_and_the_others_are_read(drive) -> None:
    drive(Driver(broken=("nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryInfo")))
    failures: dict[str, int] = {}
    one = device(failures)
    assert set(one.read(1.0)) == {"system/gpu_utilisation_percent", "system/gpu_temperature_celsius"}
    one.read(1.0)
    assert failures == {"gpu_power": 2, "gpu_memory": 2}


@pytest.mark.parametrize("driver", [Driver(broken=("nvmlInit",)), None])
def test_where_there_is_no_driver_nobody_asks_again(drive, driver: Driver | None) -> None:
    drive(driver)
    failures: dict[str, int] = {}
    one = device(failures)
    assert [one.read(1.0), one.read(1.0)] == [{}, {}]
    assert failures == {"nvml": 1}


def test_names_of_visible_devices_are_indices_or_uuids() -> None:
    assert visible_devices("0, GPU-a ,MIG-b") == ["0", "GPU-a", "MIG-b"]
    assert [name_of(["0", "GPU-a"], rank) for rank in (0, 1)] == [0, "GPU-a"]
