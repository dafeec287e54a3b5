"""The disk of the data folder stands still: whoever writes to it waits, and the training does not."""

import pytest
from support.disks import freeze, mounted, thaw
from support.place import Place, ended, said, tell, until

LOGS_ON = """
import sys, threading, sidestep
run = sidestep.init(id="frozen", mode=sys.argv[1])
go_on = threading.Event()
def listen():
    sys.stdin.readline()
    go_on.set()
threading.Thread(target=listen, daemon=True).start()
step = 0
while not go_on.wait(0.001):
    run.log({"loss": step / 3, "other": -1.0})
    step += 1
    if step % 100 == 0:
        print("step", step, flush=True)
print("finishing", step, flush=True)
report = run.finish(timeout=60)
assert report.lost == 0, report
print("ended", report.sent, report.pending, flush=True)
"""


@pytest.fixture
def disk(tmp_path):
    """A place on a disk of its own."""
    with mounted(tmp_path / "disk") as folder:
        place = Place(folder / "data")
        yield place
        thaw(folder)
        place.close()


def steps(process, count):
    for _ in range(count):
        last = said(process, "step")
    return int(last.split()[1])


@pytest.mark.parametrize("mode", ["on", "offline"])
def test_a_training_goes_on_while_its_disk_stands_still_and_nothing_is_lost(disk, mode):
    if mode == "on":
        disk.up("--flush-seconds", "0.1")
    trainer = disk.script(LOGS_ON, mode)
    before = steps(trainer, 3)
    freeze(disk.root.parent)
    during = steps(trainer, 60)  # some minutes of a training: what waits goes to the disk after a second
    assert during >= before + 6000
    thaw(disk.root.parent)
    tell(trainer)
    count = int(said(trainer, "finishing").split()[1])
    said(trainer, "ended")
    ended(trainer)
    if mode == "offline":
        done = disk.sidestep("sync")
        assert done.returncode == 0, done.stderr
    until(lambda: disk.rows("select * from runs where state = 'finished'"))
    assert disk.values("frozen", "train/loss") == [(step, step / 3) for step in range(count)]
    assert disk.journals() == []


def test_a_disk_that_stands_still_is_said(disk):
    trainer = disk.script(LOGS_ON, "offline")
    steps(trainer, 3)
    freeze(disk.root.parent)
    said_so = until(trainer.stderr.readline)
    assert "stands still" in said_so
    thaw(disk.root.parent)
    tell(trainer)
    said(trainer, "ended")
    ended(trainer)
