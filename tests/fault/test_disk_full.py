"""The disk of the data folder is full: nothing is acknowledged, nothing is damaged, and with room all is stored."""

import ctypes
import os
import signal

import pytest
from support.place import Place, ended, said, tell, tensorboard_points, until

from sidestep import launch

SLOW = """
import sys, sidestep
run = sidestep.init(id="full")
for step in range(200): run.log({"loss": step})
assert run.flush(30)
print("before", flush=True)
sys.stdin.readline()
for step in range(200, 1000): run.log({"loss": step})
print("during", flush=True)
sys.stdin.readline()
report = run.finish(timeout=60)
assert report.complete, report
"""


@pytest.fixture
def small(tmp_path):
    """A place on a file system of 24 MB, and the means to fill it."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=24m") != 0:
        pytest.skip(f"no small file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    place = Place(folder / "data")
    yield place
    place.close()
    libc.umount2(bytes(folder), 2)


def fill(place):
    file = place.root.parent / "filler"
    with file.open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue
    return file


def test_a_full_disk_fails_commits_and_with_room_everything_is_stored(small):
    small.up("--flush-seconds", "0.1")
    trainer = small.script(SLOW)
    said(trainer, "before")
    before = small.stored("full")
    filler = fill(small)
    tell(trainer)
    said(trainer, "during")
    failing = until(lambda: small.status()["failing"])
    assert "make room on the disk" in failing
    shown = small.sidestep("status")
    assert shown.returncode == 0
    assert "COMMITS FAIL" in shown.stderr
    [stream] = small.status()["streams"]
    assert stream["committed"] == before
    assert small.stored("full") == before
    filler.unlink()
    until(lambda: not small.status()["failing"])
    tell(trainer)
    ended(trainer)
    check(small)


def test_a_collector_ends_on_a_full_disk_and_what_it_could_not_store_comes_again(small):
    pid = small.up("--flush-seconds", "0.1")["pid"]
    trainer = small.script(SLOW)
    said(trainer, "before")
    filler = fill(small)
    tell(trainer)
    said(trainer, "during")
    until(lambda: small.status()["failing"])
    os.kill(pid, signal.SIGTERM)
    until(lambda: not launch.is_locked(small.root))
    assert small.stored("full") < 1000
    filler.unlink()
    small.up()
    tell(trainer)
    ended(trainer)
    check(small)


def check(small):
    small.check_whole("full", key_sets=1)
    assert small.values("full", "train/loss") == [(step, float(step)) for step in range(1000)]
    points = [
        (step, value) for tag, step, value in tensorboard_points(small.tensorboard("full")) if tag == "train/loss"
    ]
    assert points == [(step, float(step)) for step in range(1000)]
    small.down()
    small.up()
    assert small.stored("full") == 1003
